"""Finished trials wherever they lie, each with its file, and those of them that are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fltrust_repro import experiments, reproduction
from fltrust_repro.archive import Archive
from fltrust_repro.errors import BadInput, LeftOut, choose, shown
from fltrust_repro.settings import Setting, canonical_name
from fltrust_repro.trial_files import is_csv, read_csv
from fltrust_repro.trials import Trial, TrialName, Trials, protocol_of

_REGISTERED = ("dataset", "model", "rule", "pre", "attack", "defense")  # what plug-ins bring


class Found(NamedTuple):
    """A finished trial and the file that it lies in."""

    trial: Trial
    file: Path


class Group(NamedTuple):
    """A setting's trials under one version of the code and of its plug-ins, by seed."""

    setting: Setting
    protocol: str
    found: list[Found]

    @property
    def is_current(self) -> bool:
        """Whether the code is today's, so that these trials answer for the setting."""
        return self.protocol == protocol_of(self.setting)

    @property
    def trials(self) -> list[Trial]:
        """The trials alone."""
        return [one.trial for one in self.found]


def gathered(sources: Sequence[Path], store: Path, out: Path, quietly: bool = False) -> list[Found]:
    """Return the trials of the sources named; of none what `reproduce` and `show` need not run.

    Which is in a store, in OUT, and published. A trial that lies in several files is found once, in
    the first of them. Says on stderr what is left out, `quietly` only of the user's own.
    """
    if sources:
        return _once(one for source in sources for one in lying_in(source))
    own, published = LeftOut(), LeftOut()
    found = _of_store(store, own) + _of_folder(out, own)
    if not reproduction.is_published(out):
        found += _of_folder(experiments.published(), published)
    own.tell()
    if not quietly:
        published.tell()
    return _once(found)


def lying_in(path: Path) -> list[Found]:
    """Return the trials of a store, of a results folder, or of a file of trials.

    Raises `BadInput` where there are none.
    """
    left_out = LeftOut()
    if path.is_dir():
        found = _of_folder(path, left_out)
    elif not path.is_file():
        wanted = "give a store, a folder of results or a .trials.csv file"
        raise BadInput(f"{str(path)!r} does not exist; {wanted}.")
    elif is_csv(path):
        found = [Found(trial, path) for trial in read_csv(path, left_out)]
    else:
        found = _of_store(path, left_out)
    left_out.tell()
    if not found:
        kind = "no file NAME.trials.csv with trials" if path.is_dir() else "no trial that is read"
        raise BadInput(f"{str(path)!r} holds {kind}; give a store, a folder or a file that does.")
    return _once(found)


def _of_store(path: Path, left_out: LeftOut) -> list[Found]:
    with Archive(path) as store:
        store.left_out = left_out
        return [Found(trial, path) for trial in store.everything()]


def _of_folder(folder: Path, left_out: LeftOut) -> list[Found]:
    files = reproduction.by_file(folder, left_out)
    return [Found(trial, file) for file, trials in files.items() for trial in trials]


def _once(found: Iterable[Found]) -> list[Found]:
    first: dict[TrialName, Found] = {}
    for one in found:
        first.setdefault(one.trial.name, one)
    return list(first.values())


def chosen(found: Iterable[Found], wanted: Mapping[str, Collection[Any]]) -> list[Found]:
    """Return the trials whose settings have, in each field wanted, one of the values.

    Raises `BadInput` for a value that no trial has.
    """
    found = list(found)
    kept = {name: {_as_kept(name, v): v for v in some} for name, some in wanted.items()}
    values = {one.trial.setting: one.trial.setting.as_dict() for one in found}
    for name, asked in kept.items():
        known = {of[name] for of in values.values()}
        for value, typed in asked.items() if found else ():
            if value not in known:
                there = sorted(map(str, known - {None, ""}))
                what = f"{name.replace('_', '-')} {shown(typed)}"
                hint = " (for one of a plug-in give --plugin)" * (
                    name in _REGISTERED and typed != "none"
                )
                wrong = f"no trial at hand has {what}{hint}"
                told = choose(str(typed), there) if there else "all have none."
                raise BadInput(f"{wrong}; {told}")
    fits = {s for s, of in values.items() if all(of[n] in asked for n, asked in kept.items())}
    return [one for one in found if one.trial.setting in fits]


def _as_kept(field: str, value: Any) -> Any:
    """A value as a setting has it: alie:z=1 where alie:z=1.0 is typed."""
    if (field, value) == ("knowledge", "none"):
        return None
    if field not in ("rule", "pre", "attack"):
        return value
    try:
        return canonical_name(field, value)
    except BadInput:  # of a plug-in that is not given
        return value


def groups(found: Iterable[Found]) -> list[Group]:
    """Return trials by setting and version of the code, in the order in which they come."""
    known: dict[tuple[Setting, str], list[Found]] = {}
    for one in sorted(found, key=lambda one: one.trial.seed):
        known.setdefault((one.trial.setting, one.trial.protocol), []).append(one)
    return [Group(*name, some) for name, some in known.items()]


def current(found: Iterable[Found]) -> Trials:
    """Return by setting the trials of today's code; where there are none, of the code before it."""
    return {setting: some[-1].trials for setting, some in _by_age(found).items()}


def before(found: Iterable[Found]) -> Trials:
    """Return by setting the trials of the code before today's, where there are any."""
    earlier = {
        setting: [one for one in some if not one.is_current]
        for setting, some in _by_age(found).items()
    }
    return {setting: some[-1].trials for setting, some in earlier.items() if some}


def today(found: Iterable[Found]) -> Trials:
    """Return by setting the trials of today's code, where there are any."""
    latest = {setting: some[-1] for setting, some in _by_age(found).items()}
    return {setting: group.trials for setting, group in latest.items() if group.is_current}


def _by_age(found: Iterable[Found]) -> dict[Setting, list[Group]]:
    """Each setting's groups, that of today's code last, before it the one that finished last."""
    known: dict[Setting, list[Group]] = {}
    for group in groups(found):
        known.setdefault(group.setting, []).append(group)

    def age(group: Group) -> tuple[bool, str]:
        return group.is_current, max(trial.finished for trial in group.trials)

    return {setting: sorted(some, key=age) for setting, some in known.items()}
