"""The fidelity report and the figures: from trials alone, whatever is missing."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pandas as pd
import pytest
from click.testing import CliRunner

from fltrust_repro import claims, experiments, fidelity, figures, reproduction
from fltrust_repro.__main__ import commands
from fltrust_repro.archive import Archive
from fltrust_repro.claims import CLAIMS
from fltrust_repro.experiments import available, load_experiment
from fltrust_repro.store import Store
from fltrust_repro.training import TrialResult
from fltrust_repro.trial_files import write_csv
from fltrust_repro.trials import Trial, protocol_of


def a_trial(setting, seed, error, seconds=36.0, notes=None, losses=(2.0, 1.0)) -> Trial:
    curve = [(10, error, losses[0]), (500, error, losses[1])]
    result = TrialResult(error, error / 2, 500, False, seconds, curve, 0, notes or {})
    return Trial(setting, seed, result, "cpu", "python", "2020-01-01", protocol_of(setting))


def as_printed(name, n=3):
    """Trials of a table that are just what the paper prints."""
    return {
        cell.setting: [a_trial(cell.setting, seed, cell.paper) for seed in range(n)]
        for cell in load_experiment(name).cells
    }


def test_trials_come_from_files_and_store_each_seed_once_and_of_this_protocol(tmp_path):
    cell = load_experiment("table2a").cells[0]
    old = Trial(**{**vars(a_trial(cell.setting, 7, 0.9)), "protocol": "0"})
    write_csv(tmp_path / "table2a.trials.csv", [a_trial(cell.setting, s, 0.1) for s in (0, 1)])
    with Store(tmp_path / "s.sqlite") as store:
        for trial in (a_trial(cell.setting, 1, 0.5), a_trial(cell.setting, 2, 0.3), old):
            store.add(trial)
        found = reproduction.finished(store, tmp_path, [])
    errors = [(trial.seed, trial.result.error_rate) for trial in found[cell.setting]]
    assert errors == [(0, 0.1), (1, 0.5), (2, 0.3)]
    assert list(reproduction.finished(Archive(tmp_path / "none"), tmp_path, [])) == [cell.setting]


def test_every_printed_value_has_a_line_and_missing_ones_their_hours():
    experiments = [load_experiment(name) for name in ("table2a", "table4")]
    cell = experiments[0].cells[0]
    frame = fidelity.as_frame(experiments, {cell.setting: [a_trial(cell.setting, 0, 0.14)]})
    assert len(frame) == 15 + 9
    assert list(frame["trials"][:2]) == [1, 0]
    assert frame["hours"][0] == pytest.approx(49 * 36 / 3600)
    assert frame["hours"][1] == pytest.approx(50 * 36 / 3600)
    # Table 4 shares its cell without attack with Table 2 (a).
    assert frame["trials"][15] == 1
    table2b = load_experiment("table2b")
    untouched = fidelity.as_frame([table2b], {})
    assert untouched["hours"].sum() == pytest.approx(15 * 50 * table2b.seconds / 3600)
    assert set(untouched["verdict"]) == {"missing"}


def test_the_hours_that_are_missing_are_those_of_cells_without_trials():
    experiment = load_experiment("table7b")
    first, *others = experiment.cells
    trials = {first.setting: [a_trial(first.setting, 0, 0.1)]}
    frame = fidelity.as_frame([experiment], trials)
    told = fidelity.markdown([experiment], trials, frame)
    hours = 50 * 36 * len(others) / 3600
    assert f"Missing: {len(others)} cells; 50 trials of each take about {hours:.1f} hours" in told


def test_ones_own_trials_tell_how_long_it_takes_and_rounds_are_work():
    one, other = load_experiment("table7b"), load_experiment("table2a")
    [mine], [theirs] = (
        [c.setting for c in table.cells if c.setting.attack == "none"][:1] for table in (one, other)
    )
    theirs = replace(theirs, dataset=mine.dataset, compromised=19)
    twice = replace(theirs, rounds=2)
    trials = {mine: [a_trial(mine, 0, 0.1, seconds=10)],
              theirs: [a_trial(theirs, s, 0.1, seconds=1000) for s in range(3)],
              twice: [a_trial(twice, s, 0.1, seconds=5000) for s in range(9)]}  # fmt: skip
    assert fidelity.seconds_of(one, trials)[mine] == 10
    del trials[mine]
    assert fidelity.seconds_of(one, trials)[mine] == 1000


def test_a_trial_takes_what_those_of_as_much_work_took():
    section, table2b = load_experiment("section42"), load_experiment("table2b")
    of = {(cell.row, cell.column): cell.setting for cell in section.cells}
    alone = of["centralized-dnn", "mnist"]
    trials = {alone: [a_trial(alone, seed, 0.04, seconds=s) for seed, s in enumerate((8, 9, 70))]}
    for cell in table2b.cells:
        trials[cell.setting] = [a_trial(cell.setting, 0, 0.1, seconds=1500)]
    seconds = fidelity.seconds_of(section, trials)
    assert seconds[alone] == 9  # not the mean, which one slow machine would move
    assert seconds[of["federated-mean-dnn", "mnist"]] == 1500  # Table 2 (b)'s
    assert seconds[of["federated-mean-dnn", "ch-mnist"]] == section.seconds


def test_cells_with_too_few_trials_for_a_verdict_are_no_part_of_the_share_inside():
    few, enough = as_printed("table2a", n=2), as_printed("table2a", n=3)
    settings = list(few)
    trials = {setting: (few if k < 5 else enough)[setting] for k, setting in enumerate(settings)}
    frame = fidelity.as_frame([load_experiment("table2a")], trials)
    assert list(frame["verdict"]) == ["too few trials"] * 5 + ["inside"] * 10
    assert "15 values that the paper prints are measured, 10 of them" in fidelity.summary(frame)
    assert "10 of these (100%)" in fidelity.summary(frame)


@pytest.mark.slow
def test_trials_with_the_seeds_that_chose_the_readings_are_no_part_of_a_report(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(experiments, "published", lambda: tmp_path / "published")
    experiment = load_experiment("table7b")
    wrong, right = (
        [a_trial(cell.setting, seed, error) for cell in experiment.cells for seed in seeds]
        for error, seeds in ((0.9, range(10)), (0.2, range(10, 13)))
    )
    write_csv(tmp_path / "any.trials.csv", wrong[:5] + right)
    with Store(tmp_path / "s.sqlite") as store:
        store.add(*wrong)
        both = reproduction.finished(store, tmp_path, [])
    assert {len(some) for some in both.values()} == {13}
    assert reproduction.reported(both) == {
        cell.setting: [trial for trial in right if trial.setting == cell.setting]
        for cell in experiment.cells
    }
    assert reproduction.reported({wrong[0].setting: wrong[:3]}) == {}

    arguments = ["--html", "--latex", "--out", str(tmp_path), "--store", str(store.path)]
    result = CliRunner().invoke(commands, ["report", *arguments])
    assert result.exit_code == 0, result.output
    assert "Seeds 0 to 9 chose the readings" in result.output
    frame = pd.read_csv(tmp_path / "fidelity.csv").query("experiment == 'table7b'")
    assert frame["trials"].tolist() == [3, 3, 3]
    assert frame["mean"].tolist() == [0.2, 0.2, 0.2]
    for name in ("fidelity.md", "fidelity.html"):
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert "Seeds 0 to 9 chose the readings" in page
    assert "0.20" in (tmp_path / "table7b.tex").read_text(encoding="utf-8")


def test_every_experiment_that_chose_readings_is_none_of_the_papers():
    ours = {name for name in available() if name.startswith(("readings", "rules"))}
    assert ours == {name for name in available() if load_experiment(name).published_by is None}
    assert not ours & {experiment.name for experiment in fidelity.all_experiments()}


OTHERS = """
title = "Their table"
published_by = "Others & Co., 2031"
[setting]
dataset = "digits"
workers = 20
compromised = 4
[rows]
median = { rule = "median" }
[columns]
no-attack = { attack = "none" }
full = { attack = "trimmed-mean" }
[paper]
median = [0.10, 0.40]
"""


@pytest.fixture
def with_others(tmp_path, monkeypatch):
    """The paper's Table 7 (b), another paper's table, and one that nobody published."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("table7b.toml", "arena.toml"):
        shutil.copy(experiments.home() / name, home)
    (home / "theirs.toml").write_text(OTHERS)
    ours = OTHERS.replace("Their table", "Our table").replace("published_by", "# published_by")
    (home / "ours.toml").write_text(ours)
    monkeypatch.setattr(experiments, "home", lambda: home)
    return home


def report_into(out, *options):
    arguments = ["report", *options, "--out", str(out), "--store", str(out / "none")]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_another_papers_numbers_have_a_page_of_their_own_with_the_same_verdicts(
    tmp_path, with_others
):
    without, out = tmp_path / "without", tmp_path / "out"
    (with_others / "theirs.toml").rename(tmp_path / "theirs.toml")
    report_into(without, "--html")
    assert {file.stem for file in without.iterdir()} == {"fidelity"}
    (tmp_path / "theirs.toml").rename(with_others / "theirs.toml")
    plain, attacked = load_experiment("theirs").settings
    trials = [a_trial(plain, seed, 0.11) for seed in (10, 11, 12)]
    trials += [a_trial(attacked, seed, 0.2) for seed in (10, 11, 12)]
    out.mkdir()
    write_csv(out / "theirs.trials.csv", trials)
    told = report_into(out, "--html")
    assert "outside: theirs, median, full: 0.200 ±0.000, the paper has 0.40 (3 trials)" in told
    assert "Others & Co., 2031: 2 of the 2 values that the paper prints are measured" in told
    # The paper's own page does not change by it, not by a byte.
    for name in ("fidelity.md", "fidelity.csv", "fidelity.html"):
        assert (out / name).read_bytes() == (without / name).read_bytes()
    name = "fidelity-others-co-2031"
    page = (out / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith("# Fidelity report: Others \\& Co., 2031\n")
    assert "What the paper says in words" not in page
    assert pd.read_csv(out / f"{name}.csv")["verdict"].tolist() == ["inside", "outside"]
    html = (out / f"{name}.html").read_text(encoding="utf-8")
    assert "The paper is that of Others &amp; Co., 2031." in html
    assert "What the paper says in words" not in html
    assert "USENIX" not in html
    assert not [file for file in out.iterdir() if "ours" in file.name]


def test_experiments_are_listed_by_paper_and_nobodys_at_the_end(with_others):
    listed = CliRunner().invoke(commands, ["list"]).output
    lines = listed[listed.index("experiments,") : listed.index("protocols")].splitlines()
    named = [line for line in lines if not line.startswith("   ")]
    assert [line.split("  ")[1] if line.startswith("  ") else line for line in named] == [
        f"experiments, {fidelity.PAPER}:",
        "table7b",
        "experiments, Others & Co., 2031:",
        "theirs",
        "experiments, of this program:",
        "ours",
    ]


@pytest.mark.long
def test_a_report_leaves_the_pictures_of_reproduce_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("fltrust_repro.experiments.published", lambda: tmp_path / "published")
    experiment = load_experiment("figure4a")
    found = {
        s: [a_trial(s, seed, 0.1 + seed / 100) for seed in range(10, 13)]
        for s in experiment.settings
    }
    write_csv(tmp_path / "figure4a.trials.csv", [t for some in found.values() for t in some])
    # As in a clone: the PNG is committed, the SVG is not.
    (tmp_path / "figure4a.png").write_bytes(b"reproduce's own")
    for options in ([], ["--html"], ["--latex"]):
        arguments = ["report", *options, "--out", str(tmp_path), "--store", str(tmp_path / "none")]
        assert CliRunner().invoke(commands, arguments).exit_code == 0
        assert (tmp_path / "figure4a.png").read_bytes() == b"reproduce's own"
        assert not list(tmp_path.glob("figure*.svg"))  # but those of the arena, with its page
        assert len(list(tmp_path.glob("figure*.png"))) == 1
    assert 'class="chart"' in (tmp_path / "fidelity.html").read_text(encoding="utf-8")


def test_a_cell_outside_that_more_trials_may_bring_inside_is_counted(with_others):
    """One of two is open: 0.25 ±0.45 holds the paper's 0.40, 0.20 ±0.00 does not hold its 0.10."""
    theirs = load_experiment("theirs")
    plain, attacked = theirs.settings
    trials = {
        plain: tuple(a_trial(plain, seed, 0.2) for seed in (10, 11, 12)),
        attacked: tuple(
            a_trial(attacked, 10 + k, error) for k, error in enumerate((0.1, 0.2, 0.45))
        ),
    }
    frame = fidelity.as_frame([theirs], trials)
    told = fidelity.summary(frame)
    assert "0 of these (0%) are inside" in told
    assert "Of the 2 outside, 1 has a 95% confidence interval that holds the paper's" in told
    lines = fidelity.outside(frame)
    assert lines[0].endswith("0.200 ±0.000, the paper has 0.10 (3 trials)")
    assert lines[1].endswith("0.250 ±0.448, the paper has 0.40 (3 trials)")


def test_a_report_draws_what_has_trials_under_names_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("fltrust_repro.experiments.published", lambda: tmp_path / "published")
    experiment = load_experiment("table7b")
    found = [a_trial(s, seed, 0.2) for s in experiment.settings for seed in range(10, 13)]
    write_csv(tmp_path / "table7b.trials.csv", found)
    (tmp_path / "table7b.png").write_bytes(b"reproduce's own")
    told = report_into(tmp_path, "--pictures", "--grey")
    drawn = f"{tmp_path / 'fidelity-table7b'}.png, .svg"
    assert drawn in told
    svg = (tmp_path / "fidelity-table7b.svg").read_text(encoding="utf-8")
    assert svg.count("<!-- .200") == 3 and "seeds 10 to 12" in svg
    assert {path.name for path in tmp_path.glob("*.svg")} == {"fidelity-table7b.svg"}
    assert (tmp_path / "fidelity-table7b.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table7b.png").read_bytes() == b"reproduce's own"


def test_a_report_of_what_the_paper_prints_is_inside_throughout_and_its_claims_hold():
    names = [
        "table2a", "table2e", "table4", "table5", "table6", "table7b", "table8", "section44",
    ]  # fmt: skip
    trials = {setting: found for name in names for setting, found in as_printed(name).items()}
    experiments = [load_experiment(name) for name in names]
    frame = fidelity.as_frame(experiments, trials)
    assert set(frame["verdict"]) == {"inside"}
    assert fidelity.outside(frame) == []
    assert fidelity.summary(frame).endswith("(100%) are inside the tolerance.")
    frame = fidelity.as_frame(experiments, trials)
    page = fidelity.markdown(experiments, trials, frame)
    assert "| 0.72" in page
    more = {s: [replace(t, result=replace(t.result, error_rate=t.result.error_rate + 0.01))
                for t in some] for s, some in trials.items()}  # fmt: skip
    above = fidelity.markdown(experiments, more, fidelity.as_frame(experiments, more))
    assert above.count("| +0.010") > 50 > above.count("| -0.010")
    judged = claims.judge(CLAIMS, fidelity.numbers(fidelity.all_experiments(), trials))
    words = [word for _, word, _ in judged]
    assert words.count("fails") == 0
    assert words.count("holds") >= 20
    assert words.count("not measured") >= 10


def test_there_are_at_least_fifteen_claims_and_none_is_judged_without_numbers():
    judged = claims.judge(CLAIMS, claims.Numbers({}))
    assert len(judged) >= 15
    assert {word for _, word, _ in judged} == {"not measured"}


def test_claims_fail_on_numbers_that_say_the_contrary():
    trials = {}
    for name in [experiment.name for experiment in fidelity.all_experiments()]:
        for cell in load_experiment(name).cells:
            # No attack does anything, training gets worse, and nothing depends on anything.
            trials[cell.setting] = [
                a_trial(cell.setting, seed, 0.3, losses=(1.0, 2.0), notes={
                    "direction agreement": 0.5,
                })
                for seed in range(3)
            ]  # fmt: skip
    judged = claims.judge(CLAIMS, fidelity.numbers(fidelity.all_experiments(), trials))
    holding = [one.text for one, word, _ in judged if word == "holds"]
    assert not [word for _, word, _ in judged if word == "not measured"]
    # Only what says that other people's attacks do little still holds; nothing is comparable under
    # an attack, transfers or is defended against, where no attack works.
    assert holding == [
        "Gaussian attacks have no notable impact (LR, MNIST: within 0.03).",
        "Label flipping has limited success for LR (MNIST: at most 0.05).",
        "Label flipping only slightly raises error rates with more of them (Figure 2, LR).",
    ]
    evidence = {one.text: told for one, _, told in judged}
    [breast_cancer] = [told for text, told in evidence.items() if "Breast Cancer, Krum" in text]
    assert "the attack raises no error rate in krum partial; krum full; median" in breast_cancer


def test_missing_cells_are_named_with_their_hours():
    experiments = [load_experiment("table7b")]
    page = fidelity.markdown(experiments, {}, fidelity.as_frame(experiments, {}))
    assert "Missing: 3 cells; 50 trials of each take about 0.3 hours" in page
    assert "missing" in page


def test_latex_has_every_cell():
    text = fidelity.latex(load_experiment("table7b"), as_printed("table7b"))
    assert text.startswith("\\begin{tabular}")
    assert "0.36" in text
    assert "bulyan" in text


@pytest.mark.parametrize("name", [pytest.param("figure2", marks=pytest.mark.long), "figure5b"])
def test_a_figure_is_drawn_as_png_and_svg_the_same_each_time(tmp_path, name):
    experiment = load_experiment(name)
    trials = {s: [a_trial(s, seed, 0.1 * seed) for seed in range(3)] for s in experiment.settings}
    assert fidelity.drawable(experiment, trials)
    cells = fidelity.measured(experiment, trials)
    figures.draw(experiment, cells, tmp_path)
    png, svg = tmp_path / f"{name}.png", tmp_path / f"{name}.svg"
    before = png.read_bytes(), svg.read_bytes()
    assert before[0].startswith(b"\x89PNG")
    text = svg.read_text()
    assert "<svg" in text
    figures.draw(experiment, cells, tmp_path)
    assert (png.read_bytes(), svg.read_bytes()) == before


def test_a_figure_with_points_missing_is_drawn_without_them(tmp_path):
    experiment = load_experiment("figure4a")
    some = {s: [a_trial(s, 0, 0.2)] for s in experiment.settings[:3]}
    assert not fidelity.drawable(experiment, some)
    figures.draw(experiment, fidelity.measured(experiment, some), tmp_path)
    assert (tmp_path / "figure4a.png").stat().st_size > 5000
