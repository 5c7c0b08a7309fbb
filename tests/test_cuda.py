"""NVIDIA's driver and libraries, as `cuda` finds them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fltrust_repro import cuda, trial_process

REPOSITORY = Path(__file__).parents[1]

KERNEL_MODULE = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


@pytest.fixture
def no_kernel_module(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "_KERNEL_MODULE", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_version_of_the_kernel_module(no_kernel_module):
    assert cuda.kernel_module_version() is None
    (no_kernel_module / "version").write_text(KERNEL_MODULE)
    assert cuda.kernel_module_version() == "535.104.05"


def test_nvidia_smi_is_asked_where_the_kernel_tells_nothing(no_kernel_module):
    script = no_kernel_module / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 470.82.01\n")
    script.chmod(0o755)
    assert cuda.kernel_module_version() == "470.82.01"
    script.write_text("#!/bin/sh\necho 'has failed: 123.45'\nexit 9\n")
    assert cuda.kernel_module_version() is None


def test_a_driver_that_is_not_there(monkeypatch):
    monkeypatch.setattr(cuda, "DRIVER_LIBRARY", "libno-such-driver.so.1")
    assert cuda.driver() is None


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A driver's library with functions of one's own, written in C."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")

    def made(source: str) -> None:
        file, library = tmp_path / "driver.c", tmp_path / f"libcuda-{len(list(tmp_path.iterdir()))}"
        file.write_text(f"#include <string.h>\n{source}")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, file], check=True)
        monkeypatch.setattr(cuda, "DRIVER_LIBRARY", str(library))

    return made


TWO_GPUS = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int index) { *device = 7 + index; return index > 1 ? 101 : 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 7 ? "NVIDIA A" : "NVIDIA B", size);
    return 0;
}
"""


def test_a_gpu_has_the_name_that_the_driver_gives_it(driver):
    driver(TWO_GPUS)
    assert [cuda.gpu_name(index) for index in range(3)] == ["NVIDIA A", "NVIDIA B", None]
    assert trial_process.versions(gpu=1) == f"{trial_process.versions()}, NVIDIA B"


def test_a_gpu_without_a_name(driver, monkeypatch):
    driver("int cuInit(unsigned flags) { return 100; }")
    assert cuda.gpu_name(0) is None
    driver("")
    assert cuda.gpu_name(0) is None
    monkeypatch.setattr(cuda, "DRIVER_LIBRARY", "libno-such-driver.so.1")
    assert cuda.gpu_name(0) is None
    assert trial_process.versions(gpu=0).endswith(", GPU of unknown name")


def test_setup_installs_the_package_of_every_library():
    setup = (REPOSITORY / "setup.py").read_text()
    for package in cuda.LIBRARIES.values():
        assert f'"{package}>=' in setup
        assert cuda.requirement(package).startswith((f"{package}<", f"{package}>"))


def test_a_library_that_pip_installed_goes_before_the_loaders_own(tmp_path, monkeypatch):
    file = tmp_path / "nvidia" / "cudnn" / "lib" / "libcudnn.so.8"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert cuda._place("libcudnn.so.8") == str(file)
    assert cuda._place("libcudnn.so.7") == "libcudnn.so.7"


def test_remedies():
    assert cuda.remedy(["libcudnn.so.8"]) == "`pip install 'nvidia-cudnn-cu11<9,>=8.5'`"
    assert cuda.remedy(["libcudnn.so.8", "libnccl.so.2"]) == "`pip install -e '.[cuda]'`"
    assert "MXNet's CPU build" in cuda.remedy(["libcudnn.so.8", "libcuda.so.1"])


# --- the real build for CUDA on a machine without a GPU

PYTHON = os.environ.get("FLTRUST_CUDA_PYTHON", sys.executable)
"""A Python where `pip install -e '.[cuda]'` was run."""


@pytest.fixture(scope="module")
def stub_driver(tmp_path_factory):
    """A folder with a libcuda.so.1 that has every function MXNet links to; none does anything."""
    spec = "import importlib.util as u; print(u.find_spec('mxnet').submodule_search_locations[0])"
    found = subprocess.run([PYTHON, "-c", spec], capture_output=True, text=True, check=False)
    library = Path(found.stdout.strip(), "libmxnet.so")
    for tool in ("nm", "cc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    symbols = ""
    if found.returncode == 0 and library.is_file():
        symbols = subprocess.run(
            ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
        ).stdout
    names = re.findall(r"\bU (cu[A-Z]\w*)$", symbols, re.MULTILINE)
    if not names:
        pytest.skip(f"mxnet-cu112 is not installed for {PYTHON}; FLTRUST_CUDA_PYTHON names another")
    folder = tmp_path_factory.mktemp("driver")
    no_device = 100  # CUDA_ERROR_NO_DEVICE
    source = folder / "libcuda.c"
    source.write_text("".join(f"int {name}(void) {{ return {no_device}; }}\n" for name in names))
    output = folder / "libcuda.so.1"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", output, source], check=True
    )
    return folder


def with_cuda_build(folder: Path | None, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    if folder is not None:
        environment["LD_LIBRARY_PATH"] = str(folder)
    return subprocess.run(
        [PYTHON, *arguments], capture_output=True, text=True, timeout=600, check=False,
        env=environment, cwd=cwd,
    )  # fmt: skip


@pytest.mark.cuda_wheel
def test_the_build_for_cuda_loads_what_pip_installed(stub_driver, tmp_path):
    program = (
        "from fltrust_repro import backend as b; "
        "print(b.gpu_count(), b.resolve_device('auto'), b.nd.ones(3).sum().asscalar(), "
        "b.mx.runtime.Features().is_enabled('CUDA'))"
    )
    done = with_cuda_build(stub_driver, "-c", program, cwd=tmp_path)
    assert done.stdout.split() == ["0", "cpu", "3.0", "True"], done.stderr
    done = with_cuda_build(stub_driver, "-m", "fltrust_repro", "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "all 10 libraries and the driver's load" in done.stdout
    assert "MXNet sees no GPU" in done.stdout


@pytest.mark.cuda_wheel
def test_the_build_for_cuda_refuses_a_gpu_that_is_not_there(stub_driver, tmp_path):
    command = ["-m", "fltrust_repro", "run", "--dataset", "digits", "--device", "gpu"]
    done = with_cuda_build(stub_driver, *command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: device is 'gpu', but MXNet sees no NVIDIA GPU")


@pytest.mark.cuda_wheel
def test_the_build_for_cuda_without_any_driver(stub_driver, tmp_path):
    if cuda.driver() is not None:
        pytest.skip("this machine has NVIDIA's driver")
    done = with_cuda_build(None, "-m", "fltrust_repro", "list", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: MXNet does not load (libcuda.so.1 not found); install ")
    assert len(done.stderr.splitlines()) == 1
