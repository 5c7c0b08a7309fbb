"""NVIDIA's side of a machine, looked at without MXNet: its driver and the CUDA 11 libraries.

MXNet's CUDA build links to libraries that pip puts where the loader does not look; once they are
loaded by their paths, MXNet finds them. Only the driver cannot come from pip.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CPU_BUILD, CUDA_BUILD = "mxnet", "mxnet-cu112"

# What libmxnet.so of the CUDA build links to, and the pip package that carries each; a library
# comes after those it needs itself.
LIBRARIES = {
    "libcudart.so.11.0": "nvidia-cuda-runtime-cu11",
    "libnvrtc.so.11.2": "nvidia-cuda-nvrtc-cu11",
    "libcublasLt.so.11": "nvidia-cublas-cu11",
    "libcublas.so.11": "nvidia-cublas-cu11",
    "libcufft.so.10": "nvidia-cufft-cu11",
    "libcurand.so.10": "nvidia-curand-cu11",
    "libcusolver.so.11": "nvidia-cusolver-cu11",
    "libcudnn.so.8": "nvidia-cudnn-cu11",
    "libnccl.so.2": "nvidia-nccl-cu11",
    "libnvToolsExt.so.1": "nvidia-nvtx-cu11",
}
DRIVER_LIBRARY = "libcuda.so.1"
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")


class Driver(NamedTuple):
    """NVIDIA's driver: its version, and the newest CUDA it speaks; None where it does not tell."""

    version: str | None
    cuda: str | None


def installed_builds() -> dict[str, str]:
    """Return the builds of MXNet that pip installed, with their versions: exactly one may be."""
    builds = {}
    for name in (CPU_BUILD, CUDA_BUILD):
        try:
            builds[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return builds


def driver() -> Driver | None:
    """Return NVIDIA's driver; None where the loader does not find its library."""
    try:
        library = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None
    return Driver(kernel_module_version(), _newest_cuda(library))


def kernel_module_version() -> str | None:
    """Return the version of the driver's kernel module, such as 535.104.05; None without one."""
    try:
        told = _KERNEL_MODULE.read_text(encoding="utf-8")
    except OSError:
        told = _nvidia_smi()
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", told)
    return found.group() if found else None


def _nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _newest_cuda(library: ctypes.CDLL) -> str | None:
    number = ctypes.c_int(0)
    try:
        failed = library.cuDriverGetVersion(ctypes.byref(number))
    except AttributeError:
        return None
    return None if failed else f"{number.value // 1000}.{number.value % 1000 // 10}"


def gpu_name(index: int) -> str | None:
    """Return what the driver calls a GPU, such as "NVIDIA H100 80GB HBM3"; None without it."""
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(100)
    try:
        library = ctypes.CDLL(DRIVER_LIBRARY)
        failed = (
            library.cuInit(0)
            or library.cuDeviceGet(ctypes.byref(handle), index)
            or library.cuDeviceGetName(name, len(name), handle)
        )
    except (OSError, AttributeError):
        return None
    return None if failed else name.value.decode(errors="replace")


def preload() -> list[str]:
    """Load the libraries of the CUDA build, the driver's among them, from pip or the system.

    Returns the names of those that do not load; `remedy` says what to do about them.
    """
    missing = []
    for library in [*LIBRARIES, DRIVER_LIBRARY]:
        try:
            ctypes.CDLL(_place(library), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            missing.append(library)
    return missing


def _place(library: str) -> str:
    """Path of a library that pip installed; its bare name, which the loader looks for, if none."""
    for folder in sys.path:
        for file in Path(folder, "nvidia").glob(f"*/lib/{library}"):
            return str(file)
    return library


def remedy(missing: Sequence[str]) -> str:
    """Say what a user can do about missing libraries, one or several."""
    if DRIVER_LIBRARY in missing:
        return (
            "install NVIDIA's driver (in a container, pass the GPU in), or MXNet's CPU build: "
            f"`pip uninstall -y {CUDA_BUILD} && pip install -e '.[cpu]'`"
        )
    if len(missing) > 1:
        return "`pip install -e '.[cuda]'`"
    return f"`pip install '{requirement(LIBRARIES[missing[0]])}'`"


def requirement(package: str) -> str:
    """Return what setup.py demands of a package, as pip reads it: its name and versions."""
    try:
        demanded = importlib.metadata.requires("fltrust_repro") or []
    except importlib.metadata.PackageNotFoundError:
        demanded = []
    texts = (text.split(";")[0].strip() for text in demanded)
    return next((text for text in texts if re.match(rf"{package}\b(?!-)", text)), package)
