"""The data sets of Section 4.1, MNIST, Fashion-MNIST, CH-MNIST and Breast Cancer, and others.

Each is read once per process; only its split is redone per call. A plug-in adds one with a function
from the directories to search and a generator, and says what the data set is trained with:

    @dataset("my-data", batch_size=16, learning_rates={"cnn": 0.01})
    def my_data(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
        '''One line that `data status` shows.'''
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fltrust_repro import downloads, readers
from fltrust_repro.errors import BadInput, DataUnavailable, choose, in_words, shown
from fltrust_repro.files import check_name
from fltrust_repro.har import CLASSES, divided, read_har
from fltrust_repro.pixels import numbers
from fltrust_repro.registry import Registry, check_default, check_named, is_built_in, summary

MOST_CLASSES = 100_000
PARTS = ("train_x", "train_y", "test_x", "test_y")
DEALINGS = ("once", "each-iteration", "shared", "sorted", "natural")
# Of a model that a data set names none for. The paper gives no learning rate; this one and those
# below are calibrated on its numbers without attack.
LEARNING_RATE = 0.1


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples of one trial; once loaded, the arrays are read-only.

    `train_x` and `test_x` are (examples, channels, height, width), both of one type: float32, or
    uint8, pixels that stand for pixel / 255 and so take a quarter of the memory. `train_y` and
    `test_y` are int32 (examples,), labels 0..classes-1. A loader need not give `name`, nor `users`,
    integers that say whose each training example is (`dealing` "natural").
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int
    name: str = ""
    users: np.ndarray | None = None

    def in_float32(self) -> Dataset:
        """The same examples as numbers, pixels / 255, ready to be computed with."""
        train_x, test_x = (readers.frozen(numbers(x).view()) for x in (self.train_x, self.test_x))
        return dataclasses.replace(self, train_x=train_x, test_x=test_x)


Loading = Callable[[tuple[Path, ...], np.random.Generator], Dataset]


@dataclass(frozen=True, eq=False)
class Loader:
    """A registered data set: how it is loaded, and what its trials take unless they say otherwise.

    `learning_rates` are by the name of a model; one that it does not name takes `LEARNING_RATE`.
    """

    name: str
    function: Loading
    batch_size: int = 32
    learning_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    dealing: str = "once"

    def __post_init__(self) -> None:
        check_name("the name of a data set", str(self.name))
        what = f"data set {self.name!r}"
        check_default(what, "batch_size", self.batch_size, int)
        if not isinstance(self.learning_rates, Mapping):
            given = shown(self.learning_rates)
            raise BadInput(f"{what}: learning_rates is {given}; give a rate by model's name.")
        for model, rate in self.learning_rates.items():
            check_default(what, f"the learning rate of {shown(model)}", rate, float)
        if self.dealing not in DEALINGS:
            given, choice = shown(self.dealing), choose(self.dealing, DEALINGS)
            raise BadInput(f"{what}: dealing is {given}; {choice}")

    @property
    def summary(self) -> str:
        """One line about it: its function's docstring begins with it."""
        return summary(self.function)

    def learning_rate(self, model: str) -> float:
        """Learning rate of a model."""
        return self.learning_rates.get(model, LEARNING_RATE)

    def load(self, directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
        """Return the examples, checked; raises as the function `load` does."""
        try:
            loaded = self.function(directories, rng)
        except BadInput:
            raise
        except (Exception, SystemExit) as error:  # whatever a plug-in's loader runs into
            problem = in_words(error).rstrip(".: ")
            where = "; --data-dir or $FLTRUST_DATA names the folder that it is looked for in first"
            told = problem + where * isinstance(error, FileNotFoundError)
            raise BadInput(f"data set {self.name!r} does not load: {told}.") from error
        return _checked(self.name, loaded)


datasets: Registry[Loader] = Registry("data set")


def dataset(
    name: str,
    batch_size: int = 32,
    learning_rates: Mapping[str, float] | None = None,
    dealing: str = "once",
) -> Callable[[Loading], Loading]:
    """Register a function that loads a data set; the other arguments are those of `Loader`."""
    check_named("data set", name)

    def register(function: Loading) -> Loading:
        datasets.add(name, Loader(name, function, batch_size, learning_rates or {}, dealing))
        return function

    return register


def load(name: str, rng: np.random.Generator, data_dir: str | Path | None = None) -> Dataset:
    """Find a data set, download it where it is not at hand, and split it by `rng`.

    `data_dir` is looked in before $FLTRUST_DATA and data/. Raises `DataUnavailable` where it is not
    at hand and every mirror failed, else `BadInput`.
    """
    return datasets[name].load(downloads.search_path(data_dir), rng)


class DataStatus(NamedTuple):
    """One row of `data status`: `where` is None for a data set that is not at hand."""

    name: str
    where: str | None
    source: str


def status(data_dir: str | Path | None = None) -> list[DataStatus]:
    """Which data sets are at hand, and where; downloads and reads nothing."""
    directories = downloads.search_path(data_dir)
    places = {name: _where(name, directories) for name in datasets}
    return [DataStatus(n, place, datasets[n].summary) for n, place in places.items()]


def _where(name: str, directories: tuple[Path, ...]) -> str | None:
    if name in downloads.SOURCES:
        files = downloads.locate(name, directories)
        return str(files[0].parent) if files else None
    return "scikit-learn" if is_built_in(datasets[name].function) else "plug-in"


_digests: dict[tuple[str, str], str] = {}  # of plug-ins' data sets, by name and their code


def data_digest(name: str, data_dir: str | Path | None = None) -> str | None:
    """Digest of the examples of a plug-in's data set, from whatever files; None for a built-in one.

    A process loads them once for it, with the `data_dir` it first asks with, and again for
    `read_digests`. Raises `BadInput` where they do not load.
    """
    code = datasets.digest(name)
    if code is None:
        return None
    if (name, code) not in _digests:
        from threadpoolctl import threadpool_limits  # which sets variables as it loads

        with threadpool_limits(limits=1):  # whose number moves the last bits of a product
            loaded = load(name, np.random.default_rng(0), data_dir)
        digest = hashlib.sha256(str(loaded.classes).encode())
        parts = [getattr(loaded, part) for part in PARTS]
        for array in parts + [loaded.users] * (loaded.users is not None):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array)
        _digests[name, code] = digest.hexdigest()[:16]
    return _digests[name, code]


def read_digests(names: Iterable[str], data_dir: str | Path | None) -> None:
    """Read the data of those that are plug-ins', which are part of trials' names, from a folder."""
    for name in dict.fromkeys(names):
        _digests.pop((name, datasets.digest(name) or ""), None)  # files may have changed
        data_digest(name, data_dir)


def fetch(name: str, data_dir: str | Path | None = None) -> Path | None:
    """Download and check a data set, and return its folder if it needs one; raises as `load`."""
    load(name, np.random.default_rng(0), data_dir)
    if name not in downloads.SOURCES:
        return None
    return downloads.obtain(name, downloads.search_path(data_dir))[0].parent


def verify(name: str, data_dir: str | Path | None = None) -> None:
    """Raise `BadInput` where a data set is wrong, `DataUnavailable` where it is not at hand."""
    directories = downloads.search_path(data_dir)
    if _where(name, directories) is None:
        fetch = f"run `python -m fltrust_repro data fetch {name}`, or "
        to_do = fetch * bool(downloads.SOURCES[name].mirrors) + downloads.by_hand(name, directories)
        raise DataUnavailable(f"{name} is not at hand; {to_do}.")
    read_har.cache_clear()
    readers.forget()  # what lies on the disk now is to be checked
    load(name, np.random.default_rng(0), data_dir)
    if name == "ch-mnist":
        readers.verify_kaggle_file(downloads.obtain(name, directories)[0])


def _checked(name: str, loaded: Any) -> Dataset:
    """What a loader returned, in the layout that all else relies on; its own arrays stay as is."""
    what = f"data set {name!r}: its loader"
    if not isinstance(loaded, Dataset):
        raise BadInput(f"{what} returned {type(loaded).__name__}; it must return a Dataset.")
    arrays, classes = {part: getattr(loaded, part) for part in PARTS}, loaded.classes
    for part, array in arrays.items():
        if not isinstance(array, np.ndarray):
            kind = type(array).__name__
            raise BadInput(f"{what} gave {part} as {kind}; it must be a numpy array.")
    whole = isinstance(classes, (int, np.integer)) and not isinstance(classes, bool)
    if not whole or not 1 <= classes <= MOST_CLASSES:
        allowed = f"a whole number of at least 1 and at most {MOST_CLASSES:,}"
        raise BadInput(f"{what} gave classes {shown(classes)}; give {allowed}.")
    train_x, train_y, test_x, test_y = map(_laid_out, arrays.values())
    for part, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
        known = x.dtype in (np.float32, np.uint8) and y.dtype == np.int32
        if not known or x.ndim != 4 or y.shape != x.shape[:1]:
            layout = "float32 (examples, channels, height, width) with int32 labels (examples,)"
            layout += ", or uint8 for pixels 0..255"
            problem = f"must be {layout}, but are {x.dtype} {x.shape} with {y.dtype} {y.shape}"
        elif x.shape[1:] != train_x.shape[1:]:
            problem = f"have shape {x.shape[1:]}, the training ones {train_x.shape[1:]}"
        elif x.dtype != train_x.dtype:
            problem = f"are {x.dtype}, the training ones {train_x.dtype}"
        elif not x.size or y.min() < 0 or y.max() >= classes:
            problem = f"must be at least one, with labels 0..{classes - 1}"
        elif x.dtype == np.float32 and not np.isfinite(x).all():
            problem = "hold NaN or infinity, and must be finite"
        else:
            continue
        raise BadInput(f"data set {name!r}: the {part} examples {problem}; correct its loader.")
    if (users := loaded.users) is not None:
        counted = isinstance(users, np.ndarray) and users.dtype.kind in "iu"
        if not counted or users.shape != train_y.shape:
            raise BadInput(f"{what} gave users that are no array of int for each training example.")
        users = _laid_out(users)
    return Dataset(train_x, train_y, test_x, test_y, int(classes), name, users)


def _laid_out(array: np.ndarray) -> np.ndarray:
    """A read-only array in C's order and the machine's byte order; no copy where it is that."""
    native = array.dtype.newbyteorder("=")
    if array.dtype == native and array.flags.c_contiguous and not array.flags.writeable:
        return array
    return readers.frozen(np.ascontiguousarray(array, native).view())


CH_TRAIN = 4_000  # of 5,000 tiles


@dataset("mnist", learning_rates={"lr": 0.1, "cnn": 0.01})
def mnist(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Handwritten digits: 60,000 + 10,000, 28x28, 10 classes (LeCun et al.; 12 MB)."""
    return _published("mnist", directories)


@dataset("mnist-6000")
def mnist_6000(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """MNIST with 6,000 training examples, drawn uniformly at random (Section 4.4)."""
    data = _published("mnist", directories)
    chosen = np.sort(rng.choice(len(data.train_y), 6_000, replace=False))
    train_x, train_y = (readers.frozen(part[chosen]) for part in (data.train_x, data.train_y))
    return dataclasses.replace(data, train_x=train_x, train_y=train_y)


@dataset("fashion-mnist", batch_size=64, learning_rates={"cnn": 0.3})
def fashion_mnist(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Clothes: 60,000 + 10,000, 28x28, 10 classes (Zalando Research, MIT; 31 MB)."""
    return _published("fashion-mnist", directories)


@dataset("ch-mnist")
def ch_mnist(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Colorectal cancer tissue: 5,000, 64x64, 8 classes (Kather et al., CC-BY 4.0; 258 MB)."""
    return _tiles("ch-mnist", directories, rng)


@dataset("ch-mnist-8")
def ch_mnist_8(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """CH-MNIST at 8x8, for smoke runs on a CPU only: not the paper's data (Kaggle; 0.3 MB)."""
    return _tiles("ch-mnist-8", directories, rng)


# Its 455 examples are four or five for each of 100 workers: experiments/README.md on `dealing`.
@dataset("breast-cancer", learning_rates={"cnn": 0.1}, dealing="shared")
def breast_cancer(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Wisconsin diagnostic breast cancer: 569, 30 features, 2 classes (in scikit-learn)."""
    drawn = _split(readers.read_breast_cancer(), 455, 2, rng)
    center, scale = mean_and_deviation(drawn.train_x)
    scaled = [((x - center) / scale).astype(np.float32) for x in (drawn.train_x, drawn.test_x)]
    train_x, test_x = map(readers.frozen, scaled)
    return dataclasses.replace(drawn, train_x=train_x, test_x=test_x)


@dataset("har", learning_rates={"lr": 0.01}, dealing="natural")
def har(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Activities by smartphone: 10,299, 561 features, 6 classes, 30 users (UCI, CC-BY; 61 MB)."""
    train_x, train_y, test_x, test_y, users = divided(downloads.obtain("har", directories)[0], rng)
    return Dataset(train_x, train_y, test_x, test_y, CLASSES, users=users)


@dataset("digits")
def digits(directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    """Small digits for smoke runs and the arena, not the paper's: 1,797, 8x8 (in scikit-learn)."""
    return _split(readers.read_digits(), 1_437, 10, rng)


def _published(name: str, directories: tuple[Path, ...]) -> Dataset:
    train_x, train_y, test_x, test_y = readers.read_idx(name, downloads.obtain(name, directories))
    return Dataset(train_x, train_y, test_x, test_y, classes=10)


def _tiles(name: str, directories: tuple[Path, ...], rng: np.random.Generator) -> Dataset:
    (path,) = downloads.obtain(name, directories)
    return _split(readers.read_ch_mnist(name, path), CH_TRAIN, readers.CH_CLASSES, rng)


def _split(pool: readers.Pool, n_train: int, classes: int, rng: np.random.Generator) -> Dataset:
    order = rng.permutation(len(pool.y))
    train_x, test_x = map(readers.frozen, np.split(pool.x[order], [n_train]))
    train_y, test_y = map(readers.frozen, np.split(pool.y[order], [n_train]))
    return Dataset(train_x, train_y, test_x, test_y, classes)


def mean_and_deviation(train_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature over the training examples."""
    deviation = train_x.std(axis=0)
    return train_x.mean(axis=0), np.where(deviation > 0, deviation, 1.0)  # a constant becomes 0
