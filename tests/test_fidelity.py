"""The fidelity report and the figures: from trials alone, whatever is missing."""

from __future__ import annotations

import pytest

from fltrust_repro import claims, fidelity, figures
from fltrust_repro.experiments import available, load_experiment
from fltrust_repro.paper_claims import CLAIMS
from fltrust_repro.results import TrialResult
from fltrust_repro.store import Store
from fltrust_repro.trials import Trial, protocol_of, write_csv


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
        found = fidelity.finished(tmp_path, store)
    errors = [(trial.seed, trial.result.error_rate) for trial in found[cell.setting]]
    assert errors == [(0, 0.1), (1, 0.5), (2, 0.3)]
    assert list(fidelity.finished(tmp_path, Store(":memory:"))) == [cell.setting]


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
    frame = fidelity.as_frame([load_experiment("table2a")], as_printed("table2a", n=1))
    # An attack that must be significantly above no attack cannot be judged by one trial.
    assert list(frame["verdict"]).count("too few trials") == 6
    assert "15 values that the paper prints are measured, 9 of them" in fidelity.summary(frame)
    assert "9 of these (100%)" in fidelity.summary(frame)


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
    for name in sorted(set(available()) - set(fidelity.NOT_OF_THE_PAPER)):
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
    # What says that an attack does nothing, or that one is comparable to another, still holds.
    assert all(
        any(word in text for word in ("no notable", "limited", "comparable", "not transfer",
                                      "slightly", "as good"))
        for text in holding
    ), holding  # fmt: skip


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


@pytest.mark.parametrize("name", ["figure2", "figure5b"])
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
