"""What runs in a worker process: one trial after the other, on one core or a share of a GPU.

The process is prepared once; all else comes with each call. Plug-ins are executed anew by each, so
that nothing they keep goes from trial to trial. A call returns what it is asked for, or a `Raised`:
an error of a user's own class might not survive the way back.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fltrust_repro import backend, datasets, machine
from fltrust_repro.attacks import attacks
from fltrust_repro.checkpoints import Checkpoints
from fltrust_repro.errors import BadInput, Raised
from fltrust_repro.plugins import Plugin, run_afresh
from fltrust_repro.settings import Setting
from fltrust_repro.training import (
    EVALUATE_EVERY,
    PROTOCOL,
    TrialResult,
    poisoned_examples,
    run_trial,
)
from fltrust_repro.trials import Trial, TrialName


@dataclass
class _Process:  # what it learns once, when it starts
    gpu: int = 0
    after_iteration: Callable[[], None] = lambda: None
    is_the_commands: bool = False


_process = _Process()


def prepare(gpu: int, after_iteration: Callable[[], None], is_the_commands: bool = False) -> None:
    """Make this process ready for trials: its GPU, its end of the progress bar, whose it is."""
    _process.gpu, _process.after_iteration = gpu, after_iteration
    _process.is_the_commands = is_the_commands


class _Amid(Exception):
    """What a trial is refused for after an iteration was done: its own end, and no other trial's.

    As a rule's result whose shape has changed. What is refused in the first iteration, or before
    it, is so with any seed, and ends the command.
    """

    def __init__(self, refused: BadInput) -> None:
        super().__init__(str(refused))
        self.refused = refused


def _told(call: Callable) -> Callable:
    """Return an error of any kind, `sys.exit` too, instead of raising it; Ctrl-C is none."""

    @functools.wraps(call)
    def told(*args: Any) -> Any:
        try:
            # What a plug-in prints must not stand amid what a command says.
            with contextlib.redirect_stdout(sys.stderr):
                return call(*args)
        except _Amid as late:
            return Raised.of(late.refused)._replace(mendable=None)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and _process.is_the_commands:
                raise
            return Raised.of(error)

    return told


@contextlib.contextmanager
def afresh(seed: int, plugins: Sequence[Plugin]) -> Iterator[None]:
    """Whatever plug-ins keep, or draw from the generators that a process shares, is a trial's."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        run_afresh(plugins)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _trial(
    setting: Setting,
    seed: int,
    plugins: Sequence[Plugin],
    after_iteration: Callable[[], None] = lambda: None,
    **where: Any,
) -> TrialResult:
    amid = where.get("begun") is not None

    def after() -> None:
        nonlocal amid
        amid = False  # what the command itself does then, with its store, is no trial's
        after_iteration()
        amid = True

    try:
        with afresh(seed, plugins):
            return run_trial(setting, seed, gpu=_process.gpu, after_iteration=after, **where)
    except BadInput as error:
        if amid:
            raise _Amid(error) from error
        raise


@functools.cache  # a process reads examples once
def _check_examples(
    dataset: str, protocol: str, data_dir: Path | None, plugins: tuple[Plugin, ...]
) -> None:
    """Raise `BadInput` where a plug-in's data set is not the one that trials are named by."""
    run_afresh(plugins)
    digest = datasets.data_digest(dataset, data_dir)
    if digest is not None and digest not in protocol.split("+"):
        where = "here than where the command began"
        do = "give all the same, and let what loads them draw with its rng alone"
        raise BadInput(f"data set {dataset!r} has other examples {where}; {do}.")


@_told
def run(
    setting: Setting,
    seed: int,
    protocol: str,
    device: str,
    data_dir: Path | None,
    plugins: Sequence[Plugin] = (),
    checkpoints: Checkpoints | None = None,
) -> Trial | Raised:
    """Run one trial; `protocol` is what the command that asks for it names it by."""
    gpu = _process.gpu if device == "gpu" else None
    how: dict[str, Any] = {"device": device, "data_dir": data_dir}
    how["after_iteration"] = _process.after_iteration
    name = TrialName(setting.key(), seed, protocol)
    if kept := checkpoints and checkpoints.of(name, gpu):
        how["keep"] = kept.keep
        with contextlib.suppress(ValueError):  # it is damaged, as the command has said
            how["begun"] = kept.read()
    _check_examples(setting.dataset, protocol, data_dir, tuple(plugins))
    result = _trial(setting, seed, plugins, **how)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    told = kept.versions if kept else machine.versions(gpu)
    return Trial(setting, seed, result, device, told, now, protocol)


class Projection(NamedTuple):
    """What a trial will take, from a few of its iterations."""

    seconds: float
    gpu_share: float  # of a GPU's memory, as used so far; 0 on the CPU


@_told
def project(
    setting: Setting, device: str, data_dir: Path | None, plugins: Sequence[Plugin] = ()
) -> Projection | Raised:
    """Estimate what a trial takes from six iterations; evaluation is timed apart."""
    run_afresh(plugins)
    # Poisoned examples take minutes to make and change an iteration's time by little.
    without = {"attack": "none"} if attacks[setting.attack].inject is not None else {}

    def timed(iterations: int) -> float:
        short = Setting.from_dict({**setting.as_dict(), **without, "iterations": iterations})
        return _trial(short, 0, plugins, device=device, data_dir=data_dir).seconds

    timed(1)  # compiles, or loads what was compiled
    one, four = timed(1), timed(4)
    iteration = max(four - one, 0.0) / 3  # a busy machine may stop the shorter one
    evaluation = max(one - iteration, 0.0)
    seconds = setting.iterations * (iteration + evaluation / EVALUATE_EVERY)
    return Projection(seconds, backend.gpu_memory_share(_process.gpu) if device == "gpu" else 0.0)


@_told
def make_poisoned_set(
    setting: Setting, seed: int, device: str, data_dir: Path | None, plugins: Sequence[Plugin] = ()
) -> None:
    """Make the examples that a setting's attack injects; kept on disk, too large to send back."""
    run_afresh(plugins)
    poisoned_examples(setting, seed, data_dir)


@_told
def look_around(
    names: Iterable[str], data_dir: Path | None, plugins: Sequence[Plugin]
) -> tuple[int, list[str], str] | Raised:
    """Return the protocol's version here, what is wrong with data sets, and the kind of machine."""
    run_afresh(plugins)
    problems = []
    for name in names:
        try:
            datasets.fetch(name, data_dir)
        except BadInput as error:
            problems.append(str(error))
    return PROTOCOL, problems, machine.kind()
