"""Plug-ins: a user's Python file, and all modules of the user's own that it imports.

Each is read once. What runs afterwards, here, in other processes and on other machines, is the text
that was read, whatever becomes of the files meanwhile. Installed packages and the standard library
are left to Python. What a plug-in registers belongs to it: it counts under the digest of its code,
whoever defined the function, and it goes when the plug-in is loaded anew.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import accumulate
from pathlib import Path
from types import ModuleType

from fltrust_repro import backend
from fltrust_repro.errors import BadInput, in_words
from fltrust_repro.registry import Registry, registering

_INSTALLED = {"site-packages", "dist-packages"}
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
_NOT_THE_USERS = {
    _STANDARD_LIBRARY,
    Path(sysconfig.get_path("platstdlib")).resolve(),
    Path(__file__).resolve().parent,
}


def _is_the_users(path: Path) -> bool:
    folders = {*path.parents, *path.resolve().parents}
    return not _INSTALLED.intersection(path.parts) and not _NOT_THE_USERS & folders


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

    def spec(self) -> ModuleSpec:
        """Return what Python needs to make the module from its text."""
        loader = _FromText(self) if self.path.endswith(".py") else None
        folders = None if self.folders is None else list(self.folders)
        return importlib.util.spec_from_file_location(
            self.name, self.path, loader=loader, submodule_search_locations=folders
        )

    def imports(self) -> Iterator[str]:
        """Yield the dotted names that the text imports, wherever, also inside functions."""
        try:
            tree = ast.parse(self.text)
        except (SyntaxError, ValueError):
            return  # it says so itself when it is imported
        package = self.name if self.folders is not None else self.name.rpartition(".")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                parts = [*(above if node.level else []), *filter(None, [node.module])]
                yield from (".".join([*parts, alias.name]) for alias in node.names)


class _FromText(SourceFileLoader):
    """Executes the text that was read, and no bytecode that Python kept of another."""

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

    Parameters
    ----------
    sources : sequence of Source
        The plug-in's own file first.
    complete : bool
        While it is false, another module of the user's is read when it is first imported: from the
        plug-in's folder, then from Python's path.
    """

    def __init__(self, sources: Sequence[Source], complete: bool = False) -> None:
        self._known = {source.name: source for source in sources}
        self.complete = complete
        self._folder = str(Path(sources[0].path).parent)

    def all(self) -> tuple[Source, ...]:
        """Return what was read so far, the plug-in's own file first."""
        return tuple(self._known.values())

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of the user's; None for any other, which Python's own finders take."""
        if name not in self._known and not self.complete:
            found = self._found(name, path)
            if found is not None:
                self._known[name] = found
        return self._known[name].spec() if name in self._known else None

    def _found(self, name: str, path: Sequence[str] | None) -> Source | None:
        if name in sys.builtin_module_names:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and not _is_the_users(_place(spec)):
            return None  # a file beside the plug-in never stands in for an installed package
        if path is None:
            spec = PathFinder.find_spec(name, [self._folder]) or spec
        if spec is None:
            return None
        return Source.read(name, str(_place(spec)), spec.submodule_search_locations)

    def read_all(self) -> None:
        """Read all that the code may import later, too."""
        waiting = [] if self.complete else list(self._known.values())
        for source in waiting:  # grows meanwhile
            for dotted in source.imports():
                before = len(self._known)
                self._find_parts(dotted)
                waiting += list(self._known.values())[before:]

    def _find_parts(self, dotted: str) -> None:
        folders: tuple[str, ...] | None = None
        for name in accumulate(dotted.split("."), "{}.{}".format):
            if "" in name.split(".") or self.find_spec(name, folders) is None:
                return
            folders = self._known[name].folders
            if folders is None:
                return

    def add_imported(self, before: set[str]) -> None:
        """Read the modules of the user's that came in some other way since there were `before`."""
        for name in set() if self.complete else set(sys.modules) - before - set(self._known):
            file = getattr(sys.modules[name], "__file__", None)
            if isinstance(file, str) and _is_the_users(Path(file)):
                folders = getattr(sys.modules[name], "__path__", None)
                self._known[name] = Source.read(name, file, folders)


def _place(spec: ModuleSpec) -> Path:
    # A folder without __init__.py has no origin: it becomes a package with an empty one.
    if spec.has_location:
        return Path(spec.origin)
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))) / "__init__.py"
    return _STANDARD_LIBRARY / spec.name  # built in


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

    @property
    def digest(self) -> str:
        """Under which its entries count."""
        return self.plugin.digest

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
    loaded, before = _Loaded(plugin, finder), set(sys.modules)
    sys.meta_path.insert(0, finder)
    try:
        finder.read_all()
        _check_namesakes(finder)
        if any(b"mxnet" in source.text for source in finder.all()):
            backend.mx  # noqa: B018  (a bare `import mxnet` fails with today's numpy)
        spec = plugin.sources[0].spec()
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        with registering(loaded):
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
