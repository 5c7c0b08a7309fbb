"""Named rules, attacks, models and data sets, filled by decorators, and whose code they are."""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import hashlib
import inspect
import math
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from operator import attrgetter, itemgetter
from pathlib import Path, PurePath
from types import (
    CodeType,
    FrameType,
    FunctionType,
    MappingProxyType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, Generic, Protocol, TypeVar

from fltrust_repro.errors import BadInput, UnknownName, choose, shown

Entry = TypeVar("Entry")

_OURS = __name__.partition(".")[0]
_NOT_THE_USERS = {
    Path(sysconfig.get_path("stdlib")).resolve(),
    Path(sysconfig.get_path("platstdlib")).resolve(),
    Path(__file__).resolve().parent,
}


def is_the_users(path: Path) -> bool:
    """Whether a file of code is the user's own: no installed package's, Python's or ours."""
    folders = {*path.parents, *path.resolve().parents}
    return not {"site-packages", "dist-packages"}.intersection(path.parts) and not (
        _NOT_THE_USERS & folders
    )


class Owner(Protocol):
    """Whose code registers entries: they count under its digest, and it can take them back."""

    @property
    def digest(self) -> str:
        """Hash of all that decides what the entries compute."""

    entries: list[tuple[Registry[Any], str]]


_owner: Owner | None = None


@contextlib.contextmanager
def registering(owner: Owner | None) -> Iterator[None]:
    """Let what is registered meanwhile be the owner's; with None whose code it stands in."""
    global _owner
    outer, _owner = _owner, owner
    try:
        yield
    finally:
        _owner = outer


class Registry(Mapping[str, Entry], Generic[Entry]):
    """The entries of one kind ("rule", "attack", ...) by the name a user types.

    A name is registered once, but by a script or notebook again and again: a cell can be run twice.
    An unknown one raises `BadInput` with the names there are. Own parameters of an entry may follow
    its name, as in `multi-krum:q=5`: then it is asked for itself `having` them.
    """

    look_further: Any = staticmethod(lambda: ())
    """Registers what other rooms and installed packages bring; a sentence for each broken one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._owners: dict[str, Owner] = {}
        self._made: dict[str, tuple[Any, Any]] = {}  # by the whole name, of which entry, and what

    def add(self, name: str, entry: Entry) -> None:
        """Register `entry` for the plug-in that is `registering`; `BadInput` for a name taken."""
        check_named(self.kind, name)
        if name in self._entries and not isinstance(self._owners.get(name), Here):
            raise BadInput(f"{self.kind} {name!r} exists already; register yours by another name.")
        # Ours stay ours, also where a plug-in is the first to import their room.
        package = _package_that_calls()
        owner = None if package == _OURS else _owner
        if owner is None and package != _OURS:
            owner = Here(f"{self.kind} {name!r}", entry, package)
        self.remove(name)
        self._entries[name] = entry
        if owner is not None:
            self._owners[name] = owner
            owner.entries.append((self, name))

    def remove(self, name: str) -> None:
        """Take an entry back; nothing happens where there is none."""
        self._entries.pop(name, None)
        self._owners.pop(name, None)

    def owner(self, name: str) -> Owner | None:
        """Return whose code a name stands for; None for a built-in one."""
        name = _bare(name)
        if isinstance(self._owners.get(name), Here):
            self.look_further()  # it may be an installed plug-in that a script has imported
        return self._owners.get(name)

    def digest(self, name: str) -> str | None:
        """Digest of the user's code that a name stands for; None for a built-in one."""
        owner = self.owner(name)
        return None if owner is None else owner.digest

    def __getitem__(self, name: str) -> Entry:
        bare = _bare(name)
        problems = () if bare in self._entries else self.look_further()
        if bare not in self._entries:
            unknown = f"unknown {self.kind} {shown(bare)}; {choose(bare, self._entries)}"
            raise UnknownName(" ".join([unknown, *problems]))
        entry: Any = self._entries[bare]
        if bare == name:
            return entry
        if not hasattr(entry, "having"):
            raise BadInput(f"{self.kind} {shown(name)}: a {self.kind} has no parameters.")
        if self._made.get(name, (None, None))[0] is not entry:
            self._made[name] = entry, entry.having(name.partition(":")[2])
        return self._made[name][1]

    def __contains__(self, name: object) -> bool:
        if _bare(name) not in self._entries:
            self.look_further()
        return _bare(name) in self._entries

    def __iter__(self) -> Iterator[str]:
        self.look_further()
        return iter(self._entries)

    def __len__(self) -> int:
        self.look_further()
        return len(self._entries)

    def at_hand(self) -> list[str]:
        """Return the names that are registered so far, and look no further."""
        return list(self._entries)


def _bare(name: Any) -> Any:
    """A name without the parameters that may follow it."""
    return name.partition(":")[0] if isinstance(name, str) else name


class RegistryModule(ModuleType, Mapping[str, Any]):
    """A module that is looked into as the registry of its own name: `fl.attacks["krum"]`."""

    @property
    def _registry(self) -> Registry[Any]:
        return vars(self)[self.__name__.rpartition(".")[2]]

    def __getitem__(self, name: str) -> Any:
        return self._registry[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)

    __eq__, __hash__ = ModuleType.__eq__, ModuleType.__hash__


def check_named(kind: str, name: object) -> None:
    """Raise `BadInput` for what is no name to register a thing of this kind by."""
    if callable(name):  # the decorator stands there without one
        told = f'give it one in brackets: "my-name", above {getattr(name, "__name__", name)}'
        raise BadInput(f"a {kind} is registered without a name; {told}.")
    if not isinstance(name, str) or not name:
        raise BadInput(f"a {kind} has the name {name!r}; give a text that is not empty.")
    if ":" in name:
        raise BadInput(f"a {kind} has the name {name!r}; what follows a : are parameters.")


def summary(function: object) -> str:
    """First sentence of a docstring: what `list` prints beside a name."""
    text = (getattr(function, "__doc__", None) or "").strip() or "(no description)"
    return text.splitlines()[0]


def is_built_in(function: object) -> bool:
    """Whether a function is this package's own, and not a user's."""
    return (getattr(function, "__module__", None) or "").startswith(f"{_OURS}.")


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


# --- code of the script or notebook that runs

# Where what a user's function was wrapped in keeps it: partial, method, cache, property.
_INSIDE = ("func", "args", "keywords", "__func__", "__self__", "__wrapped__", "fget")
_TOLD_WHOLE = (  # by what Python writes for them
    bool, int, float, complex, str, bytes, bytearray, range, slice, Decimal, Fraction, PurePath,
    date, time, timedelta, attrgetter, itemgetter,
)  # fmt: skip
_text = functools.cache(inspect.getsource)  # as it was when a function was registered


class Here:
    """The owner of what a script or notebook registers itself: no other process can load it.

    Its digest is that of the text of its functions and of the values, functions, classes and
    modules of the user's that they name, looked at when it is registered and at every `refresh`,
    and not in between, when functions may keep memory in them; a module counts with those that its
    modules, functions and classes are of. What it cannot tell: the files that a function reads,
    what an object of another package holds, or a module is given from outside, and two lambdas of
    one line.
    """

    def __init__(self, called: str, entry: object, package: str) -> None:
        self.called = called
        self.entries: list[tuple[Registry[Any], str]] = []
        self._entry, self._package, self._digest = entry, package, ""
        with contextlib.suppress(BadInput):  # perhaps it is called, and no trial ever asks
            self.refresh()

    @property
    def digest(self) -> str:
        """Under which its entries count; `BadInput` where the text is not known."""
        if not self._digest:
            self.refresh()
        return self._digest

    def refresh(self) -> None:
        """Look at the values anew."""
        digest = hashlib.sha256()
        try:
            for part in self._told(self._entry, {}):
                digest.update(hashlib.sha256(part).digest())
        except (OSError, TypeError, ValueError, SyntaxError) as error:
            raise BadInput(
                f"{self.called} has no text by which an edited one could be told from it "
                f"({error}); put it into a file and give that to load_plugin or --plugin."
            ) from error
        self._digest = digest.hexdigest()[:16]

    def _told(self, thing: Any, seen: dict[int, Any]) -> Iterator[bytes]:
        """Yield all that decides what a thing does."""
        if thing is None or isinstance(thing, _TOLD_WHOLE):
            yield repr(thing).encode()
        elif hasattr(thing, "dtype") and hasattr(thing, "tobytes") and not isinstance(thing, type):
            yield f"{thing.dtype}{thing.shape}".encode() + thing.tobytes()
        elif id(thing) not in seen:
            seen[id(thing)] = thing
            yield f"{type(thing).__name__} {getattr(thing, '__name__', '')}".encode()
            for part in self._parts(thing):
                yield from self._told(part, seen)
            yield b"end"
        else:
            yield b"again"

    def _parts(self, thing: Any) -> Iterable[Any]:
        if isinstance(thing, (dict, MappingProxyType)):
            return thing.items()
        if isinstance(thing, (set, frozenset)):
            return sorted(thing, key=repr)
        if isinstance(thing, (tuple, list, deque)):
            return thing
        if isinstance(thing, re.Pattern):
            return [thing.pattern, thing.flags]
        if isinstance(thing, ModuleType):
            file = getattr(thing, "__file__", None)
            if not file or not self._wrote(thing.__name__):
                return []
            held = list(vars(thing).values())
            modules: list[Any] = [one for one in held if isinstance(one, ModuleType)]
            defined = [one.__module__ for one in held if isinstance(one, (FunctionType, type))]
            return [Path(file).read_bytes(), *modules, *map(sys.modules.get, defined)]
        if isinstance(thing, FunctionType) and self._wrote(thing.__globals__.get("__name__", "")):
            cells = [cell.cell_contents for cell in thing.__closure__ or ()]
            named = _globals(thing.__code__)
            values = [thing.__globals__[name] for name in sorted(named & {*thing.__globals__})]
            texts = [_text(thing.__code__), thing.__defaults__, thing.__kwdefaults__]
            return [*texts, *cells, *values]
        if isinstance(thing, type):
            # Of a dataclass, without the methods that are made from its fields and have no text.
            made = dir(object) if dataclasses.is_dataclass(thing) else ()
            own = {name: value for name, value in vars(thing).items() if name not in made}
            return [thing.__bases__, own] if self._wrote(thing.__module__) else []
        parts = [type(thing), *(getattr(thing, name, None) for name in _INSIDE)]
        known = isinstance(thing, SimpleNamespace) or dataclasses.is_dataclass(thing)
        if not known and not self._wrote(type(thing).__module__):
            return parts
        slots = (vars(kind).get("__slots__", ()) for kind in type(thing).__mro__)
        names = chain.from_iterable([one] if isinstance(one, str) else one for one in slots)
        held = [getattr(thing, name, None) for name in (*names, "__dict__")]
        return [*parts, *held]

    def _wrote(self, module: str) -> bool:
        file = getattr(sys.modules.get(module), "__file__", None)
        users = module.partition(".")[0] == self._package
        return users or (file is not None and is_the_users(Path(file)))


def _globals(code: CodeType) -> set[str]:
    """Names of the globals that a function uses, and those defined inside it."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    loads = ("LOAD_GLOBAL", "LOAD_NAME")  # the latter in the body of a class
    own = {step.argval for step in dis.get_instructions(code) if step.opname in loads}
    return own.union(*map(_globals, inner))


def _package_that_calls() -> str:
    """Top-level package of the code that calls a decorator; of ours only a module's own body."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package != _OURS or frame.f_code.co_name == "<module>":
            break
        frame = frame.f_back
    return package
