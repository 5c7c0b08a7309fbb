"""Named rules, attacks, models and data sets: filled by decorators, extended by plug-ins."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from fltrust_repro.errors import BadInput, UnknownName, shown

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """The entries of one kind ("rule", "attack", ...) by the name a user types.

    A name is registered once; an unknown one raises `BadInput` with the names there are.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Register `entry` under `name`; `BadInput` if the name is taken."""
        if name in self._entries:
            raise BadInput(f"{self.kind} {name!r} exists already; register yours by another name.")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> Entry:
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(str(name), self._entries, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownName(
            f"unknown {self.kind} {shown(name)}; choose one of {', '.join(self)}.{hint}"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def summary(function: object) -> str:
    """First sentence of a docstring: what `list` prints beside a name."""
    text = (getattr(function, "__doc__", None) or "(no description)").strip()
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


PLUGIN_PREFIX = "fltrust_repro_plugin_"


def load_plugin(path: str | Path) -> ModuleType:
    """Import a user's Python file, whose decorators register rules, attacks or models.

    Loading the same file twice is harmless. Raises `BadInput` when the file is missing or
    does not import.
    """
    file = Path(path).resolve()
    if not file.is_file():
        problem = "is not a file" if file.exists() else "does not exist"
        raise BadInput(f"plug-in {str(path)!r} {problem}; give the path of a Python file.")
    source = file.read_bytes()
    name = PLUGIN_PREFIX + hashlib.sha256(str(file).encode() + source).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadInput(f"plug-in {str(path)!r} is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    module.__plugin_digest__ = hashlib.sha256(source).hexdigest()[:16]
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        kind = "" if isinstance(error, BadInput) else f"{type(error).__name__}: "
        problem = f"{kind}{error}".rstrip(".")
        raise BadInput(f"plug-in {str(path)!r} does not load: {problem}.") from error
    return module


def plugin_digest(function: object) -> str | None:
    """Hash of the plug-in source that a function was loaded from; None for built-in ones.

    Stored with each trial, so that an edited plug-in never answers with old results.
    """
    module = sys.modules.get(getattr(function, "__module__", ""))
    return getattr(module, "__plugin_digest__", None)
