"""Named rules, attacks, models and data sets: filled by decorators, extended by plug-ins.

A plug-in is a user's Python file. What it registers belongs to it: it counts under the digest of
its code, whoever defined the function, and it goes when the plug-in is loaded anew.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from fltrust_repro import backend
from fltrust_repro.errors import BadInput, UnknownName, shown
from fltrust_repro.failures import in_words
from fltrust_repro.sources import Source, Sources

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """The entries of one kind ("rule", "attack", ...) by the name a user types.

    A name is registered once; an unknown one raises `BadInput` with the names there are.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._owners: dict[str, _Loaded] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Register `entry` under `name`, for the plug-in that loads if one does.

        Raises `BadInput` if the name is taken, or is no text.
        """
        if not isinstance(name, str) or not name:
            raise BadInput(f"a {self.kind} has the name {name!r}; give a text that is not empty.")
        if name in self._entries:
            raise BadInput(f"{self.kind} {name!r} exists already; register yours by another name.")
        self._entries[name] = entry
        self._owners.pop(name, None)
        if _loading is not None:
            self._owners[name] = _loading
            _loading.entries.append((self, name))

    def remove(self, name: str) -> None:
        """Take an entry back; nothing happens where there is none."""
        self._entries.pop(name, None)
        self._owners.pop(name, None)

    def digest(self, name: str) -> str | None:
        """Digest of the code of the plug-in that registered a name; None for a built-in one.

        Stored with each trial, so that an edited plug-in never answers with old results.
        """
        owner = self._owners.get(name)
        return None if owner is None else owner.plugin.digest

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


# --- plug-ins

PLUGIN_PREFIX = "fltrust_repro_plugin_"


@dataclass(frozen=True)
class Plugin:
    """A plug-in's code as it was when it was loaded: its own file first, then what it imports."""

    sources: tuple[Source, ...]

    @property
    def path(self) -> str:
        """Where the plug-in's file lies."""
        return self.sources[0].path

    @cached_property
    def digest(self) -> str:
        """Hash of the code, wherever it lies."""
        own, *imported = self.sources
        digest = hashlib.sha256(own.text)
        for source in sorted(imported, key=lambda source: source.name):
            digest.update(f"\0{source.name}\0".encode() + hashlib.sha256(source.text).digest())
        return digest.hexdigest()[:16]


@dataclass
class _Loaded:
    """A plug-in in this process: its code, which finder gives it to Python, what it registered."""

    plugin: Plugin
    finder: Sources
    entries: list[tuple[Registry, str]] = field(default_factory=list)

    def is_current(self) -> bool:
        """Whether all is as the files say."""
        there = all(name in registry for registry, name in self.entries)
        return there and all(source.is_current() for source in self.plugin.sources)

    def drop(self) -> None:
        """Take back what was registered, and the modules."""
        for registry, name in self.entries:
            registry.remove(name)
        for source in self.finder.all():
            sys.modules.pop(source.name, None)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)


_loaded: dict[str, _Loaded] = {}  # by the plug-in's path
_loading: _Loaded | None = None


def load_plugin(path: str | Path) -> ModuleType:
    """Import a user's Python file, whose decorators register rules, attacks or models.

    It may import the files beside it. Loading the same file twice is harmless; an edited one takes
    the place of its older text. Raises `BadInput` when the file is missing or does not import.
    """
    file = Path(path).resolve()
    if not file.is_file():
        problem = "is not a file" if file.exists() else "does not exist"
        raise BadInput(f"plug-in {str(path)!r} {problem}; give the path of a Python file.")
    if file.suffix != ".py":
        raise BadInput(f"plug-in {str(path)!r} is not a Python file; its name must end in .py.")
    name = PLUGIN_PREFIX + hashlib.sha256(str(file).encode()).hexdigest()[:16]
    there = _loaded.get(str(file))
    if there is None or not there.is_current():
        try:
            source = Source.read(name, str(file))
        except OSError as error:
            raise BadInput(f"plug-in {str(path)!r} cannot be read ({error.strerror}).") from error
        if there is not None:
            _loaded.pop(str(file)).drop()
        importlib.invalidate_caches()
        _execute(Plugin((source,)), Sources([source]))
    return sys.modules[name]


def plugins_at(paths: Iterable[str | Path]) -> tuple[Plugin, ...]:
    """Return the plug-ins as they were loaded from these files; those that were not, now are."""
    files = [str(Path(path).resolve()) for path in paths]
    for file in files:
        if file not in _loaded:
            load_plugin(file)
    return tuple(_loaded[file].plugin for file in dict.fromkeys(files))


def run_afresh(plugins: Iterable[Plugin]) -> None:
    """Execute plug-ins anew, and forget all others that this process has loaded.

    What a plug-in and the modules of the user's that it imports keep is gone: each trial starts so.
    """
    while _loaded:
        _loaded.popitem()[1].drop()
    for plugin in plugins:
        _execute(plugin, Sources(plugin.sources, complete=True))


def files_of_plugins() -> set[str]:
    """Return the files of the user's whose code runs in this process."""
    return {source.path for loaded in _loaded.values() for source in loaded.finder.all()}


def _execute(plugin: Plugin, finder: Sources) -> None:
    global _loading
    loaded, outer, before = _Loaded(plugin, finder), _loading, set(sys.modules)
    _loading = loaded
    sys.meta_path.insert(0, finder)
    try:
        finder.read_all()
        _check_namesakes(finder)
        if any(b"mxnet" in source.text for source in finder.all()):
            backend.mx  # noqa: B018  (a bare `import mxnet` fails with today's numpy)
        spec = plugin.sources[0].spec()
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.path[:] = dict.fromkeys(sys.path)  # a body that adds a folder does so for every trial
        finder.add_imported(before)
        finder.read_all()
        _check_namesakes(finder)
    except BaseException as error:
        loaded.drop()
        if isinstance(error, KeyboardInterrupt):
            raise
        problem = in_words(error, {source.path for source in finder.all()}).rstrip(".")
        raise BadInput(f"plug-in {plugin.path!r} does not load: {problem}.") from error
    finally:
        _loading = outer
    loaded.plugin = plugin if finder.complete else Plugin(finder.all())
    finder.complete = True
    _loaded[plugin.path] = loaded


def _check_namesakes(finder: Sources) -> None:
    """Raise `BadInput` for a module that another plug-in imports by the same name, but not it."""
    texts = {source.name: source for source in finder.all()}
    for other in _loaded.values():
        for theirs in other.plugin.sources:
            ours = texts.get(theirs.name, theirs)
            if ours.text != theirs.text:
                raise BadInput(
                    f"it imports {ours.path}, plug-in {other.plugin.path!r} imports {theirs.path}, "
                    f"and Python knows one module {ours.name!r} only; rename one of the files"
                )
