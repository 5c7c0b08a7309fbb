"""What a picture was made with, in a line that stands in the picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fltrust_repro.report import LEAST_TRIALS, Measured, seeds_named, seeds_told
from fltrust_repro.settings import Setting
from fltrust_repro.words import spanning

TOLD = ("model", "dataset", "workers", "compromised", "non_iid", "defense")  # by `of_setting`
MOST_NAMES = 3  # of models or data sets
MOST_LETTERS = 40  # of a list of seeds


def of_settings(settings: Iterable[Setting]) -> str:
    """Say the model, the data set, m, c and p; a range where settings differ.

    >>> from fltrust_repro.captions import of_settings
    >>> from fltrust_repro.settings import Setting
    >>> of_settings([Setting(), Setting(compromised=5)])
    'lr on mnist, m = 100, c = 5 to 20, p = 0.5'
    """
    settings = list(settings)
    names = [_named([getattr(one, field) for one in settings], f"{field}s")
             for field in ("model", "dataset")]  # fmt: skip
    numbers = (("m", "workers"), ("c", "compromised"), ("p", "non_iid"))
    ranges = [f"{symbol} = {_range([getattr(one, field) for one in settings])}"
              for symbol, field in numbers]  # fmt: skip
    return ", ".join([" on ".join(names), *ranges])


def of_master(setting: Setting) -> str:
    """Say what aggregates, with what comes before it and the defense that it is behind.

    >>> from fltrust_repro.captions import of_master
    >>> from fltrust_repro.settings import Setting
    >>> of_master(Setting(pre="clip", rule="median", defense="lfr"))
    'clip+median behind lfr'
    """
    defended = f" behind {setting.defense}" * (setting.defense != "none")
    return f"{setting.pre}+{setting.rule}".lstrip("+") + defended


def of_setting(setting: Setting) -> str:
    """Say what is aggregated how, under which attack, and where.

    >>> from fltrust_repro.captions import of_setting
    >>> from fltrust_repro.settings import Setting
    >>> of_setting(Setting(rule="median", attack="trimmed-mean"))
    'median under trimmed-mean (full), lr on mnist, m = 100, c = 20, p = 0.5'
    """
    known = f" ({setting.knowledge})" if setting.knowledge else ""
    attacked = "without attack" if setting.attack == "none" else f"under {setting.attack}{known}"
    return f"{of_master(setting)} {attacked}, {of_settings([setting])}"


def of_trials(measured: Sequence[Measured], place: str) -> str:
    """Say how many trials there are per `place`, as "cell", and their seeds."""
    known = [m for m in measured if m.errors]
    counts = [len(m.errors) for m in known]
    if not counts:
        return "no trials yet"
    told = f"{spanning(counts, 'trial')} per {place}"
    seeds = {seed for m in known for seed in m.seeds}
    if not seeds:
        return told
    if len(seeds_told(seeds)) > MOST_LETTERS:
        return f"{told}, seeds {len(seeds)} from {min(seeds)} to {max(seeds)}"
    return f"{told}, {seeds_named(seeds)}"


def of_measured(measured: Sequence[Measured], place: str) -> str:
    """Say what cells were measured with; of those without trials nothing, if others have some."""
    some = [m for m in measured if m.errors] or measured
    return f"{of_settings(m.cell.setting for m in some)}; {of_trials(measured, place)}"


def of_bands(measured: Sequence[Measured]) -> str:
    """Say what a band is, if any is drawn, and where there is none."""
    enough = {len(m.errors) >= LEAST_TRIALS for m in measured if m.errors}
    told = "bands: 95% confidence of the mean, within [0, 1]"
    less = f", with gaps around points of fewer than {LEAST_TRIALS} trials" * (False in enough)
    return (told + less) * (True in enough)


def _named(names: Sequence[str], many: str) -> str:
    different = list(dict.fromkeys(names))
    fits = len(different) <= MOST_NAMES
    if not fits:
        return f"{len(different)} {many}"
    return " and ".join(filter(None, (", ".join(different[:-1]), different[-1])))


def _range(numbers: Sequence[Any]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
