"""NVIDIA's driver: its version, what keeps it from starting, and what it says of its GPUs.

Asked through its library, which needs neither MXNet nor CUDA.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

DRIVER_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # of a GPU's attributes: its compute capability
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_SERVICE = "nvidia-cuda-mps-control"
_PIPES = "/tmp/nvidia-mps"  # of the service, where CUDA_MPS_PIPE_DIRECTORY names no other folder
# Codes of cuInit, and what to do about them.
_DRIVER_FAULTS = {
    3: "not initialized; see whether `nvidia-smi` finds it",
    34: "the library is a stub of the CUDA toolkit; take its folder off LD_LIBRARY_PATH",
    100: "no GPU; look at CUDA_VISIBLE_DEVICES, and in a container, pass the GPU in",
    802: "the system is not ready; where GPUs share an NVSwitch, start nvidia-fabricmanager",
    803: "its library and its kernel module are of different versions; restart the machine, or in "
         "a container take the library of the host",
    804: "the library is one of CUDA's forward compatibility, which this GPU cannot use; remove "
         "the package cuda-compat, or take its folder off LD_LIBRARY_PATH",
}  # fmt: skip


class Driver(NamedTuple):
    """NVIDIA's driver: its version, and the newest CUDA it speaks; None where it does not tell."""

    version: str | None
    cuda: str | None


def driver() -> Driver | None:
    """Return NVIDIA's driver; None where the loader does not find its library."""
    number, speaks = ctypes.c_int(0), None
    try:
        library = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None
    with contextlib.suppress(AttributeError):  # a library without the function
        if not library.cuDriverGetVersion(ctypes.byref(number)):
            speaks = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return Driver(kernel_module_version(), speaks)


def kernel_module_version() -> str | None:
    """Return the version of the driver's kernel module, such as 535.104.05; None without one."""
    command, told = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], ""
    try:
        told = _KERNEL_MODULE.read_text(encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            told = subprocess.check_output(
                command, text=True, timeout=60, stderr=subprocess.DEVNULL
            )
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", told)
    return found.group() if found else None


def driver_fault() -> str | None:
    """Say why NVIDIA's driver does not start; None where it does, or where there is none."""
    try:
        code = ctypes.CDLL(DRIVER_LIBRARY).cuInit(0)
    except OSError:
        return None
    except AttributeError:
        return f"its {DRIVER_LIBRARY} is none of NVIDIA's"
    meaning = _DRIVER_FAULTS.get(code, "see what `nvidia-smi` says")
    return f"cuInit fails with {code}: {meaning}" if code else None


def sharing() -> str | None:
    """Say how processes need not take turns on a GPU; None where they do not, or have to.

    That is by NVIDIA's multi-process service, of which each client looks for the same pipe.
    """
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", _PIPES))
    if (pipes / "control").exists() or not shutil.which(_SERVICE):
        return None
    service = f"NVIDIA's multi-process service, `{_SERVICE} -d`"
    return f"trials take turns on a GPU; under {service}, they do not"


def _answered(index: int, question: str, *arguments: Any) -> bool:
    """Whether the driver answers a question on a GPU, by a function that takes it last."""
    gpu = ctypes.c_int()
    try:
        library = ctypes.CDLL(DRIVER_LIBRARY)
        failed = library.cuInit(0) or library.cuDeviceGet(ctypes.byref(gpu), index)
        return not (failed or getattr(library, question)(*arguments, gpu))
    except (OSError, AttributeError):
        return False


def gpu_name(index: int) -> str | None:
    """Return what the driver calls a GPU, such as "NVIDIA H100 80GB HBM3"; None without it."""
    name = ctypes.create_string_buffer(100)
    told = _answered(index, "cuDeviceGetName", name, len(name))
    return name.value.decode(errors="replace") if told else None


def capability(index: int) -> tuple[int, int] | None:
    """Return a GPU's compute capability, such as (9, 0); None where the driver does not tell."""
    found = [ctypes.c_int(), ctypes.c_int()]
    told = all(
        _answered(index, "cuDeviceGetAttribute", ctypes.byref(one), attribute)
        for one, attribute in zip(found, (_MAJOR, _MINOR))
    )
    return (found[0].value, found[1].value) if told else None


def card(index: int) -> str:
    """Name a GPU, its compute capability and its memory, as far as the driver tells."""
    told, size = [gpu_name(index) or "of unknown name"], ctypes.c_size_t()
    if found := capability(index):
        told.append(f"compute capability {found[0]}.{found[1]}")
    if _answered(index, "cuDeviceTotalMem_v2", ctypes.byref(size)):
        told.append(f"{size.value / 2**30:.0f} GiB")
    return ", ".join(told)
