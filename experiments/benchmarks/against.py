"""Iterations of this checkout and of another one in turns: what a change of the code is worth.

    python experiments/benchmarks/suite.py --only stages --against ../another-checkout

Each checkout has a process of its own, which imports the package from there, and they take turns of
a few iterations, so that whatever else the machine does disturbs both alike. Times are seconds of
the processor. Both train what `SETTINGS` has, trimmed mean under its attack with full knowledge,
and need nothing of each other but `training.Federation`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import images
from measure import Row, figures

from fltrust_repro import backend, training
from fltrust_repro.settings import Setting

SECTION = "against"
OTHER = "the other checkout"
SETTINGS: dict[str, dict[str, Any]] = {
    "LR, MNIST": {"dataset": "mnist", "model": "lr", "learning_rate": 0.1},
    "CNN, MNIST": {"dataset": "mnist", "model": "cnn", "learning_rate": 0.01},
    "CNN, Breast Cancer": {"dataset": "breast-cancer", "model": "cnn"},
}
_ATTACKED = {"rule": "trimmed-mean", "attack": "trimmed-mean", "knowledge": "full"}
_FEW = {"workers": 10, "compromised": 2}
_TURNS = 15
_AT_LEAST = 0.2  # seconds of a turn


def _package() -> Path:
    return Path(training.__file__).resolve().parents[1]


class _Turns:
    """The process of one checkout: a line asks it for a turn, and a line tells the times."""

    def __init__(self, root: Path, fields: dict[str, Any], data_dir: Path | None) -> None:
        given = json.dumps([fields, data_dir and str(data_dir)])
        self._process = subprocess.Popen(
            [sys.executable, __file__, given],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> _Turns:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def tell(self) -> Any:
        """Return what the process says next."""
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a checkout's process ended; it says why above")
        return json.loads(line)

    def turn(self) -> dict[str, float]:
        """Let it run, and return seconds by stage."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.tell()


def _serve(fields: dict[str, Any], data_dir: str | None) -> None:
    """Tell where the package is from, m and d; then train in turns, one for each line of input."""
    federation = training.Federation(Setting(**fields), 0, backend.context("cpu"), data_dir)
    w, iteration, spent = federation.learner.initial, 0, Counter()
    updates = federation.learner.updates

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = call()
        spent[name] += time.process_time() - started
        return result

    federation.learner.updates = lambda *given: timed("updates", lambda: updates(*given))
    print(json.dumps([str(_package()), fields["workers"], w.size]), flush=True)
    for _ in sys.stdin:
        spent.clear()
        first = iteration
        while spent["iteration"] < _AT_LEAST:
            iteration += 1
            w, _ = timed("iteration", lambda w=w, k=iteration: federation.iterate(w, k))
        each = {name: seconds / (iteration - first) for name, seconds in spent.items()}
        timed("evaluation", lambda w=w: federation.error_rate(w))
        rest = each["iteration"] - each["updates"]
        told = {"updates": each["updates"], "all else of an iteration": rest}
        told |= {"iteration": each["iteration"], "evaluation": spent["evaluation"]}
        print(json.dumps(told), flush=True)


def rows(
    other: Path, quick: bool, data_dir: Path | None, say: Callable[[str], None]
) -> Iterator[Row]:
    """Measure both checkouts; `other` is the folder that has the package's folder in it."""
    for name, setting in SETTINGS.items():
        fields = {"workers": 100, **setting, **_ATTACKED, **(_FEW if quick else {})}
        if fields["dataset"] == "mnist":
            fields["dataset"] = images.at_hand("mnist", quick, data_dir)
        say(f"against: {name}")
        with ExitStack() as both:
            roots = {"fltrust_repro": _package(), OTHER: other.resolve()}
            turns = {}
            for who, root in roots.items():
                turns[who] = both.enter_context(_Turns(root, fields, data_dir))
                found, m, d = turns[who].tell()
                if Path(found) != root:
                    raise RuntimeError(f"{who} was asked of {root}, and came from {found}")
            times = {who: [] for who in turns}
            for _ in range(2 if quick else _TURNS):
                for who, process in turns.items():
                    times[who].append(process.turn())
        for who, told in times.items():
            for stage in told[0]:
                seconds = figures([turn[stage] for turn in told[1:]])  # the first one compiles
                yield Row(SECTION, f"{name}: {stage}", who, m, d, **seconds)


if __name__ == "__main__":
    with backend.one_thread():
        _serve(*json.loads(sys.argv[1]))
