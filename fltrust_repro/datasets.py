"""The data sets of Section 4.1: MNIST, Fashion-MNIST, CH-MNIST and Breast Cancer.

`load("mnist", rng)` is all that other modules need. Each data set is read once per process; what
a trial's generator decides (which examples are training examples) is redone per call and cheap.
A plug-in adds one with a function from the directories to search and a generator to a `Dataset`:

    @dataset("my-data")
    def my_data(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
        '''One line that `data status` shows.'''
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import tempfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np

from fltrust_repro import downloads
from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.registry import Registry, summary


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples of one trial; the arrays are read-only.

    Attributes
    ----------
    name : str
        Name it is registered under.
    train_x, test_x : np.ndarray
        float32, (examples, channels, height, width); images are pixels / 255.
    train_y, test_y : np.ndarray
        int32, (examples,), labels 0..classes-1.
    classes : int
        Number of labels.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int


class Pool(NamedTuple):
    """Examples that are not divided into training and test ones yet."""

    x: np.ndarray
    y: np.ndarray


class DataStatus(NamedTuple):
    """One row of `data status`: `where` is None for a data set that is not at hand."""

    name: str
    available: bool
    where: str | None
    source: str


Loader = Callable[[tuple[Path, ...], np.random.Generator], Dataset]
datasets: Registry[Loader] = Registry("data set")


def dataset(name: str) -> Callable[[Loader], Loader]:
    """Register a function that loads a data set under `name`."""

    def register(loader: Loader) -> Loader:
        datasets.add(name, loader)
        return loader

    return register


def load(name: str, rng: np.random.Generator, data_dir: str | Path | None = None) -> Dataset:
    """Find a data set, download it where it is not at hand, and split it.

    Parameters
    ----------
    name : str
        A name in `datasets`.
    rng : np.random.Generator
        Draws the training examples, where the paper draws them; the same generator state gives
        the same split. MNIST and Fashion-MNIST come split: they leave `rng` alone, and every
        call returns the same arrays.
    data_dir : path, optional
        Directory to look in before $FLTRUST_DATA and data/.

    Raises
    ------
    BadInput
        Unknown name, no such directory, or a file that is not what it should be.
    DataUnavailable
        Not at hand, and every mirror failed.
    """
    loader = datasets[name]
    loaded = loader(downloads.search_path(data_dir), rng)
    _check(name, loaded)
    return loaded


def status(data_dir: str | Path | None = None) -> list[DataStatus]:
    """Which data sets are at hand, and where; downloads and reads nothing."""
    directories = downloads.search_path(data_dir)
    rows = []
    for name, loader in datasets.items():
        where = _where(name, directories)
        rows.append(DataStatus(name, where is not None, where, summary(loader)))
    return rows


def _where(name: str, directories: tuple[Path, ...]) -> str | None:
    if name in downloads.SOURCES:
        files = downloads.locate(name, directories)
        return str(files[0].parent) if files else None
    return "scikit-learn" if datasets[name].__module__ == __name__ else "plug-in"


def fetch(name: str, data_dir: str | Path | None = None) -> Path | None:
    """Download a data set where it is not at hand, check it, and return its folder.

    None for a data set that needs no file of its own. Raises as `load` does.
    """
    load(name, np.random.default_rng(0), data_dir)
    if name not in downloads.SOURCES:
        return None
    return downloads.obtain(name, downloads.search_path(data_dir))[0].parent


def verify(name: str, data_dir: str | Path | None = None) -> None:
    """Check a data set that is at hand: checksums, shapes, labels, no NaN or infinity.

    Raises
    ------
    BadInput
        Something is wrong with it; the message says what.
    DataUnavailable
        It is not at hand; nothing is downloaded.
    """
    directories = downloads.search_path(data_dir)
    if _where(name, directories) is None:
        raise DataUnavailable(
            f"{name} is not at hand; run `python -m fltrust_repro data fetch {name}`, or "
            f"{downloads.by_hand(name, directories)}."
        )
    for cached in (_read_idx, _read_ch_mnist, _read_breast_cancer, _read_digits):
        cached.cache_clear()  # what lies on the disk now is to be checked
    loaded = load(name, np.random.default_rng(0), data_dir)
    if not (np.isfinite(loaded.train_x).all() and np.isfinite(loaded.test_x).all()):
        raise BadInput(f"data set {name!r} holds NaN or infinity; replace these values.")
    if name == "ch-mnist":
        downloads.verify_kaggle_file(downloads.obtain(name, directories)[0])


def _check(name: str, loaded: Dataset) -> None:
    for part, x, y in (
        ("training", loaded.train_x, loaded.train_y),
        ("test", loaded.test_x, loaded.test_y),
    ):
        if x.dtype != np.float32 or x.ndim != 4 or y.dtype != np.int32 or y.shape != x.shape[:1]:
            problem = (
                "must be float32 (examples, channels, height, width) with int32 labels "
                f"(examples,), but are {x.dtype} {x.shape} with {y.dtype} {y.shape}"
            )
        elif x.shape[1:] != loaded.train_x.shape[1:]:
            problem = f"have shape {x.shape[1:]}, the training ones {loaded.train_x.shape[1:]}"
        elif not len(y) or y.min() < 0 or y.max() >= loaded.classes:
            problem = f"must be at least one, with labels 0..{loaded.classes - 1}"
        else:
            continue
        raise BadInput(f"data set {name!r}: the {part} examples {problem}; correct its loader.")


@dataset("mnist")
def mnist(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Handwritten digits: 60,000 + 10,000, 28x28, 10 classes (LeCun et al.; 12 MB)."""
    return _read_idx("mnist", downloads.obtain("mnist", directories))


@dataset("fashion-mnist")
def fashion_mnist(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Clothes: 60,000 + 10,000, 28x28, 10 classes (Zalando Research, MIT; 31 MB)."""
    return _read_idx("fashion-mnist", downloads.obtain("fashion-mnist", directories))


@dataset("ch-mnist")
def ch_mnist(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Colorectal cancer tissue: 5,000, 64x64, 8 classes (Kather et al., CC-BY 4.0; 258 MB)."""
    (path,) = downloads.obtain("ch-mnist", directories)
    return _split("ch-mnist", _read_ch_mnist("ch-mnist", path), CH_TRAIN, CH_CLASSES, rng)


@dataset("ch-mnist-8")
def ch_mnist_8(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """CH-MNIST at 8x8, for smoke runs on a CPU only: not the paper's data (Kaggle; 0.3 MB)."""
    (path,) = downloads.obtain("ch-mnist-8", directories)
    return _split("ch-mnist-8", _read_ch_mnist("ch-mnist-8", path), CH_TRAIN, CH_CLASSES, rng)


@dataset("breast-cancer")
def breast_cancer(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Wisconsin diagnostic breast cancer: 569, 30 features, 2 classes (inside scikit-learn)."""
    drawn = _split("breast-cancer", _read_breast_cancer(), 455, 2, rng)
    center, scale = mean_and_deviation(drawn.train_x)
    train_x, test_x = (
        _frozen(((x - center) / scale).astype(np.float32)) for x in (drawn.train_x, drawn.test_x)
    )
    return Dataset(drawn.name, train_x, drawn.train_y, test_x, drawn.test_y, drawn.classes)


@dataset("digits")
def digits(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Small digits for smoke runs only, not the paper's: 1,797, 8x8 (inside scikit-learn)."""
    return _split("digits", _read_digits(), 1_437, 10, rng)


def _split(name: str, pool: Pool, n_train: int, classes: int, rng: np.random.Generator) -> Dataset:
    order = rng.permutation(len(pool.y))
    train, test = order[:n_train], order[n_train:]
    parts = (pool.x[train], pool.y[train], pool.x[test], pool.y[test])
    return Dataset(name, *map(_frozen, parts), classes)


def mean_and_deviation(train_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature over the training examples.

    A feature that is constant there gets deviation 1, so that it becomes 0 and not NaN.
    """
    deviation = train_x.std(axis=0)
    return train_x.mean(axis=0), np.where(deviation > 0, deviation, 1.0)


@lru_cache(maxsize=1)
def _read_breast_cancer() -> Pool:
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    return Pool(raw.data.reshape(-1, 1, 1, 30), raw.target.astype(np.int32))


@lru_cache(maxsize=1)
def _read_digits() -> Pool:
    from sklearn.datasets import load_digits

    raw = load_digits()
    return Pool((raw.images[:, None] / 16).astype(np.float32), raw.target.astype(np.int32))


def _unit_pixels(pixels: np.ndarray) -> np.ndarray:
    return np.divide(pixels, 255, dtype=np.float32).reshape(len(pixels), 1, *pixels.shape[1:])


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


# ---- MNIST and Fashion-MNIST: four IDX files -------------------------------------------------

IDX_SHAPES = dict(
    zip(downloads.IDX_FILES, [(60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)])
)


@lru_cache(maxsize=2)
def _read_idx(name: str, paths: tuple[Path, ...]) -> Dataset:
    parts = [_idx_part(name, path) for path in paths]
    train_x, train_y, test_x, test_y = map(_frozen, parts)
    return Dataset(name, train_x, train_y, test_x, test_y, 10)


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

CH_TILES, CH_TRAIN, CH_CLASSES = 5_000, 4_000, 8
CH_SIDES = {"ch-mnist": 64, "ch-mnist-8": 8}
ZIP_CLASSES = {f"{label:02}": label - 1 for label in range(1, CH_CLASSES + 1)}


@lru_cache(maxsize=1)
def _read_ch_mnist(name: str, path: Path) -> Pool:
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
