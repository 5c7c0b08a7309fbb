"""Trials on a Dask cluster: the same numbers, plug-ins and all, and nothing lost with a worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from fltrust_repro.aggregation import rules
from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.experiments import Cell
from fltrust_repro.processes import Machine
from fltrust_repro.registry import load_plugin
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.sweep import run_missing

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


def test_a_cluster_and_local_processes_give_the_same_numbers(machine, undisturbed, tmp_path):
    with Store(tmp_path / "trials.sqlite") as store:
        assert run_missing(cells(SMALL, OTHER), SEEDS, store, machine) == (8, [])
        assert numbers(store, SMALL, OTHER) == undisturbed


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
        while not store.names():
            time.sleep(0.01)
        pids = client.run(os.getpid)
        os.kill(next(iter(pids.values())), signal.SIGKILL)


RULE = '''
from fltrust_repro.aggregation import mean, rule

@rule("halved-mean")
def halved_mean(updates):
    """Half of the mean."""
    return mean(updates) / 2
'''


def test_a_plugin_reaches_the_workers_and_its_trials_count_here(machine, tmp_path):
    path = tmp_path / "my_rule.py"
    path.write_text(RULE)
    load_plugin(path)
    try:
        setting = replace(SMALL, rule="halved-mean", attack="none", iterations=10)
        with Store(tmp_path / "trials.sqlite") as store:
            outcome = run_missing(cells(setting), [0], store, replace(machine, plugins=(path,)))
            assert outcome == (1, [])
            assert len(store.find(setting)) == 1
    finally:
        rules._entries.pop("halved-mean")


def test_a_data_set_that_a_worker_lacks_is_named_before_any_trial(machine, tmp_path, monkeypatch):
    setting = replace(SMALL, dataset="ch-mnist")
    with Store(tmp_path / "trials.sqlite") as store:
        with pytest.raises(DataUnavailable, match=r"worker tcp://127.*ch-mnist"):
            run_missing(cells(SMALL, setting), [0], store, machine)
        assert store.names() == set()


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
