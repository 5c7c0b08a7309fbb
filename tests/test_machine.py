"""CPU, linear algebra, NVIDIA's side: named, alike on machines alike; what is slow is told."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fltrust_repro import machine
from fltrust_repro.machine import Blas, Cpu

REPOSITORY = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

XEON = """\
processor	: 0
vendor_id	: GenuineIntel
cpu family	: 6
model		: 207
model name	: Intel(R) Xeon(R) Platinum 8592+ CPU @ 1.90GHz
flags		: fpu sse2 avx avx2 avx512f avx512bw

processor	: 1
cpu family	: 6
model		: 207
model name	: another
"""
RYZEN = (
    "cpu family : 23\nmodel : 49\nmodel name : AMD EPYC 7502 32-Core Processor\nflags : sse2 avx2"
)
PHI = (
    "cpu family : 6\nmodel : 87\nmodel name : Intel(R) Xeon Phi(TM) CPU 7210\nflags : avx2 avx512f"
)
OLD = "cpu family : 6\nmodel : 42\nmodel name : Intel(R) Core(TM) i5-2400\nflags : fpu sse2 avx"
ARM = "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd40\nFeatures : asimd sve"


@pytest.mark.parametrize(
    ("text", "name", "vectors"),
    [
        (XEON, "Intel Xeon Platinum 8592+ (family 6, model 207, AVX-512)", "AVX-512"),
        (RYZEN, "AMD EPYC 7502 (family 23, model 49, AVX2)", "AVX2"),
        (PHI, "Intel Xeon Phi 7210 (family 6, model 87, AVX2)", "AVX2"),
        (OLD, "Intel Core i5-2400 (family 6, model 42, AVX)", "AVX"),
        (ARM, "aarch64 (implementer 0x41, part 0xd40)", None),
        ("", "aarch64", None),
        (None, "aarch64", None),
    ],
)
def test_the_name_of_a_cpu(text, name, vectors, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(machine, "_CPUINFO", file)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.cpu.__wrapped__() == Cpu(name, vectors)


def told(path: str, version: str, kernel: str | None = None, api: str = "openblas") -> dict:
    kernels = {} if kernel is None else {"architecture": kernel}
    return {
        "user_api": "blas",
        "internal_api": api,
        "version": version,
        "filepath": path,
        **kernels,
    }


@pytest.fixture
def loaded(monkeypatch):
    """Pretend that such and such libraries are loaded."""
    monkeypatch.setattr(machine, "libraries", machine.libraries.__wrapped__)

    def pretend(*libraries: dict):
        openmp = {"user_api": "openmp", "internal_api": "openmp", "version": None, "filepath": "/x"}
        monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: [*libraries, openmp])

    return pretend


PACKAGES = Path(importlib.util.find_spec("numpy").origin).resolve().parents[1]
NUMPY = told(f"{PACKAGES}/numpy.libs/libopenblas64.so", "0.3.23.dev", "Prescott")
SCIPY = told(f"{PACKAGES}/scipy.libs/libscipy_openblas.so", "0.3.30", "SkylakeX")
MXNET = told(f"{PACKAGES}/mxnet/libopenblas.so.0", "0.3.13", "Prescott")
TORCH = told(f"{PACKAGES}/torch/lib/libmkl.so", "2024.1", api="mkl")
DEBIAN = told("/usr/lib/x86_64-linux-gnu/libopenblas.so.0", "0.3.21", "Haswell")


def test_libraries_are_named_in_one_order_whatever_else_the_process_loaded(loaded):
    loaded(MXNET, TORCH, SCIPY, NUMPY, DEBIAN)
    one = machine.kind()
    loaded(NUMPY, SCIPY, MXNET)
    assert machine.kind() == one
    assert one == (
        "numpy OpenBLAS 0.3.23.dev Prescott, scipy OpenBLAS 0.3.30 SkylakeX, "
        f"mxnet OpenBLAS 0.3.13 Prescott, {machine.cpu()}"
    )


@pytest.mark.parametrize(
    ("file", "owner"),
    [
        ("numpy.libs/libopenblas64_p-r0-0cf96a72.3.23.dev.so", "numpy"),
        ("scipy.libs/libscipy_openblas-6cdc3b4a.so", "scipy"),
        ("scipy/.dylibs/libscipy_openblas.dylib", "scipy"),
        ("mxnet/libopenblas.so.0", "mxnet"),
        ("/usr/lib/mxnet/x86_64-linux-gnu/libopenblas.so.0", "system"),
        ("torch/lib/libmkl.so", "system"),
    ],
)
def test_each_package_has_the_library_that_lies_in_its_folder(loaded, file, owner):
    loaded(told(str(PACKAGES / file), "1"))
    assert [blas.owner for blas in machine.libraries()] == [owner]


def test_mxnets_library_is_named_without_importing_mxnet():
    program = (
        "import sys; from fltrust_repro import machine; one = machine.kind(); "
        "assert 'mxnet' not in sys.modules; machine.libraries.cache_clear(); "
        "from fltrust_repro.backend import mx; assert machine.kind() == one; print(one)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          check=False, env=ENVIRONMENT)  # fmt: skip
    assert re.search(r"^numpy \w+ .*, scipy \w+ .*, mxnet \w+ \S+", done.stdout), done.stderr


def test_a_library_that_packages_share_is_named_once(loaded):
    loaded(MXNET, DEBIAN)
    assert [str(blas) for blas in machine.libraries()] == [
        "OpenBLAS 0.3.13 Prescott",
        "OpenBLAS 0.3.21 Haswell",
    ]
    assert "BLAS OpenBLAS 0.3.21 Haswell, " in machine.versions()


def test_versions_name_cpu_kernels_scipy_and_numba_in_one_short_line(loaded, monkeypatch):
    loaded(NUMPY, SCIPY, MXNET)
    longest = Cpu("Intel Xeon Platinum 8592+ CPU of some kind (family 6, model 207, AVX-512)", None)
    monkeypatch.setattr(machine, "cpu", lambda: longest)
    text = machine.versions()
    assert re.fullmatch(
        r"python 3\.\d+\.\d+, \w+, (fltrust_repro [\d.]+, )?mxnet(-cu112)? 1\.9\.1 \(OpenBLAS "
        r"0\.3\.13 Prescott\), numpy [\d.]+ \(OpenBLAS 0\.3\.23\.dev Prescott\), scipy [\d.]+ "
        r"\(OpenBLAS 0\.3\.30 SkylakeX\), numba [\d.]+, Intel Xeon Platinum .*AVX-512\)",
        text,
    )
    assert len(text) <= 260
    loaded({**NUMPY, "architecture": "Haswell"}, SCIPY, MXNET)
    assert machine.versions() != text


# --- advice

NEW, OLDER = Cpu("new", "AVX-512"), Cpu("older", "AVX2")


def blas(owner: str, kernel: str | None) -> Blas:
    return Blas(owner, "OpenBLAS", "0.3", kernel)


FITTING = [blas("numpy", "SkylakeX"), blas("scipy", "SkylakeX"), blas("mxnet", "Haswell")]


@pytest.mark.parametrize(
    ("cpu", "libraries", "coretype"),
    [
        (NEW, FITTING, None),
        (NEW, FITTING, "SkylakeX"),
        (NEW, [blas("numpy", "Zen5"), Blas("scipy", "MKL", None, None)], None),  # not known
        (OLDER, [blas("scipy", "Zen"), blas("mxnet", "Haswell")], "Haswell"),
        (Cpu("old", "AVX"), [blas("numpy", "Nehalem")], None),
        (Cpu("arm", None), [blas("numpy", "ARMV8")], None),
    ],
)
def test_no_advice_where_kernels_fit_or_are_not_known(cpu, libraries, coretype):
    assert machine.advice(cpu, libraries, coretype) is None


@pytest.mark.parametrize("kernel", ["Prescott", "Barcelona", "Nehalem", "Sandybridge", "Katmai"])
def test_kernels_far_below_the_cpu_are_told_with_what_to_set_and_what_they_cost(kernel):
    libraries = [blas("numpy", kernel), blas("scipy", "Haswell"), blas("mxnet", kernel)]
    for cpu, best in ((NEW, "SkylakeX"), (OLDER, "Haswell")):
        text = machine.advice(cpu, libraries, None)
        assert f"numpy's OpenBLAS 0.3 {kernel} and mxnet's OpenBLAS 0.3 {kernel}: " in text
        assert f"OPENBLAS_CORETYPE={best} mends it" in text
        assert "slower, not wrong, and a little only, since scipy's does the hot products" in text
        assert "error" not in text


def test_kernels_of_scipy_that_are_far_below_the_cpu_cost_more():
    text = machine.advice(NEW, [blas("scipy", "Nehalem")], None)
    assert "scipy's OpenBLAS 0.3 Nehalem: kernels for SSE" in text
    assert "a little" not in text


@pytest.mark.parametrize("coretype", ["Haswell", "Prescott"])
def test_a_variable_that_holds_the_hot_products_below_the_cpu_is_told(coretype):
    text = machine.advice(NEW, [blas(name, coretype) for name in ("numpy", "scipy")], coretype)
    assert text.startswith(f"OPENBLAS_CORETYPE={coretype} holds scipy's OpenBLAS 0.3 {coretype}")
    assert "slower, not wrong; unset it, or set SkylakeX" in text


def test_doctor_tells_it_and_trials_can_run_all_the_same(tmp_path):
    if machine.cpu().vectors not in ("AVX-512", "AVX2"):
        pytest.skip("no kernels are far below this CPU")
    done = subprocess.run(
        [sys.executable, "-m", "fltrust_repro", "doctor"], capture_output=True, text=True,
        timeout=300, check=False, cwd=tmp_path,
        env={**ENVIRONMENT, "OPENBLAS_CORETYPE": "Prescott"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert f"cpu       {machine.cpu()}" in lines
    kernels, advice = (line for line in lines if line.startswith("blas "))
    assert re.search(r"numpy: \S+ \S+ Prescott, scipy: .*, mxnet: \S+ \S+ Prescott$", kernels)
    assert "OPENBLAS_CORETYPE=Prescott holds scipy's" in advice


# --- machines side by side


def test_the_machines_that_are_not_as_most_are_named():
    assert machine.odd_ones({"a": "x", "b": "x", "c": "x"}) == {}
    assert machine.odd_ones({"a": "x", "b": "y", "c": "x"}) == {"b": "y"}
    assert len(machine.odd_ones({"a": "x", "b": "y"})) == 1


@pytest.mark.slow
def test_workers_of_a_cluster_with_other_kernels_are_named_before_a_run(tmp_path, capsys):
    if machine.cpu().vectors not in ("AVX-512", "AVX2"):
        pytest.skip("this CPU has no other kernels")
    distributed = pytest.importorskip("distributed")
    from fltrust_repro.cluster import Cluster
    from fltrust_repro.processes import Machine

    def worker(coretype):
        options = {"nthreads": 1, "env": {"OPENBLAS_CORETYPE": coretype}, "local_directory": folder}
        return {"cls": distributed.Nanny, "options": options}

    folder, options = str(tmp_path), {"host": "127.0.0.1", "dashboard": False}
    scheduler = {"cls": distributed.Scheduler, "options": options}
    kernels = {"a": "Haswell", "odd": "Prescott", "b": "Haswell"}
    workers = {name: worker(kernel) for name, kernel in kernels.items()}
    with distributed.SpecCluster(scheduler=scheduler, workers=workers) as some:
        addresses = {info["name"]: a for a, info in some.scheduler_info["workers"].items()}
        cluster = Cluster(Machine(scheduler=some.scheduler_address))
        try:
            cluster.check_data(["digits"], ())
        finally:
            cluster.close()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Note: 1 of 3 workers")
    assert re.search(rf"{addresses['odd']}: numpy .*mxnet OpenBLAS \S+ Prescott", line)
    assert addresses["a"] not in line


# --- NVIDIA's driver and libraries

KERNEL_MODULE = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


@pytest.fixture
def no_kernel_module(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_KERNEL_MODULE", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_version_of_the_kernel_module(no_kernel_module):
    assert machine.kernel_module_version() is None
    (no_kernel_module / "version").write_text(KERNEL_MODULE)
    assert machine.kernel_module_version() == "535.104.05"


def test_nvidia_smi_is_asked_where_the_kernel_tells_nothing(no_kernel_module):
    script = no_kernel_module / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 470.82.01\n")
    script.chmod(0o755)
    assert machine.kernel_module_version() == "470.82.01"
    script.write_text("#!/bin/sh\necho 'has failed: 123.45'\nexit 9\n")
    assert machine.kernel_module_version() is None


def test_a_driver_that_is_not_there(monkeypatch):
    monkeypatch.setattr(machine, "DRIVER_LIBRARY", "libno-such-driver.so.1")
    assert machine.driver() is None


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A driver's library with functions of one's own, written in C."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")

    def made(source: str) -> None:
        file, library = tmp_path / "driver.c", tmp_path / f"libcuda-{len(list(tmp_path.iterdir()))}"
        file.write_text(f"#include <string.h>\n{source}")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, file], check=True)
        monkeypatch.setattr(machine, "DRIVER_LIBRARY", str(library))

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
    assert [machine.gpu_name(index) for index in range(3)] == ["NVIDIA A", "NVIDIA B", None]
    assert machine.versions(gpu=1) == f"{machine.versions()}, NVIDIA B"


def test_a_gpu_without_a_name(driver, monkeypatch):
    driver("int cuInit(unsigned flags) { return 100; }")
    assert machine.gpu_name(0) is None
    driver("")
    assert machine.gpu_name(0) is None
    monkeypatch.setattr(machine, "DRIVER_LIBRARY", "libno-such-driver.so.1")
    assert machine.gpu_name(0) is None
    assert machine.versions(gpu=0).endswith(", GPU of unknown name")


def test_setup_installs_the_package_of_every_library():
    setup = (REPOSITORY / "setup.py").read_text()
    for library, name in machine.CUDA_LIBRARIES.items():
        assert f'"nvidia-{name}-cu11>=' in setup
        assert re.search(f"pip install 'nvidia-{name}-cu11[<>]", machine.remedy([library]))


def test_a_library_that_pip_installed_goes_before_the_loaders_own(tmp_path, monkeypatch):
    file = tmp_path / "nvidia" / "cudnn" / "lib" / "libcudnn.so.8"
    file.parent.mkdir(parents=True)
    file.touch()
    asked = []
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda path, mode: asked.append(path))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert machine.preload() == []
    assert str(file) in asked
    assert "libcuda.so.1" in asked


def test_remedies():
    assert machine.remedy(["libcudnn.so.8"]) == "`pip install 'nvidia-cudnn-cu11<9,>=8.5'`"
    assert machine.remedy(["libcudnn.so.8", "libnccl.so.2"]) == "`pip install -e '.[cuda]'`"
    assert "MXNet's CPU build" in machine.remedy(["libcudnn.so.8", "libcuda.so.1"])


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
    environment = dict(ENVIRONMENT)
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
    if machine.driver() is not None:
        pytest.skip("this machine has NVIDIA's driver")
    done = with_cuda_build(None, "-m", "fltrust_repro", "list", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: MXNet does not load (libcuda.so.1 not found); install ")
    assert len(done.stderr.splitlines()) == 1
