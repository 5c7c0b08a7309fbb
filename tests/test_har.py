"""UCI's human activities: from either archive or the folder, each user a worker."""

from __future__ import annotations

import hashlib
import io
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

from fltrust_repro import downloads, har, readers
from fltrust_repro.__main__ import commands
from fltrust_repro.datasets import load, status, verify
from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial

pytestmark = pytest.mark.usefixtures("alone", "small")

ROWS = {"train": 30, "test": 18}


@pytest.fixture
def small(monkeypatch):
    """Three users of 48 examples, of the published layout."""
    monkeypatch.setattr(har, "ROWS", ROWS)
    monkeypatch.setattr(har, "USERS", 3)
    har.read_har.cache_clear()


def content(part: str, kind: str) -> np.ndarray:
    n, rng = ROWS[part], np.random.default_rng(len(part))
    if kind == "X":
        return rng.uniform(-1, 1, (n, 561))
    # As published: some users are in the one part, the others in the other.
    users = np.full(n, 3) if part == "test" else 1 + np.arange(n) % 2
    return users if kind == "subject" else 1 + np.arange(n) % 6


def texts(**changed: bytes) -> dict[str, bytes]:
    """The text files by name; `changed` by kind and part, as y_train."""
    found = {}
    for part in ROWS:
        for kind, form in (("X", "%.7e"), ("y", "%d"), ("subject", "%d")):
            file = io.BytesIO()
            np.savetxt(file, content(part, kind), form)
            found[f"{part}/{kind}_{part}.txt"] = changed.get(f"{kind}_{part}", file.getvalue())
    return found


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return file.getvalue()


def inner(**changed: bytes) -> bytes:
    return zipped({f"UCI HAR Dataset/{name}": text for name, text in texts(**changed).items()})


def put(folder, form: str, monkeypatch, **changed: bytes) -> None:
    """Lay the data set into a folder, in one of its forms."""
    folder.mkdir(parents=True)
    if form == "folder":
        for name, text in texts(**changed).items():
            file = folder / "UCI HAR Dataset" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text)
        return
    archive = inner(**changed)
    monkeypatch.setattr(har, "INNER_CHECKSUM", f"sha256:{hashlib.sha256(archive).hexdigest()}")
    if form == "inner":
        (folder / downloads.HAR_INNER).write_bytes(archive)
    else:
        (folder / downloads.HAR_ZIP).write_bytes(zipped({downloads.HAR_INNER: archive}))


@pytest.mark.parametrize("form", ["folder", "inner", "outer"])
def test_it_is_read_from_each_of_its_forms(form, tmp_path, monkeypatch):
    put(tmp_path / "data" / "har", form, monkeypatch)
    found = load("har", np.random.default_rng(0))
    assert found.train_x.shape[1:] == (1, 1, 561)
    assert found.train_x.dtype == np.float32
    assert found.classes == 6
    # Three quarters of each user's examples: 15, 15 and 18 of them.
    assert np.bincount(found.users).tolist() == [0, 11, 11, 13]
    x = np.concatenate([found.train_x, found.test_x]).reshape(48, 561)
    y = np.concatenate([found.train_y, found.test_y])
    published = np.concatenate([content(part, "X") for part in ROWS])
    labels = np.concatenate([content(part, "y") for part in ROWS]) - 1
    users = np.concatenate([content(part, "subject") for part in ROWS])
    order = np.abs(published[:, None] - x).sum(axis=2).argmin(axis=0)
    assert sorted(order) == list(range(48))
    np.testing.assert_allclose(x, published[order], atol=1e-6)
    np.testing.assert_array_equal(y, labels[order])
    np.testing.assert_array_equal(found.users, users[order][: len(found.users)])
    again, other = (load("har", np.random.default_rng(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(found.train_x, again.train_x)
    assert (found.train_x != other.train_x).any()
    verify("har")
    (where,) = (one.where for one in status() if one.name == "har")
    assert where is not None


def as_text(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savetxt(file, values)
    return file.getvalue()


X, Y = content("train", "X"), content("train", "y")
FAULTS = {
    "cut short": ("X_train", as_text(X)[:-40], r"outside -1\.\.1, or none"),
    "a line too few": (
        "X_train",
        as_text(X[:-1]),
        r"\(29, 561\) lines and columns, not \(30, 561\)",
    ),
    "a column too few": ("X_train", as_text(X[:, :-1]), r"\(30, 560\) lines and columns"),
    "beyond the range": ("X_train", as_text(2 * X), r"features outside -1\.\.1"),
    "words": ("y_train", b"walking\n" * 30, "y_train.txt that is no table of numbers"),
    "empty": ("subject_test", b"", "subject_test.txt that is no table of numbers"),
    "a label too many": ("y_train", as_text(Y + 1), r"not each label of 1\.\.6"),
    "a user too few": ("subject_test", b"1\n" * 18, r"not each user of 1\.\.3"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", ["folder", "outer"])
def test_a_wrong_file_is_told_with_the_remedy(fault, form, tmp_path, monkeypatch):
    name, text, problem = FAULTS[fault]
    put(tmp_path / "har", form, monkeypatch, **{name: text})
    with pytest.raises(DataUnavailable, match=problem) as told:
        load("har", np.random.default_rng(0), tmp_path)
    assert "run `python -m fltrust_repro data fetch har`" in str(told.value)


def test_an_archive_with_other_contents_is_refused_by_its_checksum(tmp_path):
    folder = tmp_path / "har"
    folder.mkdir()
    (folder / downloads.HAR_INNER).write_bytes(inner())
    with pytest.raises(DataUnavailable, match=r"wrong checksum .* not 2045e435c955"):
        load("har", np.random.default_rng(0), tmp_path)
    (folder / downloads.HAR_INNER).rename(folder / downloads.HAR_ZIP)
    with pytest.raises(DataUnavailable, match=f"lacks {downloads.HAR_INNER!r}"):
        load("har", np.random.default_rng(0), tmp_path)
    (folder / downloads.HAR_ZIP).write_bytes(inner()[:1000])
    with pytest.raises(DataUnavailable, match="not a whole compressed file"):
        load("har", np.random.default_rng(0), tmp_path)


def test_where_it_cannot_be_had_one_sentence_says_what_to_put_where(tmp_path):
    arguments = ["--dataset", "har", "--workers", "30", "--compromised", "6", "--iterations", "1"]
    arguments += ["--data-dir", str(tmp_path), "--store", str(tmp_path / "trials.sqlite")]
    result = CliRunner().invoke(commands, ["run", *arguments])
    assert result.exit_code == 2
    (line,) = (one for one in result.output.splitlines() if "har" in one and "put" in one)
    assert "cannot be downloaded (127.0.0.1:9: no connection" in line
    assert f"put UCI's {downloads.HAR_ZIP}" in line
    assert str(tmp_path / "har") in line


def test_each_user_is_a_worker_unless_dealt_otherwise(tmp_path, monkeypatch):
    put(tmp_path / "har", "inner", monkeypatch)
    few = {"dataset": "har", "compromised": 0, "attack": "none", "rule": "mean", "iterations": 2}
    setting = Setting.from_dict({**few, "workers": 3})
    assert (setting.readings.dealing, setting.learning_rate) == ("natural", 0.01)
    assert run_trial(setting, 0, data_dir=tmp_path).empty_workers == 0
    with pytest.raises(BadInput, match="has 3 users for 100 workers; use --workers 3, or"):
        run_trial(Setting.from_dict(few), 0, data_dir=tmp_path)
    dealt = Setting.from_dict({**few, "workers": 4, "dealing": "once"})
    assert run_trial(dealt, 0, data_dir=tmp_path).iterations == 2
    readers.forget()


def test_a_file_that_is_missing_beside_one_that_is_there_is_the_one_named(tmp_path):
    first = tmp_path / "UCI HAR Dataset" / "train" / "X_train.txt"
    first.parent.mkdir(parents=True)
    first.write_text(("0 " * 561 + "\n") * 30)
    with pytest.raises(DataUnavailable) as raised:
        har.read_har(first)
    assert repr(str(first)) not in str(raised.value)
    assert "No such file" in str(raised.value)
    assert "make it readable" not in str(raised.value)
