"""How long trials will take, and how many share a GPU: told by a short one of each kind."""

from __future__ import annotations

from collections.abc import Sequence

from fltrust_repro import trial_process
from fltrust_repro.errors import Raised
from fltrust_repro.processes import Executor, Place
from fltrust_repro.settings import Setting


def project(executor: Executor, settings: Sequence[Setting], place: Place) -> float | None:
    """Return the seconds until a trial of each setting is done, as many at a time as there is room.

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
    seconds = sum(one.iterations * pace[_kind(one)] for one in settings)
    return seconds / max(1, min(executor.slots(), len(settings)))


def _kind(setting: Setting) -> tuple[str, str]:
    return setting.dataset, setting.model
