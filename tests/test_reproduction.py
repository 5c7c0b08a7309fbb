"""What `reproduce` does to the files of a results folder, which hold other trials too."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from invoked import ended
from test_store import trial

from fltrust_repro import experiments, files, processes, sweep
from fltrust_repro.aggregation import rules
from fltrust_repro.errors import DataUnavailable
from fltrust_repro.experiments import load_experiment
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.trial_files import read_csv, write_csv

ONE = """title = "One"
[setting]
dataset = "digits"
workers = 10
compromised = 2
iterations = 20
[rows]
median = { rule = "median" }
[columns]
plain = { attack = "none" }
"""
SETTING = Setting(dataset="digits", rule="median", workers=10, compromised=2, iterations=20)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An experiment whose trials are in the store, and a folder of results."""
    (tmp_path / "one.toml").write_text(ONE)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "published", lambda: tmp_path / "published")
    assert load_experiment("one.toml").settings == (SETTING,)
    with Store("trials.sqlite") as store:
        store.add(trial(0, SETTING), trial(1, SETTING))

    def refuse(*_, **__):
        raise AssertionError("a worker process was started")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", refuse)
    return tmp_path


@pytest.fixture
def call(capsys):
    return partial(ended, capsys)


def reproduce(call, *more: str) -> tuple[int, str, str]:
    return call("reproduce", "one.toml", "--trials", 2, "--seed", 0, "--out", "out", *more)


@pytest.fixture
def others(folder, monkeypatch):
    """A file of the experiment's name with trials that are none of its own."""
    own = folder / "out" / "one.trials.csv"
    with monkeypatch.context() as loaded:
        loaded.setattr(rules, "_entries", {**rules, "theirs": rules["mean"]})
        write_csv(
            own,
            [
                trial(0, replace(SETTING, iterations=30)),  # of a namesake
                trial(0, SETTING, protocol="0"),
                trial(0, replace(SETTING, rule="theirs")),  # of a plug-in
                trial(5, SETTING),
            ],
        )
    newer = own.read_bytes().splitlines(keepends=True)[-1].replace(b'""rule""', b'""new""', 1)
    own.write_bytes(own.read_bytes() + newer + b"<<<<<<< not even a line, \xff\n")
    return own


def test_what_a_file_held_stays_byte_for_byte_and_ours_is_added(call, others):
    before = others.read_bytes()
    code, _, err = reproduce(call)
    assert code == 0, err
    after = others.read_bytes()
    assert after.startswith(before)
    added = after[len(before) :].splitlines()
    assert len(added) == 2
    assert err.count("Note: out") == 2
    assert "2 entries not understood, left alone" in err
    assert "line 6: " in err
    assert "line 7: " in err
    assert "1 trial left out, of plug-ins that are not loaded" in err
    assert reproduce(call)[0] == 0
    assert others.read_bytes() == after


def test_a_namesake_does_not_take_the_trials_of_the_experiment_before(call, folder):
    assert reproduce(call)[0] == 0
    own = folder / "out" / "one.trials.csv"
    before = own.read_bytes()
    (folder / "one.toml").write_text(ONE.replace("iterations = 20", "iterations = 40"))
    later = replace(SETTING, iterations=40)
    with Store("fresh.sqlite") as store:
        store.add(trial(0, later), trial(1, later))
    assert reproduce(call, "--store", "fresh.sqlite")[0] == 0
    assert own.read_bytes().startswith(before)
    assert {(found.setting, found.seed) for found in read_csv(own)} == {
        (setting, seed) for setting in (SETTING, later) for seed in (0, 1)
    }


def test_a_line_that_is_not_understood_does_not_keep_a_good_trial_out_of_the_files(call, folder):
    path = folder / "out" / "other.trials.csv"
    write_csv(path, [trial(0, SETTING), trial(1, SETTING)])
    path.write_text(path.read_text().replace("0.3333333333333333,", "7.5,", 1))
    assert reproduce(call)[0] == 0
    assert [found.seed for found in read_csv(folder / "out" / "one.trials.csv")] == [0]


def test_several_experiments_tell_once_what_is_not_understood(call, folder):
    (folder / "two.toml").write_text(ONE.replace("One", "Two"))
    (folder / "out" / "other.trials.csv").write_bytes(b"\xff\xfe\x00my thesis")
    code, _, err = reproduce(call, "two.toml")
    assert code == 0, err
    assert err.count("other.trials.csv: 1 entry not understood") == 1


@pytest.mark.parametrize("content", [b"my thesis\n" * 9, "key,seed\n1,2\n".encode("utf-16")])
def test_an_own_file_that_is_none_of_trials_is_refused_before_any_work(call, folder, content):
    own = folder / "out" / "one.trials.csv"
    own.write_bytes(content)
    code, out, err = reproduce(call, "--store", "fresh.sqlite")
    assert code == 2
    assert out == ""
    assert "one.trials.csv is no file of trials" in err
    assert "move it away" in err
    assert own.read_bytes() == content


def test_a_folder_of_the_name_of_a_file_of_trials(call, folder):
    (folder / "out" / "other.trials.csv").mkdir()
    assert reproduce(call)[0] == 0
    code, out, _ = call("status", "one.toml", "--trials", 2, "--seed", 0, "--out", "out")
    assert code == 0
    assert "2, 0.333" in out
    (folder / "out" / "one.trials.csv").unlink()
    (folder / "out" / "one.trials.csv").mkdir()
    code, _, err = reproduce(call, "--store", "fresh.sqlite")
    assert code == 2
    assert "one.trials.csv cannot be read" in err


# ---- what is published --------------------------------------------------------------------------


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def published(folder):
    """Two published trials, with seeds from 10 on, in a file of another name."""
    theirs = [trial(seed, SETTING, device="theirs") for seed in (10, 11)]
    write_csv(folder / "published" / "table.trials.csv", theirs)
    return folder / "published"


def test_published_trials_are_read_and_neither_copied_nor_run(call, folder, published):
    before = contents(published)
    code, out, err = call("reproduce", "one.toml", "--trials", 2, "--store", "fresh.sqlite")
    assert code == 0, err
    assert err.startswith("one: 2 trials at hand, 2 of them published, 0 to run\n")
    assert out.splitlines()[-1] == "Wrote results/one.md, .csv, .json, .png, .svg"
    assert "theirs" in (folder / "results" / "one.md").read_text()
    assert contents(published) == before
    assert not (folder / "results" / "one.trials.csv").exists()
    with Store("fresh.sqlite") as store:
        assert list(store.everything()) == []
    code, out, err = call("status", "one.toml", "--trials", 2)
    assert "2, 0.333" in out
    assert "theirs" in call("show", "one.toml", "median", "plain", "--seed", 11)[1]


def test_a_trial_published_twice_is_not_taken_for_news(call, folder, published):
    write_csv(published / "zoo.trials.csv", [trial(11, SETTING, device="others")])
    code, _, err = call("reproduce", "one.toml", "--trials", 2, "--store", "fresh.sqlite")
    assert code == 0, err
    assert not (folder / "results" / "one.trials.csv").exists()
    assert "others" not in (folder / "results" / "one.md").read_text()


def test_a_fresh_run_reads_no_published_trial(call, published):
    with pytest.raises(AssertionError, match="a worker process was started"):
        call("reproduce", "one.toml", "--trials", 2, "--fresh")
    code, out, err = call("reproduce", "one.toml", "--fresh", "--out", published)
    assert (code, out) == (2, "")
    assert "holds what is published" in err


def test_ones_own_trials_go_before_published_ones_and_are_kept_in_out(call, folder, published):
    with Store("trials.sqlite") as store:
        store.add(trial(10, SETTING, device="ours"), trial(11, SETTING, device="ours"))
    code, out, err = call("reproduce", "one.toml", "--trials", 2)
    assert code == 0
    assert err.startswith("one: 2 trials at hand, 0 to run\n")
    assert out.splitlines()[-1] == "Wrote results/one.md, .csv, .json, .png, .svg, .trials.csv"
    for _ in range(2):
        page = (folder / "results" / "one.md").read_text()
        assert ", ours" in page
        assert "theirs" not in page
        call("reproduce", "one.toml", "--trials", 2, "--store", "fresh.sqlite")
    assert len(read_csv(folder / "results" / "one.trials.csv")) == 2 + 2  # and seeds 0 and 1


def test_the_published_folder_is_written_where_out_names_it(call, published):
    assert reproduce(call, "--out", published)[0] == 0
    assert [found.seed for found in read_csv(published / "one.trials.csv")] == [0, 1]


def test_a_page_is_not_replaced_by_one_of_fewer_trials(call, folder):
    assert reproduce(call)[0] == 0
    before = contents(folder / "out")
    code, out, _ = call("reproduce", "one.toml", "--trials", 1, "--seed", 0, "--out", "out")
    assert code == 0
    assert "1 trial, seed 0" in out
    assert "out/one.md stays as it is: it is made of 2 trials, this table of 1." in out
    assert "Wrote" not in out
    assert contents(folder / "out") == before
    (folder / "out" / "one.csv").write_text("no table at all")
    assert "Wrote" in call("reproduce", "one.toml", "--trials", 1, "--seed", 0, "--out", "out")[1]


def test_what_is_to_run_is_told_of_every_table_before_the_first_one_starts(
    call, folder, published, capsys
):
    two = ONE.replace("One", "Two").replace("iterations = 20", "iterations = 40")
    (folder / "two.toml").write_text("seconds = 1200\n" + two)
    with pytest.raises(AssertionError, match="a worker process was started"):
        call("reproduce", "one.toml", "two.toml", "--trials", 12)
    one, two = capsys.readouterr().err.splitlines()[:2]
    told = "one: 2 trials at hand, 2 of them published, 10 to run, of 1 setting, about "
    assert one.startswith(told)  # what the two published ones took
    assert one.endswith(" of a core")
    assert two == "two: 0 trials at hand, 12 to run, of 1 setting, about 4 h of a core"


def test_trials_at_hand_are_shown_though_the_data_for_more_are_missing(
    call, folder, published, monkeypatch
):
    def missing(*_, **__):
        raise DataUnavailable("digits is not at hand.")

    monkeypatch.setattr(sweep, "run_missing", missing)
    code, out, err = call("reproduce", "one.toml", "--trials", 5)
    assert code == 1
    assert "One. Testing error rate" in out
    assert "not run: digits is not at hand." in err
    assert err.endswith("Not run for want of data: one.\n")


def test_what_two_commands_add_to_a_folder_at_once_is_all_kept(tmp_path):
    """The second waits until the first has read and written."""
    order = []

    def second():
        with files.locked(tmp_path / "out"):
            order.append("second")

    with files.locked(tmp_path / "out"):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.3)
        order.append("first")
    other.join(30)
    assert order == ["first", "second"]
