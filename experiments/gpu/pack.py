"""Pack what `pip install '.[cuda]'` brings, for a machine without a network, in few pieces.

    python experiments/gpu/pack.py --python 3.12 --card 9.0 --out pack

With `--card`, kernels that this card does not need are overwritten with zeros: the libraries load
as before, for cards of that compute capability only. Each piece is a .tar.xz of its own, which
unpack.py, written beside them, puts where it belongs. README.md in this folder tells more.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from fatbin import prune

MIB = 1 << 20
BLOCK = 32 * MIB  # what is compressed at a time; a piece is made of whole blocks
UNPACK = Path(__file__).with_name("unpack.py")
# Wheels for glibc 2.28, which most clusters' Linux has, and older ones.
MANYLINUX = ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "2010", "1")
# What no run opens: byte code, packages' own tests, C headers, static libraries, commands.
NEEDLESS = ("*.pyc", "*/tests/*", "*/include/*", "*.a", "bin/*")

Span = tuple[str, int, int]
"""Part of a file: path below the packed folder, first byte, bytes."""


def requirements() -> list[str]:
    """Return what the installed product and its extra `cuda` ask for, as pip reads it."""
    try:
        asked = importlib.metadata.requires("fltrust_repro") or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit(
            f"Error: fltrust_repro, whose requirements are packed, is not installed for "
            f"{sys.executable}; run `make setup`, then this with .venv/bin/python."
        )
    cuda = [text.partition(";")[0] for text in asked if re.search(r"extra == .cuda\b", text)]
    return [text for text in asked if "extra ==" not in text] + cuda


def collect(folder: Path, python: str, wheels: Path | None) -> None:
    """Let pip unpack wheels for a Python into a folder; those in `wheels` alone, where given."""
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    platforms = [f"--platform=manylinux{one}_x86_64" for one in MANYLINUX]
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-compile", "--only-binary=:all:", "--implementation=cp", "--python-version", python,
        *platforms, "--target", str(folder), *source, *requirements(),
    ]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"Error: pip could not collect the wheels for Python {python}, as it says above.")


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by their path in it, in order."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file for file in files}


def leave_out(folder: Path, patterns: Iterable[str]) -> None:
    """Delete the files whose path in the folder matches a pattern, and say what that saves."""
    for pattern in patterns:
        found = [file for name, file in files_of(folder).items() if fnmatch(name, pattern)]
        size = sum(file.stat().st_size for file in found)
        print(f"left out {pattern:24} {len(found):6,} files {size / MIB:8,.1f} MiB", flush=True)
        for file in found:
            file.unlink()


def prune_all(folder: Path, card: int | None, bare: Iterable[str]) -> None:
    """Prune every library for the card, those whose name matches `bare` of all kernels."""
    print(f"{'library':32} {'MiB':>7} {'left':>7}  had kernels for")
    for file in files_of(folder).values():
        needs = 0 if any(fnmatch(file.name, pattern) for pattern in bare) else card
        if needs is not None and ".so" in file.name and (size := file.stat().st_size):
            forms, dropped = prune(file, needs)
            if forms:
                had = ", ".join(sorted(forms, key=lambda form: (len(form), form)))
                left = (size - dropped) / MIB
                print(f"{file.name:32} {size / MIB:7,.1f} {left:7,.1f}  {had}", flush=True)


def blocks(folder: Path, most: int) -> Iterator[list[Span]]:
    """Group the folder's files, large ones in parts, to blocks of at most `most` bytes."""
    block: list[Span] = []
    room = most
    for name, file in files_of(folder).items():
        size = file.stat().st_size
        for at in range(0, max(size, 1), most):
            part = min(size - at, most)
            if part > room:
                yield block
                block, room = [], most
            block.append((name, at, part))
            room -= part
    yield block


def compress(folder: Path, block: list[Span]) -> bytes:
    """Return a .tar.xz of files and parts of files; the header of a part tells its place."""
    buffer = io.BytesIO()
    with lzma.open(buffer, "wb", preset=9) as xz, tarfile.open(fileobj=xz, mode="w|") as tar:
        for name, at, size in block:
            info = tar.gettarinfo(str(folder / name), arcname=name)
            if size < info.size:
                info.pax_headers = {"fltrust.offset": str(at), "fltrust.whole": str(info.size)}
                info.size = size
            with (folder / name).open("rb") as file:
                file.seek(at)
                tar.addfile(info, file)
    return buffer.getvalue()


def write_pieces(folder: Path, out: Path, most: int) -> None:
    """Write the folder as pieces of at most `most` bytes, with their sums and what unpacks them."""
    todo = list(blocks(folder, min(BLOCK, most // 2)))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # 0.7 GB of memory each
        streams = list(pool.map(lambda block: compress(folder, block), todo))
    pieces: list[bytearray] = []
    for stream in sorted(streams, key=len, reverse=True):  # into the first piece with room
        piece = next((one for one in pieces if len(one) + len(stream) <= most), None)
        if piece is None:
            pieces.append(piece := bytearray())
        piece += stream
    with (out / "SHA256SUMS").open("w", encoding="utf-8") as sums:
        for number, piece in enumerate(pieces, 1):
            file = out / f"piece-{number:02}.tar.xz"
            file.write_bytes(piece)
            sums.write(f"{hashlib.sha256(piece).hexdigest()}  {file.name}\n")
            print(f"{file}  {len(piece) / MIB:.1f} MiB")
    shutil.copy(UNPACK, out)


def capability(text: str) -> int:
    """Read a card's compute capability, such as 9.0, as 90."""
    if not re.fullmatch(r"\d+\.\d", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability such as 8.6 or 9.0")
    return int(text.replace(".", ""))


def main() -> None:
    """Collect, prune, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the pieces; new or empty")
    add("--python", default="{}.{}".format(*sys.version_info), help="of the other machine: 3.12")
    add("--card", type=capability, help="of the other machine: 9.0; without, nothing is pruned")
    add("--piece", type=int, default=60, help="most MiB of a piece (60)")
    add("--wheels", type=Path, help="take the wheels that lie in this folder, and no others")
    add("--leave-out", action="append", default=[], metavar="GLOB", help="files not to pack")
    add("--no-kernels", action="append", default=[], metavar="GLOB",
        help="libraries, by name, whose kernels are never used")  # fmt: skip
    asked = parser.parse_args()
    if asked.piece < 1:
        sys.exit(f"Error: --piece is {asked.piece}; a piece has at least 1 MiB.")
    if asked.wheels and not asked.wheels.is_dir():
        sys.exit(f"Error: --wheels: {asked.wheels} is no folder.")
    asked.out.mkdir(parents=True, exist_ok=True)
    if any(asked.out.iterdir()):
        sys.exit(f"Error: --out: {asked.out} is not empty; name a new folder, or empty it.")
    with tempfile.TemporaryDirectory(dir=asked.out.parent) as name:
        folder = Path(name)
        collect(folder, asked.python, asked.wheels)
        leave_out(folder, [*NEEDLESS, *asked.leave_out])
        prune_all(folder, asked.card, asked.no_kernels)
        write_pieces(folder, asked.out, asked.piece * MIB)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"Error: {error}.")
