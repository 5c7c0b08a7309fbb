"""`compare` as a user types it: of two stores, folders and settings, before and after an edit."""

# ruff: noqa: F811 (a fixture that is imported)

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from test_store_commands import CELLS, FULL, NONE, call, trial  # noqa: F401  (a fixture among them)

from fltrust_repro import compare_command, comparison_page, difference_picture, finding
from fltrust_repro.comparison_page import compare, is_equal, summary
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.trial_files import write_csv

MEDIAN = replace(FULL, rule="median")
SEEDS = range(10, 20)
NOISE = np.random.default_rng(0).normal(0, 0.01, (3, len(SEEDS)))


def trials(setting: Setting, mean: float, noise: int = 0, seeds: range = SEEDS) -> list:
    return [trial(setting, seed, round(mean + e, 4)) for seed, e in zip(seeds, NOISE[noise])]


@pytest.fixture
def two(tmp_path):
    """Two stores: one setting is equal, one lower, one of other seeds, one in a store alone."""
    files = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    other = replace(FULL, compromised=10, beta=10)
    with Store(files[0]) as a, Store(files[1]) as b:
        a.add(*trials(NONE, 0.14), *trials(FULL, 0.8), *trials(other, 0.5), *trials(MEDIAN, 0.3))
        b.add(*trials(NONE, 0.14), *trials(FULL, 0.7, 1), *trials(other, 0.5, 2, range(30, 40)))
    return files


def flat(text: str) -> str:
    return " ".join(text.split())


def told(text: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in text.split("\n\n")[1].splitlines()[2:]]


# ---- two stores, folders or files ---------------------------------------------------------------


def test_two_stores_are_compared_setting_by_setting(call, two, tmp_path):
    code, text, errors = call("compare", *two)
    assert (code, errors) == (0, "")
    assert text.startswith(f"A: {two[0]}\nB: {two[1]}\nrule krum, dataset mnist, model lr\n\n")
    rows = told(text)
    assert rows[0][:4] == ["none", "equal", "+0.000 ±0.000", "0.141"]
    assert rows[1][0] == "krum, full"
    assert rows[1][1] == "compromised 10"
    assert rows[1][2].startswith("within ±0.0")
    assert rows[1][-1] == "10 and 10 trials"
    assert rows[2][1] == "B lower"
    assert rows[2][-1] == "10 pairs"
    assert (
        "3 settings on both sides; 20 pairs of trials with the same seed, 10 of them equal in "
        "every digit that is kept." in flat(text)
    )
    assert "B lower in 1, no difference seen in 1, equal in 1." in flat(text)
    assert "Not compared, since the other side has no such setting: 1 of A." in flat(text)
    assert text.splitlines()[-1] == f"Wrote {tmp_path / 'out' / 'compare-a-b'}.md, .csv, .png, .svg"


def test_the_table_has_the_numbers_of_an_independent_calculation(call, two, tmp_path):
    call("compare", *two)
    frame = pd.read_csv(tmp_path / "out" / "compare-a-b.csv").set_index("key_a")
    errors = {mean: [round(mean + e, 4) for e in NOISE[k]] for mean, k in ((0.8, 0), (0.7, 1))}
    paired, row = stats.ttest_rel(errors[0.7], errors[0.8]), frame.loc[FULL.key()]
    low, high = paired.confidence_interval(0.95)
    assert (row["test"], row["pairs"], row["verdict"]) == ("paired", 10, "B lower")
    assert row[["mean_a", "mean_b", "low", "high", "p"]].tolist() == pytest.approx(
        [np.mean(errors[0.8]), np.mean(errors[0.7]), low, high, paired.pvalue]
    )
    # Two of the three settings can differ, and this one has the least p value.
    assert row["p_holm"] == pytest.approx(2 * paired.pvalue)
    ours, theirs = (np.round(0.5 + NOISE[k], 4) for k in (0, 2))
    welch = stats.ttest_ind(theirs, ours, equal_var=False)
    row = frame[frame["test"] == "Welch"].iloc[0]
    assert row[["difference", "p"]].tolist() == pytest.approx(
        [theirs.mean() - ours.mean(), welch.pvalue]
    )


def test_the_other_way_round_everything_is_negative(call, two, tmp_path):
    for words in (two, two[::-1]):
        assert call("compare", *words)[0] == 0
    one, other = (pd.read_csv(tmp_path / "out" / f"compare-{name}.csv") for name in ("a-b", "b-a"))
    assert other["difference"].tolist() == (-one["difference"]).tolist()
    assert other["low"].tolist() == (-one["high"]).tolist()
    assert other["p_holm"].equals(one["p_holm"])
    assert one["verdict"].str.replace("lower", "higher").tolist() == other["verdict"].tolist()


def test_what_is_the_same_is_said_to_be(call, two, tmp_path):
    write_csv(tmp_path / "out" / "x.trials.csv", [*trials(NONE, 0.14), *trials(FULL, 0.8)])
    write_csv(tmp_path / "theirs" / "y.trials.csv.gz", [*trials(NONE, 0.14), *trials(FULL, 0.8)])
    code, text, _ = call("compare", tmp_path / "out", tmp_path / "theirs" / "y.trials.csv.gz")
    assert code == 0
    assert (
        "2 settings on both sides, each in 10 pairs; 20 pairs of trials with the same seed, "
        "all equal in every digit that is kept. Wrote" in flat(text)
    )
    assert "chance" not in text
    assert {row[1] for row in told(text)} == {"equal"}


def test_a_trial_that_took_another_course_is_not_equal():
    one, other = trial(NONE, 1, 0.1), trial(NONE, 1, 0.1)
    assert is_equal((one, replace(other, device="gpu", protocol="0", finished="2021-01-01")))
    curve = [(10, 0.9, 2.3), (500, 0.1, math.nan)]
    assert not is_equal((one, replace(other, result=replace(other.result, curve=curve))))
    diverged = replace(one.result, curve=curve)
    assert is_equal((replace(one, result=diverged), replace(other, result=replace(diverged))))


# ---- two settings -------------------------------------------------------------------------------


def test_my_rule_against_krum_in_all_that_both_have_met(call, tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.add(*trials(FULL, 0.8), *trials(NONE, 0.14), *trials(MEDIAN, 0.3))
        store.add(*trials(replace(NONE, rule="median"), 0.14, 1))
    code, text, _ = call("compare", "--rule", "krum", "--against", "rule=median")
    assert code == 0
    assert text.startswith("A: rule krum\nB: rule median\ndataset mnist, model lr\n\n")
    assert [row[:2] for row in told(text)] == [
        ["none", told(text)[0][1]], ["krum, full", "B lower"],
    ]  # fmt: skip
    assert "Not compared" not in text
    assert "different versions" not in text
    assert (
        call("compare", "--against", "rule=median")[1].splitlines()[2:-1]
        == (text.splitlines()[2:-1])
    )
    assert text.splitlines()[-1].startswith(
        f"Wrote {tmp_path / 'out'}/compare-rule-krum-rule-median"
    )


@pytest.mark.parametrize("typed", ["alie:z=1", "alie:z=1.0", "alie:side=below,z=1"])
def test_no_setting_is_compared_with_itself_however_its_attack_is_typed(call, tmp_path, typed):
    with Store(tmp_path / "s.sqlite") as store:
        store.add(*trials(replace(FULL, attack="alie:z=1", knowledge="full"), 0.5))
        store.add(*trials(FULL, 0.8))
    code, text, _ = call("compare", "--rule", "krum", "--against", f"attack={typed}")
    assert code == 0
    assert [row[0] for row in told(text)] == ["B lower"]


def test_with_and_without_what_comes_before_a_rule(call, tmp_path):
    mixed = replace(FULL, pre="nnm")
    with Store(tmp_path / "s.sqlite") as store:
        store.add(*trials(FULL, 0.5), *trials(mixed, 0.8))
    code, text, _ = call("compare", tmp_path / "s.sqlite", "--against", "pre=none")
    assert code == 0
    assert told(text)[0][0] == "B lower"


def test_what_follows_from_a_changed_field_follows(call, tmp_path):
    few = replace(FULL, compromised=10, beta=10)
    with Store(tmp_path / "s.sqlite") as store:
        store.add(*trials(FULL, 0.8), *trials(few, 0.5))
    code, text, _ = call("compare", tmp_path / "s.sqlite", "--against", "compromised=10")
    assert code == 0
    assert text.startswith("A: any other compromised\nB: compromised 10\n")
    assert told(text)[0][0] == "B lower"


def test_a_setting_of_one_store_is_compared_with_another_of_another(call, two):
    words = ["--rule", "krum", "--compromised", 20, "--against", "rule=median"]
    code, text, _ = call("compare", two[1], two[0], *words)
    assert code == 0
    assert text.startswith(f"A: {two[1]}, rule krum\nB: {two[0]}, rule median\n")
    assert len(told(text)) == 1


# ---- before and after an edit -------------------------------------------------------------------

RULE = """from fltrust_repro import rule
@rule("mine")
def mine(updates, c):
    return updates.{}(axis=0)
"""


@pytest.mark.slow
def test_before_and_after_an_edit_of_a_rule(call, tmp_path):
    plugin = tmp_path / "my_rule.py"
    setting = ["--dataset", "digits", "--rule", "mine", "--iterations", 3, "--plugin", plugin]
    run = ["run", *setting, "--trials", 3, "--jobs", 0]
    plugin.write_text(RULE.format("mean"))
    assert call(*run, out=False)[0] == 0
    words = ["compare", "--edit", "--rule", "mine", "--plugin", plugin]
    code, _, errors = call(*words)
    assert code == 2
    assert "no setting at hand has trials of today's plug-ins and of earlier ones" in errors
    plugin.write_text(RULE.format("sum"))
    assert call(*run, out=False)[0] == 0
    code, text, errors = call(*words)
    assert (code, errors) == (0, "")
    assert text.startswith("A: before the edit\nB: today\nrule mine, attack none, dataset digits")
    assert "1 setting on both sides, in 3 pairs" in text
    assert "Left out" not in errors
    assert "Of 1 setting A and B were made by different versions of the code." in text
    plugin.write_text(RULE.format("mean") + "# as before\n")
    assert call(*run, out=False)[0] == 0
    assert "trials of earlier" not in call(*words)[1]
    # Two copies of the store, of which one is from before the edit.
    plugin.write_text(RULE.format("mean"))
    found = finding.lying_in(tmp_path / "s.sqlite")
    assert len(finding.groups(found)) == 3


@pytest.mark.slow
def test_settings_that_todays_code_has_not_run_are_left_out_and_counted(call, tmp_path):
    """And not compared with themselves, as equal."""
    plugin = tmp_path / "my_rule.py"
    run = ["run", "--dataset", "digits", "--rule", "mine", "--plugin", plugin, "--jobs", 0]
    plugin.write_text(RULE.format("mean"))
    for iterations in (2, 3, 4):
        assert call(*run, "--iterations", iterations, "--trials", 3, out=False)[0] == 0
    plugin.write_text(RULE.format("sum"))
    assert call(*run, "--iterations", 3, "--trials", 3, out=False)[0] == 0
    code, text, errors = call("compare", "--edit", "--rule", "mine", "--plugin", plugin)
    assert (code, errors) == (0, "Left out: 2 settings of which today's code has no trial.\n")
    assert "1 setting on both sides, in 3 pairs" in text
    assert "equal in" not in text


def test_another_stores_trials_of_earlier_code_are_compared_by_setting(call, tmp_path):
    old = [replace(one, protocol="0") for one in trials(FULL, 0.8)]
    for name, some in (("old", old), ("new", [*old, *trials(FULL, 0.7, 1)])):
        with Store(tmp_path / f"{name}.sqlite") as store:
            store.add(*some)
    text = call("compare", tmp_path / "old.sqlite", tmp_path / "new.sqlite")[1]
    assert told(text)[0][0] == "B lower"
    assert "Of 1 setting A and B were made by different versions of the code." in text


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing is no pair of stores, folders or files; give two of them"),
        (["a.sqlite"], "a.sqlite is no pair"),
        (["a.sqlite", "b.sqlite", "a.sqlite"], "no pair of stores"),
        (["a.sqlite", "b.sqlite", "--edit"], "--edit takes both sides from the same trials"),
        (["--against", "rule"], "is .rule., without a value; give rule=VALUE"),
        (["--against", "c=5"], "unknown|not FIELD=VALUE"),
        (["a.sqlite", "--against", "rule=medium"], "unknown rule 'medium'.*Did you mean 'median'"),
        (["a.sqlite", "--against", "rule=bulyan"], "has been run with rule bulyan too"),
        (
            ["a.sqlite", "--rule", "mean", "--against", "rule=krum"],
            "no trial at hand has rule 'mean'",
        ),
        (["a.sqlite", "--against", "compromised=90"], "compromised is 90"),
        (
            ["a.sqlite", "--dataset", "mnist", "--against", "dataset=mnist"],
            "no setting without dataset mnist is chosen",
        ),
        (["a.sqlite", "none.sqlite"], "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(call, two, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, text, errors = call("compare", *words)
    assert (code, text) == (2, "")
    assert re.search(said, errors.splitlines()[-1])
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").glob("*"))


def test_stores_with_nothing_in_common_say_what_they_hold(call, two, tmp_path):
    with Store(tmp_path / "c.sqlite") as store:
        store.add(*trials(replace(NONE, non_iid=0.1), 0.2))
    errors = call("compare", two[0], tmp_path / "c.sqlite")[2]
    assert f"A has 4 settings, B 1, and none in common; `trials {two[0]}` lists A's" in errors


# ---- pages and pictures -------------------------------------------------------------------------


def test_pages_hold_summary_table_command_and_machines(call, two, tmp_path):
    text = call("compare", *two, "--html")[1]
    page, html = ((tmp_path / "out" / f"compare-a-b.{kind}").read_text() for kind in ("md", "html"))
    assert "| krum, full | | B lower" in re.sub(" +", " ", page)
    assert "![Differences with their 95% intervals](compare-a-b.png)" in page
    for said in ("B lower in 1, no difference seen in 1, equal in 1.", "python 3.11", "Holm"):
        assert said in page
        assert said in html
    assert "B lower in 1" in text
    assert "http" not in html.replace("http://www.w3.org", "")
    assert 'src="data:image/svg+xml;base64,' in html
    assert len(html) < 200_000


@pytest.mark.slow
def test_pictures_are_the_same_bytes_and_of_many_settings_show_the_plainest(call, two, tmp_path):
    many = [replace(FULL, epsilon=k / 1000) for k in range(1, 81)]
    a = {s: trials(s, 0.5) for s in many}
    b = {s: trials(s, 0.4 if k % 2 else 0.5, 1) for k, s in enumerate(many)}
    found = compare(("a", "b"), (a, b), dict(zip(many, many)))
    shown = difference_picture._shown(found.cells)
    assert len(shown) == difference_picture.MOST
    assert sum(cell.verdict == "B lower" for cell in shown) == 40
    assert shown == [cell for cell in found.cells if cell in shown]
    pictures = [difference_picture.picture(found, "svg") for _ in range(2)]
    assert pictures[0] == pictures[1]
    call("compare", *two)
    with Image.open(tmp_path / "out" / "compare-a-b.png") as drawn:
        assert drawn.format == "PNG"


@pytest.mark.slow
def test_on_a_terminal_many_settings_show_those_that_differ(call, tmp_path):
    many = [replace(FULL, epsilon=k / 1000) for k in range(1, 51)]
    for name in "ab":
        with Store(tmp_path / f"{name}.sqlite") as store:
            store.add(*(one for s in many[1:] for one in trials(s, 0.5)))
            store.add(*trials(many[0], 0.5 if name == "a" else 0.4, "ab".index(name)))
    text = call("compare", tmp_path / "a.sqlite", tmp_path / "b.sqlite")[1]
    assert [row[:2] for row in told(text)] == [["epsilon 0.001", "B lower"]]
    assert "Shown: 1 of 1 that differ, or perhaps do; the files have all." in text
    assert len(pd.read_csv(tmp_path / "out" / "compare-a-b.csv")) == 50


def test_chance_is_told_of_many_settings():
    cells = [replace(CELLS["krum", "full"].setting, epsilon=k / 100) for k in range(1, 21)]
    rng = np.random.default_rng(3)

    def side(shift: float) -> dict:
        return {
            s: [trial(s, seed, round(float(e), 4)) for seed, e in
                enumerate(rng.uniform(0.3, 0.5, 10) + shift * (k == 0))]
            for k, s in enumerate(cells)
        }  # fmt: skip

    found = compare(("a", "b"), (side(0), side(0.3)), dict(zip(cells, cells)))
    said = " ".join(summary(found))
    assert "where chance alone would give about 1.0; verdicts are corrected for that (Holm)" in said
    assert "B higher in 1" in said
    frame = comparison_page.as_frame(found)
    assert (frame["p"] < 0.05).sum() == int(re.search(r"(\d+) of the 95% intervals", said)[1])
    assert json.loads(frame.to_json(orient="records"))[0]["verdict"] == "B higher"


def test_no_two_comparisons_have_one_name():
    long = "mnist-median-trimmed-mean-c20-run"
    name = compare_command._file_name
    assert name(("a.sqlite", "b.sqlite")) == "compare-a-b"
    assert name(("x", f"{long}-1.sqlite")) != name(("x", f"{long}-2.sqlite"))
    apart = [(f"/x/{one}/results", f"/{two}/{one}/results") for one in "ab" for two in "yz"]
    assert len({*map(name, apart)}) == 4
    shares = [("today", f"rule signguard:similarity=cosine,share={s}") for s in (0.1, 0.2)]
    assert len({*map(name, shares)}) == 2
