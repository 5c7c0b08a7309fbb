"""Named rules, attacks, models and data sets, filled by decorators."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fltrust_repro.errors import BadInput, UnknownName, choose, shown

Entry = TypeVar("Entry")


class Owner(Protocol):
    """Whose code registers entries: they count under its digest, and it can take them back."""

    digest: str
    entries: list[tuple[Registry[Any], str]]


_owner: Owner | None = None


@contextlib.contextmanager
def registering(owner: Owner) -> Iterator[None]:
    """Let what is registered meanwhile be the owner's."""
    global _owner
    outer, _owner = _owner, owner
    try:
        yield
    finally:
        _owner = outer


class Registry(Mapping[str, Entry], Generic[Entry]):
    """The entries of one kind ("rule", "attack", ...) by the name a user types.

    A name is registered once; an unknown one raises `BadInput` with the names there are.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._owners: dict[str, Owner] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Register `entry` under `name`, for the plug-in that is `registering`, if one is.

        Raises `BadInput` if the name is taken, or is no text.
        """
        if not isinstance(name, str) or not name:
            raise BadInput(f"a {self.kind} has the name {name!r}; give a text that is not empty.")
        if name in self._entries:
            raise BadInput(f"{self.kind} {name!r} exists already; register yours by another name.")
        self._entries[name] = entry
        self._owners.pop(name, None)
        if _owner is not None:
            self._owners[name] = _owner
            _owner.entries.append((self, name))

    def remove(self, name: str) -> None:
        """Take an entry back; nothing happens where there is none."""
        self._entries.pop(name, None)
        self._owners.pop(name, None)

    def digest(self, name: str) -> str | None:
        """Digest of the code of the plug-in that registered a name; None for a built-in one.

        Stored with each trial, so that an edited plug-in never answers with old results.
        """
        owner = self._owners.get(name)
        return None if owner is None else owner.digest

    def __getitem__(self, name: str) -> Entry:
        if name in self._entries:
            return self._entries[name]
        raise UnknownName(f"unknown {self.kind} {shown(name)}; {choose(name, self._entries)}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def summary(function: object) -> str:
    """First sentence of a docstring: what `list` prints beside a name."""
    text = (getattr(function, "__doc__", None) or "").strip() or "(no description)"
    return text.splitlines()[0]


def is_built_in(function: object) -> bool:
    """Whether a function is this package's own, and not a user's."""
    return (getattr(function, "__module__", None) or "").startswith("fltrust_repro.")


def place_of(function: object) -> str:
    """Where a user's function stands, for messages: " (my_rule.py, line 3)"; empty for our own."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    if code is None or is_built_in(function):
        return ""
    return f" ({Path(code.co_filename).name}, line {code.co_firstlineno})"


def check_default(what: str, name: str, value: Any, kind: type[int] | type[float]) -> None:
    """Raise `BadInput` unless a default that an entry brings is a number above 0: int or float."""
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value < math.inf:
        number = "whole number of at least 1" if kind is int else "finite number above 0"
        raise BadInput(f"{what}: {name} is {shown(value)}; give a {number}.")
