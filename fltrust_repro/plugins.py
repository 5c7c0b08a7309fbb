"""Plug-ins: a user's Python file, or what a pip package brings, with all modules they import.

Each module of the user's own is read once, and what runs afterwards, here, in other processes and
on other machines, is that text. What a plug-in registers belongs to it: it counts under the digest
of its code, whoever defined the function.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from configparser import Error as ConfigParserError
from configparser import RawConfigParser
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import Distribution, distributions
from itertools import accumulate
from pathlib import Path
from types import ModuleType

from fltrust_repro import backend
from fltrust_repro.errors import BadInput, in_words
from fltrust_repro.files import path_of
from fltrust_repro.imports import imports
from fltrust_repro.registry import Owner, Registry, is_the_users, registering

GROUP = "fltrust_repro.plugins"  # of entry points, with which a package names its modules


@dataclass(frozen=True)
class Source:
    """A module's name, file and text; of a package also the folders in which its modules lie."""

    name: str
    path: str
    text: bytes
    folders: tuple[str, ...] | None = None

    @classmethod
    def read(cls, name: str, path: str, folders: Iterable[str] | None = None) -> Source:
        """Read a module; of one that is machine code only a digest. A missing file is empty."""
        text = Path(path).read_bytes() if Path(path).is_file() else b""
        if not path.endswith(".py"):
            text = hashlib.sha256(text).digest()
        return cls(name, path, text, None if folders is None else tuple(folders))

    def is_current(self) -> bool:
        """Whether the file still has the text that was read."""
        return self.read(self.name, self.path, self.folders) == self

    def spec(self) -> ModuleSpec | None:
        """Return what Python needs to make the module from its text."""
        loader = _FromText(self) if self.path.endswith(".py") else None
        folders = None if self.folders is None else list(self.folders)
        return importlib.util.spec_from_file_location(
            self.name, self.path, loader=loader, submodule_search_locations=folders
        )

    def imports(self) -> Iterator[str]:
        """Yield the dotted names that the text imports, wherever, also inside functions."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they come when it is imported
                statements = list(imports(self.text))
        except (SyntaxError, ValueError):
            return  # it says so itself when it is imported
        package = self.name if self.folders is not None else self.name.rpartition(".")[0]
        for level, module, names in statements:
            above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            parts = [*above, *filter(None, [module])]
            yield from (".".join([*parts, name]) for name in names) if names else parts


class _FromText(SourceFileLoader):
    """Executes the text that was read, and no bytecode that Python kept of another."""

    of_a_plugin = True  # by which errors know that it was the user's code

    def __init__(self, source: Source) -> None:
        super().__init__(source.name, source.path)
        self._text = source.text

    def get_data(self, path: str) -> bytes:
        """Return the module's text, or a file beside it."""
        return self._text if path == self.path else super().get_data(path)

    def path_stats(self, path: str) -> dict[str, float]:
        """Keep Python from looking for bytecode."""
        raise OSError("read from memory")


class Sources(MetaPathFinder):
    """A plug-in's modules by name: as long as it is in `sys.meta_path`, Python imports these.

    While it is not `complete`, another module of the user's is read when it is first imported: one
    in the `folder` of the plug-in's file, on Python's path, or of an installed plug-in's `package`.
    """

    def __init__(
        self, sources: Sequence[Source] = (), folder: str = "", package: str = "",
        complete: bool = False,
    ) -> None:  # fmt: skip
        self._known = {source.name: source for source in sources}
        self._folder, self._package, self.complete = folder, package, complete

    def all(self) -> tuple[Source, ...]:
        """Return what was read so far."""
        return tuple(self._known.values())

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of the user's; None for any other, which Python's own finders take."""
        if name not in self._known and not self.complete and (found := self._found(name, path)):
            self._known[name] = found
        return self._known[name].spec() if name in self._known else None

    def _found(self, name: str, path: Sequence[str] | None) -> Source | None:
        spec = _found_by_python(name, path)
        own = name.partition(".")[0] == self._package
        if spec is not None and not own and not is_the_users(_place(spec)):
            return None  # a file beside the plug-in never stands in for an installed package
        if path is None and self._folder:
            spec = PathFinder.find_spec(name, [self._folder]) or spec
        if spec is None:
            return None
        return Source.read(name, str(_place(spec)), spec.submodule_search_locations)

    def forget(self) -> None:
        """Have Python import the modules anew."""
        for name in self._known:
            sys.modules.pop(name, None)

    def read_all(self) -> None:
        """Read all that the code may import later, too."""
        waiting = [] if self.complete else list(self._known.values())
        for source in waiting:  # grows meanwhile
            for dotted in source.imports():
                before = len(self._known)
                self.read(dotted)
                waiting += list(self._known.values())[before:]

    def read(self, dotted: str) -> bool:
        """Read a module and the packages it is in; False where it is none of the user's."""
        folders: tuple[str, ...] | None = None
        for name in accumulate(dotted.split("."), "{}.{}".format):
            if "" in name.split(".") or self.find_spec(name, folders) is None:
                break
            if (folders := self._known[name].folders) is None:
                break
        return dotted in self._known

    def add_imported(self, before: set[str]) -> None:
        """Read the modules of the user's that came in some other way since there were `before`."""
        for name in set() if self.complete else set(sys.modules) - before - set(self._known):
            file = getattr(sys.modules[name], "__file__", None)
            if isinstance(file, str) and is_the_users(Path(file)):
                folders = getattr(sys.modules[name], "__path__", None)
                self._known[name] = Source.read(name, file, folders)


def _found_by_python(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    # Not the path alone: packages installed with `pip install -e` have finders of their own.
    others = (finder for finder in sys.meta_path if not isinstance(finder, Sources))
    return next(filter(None, (finder.find_spec(name, path) for finder in others)), None)


def _place(spec: ModuleSpec) -> Path:
    # A folder without __init__.py has no origin: it becomes a package with an empty one.
    if spec.has_location:
        return Path(spec.origin or "")
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))) / "__init__.py"
    return Path(sysconfig.get_path("stdlib"), spec.name)  # built in


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
