"""A plug-in's modules as text: each of the user's own is read once, and Python imports that."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import accumulate
from pathlib import Path
from types import ModuleType

from fltrust_repro.imports import imports
from fltrust_repro.registry import is_the_users


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
