"""How long trials will take, and how many share a GPU: told by a short one of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fltrust_repro import trial_process
from fltrust_repro.errors import Raised
from fltrust_repro.processes import Executor, Place
from fltrust_repro.settings import Setting


class Pace(NamedTuple):
    """How long trials take: seconds of an iteration by data set and model, and how many at once."""

    seconds: dict[tuple[str, str], float]
    slots: int

    def of(self, settings: Sequence[Setting]) -> float:
        """Return the seconds until a trial of each setting is done."""
        one_by_one = sum(one.iterations * self.seconds[_kind(one)] for one in settings)
        return one_by_one / max(1, min(self.slots, len(settings)))


def project(executor: Executor, settings: Sequence[Setting], place: Place) -> Pace | None:
    """Return how long trials of the settings take, told by a short one of each kind.

    None where a short one gave no answer.
    """
    # Each model on each data set with the most workers, one after the other in a process: what the
    # largest fills on a GPU decides how many trials share it.
    tried = {_kind(one): one for one in sorted(settings, key=lambda setting: setting.selected)}
    pace: dict[tuple[str, str], float] = {}
    for kind, setting in tried.items():
        projection = executor.result(executor.submit(trial_process.project, setting, *place))
        if isinstance(projection, Raised):
            projection.raise_if_mendable()
            return None  # the trial itself will meet it again, and tell
        pace[kind] = projection.seconds / setting.iterations
    executor.share_gpus(projection.gpu_share)
    return Pace(pace, executor.slots())


def _kind(setting: Setting) -> tuple[str, str]:
    return setting.dataset, setting.model
