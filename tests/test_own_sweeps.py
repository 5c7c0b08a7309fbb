"""`sweep` as a user calls it: what it runs, leaves out, names, draws, and keeps when stopped."""

from __future__ import annotations

import pandas as pd
import pytest
from invoked import ended

from fltrust_repro import experiments, own_sweeps, reproduction, sweep
from fltrust_repro.varied import axis

SMALL = ("--dataset", "digits", "--workers", 10, "--iterations", 3)
QUICK = (*SMALL, "--trials", 1, "--jobs", 0, "--device", "cpu", "--out", "results")


@pytest.fixture(autouse=True)
def _own_folder(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "published", lambda: tmp_path / "published")


@pytest.fixture
def call(capsys):
    """Run `sweep`, or another command."""
    return lambda *arguments, command="sweep": ended(capsys, command, *arguments)


@pytest.fixture
def asked(monkeypatch, call):
    """What `sweep` would run, without running it."""

    def arranged(*arguments):
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(
                reproduction, "reproduce", lambda orders, *_: seen.extend(orders) or ([], [])
            )
            code, _, err = call(*arguments)
        assert code == 0, err
        return seen[0]

    return arranged


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a trial was to be run")

    return lambda: monkeypatch.setattr(sweep, "run_missing", refuse)


def results(pattern="*.csv"):
    (file,) = (f for f in (experiments.Path("results")).glob(pattern) if ".trials" not in f.name)
    return pd.read_csv(file)


def test_a_line_that_does_not_depend_on_it_is_run_once_and_drawn_level(call, tmp_path):
    rules = ("--rule", "krum", "--rule", "trimmed-mean", "--compromised", 2)
    code, out, err = call("--vary", "beta", "--values", "2,3,4", *rules, "--attack", "gaussian",
                          *QUICK)  # fmt: skip
    assert code == 0, err
    assert "Nothing reads beta in krum: it is not varied there." in err
    assert "0 trials at hand, 4 to run" in err
    assert "4/4 trials" in err
    assert "1 trial, seed 10" in out
    table = results()
    assert list(table["trials"]) == [1] * 6
    means = table.groupby("row", sort=False)["mean"].nunique()
    assert means["krum: gaussian"] == 1 < means["trimmed-mean: gaussian"]
    (page,) = (tmp_path / "results").glob("*.md")
    assert "Nothing reads beta in krum: it is not varied there." in page.read_text()


def test_the_papers_lines_over_beta_and_epsilon_are_no_more_settings_than_can_differ(asked):
    beta, epsilon = asked("--vary", "beta"), asked("--vary", "epsilon")
    assert len(beta.cells) == len(epsilon.cells) == 90
    assert len({*beta.settings}) == 5 + 6 * 5 + 5  # Krum, trimmed mean, median
    assert len({*epsilon.settings}) == 3 + 6 * 2 + 5 + 5


def test_points_beyond_a_limit_are_left_out_and_named(call):
    rules = ("--rule", "bulyan", "--rule", "median", "--attack", "gaussian")
    code, out, err = call("--vary", "c", "--values", "0%:40%:10%", *rules, *QUICK)
    assert code == 0, err
    assert "Left out: bulyan at c = 3, 4: rule 'bulyan' needs m - 4c >= 1" in err
    bulyan = next(line for line in out.splitlines() if line.startswith("bulyan"))
    assert bulyan.split()[-2:] == ["-", "-"]
    table = results()
    assert list(table["column"][table["row"] == "bulyan: gaussian"]) == ["c = 0", "c = 1", "c = 2"]
    assert list(table["column"][table["row"] == "median: gaussian"]) == [
        "c = 0", "c = 1", "c = 2", "c = 3", "c = 4",
    ]  # fmt: skip


def test_where_nobody_is_compromised_all_attacks_are_none(asked):
    figure = asked("--vary", "c", "--values", "0,5", "--rule", "krum")
    first = {cell.setting for cell in figure.cells if cell.column == "c = 0"}
    assert [(one.attack, one.compromised) for one in first] == [("none", 0)]


def test_files_are_named_by_what_varies_the_data_and_the_model(asked):
    assert asked("--vary", "c").name == "sweep-c-mnist-lr"
    assert asked("--vary", "c", "--trials", 3, "--seed", 7).name == "sweep-c-mnist-lr"
    assert asked("--vary", "c", "--dataset", "digits").name == "sweep-c-digits-lr"
    assert asked("--vary", "p", "--model", "cnn").name == "sweep-p-mnist-cnn"
    assert asked("--vary", "c", "--vary", "p").name == "sweep-c-p-mnist-lr"
    assert asked("--vary", "c", "--rule", "krum", "--name", "mine").name == "mine"


def test_no_two_sweeps_have_the_same_files(asked):
    others = [
        (), ("--learning-rate", 0.05), ("--learning-rate", 0.06), ("--values", "5..30:10"),
        ("--values", "5..30:5,7"), ("--rule", "median"), ("--attack", "gaussian"),
        ("--knowledge", "full"), ("--reading", "initial=xavier-1"), ("--pre", "nnm"),
        ("--momentum", 0.9), ("--epsilon", 0.5),
    ]  # fmt: skip
    names = [asked("--vary", "c", *other).name for other in others]
    assert len({*names}) == len(others)
    assert names[0] == "sweep-c-mnist-lr"
    assert all(name.startswith("sweep-c-mnist-lr-") for name in names[1:])
    again = asked("--vary", "c", "--learning-rate", "0.050", "--trials", 2)
    assert again.name == names[1]
    assert again.title == "lr on mnist, c varied; learning-rate 0.05"


def test_values_that_print_alike_stay_apart(call):
    code, out, err = call("--vary", "p", "--values", "0.5,0.5000001", "--rule", "median",
                          "--attack", "none", "--compromised", 2, *QUICK)  # fmt: skip
    assert code == 0, err
    assert out.splitlines()[2].split("  ")[-1].strip() == "p = 0.5000001"
    assert list(results()["column"]) == ["p = 0.5", "p = 0.5000001"]


@pytest.mark.parametrize(
    ("vary", "values", "field"),
    [
        ("learning-rate", "0.01..1", "learning_rate"), ("b", "1.5,2", "b"),
        ("batch-size", "8,16", "batch_size"), ("iterations", "5..30", "iterations"),
        ("momentum", "0,0.9", "momentum"), ("workers", "60..100", "workers"),
        ("selected", "50%..100%", "selected"), ("compromised", "5..30", "compromised"),
    ],
)  # fmt: skip
def test_any_number_can_be_varied(asked, vary, values, field):
    figure = asked("--vary", vary, "--values", values, "--rule", "trimmed-mean", "--attack",
                   "trimmed-mean", "--knowledge", "full")  # fmt: skip
    points = [getattr(one, field) for one in figure.settings]
    assert len({*points}) == len(figure.columns) > 1
    assert [float(column.split(" = ")[1]) for column in figure.columns] == points


def test_a_rules_own_parameter_is_varied_with_its_attack_kept(asked):
    figure = asked("--vary", "krum:power", "--values", "2,4", "--rule", "krum", "--rule", "median")
    full = [one for one in figure.settings if one.knowledge == "full"]
    assert [(one.rule, one.attack) for one in full] == [
        ("krum", "krum"), ("krum:power=4", "krum"), ("median", "trimmed-mean"),
        ("median", "trimmed-mean"),
    ]  # fmt: skip
    chosen = asked("--vary", "c", "--rule", "krum:power=4")
    assert {one.attack for one in chosen.settings if one.knowledge} == {"krum"}


GRID = ("--vary", "c", "--vary", "p", "--values", "1,3", "--values", "0.1,0.5,0.9")


def test_two_parameters_make_a_heat_map_for_each_rule_and_attack(call, tmp_path):
    lines = ("--rule", "median", "--attack", "none", "--attack", "gaussian", "--name", "two")
    code, out, err = call(*GRID, *lines, *QUICK)
    assert code == 0, err
    assert "12/12 trials" in err
    assert "median: gaussian, p = 0.9" in out
    files = {file.name for file in (tmp_path / "results").iterdir()}
    assert files >= {"two.csv", "two.md", "two.trials.csv"} | {
        f"two-median-{line}.{kind}" for line in ("none", "gaussian") for kind in ("png", "svg")
    }
    table = results()
    assert len(table) == 12
    assert list(table["row"][:2]) == ["median: none, p = 0.1"] * 2
    page = (tmp_path / "results" / "two.md").read_text()
    assert "](two-median-gaussian.png)" in page
    drawn = (tmp_path / "results" / "two-median-gaussian.svg").read_text()
    last = table["mean"].iloc[-1]
    assert f"{last:.3f}".lstrip("0") in drawn
    repeated = "sweep --vary c --vary p --values 1,3 --values 0.1,0.5,0.9 --rule median"
    assert repeated in page


def test_an_interrupt_shows_what_is_there_and_ends_with_130(call, monkeypatch, tmp_path):
    whole = sweep.run_missing

    def interrupted(cells, seeds, *others):
        whole(cells, seeds[:2], *others)
        whole(cells[:2], seeds[:4], *others)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_missing", interrupted)
    told = ("--vary", "p", "--values", "0.1,0.5", "--rule", "median", "--attack", "none",
            "--attack", "gaussian", "--compromised", 2, *QUICK, "--trials", 5)  # fmt: skip
    code, out, err = call(*told)
    assert code == 130
    assert "partial: 2 to 4 trials per point, seeds 10 to 13." in out
    assert err.endswith("\nStopped. Finished trials are kept: the same command goes on.\n")
    assert sorted(results()["trials"]) == [2, 2, 4, 4]
    assert {file.suffix for file in (tmp_path / "results").iterdir()} >= {
        ".md", ".csv", ".png", ".svg",
    }  # fmt: skip
    monkeypatch.undo()


def test_draw_runs_nothing_and_draws_what_is_known(call, no_training, tmp_path):
    told = ("--vary", "p", "--values", "0.1,0.5", "--rule", "median", "--attack", "none", *QUICK,
            "--compromised", 2)  # fmt: skip
    assert call(*told)[0] == 0
    drawn = {file.name: file.read_bytes() for file in (tmp_path / "results").iterdir()}
    no_training()
    code, out, err = call(*told, "--draw", "--trials", 3, "--out", "again")
    assert code == 0, err
    assert "partial: 1 of 3 trials per point, seed 10." in out
    assert {file.name for file in (tmp_path / "again").iterdir()} == {*drawn}
    code, out, err = call(*told, "--draw", "--store", "none.sqlite", "--out", "elsewhere")
    assert (code, out) == (0, "")
    assert err.endswith("nothing is at hand to be shown.\n")
    assert not (tmp_path / "none.sqlite").exists()


def test_reproduce_draws_without_running_too(call, no_training, tmp_path):
    (tmp_path / "tiny.toml").write_text(
        'title = "Tiny"\n[setting]\ndataset = "digits"\nworkers = 10\ncompromised = 2\n'
        "iterations = 3\n[rows]\nmedian = { rule = 'median' }\n[columns]\nnone = {}\n"
    )
    where = ("tiny.toml", "--jobs", 0, "--out", "results")
    assert call(*where, "--trials", 1, command="reproduce")[0] == 0
    no_training()
    code, out, err = call(*where, "--trials", 2, "--draw", command="reproduce")
    assert code == 0, err
    assert "partial: 1 of 2 trials per cell, seed 10." in out


PAPERS = ("figure2", "figure3", "figure4a", "figure4b", "figure4c", "figure5a", "figure5b",
          "figure5c")  # fmt: skip


def test_the_papers_figures_still_find_their_published_trials(monkeypatch):
    monkeypatch.undo()  # published is the repository's own
    files = experiments.published().glob("*.trials.csv")
    names = pd.concat(pd.read_csv(file, usecols=["key", "seed"]) for file in files)
    known = {*names.itertuples(index=False, name=None)}
    for name in PAPERS:
        for setting in experiments.load_experiment(name).settings:
            assert {(setting.key(), seed) for seed in range(10, 15)} <= known, (name, setting)


def test_a_sweep_of_one_rule_is_named_by_it():
    """Its table has a row per attack alone, which would read as a rule."""
    setting = {"dataset": "digits", "model": "lr"}
    for rules, title in ((["median"], "median, lr on digits, c varied"),
                         (["median", "krum"], "lr on digits, c varied")):  # fmt: skip
        made = own_sweeps.arranged([axis("c", [1, 2])], rules, ["none"], [], setting, {}, "sweep")
        assert made.title == title
