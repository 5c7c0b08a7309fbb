"""Packs for a machine without a network: what a card needs is kept, pieces come back whole."""

from __future__ import annotations

import importlib.metadata
import random
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

GPU = Path(__file__).parents[1] / "experiments" / "gpu"
PTX, MACHINE_CODE = 1, 2
RANDOM = random.Random(7).randbytes


@pytest.fixture
def fatbin(monkeypatch):
    monkeypatch.syspath_prepend(GPU)
    import fatbin

    return fatbin


def container(*forms: tuple[int, int]) -> bytes:
    """A fat binary's container of entries (kind, architecture), each with a payload of its own."""
    entries = b""
    for kind, architecture in forms:
        header = struct.pack("<HHIQIIIIQ24x", kind, 257, 64, 40, 0, 0, 0, architecture, 0x2011)
        entries += header + payload(kind, architecture)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def payload(kind: int, architecture: int) -> bytes:
    return f"<{'PTX' if kind == PTX else 'code'} of {architecture}>".encode().ljust(40, b"!")


# Code that compares with what a container begins with, which is none.
CODE = b"\x7fELF".ljust(68, b"\x90") + struct.pack("<IHH", 0xBA55ED50, 1, 16).ljust(20, b"\1")
ALL = [(MACHINE_CODE, n) for n in (50, 70, 75, 80, 86, 89, 90)] + [(PTX, 90)]
OLD = [(MACHINE_CODE, 50), (PTX, 70), (MACHINE_CODE, 70)]
LIBRARY = CODE + container(*ALL) + bytes(24) + container(*OLD) + CODE


@pytest.mark.parametrize(
    ("card", "kept"),
    [
        (90, [(MACHINE_CODE, 90), (PTX, 70)]),
        (89, [(MACHINE_CODE, 80), (MACHINE_CODE, 86), (MACHINE_CODE, 89), (PTX, 70)]),
        (86, [(MACHINE_CODE, 80), (MACHINE_CODE, 86), (PTX, 70)]),
        (75, [(MACHINE_CODE, 70), (MACHINE_CODE, 75), (MACHINE_CODE, 70)]),
        (61, []),
        (120, [(PTX, 90), (PTX, 70)]),
    ],
)
def test_pruning_keeps_exactly_what_the_card_runs(fatbin, tmp_path, card, kept):
    file = tmp_path / "lib.so"
    file.write_bytes(LIBRARY)
    forms, dropped = fatbin.prune(file, card)
    pruned = file.read_bytes()
    assert len(pruned) == len(LIBRARY)
    left = re.findall(rb"<(PTX|code) of (\d+)>", pruned)
    assert [(PTX if kind == b"PTX" else MACHINE_CODE, int(number)) for kind, number in left] == kept
    assert dropped == 40 * (len(ALL) + len(OLD) - len(kept))
    assert forms == {"5.0", "7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "PTX 7.0", "PTX 9.0"}
    assert pruned.startswith(CODE) and pruned.endswith(CODE)
    # Headers stay, and lead a driver to no payload of zeros.
    left = [entry for entries in fatbin.containers(pruned) for entry in entries]
    assert len(left) == len(ALL) + len(OLD)
    for entry in left:
        told = pruned[entry.start : entry.start + entry.size]
        assert told == payload(entry.kind, entry.architecture) or not any(told)
        if entry.runs_on(card) and not any(told):
            assert entry.kind == PTX, "where machine code is left, PTX is not asked for"


def test_a_library_without_kernels_has_none_that_a_card_could_load(fatbin, tmp_path):
    file = tmp_path / "lib.so"
    file.write_bytes(LIBRARY)
    fatbin.prune(file, card=0)
    left = [entry for entries in fatbin.containers(file.read_bytes()) for entry in entries]
    assert len(left) == len(ALL) + len(OLD)
    assert not any(entry.runs_on(card) for entry in left for card in range(30, 200))


# --- the command, with small wheels in place of the real ones

FILES = {
    "nvidia/some/lib/libsome.so.11": LIBRARY,
    "nvidia/some/lib/libfft.so": LIBRARY,
    "nvidia/some/include/some.h": b"int f(void);",
    "some/data.bin": RANDOM(3 << 19) + bytes(1 << 20) + RANDOM(3 << 19),
    "some/empty.py": b"",
    "some/tests/test_some.py": b"assert 0",
    "some/unused.bin": b"unused",
}
KEPT = {"nvidia/some/lib/libsome.so.11", "nvidia/some/lib/libfft.so", "some/data.bin",
        "some/empty.py"}  # fmt: skip


def wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    name = name.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-manylinux2014_x86_64\n"
    added = {f"{info}/METADATA": metadata, f"{info}/WHEEL": tags, f"{info}/RECORD": ""}
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-manylinux2014_x86_64.whl", "w") as z:
        for path, content in {**files, **added}.items():
            z.writestr(path, content)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """A wheel with the least version of everything that `.[cuda]` asks for."""
    folder = tmp_path_factory.mktemp("wheels")
    for text in importlib.metadata.requires("fltrust_repro"):
        if "extra" not in text or re.search(r"extra == .cuda\b", text):
            name, version = re.search(r"^([\w-]+).*?[>=]=([\d.]+)", text).groups()
            wheel(folder, name, version, FILES if name == "mxnet-cu112" else {})
    return folder


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def packed(wheels, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("pack")
    done = run(GPU / "pack.py", "--python", "3.12", "--card", "9.0", "--piece", "2",
               "--no-kernels", "libfft*", "--leave-out", "some/unused*",
               "--wheels", wheels, "--out", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_pack_says_what_it_left_out_and_what_each_library_had(packed):
    out, told = packed
    assert re.search(r"left out \*/tests/\* +1 files", told)
    assert re.search(r"left out some/unused\* +1 files", told)
    assert re.search(r"libsome.so.11 +0.0 +0.0 +5.0, 7.0, 7.5, 8.0, .*9.0, PTX 7.0, PTX 9.0", told)
    pieces = sorted(out.glob("piece-*"))
    assert len(pieces) > 1
    assert all(piece.stat().st_size <= 2 << 20 and piece.name in told for piece in pieces)


def test_pieces_come_one_at_a_time_in_any_order(packed, fatbin, tmp_path):
    out, _ = packed
    pieces, folder = sorted(out.glob("piece-*"), reverse=True), tmp_path / "site"
    for number, piece in enumerate(pieces, 1):
        done = run(out / "unpack.py", piece, "--to", folder)
        assert done.returncode == 0, done.stderr
        left = " ".join(sorted(one.name for one in pieces[number:]))
        assert done.stdout == (
            f"Still to come: {left}\n" if left else f"export PYTHONPATH={folder}\n"
        )
    found = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    assert {name for name in found if not re.match(r"\.unpacked|.*\.dist-info", name)} == KEPT
    assert (folder / "some/data.bin").read_bytes() == FILES["some/data.bin"]
    assert b"<code of 90>" in (folder / "nvidia/some/lib/libsome.so.11").read_bytes()
    assert b"code of" not in (folder / "nvidia/some/lib/libfft.so").read_bytes()
    assert (
        importlib.metadata.Distribution.at(folder / "mxnet_cu112-1.9.1.dist-info").version
        == "1.9.1"
    )


def test_a_damaged_piece_is_named_and_mended_by_a_whole_one(packed, tmp_path):
    out, _ = packed
    here = tmp_path / "here"
    here.mkdir()
    for file in out.iterdir():
        (here / file.name).write_bytes(file.read_bytes())
    damaged = here / "piece-01.tar.xz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:1000] + bytes([content[1000] ^ 255]) + content[1001:])
    done = run(here / "unpack.py", "--to", tmp_path / "site")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"Error: {damaged} is damaged, or of another pack")
    damaged.write_bytes(content)
    done = run(here / "unpack.py", "--to", tmp_path / "site")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"export PYTHONPATH={tmp_path / 'site'}\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out", "{full}"], "Error: --out: {full} is not empty; name a new folder, or empty it."),
        (["--out", "new", "--wheels", "none"], "Error: --wheels: none is no folder."),
        (["--out", "new", "--piece", "0"], "Error: --piece is 0; a piece has at least 1 MiB."),
        (["--out", "new", "--card", "h100"], "'h100' is no compute capability such as 8.6 or 9.0"),
        (["--out", "{new}", "--wheels", "{full}"], "Error: pip could not collect the wheels for"),
    ],
)
def test_bad_input_is_told_in_one_sentence(options, sentence, tmp_path):
    names = {"full": str(tmp_path / "full"), "new": str(tmp_path / "new")}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = run(GPU / "pack.py", *(text.format(**names) for text in options))
    assert done.returncode
    assert sentence.format(**names) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
