"""Files of the data sets become arrays: exact numbers from tiny files, faults of bad ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_files import (
    CONTENT,
    IMAGES,
    LABELS,
    SMALL,
    archive,
    idx,
    names_below,
    place,
    put,
    rng,
    table,
    tiles,
)
from PIL import Image

from fltrust_repro import downloads, files, readers
from fltrust_repro.datasets import load, verify
from fltrust_repro.errors import BadInput, DataUnavailable

pytestmark = pytest.mark.usefixtures("alone")


def test_idx_files_become_pixels_and_int_labels(tiny, tmp_path):
    place(tmp_path / "mnist")
    loaded = load("mnist", rng(), tmp_path)
    assert loaded.train_x.dtype == loaded.test_x.dtype == np.uint8
    assert loaded.train_y.dtype == loaded.test_y.dtype == np.int32
    np.testing.assert_array_equal(loaded.train_x, IMAGES[:, None])
    np.testing.assert_array_equal(loaded.test_x, IMAGES[:1, None])
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


# Of the first of the four files; Kaggle's, torchvision's, and what browsers make of them.
NAMES = ("{}", "{}.gz", "{dotted}", "{dotted}.gz")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda raw: gzip.compress(raw, 1, mtime=9)])
def test_what_a_file_holds_decides_and_not_its_name(name, pack, tiny, tmp_path):
    folder = place(tmp_path / "mnist", train_images_idx3_ubyte=None)
    first = "train-images-idx3-ubyte"
    put(folder, name.format(first, dotted="train-images.idx3-ubyte"), pack(CONTENT[first]))
    assert load("mnist", rng(), tmp_path).train_x[1, 0, 1, 1] == 224
    verify("mnist", tmp_path)


BAD_IDX = {
    "a page": (b"<html>404</html>", "is not an IDX file"),
    "empty": (b"", "is not an IDX file"),
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
    put(tmp_path / "ch-mnist", "hmnist_8_8_L.csv.gz", gzip.compress(start) + zeros)
    with pytest.raises(BadInput, match="holds more than the"):
        verify("ch-mnist-8", tmp_path)


def test_a_table_of_a_million_columns_is_refused_by_its_first_line():
    with pytest.raises(ValueError, match="has not 64 pixel columns"):
        readers.parse_table(b"," * 1_000_000 + b"\n", side=8)


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
        folder = put(tmp_path / str(i) / "ch-mnist", name, raw)
        results.append(load("ch-mnist", rng(2), tmp_path / str(i)))
    assert names_below(folder) == [downloads.TILES_ZIP, downloads.TILES_CACHE]
    (folder / downloads.TILES_ZIP).unlink()
    results.append(load("ch-mnist", rng(2), tmp_path / "2"))
    for result in results:
        assert result.train_x.shape == (12, 1, 64, 64)
        assert result.train_x.dtype == result.test_x.dtype == np.uint8
        assert result.test_x.shape == (4, 1, 64, 64)
        np.testing.assert_array_equal(result.train_x, results[0].train_x)
        np.testing.assert_array_equal(result.test_y, results[0].test_y)
    x = np.concatenate([results[0].train_x, results[0].test_x])[:, 0]
    y = np.concatenate([results[0].train_y, results[0].test_y])
    for image, label in zip(gray, labels):
        found = np.flatnonzero((x == image).all(axis=(1, 2)))
        assert y[found].tolist() == [label]


@pytest.mark.parametrize("obstacle", ["read-only folder", "full disk"])
def test_archive_loads_where_the_cache_cannot_be_written(obstacle, sixteen, tmp_path, monkeypatch):
    folder = put(tmp_path / "ch-mnist", downloads.TILES_ZIP, archive(*tiles()))
    if obstacle == "read-only folder":
        folder.chmod(0o555)
    else:

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
    assert load("ch-mnist", rng(), tmp_path).classes == 8
    assert names_below(tmp_path) == [downloads.TILES_ZIP]
    folder.chmod(0o755)


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
    put(tmp_path / "ch-mnist", name, raw)
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
    for at, value in fields.values():
        raw[local + at - 2] = raw[central + at] = value
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
    put(tmp_path / "ch-mnist", downloads.TILES_ZIP, raw)
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
    put(tmp_path / "ch-mnist", "hmnist_64_64_L.csv", table(*SMALL))
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
    raw = table(*SMALL)
    put(tmp_path / "ch-mnist", "hmnist_64_64_L.csv", raw)
    load("ch-mnist", rng(), tmp_path)
    with pytest.raises(BadInput, match=r"wrong checksum .*; replace it by Kaggle's, or delete it"):
        verify("ch-mnist", tmp_path)
    blob = hashlib.sha1(f"blob {len(raw)}\0".encode() + raw).hexdigest()
    monkeypatch.setattr(readers, "KAGGLE_64_BLOB", f"sha1:{blob}")
    verify("ch-mnist", tmp_path)


def test_git_blob_id_is_computed_as_git_does(tmp_path, monkeypatch):
    path = put(tmp_path, "hmnist_64_64_L.csv", b"hello\n") / "hmnist_64_64_L.csv"
    blob = "sha1:ce013625030ba8dba906f756967f9e9ca394464a"
    monkeypatch.setattr(readers, "KAGGLE_64_BLOB", blob)
    readers.verify_kaggle_file(path)


def test_small_ch_mnist_needs_kaggles_file(tmp_path):
    with pytest.raises(DataUnavailable, match=r"needs a login .* put Kaggle's hmnist_8_8_L\.csv"):
        load("ch-mnist-8", rng(), tmp_path)
    pixels = np.zeros((5000, 8, 8), np.uint8)
    put(tmp_path / "ch-mnist", "hmnist_8_8_L.csv", table(pixels, np.arange(5000) % 8))
    with pytest.raises(BadInput, match=r"wrong checksum .* replace it by Kaggle's"):
        load("ch-mnist-8", rng(), tmp_path)


# ---- the real files, where $FLTRUST_DATA has them

REAL = os.environ.get("FLTRUST_DATA", "")


def real(*path: str) -> Path:
    file = Path(REAL, *path)
    if not REAL or not file.exists():
        pytest.skip(f"$FLTRUST_DATA has no {'/'.join(path)}")
    return file


def real_table() -> tuple[np.ndarray, np.ndarray]:
    packed = real("ch-mnist", "hmnist_8_8_L.csv.gz").read_bytes()
    return readers.parse_table(gzip.decompress(packed), side=8)


def test_gray_formula_on_5000_real_tiles():
    import pandas as pd

    colours = pd.read_csv(real("ch-mnist", "hmnist_8_8_RGB.csv.gz")).to_numpy()
    gray, labels = real_table()
    rgb = colours[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 3)
    np.testing.assert_array_equal(readers.rgb_to_gray(rgb), gray)
    np.testing.assert_array_equal(colours[:, -1] - 1, labels)
    rounded = np.array([np.asarray(Image.fromarray(tile).convert("L")) for tile in rgb[:100]])
    assert (rounded != gray[:100]).any()


def test_real_64x64_tiles_agree_with_their_8x8_rows():
    with np.load(real("ch-mnist", "sample24_64_64_L.npz")) as sample:
        images, sample_labels, rows = (sample[key] for key in ("images", "labels", "rows"))
    small, labels = real_table()
    np.testing.assert_array_equal(labels[rows], sample_labels)
    for image, row in zip(images, rows):
        shrunk = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.LANCZOS))
        assert np.abs(shrunk.astype(int) - small[row]).max() <= 1  # resized twice, gray in between


# ---- scikit-learn's own


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_scikit_learns_data_sets_are_what_it_says_they_are(name, installed, monkeypatch):
    """Read from its files, which takes no import of it, and asked for where these are not."""
    import sklearn.datasets

    raw = getattr(sklearn.datasets, f"load_{name}")()
    if not installed:
        monkeypatch.setattr(readers.importlib.util, "find_spec", lambda _: None)
    readers.forget()
    found = getattr(readers, f"read_{name}")()
    readers.forget()
    expected = (raw.images / 16).astype(np.float32) if name == "digits" else raw.data
    np.testing.assert_array_equal(found.x.reshape(expected.shape), expected)
    np.testing.assert_array_equal(found.y, raw.target)
    assert found.x.dtype == expected.dtype and found.y.dtype == np.int32
