"""MXNet made importable, and one thread per trial; nothing changes for the rest of a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import NamedTuple

import numba
import numpy as np
import pytest

from fltrust_repro import backend, machine, trial_process
from fltrust_repro.backend import WORKER_ENVIRONMENT
from fltrust_repro.processes import LocalProcesses, Machine
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial

SEVERAL = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MXNET_OMP_MAX_THREADS"), "4"
)
TRIALS = {
    "lr": Setting(dataset="digits", attack="krum", workers=10, compromised=2, iterations=20),
    "cnn": Setting(
        dataset="breast-cancer", model="cnn", rule="bulyan", workers=10, compromised=2, iterations=2
    ),
    "resnet20": Setting(
        dataset="digits", model="resnet20", rule="mean", workers=4, compromised=1, iterations=3
    ),
}


def python(program: str, read: str = "", **variables: str) -> str:
    """What a program prints in a user's process, whose environment limits no threads."""
    names = (*WORKER_ENVIRONMENT, "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False,
        input=read, env={**inherited, "PYTHONPATH": path, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- importing changes nothing

LOOK = """
import os, pickle, random, signal, sys, warnings
import numpy as np

def state():
    return {
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "random": random.getstate(),
        "numpy.random": pickle.dumps(np.random.get_state()),
        "errors": np.geterr(),
        "hooks": (sys.excepthook, sys.displayhook, sys.getrecursionlimit()),
        "dropped": [hasattr(np, name) for name in "bool int float object str complex".split()],
    }

before = state()
for line in sys.stdin:
    exec(line)
    after = state()
    print(line.strip(), [name for name in before if before[name] != after[name]])
"""
IMPORTS = (
    "import fltrust_repro",
    "from fltrust_repro import backend, machine, processes",
    "from fltrust_repro.backend import mx, nd",
    "from fltrust_repro import aggregation, attacks, defenses, models, datasets, settings",
    "from fltrust_repro import trial_process, training, store",
)


@pytest.mark.slow
def test_an_import_changes_nothing_for_the_rest_of_the_process():
    told = python(LOOK, "\n".join(IMPORTS)).splitlines()
    assert told == [f"{line} []" for line in IMPORTS]


@pytest.mark.slow
def test_mxnet_works_without_the_names_that_numpy_dropped_and_those_of_the_user_stay():
    program = """
import warnings
warnings.simplefilter("ignore")
import numpy as np
np.int = np.int64
from fltrust_repro.backend import mx
a = mx.np.array([1.0, 2.0, 3.0])
print(a[mx.np.array([True, False, True], dtype="bool")].tolist(), a[[True, False, True]].tolist())
print(mx.np.ones(2, dtype="bool").tolist(), mx.np.array(np.ones(2, bool), dtype="bool").tolist())
print(mx.nd.np.ones_like(a).tolist(), mx.np.eye(2).tolist(), mx.np.equal(a, a).tolist())
mx.test_utils.assert_almost_equal(a, a.copy())
print(mx.nd.np._op._np.bool is bool, hasattr(np, "bool"), np.int is np.int64)
"""
    lines = python(program).splitlines()
    assert lines == [
        "[1.0, 3.0] [1.0, 3.0]",
        "[True, True] [True, True]",
        "[1.0, 1.0, 1.0] [[1.0, 0.0], [0.0, 1.0]] [True, True, True]",
        "True False True",
    ]


@pytest.mark.slow
def test_what_mxnet_imports_for_parts_that_nobody_uses_waits_until_somebody_does():
    program = """
import sys
from fltrust_repro.backend import gpu_count, mx
mx.nd.ones(1).wait_to_read()
print({"sklearn", "pandas", "scipy.stats"} & {*sys.modules}, gpu_count() >= 0)
import scipy.stats, sklearn.datasets
print(scipy.stats.norm.cdf(0), sklearn.datasets.load_digits().data.shape)
"""
    assert python(program).splitlines() == ["set() True", "0.5 (1797, 64)"]


# --- one thread while a trial runs

IN_MY_PROCESS = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
if sys.argv[-1] == "mine":  # MXNet imported and at work before the package comes
    for name, type_ in zip("bool int float object str complex".split(),
                           (bool, int, float, object, str, complex)):
        setattr(np, name, type_)
    import mxnet
    mxnet.nd.dot(mxnet.nd.ones((300, 300)), mxnet.nd.ones((300, 300))).wait_to_read()
import numba, scipy.linalg.blas
from threadpoolctl import threadpool_info
import test_backend as tests
from fltrust_repro.training import run_trial
from fltrust_repro.backend import mx
from fltrust_repro.backend import _limit_mxnet

def threads_now():
    limits = {told["filepath"]: told["num_threads"] for told in threadpool_info()}
    mxnet = _limit_mxnet(1)
    _limit_mxnet(mxnet)
    return limits, numba.get_num_threads(), mxnet, dict(os.environ)

mx.nd.ones(2).wait_to_read()
seen, before = [], threads_now()
results = {name: list(run_trial(one, 0, after_iteration=lambda: seen.append(threads_now())).curve)
           for name, one in tests.TRIALS.items()}
limits = {count for those, *_ in seen for count in those.values()}
print(json.dumps([results, threads_now() == before, sorted(limits), [n[1:3] for n in seen][-1],
                  [*before[1:3], *sorted(set(before[0].values()))]]))
"""


class Worker(NamedTuple):
    """What a worker process has and gives, and what its start did to our environment."""

    variables: dict[str, str | None]
    curves: dict[str, list]
    versions: set[str]
    changed: bool


@pytest.fixture(scope="module")
def worker():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "3")
        before = dict(os.environ)
        processes = LocalProcesses(Machine(jobs=1))
        try:
            call = processes.submit
            variables = {name: call(os.getenv, name).result() for name in WORKER_ENVIRONMENT}
            trials = {
                name: call(trial_process.run, one, 0, "1", "cpu", None).result()
                for name, one in TRIALS.items()
            }
        finally:
            processes.close()
        curves = {
            name: [list(point) for point in trial.result.curve] for name, trial in trials.items()
        }
        versions = {trial.versions for trial in trials.values()}
        return Worker(variables, curves, versions, dict(os.environ) != before)


def test_worker_processes_have_one_thread_each_and_ours_keeps_its_own(worker):
    assert worker.variables == WORKER_ENVIRONMENT
    assert not worker.changed


def test_every_trial_names_the_machine(worker):
    assert worker.versions == {machine.versions()}


@pytest.mark.slow
@pytest.mark.parametrize("who", [pytest.param("ours", marks=pytest.mark.long), "mine"])
def test_threads_of_the_users_process_change_no_number_and_come_back(who, worker):
    program = IN_MY_PROCESS.replace("sys.argv[-1]", repr(who))
    curves, restored, limits, within, before = json.loads(python(program, **SEVERAL))
    assert curves == worker.curves  # to the last bit
    assert restored
    assert limits == [1]
    assert within == [1, 1]
    assert before[:2] == [4, 4]
    assert 4 in before[2:]


def test_threads_come_back_after_an_error():
    before = numba.get_num_threads(), backend._limit_mxnet(2), dict(os.environ)
    try:
        with pytest.raises(ZeroDivisionError), backend.one_thread():
            assert backend._limit_mxnet(1) == 1
            raise ZeroDivisionError
        assert backend._limit_mxnet(before[1]) == 2
        assert (numba.get_num_threads(), dict(os.environ)) == (before[0], before[2])
    finally:
        backend._limit_mxnet(before[1])


# --- the environment of worker processes


def test_the_environment_comes_back_as_it_was(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("KEPT", "yes")
    before = dict(os.environ)
    with backend.environment({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
        os.environ["ADDED"] = "by a library"
        del os.environ["KEPT"]
    assert dict(os.environ) == before


def test_no_generator_of_the_process_is_seeded_by_a_trial():
    np.random.seed(7)
    state = np.random.get_state()[1].copy()
    run_trial(Setting(dataset="digits", workers=10, compromised=2, iterations=1), 0)
    assert (np.random.get_state()[1] == state).all()
