"""Tiny trials give the numbers that `golden.json` keeps, unless the protocol's version is new."""

from __future__ import annotations

import re
from dataclasses import replace

import golden
import pytest

from fltrust_repro import machine
from fltrust_repro.training import PROTOCOL

STORED, KIND = golden.stored(), machine.kind()


@pytest.mark.parametrize("name", golden.TRIALS)
def test_a_trial_gives_the_numbers_of_its_protocol(name):
    problem = golden.problem(name, golden.curve(golden.TRIALS[name]), KIND, STORED)
    assert problem is None, problem


def test_every_machine_has_every_trial(capsys):
    for kind, curves in STORED["machines"].items():
        assert curves.keys() == golden.TRIALS.keys(), f"{kind}: `{golden.COMMAND}`"
    if KIND not in STORED["machines"]:
        with capsys.disabled():
            print(f"\nNo golden trials of this kind of machine; to add it: `{golden.COMMAND}`")


def test_a_trial_that_is_another_moves():
    setting = replace(golden.TRIALS["lr krum"], epsilon=0.011)
    assert golden.curve(setting) != golden.curve(golden.TRIALS["lr krum"])


KNOWN = {
    "protocol": PROTOCOL,
    "machines": {
        "scipy SkylakeX, Xeon (model 85, AVX-512)": {"a": "[[10, 0.5, 2.0]]"},
        "scipy Haswell, EPYC (model 1, AVX2)": {"a": "[[10, 0.2, 1.0]]"},
    },
}
SKYLAKE, HASWELL = KNOWN["machines"]
NEW = "scipy Haswell, EPYC (model 49, AVX2)"  # like the second


def test_the_same_numbers_are_no_problem():
    assert golden.problem("a", "[[10, 0.5, 2.0]]", SKYLAKE, KNOWN) is None


@pytest.mark.parametrize(
    ("found", "kind", "words"),
    [
        ("[[10, 0.5, 2.0001]]", SKYLAKE, r"a moved, but training\.PROTOCOL is still"),
        ("[[10, 0.2, 1.0]]", SKYLAKE, r"raise PROTOCOL.*python tests/golden\.py"),
        ("[[10, 0.5, 2.0]]", NEW, rf"differs .* from what {HASWELL[:13]}.* add it: `python"),
        ("[[10, 0.2, 1.1]]", NEW, "differs"),
        ("[[10, 0.26, 1.0]]", NEW, "differs"),
        ("[[10, 0.2, 1.0], [20, 0.1, 1.0]]", NEW, "differs"),
    ],
)
def test_numbers_that_moved_are_named(found, kind, words):
    problem = golden.problem("a", found, kind, KNOWN)
    assert problem is not None
    assert re.search(words, problem)


def test_a_new_machine_is_compared_loosely_with_the_one_most_like_it():
    assert golden.problem("a", "[[10, 0.21, 1.02]]", NEW, KNOWN) is None


def test_a_raised_protocol_asks_for_new_curves():
    old = {**KNOWN, "protocol": PROTOCOL - 1}
    problem = golden.problem("a", "[[10, 0.5, 2.0]]", SKYLAKE, old)
    assert problem is not None
    assert golden.COMMAND in problem
