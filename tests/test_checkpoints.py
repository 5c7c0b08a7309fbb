"""Trials that survive: broken off wherever, they go on and end with the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sweep import assert_nothing_left_of, processes_of
from test_training import need

import fltrust_repro as fl
from fltrust_repro import checkpoints as module
from fltrust_repro import machine, trial_process
from fltrust_repro.checkpoints import Checkpoints
from fltrust_repro.errors import BadInput, Raised
from fltrust_repro.processes import Executor
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.training import Snapshot, run_trial
from fltrust_repro.trials import Trial, TrialName

ALWAYS = 1e-9  # minutes: after each iteration
LR = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 24}
CNN = {**LR, "dataset": "breast-cancer", "model": "cnn", "iterations": 14}
RESNET20 = {
    "dataset": "digits", "model": "resnet20", "workers": 5, "compromised": 1, "iterations": 12
}  # fmt: skip
FULL = {"rule": "trimmed-mean", "attack": "trimmed-mean"}
PARTIAL = {"rule": "median", "attack": "trimmed-mean", "knowledge": "partial"}
KRUM = {"rule": "krum", "attack": "krum"}
KINDS: dict[str, dict] = {
    "krum attack": {**LR, **KRUM},
    "partial knowledge": {**LR, **PARTIAL},
    "krum attack, partial": {**LR, **KRUM, "knowledge": "partial"},
    "gaussian": {**LR, "rule": "bulyan", "compromised": 3, "attack": "gaussian"},
    "dealt each iteration": {**LR, **PARTIAL, "dealing": "each-iteration"},
    "dealt shared": {**LR, **FULL, "dealing": "shared"},
    "some selected": {**LR, **PARTIAL, "selected": 8, "poisoned_fraction": 0.5},
    "a defense with ties": {**LR, **KRUM, "defense": "union"},
    "several rounds": {**LR, **FULL, "rounds": 2},
    "the server's own examples": {**LR, "rule": "fltrust", "root_size": 40, "attack": "krum"},
    "momentum, some selected": {**LR, **PARTIAL, "selected": 8, "momentum": 0.9},
    "histories, some selected": {
        **LR,
        "rule": "foolsgold",
        "attack": "krum",
        "selected": 8,
        "defense": "lfr",
    },
    "a centre, some selected": {
        **LR,
        "rule": "centered-clipping",
        "attack": "krum",
        "selected": 8,
        "defense": "err",
    },
    "a memory behind another step": {
        **LR,
        "pre": "nnm+clip",
        "rule": "centered-clipping",
        "attack": "trimmed-mean",
    },
    "histories behind another step, dealt anew": {
        **LR,
        "pre": "clip",
        "rule": "foolsgold",
        "defense": "union",
        "dealing": "each-iteration",
    },
    "cnn": {**CNN, **PARTIAL},
    "cnn, krum, defense": {**CNN, **KRUM, "defense": "err"},
    "dealt sorted, dropout": {**RESNET20, **FULL, "model": "bucketing-cnn", "dealing": "sorted"},
    "batch normalisation": {**RESNET20, **FULL},
    "batch normalisation, rounds": {**RESNET20, **FULL, "rounds": 2, "iterations": 4},
}
SMALL = Setting.from_dict(KINDS["krum attack"])
NAME = TrialName.of(SMALL, 3)


class Broken(Exception):
    """What breaks a trial off."""


@pytest.fixture
def beside(tmp_path):
    """Checkpoints after each iteration, beside a file that might be a store."""
    (tmp_path / "trials.sqlite").touch()
    yield Checkpoints(tmp_path / "trials.sqlite", ALWAYS)
    trial_process.prepare(0, lambda: None)


def run(
    setting: Setting, kept: Checkpoints | None, stop: int | None = None, seed: int = 3
) -> tuple[object, int]:
    """Run a trial, or break it off in iteration `stop` of those it does; and how many these are."""
    done = 0

    def after_iteration() -> None:
        nonlocal done
        done += 1
        if done == stop:
            raise Broken

    trial_process.prepare(0, after_iteration)
    return trial_process.run(setting, seed, "1", "cpu", None, (), kept), done


def numbers(trial: object) -> dict:
    """All that a trial's seed decides."""
    assert isinstance(trial, Trial), trial
    left_out = ("seconds", "finished")
    return {name: value for name, value in trial.row().items() if name not in left_out}


def file_of(kept: Checkpoints) -> Path:
    [file] = kept.folder.iterdir()
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.long] * (KINDS[kind].get("model") == "resnet20"))
        for kind in KINDS
    ],
)
def test_a_trial_broken_off_again_and_again_ends_with_the_same_bits(kind, beside):
    setting, rng = Setting.from_dict(KINDS[kind]), random.Random(kind)
    whole, left = run(setting, None)
    while left > 1:
        stop = rng.randint(2, max(2, left // 2))
        broken, done = run(setting, beside, stop)
        assert isinstance(broken, Raised)
        assert done == stop
        left -= stop - 1  # the iteration that broke off is done again
    again, done = run(setting, beside)
    assert done == left
    assert numbers(again) == numbers(whole)


def test_the_seconds_of_a_trial_that_went_on_are_the_sum():
    taken: list[Snapshot] = []
    whole = run_trial(SMALL, 0, keep=lambda take: taken.append(take()))
    assert 0 < taken[0].told["seconds"] < taken[-1].told["seconds"] < whole.seconds
    snapshot = taken[14]._replace(told={**taken[14].told, "seconds": 1000.0})
    again = run_trial(SMALL, 0, begun=snapshot)
    assert 1000 < again.seconds < 1100
    assert replace(again, seconds=0) == replace(whole, seconds=0)


def test_a_trial_that_was_done_but_not_stored_is_not_done_again(beside):
    kept = []
    whole = run_trial(SMALL, 0, keep=lambda take: kept.append(take()))
    again = run_trial(SMALL, 0, begun=kept[-1], after_iteration=pytest.fail)
    assert replace(again, seconds=0) == replace(whole, seconds=0)


# ---- whose a checkpoint is ----------------------------------------------------------------------


@pytest.fixture
def broken(beside):
    """Checkpoints, of which that of a trial was broken off in its twentieth iteration."""
    run(SMALL, beside, 20)
    assert file_of(beside).name == f"{NAME.key}-3-1.npz"
    return beside


def said_of(
    kept: Checkpoints, name: TrialName = NAME, device: str = "cpu"
) -> tuple[int, list[str]]:
    """How many iterations a command takes for done, and what it says."""
    said: list[str] = []
    return kept.begun(name, device, said.append), said


def test_a_checkpoint_is_taken_up_by_its_own_trial(broken):
    assert said_of(broken) == (19, [f"setting {NAME.key}, seed 3: goes on after iteration 19."])
    assert run(SMALL, broken)[1] == 24 - 19


@pytest.mark.parametrize("other", ["setting", "seed"])
def test_a_checkpoint_under_another_trials_name_is_not(broken, other):
    setting = replace(SMALL, rule="median") if other == "setting" else SMALL
    name = TrialName(setting.key(), 3 if other == "setting" else 4, "1")
    file_of(broken).rename(broken.folder / f"{name.key}-{name.seed}-1.npz")
    assert said_of(broken, name) == (0, [])
    assert run(setting, broken, seed=name.seed)[1] == 24


@pytest.mark.parametrize("other", ["code", "form"])
def test_a_checkpoint_of_another_program_is_not(broken, other, monkeypatch):
    whole = numbers(run(SMALL, None)[0])
    if other == "code":
        monkeypatch.setattr(module.compiled, "program", lambda: "0123456789abcdef")
    else:
        monkeypatch.setattr(module, "FORM", module.FORM + 1)
    assert said_of(broken) == (0, [])
    again, done = run(SMALL, broken)
    assert done == 24
    assert numbers(again) == whole


def test_its_program_is_all_that_may_move_a_digit():
    files = {file.name for file in module.compiled._sources()}
    assert {"training.py", "leverage.py", "tailored.py", "gradients.cu"} <= files
    seen = module.compiled.program()
    for file, content in module.compiled._sources().items():
        changed = {**module.compiled._sources(), file: content + b" "}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.compiled, "_sources", lambda changed=changed: changed)
            assert module.compiled.program.__wrapped__() != seen


def test_one_of_another_machine_is_and_the_trial_names_all_of_them(broken, monkeypatch):
    whole, here = numbers(run(SMALL, None)[0]), machine.versions()
    told = f"setting {NAME.key}, seed 3: goes on after iteration"
    there = here.replace("numpy 1.", "numpy 0.")
    assert there != here
    monkeypatch.setattr(machine, "versions", lambda gpu: there)
    assert said_of(broken) == (19, [f"{told} 19."])
    assert run(SMALL, broken, 3)[1] == 3
    assert said_of(broken) == (21, [f"{told} 21."])
    monkeypatch.setattr(machine, "versions", lambda gpu: here)
    again, done = run(SMALL, broken)
    assert done == 24 - 21
    places = f"{here}; after iteration 19: {there}; after iteration 21: {here}"
    assert numbers(again) == {**whole, "versions": places}


def test_a_checkpoint_of_the_cpu_is_taken_up_on_a_gpu(broken, monkeypatch):
    monkeypatch.setattr(machine, "gpu_name", lambda gpu: "NVIDIA H200")
    assert said_of(broken, device="gpu")[0] == 19
    kept = broken.of(NAME, 0)
    assert kept.read() is not None
    assert kept.versions.endswith(", NVIDIA H200") and kept.versions.startswith(machine.versions())


def written_anew(file: Path, told: dict | None = None, **arrays: np.ndarray) -> None:
    """Change something in a checkpoint, which stays whole."""
    with np.load(file) as parts:
        content = {**parts, **arrays}
    of, iterations, before, names = json.loads(content["told"].tobytes())
    text = json.dumps([of, iterations, {**before, **(told or {})}, names]).encode()
    np.savez(file, **{**content, "told": np.frombuffer(text, np.uint8)})


@pytest.mark.parametrize(
    "changed",
    [{"w": np.zeros(3, np.float32)}, {"statistics": np.zeros(3, np.float32)},
     {"told": {"curve": None}}, {"told": {"generators": {"attack": 7}}}, {"told": {"notes": 7}},
     {"told": {"seconds": "long"}}],
)  # fmt: skip
def test_one_that_does_not_fit_its_trial_stops_nothing(broken, changed):
    whole = numbers(run(SMALL, None)[0])
    written_anew(file_of(broken), **changed)
    again, done = run(SMALL, broken)
    assert (done, numbers(again)) == (24, whole)


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-1],
    "empty": lambda content: b"",
    "noise": lambda content: random.Random(0).randbytes(len(content)),
    "two bytes": lambda content: content[:1500] + b"\xff\xfe" + content[1502:],
    "an array": lambda content: b"\x93NUMPY\x01\x00v\x00" + content,
    "a pickle": lambda content: b"\x80\x04]\x94.",
    "text": lambda content: b"my thesis\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_in_one_line_and_its_trial_begins_anew(broken, damage):
    whole, file = numbers(run(SMALL, None)[0]), file_of(broken)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    done, [line] = said_of(broken)
    assert done == 0
    assert line == f"Note: {file} is damaged, or no checkpoint: its trial begins anew."
    again, done = run(SMALL, broken)
    assert (done, numbers(again)) == (24, whole)


@given(place=st.integers(0, 10**6), value=st.integers(1, 255))
def test_whatever_byte_is_another_nothing_else_comes_out_of_a_file(tmp_path_factory, place, value):
    kept = Checkpoints(tmp_path_factory.getbasetemp() / "any.sqlite", ALWAYS)
    kept.store.touch()
    one = kept.of(NAME, None)
    arrays = {"w": np.arange(50, dtype=np.float32), "statistics": np.empty(0, np.float32)}
    one.keep(lambda: Snapshot(7, {"notes": {}}, arrays))
    content = bytearray(file_of(kept).read_bytes())
    content[place % len(content)] ^= value
    file_of(kept).write_bytes(content)
    with contextlib.suppress(ValueError):
        found = one.read()
        if found is not None:
            assert found[:2] == (7, {"notes": {}})
            assert [*map(repr, found.arrays.items())] == [*map(repr, arrays.items())]


@pytest.mark.parametrize("lost", [["w"], ["statistics"], ["w", "statistics"]])
def test_an_archive_whose_list_of_contents_lost_arrays_is_damaged(broken, lost):
    file = file_of(broken)
    with np.load(file) as parts:
        np.savez(file, **{name: array for name, array in parts.items() if name not in lost})
    with pytest.raises(ValueError, match="is damaged"):
        broken.of(NAME, None).read()


def test_a_file_that_cannot_be_read_is_told_too(broken):
    file = file_of(broken)
    file.unlink()
    file.mkdir()
    told = f"Note: {file} cannot be read (Is a directory): its trial begins anew."
    assert said_of(broken) == (0, [told])
    assert run(SMALL, broken)[1] == 24


# ---- when and where they are written ------------------------------------------------------------


def test_a_trial_that_ends_within_the_first_interval_writes_nothing(beside):
    run(SMALL, beside._replace(minutes=5))
    assert not beside.folder.exists()


def test_one_is_written_every_so_many_minutes(beside, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    one, taken = beside._replace(minutes=5).of(NAME, None), []

    def take() -> Snapshot:
        taken.append(now)
        return Snapshot(1, {}, {})

    for now in range(0, 1000, 10):  # noqa: B007  (what the clock says)
        one.keep(take)
    assert taken == [300, 600, 900]


def test_with_0_minutes_none_is_taken_up_or_written(broken):
    before = file_of(broken).read_bytes()
    assert said_of(broken._replace(minutes=0)) == (0, [])
    assert run(SMALL, broken._replace(minutes=0))[1] == 24
    assert file_of(broken).read_bytes() == before


def test_where_the_store_is_not_seen_none_is_written(tmp_path):
    elsewhere = Checkpoints(tmp_path / "on" / "another" / "machine.sqlite", ALWAYS)
    assert run(SMALL, elsewhere)[1] == 24
    assert not (tmp_path / "on").exists()


def test_trials_with_code_of_the_users_have_none(beside, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('import fltrust_repro as fl\nfl.rule("mine")(lambda updates: updates[0])\n')
    fl.load_plugin(path)
    assert beside.of(TrialName.of(replace(SMALL, rule="mine"), 0), None) is None
    assert beside.of(TrialName.of(SMALL, 0), None) is not None  # it uses none of them


@pytest.mark.parametrize("problem", ["a file", "read-only"])
def test_a_folder_that_cannot_be_written_is_told_once_and_costs_nothing(tmp_path, capfd, problem):
    store = tmp_path / "trials.sqlite"
    folder = Checkpoints(store, ALWAYS).folder
    if problem == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        (folder / "notes.txt").write_text("")
        folder.chmod(0o555)
    table = fl.run(SMALL, trials=2, jobs=0, store=store, checkpoint_minutes=ALWAYS)
    assert len(table) == 2
    told = capfd.readouterr().err
    assert told.count("cannot be written") == 1
    assert f"Note: {folder} cannot be written, so that no checkpoints are kept." in told


def test_a_disk_that_is_full_costs_no_trial(beside, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise BadInput(f"{path} cannot be written (No space left on device)")

    monkeypatch.setattr(module, "write_bytes", full)
    whole = numbers(run(SMALL, None)[0])
    assert numbers(run(SMALL, beside)[0]) == whole


# ---- a command ----------------------------------------------------------------------------------


def test_a_command_goes_on_from_it_says_so_and_clears_it_away(broken, capfd):
    whole = numbers(run(SMALL, None)[0])
    done = 0

    class Counting(Executor):
        def _count(self) -> None:
            nonlocal done
            done += 1
            super()._count()

    broken.store.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fltrust_repro.sweep.Executor", Counting)
        table = fl.run(SMALL, seed=3, trials=2, jobs=0, store=broken.store)
    told = capfd.readouterr().err
    assert "seed 3: goes on after iteration 19." in told
    assert done == 24 + 24 - 19
    assert table["error_rate"][0] == whole["error_rate"]
    assert not broken.folder.exists()


def test_what_is_left_of_ended_trials_is_cleared_away_and_nothing_else(broken):
    broken.store.unlink()
    fl.run(SMALL, seed=3, jobs=0, store=broken.store)
    broken.folder.mkdir()
    left = [f"{NAME.key}-3-1.npz", f"{NAME.key}-3-1.npzab12.part"]
    others = [f"{NAME.key}-4-1.npz", f"{NAME.key}-33-1.npz", "notes.txt", "a-b-c.npz"]
    for name in (*left, *others):
        (broken.folder / name).write_text("")
    fl.run(SMALL, seed=3, jobs=0, store=broken.store)
    assert sorted(file.name for file in broken.folder.iterdir()) == sorted(others)


@pytest.mark.parametrize("minutes", [-1, float("nan"), float("inf"), "often"])
def test_minutes_that_are_none_are_refused(tmp_path, minutes):
    with pytest.raises(BadInput, match=r"checkpoint_minutes is .* at most 1,000,000, or 0 for"):
        fl.run(SMALL, store=tmp_path / "trials.sqlite", checkpoint_minutes=minutes)


# ---- kill -9 ------------------------------------------------------------------------------------


class Command:
    """A command as a user types it, in a process group of its own, on one store."""

    def __init__(self, store: Path, words: str, jobs: int = 1) -> None:
        self._folder = Checkpoints(store, 0).folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fltrust_repro", "run", *words.split(), "--jobs", str(jobs),
             "--device", "cpu", "--checkpoint-minutes", "0.003", "--store", str(store)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        self.pid = self._process.pid

    def _latest(self) -> list[tuple[str, int]]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for file in self._folder.glob("*.npz"):
                found.append((file.name, file.stat().st_ino))
        return found

    def waits_for_a_checkpoint(self) -> bool:
        """Wait until there is a new one; False where the command has ended before."""
        before = self._latest()
        while self._process.poll() is None:
            if self._latest() not in (before, []):
                return True
            time.sleep(0.005)
        return False

    def stop(self, how: int, pid: int | None = None) -> None:
        """Send it a signal, or to a process of it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid if pid is None else pid, how)

    def ends(self) -> tuple[int, str]:
        """Wait for the exit code and what was said."""
        _, told = self._process.communicate(timeout=600)
        assert_nothing_left_of(self.pid)
        return self._process.returncode, told


def stored(path: Path) -> list[dict]:
    with Store(path) as store:
        assert store.failures() == {}
        return [numbers(trial) for trial in store.everything()]


def ended_by_itself(path: Path, words: str, jobs: int = 1) -> tuple[list[dict], str]:
    code, told = Command(path, words, jobs).ends()
    assert code == 0, told
    assert not Checkpoints(path, 0).folder.exists()
    return stored(path), told


LONG = replace(SMALL, iterations=1500)
WORDS = "--dataset digits --rule krum --attack krum --workers 20 --compromised 4 --iterations 1500"


@pytest.mark.slow
def test_after_ctrl_c_and_kill_9_the_same_command_goes_on_where_the_trial_was(tmp_path):
    path, whole = tmp_path / "trials.sqlite", numbers(run(LONG, None, seed=0)[0])
    while True:  # a machine that is busy elsewhere may not look before the trial has ended
        for jobs, how in enumerate((signal.SIGKILL, signal.SIGINT)):
            command = Command(path, WORDS, jobs)
            if not command.waits_for_a_checkpoint():
                break
            command.stop(how)
            code, told = command.ends()
            if how == signal.SIGINT:
                assert code == 130
                assert re.search(r"How far 1 trial came is kept in .*: the same command", told)
        else:
            break
        path.unlink()
    found, told = ended_by_itself(path, WORDS, jobs=0)
    assert "seed 0: goes on after iteration" in told
    assert found == [whole]


REAL = {
    "partial": "--rule median --attack trimmed-mean --knowledge partial --selected 15",
    "krum": "--rule krum --attack krum --defense union --reading dealing=each-iteration",
}


@pytest.mark.long
@pytest.mark.parametrize("kind", REAL)
def test_a_cnn_killed_at_ten_random_moments_ends_with_the_same_bits(tmp_path, kind):
    need("mnist")
    options = (
        f"--dataset mnist --model cnn --workers 20 --compromised 4 --iterations 60 {REAL[kind]}"
    )
    killed_at_random_moments(tmp_path, options)


@pytest.mark.long
def test_resnet20_killed_at_ten_random_moments_ends_with_the_same_bits(tmp_path):
    need("ch-mnist-8")
    options = "--rule trimmed-mean --attack trimmed-mean --workers 5 --compromised 1"
    killed_at_random_moments(
        tmp_path, f"--dataset ch-mnist-8 --model resnet20 --iterations 40 {options}"
    )


def killed_at_random_moments(folder: Path, words: str) -> None:
    whole, _ = ended_by_itself(folder / "whole.sqlite", words)
    path, rng, kills = folder / "trials.sqlite", random.Random(0), 0
    while kills < 10:
        command = Command(path, words)
        # Now and then the process of the trial first, which its command then starts anew.
        for worker in [True, False] if rng.random() < 0.3 else [False]:
            if command.waits_for_a_checkpoint():
                time.sleep(rng.uniform(0, 0.5))
                workers = processes_of(command)
                command.stop(signal.SIGKILL, workers[0] if worker and workers else command.pid)
                kills += 1
        code, told = command.ends()
        assert code in (0, -signal.SIGKILL), told
        if code == 0:  # it was done before all kills: once more from the start
            assert stored(path) == whole
            path.unlink()
    found, told = ended_by_itself(path, words)
    assert found == whole
