"""From the files of the data sets to arrays: IDX, Kaggle's tables, Zenodo's tiles, scikit-learn.

Each `read_*` remembers what it read last, until `forget` is called. What it returns is shared:
nobody may write to it. Files are checked as they are read; a fault names the file and the remedy.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fltrust_repro import downloads


class Pool(NamedTuple):
    """Examples that are not divided into training and test ones yet."""

    x: np.ndarray
    y: np.ndarray


def forget() -> None:
    """Drop what was read, so that the next read takes what lies on the disk then."""
    for cached in (read_idx, read_ch_mnist, read_breast_cancer, read_digits):
        cached.cache_clear()


def _unit_pixels(pixels: np.ndarray) -> np.ndarray:
    return np.divide(pixels, 255, dtype=np.float32).reshape(len(pixels), 1, *pixels.shape[1:])


def frozen(array: np.ndarray) -> np.ndarray:
    """The array itself, made read-only."""
    array.setflags(write=False)
    return array


# ---- MNIST and Fashion-MNIST: four IDX files -------------------------------------------------

IDX_SHAPES = dict(
    zip(downloads.IDX_FILES, [(60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)])
)


@lru_cache(maxsize=2)
def read_idx(name: str, paths: tuple[Path, ...]) -> tuple[np.ndarray, ...]:
    """Read-only `train_x, train_y, test_x, test_y` of the four files, as `Dataset` has them.

    Raises
    ------
    BadInput
        A file is not what it should be, down to its checksum.
    """
    return tuple([frozen(_idx_part(name, path)) for path in paths])


def _idx_part(name: str, path: Path) -> np.ndarray:
    file = path.name[:-3] if path.suffix == ".gz" else path.name
    with downloads.faults_of(name, path):
        content = downloads.content(path)
        values = parse_idx(content)
        if values.shape != IDX_SHAPES[file]:
            raise ValueError(f"holds an array {values.shape}, not {IDX_SHAPES[file]}")
        if values.ndim == 1 and values.max() > 9:
            raise ValueError(f"holds the label {values.max()}, outside 0..9")
        downloads.check_md5(content, downloads.CONTENT_MD5[name][file])
    return values.astype(np.int32) if values.ndim == 1 else _unit_pixels(values)


def parse_idx(content: bytes) -> np.ndarray:
    """Array of uint8 that an IDX file holds: magic 0 0 8 ndim, ndim big-endian sizes, values.

    Raises
    ------
    ValueError
        Another format, or fewer or more values than the header says.
    """
    dimensions = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * dimensions
    if not dimensions or len(content) < start:
        raise ValueError("is not an IDX file of bytes")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(f"holds {len(content) - start} values, its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# ---- CH-MNIST: Kaggle's table, or the same pixels made from the original tiles ---------------

CH_TILES, CH_CLASSES = 5_000, 8
CH_SIDES = {"ch-mnist": 64, "ch-mnist-8": 8}
ZIP_CLASSES = {f"{label:02}": label - 1 for label in range(1, CH_CLASSES + 1)}


@lru_cache(maxsize=1)
def read_ch_mnist(name: str, path: Path) -> Pool:
    """All tiles of `ch-mnist` or `ch-mnist-8`, in one order whichever file they come from.

    Reading the archive leaves an .npz file beside it, where that can be written.

    Raises
    ------
    BadInput
        The file is not what it should be.
    """
    side = CH_SIDES[name]
    with downloads.faults_of(name, path):
        if path.suffix == ".zip":
            images, labels = _read_zip(path)
        elif path.suffix == ".npz":
            images, labels = _read_cache(path)
        else:
            images, labels = parse_table(downloads.content(path), side)
        counts = np.bincount(labels, minlength=CH_CLASSES)
        if images.shape != (CH_TILES, side, side) or (counts != CH_TILES // CH_CLASSES).any():
            raise ValueError(
                f"holds images {images.shape}, {counts.tolist()} of each class, not "
                f"{(CH_TILES, side, side)}, {CH_TILES // CH_CLASSES} of each"
            )
        images, labels = in_fixed_order(images, labels)
        if name == "ch-mnist-8":
            downloads.check_md5(labels.tobytes() + images.tobytes(), downloads.CH_8_MD5)
    if path.suffix == ".zip" and downloads.writable(path.parent):
        _write_cache(path.with_name(downloads.TILES_CACHE), images, labels)
    return Pool(_unit_pixels(images), labels.astype(np.int32))


def parse_table(content: bytes, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, side, side) and labels uint8 (n,), 0..7, of one of Kaggle's CSV files.

    The file has a header line, side * side pixel columns and a label column with 1..8.

    Raises
    ------
    ValueError
        Not such a table, or a value out of range.
    """
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(content), dtype=np.int32)
    except (ValueError, OverflowError) as error:
        raise ValueError("is not a table of whole numbers, or is cut short") from error
    if table.shape[1] != side**2 + 1 or table.columns[-1] != "label":
        raise ValueError(f"has not {side**2} pixel columns and then a label column")
    pixels, labels = table.to_numpy()[:, :-1], table["label"].to_numpy()
    if not len(table) or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError("has pixels outside 0..255, or none")
    if labels.min() < 1 or labels.max() > CH_CLASSES:
        raise ValueError(f"has labels outside 1..{CH_CLASSES}")
    return pixels.astype(np.uint8).reshape(-1, side, side), (labels - 1).astype(np.uint8)


def tile_to_gray(rgb: np.ndarray, side: int = 64) -> np.ndarray:
    """One pathologist's tile as Kaggle's gray image: resized first, then turned gray.

    Parameters
    ----------
    rgb : np.ndarray
        uint8, (height, width, 3); the published tiles are 150 x 150.
    side : int
        Height and width of the result.

    Returns
    -------
    np.ndarray
        uint8, (side, side).
    """
    from PIL import Image

    small = Image.fromarray(rgb).resize((side, side), Image.Resampling.LANCZOS)
    return rgb_to_gray(np.asarray(small))


def rgb_to_gray(rgb: np.ndarray) -> np.ndarray:
    """Luma of uint8 (..., 3) as uint8 (...): (19595 R + 38470 G + 7471 B) >> 16.

    Cut off, not rounded: Pillow's own conversion rounds and so differs from Kaggle's by one.
    """
    luma = rgb.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return (luma >> 16).astype(np.uint8)


def in_fixed_order(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort examples by label, then pixels.

    Kaggle's table and Zenodo's archive list the same tiles in another order; sorted, both give
    the same split for the same seed.
    """
    order = sorted(range(len(labels)), key=lambda i: (labels[i], images[i].tobytes()))
    return images[order], labels[order]


def _read_zip(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image
    from tqdm import tqdm

    images, labels = [], []
    with zipfile.ZipFile(path) as archive:
        for file in tqdm(archive.namelist(), desc="64x64 tiles", unit=" files"):
            folder = Path(file).parent.name  # 01_TUMOR, 02_STROMA, ..., 08_EMPTY
            if file.endswith(".tif") and "__MACOSX" not in file and folder[:2] in ZIP_CLASSES:
                with Image.open(io.BytesIO(archive.read(file))) as tile:
                    images.append(tile_to_gray(np.asarray(tile.convert("RGB"))))
                labels.append(ZIP_CLASSES[folder[:2]])
    return np.array(images, np.uint8), np.array(labels, np.uint8)


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError("is not an .npz file")
    with np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or labels.dtype != np.uint8 or labels.ndim != 1:
        raise ValueError(f"holds {images.dtype} images and {labels.dtype} labels, not uint8")
    return images, labels


def _write_cache(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    # Failing to write only costs the next process these seconds again.
    with contextlib.suppress(OSError):
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, images=images, labels=labels)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)


# ---- scikit-learn's own data sets ------------------------------------------------------------


@lru_cache(maxsize=1)
def read_breast_cancer() -> Pool:
    """The 569 examples, features float64 as scikit-learn has them."""
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    return Pool(raw.data.reshape(-1, 1, 1, 30), raw.target.astype(np.int32))


@lru_cache(maxsize=1)
def read_digits() -> Pool:
    """The 1,797 images, sixteenths of 0..1."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    return Pool((raw.images[:, None] / 16).astype(np.float32), raw.target.astype(np.int32))
