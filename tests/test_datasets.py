"""Data sets: exact numbers from tiny files, faults of bad files, downloads from loopback."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import socket
import struct
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fltrust_repro import datasets as module
from fltrust_repro import downloads, readers
from fltrust_repro.datasets import Dataset, dataset, datasets, fetch, load, status, verify
from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.plugins import load_plugin, run_afresh
from fltrust_repro.settings import Readings, Setting
from fltrust_repro.training import run_trial

IMAGES = np.arange(8, dtype=np.uint8).reshape(2, 2, 2) * 32
LABELS = np.array([9, 0], np.uint8)


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()


CONTENT = dict(zip(downloads.IDX_FILES, map(idx, (IMAGES, LABELS, IMAGES[:1], LABELS[:1]))))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No data but the test's own, no mirror, nothing remembered from another test."""
    monkeypatch.delenv("FLTRUST_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "__file__", str(tmp_path / "package" / "downloads.py"))
    for name, source in downloads.SOURCES.items():
        alone = replace(source, mirrors=source.mirrors and ("http://127.0.0.1:9/",), elsewhere=())
        monkeypatch.setitem(downloads.SOURCES, name, alone)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for cached in (readers.read_idx, readers.read_ch_mnist):
        cached.cache_clear()


@pytest.fixture
def tiny(monkeypatch):
    """MNIST is two training images and one test image of 2x2 pixels."""
    shapes = dict(zip(downloads.IDX_FILES, [(2, 2, 2), (2,), (1, 2, 2), (1,)]))
    monkeypatch.setattr(readers, "IDX_SHAPES", shapes)
    digests = {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setitem(downloads.CONTENT_MD5, "mnist", digests)


def place(folder: Path, **changed: bytes | None) -> Path:
    """Write the four tiny .gz files; `changed` gives other bytes for one, or None for no file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in CONTENT.items():
        raw = changed.get(name.replace("-", "_"), gzip.compress(content))
        if raw is not None:
            (folder / f"{name}.gz").write_bytes(raw)
    return folder


def test_idx_files_become_unit_float_images_and_int_labels(tiny, tmp_path):
    place(tmp_path / "mnist")
    loaded = load("mnist", rng(), tmp_path)
    assert loaded.train_x.dtype == loaded.test_x.dtype == np.float32
    assert loaded.train_y.dtype == loaded.test_y.dtype == np.int32
    np.testing.assert_array_equal(loaded.train_x, (IMAGES / 255).astype("f4")[:, None])
    np.testing.assert_array_equal(loaded.test_x, (IMAGES[:1] / 255).astype("f4")[:, None])
    assert loaded.train_y.tolist() == [9, 0]
    assert loaded.test_y.tolist() == [9]
    assert loaded.classes == 10


def test_fixed_split_is_shared_read_only_and_leaves_the_generator_alone(tiny, tmp_path):
    place(tmp_path / "mnist")
    generator = rng()
    first, second = load("mnist", generator, tmp_path), load("mnist", rng(1), tmp_path)
    assert first.train_x is second.train_x
    assert generator.integers(1 << 60) == rng().integers(1 << 60)
    with pytest.raises(ValueError, match="read-only"):
        first.train_x[0] = 1


def test_uncompressed_files_are_accepted(tiny, tmp_path):
    folder = place(tmp_path / "mnist", train_images_idx3_ubyte=None)
    (folder / "train-images-idx3-ubyte").write_bytes(CONTENT["train-images-idx3-ubyte"])
    assert load("mnist", rng(), tmp_path).train_x[1, 0, 1, 1] == np.float32(224 / 255)


BAD_IDX = {
    "not gzip": (b"<html>404</html>", "is not a whole compressed file"),
    "empty": (b"", "is cut short|is not an IDX file"),
    "cut short": (gzip.compress(idx(LABELS))[:-9], "is cut short"),
    "bit flipped": (gzip.compress(idx(LABELS))[:-8] + bytes(8), "is not a whole compressed file"),
    "three bytes": (gzip.compress(b"\0\0\x08"), "is not an IDX file"),
    "floats": (gzip.compress(b"\0\0\x0d\x01" + bytes(8)), "is not an IDX file"),
    "header only": (gzip.compress(b"\0\0\x08\x03\0\0"), "is not an IDX file"),
    "fewer values": (gzip.compress(idx(LABELS)[:-1]), r"holds 1 values, its header says \(2,\)"),
    "other shape": (gzip.compress(idx(IMAGES)), r"holds an array \(2, 2, 2\), not \(2,\)"),
    "label": (gzip.compress(idx(LABELS + np.uint8(1))), r"holds the label 10, outside 0\.\.9"),
    "other labels": (gzip.compress(idx(LABELS[::-1])), "has a wrong checksum"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx_file_is_named_with_fault_and_remedy(case, tiny, tmp_path):
    raw, fault = BAD_IDX[case]
    place(tmp_path / "mnist", train_labels_idx1_ubyte=raw)
    with pytest.raises(BadInput, match=fault) as caught:
        load("mnist", rng(), tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "mnist" / "train-labels-idx1-ubyte.gz") in message
    assert "delete it and run `python -m fltrust_repro data fetch mnist`" in message
    assert "\n" not in message


def test_verify_sees_a_file_that_changed_after_it_was_loaded(tiny, tmp_path):
    place(tmp_path / "mnist")
    verify("mnist", tmp_path)
    place(tmp_path / "mnist", t10k_labels_idx1_ubyte=gzip.compress(idx(LABELS[1:])))
    with pytest.raises(BadInput, match=r"t10k-labels.*wrong checksum"):
        verify("mnist", tmp_path)


# ---- where data is looked for ----------------------------------------------------------------


def test_search_order(tiny, tmp_path, monkeypatch):
    (tmp_path / "setup.py").touch()
    monkeypatch.setattr(downloads, "__file__", str(tmp_path / "checkout" / "pkg" / "x.py"))
    for name in ("argument", "variable", "here/data", "checkout/data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("FLTRUST_DATA", str(tmp_path / "variable"))
    usual = [tmp_path / "argument", tmp_path / "variable", tmp_path / "here" / "data"]
    assert downloads.search_path(tmp_path / "argument") == tuple(usual)
    (tmp_path / "checkout" / "setup.py").touch()
    usual.append(tmp_path / "checkout" / "data")
    assert downloads.search_path(tmp_path / "argument") == tuple(usual)
    for directory in reversed(usual):
        place(directory / "mnist")
        assert downloads.locate("mnist", usual)[0].parent == directory / "mnist"


def test_incomplete_folder_is_passed_over(tiny, tmp_path):
    place(tmp_path / "first" / "mnist", t10k_images_idx3_ubyte=None)
    place(tmp_path / "second" / "mnist")
    files = downloads.locate("mnist", [tmp_path / "first", tmp_path / "second"])
    assert [path.parent for path in files] == [tmp_path / "second" / "mnist"] * 4


def test_system_folder_comes_last(tmp_path, monkeypatch):
    system = place(tmp_path / "system")
    source = replace(downloads.SOURCES["fashion-mnist"], elsewhere=(system,))
    monkeypatch.setitem(downloads.SOURCES, "fashion-mnist", source)
    assert downloads.locate("fashion-mnist", [tmp_path])[0].parent == system
    own = place(tmp_path / "fashion-mnist")
    assert downloads.locate("fashion-mnist", [tmp_path])[0].parent == own


@pytest.mark.parametrize("how", ["--data-dir", "$FLTRUST_DATA"])
def test_directory_that_does_not_exist_is_named(how, tmp_path, monkeypatch):
    missing = str(tmp_path / "nowhere")
    if how == "$FLTRUST_DATA":
        monkeypatch.setenv("FLTRUST_DATA", missing)
    argument = missing if how == "--data-dir" else None
    for command in (status, lambda path: load("digits", rng(), path)):
        with pytest.raises(BadInput) as caught:
            command(argument)
        assert str(caught.value).startswith(f"{how} {missing!r} is not a directory")


def test_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    with pytest.raises(BadInput, match=r"--data-dir .* cannot be read by this user"):
        status(tmp_path)


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(BadInput, match=r"mnist' cannot be read \(Permission denied\)"):
        downloads.locate("mnist", [tmp_path])


def test_status_names_what_is_at_hand(tiny, tmp_path):
    place(tmp_path / "mnist")
    rows = {row.name: row for row in status(tmp_path)}
    assert set(rows) >= {"mnist", "fashion-mnist", "ch-mnist", "breast-cancer"}
    assert rows["mnist"][1:3] == (True, str(tmp_path / "mnist"))
    assert rows["fashion-mnist"][1:3] == (False, None)
    assert rows["digits"][1:3] == (True, "scikit-learn")
    assert all("\n" not in row.source for row in rows.values())


def test_verify_does_not_download(tmp_path):
    with pytest.raises(DataUnavailable, match=r"mnist is not at hand; run .*data fetch mnist"):
        verify("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name():
    for command in (lambda name: load(name, rng()), fetch, verify):
        with pytest.raises(BadInput, match=r"unknown data set 'mnits'.*Did you mean 'mnist'"):
            command("mnits")


# ---- random splits ---------------------------------------------------------------------------


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


# ---- a plug-in's data set --------------------------------------------------------------------


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
        assert ("toy", True, "plug-in", "Two examples.") in status()
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
    try:
        load_plugin(tmp_path / "mine.py")
        setting = Setting(dataset="mine", workers=5, compromised=1, iterations=20, rule="median")
        assert (setting.batch_size, setting.learning_rate) == (8, 0.5)
        assert setting.readings.dealing == "shared"
        assert load("mine", rng()).name == "mine"
        assert run_trial(setting, 0).error_rate < 0.1
    finally:
        run_afresh([])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"train_x": np.zeros((2, 3), np.float32)}, r"training examples must be .* \(2, 3\)"),
        ({"train_x": np.zeros((2, 1, 1, 3))}, "but are float64"),
        ({"test_y": np.array([0, 1, 1], np.int32)}, "the test examples must be"),
        ({"test_x": np.zeros((2, 1, 1, 4), np.float32)}, r"have shape \(1, 1, 4\)"),
        ({"test_y": np.array([0, 2], np.int32)}, r"labels 0\.\.1"),
        ({"train_y": np.array([0, -1], np.int32)}, r"labels 0\.\.1"),
    ],
)
def test_plugin_data_set_of_wrong_form(change, fault):
    with plugged(**change), pytest.raises(BadInput, match=fault):
        load("toy", rng())


def test_verify_and_what_comes_before_trials_find_nan():
    with plugged(test_x=np.full((2, 1, 1, 3), np.nan, np.float32)):
        load("toy", rng())
        for check in (verify, fetch):
            with pytest.raises(BadInput, match="'toy' holds NaN"):
                check("toy")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"classes": 2.0}, r"gave classes 2\.0; give a whole number"),
        ({"classes": True}, "gave classes True"),
        ({"classes": 0}, "gave classes 0"),
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


# ---- files made to mislead -------------------------------------------------------------------


@pytest.fixture
def little_memory():
    """Memory for 600 MB more than now; a bomb takes a gigabyte."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def zeros() -> bytes:
    """A gigabyte of zeros as .gz: a megabyte, in pieces that follow one another."""
    return gzip.compress(bytes(1 << 24), 1) * 64


@pytest.mark.parametrize("header", ["right", "larger", "none"])
def test_an_idx_file_is_read_no_further_than_it_should_go(
    header, tiny, tmp_path, zeros, little_memory
):
    start = {
        "right": idx(LABELS),
        "larger": struct.pack(">4BI", 0, 0, 8, 1, 2**32 - 1),
        "none": b"",
    }
    place(tmp_path / "mnist", train_labels_idx1_ubyte=gzip.compress(start[header]) + zeros)
    fault = {
        "right": "holds more than the 2 bytes",
        "larger": "holds an array",
        "none": "not an IDX",
    }
    with pytest.raises(BadInput, match=fault[header]):
        verify("mnist", tmp_path)


@pytest.mark.parametrize(
    "start", [b"", b"pixel0000,label\n", b"0," * 5000 + b"\n", b"," * (1 << 20)]
)
def test_a_table_is_read_no_further_than_it_should_go(start, tmp_path, zeros, little_memory):
    (tmp_path / "ch-mnist").mkdir()
    path = tmp_path / "ch-mnist" / "hmnist_8_8_L.csv.gz"
    path.write_bytes(gzip.compress(start) + zeros)
    with pytest.raises(BadInput, match="holds more than the"):
        verify("ch-mnist-8", tmp_path)


def test_a_table_of_a_million_columns_is_refused_by_its_first_line():
    with pytest.raises(ValueError, match="has not 64 pixel columns"):
        readers.parse_table(b"," * 1_000_000 + b"\n", side=8)


# ---- CH-MNIST --------------------------------------------------------------------------------


@pytest.fixture
def sixteen(monkeypatch):
    """CH-MNIST is two tiles of each class, 12 of the 16 for training."""
    monkeypatch.setattr(readers, "CH_TILES", 16)
    monkeypatch.setattr(module, "CH_TRAIN", 12)


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


def test_gray_is_cut_off_not_rounded():
    rgb = np.array([[[255, 255, 255], [0, 0, 0], [1, 1, 0], [0, 200, 0]]], np.uint8)
    # 65536 * 255 >> 16;  0;  (19595 + 38470) / 65536 = 0.89;  200 * 38470 / 65536 = 117.4
    assert readers.rgb_to_gray(rgb).tolist() == [[255, 0, 0, 117]]


def test_tile_is_resized_first_then_turned_gray():
    tile = tiles()[0][0]
    small = [
        np.asarray(Image.fromarray(tile[..., k]).resize((64, 64), Image.Resampling.LANCZOS))
        for k in range(3)
    ]
    gray = readers.tile_to_gray(tile)
    assert gray.shape == (64, 64)
    assert gray.dtype == np.uint8
    for row, column in ((0, 0), (5, 40), (63, 63)):
        red, green, blue = (int(channel[row, column]) for channel in small)
        assert gray[row, column] == (19595 * red + 38470 * green + 7471 * blue) >> 16
    gray_first = Image.fromarray(readers.rgb_to_gray(tile)).resize((64, 64), Image.LANCZOS)
    assert (gray != np.asarray(gray_first)).any()


def test_table_archive_and_cache_give_the_same_examples(sixteen, tmp_path):
    pixels, labels = tiles()
    gray = np.array([readers.tile_to_gray(tile) for tile in pixels])
    sources = {
        "hmnist_64_64_L.csv": table(gray[::-1], labels[::-1]),
        "hmnist_64_64_L.csv.gz": gzip.compress(table(gray, labels)),
        downloads.TILES_ZIP: archive(pixels, labels),
    }
    results = []
    for i, (name, raw) in enumerate(sources.items()):
        folder = tmp_path / str(i) / "ch-mnist"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(raw)
        results.append(load("ch-mnist", rng(2), tmp_path / str(i)))
    assert sorted(path.name for path in folder.iterdir()) == [
        downloads.TILES_ZIP,
        downloads.TILES_CACHE,
    ]
    (folder / downloads.TILES_ZIP).unlink()
    results.append(load("ch-mnist", rng(2), tmp_path / "2"))
    for result in results:
        assert result.train_x.shape == (12, 1, 64, 64)
        assert result.test_x.shape == (4, 1, 64, 64)
        np.testing.assert_array_equal(result.train_x, results[0].train_x)
        np.testing.assert_array_equal(result.test_y, results[0].test_y)
    x = np.concatenate([results[0].train_x, results[0].test_x])[:, 0]
    y = np.concatenate([results[0].train_y, results[0].test_y])
    for image, label in zip(gray, labels):
        found = np.flatnonzero((x == (image / 255).astype(np.float32)).all(axis=(1, 2)))
        assert y[found].tolist() == [label]


@pytest.mark.parametrize("obstacle", ["read-only folder", "full disk"])
def test_archive_loads_where_the_cache_cannot_be_written(obstacle, sixteen, tmp_path, monkeypatch):
    folder = tmp_path / "ch-mnist"
    folder.mkdir()
    (folder / downloads.TILES_ZIP).write_bytes(archive(*tiles()))
    if obstacle == "read-only folder":
        folder.chmod(0o555)
    else:

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
    assert load("ch-mnist", rng(), tmp_path).classes == 8
    assert names_below(tmp_path) == [downloads.TILES_ZIP]
    folder.chmod(0o755)


def test_interrupted_cache_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        readers._write_cache(tmp_path / "c.npz", IMAGES, LABELS)
    assert list(tmp_path.iterdir()) == []


SMALL = np.zeros((16, 64, 64), np.uint8), np.arange(16, dtype=np.uint8) % 8
BAD_CH = {
    "empty": ("hmnist_64_64_L.csv", b"", "is not a table"),
    "text": ("hmnist_64_64_L.csv", b"pixel0000,label\nx,1\n", "is not a table"),
    "cut line": ("hmnist_64_64_L.csv", table(*SMALL)[:-20], "or is cut short"),
    "cut rows": ("hmnist_64_64_L.csv", table(SMALL[0][1:], SMALL[1][1:]), r"\[1, 2, 2, 2, 2"),
    "other side": ("hmnist_64_64_L.csv", table(SMALL[0][:, :8, :8], SMALL[1]), "has not 4096"),
    "label 9": ("hmnist_64_64_L.csv", table(SMALL[0], SMALL[1] + 1), r"labels outside 1\.\.8"),
    "pixel 256": (
        "hmnist_64_64_L.csv",
        table(SMALL[0].astype(int) + 256, SMALL[1]),
        r"pixels outside 0\.\.255",
    ),
    "cut gzip": ("hmnist_64_64_L.csv.gz", gzip.compress(table(*SMALL))[:-30], "is cut short"),
    "zip": (downloads.TILES_ZIP, archive(*tiles(8))[:-30], "is not a whole compressed file"),
    "zip lacks": (downloads.TILES_ZIP, archive(*(part[1:] for part in tiles(8))), r"\[1, 2, 2"),
    "zip empty": (downloads.TILES_ZIP, archive(SMALL[0][:0], SMALL[1][:0]), r"images \(0,\)"),
    "npz": (downloads.TILES_CACHE, b"PK\3\4 not really", "is not an .npz file"),
}


@pytest.mark.parametrize("case", BAD_CH)
def test_bad_ch_mnist_file_is_named_with_fault_and_remedy(case, sixteen, tmp_path):
    name, raw, fault = BAD_CH[case]
    (tmp_path / "ch-mnist").mkdir()
    (tmp_path / "ch-mnist" / name).write_bytes(raw)
    with pytest.raises(BadInput, match=fault) as caught:
        load("ch-mnist", rng(), tmp_path)
    assert str(caught.value).startswith(repr(str(tmp_path / "ch-mnist" / name)))
    assert str(caught.value).endswith("run `python -m fltrust_repro data fetch ch-mnist`.")


def packed(content: bytes, **fields: object) -> bytes:
    """A zip of one tile, with fields of its directory changed to mislead."""
    folder = io.BytesIO()
    with zipfile.ZipFile(folder, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("01_TUMOR/a.tif", content)
    raw = bytearray(folder.getvalue())
    local, central = raw.index(b"PK\3\4"), raw.index(b"PK\1\2")
    for place, value in fields.values():
        raw[local + place - 2] = raw[central + place] = value
    return bytes(raw)


def tiff(width: int, height: int) -> bytes:
    raw = io.BytesIO()
    Image.new("1", (width, height)).save(raw, "TIFF", compression="group4")
    return raw.getvalue()


BAD_ZIPS = {
    "encrypted": (packed(b"x", flags=(8, 1)), "cannot be understood .*encrypted"),
    "odd compression": (packed(b"x", method=(10, 97)), "cannot be understood .*compression"),
    "no image": (packed(b"<svg/>"), "cannot be read .*cannot identify image"),
    "bomb": (packed(bytes(1 << 24)), "holds more than the 1,048,576 bytes"),
    "large tile": (packed(tiff(20_000, 20_000)), "a tile of 20000 x 20000|cannot be understood"),
    "wide tile": (packed(tiff(151, 1)), "a tile of 151 x 1 pixels"),
    "another kind": (packed(b"GIF89a" + bytes(100)), "cannot identify image"),
    "cut tile": (packed(tiff(100, 100)[:-60]), "a.tif|cannot be|is cut short|is not"),
}


@pytest.mark.parametrize("case", BAD_ZIPS)
def test_an_odd_archive_is_one_sentence(case, sixteen, tmp_path):
    raw, fault = BAD_ZIPS[case]
    (tmp_path / "ch-mnist").mkdir()
    (tmp_path / "ch-mnist" / downloads.TILES_ZIP).write_bytes(raw)
    with pytest.raises(BadInput, match=fault) as caught:
        load("ch-mnist", rng(), tmp_path)
    assert str(caught.value).endswith("run `python -m fltrust_repro data fetch ch-mnist`.")
    assert "\n" not in str(caught.value)


def test_an_archive_with_more_tiles_than_published_is_given_up(sixteen, tmp_path):
    (tmp_path / "ch-mnist").mkdir()
    pixels, labels = tiles(8)
    raw = archive(np.concatenate([pixels, pixels]), np.concatenate([labels, labels]))
    (tmp_path / "ch-mnist" / downloads.TILES_ZIP).write_bytes(raw)
    with pytest.raises(BadInput, match="holds more than 16 tiles"):
        load("ch-mnist", rng(), tmp_path)


@pytest.mark.parametrize("name", ["mnist", "ch-mnist"])
def test_a_file_that_may_not_be_read_is_not_to_be_deleted(
    name, tiny, sixteen, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    place(tmp_path / "mnist")
    (tmp_path / "ch-mnist").mkdir()
    (tmp_path / "ch-mnist" / "hmnist_64_64_L.csv").write_bytes(table(*SMALL))
    monkeypatch.setattr(downloads, "opened", refuse)  # root may read anything
    with pytest.raises(
        BadInput, match=r"cannot be read \(Permission denied\); make it readable"
    ) as caught:
        load(name, rng(), tmp_path)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"images": SMALL[0]}, "lacks the array 'labels"),
        ({"images": SMALL[0] / 2, "labels": SMALL[1]}, "holds float64 images"),
    ],
)
def test_bad_ch_mnist_cache(arrays, fault, sixteen, tmp_path):
    (tmp_path / "ch-mnist").mkdir()
    np.savez(tmp_path / "ch-mnist" / downloads.TILES_CACHE, **arrays)
    with pytest.raises(BadInput, match=fault):
        load("ch-mnist", rng(), tmp_path)


def test_verify_compares_kaggles_table_byte_for_byte(sixteen, tmp_path, monkeypatch):
    (tmp_path / "ch-mnist").mkdir()
    raw = table(*SMALL)
    (tmp_path / "ch-mnist" / "hmnist_64_64_L.csv").write_bytes(raw)
    with pytest.raises(BadInput, match="is not byte for byte the file that Kaggle publishes"):
        verify("ch-mnist", tmp_path)
    blob = hashlib.sha1(f"blob {len(raw)}\0".encode() + raw).hexdigest()
    monkeypatch.setattr(downloads, "KAGGLE_64_BLOB", blob)
    verify("ch-mnist", tmp_path)


def test_git_blob_id_is_computed_as_git_does(tmp_path, monkeypatch):
    path = tmp_path / "hmnist_64_64_L.csv"
    path.write_bytes(b"hello\n")
    monkeypatch.setattr(downloads, "KAGGLE_64_BLOB", "ce013625030ba8dba906f756967f9e9ca394464a")
    downloads.verify_kaggle_file(path)


def test_small_ch_mnist_needs_kaggles_file(tmp_path):
    with pytest.raises(DataUnavailable, match=r"needs a login .* put Kaggle's hmnist_8_8_L\.csv"):
        load("ch-mnist-8", rng(), tmp_path)
    pixels = np.zeros((5000, 8, 8), np.uint8)
    (tmp_path / "ch-mnist").mkdir()
    (tmp_path / "ch-mnist" / "hmnist_8_8_L.csv").write_bytes(table(pixels, np.arange(5000) % 8))
    with pytest.raises(BadInput, match=r"wrong checksum .* replace it by Kaggle's"):
        load("ch-mnist-8", rng(), tmp_path)


# ---- downloads, from a server on this machine ------------------------------------------------


@pytest.fixture
def server():
    """Address of a server, the bytes it answers by file name, and the paths it was asked for."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            _, mirror, name = self.path.split("/")
            if mirror == "down" or name not in files:
                self.send_error(503)
                return
            body = files[name]
            if mirror == "html":
                body = b"<html>Please log in to this network.</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:-5] if mirror == "cut" else body)

        def log_message(self, *args: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/", files, asked
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def mirrors(server, tiny, monkeypatch):
    """Let MNIST come from the named mirrors of the server; returns the paths it was asked for."""
    address, files, asked = server
    files.update({f"{name}.gz": gzip.compress(content) for name, content in CONTENT.items()})
    digests = {name: f"md5:{hashlib.md5(raw).hexdigest()}" for name, raw in files.items()}

    def use(*names: str) -> list[str]:
        source = replace(
            downloads.SOURCES["mnist"],
            mirrors=tuple(f"{address}{name}/" for name in names),
            downloads=digests,
        )
        monkeypatch.setitem(downloads.SOURCES, "mnist", source)
        return asked

    return use


def names_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


ALL_FILES = sorted(f"{name}.gz" for name in downloads.IDX_FILES)


def test_download_then_found_without_asking_again(mirrors, tmp_path, capfd):
    asked = mirrors("good")
    assert fetch("mnist", tmp_path) == tmp_path / "mnist"
    assert names_below(tmp_path) == ALL_FILES
    assert len(asked) == 4
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "100%" in captured.err
    assert (tmp_path / "mnist" / ALL_FILES[0]).stat().st_mode & 0o777 == 0o644
    assert fetch("mnist", tmp_path) == tmp_path / "mnist"
    assert load("mnist", rng(), tmp_path).train_y.tolist() == [9, 0]
    assert len(asked) == 4


def test_only_missing_files_are_downloaded(mirrors, tmp_path):
    asked = mirrors("good")
    folder = place(tmp_path / "mnist", t10k_labels_idx1_ubyte=None, t10k_images_idx3_ubyte=None)
    (folder / "t10k-images-idx3-ubyte").write_bytes(CONTENT["t10k-images-idx3-ubyte"])
    fetch("mnist", tmp_path)
    assert asked == ["/good/t10k-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("first", ["down", "html", "cut"])
def test_second_mirror_where_the_first_fails(first, mirrors, tmp_path):
    asked = mirrors(first, "good")
    fetch("mnist", tmp_path)
    assert names_below(tmp_path) == ALL_FILES
    assert len(asked) == 8


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [
        ("down", "HTTP status 503"),
        ("html", "wrong checksum"),
        ("cut", "connection broke off|wrong checksum"),  # urllib3 2 notices, urllib3 1 does not
    ],
)
def test_all_mirrors_fail(mirror, reason, mirrors, tmp_path):
    mirrors(mirror, mirror)
    with pytest.raises(DataUnavailable, match=reason) as caught:
        load("mnist", rng(), tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("127.0.0.1") == 2
    put = f"put the four *-ubyte.gz files into {str(tmp_path / 'mnist')!r}"
    assert put in str(caught.value)
    assert names_below(tmp_path) == []


def test_no_mirror_reachable(tmp_path, monkeypatch):
    with socket.socket() as taken:  # bound but not listening: refused at once
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        source = replace(downloads.SOURCES["mnist"], mirrors=(address,))
        monkeypatch.setitem(downloads.SOURCES, "mnist", source)
        with pytest.raises(DataUnavailable, match=r"cannot be downloaded .*no connection"):
            fetch("mnist", tmp_path)


def test_mirror_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        source = replace(downloads.SOURCES["mnist"], mirrors=(address,))
        monkeypatch.setitem(downloads.SOURCES, "mnist", source)
        with pytest.raises(DataUnavailable, match="timed out"):
            fetch("mnist", tmp_path)


def test_download_goes_to_the_first_directory_that_can_be_written(mirrors, tmp_path, monkeypatch):
    mirrors("good")
    for name in ("argument", "variable"):
        (tmp_path / name).mkdir()
    (tmp_path / "argument" / "mnist").touch()  # in the way of the folder, for root too
    monkeypatch.setenv("FLTRUST_DATA", str(tmp_path / "variable"))
    assert fetch("mnist", tmp_path / "argument") == tmp_path / "variable" / "mnist"


@pytest.mark.parametrize("marked", ["argument", "argument/mnist"])
def test_nothing_is_written_where_the_mode_says_read_only(marked, mirrors, tmp_path):
    mirrors("good")
    (tmp_path / "argument" / "mnist").mkdir(parents=True)
    (tmp_path / marked).chmod(0o555)  # holds for root too
    assert fetch("mnist", tmp_path / "argument") == tmp_path / "data" / "mnist"
    assert names_below(tmp_path / "argument") == []
    (tmp_path / marked).chmod(0o755)


def test_download_without_any_directory_makes_data_here(mirrors, tmp_path):
    mirrors("good")
    assert fetch("mnist") == tmp_path / "data" / "mnist"


def test_nowhere_to_write(mirrors, tmp_path):
    asked = mirrors("good")
    (tmp_path / "data").touch()
    (tmp_path / "argument").mkdir()
    (tmp_path / "argument" / "mnist").touch()
    with pytest.raises(DataUnavailable, match=r"none of .*argument.* can be written"):
        fetch("mnist", tmp_path / "argument")
    assert asked == []


def test_full_disk_is_not_blamed_on_the_mirror(mirrors, tmp_path, monkeypatch):
    import pooch

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    mirrors("good")
    monkeypatch.setattr(pooch, "retrieve", full)
    with pytest.raises(DataUnavailable, match=r"cannot be written .*No space left on device"):
        fetch("mnist", tmp_path)


def test_ch_mnist_archive_is_downloaded_and_turned_into_the_cache(
    server, sixteen, tmp_path, monkeypatch
):
    address, files, _ = server
    files[downloads.TILES_ZIP] = archive(*tiles())
    digest = hashlib.sha256(files[downloads.TILES_ZIP]).hexdigest()
    source = replace(
        downloads.SOURCES["ch-mnist"],
        mirrors=(f"{address}good/",),
        downloads={downloads.TILES_ZIP: f"sha256:{digest}"},
    )
    monkeypatch.setitem(downloads.SOURCES, "ch-mnist", source)
    assert fetch("ch-mnist", tmp_path) == tmp_path / "ch-mnist"
    assert names_below(tmp_path) == [downloads.TILES_ZIP, downloads.TILES_CACHE]
    verify("ch-mnist", tmp_path)


# ---- the real files, where $FLTRUST_DATA has them --------------------------------------------

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
    assert (loaded.train_x.min(), loaded.train_x.max()) == (0, 1)
    assert loaded.train_y[:8].tolist() == FIRST[name][0]
    assert loaded.test_y[:8].tolist() == FIRST[name][1]


@pytest.mark.parametrize("name", FIRST)
def test_real_compressed_files_have_the_checksums_of_the_downloads(name):
    real(name)
    assert len(downloads.SOURCES[name].downloads) == 4
    for file, checksum in downloads.SOURCES[name].downloads.items():
        digest = hashlib.md5(real(name, file).read_bytes()).hexdigest()
        assert checksum == f"md5:{digest}"


def test_real_small_ch_mnist():
    real("ch-mnist", "hmnist_8_8_L.csv.gz")
    verify("ch-mnist-8", REAL)
    loaded = load("ch-mnist-8", rng(), REAL)
    assert loaded.train_x.shape == (4000, 1, 8, 8)
    assert loaded.test_x.shape == (1000, 1, 8, 8)
    labels = np.concatenate([loaded.train_y, loaded.test_y])
    assert np.bincount(labels).tolist() == [625] * 8


def test_gray_formula_on_5000_real_tiles():
    import pandas as pd

    colours = pd.read_csv(real("ch-mnist", "hmnist_8_8_RGB.csv.gz")).to_numpy()
    gray, labels = readers.parse_table(
        downloads.content(real("ch-mnist", "hmnist_8_8_L.csv.gz")), side=8
    )
    rgb = colours[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 3)
    np.testing.assert_array_equal(readers.rgb_to_gray(rgb), gray)
    np.testing.assert_array_equal(colours[:, -1] - 1, labels)
    rounded = np.array([np.asarray(Image.fromarray(tile).convert("L")) for tile in rgb[:100]])
    assert (rounded != gray[:100]).any()


def test_real_64x64_tiles_agree_with_their_8x8_rows():
    with np.load(real("ch-mnist", "sample24_64_64_L.npz")) as sample:
        images, sample_labels, rows = (sample[key] for key in ("images", "labels", "rows"))
    small, labels = readers.parse_table(
        downloads.content(real("ch-mnist", "hmnist_8_8_L.csv.gz")), side=8
    )
    np.testing.assert_array_equal(labels[rows], sample_labels)
    for image, row in zip(images, rows):
        shrunk = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.LANCZOS))
        assert np.abs(shrunk.astype(int) - small[row]).max() <= 1  # resized twice, gray in between
