"""Options that say which finished trials a command is about: each one that `run` has filters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import click

from fltrust_repro.errors import BadInput, shown
from fltrust_repro.options import assigned, kind_of, reading
from fltrust_repro.settings import FIELDS, Setting

Wanted = dict[str, tuple[Any, ...]]  # the values that fields may have, by name

_SHOWN = ("dataset", "model", "rule", "pre", "attack", "knowledge", "defense", "compromised")


def filter_options(command: Callable) -> Callable:
    """Give a command an option per field of a setting, and `--reading`, together as `wanted`.

    Several values of the same field mean any of them, but --pre: steps one after another. The
    options that few need have no line in the help; they are those of `run`.
    """
    own = [field for field in dataclasses.fields(Setting) if field.name != "readings"]

    @functools.wraps(command)
    def filtered(**given: Any) -> None:
        wanted: Wanted = {name: given.pop(name) for name in [field.name for field in own]}
        wanted["pre"] = ("+".join(wanted["pre"]),) if wanted["pre"] else ()
        for name, value in map(reading, given.pop("readings")):
            wanted[name] = (*wanted.get(name, ()), value)
        command(wanted={name: values for name, values in wanted.items() if values}, **given)

    readings = click.option("--reading", "readings", multiple=True, metavar="NAME=VALUE",
                            help="Only with this reading of the paper.")  # fmt: skip
    return functools.reduce(
        lambda made, field: _option_of(field)(made), own[::-1], readings(filtered)
    )


def _option_of(field: dataclasses.Field) -> Callable:
    words, (kind, metavar) = field.name.replace("_", "-"), kind_of(field)
    none = ", or none" * (words in ("knowledge", "pre"))
    return click.option(
        f"--{words}", field.name, type=kind, multiple=True, metavar=metavar,
        hidden=field.name not in _SHOWN, help=f"Only with this {words}{none}; repeatable.",
    )  # fmt: skip


def assignment(option: str, text: str) -> tuple[str, Any]:
    """Return the field and the value that a text FIELD=VALUE names.

    >>> from fltrust_repro.filters import assignment
    >>> assignment("--against", "non-iid=0.1")
    ('non_iid', 0.1)
    """
    name, value = assigned(option, text, "FIELD", dict.fromkeys(FIELDS, "VALUE"))
    kind, _ = kind_of(FIELDS[name])
    try:
        return name, kind(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise BadInput(f"{option} is {shown(text)}; give {wanted} for {name}.") from None
