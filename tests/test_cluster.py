"""Trials on a Dask cluster: the same numbers, plug-ins and all, and nothing lost with a worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from fltrust_repro.checkpoints import Checkpoints
from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.experiments import Cell
from fltrust_repro.plugins import load_plugin, run_afresh
from fltrust_repro.processes import Machine
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.sweep import run_missing
from fltrust_repro.training import Snapshot, run_trial
from fltrust_repro.trials import TrialName

distributed = pytest.importorskip("distributed")

SMALL = Setting(
    dataset="digits", rule="krum", attack="krum", workers=20, compromised=4, iterations=60
)
OTHER = replace(SMALL, rule="median", attack="trimmed-mean", knowledge="partial")
SEEDS = range(4)


def cells(*settings: Setting) -> list[Cell]:
    return [Cell(str(i), "error rate", setting, None) for i, setting in enumerate(settings)]


def numbers(store: Store, *settings: Setting) -> list:
    return [
        (trial.name, trial.result.error_rate, trial.result.curve)
        for setting in settings
        for trial in store.find(setting)
    ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two worker processes on loopback, as `dask worker --nthreads 1` starts them."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=":0",
        local_directory=str(tmp_path_factory.mktemp("dask")),
    ) as cluster:
        yield cluster


@pytest.fixture
def machine(cluster):
    return Machine(device="auto", scheduler=cluster.scheduler_address)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("local") / "trials.sqlite") as store:
        run_missing(cells(SMALL, OTHER), SEEDS, store, Machine(jobs=2))
        yield numbers(store, SMALL, OTHER)


@pytest.mark.long
def test_a_cluster_and_local_processes_give_the_same_numbers(machine, undisturbed, tmp_path):
    with Store(tmp_path / "trials.sqlite") as store:
        assert run_missing(cells(SMALL, OTHER), SEEDS, store, machine) == (8, [])
        assert numbers(store, SMALL, OTHER) == undisturbed


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_loses_nothing(machine, undisturbed, tmp_path):
    with Store(tmp_path / "trials.sqlite") as store:
        thread = threading.Thread(target=_kill_a_worker, args=(machine.scheduler, store.path))
        thread.start()
        outcome = run_missing(cells(SMALL, OTHER), SEEDS, store, machine)
        thread.join()
        assert outcome == (8, [])
        assert numbers(store, SMALL, OTHER) == undisturbed


def _kill_a_worker(address: str, path) -> None:
    """Kill the process that runs one of two trials, once a first one is finished."""
    with Store(path) as store, distributed.Client(address, set_as_default=False) as client:
        while not list(store.everything()):
            time.sleep(0.01)
        pids = client.run(lambda: os.getpid())  # of a builtin Dask would parse the signature
        os.kill(next(iter(pids.values())), signal.SIGKILL)


@pytest.mark.parametrize("seen", [True, False])
def test_a_trial_goes_on_where_workers_see_the_store_and_begins_anew_elsewhere(
    machine, undisturbed, tmp_path, monkeypatch, seen
):
    store_path, minutes = tmp_path / "trials.sqlite", 1e-9
    store_path.touch()
    taken: list[Snapshot] = []
    run_trial(SMALL, 0, keep=lambda take: taken.append(take()))
    told = taken[29].told
    told["curve"][0] = (10, 0.125, 0.0)  # by which to know it again
    name = TrialName.of(SMALL, 0)
    Checkpoints(store_path, minutes).of(name, None).keep(lambda: taken[29]._replace(told=told))
    if not seen:
        elsewhere = tmp_path / "elsewhere.sqlite"
        monkeypatch.setattr(Checkpoints, "__reduce__", lambda self: (Checkpoints, (elsewhere, 5)))
    with Store(store_path) as store:
        run_missing(cells(SMALL), [0], store, replace(machine, checkpoint_minutes=minutes))
        [(_, rate, curve)] = numbers(store, SMALL)
    assert (curve[0][1] == 0.125) == seen
    assert (rate, curve[3:]) == (undisturbed[0][1], undisturbed[0][2][3:])
    assert not Checkpoints(store_path, minutes).folder.exists()


RULE = '''
import helper
from fltrust_repro.aggregation import mean, rule

@rule("NAME")
def scaled_mean(updates):
    """Some share of the mean."""
    return mean(updates) * helper.FACTOR

class Oops(Exception):
    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")

@rule("NAME-fails")
def fails(updates):
    raise Oops("negative weight", "row 3")
'''


@pytest.fixture
def plugin(tmp_path):
    """Write a plug-in, which is always called rule.py, and its helper, and load it."""

    def load(name: str, factor: float, folder: str = "mine"):
        path = tmp_path / folder / "rule.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(RULE.replace("NAME", name).replace("helper", f"helper_{folder}"))
        (path.parent / f"helper_{folder}.py").write_text(f"FACTOR = {factor}\n")
        load_plugin(path)
        return path

    return load


def error_rates(machine: Machine, store_path, *rules: str) -> list[float]:
    settings = [replace(SMALL, rule=rule, attack="none", iterations=10) for rule in rules]
    with Store(store_path) as store:
        assert run_missing(cells(*settings), [0], store, machine) == (len(rules), [])
        return [trial.result.error_rate for s in settings for trial in store.find(s)]


def test_plugins_and_what_they_import_reach_the_workers_edited_ones_too(machine, plugin, tmp_path):
    plugin("scaled-mean", 1.0)
    plugin("their-mean", 0.0, "theirs")
    store = tmp_path / "trials.sqlite"
    whole, nothing = error_rates(machine, store, "scaled-mean", "their-mean")
    assert whole < nothing
    plugin("scaled-mean", 0.0)  # the same workers, whose processes go on
    assert error_rates(machine, store, "scaled-mean") == [nothing]
    run_afresh([])  # somebody else, who calls a rule the same
    plugin("scaled-mean", 1.0, "another")
    assert error_rates(machine, tmp_path / "a", "scaled-mean") == [whole]


def test_an_error_of_a_plugin_on_a_worker_is_its_sentence(machine, plugin, tmp_path):
    path = plugin("scaled-mean", 1.0)
    setting = replace(SMALL, rule="scaled-mean-fails", attack="none", iterations=10)
    with Store(tmp_path / "trials.sqlite") as store:
        outcome = run_missing(cells(setting), [0], store, machine)
    [failure] = outcome.failed
    assert failure.message == f"Oops: negative weight at row 3 ({path}, line 16)"
    assert "raise Oops" in failure.details


DATA = """
import os
from fltrust_repro.datasets import dataset, load
from fltrust_repro.errors import DataUnavailable

@dataset("theirs")
def theirs(directories, rng):
    if os.getpid() != {pid}:
        raise DataUnavailable("theirs is not at hand; go without.")
    return load("digits", rng)
"""


def test_a_data_set_that_a_worker_lacks_is_named_before_any_trial(machine, tmp_path):
    (tmp_path / "data.py").write_text(DATA.format(pid=os.getpid()))
    load_plugin(tmp_path / "data.py")
    setting = replace(SMALL, dataset="theirs")
    with Store(tmp_path / "trials.sqlite") as store:
        with pytest.raises(DataUnavailable, match=r"worker tcp://127.*theirs is not at hand"):
            run_missing(cells(SMALL, setting), [0], store, machine)
        assert list(store.everything()) == []


def refused(store_path, machine: Machine, match: str) -> None:
    with Store(store_path) as store, pytest.raises(BadInput, match=match):
        run_missing(cells(SMALL), [0], store, machine)


def test_a_gpu_that_no_worker_has_is_refused(machine, tmp_path):
    refused(tmp_path / "s.sqlite", replace(machine, device="gpu"), "no worker .* has one")


def test_a_worker_with_several_threads_is_refused(tmp_path):
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address=":0",
        local_directory=str(tmp_path),
    ) as threads:
        machine = Machine(scheduler=threads.scheduler_address)
        refused(tmp_path / "s.sqlite", machine, r"has 2 threads.*--nthreads 1")


def test_a_scheduler_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch):
    from fltrust_repro import cluster

    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    machine = Machine(scheduler="tcp://127.0.0.1:9")
    refused(tmp_path / "s.sqlite", machine, r"'tcp://127.0.0.1:9' does not answer")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "is not an address"),
        ("foo", "is not an address"),
        ("tcp://", "is not an address"),
        ("tcp://127.0.0.1", "is not an address"),
        ("http://127.0.0.1:8786", "is not an address"),
        ("inproc://x/1/2", "is not an address"),
        ("tcp://127.0.0.1:port", "is not an address"),
        ("127.0.0.1:99999999", "is not an address"),
        ("[::1:8786", "is not an address"),
        ("tls://127.0.0.1:9", "asks for TLS, and Dask knows no certificates"),
    ],
)
def test_what_is_no_scheduler_is_refused_at_once(tmp_path, address, said):
    with Store(tmp_path / "s.sqlite") as store, pytest.raises(BadInput) as error:
        started = time.monotonic()
        run_missing(cells(SMALL), [0], store, Machine(scheduler=address))
    assert f"{address!r} {said}" in str(error.value)
    assert time.monotonic() - started < 2
