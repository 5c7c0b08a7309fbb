"""What is published under experiments/results holds together: pages, and the trials they are of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fltrust_repro import arena, arena_protocols, arena_report, comparison_page
from fltrust_repro.arena_protocols import protocols, table_of
from fltrust_repro.experiments import load_experiment
from fltrust_repro.settings import Setting
from fltrust_repro.standings import NO_ATTACK
from fltrust_repro.trial_files import read_csv
from fltrust_repro.trials import Trial

HOME = Path(__file__).parent.parent
RESULTS = HOME / "experiments" / "results"
COMMAND = re.compile(r"^- Command: `python -m fltrust_repro reproduce (.*)`$", re.MULTILINE)
COUNT = re.compile(r"^- Trials: (\d+) in all, seeds? (\d+)(?: to (\d+))?", re.MULTILINE)
PAGES = [page for page in sorted(RESULTS.glob("*.md")) if COMMAND.search(page.read_text("utf-8"))]
RANKINGS = sorted(RESULTS.glob("arena-p?.csv"))
ASKING = ["tailored", "tailored-persistent", "tailored-pull"]
ROWS = {  # of P1, as arena.md calls them where it is not by their name
    "median with LFR": "lfr+median",
    "leverage, this program's": "leverage",
    "FLTrust, 100 examples of its own": "fltrust",
}


def trials_of(files: Iterable[Path]) -> dict[Setting, list[Trial]]:
    found: dict[Setting, list[Trial]] = {}
    for file in sorted(files):
        for trial in read_csv(file):
            found.setdefault(trial.setting, []).append(trial)
    return found


@pytest.fixture(scope="module")
def built_in() -> dict[Setting, list[Trial]]:
    """All that is published but what needs plug-ins."""
    return trials_of(RESULTS.glob("*.trials.csv*"))


def test_each_column_of_each_kind_of_file_is_told():
    text = (HOME / "experiments" / "files.md").read_text("utf-8")
    sections = {part.partition(":")[0]: part for part in text.split("\n## ")}
    told = {
        name: re.findall(r"`([^`]+)`", "".join(re.findall(r"^(\|.*?) \| ", part, re.MULTILINE)))
        for name, part in sections.items()
    }
    files = {"NAME.csv": "fidelity.csv", "arena-PROTOCOL.csv": "arena-p5.csv",
             "NAME.trials.csv": "table7b.trials.csv"}  # fmt: skip
    for name, file in files.items():
        assert sorted(told[name]) == sorted(pd.read_csv(RESULTS / file, nrows=0))
    trials = trials_of([RESULTS / files["NAME.trials.csv"]])
    found = comparison_page.compare(("a", "b"), (trials, trials), {one: one for one in trials})
    columns = [*comparison_page.as_frame(found)][len(found.cells[0].label) :]
    assert sorted(told["compare-A-B.csv"]) == sorted(columns)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_trials_that_a_page_is_made_of_are_published(page, built_in):
    text = page.read_text("utf-8")
    name, told = shlex.split(COMMAND.search(text)[1])[0], COUNT.search(text)
    own = load_experiment(HOME / name if "/" in name else name)
    settings = {cell.setting for cell in own.cells}
    there = [*built_in.items(), *trials_of(RESULTS.glob(f"{page.stem}.trials.csv*")).items()]
    seeds = range(int(told[2]), int(told[3] or told[2]) + 1)
    found = {(one, t.seed) for one, trials in there if one in settings for t in trials}
    assert sum(seed in seeds for _, seed in found) == int(told[1])


@pytest.mark.parametrize("file", RANKINGS, ids=lambda file: file.stem)
def test_a_ranking_follows_from_the_trials_that_are_published(file, built_in):
    protocol = protocols()[file.stem.removeprefix("arena-").upper()]
    found = arena.ranking(table_of(protocol, printed=arena_protocols.reported()), built_in)
    written = arena_report.as_frame(found).to_csv(index=False, float_format="%.4g")
    assert written == file.read_text("utf-8")


def test_readme_shows_the_best_five_of_the_ranking(built_in):
    found = arena.ranking(table_of(protocols()["P1"], printed={}), built_in)
    best, _ = found.leagues()
    readme = [line.split() for line in (HOME / "README.md").read_text("utf-8").splitlines()]
    for line in arena_report.table(best[:5], "simple").splitlines()[2:]:
        assert line.split() in readme


def test_what_the_arena_s_page_sets_side_by_side_is_what_the_ranking_has():
    frame = pd.read_csv(RESULTS / "arena-p1.csv")
    means = frame.pivot(index="row", columns="column", values="mean")
    others = means.drop(columns=[NO_ATTACK, *ASKING]).max(axis=1)
    text = (HOME / "experiments" / "arena.md").read_text("utf-8")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
    assert len(cells) > 20
    for label, *numbers in cells[1:]:
        name = re.sub(r"\[(.*)\]\(.*\)", r"\1", label)
        row = ROWS.get(name, name.lower().replace(" + ", "+").replace(" ", "-"))
        ours = [means.at[row, NO_ATTACK], others[row], *means.loc[row, ASKING]]
        told = [float(number.split()[0]) for number in numbers]
        np.testing.assert_allclose(told, ours, atol=0.0051, err_msg=label)
