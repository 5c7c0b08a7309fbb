"""Unpack the pieces that lie beside this file, or those given; needs Python 3.9 and nothing else.

    python unpack.py --to FOLDER [PIECE ...]

Pieces can come one at a time and in any order: each call unpacks those it is given and that were
not unpacked before, and says which ones are still to come, or how to use the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import os
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
STEP = 1 << 20


def sums() -> dict[str, str]:
    """Return the sha256 of every piece by its name."""
    pairs = [line.split() for line in (HERE / SUMS).read_text(encoding="utf-8").splitlines()]
    return {name: value for value, name in pairs}


def write(tar: tarfile.TarFile, info: tarfile.TarInfo, folder: Path) -> None:
    """Write a file or a part of one to its place; zeros become holes of the file."""
    target = folder / info.name
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(info)
    handle = os.open(target, os.O_WRONLY | os.O_CREAT, info.mode)
    with os.fdopen(handle, "wb") as file:
        file.truncate(int(info.pax_headers.get("fltrust.whole", info.size)))
        file.seek(int(info.pax_headers.get("fltrust.offset", 0)))
        while data := source.read(STEP):
            if data.count(0) == len(data):
                file.seek(len(data), os.SEEK_CUR)
            else:
                file.write(data)


def unpack(folder: Path, piece: Path) -> str | None:
    """Unpack one piece, unless it was before; return what is wrong with it in one sentence."""
    done = folder / ".unpacked" / piece.name
    if done.exists():
        return None
    if not piece.is_file():
        return f"{piece} is not there."
    content = piece.read_bytes()
    if hashlib.sha256(content).hexdigest() != sums().get(piece.name):
        return f"{piece} is damaged, or of another pack: its sha256 is not the one in {SUMS}."
    with lzma.open(piece) as xz, tarfile.open(fileobj=xz, mode="r|", ignore_zeros=True) as tar:
        for info in tar:
            write(tar, info, folder)
    done.parent.mkdir(exist_ok=True)
    done.touch()
    return None


def main() -> None:
    """Unpack what was asked, several pieces at a time, and say what comes next."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pieces", type=Path, nargs="*", help="all that lie beside this file")
    parser.add_argument("--to", type=Path, required=True, help="folder to unpack to")
    asked = parser.parse_args()
    pieces = asked.pieces or [HERE / name for name in sums() if (HERE / name).exists()]
    asked.to.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        faults = list(filter(None, pool.map(partial(unpack, asked.to), pieces)))
    if faults:
        sys.exit("\n".join(f"Error: {fault}" for fault in faults))
    left = [name for name in sums() if not (asked.to / ".unpacked" / name).exists()]
    if left:
        print(f"Still to come: {' '.join(left)}")
    else:
        print(f"export PYTHONPATH={asked.to.resolve()}")


if __name__ == "__main__":
    main()
