"""Own parameters of a rule or an attack, chosen with its name: `multi-krum:q=5`.

They are the keyword-only arguments of its function, which all have defaults: numbers, text, True or
False, or None for what the function works out itself.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from numbers import Real
from typing import Any

from fltrust_repro.errors import BadInput, choose, shown


def own_parameters(function: Callable) -> dict[str, Any]:
    """Return a function's own parameters with their defaults."""
    found = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in found if one.kind is one.KEYWORD_ONLY}


def takes_whole(function: Callable, name: str) -> bool:
    """Whether an own parameter of a function is a whole number, by its default or annotation."""
    one = inspect.signature(function).parameters.get(name)
    if one is None or one.kind is not one.KEYWORD_ONLY or isinstance(one.default, bool):
        return False
    told = getattr(one.annotation, "__name__", str(one.annotation))
    return isinstance(one.default, int) or re.match(r"int\b", told) is not None


def asked_for(
    kind: str, name: str, function: Callable, may: tuple[str, ...], twin: Callable | None = None
) -> tuple[str, ...]:
    """Return what a function asks for by name after the updates; `BadInput` for what there is not.

    Own parameters, which are by keyword alone, have defaults, and no name of `may`. A rule's
    leave_one_out is its `twin`, which is called with the same.
    """
    user = f"{kind} {name!r}"
    check_called(user, function)
    own = own_parameters(function)
    names = tuple(one for one in inspect.signature(function).parameters if one not in own)[1:]
    if strange := sorted(set(names) - set(may)):
        raise BadInput(
            f"{user} takes {', '.join(strange)}; after the updates a {kind} may take "
            f"{', '.join(may)}, and parameters of its own by keyword alone."
        )
    if early := sorted(set(own) & set(may)):
        raise BadInput(f"{user} takes {early[0]} by keyword alone; name it before the *.")
    if twin is not None:
        check_called(f"{user}: its leave_one_out", twin, [*names, *own])
    return names


def check_called(user: str, function: Callable, names: Collection[str] | None = None) -> None:
    """Raise `BadInput` where a function cannot be called with one argument and these by name.

    Without names, with all that have to be given.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise BadInput(f"{user} tells no signature; give a function of Python's.") from None
    found = signature.parameters.values()
    for one in found:
        if one.kind is one.KEYWORD_ONLY and one.default is inspect.Parameter.empty:
            raise BadInput(f"{user}: its parameter {one.name} has no default; give it one.")
    if names is None:
        names = [one.name for one in found if one.default is inspect.Parameter.empty][1:]
    try:
        signature.bind(None, **dict.fromkeys(names))
    except TypeError as error:
        told = f"one argument and {', '.join(names)} by name" if names else "one argument"
        raise BadInput(
            f"{user} cannot be called with {told} ({error}); let it take them."
        ) from None


def chosen(user: str, function: Callable, text: str) -> dict[str, Any]:
    """Read `q=5,of=mean` as values of a function's own parameters; `BadInput` where it is wrong.

    Those that are the default are left out, and the others come in the function's order.
    """
    known, given = own_parameters(function), {}
    for part, name, value in _choices(text):
        if not value:
            raise BadInput(f"{user}: {shown(part)} is no choice of a parameter; write name=value.")
        if name not in known:
            told = choose(name, known) if known else "it has none."
            raise BadInput(f"{user}: unknown parameter {shown(name)}; {told}")
        if name in given:
            raise BadInput(f"{user}: {name} is given twice; leave one out.")
        given[name] = _read(f"{user}: {name}", value, known[name])
    return {name: given[name] for name in known if name in given and given[name] != known[name]}


def _choices(text: str) -> Iterator[tuple[str, str, str]]:
    """Each part of `q=5,of=mean`, and the name and the value in it; the latter empty without."""
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        yield part, name, value


def _read(what: str, text: str, default: Any) -> Any:
    """A value as the default's type is; beside None any number or text."""
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise BadInput(f"{what} is {shown(text)}; give true or false.")
        return text.lower() == "true"
    if default is None and text == "None":
        return None
    if not isinstance(default, (Real, type(None))):
        raise BadInput(f"{what} is {shown(default)} by default, which is chosen in code alone.")
    try:
        number = float(text)
    except ValueError:
        if default is None:
            return text
        raise BadInput(f"{what} is {shown(text)}; give a number.") from None
    if not math.isfinite(number):
        raise BadInput(f"{what} is {shown(text)}; give a finite number.")
    if isinstance(default, float) or not number.is_integer():
        if isinstance(default, int):
            raise BadInput(f"{what} is {shown(text)}; give a whole number.")
        return number
    return int(text) if text.isdecimal() else int(number)  # a float has but 16 digits


def words_of(name: str) -> list[str]:
    """Return the values of the own parameters that follow a name.

    >>> from fltrust_repro.parameters import words_of
    >>> words_of("gas:base=krum,groups=10")
    ['krum', '10']
    """
    return [value for _, _, value in _choices(name.partition(":")[2]) if value]


def name_with(name: str, values: Mapping[str, Any]) -> str:
    """Return the name under which an entry with these values is known: one name for one choice."""
    told = ",".join(f"{key}={_written(value)}" for key, value in values.items())
    return f"{name}:{told}" if told else name


def _written(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return str(value).removesuffix(".0").replace("e+", "e")  # + begins another step before a rule


def with_values(function: Callable, values: Mapping[str, Any]) -> Callable:
    """Return the function with these values of its own parameters."""
    return functools.wraps(function)(functools.partial(function, **values)) if values else function
