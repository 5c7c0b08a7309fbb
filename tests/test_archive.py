"""A store that is looked at: left as it is, and believed no further than it can be read."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from test_store import RESULT, SETTING, trial
from test_trials import TOLD, as_store

from fltrust_repro import archive
from fltrust_repro.archive import Archive
from fltrust_repro.errors import BadInput
from fltrust_repro.store import Store
from fltrust_repro.trials import COLUMNS

NAMES = ", ".join(COLUMNS)


@pytest.fixture
def file(tmp_path):
    """A store of three trials in a folder of its own."""
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "trials.sqlite"
    with Store(path) as store:
        store.add(*(trial(seed) for seed in range(3)))
    return path


def seeds(path) -> list[int]:
    with Archive(path) as store:
        assert store.failures() == {}
        return [found.seed for found in store.everything()]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir()}


def execute(path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


# ---- nothing is written -------------------------------------------------------------------------


def test_looking_leaves_nothing_beside_the_file(file, tmp_path):
    before = contents(file.parent)
    assert seeds(file) == [0, 1, 2]
    with Store(tmp_path / "ours.sqlite") as ours:
        assert ours.merge(file) == (3, 3)
    assert contents(file.parent) == before


def test_a_store_where_nothing_can_be_written_is_read(file, monkeypatch):
    opened = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: opened.append(a[0]) or connect(*a, **k))
    assert seeds(file) == [0, 1, 2]
    assert all("immutable=1" in where for where in opened)


@pytest.mark.parametrize("index", ["with", "without"])
def test_what_lies_in_a_log_only_is_read_and_the_log_left_as_it_is(file, tmp_path, index):
    copied = tmp_path / "copy"
    with Store(file) as store:
        store.add(trial(7))
        shutil.copytree(file.parent, copied)
    assert (copied / "trials.sqlite-wal").stat().st_size
    if index == "without":
        (copied / "trials.sqlite-shm").unlink()
    names = {path.name for path in copied.iterdir()}
    whole = [copied / "trials.sqlite", copied / "trials.sqlite-wal"]
    before = [path.read_bytes() for path in whole]
    assert seeds(whole[0]) == [0, 1, 2, 7]
    assert [path.read_bytes() for path in whole] == before
    assert {path.name for path in copied.iterdir()} == names


def test_a_log_that_cannot_be_copied_is_one_sentence(file, tmp_path, monkeypatch):
    copied = tmp_path / "copy"
    with Store(file) as store:
        store.add(trial(7))
        shutil.copytree(file.parent, copied)
    (copied / "trials.sqlite-shm").unlink()
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    said = r"has a log beside it \(trials\.sqlite-wal\).*cannot be made.*set TMPDIR to a folder"
    with pytest.raises(BadInput, match=said):
        Archive(copied / "trials.sqlite")


def test_a_store_that_may_not_be_read_says_why(file, monkeypatch):
    def refused(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(BadInput, match=r"that can be read \(Permission denied\); give --store"):
        Archive(file)


def test_a_store_is_looked_at_while_a_command_writes_to_it(file):
    with Store(file) as store:
        for seed in range(3, 6):
            store.add(trial(seed))
            assert seeds(file) == list(range(seed + 1))


def test_a_store_that_lay_idle_is_read_anew_once_a_command_has_written_to_it(file):
    with Archive(file) as idle:
        assert len(list(idle.everything())) == 3
        with Store(file) as store:
            for seed in range(3, 60):
                store.add(trial(seed))
            assert len(list(idle.everything())) == 60
        assert len(idle.find(SETTING)) == 60
    with Archive(file) as idle:
        with Store(file) as store:
            store.add(trial(60))
        assert len(idle.find(SETTING)) == 61


def test_what_is_written_amid_a_reading_is_no_damage(file):
    with Store(file) as store:
        for seed in range(3, 400):
            store.add(trial(seed))
    with Archive(file) as idle, pytest.raises(BadInput, match="written to while it was read; run"):
        reading = idle.salvaged()
        next(reading)
        with Store(file) as store:
            for seed in range(400, 440):
                store.add(trial(seed))
        list(reading)


def test_where_there_is_no_file_there_is_no_trial_and_no_file_is_made(tmp_path):
    with Archive(tmp_path / "none.sqlite") as store:
        assert list(store.everything()) == store.find(SETTING) == []
        assert store.failures() == {}
        assert store.claimed() == set()
    assert list(tmp_path.iterdir()) == []


def test_what_is_lent_is_answered_with_and_never_written(file):
    with Store(file) as store:
        other = replace(SETTING, epsilon=0.2)
        store.lend([trial(2, device="first"), trial(9, device="first"), trial(1, other)])
        store.lend([trial(9, device="second"), trial(8, protocol="0")])
        found = [(one.seed, one.device) for one in store.find(SETTING)]
        assert found == [(0, "cpu"), (1, "cpu"), (2, "cpu"), (9, "first")]
        assert [one.seed for one in store.find(SETTING, range(2, 20))] == [2, 9]
        assert [one.seed for one in store.find(other)] == [1]
        assert sorted(one.seed for one in store.everything()) == [0, 1, 1, 2, 8, 9]
        assert not store.has(trial(9).name)
        assert store.add(trial(9)) == {trial(9).name}
        assert [one.device for one in store.find(SETTING, [9])] == ["cpu"]
    assert seeds(file) == [0, 1, 2, 9]


@pytest.mark.parametrize("opened", [Archive, Store])
def test_a_folder_and_a_device_are_no_stores(tmp_path, opened):
    for path in (tmp_path, Path(), Path(os.devnull)):
        with pytest.raises(BadInput, match="is not a file; give --store a file"):
            opened(path)


# ---- what others wrote --------------------------------------------------------------------------

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"
VALUES = ", ".join("i" for _ in COLUMNS)


@pytest.mark.parametrize("opened", [Archive, Store])
@pytest.mark.parametrize(
    "statement",
    [f"CREATE VIEW trials ({NAMES}) AS {ENDLESS.format(VALUES)}",
     f"CREATE VIEW Trials ({NAMES}) AS SELECT {VALUES} FROM (SELECT 1 AS i)",
     f"CREATE VIRTUAL TABLE trials USING fts5 ({NAMES})"],
)  # fmt: skip
def test_a_view_or_virtual_table_of_trials_is_refused_unread(tmp_path, opened, statement):
    path = tmp_path / "theirs.sqlite"
    execute(path, statement)
    with pytest.raises(BadInput, match="no plain table of trials"):
        opened(path)


def test_triggers_are_not_run(file):
    execute(file, "CREATE TRIGGER t AFTER INSERT ON trials BEGIN DELETE FROM trials; END")
    with pytest.raises(BadInput, match=r"triggers.*`import .*--store another\.sqlite`"):
        Store(file)
    assert seeds(file) == [0, 1, 2]


def test_columns_that_compute_are_not_read(tmp_path):
    path = tmp_path / "theirs.sqlite"
    columns = NAMES.replace("curve", "curve AS (hex(zeroblob(100000000)))")
    execute(path, f"CREATE TABLE trials ({columns})")
    with pytest.raises(BadInput, match="other columns in its trials"):
        Archive(path)


@pytest.mark.parametrize("table", ["failures", "claims"])
def test_a_foreign_table_of_failures_or_claims_is_one_sentence_and_trials_are_saved(
    file, tmp_path, table
):
    execute(file, f"DROP TABLE {table}", f"CREATE TABLE {table} (mine)")
    saving = rf"other columns in its {table}.*`import .*--store another\.sqlite` saves the trials"
    with pytest.raises(BadInput, match=saving):
        Store(file)
    with Archive(file) as store, pytest.raises(BadInput, match=saving):
        getattr(store, {"failures": "failures", "claims": "claimed"}[table])()
    with Store(tmp_path / "another.sqlite") as another:
        assert another.merge(file) == (3, 3)


def test_failures_and_claims_that_make_no_sense_are_left_out(file):
    odd = "(key, seed, protocol, {}) VALUES (x'00', 'five', 7, {})"
    execute(
        file,
        "INSERT INTO failures " + odd.format("message, details", "x'ff', 7"),
        "INSERT INTO claims " + odd.format("owner, host, pid, renewed", "1, 2, 1e300, 'now'"),
    )
    with Archive(file) as store:
        assert store.failures() == {}
        assert store.claimed() == set()
        assert len(store.left_out) == 2


def test_no_more_rows_are_read_than_are_told(file, capsys, monkeypatch):
    monkeypatch.setattr(archive, "MOST_ROWS", 2)
    with Archive(file) as store:
        assert [found.seed for found in store.everything()] == [0, 1]
        store.left_out.tell()
    assert "2 of its trials are read, no more" in capsys.readouterr().err


def test_an_imported_row_that_is_not_understood_reaches_no_later_command(tmp_path, capsys):
    newer = {**TOLD, "setting": TOLD["setting"].replace('"rule"', '"newer": 1, "rule"')}
    other = as_store(tmp_path / "other.sqlite", newer, trial(1).row())
    with Store(tmp_path / "ours.sqlite") as store:
        assert store.merge(other) == (1, 1)
        store.left_out.tell()
    assert "other.sqlite: 1 entry not understood" in capsys.readouterr().err
    with Archive(tmp_path / "ours.sqlite") as store:
        assert [found.seed for found in store.everything()] == [1]
        assert len(store.left_out) == 0


# ---- damaged ------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """A store of 200 trials with garbage in its middle."""
    path = tmp_path / "damaged.sqlite"
    curve = [(i, 0.5, 1.0) for i in range(10, 500, 10)]
    with Store(path) as store:
        store.add(*(trial(s, result=replace(RESULT, curve=curve)) for s in range(200)))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    return path


def test_a_store_damaged_in_the_middle_is_one_sentence_with_the_way_to_save_it(damaged):
    for opened in (Archive, Store):
        with (
            opened(damaged) as store,
            pytest.raises(BadInput, match=r"is damaged .*`import .*damaged\.sqlite --store"),
        ):
            list(store.everything())


def test_what_can_be_read_on_both_sides_of_the_damage_is_saved(damaged, tmp_path, capsys):
    with Store(tmp_path / "another.sqlite") as another:
        found, added = another.merge(damaged)
        assert found == added >= 190
        assert {0, 199} <= {one.seed for one in another.find(SETTING)}
        another.left_out.tell()
    assert "malformed" in capsys.readouterr().err


@pytest.mark.parametrize("opened", [Archive, Store])
@pytest.mark.parametrize("garbage", [b"CREAT\xff", b"CREATX", b"C\x00EATE"])
def test_a_store_whose_schema_is_garbage_is_one_sentence(file, opened, garbage):
    file.write_bytes(file.read_bytes().replace(b"CREATE", garbage, 1))
    with pytest.raises(BadInput, match=r"trials\.sqlite.*malformed.*another file"):
        opened(file)
