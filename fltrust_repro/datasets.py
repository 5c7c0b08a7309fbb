"""The data sets of Section 4.1: MNIST, Fashion-MNIST, CH-MNIST and Breast Cancer.

`load("mnist", rng)` is all that other modules need. Each data set is read once per process; what
a trial's generator decides (which examples are training examples) is redone per call and cheap.
A plug-in adds one with a function from the directories to search and a generator to a `Dataset`:

    @dataset("my-data")
    def my_data(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
        '''One line that `data status` shows.'''
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fltrust_repro import downloads, readers
from fltrust_repro.errors import BadInput, DataUnavailable, in_words, shown
from fltrust_repro.files import check_name
from fltrust_repro.registry import Registry, summary

PARTS = ("train_x", "train_y", "test_x", "test_y")


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
    directories = downloads.search_path(data_dir)
    try:
        loaded = loader(directories, rng)
    except BadInput:
        raise
    except (Exception, SystemExit) as error:  # whatever a plug-in's loader runs into
        problem = in_words(error).rstrip(".: ")
        raise BadInput(f"data set {name!r} does not load: {problem}.") from error
    return _checked(name, loaded)


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


_digests: dict[tuple[str, str], str] = {}  # of a plug-in's data sets, by name and its code


def data_digest(name: str, data_dir: str | Path | None = None) -> str | None:
    """Digest of the examples of a plug-in's data set; None for a built-in one.

    Whatever files they come from, so that trials on other examples do not answer for these. A
    process loads them once for it, with the `data_dir` it first asks with. Raises `BadInput` where
    they do not load.
    """
    code = datasets.digest(name)
    if code is None:
        return None
    if (name, code) not in _digests:
        from threadpoolctl import threadpool_limits  # which sets variables as it loads

        with threadpool_limits(limits=1):  # whose number moves the last bits of a product
            loaded = load(name, np.random.default_rng(0), data_dir)
        digest = hashlib.sha256(str(loaded.classes).encode())
        for part in (loaded.train_x, loaded.train_y, loaded.test_x, loaded.test_y):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part))
        _digests[name, code] = digest.hexdigest()[:16]
    return _digests[name, code]


def fetch(name: str, data_dir: str | Path | None = None) -> Path | None:
    """Download a data set where it is not at hand, check it, and return its folder.

    None for a data set that needs no file of its own. Raises as `load` does.
    """
    _check_finite(load(name, np.random.default_rng(0), data_dir))
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
    readers.forget()  # what lies on the disk now is to be checked
    _check_finite(load(name, np.random.default_rng(0), data_dir))
    if name == "ch-mnist":
        downloads.verify_kaggle_file(downloads.obtain(name, directories)[0])


def _check_finite(loaded: Dataset) -> None:
    if not (np.isfinite(loaded.train_x).all() and np.isfinite(loaded.test_x).all()):
        raise BadInput(f"data set {loaded.name!r} holds NaN or infinity; replace these values.")


def _checked(name: str, loaded: Dataset) -> Dataset:
    """What a loader returned, in the layout that all else relies on; its own arrays stay as is."""
    if not isinstance(loaded, Dataset):
        raise _wrong(name, f"returned {type(loaded).__name__}; it must return a Dataset")
    if not isinstance(loaded.name, str):
        raise _wrong(name, f"gave the name {shown(loaded.name)}; give a text")
    check_name(f"data set {name!r}: the name of what its loader returned", loaded.name)
    classes = loaded.classes
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 1:
        raise _wrong(name, f"gave classes {shown(classes)}; give a whole number of at least 1")
    loaded = dataclasses.replace(
        loaded,
        classes=int(classes),
        **{part: _laid_out(name, part, getattr(loaded, part)) for part in PARTS},
    )
    _check_arrays(name, loaded)
    return loaded


def _laid_out(name: str, part: str, array: Any) -> np.ndarray:
    """A read-only array in C's order and the machine's byte order; no copy where it is that."""
    if not isinstance(array, np.ndarray):
        raise _wrong(name, f"gave {part} as {type(array).__name__}; it must be a numpy array")
    native = array.dtype.newbyteorder("=")
    if array.dtype == native and array.flags.c_contiguous and not array.flags.writeable:
        return array
    return readers.frozen(np.ascontiguousarray(array, native).view())


def _wrong(name: str, problem: str) -> BadInput:
    return BadInput(f"data set {name!r}: its loader {problem}.")


def _check_arrays(name: str, loaded: Dataset) -> None:
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
        elif not x.size or y.min() < 0 or y.max() >= loaded.classes:
            problem = f"must be at least one, with labels 0..{loaded.classes - 1}"
        else:
            continue
        raise BadInput(f"data set {name!r}: the {part} examples {problem}; correct its loader.")


CH_TRAIN = 4_000  # of 5,000 tiles


@dataset("mnist")
def mnist(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Handwritten digits: 60,000 + 10,000, 28x28, 10 classes (LeCun et al.; 12 MB)."""
    return _published("mnist", directories)


@dataset("mnist-6000")
def mnist_6000(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """MNIST with 6,000 training examples, drawn uniformly at random (Section 4.4)."""
    data = _published("mnist", directories)
    chosen = np.sort(rng.choice(len(data.train_y), 6_000, replace=False))
    parts = (readers.frozen(part[chosen]) for part in (data.train_x, data.train_y))
    return Dataset("mnist-6000", *parts, data.test_x, data.test_y, data.classes)


@dataset("fashion-mnist")
def fashion_mnist(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Clothes: 60,000 + 10,000, 28x28, 10 classes (Zalando Research, MIT; 31 MB)."""
    return _published("fashion-mnist", directories)


@dataset("ch-mnist")
def ch_mnist(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Colorectal cancer tissue: 5,000, 64x64, 8 classes (Kather et al., CC-BY 4.0; 258 MB)."""
    (path,) = downloads.obtain("ch-mnist", directories)
    pool = readers.read_ch_mnist("ch-mnist", path)
    return _split("ch-mnist", pool, CH_TRAIN, readers.CH_CLASSES, rng)


@dataset("ch-mnist-8")
def ch_mnist_8(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """CH-MNIST at 8x8, for smoke runs on a CPU only: not the paper's data (Kaggle; 0.3 MB)."""
    (path,) = downloads.obtain("ch-mnist-8", directories)
    pool = readers.read_ch_mnist("ch-mnist-8", path)
    return _split("ch-mnist-8", pool, CH_TRAIN, readers.CH_CLASSES, rng)


@dataset("breast-cancer")
def breast_cancer(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Wisconsin diagnostic breast cancer: 569, 30 features, 2 classes (inside scikit-learn)."""
    drawn = _split("breast-cancer", readers.read_breast_cancer(), 455, 2, rng)
    center, scale = mean_and_deviation(drawn.train_x)
    train_x, test_x = (
        readers.frozen(((x - center) / scale).astype(np.float32))
        for x in (drawn.train_x, drawn.test_x)
    )
    return Dataset(drawn.name, train_x, drawn.train_y, test_x, drawn.test_y, drawn.classes)


@dataset("digits")
def digits(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Small digits for smoke runs only, not the paper's: 1,797, 8x8 (inside scikit-learn)."""
    return _split("digits", readers.read_digits(), 1_437, 10, rng)


def _published(name: str, directories: tuple[Path, ...]) -> Dataset:
    return Dataset(name, *readers.read_idx(name, downloads.obtain(name, directories)), 10)


def _split(
    name: str, pool: readers.Pool, n_train: int, classes: int, rng: np.random.Generator
) -> Dataset:
    order = rng.permutation(len(pool.y))
    train, test = order[:n_train], order[n_train:]
    parts = (pool.x[train], pool.y[train], pool.x[test], pool.y[test])
    return Dataset(name, *map(readers.frozen, parts), classes)


def mean_and_deviation(train_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature over the training examples.

    A feature that is constant there gets deviation 1, so that it becomes 0 and not NaN.
    """
    deviation = train_x.std(axis=0)
    return train_x.mean(axis=0), np.where(deviation > 0, deviation, 1.0)
