"""What a module's text imports: every statement, everywhere, whatever other threads do."""

import ast
import contextlib
import gc
import threading
from pathlib import Path

import pytest

import fltrust_repro
from fltrust_repro import compiled
from fltrust_repro.imports import Import, imports

PACKAGE = Path(fltrust_repro.__file__).parent
STATEMENTS = {
    "import a": Import(0, "a", ()),
    "import a.b.c as d": Import(0, "a.b.c", ()),
    "from a.b import c as d, e": Import(0, "a.b", ("c", "e")),
    "from a import *": Import(0, "a", ("*",)),
    "from . import a": Import(1, "", ("a",)),
    "from ..a.b import c": Import(2, "a.b", ("c",)),
}
PLACES = [
    "{}",
    "def f():\n    {}",
    "class A:\n    class B:\n        async def f(self):\n            {}",
    "try:\n    {}\nexcept ImportError:\n    pass",
    "if TYPE_CHECKING:\n    {}",
]


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("place", PLACES)
def test_every_statement_is_found_everywhere(place, statement):
    if "*" in statement and ("def" in place):
        pytest.skip("Python allows it in modules alone")
    assert list(imports(place.format(statement).encode())) == [STATEMENTS[statement]]


def test_one_line_can_import_twice():
    assert [found.module for found in imports(b"import a, b.c\nimport a")] == ["a", "b.c", "a"]


def test_of_many_names_too():  # whose places in the bytecode take more than a byte
    names = [f"module_{number}" for number in range(700)]
    text = "\n".join(f"import {name}" for name in names)
    assert [found.module for found in imports(text.encode())] == names


@pytest.mark.parametrize("text", [b"import", b"def f(", b"import a\0"])
def test_what_is_no_python_is_told(text):
    with pytest.raises((SyntaxError, ValueError)):
        list(imports(text))


def test_an_encoding_is_heeded():
    text = "# coding: latin-1\nimport größe".encode("latin-1")
    assert [found.module for found in imports(text)] == ["größe"]


def test_a_module_found_by_its_tree_is_found_here():
    for path in PACKAGE.glob("*.py"):
        text = path.read_bytes()
        expected = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                expected |= {(0, alias.name, ()) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = tuple(alias.name for alias in node.names)
                expected.add((node.level, node.module or "", names))
        assert {tuple(found) for found in imports(text)} == expected, path.name


@contextlib.contextmanager
def trees_in_another_thread():
    """Another thread that makes a syntax tree whenever Python collects garbage in this one."""

    def make_tree(phase, _):
        if phase == "start" and threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=ast.parse, args=["x = [1, [2]]"])
            other.start()
            other.join()

    gc.callbacks.append(make_tree)
    try:
        yield
    finally:
        gc.callbacks.remove(make_tree)


def test_another_threads_syntax_trees_do_no_harm():
    module, version = PACKAGE / "kernels.py", compiled.version.__wrapped__
    with trees_in_another_thread():
        versions = {version(module) for _ in range(5)}
    assert versions == {version(module)}
