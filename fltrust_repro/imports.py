"""What the text of a module imports, wherever, also inside functions: read from its bytecode.

No syntax tree is made of it. Python counts how deep the trees of all threads together are nested,
and an innocent thread meets a SystemError where another makes one at the same time (its issue
106905, up to 3.12), as a Dask worker does beside the trial that it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from modulefinder import ModuleFinder
from types import CodeType
from typing import NamedTuple


class Import(NamedTuple):
    """`from ..a import b, c` is (2, "a", ("b", "c")), and `import a.b` is (0, "a.b", ())."""

    level: int
    module: str
    names: tuple[str, ...]


def imports(text: bytes) -> Iterator[Import]:
    """Yield each import of a module's text; SyntaxError or ValueError where it is no Python.

    >>> from fltrust_repro.imports import imports
    >>> [found] = imports(b"def later(): from numpy import linalg")
    >>> found.module, found.names
    ('numpy', ('linalg',))
    """
    finder, waiting = ModuleFinder(), [compile(text, "<text>", "exec", dont_inherit=True)]
    for code in waiting:  # grows meanwhile
        waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        for kind, told in finder.scan_opcodes(code):
            if kind != "store":
                level, names, module = told if kind == "relative_import" else (0, *told)
                yield Import(level, module or "", tuple(names or ()))
