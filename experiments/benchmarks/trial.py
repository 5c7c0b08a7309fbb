"""A whole trial of LR on MNIST: 500 iterations, evaluated every tenth; set-up included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import images
from measure import Row, in_fresh_process, peak, timed

from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial

SECTION = "trial"


def _measure(setting: Setting, budget: float, data_dir: Path | None) -> Row:
    run_trial(Setting.from_dict({**setting.as_dict(), "iterations": 2}), 0, data_dir=data_dir)
    with peak() as most:
        found = timed(lambda: run_trial(setting, 0, data_dir=data_dir), budget)
    case = f"{setting.iterations} iterations, {setting.rule} under its attack"
    return Row(SECTION, case, m=setting.workers, memory=most.memory, **found)


def rows(quick: bool, data_dir: Path | None, say: Callable[[str], None]) -> Iterator[Row]:
    """Measure the trial."""
    say("trial")
    fields = {"rule": "trimmed-mean", "attack": "trimmed-mean", "knowledge": "partial"}
    setting = images.lr_setting(quick, data_dir, iterations=20 if quick else 500, **fields)
    yield in_fresh_process(_measure, setting, 0.1 if quick else 8.0, data_dir)
