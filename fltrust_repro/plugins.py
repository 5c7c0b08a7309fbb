"""Plug-ins: a user's Python file, or what a pip package brings, with all modules they import.

Each module of the user's own is read once, and what runs afterwards, here, in other processes and
on other machines, is that text. What a plug-in registers belongs to it: it counts under the digest
of its code, whoever defined the function.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
from collections.abc import Collection, Iterable
from configparser import Error as ConfigParserError
from configparser import RawConfigParser
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType

from fltrust_repro import backend
from fltrust_repro.errors import BadInput, in_words
from fltrust_repro.files import path_of
from fltrust_repro.plugin_sources import Source, Sources
from fltrust_repro.registry import Owner, Registry, registering

GROUP = "fltrust_repro.plugins"  # of entry points, with which a package names its modules


PLUGIN_PREFIX = "fltrust_repro_plugin_"


@dataclass(frozen=True)
class Plugin:
    """A plug-in's code as it was when it was loaded."""

    called: str  # in messages
    module: str  # that registers
    sources: tuple[Source, ...] = ()
    version: str = ""  # of an installed one, with its distribution's name

    @cached_property
    def digest(self) -> str:
        """Hash of the code, wherever it lies."""
        texts = {source.name: source.text for source in self.sources}
        digest = hashlib.sha256(self.version.encode() + texts.pop(self.module))
        for name in sorted(texts):
            digest.update(f"\0{name}\0".encode() + hashlib.sha256(texts[name]).digest())
        return digest.hexdigest()[:16]


@dataclass(eq=False)
class _Loaded:
    """A plug-in in this process: its code, which finder gives it to Python, what it registered."""

    plugin: Plugin
    finder: Sources
    entries: list[tuple[Registry, str]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Under which its entries count."""
        return self.plugin.digest

    def drop(self) -> None:
        """Take back what was registered, and the modules."""
        for registry, name in self.entries:
            registry.remove(name)
        self.finder.forget()
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self.finder]


_loaded: dict[str, _Loaded] = {}  # by the module's name
_problems: tuple[str, ...] | None = None  # of the installed ones; None until they are looked for


def load_plugin(path: str | Path) -> ModuleType:
    """Import a user's Python file, whose decorators register rules, attacks or models.

    It may import the files beside it; an edited one takes the place of its older text. Raises
    `BadInput` when the file is missing or does not import.
    """
    file, what = path_of(path).resolve(), f"plug-in {str(path)!r}"
    if not file.is_file():
        problem = "is not a file" if file.exists() else "does not exist"
        raise BadInput(f"{what} {problem}; give the path of a Python file.")
    if file.suffix != ".py":
        raise BadInput(f"{what} is not a Python file; its name must end in .py.")
    name = PLUGIN_PREFIX + hashlib.sha256(str(file).encode()).hexdigest()[:16]
    there = _loaded.get(name)
    if there is None or not all(source.is_current() for source in there.plugin.sources):
        try:
            source = Source.read(name, str(file))
        except OSError as error:
            raise BadInput(f"{what} cannot be read ({error.strerror}).") from error
        if there is not None:
            _loaded.pop(name).drop()
        importlib.invalidate_caches()
        _execute(Plugin(repr(str(file)), name), Sources([source], folder=str(file.parent)))
    return sys.modules[name]


def load_installed() -> tuple[str, ...]:
    """Load the plug-ins that installed packages bring, once; return what is wrong with any."""
    global _problems
    if _problems is None:
        _problems = ()  # also for a plug-in that asks meanwhile
        for plugin in _installed():
            try:
                _execute(plugin, Sources(package=plugin.module.partition(".")[0]))
            except BadInput as error:
                _problems += (str(error),)
    return _problems


def _installed() -> list[Plugin]:
    found: dict[str, Plugin] = {}
    for distribution in distributions():
        for name, value in _entry_points(distribution):
            version = f"{distribution.metadata['Name']} {distribution.version}"
            module = value.partition(":")[0].strip()
            plugin = Plugin(f"{name!r} of {version}", module, version=version)
            found.setdefault(module, plugin)  # Python, too, takes the first on its path
    return [plugin for module, plugin in found.items() if module not in _loaded]


def _entry_points(distribution: Distribution) -> list[tuple[str, str]]:
    """Names and values of a package's entry points of ours, also of such as Python refuses."""
    text = distribution.read_text("entry_points.txt") or ""
    parser = RawConfigParser(delimiters=("=",), strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    if GROUP in text:
        with contextlib.suppress(ConfigParserError):
            parser.read_string(text)
    return parser.items(GROUP) if parser.has_section(GROUP) else []


def plugins_for(used: Collection[Owner | None]) -> tuple[Plugin, ...]:
    """Return what other processes need: every file that was loaded, and the installed ones used."""
    return tuple(
        loaded.plugin for loaded in _loaded.values() if not loaded.plugin.version or loaded in used
    )


def run_afresh(plugins: Iterable[Plugin]) -> None:
    """Execute plug-ins anew, and forget all others: nothing that they kept is left."""
    global _problems
    while _loaded:
        _loaded.popitem()[1].drop()
    for plugin in plugins:
        _execute(plugin, Sources(plugin.sources, complete=True))
    _problems = None


def _execute(plugin: Plugin, finder: Sources) -> None:
    loaded = _Loaded(plugin, finder)
    sys.meta_path.insert(0, finder)
    try:
        if not finder.read(plugin.module):
            raise BadInput(f"there is no module {plugin.module!r}")
        finder.read_all()
        _check_namesakes(finder)
        if any(b"mxnet" in source.text for source in finder.all()):
            backend.mx  # noqa: B018  (a bare `import mxnet` fails with today's numpy)
        finder.forget()  # the user may have imported them before
        before = set(sys.modules)
        with registering(loaded), contextlib.redirect_stdout(sys.stderr):
            importlib.import_module(plugin.module)
        sys.path[:] = dict.fromkeys(sys.path)  # a body that adds a folder does so for every trial
        finder.add_imported(before)
        finder.read_all()
        _check_namesakes(finder)
    except BaseException as error:
        loaded.drop()
        if isinstance(error, KeyboardInterrupt):
            raise
        problem = in_words(error).rstrip(".")
        raise BadInput(f"plug-in {plugin.called} does not load: {problem}.") from error
    if not finder.complete:
        loaded.plugin = replace(plugin, sources=finder.all())
    finder.complete = True
    _loaded[plugin.module] = loaded


def _check_namesakes(finder: Sources) -> None:
    """Raise `BadInput` for a module that another plug-in imports by the same name, but not it."""
    own = {source.name: source for source in finder.all()}
    for other in (loaded.plugin for loaded in _loaded.values()):
        for theirs in other.sources:
            ours = own.get(theirs.name, theirs)
            if ours.text != theirs.text:
                raise BadInput(
                    f"it imports {ours.path}, plug-in {other.called} imports {theirs.path}, "
                    f"and Python knows one module {ours.name!r} only; rename one of the files"
                )
