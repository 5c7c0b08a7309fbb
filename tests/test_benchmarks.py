"""The benchmark suite in small: what it writes, and that rules aggregate without a copy."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from fltrust_repro.aggregation import rules
from fltrust_repro.preaggregations import preaggregations

REPOSITORY = Path(__file__).parents[1]
SUITE = REPOSITORY / "experiments" / "benchmarks" / "suite.py"
RULES = {"mean", "trimmed-mean", "median", "krum", "bulyan"}
M, D = 100, 1_000_000
UPDATES = 4 * M * D / 2**20  # 381 MiB
RESULT = 4 * D / 2**20
BLOCK = 32  # MiB: some blocks of columns, and what the libraries take for themselves


def suite(out, *options, **environment):
    """The rows that a run of the suite writes."""
    done = subprocess.run(
        [sys.executable, SUITE, "--quick", "--out", out, *options],
        capture_output=True, text=True, cwd=out,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "benchmarks.md").read_text() in done.stdout
    return pd.read_csv(out / "benchmarks.csv", keep_default_na=False, na_values=[""])


def tells_peaks():
    return os.access("/proc/self/clear_refs", os.W_OK)


@pytest.mark.long
def test_rules_of_two_libraries_at_two_sizes(tmp_path):
    sizes = ["--workers", "5", "--workers", "9", "--parameters", "50", "--parameters", "400"]
    rows = suite(
        tmp_path, "--only", "rules", *sizes, "--library", "fltrust_repro", "--library", "numpy"
    )
    rules = rows[rows.section == "rules"]
    assert len(rules) == 2 * 2 * 2 * len(RULES)
    assert set(rules.case) == RULES
    assert (rules["median"] >= rules["minimum"]).all() and (rules["minimum"] > 0).all()
    assert (rules["limit"] > 0).all()
    if tells_peaks():
        assert (rules["memory"] >= 0).all()
    assert set(rules[rules.who == "numpy"].note) == {"same result"}
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "benchmarks.md").read_text()
    assert "fastest peer / ours" in text and "Time grows" in text
    distances = rows[rows.section == "distances"]
    assert len(distances) == 2 * 2 * 2
    assert (distances["median"] > 0).all()
    assert "numpy's Gram matrix" in text
    # Which machine it was, in each row and above the tables.
    [machine] = set(rows.machine)
    assert machine in text and re.search("numpy.*scipy", machine) and "cores" in machine


@pytest.mark.long
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="kernels of x86")
def test_numpys_kernels_are_chosen_without_the_other_libraries(tmp_path):
    options = ["--only", "rules", "--workers", "5", "--parameters", "50", "--library", "numpy"]
    rows = suite(tmp_path, *options, "--numpy-kernel", "Prescott", OPENBLAS_CORETYPE="Haswell")
    [machine] = set(rows.machine)
    assert re.search(r"numpy[^;)]*OpenBLAS[^;)]*Prescott", machine, re.IGNORECASE)
    assert re.search(r"scipy[^;)]*OpenBLAS[^;)]*Haswell", machine, re.IGNORECASE)


def test_a_limit_comes_from_the_library_that_the_stage_calls(monkeypatch):
    monkeypatch.syspath_prepend(SUITE.parent)
    from machine import Machine, Work

    machine = Machine(copy=1e9, gemm=100.0, comparators=1e9, mxnet_gemm=50.0)
    assert machine.limit(Work(flops=200.0)) == {"limit": 2.0, "bound": "products"}
    assert machine.limit(Work(flops=200.0, by_mxnet=True))["limit"] == 4.0


@pytest.mark.slow
def test_a_library_that_is_not_installed_or_does_not_load_is_named(monkeypatch):
    monkeypatch.syspath_prepend(SUITE.parent)
    import peers
    import rules
    from machine import Machine

    monkeypatch.setitem(peers.LIBRARIES, "absent", peers.Library(("no_such_package",), dict))
    monkeypatch.setitem(peers.LIBRARIES, "damaged", peers.Library((), dict))
    bench = rules.Bench(Machine(1e9, 1e9, 1e9), rules.Sizes((5,), (50,)), patience=1)
    absent, damaged = bench.rows(["absent", "damaged"])
    assert absent.median is damaged.median is None
    assert absent.note == "skipped: no_such_package is not installed"
    # The library's own process does not know of it.
    assert damaged.note == "failed: it does not load ('damaged')"


@pytest.mark.long
def test_a_case_that_does_not_fit_the_memory_is_named(tmp_path):
    sizes = ["--workers", "5", "--parameters", "50", "--parameters", str(10**12)]
    rows = suite(tmp_path, "--only", "rules", *sizes, "--library", "fltrust_repro")
    large = rows[rows.d > 50]
    assert set(large.case) == RULES and large["median"].isna().all()
    assert large.note.str.match("skipped: would take .* MiB, .* are free").all()


def test_a_peer_that_grows_too_fast_is_skipped_before_it_takes_hours(monkeypatch):
    monkeypatch.syspath_prepend(SUITE.parent)
    import rules
    from machine import Machine
    from measure import Row

    sizes = rules.Sizes((20, 100, 500), (50,))
    bench = rules.Bench(Machine(1e9, 1e9, 1e9), sizes, patience=10)
    for m, seconds in ((20, 0.01), (100, 1.0)):
        bench.done["slow", "krum", m, 50] = Row("rules", "krum", "slow", m, 50, median=seconds)
    assert bench._reason_to_skip(Row("rules", "krum", "slow", 500, 50)) == "would take about 100 s"
    assert bench._reason_to_skip(Row("rules", "krum", "slow", 200, 50)) == ""


@pytest.mark.long
def test_other_sections_have_a_time_for_each_row_or_a_reason(tmp_path):
    rows = suite(tmp_path, "--only", "attacks,defenses,trial")
    assert set(rows.section) == {"machine", "attacks", "defenses", "trial"}
    assert (rows["median"] > 0).all()
    assert set(rows[rows.who == "distances anew at each halving"].note) == {"same result"}


@pytest.mark.long
def test_stages_and_plain_loops(tmp_path):
    rows = suite(tmp_path, "--only", "stages")
    stages = rows[rows.section == "stages"]
    assert (stages["median"].notna() | stages.note.str.startswith("skipped")).all()
    assert set(stages[stages.who == "plain MXNet loop"].note) == {"same result"}


@pytest.mark.long
def test_another_checkout_takes_turns(tmp_path):
    rows = suite(tmp_path, "--only", "trial", "--against", REPOSITORY)
    turns = rows[rows.section == "against"]
    ours, theirs = (turns[turns.who == who] for who in ("fltrust_repro", "the other checkout"))
    assert len(ours) == len(theirs) == 3 * 4
    assert (turns["median"] > 0).all()
    assert "this / other" in (tmp_path / "benchmarks.md").read_text()


@pytest.mark.slow
def test_another_checkout_is_a_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, SUITE, "--against", tmp_path / "nowhere"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "does not exist" in done.stderr


@pytest.mark.skipif(not tells_peaks(), reason="this system does not tell peaks")
@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["--non-finite"]], ids=["finite", "not"])
def test_no_rule_copies_the_updates(options, tmp_path):
    size = ["--workers", str(M), "--parameters", str(D), "--library", "fltrust_repro"]
    rows = suite(tmp_path, "--only", "rules", *size, *options)
    memory = rows[rows.section == "rules"].set_index("case").memory
    assert set(memory.index) == RULES
    for name, taken in memory.items():
        assert 0.5 * RESULT < taken < 4 * RESULT + BLOCK < UPDATES / 6, name


@pytest.mark.slow
@pytest.mark.parametrize("only", ["rules,speed", pytest.param("", marks=pytest.mark.long)])
def test_an_unknown_section_is_refused(only, tmp_path):
    done = subprocess.run(
        [sys.executable, SUITE, "--only", only], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "choose from rules, stages, attacks, defenses, trial" in done.stderr


@pytest.mark.long
def test_the_cost_of_many_trials_has_a_line_for_each_command(tmp_path):
    small = ["--trials", "4", "--finished", "1000", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, SUITE.with_name("sweeps.py"), *small],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    short, *commands = done.stdout.splitlines()
    assert re.fullmatch(r"4 short trials, 2 processes: \d+\.\d\d times their seconds", short)
    assert [line.split(",")[0] for line in commands] == ["status", "report", "a resumed table2a"]


FIELD = SUITE.with_name("field.py")


def field(out, *options):
    return subprocess.run(
        [sys.executable, FIELD, "--workers", "10", "--parameters", "500", "--budget", "0.01",
         "--out", out, *options],
        capture_output=True, text=True, cwd=out, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.mark.long
def test_every_rule_of_the_field_has_a_time_and_stands_beside_krum(tmp_path):
    done = field(tmp_path)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(tmp_path / "field.csv")
    names = {*rules, *(f"{name}+" for name in preaggregations)}
    assert names == set(found["case"])
    assert (found["median"] > 0).all(), found[found["median"].isna()]
    table = (tmp_path / "field.md").read_text()
    assert "## 10 x 500" in table
    assert all(f"| {name} |" in table for name in names)
    assert "| krum | " in table
    assert " | 1 | | | |" in next(line for line in table.splitlines() if "| krum |" in line)


@pytest.mark.slow
def test_a_python_that_is_not_there_is_refused(tmp_path):
    done = field(tmp_path, "--python", "byzfl=/nowhere/python")
    assert done.returncode == 2
    assert "byzfl=/nowhere/python; give one of" in done.stderr
