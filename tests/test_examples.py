"""The examples in docstrings and in the README run as they are printed, by themselves."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fltrust_repro
import fltrust_repro as fl
from fltrust_repro.errors import BadInput

README = Path(__file__).parent.parent / "README.md"


def examples() -> list[doctest.DocTest]:
    """Each docstring with examples, and the README's, with nothing imported beforehand."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = []
    for module in pkgutil.iter_modules(fltrust_repro.__path__):
        if module.name != "__main__":  # which runs the command that was typed
            with contextlib.suppress(BadInput):  # of a library that one may do without
                modules.append(importlib.import_module(f"fltrust_repro.{module.name}"))
    found = [test for module in modules for test in finder.find(module, globs={})]
    readme = doctest.DocTestParser().get_doctest(
        README.read_text(encoding="utf-8").replace("\n```\n", "\n\n"), {}, "README", str(README), 0
    )
    return [test for test in [*found, readme] if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_prints_what_it_says(example):
    told: list[str] = []
    result = doctest.DocTestRunner().run(example, out=told.append)
    assert result.failed == 0, "".join(told)


@pytest.mark.slow
def test_the_lines_of_python_of_the_readme_run_as_a_script_and_take_up_what_they_left(tmp_path):
    lines = re.search(r"```python\n(import numpy.+?)```", README.read_text("utf-8"), re.DOTALL)[1]
    script = tmp_path / "lines.py"
    script.write_text(lines + "print(len(table), table.error_rate.mean())\n", encoding="utf-8")
    first, again = (
        subprocess.run(
            [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    )
    assert first.stdout == again.stdout
    assert first.stdout.startswith("5 0.")
    assert "5/5 trials" in first.stderr
    assert "trials" not in again.stderr


def test_every_rule_step_and_attack_on_updates_has_an_example():
    names = {example.name for example in examples()}
    functions = [one.function for one in (*fl.rules.values(), *fl.preaggregations.values())]
    functions += [one.craft for one in fl.attacks.values() if one.craft is not None]
    own = [f"{one.__module__}.{one.__name__}" for one in functions]
    assert len(own) > 40
    assert [name for name in own if name.startswith("fltrust_repro") and name not in names] == []
