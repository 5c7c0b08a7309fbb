"""NVIDIA's driver: what it says of itself and its GPUs, and why it does not start."""

from __future__ import annotations

import pytest
from stub_driver import AMPERE, HOPPER, source

from fltrust_repro import backend, machine, nvidia
from fltrust_repro.errors import BadInput

KERNEL_MODULE = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


@pytest.fixture
def no_kernel_module(tmp_path, monkeypatch):
    monkeypatch.setattr(nvidia, "_KERNEL_MODULE", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(nvidia, "DRIVER_LIBRARY", "libno-such-driver.so.1")


def test_the_version_of_the_kernel_module(no_kernel_module):
    assert nvidia.kernel_module_version() is None
    (no_kernel_module / "version").write_text(KERNEL_MODULE)
    assert nvidia.kernel_module_version() == "535.104.05"


def test_nvidia_smi_is_asked_where_the_kernel_tells_nothing(no_kernel_module):
    script = no_kernel_module / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 470.82.01\n")
    script.chmod(0o755)
    assert nvidia.kernel_module_version() == "470.82.01"
    script.write_text("#!/bin/sh\necho 'has failed: 123.45'\nexit 9\n")
    assert nvidia.kernel_module_version() is None


def test_a_driver_that_is_not_there(no_driver):
    assert nvidia.driver() is None
    assert nvidia.driver_fault() is None


def test_a_driver_tells_its_cuda_and_has_no_fault(driver):
    driver(source([AMPERE]))
    assert nvidia.driver().cuda == "12.2"
    assert nvidia.driver_fault() is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "not initialized"),
        (34, "a stub of the CUDA toolkit"),
        (100, "no GPU; look at CUDA_VISIBLE_DEVICES"),
        (802, "the system is not ready"),
        (803, "its library and its kernel module are of different versions"),
        (804, "forward compatibility"),
        (999, "see what `nvidia-smi` says"),
    ],
)
def test_why_a_driver_does_not_start(driver, code, words):
    driver(source([AMPERE], init=code))
    assert nvidia.driver_fault().startswith(f"cuInit fails with {code}: ")
    assert words in nvidia.driver_fault()
    assert nvidia.driver() is not None
    assert nvidia.gpu_name(0) is nvidia.capability(0) is None


def test_a_library_that_is_no_drivers(driver):
    driver("")
    assert "is none of NVIDIA's" in nvidia.driver_fault()
    assert nvidia.gpu_name(0) is nvidia.capability(0) is None


def test_gpus_have_the_names_and_numbers_that_the_driver_gives_them(driver):
    driver(source([AMPERE, HOPPER]))
    assert [nvidia.gpu_name(index) for index in range(3)] == [AMPERE.name, HOPPER.name, None]
    assert [nvidia.capability(index) for index in range(3)] == [(8, 0), (9, 0), None]
    assert nvidia.card(0) == "NVIDIA A100-SXM4-80GB, compute capability 8.0, 80 GiB"
    assert nvidia.card(1) == "NVIDIA H200, compute capability 9.0, 140 GiB"
    assert machine.versions(gpu=1) == f"{machine.versions()}, NVIDIA H200"


def test_a_gpu_without_a_name(no_driver):
    assert nvidia.gpu_name(0) is nvidia.capability(0) is None
    assert nvidia.card(0) == "of unknown name"
    assert machine.versions(gpu=0).endswith(", GPU of unknown name")


def test_how_a_gpu_is_shared_is_told_where_it_could_be_and_is_not(tmp_path, monkeypatch):
    pipes, programs = tmp_path / "pipes", tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(pipes))
    assert nvidia.sharing() is None
    service = programs / "nvidia-cuda-mps-control"
    service.write_text("#!/bin/sh\n")
    service.chmod(0o755)
    assert "`nvidia-cuda-mps-control -d`" in str(nvidia.sharing())
    pipes.mkdir()
    assert nvidia.sharing() is not None
    (pipes / "control").touch()
    assert nvidia.sharing() is None


def test_whoever_asks_for_a_gpu_is_told_what_keeps_the_driver_from_starting(driver, monkeypatch):
    monkeypatch.setattr(backend, "gpu_count", lambda: 0)
    driver(source([AMPERE], init=803))
    with pytest.raises(BadInput, match=r"sees no NVIDIA GPU; .*mend the driver \(cuInit .* 803"):
        backend.resolve_device("gpu")
    driver(source())
    with pytest.raises(BadInput, match=r"sees no NVIDIA GPU; .*install its driver"):
        backend.resolve_device("gpu")
