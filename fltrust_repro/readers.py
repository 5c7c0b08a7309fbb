"""From the files of the data sets to arrays: IDX, Kaggle's tables, Zenodo's tiles, scikit-learn.

Each `read_*` remembers what it read last, until `forget` is called. What it returns is shared:
nobody may write to it. Files are checked as they are read; a fault names the file and the remedy.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fltrust_repro import downloads
from fltrust_repro.errors import DataUnavailable


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


@contextlib.contextmanager
def faults_of(path: Path, remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file that is read into one sentence that says what to do.

    `remedy` is for a file with wrong contents; one that the system does not let us read may be
    right.
    """
    try:
        yield
        return
    except (EOFError, zlib.error) as error:
        problem, cause = "is cut short or damaged", error
    except (gzip.BadGzipFile, zipfile.BadZipFile) as error:
        problem, cause = f"is not a whole compressed file ({_told(error)})", error
    except OSError as error:
        problem, cause = f"cannot be read ({error.strerror or _told(error)})", error
        if error.errno is not None:
            remedy = "make it readable for this user, or name another directory with --data-dir"
    except KeyError as error:
        problem, cause = f"lacks the array {_told(error)}", error
    except ValueError as error:
        problem, cause = _told(error), error
    except Exception as error:  # what the libraries raise at files made to mislead them
        problem, cause = f"cannot be understood ({_told(error)})", error
    raise DataUnavailable(f"{str(path)!r} {problem}; {remedy}.") from cause


def _told(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split()).rstrip(".")


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
    with faults_of(path, downloads.remedy_of(name)), downloads.opened(path) as content:
        header, values = parse_idx(content, IDX_SHAPES[file])
        if values.ndim == 1 and values.max() > 9:
            raise ValueError(f"holds the label {values.max()}, outside 0..9")
        downloads.check_md5(header + values.tobytes(), downloads.CONTENT_MD5[name][file])
    return values.astype(np.int32) if values.ndim == 1 else _unit_pixels(values)


def parse_idx(file: IO[bytes], shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    """Header, and uint8 array of a known shape, of an IDX file: no more is read than that.

    The header is 0 0 8 ndim and ndim big-endian sizes.

    Raises
    ------
    ValueError
        Another format or shape, or fewer or more values than the header says.
    """
    magic = file.read(4)
    dimensions = magic[3] if magic[:3] == b"\0\0\x08" and len(magic) > 3 else 0
    sizes = file.read(4 * dimensions)
    if not dimensions or len(sizes) < 4 * dimensions:
        raise ValueError("is not an IDX file of bytes")
    found = struct.unpack(f">{dimensions}I", sizes)
    if found != shape:
        raise ValueError(f"holds an array {found}, not {shape}")
    values = downloads.all_of(file, math.prod(shape))
    if len(values) < math.prod(shape):
        raise ValueError(f"holds {len(values)} values, its header says {shape}")
    return magic + sizes, np.frombuffer(values, np.uint8).reshape(shape)


# ---- CH-MNIST: Kaggle's table, or the same pixels made from the original tiles ---------------

CH_TILES, CH_CLASSES = 5_000, 8
CH_SIDES = {"ch-mnist": 64, "ch-mnist-8": 8}
_LONGEST_CELL = 6  # bytes of a pixel in a table, on average: at most three digits and a comma
_TILE_SIDE = 150
_TILE_BYTES = 2**20  # of a tile's file; the published ones have 74,000
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
    with faults_of(path, downloads.remedy_of(name)):
        if path.suffix == ".zip":
            images, labels = _read_zip(path)
        elif path.suffix == ".npz":
            shape = (CH_TILES, side, side)
            forms = {"images": (np.uint8, shape), "labels": (np.uint8, shape[:1])}
            images, labels = read_npz(path, forms)
        else:
            most = (CH_TILES + 1) * (side**2 + 1) * _LONGEST_CELL
            images, labels = parse_table(downloads.content(path, most), side)
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


def tile_to_gray(rgb: np.ndarray, side: int = 64) -> np.ndarray:
    """One pathologist's tile as Kaggle's gray image: resized first, then turned gray.

    From uint8 (height, width, 3) to uint8 (side, side); the published tiles are 150 x 150.
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
    from tqdm import tqdm

    images, labels = [], []
    with zipfile.ZipFile(path) as archive:
        for name in tqdm(archive.namelist(), desc="64x64 tiles", unit=" files"):
            folder = Path(name).parent.name  # 01_TUMOR, 02_STROMA, ..., 08_EMPTY
            if name.endswith(".tif") and "__MACOSX" not in name and folder[:2] in ZIP_CLASSES:
                if len(labels) == CH_TILES:
                    raise ValueError(f"holds more than {CH_TILES:,} tiles")
                with archive.open(name) as file:
                    images.append(tile_to_gray(_tile(downloads.all_of(file, _TILE_BYTES))))
                labels.append(ZIP_CLASSES[folder[:2]])
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
    """Read-only arrays of an .npz file, whose types and shapes are known beforehand.

    No more is read than belongs there, and no pickle. Whatever else a file holds raises some
    error, `ValueError` for other types or shapes and `KeyError` for an array that is not there.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("is not an .npz file")
    arrays = []
    with zipfile.ZipFile(path) as archive:
        for name, form in forms.items():
            if f"{name}.npy" not in archive.namelist():
                raise KeyError(name)
            with archive.open(f"{name}.npy") as file:
                arrays.append(_read_npy(file, name, *form))
    return tuple(arrays)


def _read_npy(file: IO[bytes], name: str, kind: type, shape: tuple[int, ...]) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # in later ones, a header may have gigabytes
        raise ValueError(f"holds {name} in the format {version}, not (1, 0)")
    found, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if (found, dtype) != (shape, np.dtype(kind)):
        raise ValueError(f"holds {dtype} {name} {found}, not {np.dtype(kind)} {shape}")
    size = dtype.itemsize * math.prod(shape)
    values = downloads.all_of(file, size)
    if len(values) < size:
        raise EOFError
    return np.frombuffer(values, dtype).reshape(shape, order="F" if by_columns else "C")


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
