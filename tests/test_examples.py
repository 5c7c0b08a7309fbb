"""The examples in docstrings and in the README run as they are printed, by themselves."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import fltrust_repro

README = Path(__file__).parent.parent / "README.md"


def examples() -> list[doctest.DocTest]:
    """Each docstring with examples, and the README's, with nothing imported beforehand."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [
        importlib.import_module(f"fltrust_repro.{module.name}")
        for module in pkgutil.iter_modules(fltrust_repro.__path__)
        if module.name != "__main__"  # which runs the command that was typed
    ]
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


def test_every_rule_has_an_example():
    names = {example.name for example in examples()}
    for rule in ("mean", "krum", "bulyan", "trimmed_mean", "median"):
        assert f"fltrust_repro.aggregation.{rule}" in names
