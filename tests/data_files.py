"""Files of data sets for tests: tiny MNIST, CH-MNIST of sixteen tiles, and nothing else at hand."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
from PIL import Image

from fltrust_repro import datasets, downloads, readers

IMAGES = np.arange(8, dtype=np.uint8).reshape(2, 2, 2) * 32
LABELS = np.array([9, 0], np.uint8)


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()


CONTENT = dict(zip(downloads.IDX_FILES, map(idx, (IMAGES, LABELS, IMAGES[:1], LABELS[:1]))))
REGISTRY = {f"{name}.gz": f"md5:{hashlib.md5(raw).hexdigest()}" for name, raw in CONTENT.items()}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def alone(tmp_path, monkeypatch) -> None:
    """No data but the test's own, no mirror, nothing remembered from another test."""
    monkeypatch.delenv("FLTRUST_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "__file__", str(tmp_path / "package" / "downloads.py"))
    for name, source in list(downloads.SOURCES.items()):
        below = tuple(path for path in source.elsewhere if not Path(path).is_absolute())
        mirrors = source.mirrors and ("http://127.0.0.1:9/",)
        change_source(monkeypatch, name, mirrors=mirrors, elsewhere=below)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Its handler keeps the standard error of the first test that used it, closed since.
    monkeypatch.setattr(pooch.get_logger(), "handlers", [])
    readers.forget()


def change_source(monkeypatch, name: str, **changed: object) -> None:
    monkeypatch.setitem(downloads.SOURCES, name, replace(downloads.SOURCES[name], **changed))


@pytest.fixture
def tiny(monkeypatch) -> None:
    """MNIST is two training images and one test image of 2x2 pixels."""
    monkeypatch.setattr(readers, "IDX_SHAPES", ((2, 2, 2), (2,), (1, 2, 2), (1,)))
    change_source(monkeypatch, "mnist", registry=REGISTRY)


@pytest.fixture
def sixteen(monkeypatch) -> None:
    """CH-MNIST is two tiles of each class, 12 of the 16 for training."""
    monkeypatch.setattr(readers, "CH_TILES", 16)
    monkeypatch.setattr(datasets, "CH_TRAIN", 12)


def place(folder: Path, **changed: bytes | None) -> Path:
    """Write the four tiny .gz files; `changed` gives other bytes for one, or None for no file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in CONTENT.items():
        raw = changed.get(name.replace("-", "_"), gzip.compress(content))
        if raw is not None:
            (folder / f"{name}.gz").write_bytes(raw)
    return folder


def put(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


def names_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def tiles(side: int = 150) -> tuple[np.ndarray, np.ndarray]:
    pixels = rng(1).integers(0, 256, (16, side, side, 3), dtype=np.uint8)
    return pixels, np.arange(16, dtype=np.uint8) % 8


def table(images: np.ndarray, labels: np.ndarray) -> bytes:
    count = images[0].size
    lines = [",".join([f"pixel{i:04}" for i in range(count)] + ["label"])]
    for image, label in zip(images.reshape(len(images), -1), labels):
        lines.append(",".join(map(str, [*image.tolist(), label + 1])))
    return ("\n".join(lines) + "\n").encode()


def archive(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    names = ["TUMOR", "STROMA", "COMPLEX", "LYMPHO", "DEBRIS", "MUCOSA", "ADIPOSE", "EMPTY"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for i, (tile, label) in enumerate(zip(pixels, labels)):
            raw = io.BytesIO()
            Image.fromarray(tile).save(raw, "TIFF")
            folder = f"Kather_texture_2016_image_tiles_5000/0{label + 1}_{names[label]}"
            file.writestr(f"{folder}/{i:x}.tif_Row_1_Col_1.tif", raw.getvalue())
        file.writestr("__MACOSX/01_TUMOR/._0.tif", b"not an image")
    return packed.getvalue()


SMALL = np.zeros((16, 64, 64), np.uint8), np.arange(16, dtype=np.uint8) % 8
