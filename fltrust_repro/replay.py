"""An iteration of a finished trial, which is run again as far as that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fltrust_repro import backend
from fltrust_repro.course import Course
from fltrust_repro.plugins import plugins_for
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Master
from fltrust_repro.training import Federation
from fltrust_repro.trial_process import afresh

if TYPE_CHECKING:
    from mxnet.ndarray import NDArray


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
    setting: Setting, seed: int, span: range, data_dir: str | Path | None
) -> Moment | None:
    """Return the iteration of the span in which workers attacked and the error rises most.

    Of equal ones the first; where nobody attacked in the span, the first later one in which
    somebody did, or none. The span may end where the trial diverged.
    """
    trial, plugins = (setting, seed, backend.context("cpu"), data_dir), plugins_for(())
    with afresh(seed, plugins):
        federation = Federation(*trial)
        course = _as_far_as(span.start - 1, federation, federation.begin(None))
        kept = None if setting.plugin_key() else federation.snapshot(course)
        rises, end = _rises(federation, course.w, span, setting.iterations)
    if not rises:
        return None
    found = max(rises, key=lambda iteration: rises[iteration])
    with afresh(seed, plugins):  # from the start, where a user's code may keep more than is known
        federation = Federation(*trial)
        w = _as_far_as(found - 1, federation, federation.begin(kept)).w
        sent = federation.sent(w, found, True)
        updates, master = backend.host_view(sent.updates), federation.master.seen()
        following = backend.to_ndarray(backend.host_view(w) + master.answer(updates))
        errors = federation.error_rate(w), federation.error_rate(following)
    return Moment(found, updates, sent.c, sent.before, master, errors, end)


def _as_far_as(iteration: int, federation: Federation, course: Course) -> Course:
    """The trial as it is after an iteration."""
    w = course.w
    for following in range(course.iterations + 1, iteration + 1):
        w = federation.moved(w, federation.sent(w, following, False), False)
    return Course(w, iteration)


def _rises(
    federation: Federation, w: NDArray, span: range, last: int
) -> tuple[dict[int, float], tuple[int, float]]:
    """How the error rises in the iterations of the span in which workers attacked, and its end.

    Where there is none, the first later one stands alone.
    """
    rises: dict[int, float] = {}
    error = federation.error_rate(w)
    for iteration in range(span.start, last + 1):
        sent = federation.sent(w, iteration, False)
        w = federation.moved(w, sent, False)
        if iteration in span or sent.c:
            before, error = error, federation.error_rate(w)
        if sent.c:
            rises[iteration] = error - before
        if rises and iteration >= span[-1]:
            return rises, (iteration, error)
    return {}, (last, error)
