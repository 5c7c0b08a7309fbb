"""An iteration of a finished trial, which is run again as far as that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fltrust_repro import backend
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Master
from fltrust_repro.training import Federation, is_evaluated


@dataclass(frozen=True)
class Moment:
    """What was sent in one iteration of a trial, before anybody looked at it."""

    iteration: int
    updates: np.ndarray  # float32 (m, d)
    c: int  # of these, the first, by who attacked
    before: np.ndarray | None  # float32 (d,), what the master would have made without the attack
    master: Master  # to be asked; nothing moves
    errors: tuple[float, float]  # of the model, and of the next
    end: tuple[int, float]  # the last iteration that was run again, and the next model's error


def replayed(
    setting: Setting, seed: int, span: range, data_dir: str | Path | None, device: str = "cpu"
) -> Moment | None:
    """Return the iteration of the span in which the error rises most, of equal ones the first.

    Of those in which workers attacked; where there is none, the first evaluated one after the span
    in which they did, if any. The span may end where the trial diverged.
    """
    federation = Federation(setting, seed, backend.context(device), data_dir)
    w, error, found = federation.begin(None).w, None, None  # the error of w, where it is known
    for iteration in range(1, setting.iterations + 1):
        later = iteration >= span.stop and is_evaluated(iteration, setting)
        looked_at = iteration in span or later
        sent = federation.sent(w, iteration, looked_at)
        if not looked_at:
            w, error = federation.moved(w, sent, looked_at), None
            continue
        before = federation.error_rate(w) if error is None else error
        updates, master = backend.host_view(sent.updates).copy(), federation.master.frozen(w)
        w = federation.moved(w, sent, looked_at)
        error = federation.error_rate(w)
        errors = before, error
        if sent.c and (found is None or _rise(errors) > _rise(found.errors)):
            end = iteration, error
            found = Moment(iteration, updates, sent.c, sent.before, master, errors, end)
        if found is not None and iteration >= span[-1]:
            return replace(found, end=(iteration, error))
    return None


def _rise(errors: tuple[float, float]) -> float:
    return errors[1] - errors[0]
