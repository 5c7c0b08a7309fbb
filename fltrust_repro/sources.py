"""The Python code of a plug-in: its file and all modules of the user's own that it imports.

Each is read once. What runs afterwards, here, in other processes and on other machines, is the text
that was read, whatever becomes of the files meanwhile. Installed packages and the standard library
are left to Python.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import accumulate
from pathlib import Path
from types import ModuleType

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
