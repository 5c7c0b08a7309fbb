"""Data sets: splits, what a plug-in's loader may return, what is at hand."""

from __future__ import annotations

import contextlib
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from data_files import LABELS, idx, place, rng

from fltrust_repro import datasets as module
from fltrust_repro import readers, trial_process
from fltrust_repro.datasets import Dataset, dataset, datasets, fetch, load, status, verify
from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.plugins import load_plugin
from fltrust_repro.settings import Readings, Setting
from fltrust_repro.training import run_trial

pytestmark = pytest.mark.usefixtures("alone")


def test_verify_sees_a_file_that_changed_after_it_was_loaded(tiny, tmp_path):
    place(tmp_path / "mnist")
    verify("mnist", tmp_path)
    place(tmp_path / "mnist", t10k_labels_idx1_ubyte=gzip.compress(idx(LABELS[1:])))
    with pytest.raises(BadInput, match=r"t10k-labels.*wrong checksum"):
        verify("mnist", tmp_path)


def test_status_names_what_is_at_hand(tiny, tmp_path):
    place(tmp_path / "mnist")
    rows = {row.name: row for row in status(tmp_path)}
    assert set(rows) >= {"mnist", "fashion-mnist", "ch-mnist", "breast-cancer"}
    assert rows["mnist"].where == str(tmp_path / "mnist")
    assert rows["fashion-mnist"].where is None
    assert rows["digits"].where == "scikit-learn"
    assert all("\n" not in row.source for row in rows.values())


def test_verify_does_not_download(tmp_path):
    with pytest.raises(DataUnavailable, match=r"mnist is not at hand; run .*data fetch mnist"):
        verify("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name():
    for command in (lambda name: load(name, rng()), fetch, verify):
        with pytest.raises(BadInput, match=r"unknown data set 'mnits'.*Did you mean 'mnist'"):
            command("mnits")


@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [("breast-cancer", 455, 114, (1, 1, 30)), ("digits", 1437, 360, (1, 8, 8))],
)
def test_random_split_by_seed(name, train, test, shape):
    first, again, other = (load(name, rng(seed)) for seed in (3, 3, 4))
    assert first.train_x.shape == (train, *shape)
    assert first.test_x.shape == (test, *shape)
    np.testing.assert_array_equal(first.train_x, again.train_x)
    np.testing.assert_array_equal(first.test_y, again.test_y)
    assert not np.array_equal(first.train_x, other.train_x)
    with pytest.raises(ValueError, match="read-only"):
        first.test_x[0] = 1
    verify(name)


def test_split_is_disjoint_and_complete():
    x = np.arange(20, dtype=np.float32).reshape(20, 1, 1, 1)
    drawn = module._split(readers.Pool(x, np.arange(20, dtype=np.int32)), 16, 20, rng(7))
    assert len(drawn.train_y) == 16
    assert sorted([*drawn.train_y, *drawn.test_y]) == list(range(20))
    np.testing.assert_array_equal(drawn.train_x.ravel(), drawn.train_y)
    np.testing.assert_array_equal(drawn.test_x.ravel(), drawn.test_y)


def test_breast_cancer_is_centred_and_scaled_by_its_training_examples():
    from sklearn.datasets import load_breast_cancer

    raw, seed = load_breast_cancer(), 5
    order = rng(seed).permutation(569)
    loaded = load("breast-cancer", rng(seed))
    np.testing.assert_allclose(loaded.train_x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(loaded.train_x.std(axis=0), 1, rtol=1e-5)
    train, test = raw.data[order[:455], 4], raw.data[order[455:], 4]
    expected = (test - train.mean()) / train.std()
    np.testing.assert_allclose(loaded.test_x[:, 0, 0, 4], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loaded.test_y, raw.target[order[455:]])


def test_constant_feature_becomes_zero():
    center, scale = module.mean_and_deviation(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert center.tolist() == [2, 5]
    assert scale.tolist() == [1, 1]


def test_digits_are_sixteenths():
    from sklearn.datasets import load_digits

    order = rng().permutation(1797)
    loaded = load("digits", rng())
    np.testing.assert_array_equal(loaded.train_x[0, 0] * 16, load_digits().images[order[0]])


@contextlib.contextmanager
def plugged(**change: object):
    x, y = np.zeros((2, 1, 1, 3), np.float32), np.array([0, 1], np.int32)
    parts = {"train_x": x, "train_y": y, "test_x": x, "test_y": y, "classes": 2, "name": "toy"}

    def toy(directories, generator):
        """Two examples."""
        return Dataset(**{**parts, **change})

    toy.__module__ = "a_plug_in"
    dataset("toy")(toy)
    try:
        yield
    finally:
        del datasets._entries["toy"]


def test_plugin_data_set():
    with plugged():
        assert load("toy", rng()).classes == 2
        assert ("toy", "plug-in", "Two examples.") in status()
        assert fetch("toy") is None
        verify("toy")


FROM_NPZ = """
from pathlib import Path
import numpy as np
import fltrust_repro as fl

@fl.dataset("mine", batch_size=8, learning_rates={"lr": 0.5}, dealing="shared")
def mine(directories, rng):
    \"\"\"Examples of my own, split at random.\"\"\"
    with np.load(Path(__file__).with_name("mine.npz")) as file:
        x, y = file["x"].astype(np.float32), file["y"].astype(np.int32)
    order = rng.permutation(len(y))
    train, test = order[:80], order[80:]
    return fl.Dataset(x[train], y[train], x[test], y[test], classes=2)
"""


@pytest.mark.parametrize("name", ["../outside", "", 3, None, "two words"])
def test_a_name_that_no_file_can_have_is_refused_where_it_is_registered(name):
    with pytest.raises(BadInput, match="name"):
        dataset(name)(lambda directories, generator: None)


def test_a_data_set_of_ones_own_from_an_npz_file_is_a_few_lines(tmp_path):
    assert len(FROM_NPZ.strip().splitlines()) <= 15
    labels = np.arange(100) % 2
    x = rng().normal(labels[:, None, None, None] * 4.0, size=(100, 1, 1, 4))
    np.savez(tmp_path / "mine.npz", x=x, y=labels)
    (tmp_path / "mine.py").write_text(FROM_NPZ)
    load_plugin(tmp_path / "mine.py")
    setting = Setting(dataset="mine", workers=5, compromised=1, iterations=20, rule="median")
    assert (setting.batch_size, setting.learning_rate) == (8, 0.5)
    assert setting.readings.dealing == "shared"
    assert load("mine", rng()).name == "mine"
    assert run_trial(setting, 0).error_rate < 0.1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"train_x": np.zeros((2, 3), np.float32)}, r"training examples must be .* \(2, 3\)"),
        ({"train_x": np.zeros((2, 1, 1, 3))}, "but are float64"),
        ({"test_y": np.array([0, 1, 1], np.int32)}, "the test examples must be"),
        ({"test_x": np.zeros((2, 1, 1, 4), np.float32)}, r"have shape \(1, 1, 4\)"),
        ({"test_x": np.zeros((2, 1, 1, 3), np.uint8)}, "are uint8, the training ones float32"),
        ({"test_y": np.array([0, 2], np.int32)}, r"labels 0\.\.1"),
        ({"train_y": np.array([0, -1], np.int32)}, r"labels 0\.\.1"),
    ],
)
def test_plugin_data_set_of_wrong_form(change, fault):
    with plugged(**change), pytest.raises(BadInput, match=fault):
        load("toy", rng())


def test_a_loader_may_return_pixels_or_numbers():
    pixels = rng().integers(0, 256, (2, 1, 1, 3)).astype(np.uint8)
    unit = np.divide(pixels, 255, dtype=np.float32)
    for given in (pixels, unit):
        with plugged(train_x=given, test_x=given):
            loaded = load("toy", rng())
            verify("toy")
        assert loaded.train_x.dtype == loaded.test_x.dtype == given.dtype
        assert np.shares_memory(loaded.train_x, given)
        read = loaded.in_float32()
        for x in (read.train_x, read.test_x):
            assert x.dtype == np.float32
            assert not x.flags.writeable
            np.testing.assert_array_equal(x, unit)
        assert given.flags.writeable
        assert (read.name, read.classes) == ("toy", 2)


@pytest.mark.parametrize("part", ["train_x", "test_x"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_examples_that_are_not_finite_are_refused_wherever_they_are_loaded(part, value):
    with plugged(**{part: np.full((2, 1, 1, 3), value, np.float32)}):
        setting = Setting(dataset="toy", rule="mean", workers=2, compromised=0, iterations=1)
        for use in (verify, fetch, lambda name: load(name, rng()), lambda _: run_trial(setting, 0)):
            with pytest.raises(BadInput, match=r"'toy': the .* examples hold NaN or infinity"):
                use("toy")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"classes": 2.0}, r"gave classes 2\.0; give a whole number"),
        ({"classes": True}, "gave classes True"),
        ({"classes": 0}, "gave classes 0"),
        ({"classes": 10**30}, "gave classes 10.* at most 100,000"),
        ({"classes": None}, "gave classes None"),
        ({"train_x": [[[[0.0]]]]}, "gave train_x as list; it must be a numpy array"),
        ({"test_y": None}, "gave test_y as NoneType"),
        ({"train_y": np.array([0, 1])}, "with int64"),
        ({"train_y": np.array([0.0, 1.0])}, "with float64"),
        ({"train_x": np.zeros((2, 1, 0, 3), np.float32)}, "must be at least one"),
        ({"train_x": np.zeros((2, 1, 1, 3), object)}, "but are object"),
    ],
    ids=str,
)
def test_what_a_loader_returns_is_refused_by_name(change, fault):
    with plugged(**change), pytest.raises(BadInput, match=fault) as caught:
        load("toy", rng())
    assert "'toy'" in str(caught.value)
    assert "\n" not in str(caught.value)


@contextlib.contextmanager
def loaded_by(loader):
    dataset("toy")(loader)
    try:
        yield
    finally:
        del datasets._entries["toy"]


@pytest.mark.parametrize(
    ("returned", "kind"), [((1, 2), "tuple"), (None, "NoneType"), ([], "list"), (Dataset, "type")]
)
def test_a_loader_that_returns_no_data_set_is_told_to(returned, kind):
    fault = f"'toy': its loader returned {kind}; .* a Dataset"
    with loaded_by(lambda *_: returned), pytest.raises(BadInput, match=fault):
        load("toy", rng())


def of_users(users):
    x, y = np.zeros((4, 1, 1, 2), np.float32), np.array([0, 1, 0, 1], np.int32)
    return lambda *_: Dataset(x, y, x, y, classes=2, users=users)


@pytest.mark.parametrize(
    "users", [[1, 2, 2, 1], np.ones(3, int), np.ones((4, 1), int), np.ones(4), np.array([*"abcd"])]
)
def test_users_that_are_no_whole_number_for_each_example_are_refused(users):
    fault = "'toy': its loader gave users that are no array of int for each training example"
    with loaded_by(of_users(users)), pytest.raises(BadInput, match=fault):
        load("toy", rng())


def test_a_plugins_data_set_may_say_whose_its_examples_are(monkeypatch):
    shared = {"workers": 2, "compromised": 0, "attack": "none", "iterations": 1, "rule": "mean"}
    setting = {"dataset": "toy", **shared, "readings": Readings(dealing="natural")}
    with loaded_by(of_users(np.array([7, 3, 7, 7]))):
        assert run_trial(Setting(**setting), 0).empty_workers == 0
    with loaded_by(of_users(np.array([3, 3, 7, 7]))):
        assert load("toy", rng()).users.tolist() == [3, 3, 7, 7]
    # Another owner makes another data set, whose trials are others.
    digests = set()
    for code, users in enumerate((None, np.array([3, 3, 7, 7]), np.array([7, 3, 7, 7]))):
        monkeypatch.setattr(type(datasets), "digest", lambda *_, told=str(code): told)
        with loaded_by(of_users(users)):
            digests.add(module.data_digest("toy"))
    assert len(digests) == 3


def test_a_digest_is_of_the_files_as_they_are_when_a_command_reads_them(monkeypatch, tmp_path):
    monkeypatch.setattr(type(datasets), "digest", lambda *_: "code")

    def from_a_file(directories, generator):
        x = np.full((2, 1, 1, 3), float((directories[0] / "x").read_text()), np.float32)
        return Dataset(x, np.array([0, 1], np.int32), x, np.array([0, 1], np.int32), 2, "toy")

    digests = []
    with loaded_by(from_a_file):
        for text in ("1", "2", "1"):
            (tmp_path / "x").write_text(text)
            module.read_digests(["toy"], tmp_path)
            digests.append(module.data_digest("toy", tmp_path))
        # A trial of another process, whose files are not the command's, has no name for its result.
        setting = Setting(dataset="toy", rule="mean", workers=2, compromised=0, iterations=1)
        told = [
            trial_process.run(setting, 0, f"1+{digest}", "cpu", tmp_path) for digest in digests[:2]
        ]
    assert told[0].setting == setting
    assert "data set 'toy' has other examples here than where" in told[1].message
    assert told[1].mendable
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(0), FileNotFoundError(2, "No file")])
def test_a_loader_that_fails_is_one_sentence(error):
    def fails(directories, generator):
        raise error

    with (
        loaded_by(fails),
        pytest.raises(BadInput, match="'toy' does not load: " + type(error).__name__),
    ):
        load("toy", rng())


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1),
    "every second": lambda x: np.repeat(x, 2, axis=0)[::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "columns first": np.asfortranarray,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "a subclass": lambda x: x.view(type("Mine", (np.ndarray,), {})),
    "read-only": lambda x: readers.frozen(x.copy()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_a_loaders_arrays_is_trained_on_and_left_as_it_was(layout):
    images = rng().random((20, 1, 4, 3)).astype(np.float32)
    labels = (np.arange(20) % 2).astype(np.int32)
    given = LAYOUTS[layout](images)
    own = LAYOUTS[layout](labels) if layout != "transposed" else labels[::-1].copy()[::-1]
    before = [(array.flags.writeable, array.strides, array.dtype) for array in (given, own)]
    options = {"workers": 5, "compromised": 1, "iterations": 2, "rule": "median"}
    options["readings"] = Readings(dealing="shared")
    results = []
    for x, y in ((images, labels), (given, own)):
        with plugged(train_x=x, train_y=y, test_x=x, test_y=y):
            data = load("toy", rng())
            assert data.train_x.flags.c_contiguous
            assert not data.train_x.flags.writeable
            results.append(run_trial(Setting(dataset="toy", **options), 0))
    assert results[0].curve == results[1].curve
    assert [(a.flags.writeable, a.strides, a.dtype) for a in (given, own)] == before
    np.testing.assert_array_equal(given, images)


# ---- the real files, where $FLTRUST_DATA has them

REAL = os.environ.get("FLTRUST_DATA", "")


def real(*path: str) -> Path:
    file = Path(REAL, *path)
    if not REAL or not file.exists():
        pytest.skip(f"$FLTRUST_DATA has no {'/'.join(path)}")
    return file


FIRST = {
    "mnist": ([5, 0, 4, 1, 9, 2, 1, 3], [7, 2, 1, 0, 4, 1, 4, 9]),
    "fashion-mnist": ([9, 0, 0, 3, 0, 2, 7, 2], [9, 2, 1, 1, 6, 1, 4, 6]),
}


@pytest.mark.parametrize("name", FIRST)
def test_real_idx_data(name):
    real(name)
    loaded = load(name, rng(), REAL)  # reading compares the md5 of all four files
    assert loaded.train_x.shape == (60_000, 1, 28, 28)
    assert loaded.test_x.shape == (10_000, 1, 28, 28)
    assert (loaded.train_x.min(), loaded.train_x.max()) == (0, 255)
    assert loaded.train_y[:8].tolist() == FIRST[name][0]
    assert loaded.test_y[:8].tolist() == FIRST[name][1]


def test_real_small_ch_mnist():
    real("ch-mnist", "hmnist_8_8_L.csv.gz")
    verify("ch-mnist-8", REAL)
    loaded = load("ch-mnist-8", rng(), REAL)
    assert loaded.train_x.shape == (4000, 1, 8, 8)
    assert loaded.test_x.shape == (1000, 1, 8, 8)
    labels = np.concatenate([loaded.train_y, loaded.test_y])
    assert np.bincount(labels).tolist() == [625] * 8
