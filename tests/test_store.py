"""Finished trials: written once, read back whole, told apart, and never mixed with other files."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from fltrust_repro import sweep
from fltrust_repro import trials as module
from fltrust_repro.aggregation import rules
from fltrust_repro.archive import CLAIM_SECONDS, SCHEMA, Archive, Failure
from fltrust_repro.checkpoints import Checkpoints
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import Cell
from fltrust_repro.files import write_text
from fltrust_repro.plugins import load_plugin
from fltrust_repro.processes import Machine
from fltrust_repro.progress import Watch
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.training import TrialResult
from fltrust_repro.trial_files import read_csv, write_csv
from fltrust_repro.trials import Trial, TrialName, protocol_of

SETTING = Setting(dataset="digits", rule="krum", attack="krum", iterations=20, epsilon=0.1)
RESULT = TrialResult(
    error_rate=1 / 3,
    lowest_error_rate=0.1 + 0.2,
    iterations=20,
    diverged=True,
    seconds=1.25,
    curve=[(10, 0.5, math.nan), (20, 1 / 3, 0.123456789)],
    empty_workers=3,
    notes={"attacked iterations": 20, "lambda not found": 2},
)


def trial(seed: int = 0, setting: Setting = SETTING, **changes) -> Trial:
    finished = Trial(
        setting, seed, RESULT, "cpu", 'python 3.11, "x"', "2020-01-01", protocol_of(setting)
    )
    return replace(finished, **changes)


def assert_same(found: Trial, written: Trial) -> None:
    """Equal in every field, where NaN equals NaN and a loss has five digits."""
    assert found.setting == written.setting
    found_fields, written_fields = asdict(found), asdict(written)
    found_curve, curve = (f["result"].pop("curve") for f in (found_fields, written_fields))
    assert found_fields == written_fields
    assert found.result.diverged is written.result.diverged
    assert [point[:2] for point in found_curve] == [point[:2] for point in curve]
    losses = [point[2] for point in curve]
    assert [point[2] for point in found_curve] == pytest.approx(losses, rel=1e-4, nan_ok=True)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "trials.sqlite"


def test_every_field_survives_the_store(file):
    with Store(file) as store:
        assert store.add(trial())
    with Store(file) as store:
        (found,) = store.find(SETTING, [0])
    assert_same(found, trial())


def test_a_finished_trial_is_never_replaced(file):
    with Store(file) as store:
        assert store.add(trial())
        assert not store.add(trial(result=replace(RESULT, error_rate=0.9)))
        (found,) = store.find(SETTING, [0])
    assert found.result.error_rate == 1 / 3


def test_a_trial_is_there_for_other_connections_as_soon_as_it_is_added(file):
    with Store(file) as store:
        store.add(trial())
        other = sqlite3.connect(file)
        assert other.execute("SELECT seed FROM trials").fetchall() == [(0,)]
        other.close()


def test_find_gives_the_wanted_seeds_of_the_wanted_setting_in_order(file):
    other = replace(SETTING, epsilon=0.2)
    with Store(file) as store:
        for seed in (5, 0, 2, 9):
            store.add(trial(seed))
        store.add(trial(1, other))
        assert [t.seed for t in store.find(SETTING, [9, 0, 1, 5])] == [0, 5, 9]
        assert [t.seed for t in store.find(other, range(10))] == [1]
        assert [t.seed for t in store.find(SETTING)] == [0, 2, 5, 9]


def test_trials_of_another_protocol_version_do_not_count(file, monkeypatch):
    with Store(file) as store:
        store.add(trial())
        monkeypatch.setattr(module, "PROTOCOL", module.PROTOCOL + 1)
        assert store.find(SETTING, [0]) == []
        assert store.add(trial())
        assert len(store.find(SETTING, [0])) == 1


RULE = '''
from fltrust_repro.aggregation import rule

@rule("first-of-all")
def first_of_all(updates):
    """The first worker's update{}."""
    return updates[0]
'''


@pytest.fixture
def plugin(tmp_path):
    """Write and load a rule's source, in place of what the same file registered before."""
    path = tmp_path / "my_rule.py"

    def load(source: str):
        rules.remove("first-of-all")
        path.write_text(source)
        load_plugin(path)
        return path

    yield load
    rules.remove("first-of-all")


def test_an_edited_plugin_does_not_answer_with_the_trials_of_its_old_source(plugin, file):
    plugin(RULE.format(""))
    setting = replace(SETTING, rule="first-of-all")
    before = protocol_of(setting)
    with Store(file) as store:
        store.add(trial(setting=setting))
        assert len(store.find(setting, [0])) == 1
        plugin(RULE.format(", edited"))
        assert store.find(setting, [0]) == []
    assert protocol_of(setting) != before
    assert protocol_of(SETTING) == str(module.PROTOCOL)


def test_a_trial_is_filed_under_the_plugin_source_that_ran_not_the_one_edited_meanwhile(plugin):
    path = plugin(RULE.format(""))
    setting = replace(SETTING, rule="first-of-all")
    before = protocol_of(setting)
    path.write_text(RULE.format(", edited while trials run"))
    assert protocol_of(setting) == before


def refused(path) -> str:
    with pytest.raises(BadInput) as error:
        Store(path)
    message = str(error.value)
    assert str(path) in message
    assert "--store" in message
    return message


def test_a_folder_is_refused_as_store(tmp_path):
    refused(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "trials.sqlite")


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(file):
    file.write_text("my thesis\n" * 1000)
    refused(file)
    assert file.read_text() == "my thesis\n" * 1000


def test_a_damaged_store_is_refused_and_left_as_it_is(file):
    with Store(file) as store:
        for seed in range(100):
            store.add(trial(seed))
    damaged = file.read_bytes()[:100] + b"\xff" * 3000
    file.write_bytes(damaged)
    refused(file)
    assert file.read_bytes() == damaged


def test_a_database_with_other_columns_is_refused_and_left_as_it_is(file):
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE trials (key, seed, protocol, mine)")
    connection.execute("INSERT INTO trials VALUES (1, 2, 3, 4)")
    connection.commit()
    connection.close()
    before = file.read_bytes()
    assert "columns" in refused(file)
    assert file.read_bytes() == before


def test_a_store_that_cannot_be_written_is_refused_before_any_training(file, monkeypatch):
    Store(file).close()
    connect = sqlite3.connect  # root may write anywhere, so the file is opened read-only
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **_: connect(f"file:{path}?mode=ro", uri=True)
    )
    assert "readonly" in refused(file)


def test_a_full_disk_is_one_sentence_and_what_was_finished_stays(file):
    with Store(file) as store:
        store.add(trial())
        store._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(BadInput, match=r"could not be written .*same command again"):
            for seed in range(1, 100):
                store.add(trial(seed))
        assert_same(store.find(SETTING, [0])[0], trial())


def test_a_machine_that_calls_itself_in_two_lines_takes_one(tmp_path, file):
    told = trial(versions="python 3.11,\n CPU\tof mine\x1b[2J")
    write_csv(tmp_path / "t.csv", [told])
    with Store(file) as store:
        store.add(told)
        (stored,) = store.find(SETTING)
    (read,) = read_csv(tmp_path / "t.csv")
    assert read.versions == stored.versions == r"python 3.11, CPU of mine\x1b[2J"


def test_a_text_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results" / "table.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \udcff")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_text_file_and_its_name_reach_the_disk_before_the_write_is_done(tmp_path, monkeypatch):
    done, sync, replace_ = [], os.fsync, Path.replace

    def synced(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        done.append((kind, (tmp_path / "table.md").exists()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", lambda *a: done.append("renamed") or replace_(*a))
    write_text(tmp_path / "table.md", "text")
    assert done == [("file", False), "renamed", ("folder", True)]


def test_a_folder_for_results_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be written .*--out"):
        write_text(tmp_path / "file" / "table.md", "text")


def test_a_store_and_a_csv_file_from_before_notes_are_read(tmp_path):
    file, table = tmp_path / "s.sqlite", tmp_path / "t.csv"
    with Store(file) as store:
        store.add(trial(1))
    write_csv(table, [trial(1)])
    with sqlite3.connect(file) as connection:
        connection.execute("ALTER TABLE trials DROP COLUMN notes")
    with Archive(file) as store:
        assert [found.result.notes for found in store.find(trial(1).setting)] == [{}]
    lines = pd.read_csv(table).drop(columns="notes")
    lines.to_csv(table, index=False)
    with Store(file) as store:
        (found,) = store.find(trial(1).setting)
        assert found.result.notes == {}
        assert store.add(trial(2))
    assert read_csv(table)[0].result.notes == {}


def test_trials_of_a_plugin_that_is_not_loaded_are_passed_over(tmp_path, monkeypatch):
    with monkeypatch.context() as loaded:
        loaded.setattr(rules, "_entries", {**rules, "their-rule": rules["mean"]})
        theirs = trial(0, replace(SETTING, rule="their-rule", attack="none"))
        write_csv(tmp_path / "t.csv", [theirs, trial(1)])
        with Store(tmp_path / "s.sqlite") as store:
            store.add(theirs)
            store.add(trial(1))
            assert len(list(store.everything())) == 2
    assert [found.seed for found in read_csv(tmp_path / "t.csv")] == [1]
    with Store(tmp_path / "s.sqlite") as store:
        assert [found.seed for found in store.everything()] == [1]


# ---- who runs what ------------------------------------------------------------------------------

NAME = TrialName.of(SETTING, 0)


def test_a_trial_that_another_command_has_claimed_is_not_to_be_had(file):
    with Store(file) as ours, Store(file) as theirs:
        assert ours.claim(NAME)
        assert ours.claim(NAME)  # for a second attempt
        assert not theirs.claim(NAME)
        assert theirs.claimed() == {NAME}
        assert theirs.claim(TrialName.of(SETTING, 1))


def test_a_claim_ends_with_the_trial_with_its_failure_and_with_the_command(file):
    names = [TrialName.of(SETTING, seed) for seed in range(3)]
    with Store(file) as theirs:
        with Store(file) as ours:
            assert all(ours.claim(name) for name in names)
            ours.add(trial(0))
            ours.add_failure(Failure(names[1], "it broke", ""))
            assert theirs.claimed() == {names[2]}
        assert theirs.claimed() == set()
        assert [theirs.claim(name) for name in names] == [False, True, True]


def test_the_claim_of_a_command_that_was_killed_is_void_at_once(file):
    lines = (
        "import os, sys; from fltrust_repro.store import Store; "
        "from fltrust_repro.trials import TrialName; "
        "assert Store(sys.argv[1]).claim(TrialName(*eval(sys.argv[2]))); os._exit(9)"
    )
    killed = subprocess.run([sys.executable, "-c", lines, file, str(tuple(NAME))], check=False)
    assert killed.returncode == 9
    with Store(file) as store:
        count = store._connection.execute("SELECT count(*) FROM claims").fetchone()
        assert count == (1,)
        assert store.claimed() == set()
        assert store.claim(NAME)


def test_a_claim_from_another_machine_is_void_when_it_was_not_renewed_for_long(file, monkeypatch):
    with Store(file) as theirs, Store(file) as ours:
        theirs._host, theirs._pid = "elsewhere", -1
        assert theirs.claim(NAME)
        assert not ours.claim(NAME)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + CLAIM_SECONDS - 1)
        theirs.renew_claims()
        monkeypatch.setattr(time, "time", lambda: now + CLAIM_SECONDS + 1)
        assert not ours.claim(NAME)
        monkeypatch.setattr(time, "time", lambda: now + 3 * CLAIM_SECONDS)
        assert ours.claim(NAME)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_claim_is_void_when_the_clock_was_set_back_or_forth_since(file, monkeypatch, hours):
    with Store(file) as theirs, Store(file) as ours:
        theirs._host = "elsewhere"
        assert theirs.claim(NAME)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3600 * hours)
        assert ours.claimed() == set()
        assert ours.claim(NAME)


def test_a_claim_does_not_pass_to_another_process_of_the_same_number(file):
    # Runs, but is not the process that began when the owner did.
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with other, Store(file) as theirs, Store(file) as ours:
        theirs._pid = other.pid
        assert theirs.claim(NAME)
        assert ours.claimed() == set()
        assert ours.claim(NAME)


def test_the_owners_of_claims_are_told(file):
    with Store(file) as theirs, Store(file) as ours:
        assert theirs.claim(NAME)
        other = TrialName.of(SETTING, 1)
        assert ours.owners([NAME, other]) == [f"process {os.getpid()} on {socket.gethostname()}"]
        assert ours.owners([other]) == []


class OneProcess:
    """An executor that is never asked to run anything."""

    device = "cpu"

    def slots(self) -> int:
        """Trials that it would run at a time."""
        return 1

    def iterations(self) -> int:
        """Iterations done so far."""
        return 0


def test_a_command_that_waits_for_another_says_so_once(file, monkeypatch):
    monkeypatch.setattr(sweep, "_RENEW_SECONDS", 0)
    monkeypatch.setattr(sweep, "_WAKE_SECONDS", 0)
    text = io.StringIO()
    cells = [Cell("krum", "full", SETTING, None)]
    with Store(file) as theirs, Store(file) as ours:
        theirs._host, theirs._pid = "elsewhere", 77
        assert theirs.claim(NAME)
        renew, rounds = ours.renew_claims, itertools.count()

        def renewed() -> None:
            renew()
            if next(rounds) == 4:
                theirs.add(trial(0))

        monkeypatch.setattr(ours, "renew_claims", renewed)
        with Watch(cells, {}, 1, 20, Console(file=text)) as watch:
            none = Checkpoints(ours.path, 0)
            run = sweep.Run([sweep.Task(SETTING, 0)], OneProcess(), ours, Machine(), watch, none)
            assert run.to_the_end() == (0, [])
    assert text.getvalue().count("waiting for") == 1
    assert "waiting for 1 trial of process 77 on elsewhere" in text.getvalue()


@pytest.mark.parametrize("how", ["deleted", "folder", "replaced", "moved"])
def test_a_store_that_vanishes_is_noticed_at_the_next_write_and_its_trials_are_saved(
    file, tmp_path, monkeypatch, how
):
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    folder = tmp_path / "folder"
    path = folder / "trials.sqlite"
    with Store(path) as store:
        store.add(trial(0))
        if how == "deleted":
            for one in folder.iterdir():
                one.unlink()
        elif how == "folder":
            shutil.rmtree(folder)
        elif how == "replaced":
            Store(folder / "other.sqlite").close()
            (folder / "other.sqlite").replace(path)
        else:
            path.rename(folder / "moved.sqlite")
        with pytest.raises(
            BadInput, match=r"no longer where .* were written to .*rescued"
        ) as error:
            store.add(trial(1))
    (saved,) = (elsewhere if how == "folder" else folder).glob("*.rescued-*.sqlite")
    assert str(saved) in str(error.value)
    with Store(saved) as store:
        assert [found.seed for found in store.find(SETTING)] == [0, 1]
    if how == "replaced":
        with Store(path) as store:
            assert list(store.everything()) == []


def test_a_failure_is_kept_until_the_trial_is_finished(file):
    with Store(file) as store:
        store.add_failure(Failure(NAME, "first", "Traceback ..."))
        store.add_failure(Failure(NAME, "second", ""))
        assert store.failures() == {NAME: Failure(NAME, "second", "")}
        assert not store.has(NAME)
        store.add(trial())
        assert store.failures() == {}


# ---- other stores, and older ones ---------------------------------------------------------------


def test_a_merged_store_brings_what_is_new_and_is_left_as_it_is(tmp_path, file):
    other = tmp_path / "other.sqlite"
    with Store(other) as theirs:
        theirs.add(trial(0, result=replace(RESULT, error_rate=0.9)), trial(7))
    before = other.read_bytes()
    with Store(file) as store:
        store.add(trial(0))
        assert store.merge(other) == (2, 1)
        assert store.merge(other) == (2, 0)
        found = store.find(SETTING)
    assert [(t.seed, t.result.error_rate) for t in found] == [(0, 1 / 3), (7, 1 / 3)]
    assert other.read_bytes() == before


def test_a_file_that_is_no_store_is_not_merged(tmp_path, file):
    other = tmp_path / "thesis.sqlite"
    other.write_text("my thesis\n" * 1000)
    with Store(file) as store, pytest.raises(BadInput, match=r"thesis.sqlite.*not a store"):
        store.merge(other)


def test_a_store_of_a_newer_version_is_refused_and_left_as_it_is(file):
    Store(file).close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    before = file.read_bytes()
    assert "newer" in refused(file)
    assert file.read_bytes() == before


def test_a_store_from_before_there_was_a_version_is_taken_over(file):
    with Store(file) as store:
        store.add(trial())
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TABLE claims")
        connection.execute("DROP TABLE failures")
        connection.execute("PRAGMA user_version = 0")
    with Store(file) as store:
        assert store.claim(TrialName.of(SETTING, 1))
        assert_same(store.find(SETTING)[0], trial())


def test_all_of_several_trials_are_added_or_none(file):
    broken = replace(trial(1), device=None)  # refused by the table
    with Store(file) as store:
        with pytest.raises(BadInput, match="could not be written"):
            store.add(trial(0), broken)
        assert list(store.everything()) == []
        assert store.add(trial(0), trial(1)) == {trial(0).name, trial(1).name}
