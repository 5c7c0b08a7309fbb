"""Many trials: the same numbers on any number of processes, nothing lost, nothing run twice."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace

import pytest

from fltrust_repro import processes
from fltrust_repro.attacks import attacks
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import Cell
from fltrust_repro.processes import Machine
from fltrust_repro.registry import load_plugin
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.sweep import _project, in_turns, run_missing
from fltrust_repro.trial_process import Projection

SMALL = Setting(
    dataset="digits", rule="krum", attack="krum", workers=20, compromised=4, iterations=30
)
OTHER = replace(SMALL, rule="median", attack="trimmed-mean", knowledge="partial", iterations=40)


def cells(*settings: Setting) -> list[Cell]:
    """A table with a row for each setting."""
    return [Cell(str(i), "error rate", setting, None) for i, setting in enumerate(settings)]


def numbers(store: Store, settings=(SMALL, OTHER)) -> list:
    """All that a trial's seed decides."""
    return [
        (trial.name, trial.result.error_rate, trial.result.lowest_error_rate,
         trial.result.iterations, trial.result.curve)
        for setting in settings
        for trial in store.find(setting)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def by_one_process(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("one") / "trials.sqlite") as store:
        assert run_missing(cells(SMALL, OTHER), range(3), store, Machine(jobs=1)) == (6, [])
        yield store


def test_one_and_two_processes_give_the_same_numbers(by_one_process, tmp_path):
    with Store(tmp_path / "trials.sqlite") as store:
        run_missing(cells(SMALL, OTHER), range(3), store, Machine(jobs=2))
        assert len(numbers(store)) == 6
        assert numbers(store) == numbers(by_one_process)


def test_finished_trials_are_not_run_again(by_one_process, monkeypatch):
    def no_process(*_, **__):
        raise AssertionError("a worker process was started")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", no_process)
    assert run_missing(cells(SMALL, OTHER), range(3), by_one_process, Machine(jobs=2)) == (0, [])
    assert run_missing(cells(OTHER, OTHER), [2], by_one_process, Machine(jobs=2)) == (0, [])
    with pytest.raises(AssertionError, match="was started"):
        run_missing(cells(SMALL), range(4), by_one_process, Machine())


def test_only_what_is_missing_runs_and_a_setting_named_twice_runs_once(by_one_process, tmp_path):
    hours = []
    with Store(tmp_path / "trials.sqlite") as store:
        for trial in by_one_process.find(SMALL, [1]):
            store.add(trial)
        outcome = run_missing(cells(SMALL, SMALL), range(3), store, Machine(jobs=2), hours.append)
        assert outcome == (2, [])
        assert numbers(store, [SMALL]) == numbers(by_one_process, [SMALL])
    assert len(hours) == 1
    assert 0 < hours[0] < 1


def test_every_setting_has_its_first_seed_before_any_has_its_second():
    assert in_turns([SMALL, OTHER, SMALL], [4, 5]) == [
        (OTHER, 4), (SMALL, 4), (OTHER, 5), (SMALL, 5)  # and the longer of them first
    ]  # fmt: skip


def test_an_error_in_a_worker_process_comes_back_as_its_sentence(tmp_path):
    setting = Setting(dataset="digits", model="cnn", iterations=2)
    with Store(tmp_path / "trials.sqlite") as store:
        with pytest.raises(BadInput, match="at least 10 x 10 pixels, these are 8 x 8"):
            run_missing(cells(setting), [0], store, Machine())
        assert numbers(store, [setting]) == []


# ---- interrupted, killed, and started again -----------------------------------------------------

SEEDS = 4
LONG = replace(SMALL, iterations=400)
OPTIONS = (
    "run --dataset digits --rule krum --attack krum --workers 20 --compromised 4 "
    f"--iterations {LONG.iterations} --trials {SEEDS} --jobs 2 --device cpu --json"
).split()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("undisturbed") / "trials.sqlite") as store:
        run_missing(cells(LONG), range(SEEDS), store, Machine(jobs=2))
        return numbers(store, [LONG])


def start(store_path) -> subprocess.Popen:
    """The command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "fltrust_repro", *OPTIONS, "--store", str(store_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A job in the background of a script, as these tests may be, hands on an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_first_trial(store_path, command: subprocess.Popen) -> None:
    def finished() -> int:
        connection = sqlite3.connect(f"file:{store_path}?mode=ro", uri=True)
        try:
            return connection.execute("SELECT count(*) FROM trials").fetchone()[0]
        except sqlite3.OperationalError:
            return 0  # there is no table yet
        finally:
            connection.close()

    deadline = time.monotonic() + 120
    while not store_path.exists() or not finished():
        assert command.poll() is None, command.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive_in(group: int) -> list[int]:
    """Process ids of a group, without ended ones that nobody has asked about yet."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, pgid, stat in rows if int(pgid) == group and stat[0] != "Z"]


def assert_nothing_left_of(group: int) -> None:
    deadline = time.monotonic() + 20
    while alive_in(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = alive_in(group)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "worker processes were left behind"


def assert_the_same_command_goes_on(store_path, undisturbed) -> None:
    with Store(store_path) as store:
        kept = numbers(store, [LONG])
        assert 1 <= len(kept) < SEEDS
        assert all(trial in undisturbed for trial in kept)
    again = start(store_path)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert f"/{SEEDS - len(kept)} trials done" in errors
    with Store(store_path) as store:
        assert numbers(store, [LONG]) == undisturbed


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(tmp_path, undisturbed):
    store_path = tmp_path / "trials.sqlite"
    command = start(store_path)
    wait_for_first_trial(store_path, command)
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert_nothing_left_of(command.pid)
    assert_the_same_command_goes_on(store_path, undisturbed)


def test_after_kill_9_nothing_is_left_and_the_same_command_goes_on(tmp_path, undisturbed):
    store_path = tmp_path / "trials.sqlite"
    command = start(store_path)
    wait_for_first_trial(store_path, command)
    command.kill()
    command.communicate(timeout=60)
    assert_nothing_left_of(command.pid)
    assert_the_same_command_goes_on(store_path, undisturbed)


# ---- trials that crash --------------------------------------------------------------------------

CRASHES = '''
import os, pathlib
from fltrust_repro.attacks import attack

def once(name):
    """Whether this is the first time."""
    try:
        (pathlib.Path(__file__).parent / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

@attack("crash-once")
def crash_once(step):
    """Kills its process, the first time."""
    if once("crashed"):
        os._exit(9)
    return step.known[: step.c]

@attack("crash-always")
def crash_always(step):
    """Kills its process."""
    os._exit(9)

@attack("raises")
def raises(step):
    """Has a bug."""
    raise ZeroDivisionError("a bug of mine")
'''


@pytest.fixture
def crashes(tmp_path, monkeypatch):
    """Settings by the way in which they crash, and where they run."""
    path = tmp_path / "crashes.py"
    path.write_text(CRASHES)
    monkeypatch.setattr(attacks, "_entries", dict(attacks))
    load_plugin(path)
    names = ("crash-once", "crash-always", "raises")
    settings = {name: replace(SMALL, attack=name, iterations=5) for name in names}
    return settings, Machine(jobs=2, plugins=(path,))


def test_a_trial_whose_process_dies_is_tried_once_more(crashes, tmp_path):
    settings, machine = crashes
    with Store(tmp_path / "trials.sqlite") as store:
        assert run_missing(cells(settings["crash-once"]), range(2), store, machine) == (2, [])
        assert store.failures() == {}


def test_trials_that_fail_twice_are_recorded_and_the_rest_goes_on(
    crashes, tmp_path, by_one_process
):
    settings, machine = crashes
    bad = [settings["crash-always"], settings["raises"]]
    with Store(tmp_path / "trials.sqlite") as store:
        finished, failed = run_missing(cells(*bad, SMALL), [0], store, machine)
        assert finished == 1
        assert numbers(store, [SMALL]) == numbers(by_one_process, [SMALL])[:1]
        assert {failure.name: failure for failure in failed} == store.failures()
        messages = {name: {f.message for f in failed if f.name.key == s.key()}
                    for name, s in settings.items()}  # fmt: skip
        assert messages["raises"] == {"ZeroDivisionError: a bug of mine"}
        assert all("crashes.py" in f.details for f in failed if "ZeroDivision" in f.message)
        assert messages["crash-always"] == {
            "its process was killed or crashed; perhaps memory ran out"
        }
        assert len(failed) == 2
        assert store.claimed() == set()


# ---- two commands, one store --------------------------------------------------------------------


def test_two_commands_on_one_store_run_no_trial_twice(tmp_path, undisturbed):
    store_path = tmp_path / "trials.sqlite"
    commands = [start(store_path) for _ in range(2)]
    said = [command.communicate(timeout=300) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], said
    last_lines = [errors.strip().splitlines()[-1] for _, errors in said]
    done = [int(re.match(r"(\d+)/", line)[1]) for line in last_lines]
    assert sum(done) == SEEDS, said
    with Store(store_path) as store:
        assert numbers(store, [LONG]) == undisturbed


# ---- kill -9 at any moment ----------------------------------------------------------------------


def processes_of(command: subprocess.Popen) -> list[int]:
    """The worker processes of a command, not the one that counts shared resources."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,pgid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [int(pid) for pid, pgid, args in rows
            if int(pgid) == command.pid and "spawn_main" in args]  # fmt: skip


def kill_at_random_moments(store_path, moments: int, longest: float, rng: random.Random) -> int:
    """Start the command until it ends by itself; return how often it or a worker was killed."""
    killed = 0
    while True:
        command = start(store_path)
        while killed < moments:
            try:
                command.wait(timeout=rng.uniform(0, longest))
                break
            except subprocess.TimeoutExpired:
                target = rng.choice([command.pid, *processes_of(command)])
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, signal.SIGKILL)
                killed += 1
        _, errors = command.communicate()
        assert command.returncode in (0, 1, -signal.SIGKILL), errors
        assert_nothing_left_of(command.pid)
        if command.returncode == 0:
            return killed


@pytest.mark.slow
def test_whatever_is_killed_the_results_are_those_of_an_undisturbed_run(tmp_path, undisturbed):
    store_path, rng, left = tmp_path / "trials.sqlite", random.Random(0), 20
    started = time.monotonic()
    assert kill_at_random_moments(store_path, 0, 0, rng) == 0
    longest = time.monotonic() - started
    while left > 0:
        store_path.unlink()
        left -= kill_at_random_moments(store_path, left, longest, rng)
        with Store(store_path) as store:
            assert numbers(store, [LONG]) == undisturbed
            assert store.failures() == {}
            check = store._connection.execute("PRAGMA integrity_check").fetchall()
            assert check == [("ok",)]


def test_on_a_gpu_every_model_is_tried_before_trials_share_it(monkeypatch):
    tried, shares = [], []

    class OneGpu:
        device = "gpu"

        def submit(self, function, setting, *where):
            tried.append((setting.dataset, setting.model, setting.workers))
            seconds = setting.iterations * (4 if setting.model == "resnet20" else 1)
            call = Future()
            call.set_result(Projection(seconds, 0.1 * len(tried)))
            return call

        def share_gpus(self, memory):
            shares.append(memory)

        def slots(self):
            return 2

    fields = {"dataset": "digits", "iterations": 3600, "compromised": 2}
    settings = [Setting(**fields, workers=m, model=name) for m, name in
                [(10, "lr"), (20, "lr"), (10, "resnet20")]]  # fmt: skip
    hours = _project(OneGpu(), in_turns(settings, [0]), Machine(device="gpu"))
    assert sorted(tried) == [("digits", "lr", 20), ("digits", "resnet20", 10)]
    assert shares == [pytest.approx(0.2)]
    assert hours == (1 + 1 + 4) / 2
