"""NVIDIA's fat binaries: what a library's kernels are compiled for, and how to take some out.

A library keeps its kernels in containers; each holds the same kernels in several forms: as machine
code for one architecture or another, and as PTX, which a driver compiles. NVIDIA does not document
the headers; these, little-endian, were read off the libraries of CUDA 11:

    container   u32 magic, u16 version, u16 bytes of this header, u64 bytes of entries that follow
    entry       u16 kind, u16 version, u32 bytes of this header, u64 bytes of payload, ...,
                at byte 28 u32 architecture (90 for 9.0); then the payload
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
PTX, MACHINE_CODE = 1, 2
NO_CARD = 20  # no card that CUDA 11 knows is of 2.0


class Entry(NamedTuple):
    """The kernels of a container in one form; `header` and `start` are places, in bytes."""

    header: int
    start: int
    size: int
    kind: int
    architecture: int

    def __str__(self) -> str:
        number = f"{self.architecture // 10}.{self.architecture % 10}"
        return f"PTX {number}" if self.kind == PTX else number

    def runs_on(self, card: int) -> bool:
        """Say whether cards of compute capability `card`, 90 for 9.0, can run this."""
        same_major = self.architecture // 10 == card // 10
        return self.architecture <= card and (self.kind == PTX or same_major)


def containers(data: bytes | mmap.mmap) -> Iterator[list[Entry]]:
    """Yield each container's entries, in whatever section of a library it lies."""
    at = data.find(MAGIC)
    while at >= 0:
        start, end = at + 16, at + 16 + struct.unpack_from("<Q", data, at + 8)[0]
        if at % 8 or end > len(data):  # code that has the magic number in it
            at = data.find(MAGIC, at + 1)
            continue
        found = []
        while start < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", data, start)
            architecture = struct.unpack_from("<I", data, start + 28)[0]
            found.append(Entry(start, start + header, size, kind, architecture))
            start += header + size
        yield found
        at = data.find(MAGIC, end)


def prune(file: Path, card: int) -> tuple[set[str], int]:
    """Overwrite with zeros, in place, the kernels that a card does not need; 0 needs none.

    It needs the machine code that it can run, and PTX only where there is no such code. Sizes and
    offsets stay. Where nothing of a container is left, all in it is said to be machine code for
    2.0: a driver passes that by, and tells "no kernel image" if a kernel is used.

    Returns the forms that were there, such as "8.6" and "PTX 9.0", and the bytes overwritten.
    """
    forms, dropped = set(), 0
    with file.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as data:
        for entries in containers(data):
            run = [entry for entry in entries if entry.runs_on(card)]
            kept = [entry for entry in run if entry.kind == MACHINE_CODE] or run
            forms |= {str(entry) for entry in entries}
            for entry in (entry for entry in entries if entry not in kept):
                if not kept:
                    struct.pack_into("<H", data, entry.header, MACHINE_CODE)
                    struct.pack_into("<I", data, entry.header + 28, NO_CARD)
                data[entry.start : entry.start + entry.size] = bytes(entry.size)
                dropped += entry.size
    return forms, dropped
