"""`trials` as a user types it: what it lists, what chooses, and that it is quick."""

# ruff: noqa: F811 (a fixture that is imported)

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_store_commands import FULL, NONE, call, trial  # noqa: F401  (a fixture among them)

from fltrust_repro import trials_command
from fltrust_repro.finding import Found
from fltrust_repro.store import Store
from fltrust_repro.trial_files import write_csv

FEW = replace(FULL, compromised=10, beta=10)


@pytest.fixture
def filled(tmp_path):
    """Three settings: in the store, in OUT and published; of one also trials of earlier code."""
    on_gpu = "python 3.11, x86_64, numba 0.6 (OpenBLAS 0.3, more), Some CPU (family 1), NVIDIA H200"
    with Store(tmp_path / "s.sqlite") as store:
        store.add(*(trial(FULL, seed, 0.8 + seed / 100) for seed in (10, 11, 12)))
        store.add(*(replace(trial(FULL, seed, 0.5), protocol="0") for seed in (10, 11)))
    then = "; after iteration 20: python 3.12, x86_64, numba 0.6, Other CPU (family 2)"
    theirs = [replace(trial(NONE, 10, 0.1), versions=on_gpu, device="gpu")]
    both = [replace(trial(FEW, 10, 0.6), versions=on_gpu + then)]
    write_csv(tmp_path / "out" / "mine.trials.csv", both)
    write_csv(tmp_path / "published" / "theirs.trials.csv", theirs)


def lines(text: str) -> list[str]:
    """The table's lines, which stand between its rule and a blank line, without spaces in a row."""
    table = text.split("\n\n")[1].splitlines()
    return [" ".join(line.split()) for line in table[2:]]


def test_a_line_per_setting_and_code_says_how_many_which_mean_and_where(call, filled):
    code, text, errors = call("trials")
    assert (code, errors) == (0, "")
    assert text.splitlines()[0] == "rule krum, dataset mnist, model lr"
    assert lines(text) == [
        "none today's 1 10 0.100 NVIDIA H200 theirs",
        "krum, full compromised 10 today's 1 10 0.600 NVIDIA H200, then Other CPU mine",
        "krum, full today's 3 10 to 12 0.910 0.025 cpu s.sqlite",
        "krum, full earlier 2 10 to 11 0.500 cpu s.sqlite",
    ]
    assert text.splitlines()[-1] == (
        "3 settings, 7 trials: 5 on cpu, 1 on NVIDIA H200, 1 on NVIDIA H200, then Other CPU."
    )


def test_options_of_a_setting_choose(call, filled):
    text = call("trials", "--attack", "krum", "--compromised", 10, "--knowledge", "full")[1]
    assert text.splitlines()[0] == (
        "rule krum, attack krum, full, dataset mnist, model lr, compromised 10"
    )
    assert lines(text) == ["1 10 0.600 mine"]
    assert len(lines(call("trials", "--attack", "krum", "--attack", "none")[1])) == 4
    assert len(lines(call("trials", "--beta", 20, "--reading", "direction=mean")[1])) == 3
    assert call("trials", "--attack", "none", "--compromised", 10)[:2] == (
        0, "No finished trial is so.\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rule", "krumm"], "no trial at hand has rule 'krumm'.*--plugin.*Did you mean 'krum'"),
        (["--reading", "direction"], "--reading is 'direction', without a value; give direction="),
        (["--reading", "compromised=3"], "not NAME=VALUE with a NAME that there is"),
        (["--reading", "dealing=foo"], "dealing is 'foo'; choose one of"),
        (["--knowledge", "half"], "has knowledge 'half'.*; choose one of"),
        (["--pre", "clip"], "no trial at hand has pre 'clip'.*; all have none"),
        (["nothing.sqlite"], "does not exist; give a store"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(call, filled, words, said):
    code, text, errors = call("trials", *words)
    assert (code, text) == (2, "")
    (line,) = errors.splitlines()
    assert re.search(said, line)


def test_a_store_or_file_that_is_named_is_listed_alone(call, filled, tmp_path):
    text = call("trials", tmp_path / "out")[1]
    assert lines(text) == ["1 10 0.600 mine"]
    assert len(lines(call("trials", tmp_path / "s.sqlite")[1])) == 2


def test_each_trial_has_a_line(call, filled):
    text = call("trials", "--each", "--attack", "krum", "--compromised", 20)[1]
    assert lines(text)[0] == "today's 10 0.900 0.900 7.2 2020-01-01T00:00 s.sqlite"
    assert [line.split()[:2] for line in lines(text)] == [
        *(["today's", seed] for seed in ("10", "11", "12")),
        *(["earlier", seed] for seed in ("10", "11")),
    ]


def test_json_has_the_setting_whole(call, filled, tmp_path):
    (found,) = json.loads(call("trials", "--json", "--compromised", 10)[1])
    assert found["setting"] == FEW.as_dict()
    assert (found["trials"], found["seeds"], found["half_width"]) == (1, [10], None)
    assert found["current"]
    assert found["files"] == [str(tmp_path / "out" / "mine.trials.csv")]
    each = json.loads(call("trials", "--json", "--each", "--attack", "krum")[1])
    assert [(one["seed"], one["current"]) for one in each] == [
        (10, True), (10, True), (11, True), (12, True), (10, False), (11, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "x86_64, numpy 1.26.4 (OpenBLAS 0.3.23 Zen), Intel Xeon Gold 6148",
            "Intel Xeon Gold 6148",
        ),
        ("numba 0.60, AMD EPYC 9654 (family 25, AVX-512)", "AMD EPYC 9654"),
        ("numba 0.60, AMD EPYC 9654, NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("mxnet-cu112 1.9.1, BLAS 0.3.7, AMD Ryzen 9 7950X", "AMD Ryzen 9 7950X"),
        ("python 3.11.7, x86_64, fltrust_repro 0.1.0, numpy 1.26.4", "x86_64"),
        ("numpy 1.26.4", "cpu"),
    ],
)
def test_a_machine_is_named_as_its_maker_does(names, expected):
    one = replace(trial(FULL, 10, 0.5), versions=names, device="cpu")
    assert trials_command.machine(Found(one, Path("x"))) == expected


def test_export_takes_the_same_filters(call, filled, tmp_path):
    file = tmp_path / "t.csv"
    code, text, _ = call("export", file, "--knowledge", "full", "--rule", "krum", out=False)
    assert (code, text.split(".")[0]) == (0, "5 trials")
    code, _, errors = call("export", file, "--compromised", 10, out=False)
    assert code == 2
    assert "no trial at hand has compromised 10; choose one of 20" in errors
    assert len(pd.read_csv(file)) == 5


def test_nothing_is_listed_where_nothing_is(call, tmp_path):
    assert call("trials")[:2] == (0, "There is no finished trial.\n")
    assert call("trials", "--json")[:2] == (0, "[]\n")
    assert list(tmp_path.iterdir()) == []
