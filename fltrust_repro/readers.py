"""From the files of the data sets to arrays: IDX, Kaggle's tables, Zenodo's tiles, scikit-learn.

What was read last of each kind is remembered until `forget` is called, and shared: nobody may write
to it. Files are checked as they are read; a fault names the file and the remedy.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple, Union

import numpy as np

from fltrust_repro import downloads
from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.files import writable, write_bytes

_File = Union[IO[bytes], io.BufferedIOBase]  # a zip file's members are the former


class Pool(NamedTuple):
    """Examples that are not divided into training and test ones yet."""

    x: np.ndarray
    y: np.ndarray


def forget() -> None:
    """Drop what was read, so that the next read takes what lies on the disk then."""
    for cached in (read_idx, read_ch_mnist, read_breast_cancer, read_digits):
        cached.cache_clear()


def _one_channel(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), 1, *pixels.shape[1:])


def frozen(array: np.ndarray) -> np.ndarray:
    """The array itself, made read-only."""
    array.setflags(write=False)
    return array


_PROBLEMS = (
    ((EOFError, zlib.error), "is cut short or damaged"),
    ((gzip.BadGzipFile, zipfile.BadZipFile), "is not a whole compressed file ({})"),
    (OSError, "cannot be read ({})"),
    (KeyError, "lacks the array {}"),
    (ValueError, "{}"),
    (Exception, "cannot be understood ({})"),  # what libraries raise at files made to mislead
)


@contextlib.contextmanager
def faults_of(path: Path, remedy: str) -> Iterator[None]:
    """Turn whatever is wrong with a file into a sentence; `remedy` is for wrong contents."""
    try:
        yield
    except Exception as error:
        told = " ".join((str(error) or type(error).__name__).split()).rstrip(".")
        if isinstance(error, OSError) and error.errno is not None:
            told = error.strerror or told
            if isinstance(error, FileNotFoundError):  # one of several, beside the one that is there
                path = Path(error.filename or path)
            else:
                remedy = "make it readable for this user, or name another directory with --data-dir"
        problem = next(text for kinds, text in _PROBLEMS if isinstance(error, kinds)).format(told)
        raise DataUnavailable(f"{str(path)!r} {problem}; {remedy}.") from error


def all_of(file: _File, most: int) -> bytes:
    """What is left of an open file; `ValueError` where it is more than `most` bytes."""
    data = file.read(most + 1)  # no more: a small compressed file may hold any number
    if len(data) > most:
        raise ValueError(f"holds more than the {most:,} bytes that belong there")
    return data


# ---- MNIST and Fashion-MNIST: four IDX files

IDX_SHAPES = ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,))


@lru_cache(maxsize=2)
def read_idx(name: str, paths: tuple[Path, ...]) -> tuple[np.ndarray, ...]:
    """Read-only `train_x, train_y, test_x, test_y`, images uint8; `BadInput` for a wrong file."""
    parts = []
    checksums = downloads.SOURCES[name].registry.values()
    for path, shape, checksum in zip(paths, IDX_SHAPES, checksums):
        with faults_of(path, downloads.remedy_of(name)), downloads.opened(path) as file:
            header, values = parse_idx(file, shape)
            if values.ndim == 1 and values.max() > 9:
                raise ValueError(f"holds the label {values.max()}, outside 0..9")
            downloads.check([header, values.tobytes()], checksum)
        parts.append(values.astype(np.int32) if values.ndim == 1 else _one_channel(values))
    return tuple(map(frozen, parts))


def parse_idx(file: _File, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    """Header, and uint8 array of a known shape, of an IDX file; `ValueError` for any other."""
    magic = file.read(4)  # 0 0 8 ndim; then ndim big-endian sizes
    dimensions = magic[3] if magic[:3] == b"\0\0\x08" and len(magic) > 3 else 0
    sizes = file.read(4 * dimensions)
    if not dimensions or len(sizes) < 4 * dimensions:
        raise ValueError("is not an IDX file of bytes")
    found = struct.unpack(f">{dimensions}I", sizes)
    if found != shape:
        raise ValueError(f"holds an array {found}, not {shape}")
    values = all_of(file, math.prod(shape))
    if len(values) < math.prod(shape):
        raise ValueError(f"holds {len(values)} values, its header says {shape}")
    return magic + sizes, np.frombuffer(values, np.uint8).reshape(shape)


# ---- CH-MNIST: Kaggle's table, or the same pixels made from the original tiles

CH_TILES, CH_CLASSES = 5_000, 8
CH_SIDES = {"ch-mnist": 64, "ch-mnist-8": 8}
CH_8_MD5 = "md5:45a65d5f4cfd435b9b0cb7ebc9d4bdf2"  # of labels and pixels in `in_fixed_order`
KAGGLE_64_BLOB = "sha1:b0059fe409bd5e9340de51d2643c37bdaed94799"  # as git names hmnist_64_64_L.csv
_TABLE_BYTES = 128 * 2**20  # at most: 5,000 lines of 4,096 pixels, each with a comma
_TILE_SIDE, _TILE_BYTES = 150, 2**20  # at most; the published ones have 74,000 bytes


@lru_cache(maxsize=1)
def read_ch_mnist(name: str, path: Path) -> Pool:
    """All tiles of `ch-mnist` or `ch-mnist-8`, uint8, in one order whichever file they come from.

    Reading the archive leaves an .npz file beside it. Raises `BadInput` for a wrong file.
    """
    shape = (CH_TILES, CH_SIDES[name], CH_SIDES[name])
    with faults_of(path, downloads.remedy_of(name)):
        if path.suffix == ".zip":
            images, labels = _read_zip(path)
        elif path.suffix == ".npz":
            forms = {"images": (np.uint8, shape), "labels": (np.uint8, shape[:1])}
            images, labels = read_npz(path, forms)
        else:
            images, labels = parse_table(_table(path), shape[1])
        counts, each = np.bincount(labels, minlength=CH_CLASSES), CH_TILES // CH_CLASSES
        if images.shape != shape or (counts != each).any():
            found = f"{images.shape}, {counts.tolist()} of each class"
            raise ValueError(f"holds images {found}, not {shape}, {each} of each")
        images, labels = in_fixed_order(images, labels)
        if name == "ch-mnist-8":
            downloads.check([labels.tobytes(), images.tobytes()], CH_8_MD5)
    if path.suffix == ".zip" and writable(path.parent):
        packed = io.BytesIO()
        np.savez(packed, images=images, labels=labels)
        with contextlib.suppress(BadInput):  # which costs the next process these seconds again
            write_bytes(path.with_name(downloads.TILES_CACHE), packed.getvalue())
    return Pool(_one_channel(images), labels.astype(np.int32))


def _table(path: Path) -> bytes:
    with downloads.opened(path) as file:
        return all_of(file, _TABLE_BYTES)


def parse_table(content: bytes, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, side, side), labels uint8 (n,), 0..7, of Kaggle's CSV; else `ValueError`."""
    import pandas as pd

    problem = f"has not {side**2} pixel columns and then a label column"
    if content[: content.find(b"\n")].count(b",") > side**2:  # before room is made for them
        raise ValueError(problem)
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=np.int32, nrows=CH_TILES + 1)
    except (ValueError, OverflowError) as error:
        raise ValueError("is not a table of whole numbers, or is cut short") from error
    if table.shape[1] != side**2 + 1 or table.columns[-1] != "label":
        raise ValueError(problem)
    pixels, labels = table.to_numpy()[:, :-1], table["label"].to_numpy()
    if not len(table) or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError("has pixels outside 0..255, or none")
    if labels.min() < 1 or labels.max() > CH_CLASSES:
        raise ValueError(f"has labels outside 1..{CH_CLASSES}")
    return pixels.astype(np.uint8).reshape(-1, side, side), (labels - 1).astype(np.uint8)


def verify_kaggle_file(path: Path) -> None:
    """Raise `BadInput` when Kaggle's 64x64 table, if `path` is that, is not the published one."""
    if path.name.startswith("hmnist"):
        with faults_of(path, f"replace it by Kaggle's, or {downloads.remedy_of('ch-mnist')}"):
            table = _table(path)
            downloads.check([b"blob %d\0" % len(table), table], KAGGLE_64_BLOB)


def tile_to_gray(rgb: np.ndarray) -> np.ndarray:
    """A tile, uint8 (height, width, 3), as Kaggle's image: resized, and only then turned gray."""
    from PIL import Image

    small = Image.fromarray(rgb).resize((64, 64), Image.Resampling.LANCZOS)
    return rgb_to_gray(np.asarray(small))


def rgb_to_gray(rgb: np.ndarray) -> np.ndarray:
    """Luma of uint8 (..., 3) as uint8 (...): (19595 R + 38470 G + 7471 B) >> 16."""
    luma = rgb.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return (luma >> 16).astype(np.uint8)  # cut off as Kaggle's; Pillow rounds


def in_fixed_order(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort examples by label, then pixels: Kaggle and Zenodo list the same tiles differently."""
    order = sorted(range(len(labels)), key=lambda i: (labels[i], images[i].tobytes()))
    return images[order], labels[order]


def _read_zip(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from rich.console import Console
    from rich.progress import track

    images: list[np.ndarray] = []
    labels: list[int] = []
    with zipfile.ZipFile(path) as archive:
        for name in track(archive.namelist(), "64x64 tiles", console=Console(stderr=True)):
            folder = Path(name).parent.name  # 01_TUMOR, 02_STROMA, ..., 08_EMPTY
            known = re.match(f"0([1-{CH_CLASSES}])", folder)
            if known and name.endswith(".tif") and "__MACOSX" not in name:
                if len(labels) == CH_TILES:
                    raise ValueError(f"holds more than {CH_TILES:,} tiles")
                with archive.open(name) as file:
                    images.append(tile_to_gray(_tile(all_of(file, _TILE_BYTES))))
                labels.append(int(known[1]) - 1)
    return np.array(images, np.uint8), np.array(labels, np.uint8)


def _tile(content: bytes) -> np.ndarray:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's about what a file has beside its pixels
        with Image.open(io.BytesIO(content), formats=["TIFF"]) as tile:
            if max(tile.size) > _TILE_SIDE:  # known before the pixels, which may take any memory
                raise ValueError(f"holds a tile of {tile.width} x {tile.height} pixels")
            return np.asarray(tile.convert("RGB"))


def read_npz(
    path: Path, forms: Mapping[str, tuple[type, tuple[int, ...]]]
) -> tuple[np.ndarray, ...]:
    """Read-only arrays of an .npz file, of known types and shapes; some error for any other."""
    if not zipfile.is_zipfile(path):
        raise ValueError("is not an .npz file")
    with zipfile.ZipFile(path) as archive:
        return tuple(_read_npy(archive, name, *form) for name, form in forms.items())


def _read_npy(
    archive: zipfile.ZipFile, name: str, kind: type, shape: tuple[int, ...]
) -> np.ndarray:
    if f"{name}.npy" not in archive.namelist():
        raise KeyError(name)
    with archive.open(f"{name}.npy") as file:  # no more is read than belongs there, and no pickle
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # in later ones, a header may have gigabytes
            raise ValueError(f"holds {name} in the format {version}, not (1, 0)")
        found, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        if (found, dtype) != (shape, np.dtype(kind)):
            raise ValueError(f"holds {dtype} {name} {found}, not {np.dtype(kind)} {shape}")
        size = dtype.itemsize * math.prod(shape)
        values = all_of(file, size)
    if len(values) < size:
        raise EOFError
    return np.frombuffer(values, dtype).reshape(shape, order="F" if by_columns else "C")


# ---- scikit-learn's own data sets


def _shipped(name: str, load: str, skipped: int = 0) -> np.ndarray:
    """Table, float64, of a file that scikit-learn brings: examples, their label last.

    Importing scikit-learn takes longer than training on it; it is asked where the file is not.
    """
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder) / "datasets" / "data" / name).is_file():
            return np.loadtxt(file, delimiter=",", skiprows=skipped)
    examples, labels = getattr(importlib.import_module("sklearn.datasets"), load)(return_X_y=True)
    return np.column_stack([examples, labels])


@lru_cache(maxsize=1)
def read_breast_cancer() -> Pool:
    """The 569 examples, features float64 as scikit-learn has them."""
    table = _shipped("breast_cancer.csv", "load_breast_cancer", skipped=1)
    return Pool(table[:, :-1].reshape(-1, 1, 1, 30), table[:, -1].astype(np.int32))


@lru_cache(maxsize=1)
def read_digits() -> Pool:
    """The 1,797 images, sixteenths of 0..1."""
    table = _shipped("digits.csv.gz", "load_digits")
    images = table[:, :-1].reshape(-1, 1, 8, 8) / 16
    return Pool(images.astype(np.float32), table[:, -1].astype(np.int32))
