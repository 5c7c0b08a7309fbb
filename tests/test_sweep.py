"""Many trials: the same numbers on any number of processes, nothing lost, nothing run twice."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import namedtuple
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing import context

import numpy as np
import pytest

import fltrust_repro as fl
from fltrust_repro import datasets, options, processes, sweep, trial_process
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import Cell
from fltrust_repro.plugins import load_plugin
from fltrust_repro.processes import Machine, Place
from fltrust_repro.projection import Pace, project
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.sweep import in_turns, run_missing
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


@pytest.mark.long
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
    told = []
    with Store(tmp_path / "trials.sqlite") as store:
        for trial in by_one_process.find(SMALL, [1]):
            store.add(trial)
        machine = Machine(jobs=0)
        outcome = run_missing(
            cells(SMALL, SMALL), range(3), store, machine, lambda *seconds: told.append(seconds)
        )
        assert outcome == (2, [])
        assert numbers(store, [SMALL]) == numbers(by_one_process, [SMALL])
    [(seconds, first)] = told
    assert 0 < seconds < 3600
    assert first == pytest.approx(seconds / 2)  # of seeds 0 and 2, in one process


@pytest.mark.parametrize(("first", "shorter"), [(0, ""), (7200, ""), (1800, "30 min")])
def test_a_long_run_says_how_long_one_trial_of_each_setting_takes(first, shorter, capsys):
    options.announce(7200, first)
    told = capsys.readouterr().err
    assert "about 2 h on" in told
    assert ("--trials 1" in told) == bool(shorter)
    assert shorter in told
    options.announce(10, 1)
    assert not capsys.readouterr().err


def test_every_setting_has_its_first_seed_before_any_has_its_second():
    assert in_turns([SMALL, OTHER, SMALL], [4, 5]) == [
        (OTHER, 4), (SMALL, 4), (OTHER, 5), (SMALL, 5)  # and the longer of them first
    ]  # fmt: skip


@pytest.mark.slow
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


def start(store_path, *options: str) -> subprocess.Popen:
    """The command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "fltrust_repro", *OPTIONS, *options, "--store", str(store_path)],
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


@pytest.mark.long
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


@pytest.mark.slow
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
import ctypes, os, pathlib, sys
from fltrust_repro.attacks import attack

HERE = pathlib.Path(__file__).parent

def times(name):
    """How often this has been called, in whatever process."""
    with open(HERE / name, "a") as file:
        file.write("x")
    return (HERE / name).stat().st_size

class Oops(Exception):
    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")

class Stop(BaseException):
    pass

def oops(step):
    raise Oops("negative weight", "row 3")

def raises(step):
    raise ZeroDivisionError("a bug of mine")

def opens(step):
    open("/no/such/file")

def stops(step):
    raise Stop("enough")

def exits(step):
    sys.exit(0)

def interrupts(step):
    raise KeyboardInterrupt

def dies(step):
    os._exit(9)

def crashes(step):
    ctypes.string_at(0)

def dies_once(step):
    if times("once") == 1:
        os._exit(9)
    return step.known[: step.c]

for function in (oops, raises, opens, stops, exits, interrupts, dies, crashes):
    def counted(step, function=function):
        times(function.__name__)
        return function(step)
    attack(function.__name__)(counted)
attack("dies_once")(dies_once)
'''
ERRORS = {
    "oops": r"Oops: negative weight at row 3 \(.*crashes\.py, line 21\)",
    "raises": r"ZeroDivisionError: a bug of mine \(.*crashes\.py, line 24\)",
    "opens": r"FileNotFoundError: .*/no/such/file' \(.*crashes\.py, line 27\)",
    "stops": r"Stop: enough \(.*crashes\.py, line 30\)",
    "exits": r"SystemExit: 0 \(.*crashes\.py, line 33\)",
    "interrupts": r"KeyboardInterrupt \(.*crashes\.py, line 36\)",
}
ENDS = {
    "dies": "its process ended by itself, exit code 9",
    "crashes": "its process was killed by signal 11 SIGSEGV",
}


@pytest.fixture
def crashes(tmp_path):
    """A setting that crashes in some way, and where it runs."""
    path = tmp_path / "crashes.py"
    path.write_text(CRASHES)
    load_plugin(path)
    return lambda way: replace(SMALL, attack=way, iterations=5), Machine(jobs=2)


@pytest.mark.long
def test_a_trial_whose_process_dies_is_tried_once_more(crashes, tmp_path):
    crash, machine = crashes
    with Store(tmp_path / "trials.sqlite") as store:
        assert run_missing(cells(crash("dies_once")), range(2), store, machine) == (2, [])
        assert store.failures() == {}


@pytest.mark.slow
def test_trials_that_fail_are_recorded_with_what_happened_and_the_rest_goes_on(
    crashes, tmp_path, by_one_process
):
    crash, machine = crashes
    ways = {crash(way).key(): way for way in (*ERRORS, *ENDS)}
    bad = [crash(way) for way in ways.values()]
    with Store(tmp_path / "trials.sqlite") as store:
        # The setting that is tried for its time is the one of most workers: a good one.
        wide = replace(SMALL, workers=21, selected=21)
        finished, failed = run_missing(cells(*bad, SMALL, wide), [0], store, machine)
        assert finished == 2
        assert numbers(store, [SMALL]) == numbers(by_one_process, [SMALL])[:1]
        assert {failure.name: failure for failure in failed} == store.failures()
        assert store.claimed() == set()
    found = {ways[failure.name.key]: failure for failure in failed}
    for way, message in {**ERRORS, **ENDS}.items():
        assert re.fullmatch(message, found[way].message), found[way].message
        # An error of the user's code comes back the same; a process may have died by accident.
        assert (tmp_path / way).stat().st_size == (1 if way in ERRORS else 2), way
    assert all("Traceback" in found[way].details for way in ERRORS)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, "ended by itself, exit code 0"),
        (255, "ended by itself, exit code 255"),
        (None, "ended by itself, exit code None"),
        (-9, "was killed by signal 9 SIGKILL; perhaps memory ran out"),
        (-8, "was killed by signal 8 SIGFPE"),
        (-63, "was killed by signal 63"),
    ],
)
def test_how_a_process_ended_is_told_by_its_exit_code(code, said):
    assert processes.ended(code) == f"its process {said}"


EXITS = """import sys
from fltrust_repro.aggregation import rule
rule("mine")(lambda updates: sys.exit(0))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        (EXITS, 1, r"1 failed.*SystemExit: 0 \(.*mine\.py, line 3\)"),
        ("import sys\nsys.exit(0)\n", 2, r"mine\.py' does not load: SystemExit: 0 \(.*line 2\)"),
    ],
    ids=["rule", "body"],
)
def test_a_plugin_that_exits_does_not_end_the_command_well(tmp_path, source, code, said):
    path = tmp_path / "mine.py"
    path.write_text(source)
    options = "--dataset digits --rule mine --workers 4 --compromised 0 --iterations 1 --jobs 1"
    ended = subprocess.run(
        [sys.executable, "-m", "fltrust_repro", "run", "--plugin", str(path), *options.split(),
         "--store", str(tmp_path / "trials.sqlite")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == code
    assert re.search(said, ended.stderr, re.DOTALL), ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (OSError(errno.EROFS, "Read-only file system", "/dev/shm/pym-1"), "Read-only file system"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "temporarily"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
    ],
)
@pytest.mark.parametrize("part", ["Value", "ProcessPoolExecutor"])
def test_what_processes_share_and_cannot_have_is_one_sentence(
    monkeypatch, tmp_path, part, error, said
):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(context.SpawnContext if part == "Value" else processes, part, fails)
    message = f"cannot start .*{said}.*/dev/shm .*--shm-size.*--jobs"
    with Store(tmp_path / "trials.sqlite") as store, pytest.raises(BadInput, match=message):
        run_missing(cells(SMALL), [0], store, Machine(jobs=1))
    with Store(tmp_path / "trials.sqlite") as store:
        assert store.claimed() == set()


# ---- plug-ins -----------------------------------------------------------------------------------

PLUGIN = '''
import pathlib, random
import numpy as np
import helper
from fltrust_repro.aggregation import mean, rule
from fltrust_repro.datasets import Dataset, dataset, digits

momentum = 0

@rule("momentum")
def with_momentum(updates):
    global momentum
    momentum = 0.9 * momentum + 0.1 * mean(updates)
    return momentum * helper.FACTOR

@rule("helped")
def helped(updates):
    helper.seen.append(mean(updates))
    return sum(helper.seen) * helper.FACTOR / len(helper.seen)

@rule("random")
def at_random(updates):
    return updates[random.randrange(len(updates))] * np.random.random()

@rule("later")
def later(updates):
    import helped_later
    return mean(updates) * helped_later.FACTOR

@dataset("mine")
def mine(directories, rng):
    """Digits, scaled by what a file says."""
    scale = np.float32(pathlib.Path(__file__).with_name("scale.txt").read_text())
    data = digits(directories, rng)
    parts = (data.train_x * scale, data.train_y, data.test_x * scale, data.test_y)
    return Dataset(*parts, classes=10)
'''
FILES = {
    "plugin.py": PLUGIN,
    "helper.py": "FACTOR = 1.0\nseen = []\n",
    "helped_later.py": "FACTOR = 1.0\n",
    "scale.txt": "1.0",
}


@pytest.fixture
def plugin(tmp_path):
    """Write the plug-in's files, one perhaps with another text, and load it."""

    def load(**texts: str) -> Machine:
        for file, usual in FILES.items():
            (tmp_path / file).write_text(texts.get(file.split(".")[0], usual))
        datasets._digests.clear()  # as in another process
        load_plugin(tmp_path / "plugin.py")
        return Machine(jobs=1)

    return load


PLAIN = {"dataset": "digits", "workers": 10, "compromised": 2, "iterations": 10}


@pytest.mark.long
def test_a_plugins_memory_is_that_of_one_trial_whatever_the_number_of_processes(plugin, tmp_path):
    machine = plugin()
    settings = [Setting(**PLAIN, rule=rule) for rule in ("momentum", "helped", "random")]

    def found(name: str, seeds, jobs: int) -> list:
        with Store(tmp_path / name) as store:
            outcome = run_missing(cells(*settings), seeds, store, replace(machine, jobs=jobs))
            assert outcome == (3 * len(seeds), [])
            return numbers(store, settings)

    by_one = found("one.sqlite", range(3), 1)
    # The last seed is now the first that a process runs.
    for jobs in (2, 0):
        found_anew = found(f"{jobs}.sqlite", [2, 1], jobs)
        assert found_anew == [trial for trial in by_one if trial[0].seed > 0]


@pytest.mark.long
def test_what_a_plugin_uses_edited_does_not_answer_with_the_old_numbers(plugin, tmp_path):
    machine = plugin()
    helped = [Setting(**PLAIN, rule="momentum"), Setting(**PLAIN, rule="later")]
    read = Setting(**{**PLAIN, "dataset": "mine"}, rule="mean")

    def run(store: Store, missing: int) -> list[float]:
        assert run_missing(cells(*helped, read), [0], store, machine) == (missing, [])
        return [one.result.error_rate for s in (*helped, read) for one in store.find(s, [0])]

    with Store(tmp_path / "trials.sqlite") as store:
        before = run(store, 3)
        plugin(scale="0.0")
        other_data = run(store, 1)
        plugin(helper="FACTOR = 0.0\n", helped_later="FACTOR = 0.0\n")
        assert all(new > old for new, old in zip(run(store, 3)[:2], before))
        plugin()
        assert run(store, 0) == before
    assert other_data[:2] == before[:2]
    assert other_data[2] > before[2]


@pytest.mark.long
def test_a_plugin_edited_while_a_command_runs_goes_on_as_it_was(plugin, tmp_path):
    machine, setting = plugin(), Setting(**PLAIN, rule="momentum")

    def edit(seconds: float, first: float) -> None:
        (tmp_path / "helper.py").write_text("FACTOR = 0.0\n")
        (tmp_path / "plugin.py").write_text("half an ed")

    found = []
    for announce in (edit, lambda *seconds: None):
        with Store(tmp_path / f"{len(found)}.sqlite") as store:
            plugin()
            assert run_missing(cells(setting), [0], store, machine, announce) == (1, [])
            found.append(numbers(store, [setting]))
    assert found[0] == found[1] != []


# ---- two commands, one store --------------------------------------------------------------------


@pytest.mark.long
def test_two_commands_on_one_store_run_no_trial_twice(tmp_path, undisturbed):
    store_path = tmp_path / "trials.sqlite"
    commands = [start(store_path) for _ in range(2)]
    said = [command.communicate(timeout=300) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], said
    done = [int(re.findall(r"(\d+)/\d+ trials done", errors)[-1]) for _, errors in said]
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


@pytest.mark.long
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


@pytest.mark.parametrize("which", ["cpu", "gpu"])
def test_every_model_is_tried_once_before_its_trials_are_timed_or_share_a_gpu(which):
    tried, shares = [], []

    class One:
        device = which

        def submit(self, function, setting, *where):
            tried.append((setting.dataset, setting.model, setting.workers))
            seconds = setting.iterations * (4 if setting.model == "resnet20" else 1)
            call = Future()
            call.set_result(Projection(seconds, 0.1 * len(tried)))
            return call

        def result(self, call):
            return call.result()

        def share_gpus(self, memory):
            shares.append(memory)

        def slots(self):
            return 2

    fields = {"dataset": "digits", "iterations": 3600, "compromised": 2}
    settings = [Setting(**fields, workers=m, model=name) for m, name in
                [(10, "lr"), (20, "lr"), (10, "resnet20")]]  # fmt: skip
    seconds = project(One(), settings, Place(which)).of(settings)
    assert sorted(tried) == [("digits", "lr", 20), ("digits", "resnet20", 10)]
    assert shares == [pytest.approx(0.2)]
    assert seconds == (1 + 1 + 4) / 2 * 3600


def test_a_projection_is_of_some_time_though_the_machine_stood_still(monkeypatch):
    taken = {1: 0.5, 4: 0.3}
    result = namedtuple("Result", "seconds")
    monkeypatch.setattr(
        trial_process, "_trial", lambda setting, *_, **__: result(taken[setting.iterations])
    )
    assert trial_process.project(SMALL, "cpu", None).seconds > 0


# ---- run(), and trials in this process ----------------------------------------------------------


def test_run_gives_a_table_of_trials_by_setting_and_seed(by_one_process, tmp_path):
    store_path = tmp_path / "trials.sqlite"
    with Store(store_path) as store:
        store.add(*by_one_process.find(OTHER, [1]))
    table = fl.run([OTHER, SMALL, OTHER], trials=2, seed=1, jobs=0, store=store_path)
    expected = [*by_one_process.find(OTHER, [1, 2]), *by_one_process.find(SMALL, [1, 2])]
    assert table["error_rate"].tolist() == [trial.result.error_rate for trial in expected]
    assert table["seed"].tolist() == [1, 2, 1, 2]
    assert table["rule"].tolist() == ["median", "median", "krum", "krum"]
    assert list(table.columns) == [
        *SMALL.as_dict(), "seed", "error_rate", "lowest_error_rate", "diverged", "seconds",
        "iterations_done",
    ]  # fmt: skip
    assert table["diverged"].dtype == bool
    with Store(store_path) as store:
        assert len(store.everything()) == 4
    one = fl.run(SMALL, seed=1, jobs=0, store=store_path)
    assert one.equals(table[2:3].reset_index(drop=True))


def test_runs_in_several_threads_take_turns(by_one_process, tmp_path):
    out, tables = sys.stdout, {}

    def run(name: str) -> None:
        tables[name] = fl.run(SMALL, trials=2, seed=1, jobs=0, store=tmp_path / name)

    threads = [threading.Thread(target=run, args=(f"{k}.sqlite",)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [trial.result.error_rate for trial in by_one_process.find(SMALL, [1, 2])]
    assert [table["error_rate"].tolist() for table in tables.values()] == 3 * [expected]
    assert sys.stdout is out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"settings": "krum"}, "settings are .*; give one Setting, or several"),
        ({"plugins": None}, "plugins are None; give the paths of Python files"),
        ({"settings": [SMALL, None]}, r"settings are \[.*None\]"),
        ({"settings": []}, r"settings are \[\]"),
        ({"settings": 3}, "settings are 3"),
        ({"settings": None}, "settings are None"),
        ({"trials": 0}, "trials is 0; give a whole number from 1 to 10,000"),
        ({"trials": True}, "trials is True"),
        ({"trials": 10**9}, "trials is 1000000000"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**31 - 1, "trials": 2}, "seed is 2147483647; give .* to 2,147,483,646"),
        ({"jobs": -1}, "jobs is -1; give a whole number of at most 1,000, or 0"),
        ({"jobs": 1.5}, r"jobs is 1\.5"),
        ({"device": "tpu"}, "device is 'tpu'; choose cpu, gpu or auto"),
        ({"plugins": ["nowhere.py"]}, "does not exist"),
        ({"plugins": "nowhere.py"}, "'nowhere.py' does not exist"),
        ({"scheduler": "here"}, "scheduler 'here' is not an address"),
    ],
)
def test_what_run_refuses(tmp_path, arguments, said):
    with pytest.raises(BadInput, match=said):
        fl.run(**{"settings": SMALL, "store": tmp_path / "trials.sqlite", **arguments})


def test_numbers_of_numpy_are_numbers(tmp_path):
    given = {"trials": np.int64(2), "seed": np.int32(2**31 - 2)}
    table = fl.run(SMALL, jobs=0, store=tmp_path / "trials.sqlite", **given)
    assert table["seed"].tolist() == [2**31 - 2, 2**31 - 1]


def test_trials_in_this_process_leave_its_generators_as_they_were(tmp_path):
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    fl.run(SMALL, jobs=0, store=tmp_path / "trials.sqlite")
    assert (random.random(), np.random.random()) == expected


SCRIPT = """
import sys
import fltrust_repro as fl

FACTOR = 1.0

@fl.rule("mine")
def mine(updates):
    \"\"\"Some share of the mean.\"\"\"
    return updates.mean(axis=0) * FACTOR

setting = dict(dataset="digits", workers=10, compromised=2, iterations=20)
print(*(fl.run([fl.Setting(rule="mean", **setting), fl.Setting(rule=sys.argv[1], **setting)],
               trials=2, jobs=int(sys.argv[2]), store=sys.argv[3])["error_rate"]))
"""


@pytest.fixture
def script(tmp_path):
    """Runs the script with a rule and a number of jobs; returns how it ended."""

    def run(rule, jobs, source=SCRIPT, read=False):
        (tmp_path / "script.py").write_text(source)
        return subprocess.run(
            [sys.executable, "-" if read else str(tmp_path / "script.py"), rule, str(jobs),
             str(tmp_path / ("read.sqlite" if read else "trials.sqlite"))],
            input=source if read else None, text=True, capture_output=True, timeout=300,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip

    return run


@pytest.mark.long
def test_a_script_without_a_guard_or_from_stdin_runs_once_whatever_the_jobs(script):
    found = [script("median", jobs=0), script("median", jobs=1, read=True)]
    assert [ended.returncode for ended in found] == [0, 0], [ended.stderr for ended in found]
    assert found[0].stdout == found[1].stdout
    assert found[0].stdout.count("\n") == 1
    # Plain lines, since this is no terminal.
    assert found[0].stderr.startswith("4/4 trials done, ")
    assert "; rule mean 0." in found[0].stderr


@pytest.mark.long
def test_a_rule_of_the_script_itself_runs_in_this_process_and_anew_when_it_is_edited(script):
    def rates(ended):
        assert ended.returncode == 0, ended.stderr
        return list(map(float, ended.stdout.split()))

    first = script("mine", 0)
    mean, mine = rates(first)[:2], rates(first)[2:]
    assert mean == mine
    edited = rates(script("mine", 0, SCRIPT.replace("1.0", "0.0")))
    assert edited[:2] == mean
    assert min(edited[2:]) > max(mean)
    again = script("mine", 0)
    assert again.stdout == first.stdout
    assert "trials done" not in again.stderr  # nothing was left to do


def test_a_rule_of_the_script_itself_is_refused_where_other_processes_would_need_it(script):
    ended = script("mine", 2)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "rule 'mine' is defined in this script or notebook" in last
    assert "jobs=0" in last


@pytest.mark.long
def test_so_is_what_comes_before_a_rule(script):
    source = SCRIPT.replace('@fl.rule("mine")', '@fl.preaggregation("mine")')
    source = source.replace("updates.mean(axis=0) * FACTOR", "updates * FACTOR")
    source = source.replace("rule=sys.argv[1]", 'rule="mean", pre=sys.argv[1]')
    ended = script("mine", 2, source)
    assert ended.returncode == 1
    assert "pre-aggregation 'mine' is defined in this script" in ended.stderr.splitlines()[-1]
    assert script("mine", 0, source).returncode == 0


@pytest.mark.slow
def test_ctrl_c_ends_trials_in_the_commands_own_process(tmp_path, undisturbed):
    store_path = tmp_path / "trials.sqlite"
    command = start(store_path, "--jobs", "0")
    wait_for_first_trial(store_path, command)
    os.killpg(command.pid, signal.SIGINT)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 130, errors
    assert "Traceback" not in errors
    with Store(store_path) as store:
        kept = numbers(store, [LONG])
        assert kept == undisturbed[: len(kept)]
        assert store.failures() == {}


def test_three_failures_alike_end_a_run_and_keep_what_is_finished(crashes, tmp_path, capfd):
    crash, _ = crashes
    with Store(tmp_path / "trials.sqlite") as store:
        mixed = cells(crash("raises"), SMALL)
        finished, failed = run_missing(mixed, range(10), store, Machine(jobs=0))
        assert 2 <= finished <= 3
        assert len(failed) == len(store.failures()) == 3
        assert store.claimed() == set()
    assert (tmp_path / "raises").stat().st_size == 3
    said = capfd.readouterr().err
    assert re.search(
        r"Stopped, since 3 trials failed alike: ZeroDivisionError: a bug of mine", said
    )
    assert re.search(r"kept, 1[45] trials not tried; `show` prints the traceback", said)
    with pytest.raises(BadInput, match=r"2 of 2 trials failed.* ZeroDivisionError: a bug of mine"):
        fl.run(crash("raises"), trials=2, jobs=0, store=tmp_path / "trials.sqlite")


LATE = '''"""Rules that after some calls give another shape, or note what is no number."""
from fltrust_repro import rule

calls = 0

@rule("late")
def late(updates, *, good=20):
    global calls
    calls += 1
    return updates.mean(axis=0)[: None if calls <= good else 3]

@rule("noting")
def noting(updates, notes, *, good=20):
    global calls
    calls += 1
    notes["kind"] = 1 if calls <= good else "high"
    return updates.mean(axis=0)
'''


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("late", r"rule 'late.*' \(late\.py, line \d+\): its result must be .* not float32 \(3,\)"),
        ("noting", r"'kind' is noted as 'high'; notes are numbers \(.*late\.py, line \d+\)"),
    ],
)
def test_what_is_refused_amid_a_trial_ends_that_trial_alone(rule, message, tmp_path):
    """In its first iteration it would be so in every trial, and ends the command."""
    (tmp_path / "late.py").write_text(LATE)
    load_plugin(tmp_path / "late.py")
    amid, at_once = (replace(SMALL, rule=f"{rule}:good={n}", attack="none") for n in (20, 0))
    machine = Machine(jobs=0)
    with Store(tmp_path / "trials.sqlite") as store:
        finished, failed = run_missing(cells(amid, SMALL), [0, 1], store, machine)
        assert (finished, len(failed)) == (2, 2)
        assert all(re.match(message, one.message) for one in failed), failed
        assert "Traceback" in failed[0].details
        with pytest.raises(BadInput, match=message):
            run_missing(cells(at_once), [0], store, machine)
        assert len(store.failures()) == 2
        assert not failed[0].message.endswith(".")  # it stands within sentences


def test_what_is_refused_while_trials_are_timed_is_left_to_the_trial(tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    load_plugin(tmp_path / "late.py")
    amid, announced = replace(SMALL, rule="late:good=2", attack="none"), []
    with Store(tmp_path / "trials.sqlite") as store:
        given = (
            cells(SMALL, amid),
            [0],
            store,
            Machine(jobs=0),
            lambda *told: announced.append(told),
        )
        finished, failed = run_missing(*given)
    assert (finished, len(failed), len(announced)) == (1, 1, 0)


def test_what_ails_the_store_amid_a_trial_is_no_failure_of_the_trial(tmp_path, monkeypatch):
    (tmp_path / "late.py").write_text(LATE)
    load_plugin(tmp_path / "late.py")

    def away(self):
        raise BadInput("the store is away")

    monkeypatch.setattr(sweep, "_RENEW_SECONDS", 0)
    monkeypatch.setattr(Store, "renew_claims", away)
    with Store(tmp_path / "trials.sqlite") as store:
        with pytest.raises(BadInput, match="the store is away"):
            run_missing(
                cells(replace(SMALL, rule="late", attack="none")), [0], store, Machine(jobs=0)
            )
        assert store.failures() == {}


def test_the_home_folder_is_found_in_python_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    table = fl.run(SMALL, jobs=np.int64(0), store="~/mine.sqlite")
    assert len(table) == 1
    assert (tmp_path / "mine.sqlite").is_file()
    assert not (tmp_path / "~").exists()
    fl.run(SMALL, jobs=0, store=":memory:")
    with Store(":memory:") as store:
        assert len(store.everything()) == 1
    (tmp_path / "mine.py").write_text("KNOWN = 3\n")
    assert fl.load_plugin("~/mine.py").KNOWN == 3


def test_what_is_most_work_begins():
    """Not only where it is more iterations: more workers, or rounds, or examples are more, too."""
    for fields in ({"selected": 10}, {"rounds": 1}, {"batch_size": 8}):
        less, more = (replace(SMALL, **{**fields, **{name: value * k for name, value in
                                                     fields.items()}}) for k in (1, 2))  # fmt: skip
        assert [task.setting for task in in_turns([less, more], [0])] == [more, less]


def test_the_time_of_the_first_seed_is_that_seeds(tmp_path, monkeypatch):
    """One trial of it has but one process, whatever others have."""
    pace = Pace({("digits", "lr"): 25.0}, slots=2)
    monkeypatch.setattr(sweep, "project", lambda *_: pace)
    told, short = [], replace(SMALL, iterations=1)
    with Store(tmp_path / "trials.sqlite") as store:
        run_missing(cells(short), range(4), store, Machine(jobs=0), lambda *t: told.append(t))
    assert told == [(50.0, 25.0)]
