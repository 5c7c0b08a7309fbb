"""Settings in short: what several have in common, and what tells each from the others.

What is not told has the default that `run` gives it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.errors import BadInput, one_line
from fltrust_repro.settings import FIELDS, Setting

_IN_COLUMNS = ("pre", "rule", "attack", "knowledge")  # which have words of their own
_ALWAYS = ("dataset", "model")  # told of all settings together, even if they have their defaults
_FOLLOW = [name for name, field in FIELDS.items() if field.default is None]  # what else is chosen

Label = Mapping[str, str]  # by the columns "rule", "attack" and "setting", or some of them


def ordered(settings: Iterable[Setting]) -> list[Setting]:
    """Return settings field by field in order: rules and attacks as `list` has them."""
    places = {"rule": [*rules], "attack": [*attacks]}

    def place(name: str, value: Any) -> tuple[bool, int, Any]:
        known, first = places.get(name, []), str(value).partition(":")[0]
        at = known.index(first) if first in known else len(known)
        return value is not None, at, value

    return sorted(set(settings), key=lambda one: [place(*field) for field in one.as_dict().items()])


def told(setting: Setting) -> dict[str, Any]:
    """Return the fields that are to be given for a setting, but for those of its rule and attack.

    >>> from fltrust_repro.labels import told
    >>> from fltrust_repro.settings import Setting
    >>> told(Setting(attack="krum", compromised=10))  # beta follows
    {'compromised': 10}
    """
    values = setting.as_dict()
    usual = {name: field.default for name, field in FIELDS.items()}
    try:
        plain = Setting.from_dict({**values, **dict.fromkeys(_FOLLOW)}).as_dict()
        usual |= {name: plain[name] for name in _FOLLOW}
    except BadInput:  # a limit stands against what would follow: all is told
        pass
    usual |= {name: values[name] for name in _IN_COLUMNS}
    return {name: value for name, value in values.items() if value != usual[name]}


def changed(setting: Setting, fields: Mapping[str, Any]) -> Setting:
    """Return a setting with other values of some fields; what follows them does so.

    Raises `BadInput` for what is no setting.

    >>> from fltrust_repro.labels import changed
    >>> from fltrust_repro.settings import Setting
    >>> changed(Setting(), {"compromised": 10}).beta
    10
    """
    own = {name: getattr(setting, name) for name in _IN_COLUMNS}
    return Setting.from_dict({**own, **told(setting), **fields})


def labels(
    settings: Iterable[Setting], without: Collection[str] = ()
) -> tuple[str, dict[Setting, Label]]:
    """Return what settings have in common, and a label of each, in their order.

    Fields `without` are not told. All labels have the same columns, those that tell them apart; of
    a single setting none.
    """
    every = ordered(settings)
    fields = {one: {n: v for n, v in told(one).items() if n not in without} for one in every}
    shared = _shared(every, fields, without)
    columns = {
        "rule": [_joined("+", one, {"pre", "rule"} - {*without}) for one in every],
        "attack": [_joined(", ", one, {"attack", "knowledge"} - {*without}) for one in every],
        "setting": [
            in_words({n: v for n, v in own.items() if n not in shared or v != shared[n]})
            for own in fields.values()
        ],
    }
    apart = [name for name, texts in columns.items() if len(set(texts)) > 1]
    alike = {n: texts[0] for n, texts in columns.items() if n not in apart and texts[0]}
    found: dict[Setting, Label] = {
        one: {n: columns[n][k] for n in apart} for k, one in enumerate(every)
    }
    return in_words({**alike, **shared}), found


def _shared(
    every: Collection[Setting], fields: Mapping[Setting, Mapping], without: Collection[str]
) -> dict[str, Any]:
    """What all settings have, where one of them tells it; and the usual data set and model."""
    shared, whole = {}, [setting.as_dict() for setting in every]
    for name in (n for n in FIELDS if n not in without):
        values = {own[name] for own in whole}
        usual = name in _ALWAYS and FIELDS[name].default in values
        if len(values) == 1 and (name in _ALWAYS or any(name in own for own in fields.values())):
            shared[name] = values.pop()
        elif usual:
            shared[name] = FIELDS[name].default
    return shared


def _joined(by: str, setting: Setting, names: Collection[str]) -> str:
    parts = (getattr(setting, name) for name in _IN_COLUMNS if name in names)
    return by.join(filter(None, parts))


def in_words(fields: Mapping[str, Any]) -> str:
    """Say which values fields have, as options are called.

    >>> from fltrust_repro.labels import in_words
    >>> in_words({"non_iid": 0.1, "rule": "krum"})
    'non-iid 0.1, rule krum'
    """
    told = (f"{name.replace('_', '-')} {_value(value)}" for name, value in fields.items())
    return one_line(", ".join(told))


def _value(value: Any) -> str:
    if value is None or value == "":
        return "none"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
