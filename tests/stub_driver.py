"""A library in the place of NVIDIA's driver, with such GPUs, or such a fault, as a test wants."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from fltrust_repro import nvidia


class Card(NamedTuple):
    """What a GPU is called, its compute capability, its memory in GiB."""

    name: str
    major: int
    minor: int
    memory: int


AMPERE = Card("NVIDIA A100-SXM4-80GB", 8, 0, 80)
ADA = Card("NVIDIA GeForce RTX 4090", 8, 9, 24)
HOPPER = Card("NVIDIA H200", 9, 0, 140)

_SOURCE = """
#include <string.h>
struct card { const char *name; int major, minor; size_t memory; };
static struct card cards[] = {CARDS {"", 0, 0, 0}};
enum { FIRST = 7 };  /* a handle is not the number of a GPU */
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 12020; return 0; }
int cuDeviceGet(int *device, int index) { *device = FIRST + index; return index < COUNT ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, cards[device - FIRST].name, size);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? cards[device - FIRST].major : cards[device - FIRST].minor;
    return attribute == 75 || attribute == 76 ? 0 : 1;
}
int cuDeviceTotalMem_v2(size_t *memory, int device) {
    *memory = cards[device - FIRST].memory << 30;
    return 0;
}
"""


def source(cards: Sequence[Card] = (), init: int = 0) -> str:
    """C of a driver with these GPUs, whose start ends with the code `init`."""
    rows = "".join(f'{{"{name}", {a}, {b}, {gib}}},' for name, a, b, gib in cards)
    text = _SOURCE.replace("CARDS", rows).replace("COUNT", str(len(cards)))
    return text.replace("INIT", str(init))


def build(library: Path, text: str) -> None:
    """Compile C to a library; no soname, by which a process would ever after take it for real."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    command = ["cc", "-x", "c", "-", "-shared", "-fPIC", "-o", library]
    subprocess.run(command, input=text, text=True, check=True)


@pytest.fixture
def driver(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Take a library of this C for the driver's, in this process."""
    folder, numbers = tmp_path_factory.mktemp("driver"), itertools.count()

    def take(text: str) -> None:
        library = folder / f"libcuda-{next(numbers)}.so"
        build(library, text)
        monkeypatch.setattr(nvidia, "DRIVER_LIBRARY", str(library))

    return take
