"""The experiments of the paper: its numbers, its settings, and wrong .toml files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltrust_repro import experiment_files, experiments
from fltrust_repro.aggregation import rules
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import available, figure_of, load_experiment
from fltrust_repro.plugins import run_afresh
from fltrust_repro.settings import FIELDS, Setting
from fltrust_repro.varied import VARIED

COLUMNS = ("no-attack", "gaussian", "label-flip", "partial", "full")

# Table 2 of the paper, typed from its pages: rows Krum, trimmed mean, median.
TABLE_2 = {
    "table2a": """0.14 0.13 0.13 0.72 0.80
                  0.12 0.11 0.13 0.23 0.52
                  0.13 0.13 0.15 0.19 0.29""",
    "table2b": """0.11 0.10 0.10 0.75 0.77
                  0.06 0.07 0.07 0.14 0.23
                  0.06 0.06 0.16 0.28 0.32""",
    "table2c": """0.16 0.16 0.16 0.90 0.91
                  0.10 0.10 0.12 0.26 0.28
                  0.09 0.12 0.12 0.21 0.29""",
    "table2d": """0.29 0.30 0.43 0.73 0.81
                  0.17 0.25 0.37 0.69 0.69
                  0.17 0.20 0.17 0.57 0.63""",
    "table2e": """0.03 0.04 0.14 0.17 0.17
                  0.02 0.03 0.05 0.14 0.15
                  0.03 0.03 0.04 0.17 0.18""",
}
DATA = {
    "table2a": ("mnist", "lr", 500, 32),
    "table2b": ("mnist", "cnn", 2000, 32),
    "table2c": ("fashion-mnist", "cnn", 2000, 64),
    "table2d": ("ch-mnist", "resnet20", 2000, 32),
    "table2e": ("breast-cancer", "cnn", 2000, 32),
}


def test_the_five_panels_of_table_2_are_there():
    assert set(TABLE_2) <= set(available())


@pytest.mark.parametrize("name", TABLE_2)
def test_a_panel_has_the_papers_fifteen_values(name):
    experiment = load_experiment(name)
    assert experiment.rows == ("krum", "trimmed-mean", "median")
    assert experiment.columns == COLUMNS
    assert [cell.paper for cell in experiment.cells] == [float(v) for v in TABLE_2[name].split()]


@pytest.mark.parametrize("name", TABLE_2)
def test_a_panel_has_the_papers_settings(name):
    cells = load_experiment(name).cells
    for cell in cells:
        s = cell.setting
        assert (s.dataset, s.model, s.iterations, s.batch_size) == DATA[name]
        assert (s.workers, s.compromised, s.beta, s.non_iid) == (100, 20, 20, 0.5)
        assert (s.epsilon, s.b, s.rounds) == (0.01, 2.0, 1)
        assert s.rule == cell.row
    assert len({cell.setting for cell in cells}) == 15


@pytest.mark.parametrize("name", TABLE_2)
def test_each_rule_meets_the_attack_that_was_crafted_for_it(name):
    crafted = {"krum": "krum", "trimmed-mean": "trimmed-mean", "median": "trimmed-mean"}
    for cell in load_experiment(name).cells:
        attack, knowledge = {
            "no-attack": ("none", None),
            "gaussian": ("gaussian", None),
            "label-flip": ("label-flip", None),
            "partial": (crafted[cell.row], "partial"),
            "full": (crafted[cell.row], "full"),
        }[cell.column]
        assert (cell.setting.attack, cell.setting.knowledge) == (attack, knowledge)


GOOD = """
title = "Mine"
[setting]
dataset = "digits"
workers = 20
compromised = 4
[rows]
few = { iterations = 5 }
[columns]
mean = { rule = "mean" }
krum = { rule = "krum", iterations = 6 }
"""


def load(tmp_path, text: str, encoding: str = "utf-8"):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding=encoding)
    return load_experiment(str(path))


def test_a_byte_order_mark_as_windows_writes_it_is_no_fault(tmp_path):
    assert load(tmp_path, GOOD, "utf-8-sig") == load(tmp_path, GOOD)
    with pytest.raises(BadInput, match=r"mine.toml is not valid TOML in UTF-8"):
        load(tmp_path, GOOD, "utf-16")


SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.sampled_from([10**300, 10**400, 10**4000, -(2**63), float("nan"), float("inf"), 1e-320]),
    st.floats(),
    st.text(),
)
VALUES = st.recursive(
    SCALARS, lambda kind: st.lists(kind, max_size=3) | st.dictionaries(st.text(), kind, max_size=3)
)
PLACES = (
    *[("setting", name) for name in FIELDS],
    ("rows", "few"), ("columns", "mean"), ("paper", "few"), ("seconds",), ("measure",), ("title",),
    ("plugins",), ("vary",), ("values",), ("setting",), ("rows",), ("columns",), ("panels",),
    ("lines",),
)  # fmt: skip


@given(place=st.sampled_from(PLACES), value=VALUES, figure=st.booleans())
def test_any_value_at_any_place_is_taken_or_refused_in_one_line(place, value, figure):
    whole = experiment_files.tomllib.loads(FIGURE if figure else GOOD)
    *above, last = place
    part = whole.setdefault(above[0], {}) if above else whole
    part[last] = value
    try:
        made = experiments._build(Path("mine.toml"), whole)
    except BadInput as error:
        assert len(str(error)) < 10_000
        return
    assert made.cells


def test_a_table_needs_no_setting_that_all_cells_share(tmp_path):
    shared = 'few = { dataset = "digits", workers = 20, compromised = 4,'
    alone = 'title = "Mine"\n' + GOOD[GOOD.index("[rows]") :].replace("few = {", shared)
    assert load(tmp_path, alone).settings == load(tmp_path, GOOD).settings


def test_a_number_that_hides_as_hexadecimal_is_told(tmp_path):
    with pytest.raises(BadInput, match="iterations is a number of thousands of digits"):
        load(tmp_path, GOOD.replace("iterations = 5", f"iterations = 0x{'f' * 5000}"))


def test_an_own_file_needs_no_values_of_the_paper_and_columns_win_over_rows(tmp_path):
    experiment = load(tmp_path, GOOD)
    assert experiment.name == "mine"
    assert experiment.title == "Mine"
    shared = {"dataset": "digits", "workers": 20, "compromised": 4}
    assert experiment.settings == (
        Setting(**shared, rule="mean", iterations=5),
        Setting(**shared, rule="krum", iterations=6),
    )
    assert [cell.paper for cell in experiment.cells] == [None, None]


WRONG = {
    "title = 3": ("title is 3; give a text", ("title = \"Mine\"", "title = 3")),
    "no rows": ("rows is missing or empty; give", ("[rows]\nfew = { iterations = 5 }", "[rows]")),
    "no columns": ("columns is missing or empty", (GOOD[GOOD.index("[columns]") :], "[columns]\n")),
    "no setting": ("unknown part 'settings';.* mean 'setting'", ("[setting]", "[settings]")),
    "unknown part": ("unknown part 'extra'; choose one of title, ", ("[rows]", "[extra]\n[rows]")),
    "unknown field": ("row 'few', column 'mean'.*unknown setting itterations",
                      ("iterations = 5", "itterations = 5")),
    "wrong name": ("unknown rule 'krumm'", ('rule = "krum"', 'rule = "krumm"')),
    "wrong type": ("iterations is '5'", ("iterations = 5", 'iterations = "5"')),
    "out of range": ("compromised is 10", ("compromised = 4", "compromised = 10")),
    "row is a number": ("few", ("few = { iterations = 5 }", "few = 5")),
    "not toml": ("not valid TOML", ("[rows]", "[rows")),
    "value per column": (
        "few must be a list of 2 numbers",
        ("[rows]", "[paper]\nfew = [0.1]\n[rows]"),
    ),
    "value is a number": ("few", ("[rows]", "[paper]\nfew = 0.1\n[rows]")),
    "value is a word": ("few", ("[rows]", '[paper]\nfew = ["a", "b"]\n[rows]')),
    "value of no row": ("many", ("[rows]", "[paper]\nmany = [0.1, 0.2]\n[rows]")),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_sentence_that_names_it_and_the_place(tmp_path, case):
    words, (found, instead) = WRONG[case]
    assert found in GOOD
    with pytest.raises(BadInput, match=f"(?s)mine.toml.*{words}"):
        load(tmp_path, GOOD.replace(found, instead, 1))


def test_an_unknown_name_is_answered_with_the_names_there_are_and_the_nearest(tmp_path):
    with pytest.raises(BadInput, match=r"'tabel2a'.*Did you mean 'table2a', 'table2\w' or '"):
        load_experiment("tabel2a")
    table = load(tmp_path, GOOD)
    with pytest.raises(BadInput, match=r"no row 'feww'; choose one of few\. Did you mean 'few'\?"):
        table.choose(rows=["feww"])
    with pytest.raises(BadInput, match=r"mine has no column 'krun'.*Did you mean 'krum'\?"):
        table.choose(columns=["mean", "krun"])


def test_a_folder_of_ones_own_hides_no_experiment_of_the_paper(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "table2a.toml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_experiment("table2a").rows == ("krum", "trimmed-mean", "median")
    own = load_experiment(Path("experiments/table2a.toml"))
    assert own.rows == ("few",)
    assert own.command == "reproduce experiments/table2a.toml"
    assert load_experiment("table2a").command == "reproduce table2a"


def test_without_a_checkout_the_papers_experiments_lie_in_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "fltrust_repro"
    (package / "paper").mkdir(parents=True)
    (package / "paper" / "mine.toml").write_text(GOOD)
    monkeypatch.setattr(experiments, "__file__", str(package / "experiments.py"))
    assert list(available()) == ["mine"]
    assert experiments.published() == package / "paper" / "results"
    assert load_experiment("mine").command == "reproduce mine"


def test_an_unfinished_file_hides_no_other(tmp_path, monkeypatch, capsys):
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "unfinished.toml").write_text("[setting")
    monkeypatch.setattr(experiments, "home", lambda: tmp_path)
    assert [experiment.name for experiment in experiments.readable()] == ["good"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Note: left out: ")
    assert "unfinished.toml is not valid TOML" in line


def test_the_papers_experiments_say_that_they_are_and_those_of_readings_do_not():
    ours = {e.name for e in experiments.readable() if e.published_by is None}
    assert ours == {name for name in available() if name.startswith(("readings", "rules"))}
    assert load_experiment("table2a").published_by == "Fang et al., USENIX Security 2020"


FIGURE = """
title = "Mine"
vary = "c"
[setting]
dataset = "digits"
workers = 20
[panels]
krum = { rule = "krum", attack = "krum" }
median = { rule = "median", attack = "trimmed-mean" }
[lines]
no-attack = { attack = "none" }
full = { knowledge = "full" }
"""


def test_a_figure_is_a_row_per_panel_and_line_and_a_column_per_value(tmp_path):
    experiment = load(tmp_path, FIGURE.replace('"c"', '"c"\nvalues = [2, 4]'))
    assert experiment.rows == ("krum: no-attack", "krum: full", "median: no-attack", "median: full")
    assert experiment.columns == ("c = 2", "c = 4")
    assert [cell.setting.compromised for cell in experiment.cells] == [2, 4] * 4
    assert [cell.setting.beta for cell in experiment.cells] == [2, 4] * 4
    assert experiment.cells[2].setting.attack == "krum"


VARIED_FIELDS = {
    "m": ("workers", {"compromised": 5, "selected": 25}),
    "c": ("compromised", {"beta": 5}),
    "p": ("non_iid", {}),
    "beta": ("beta", {}),
    "epsilon": ("epsilon", {}),
    "rounds": ("rounds", {}),
    "selected": ("selected", {}),
    "poisoned-fraction": ("poisoned_fraction", {}),
}


@pytest.mark.parametrize("vary", VARIED_FIELDS)
def test_each_varied_parameter_takes_the_values_of_the_paper(vary):
    field, first = VARIED_FIELDS[vary]
    name = "krum" if vary == "epsilon" else "trimmed-mean"
    rule = {"rule": name, "attack": name}
    figure = figure_of("f", "", "", {}, {"a": rule}, {"full": {}}, vary)
    points = [getattr(cell.setting, field) for cell in figure.cells]
    assert tuple(points) == VARIED[vary].values == figure.figure.values
    for name, value in first.items():
        assert getattr(figure.cells[0].setting, name) == value


def test_a_file_varies_any_number_and_leaves_out_what_a_limit_forbids(tmp_path):
    four = FIGURE.replace("workers = 20", "workers = 20\ncompromised = 4")
    rates = load(tmp_path, four.replace('"c"', '"learning-rate"\nvalues = [0.1, 1]'))
    assert rates.columns == ("learning-rate = 0.1", "learning-rate = 1")
    assert [cell.setting.learning_rate for cell in rates.cells] == [0.1, 1.0] * 4
    five = FIGURE.replace("workers = 20", "workers = 5")
    limited = load(tmp_path, five.replace('"c"', '"c"\nvalues = [1, 2]'))
    assert ("krum: full", "c = 2") not in {(cell.row, cell.column) for cell in limited.cells}
    assert len(limited.cells) == 7
    assert limited.notes[0].startswith("Left out: krum: full at c = 2: attack 'krum' needs m - 2c")


WRONG_FIGURES = {
    "unknown axis": ("vary is 'd'; choose one of m, c", ('"c"', '"d"')),
    "no value": ("values are \\[\\]", ('"c"', '"c"\nvalues = []')),
    "a value twice": ("none twice", ('"c"', '"c"\nvalues = [2, 2]')),
    "a word": ("at least one number", ('"c"', '"c"\nvalues = ["a"]')),
    "no panels": ("panels is missing or empty", ("[panels]", "[panels]\n[paper]")),
    "no vary": ("vary is missing", ('vary = "c"', "")),
    "a table's part": ("unknown part 'columns'", ("[panels]", "[columns]")),
    "place": (
        r"row 'krum: no-attack', column 'c = 10': compromised is 10",
        ('"c"', '"c"\nvalues = [2, 10]'),
    ),
    "out of range": ("compromised is 10", ('"c"', '"c"\nvalues = [10]')),
    "decided twice": (
        "compromised is given, but vary decides it; leave it out",
        ("workers = 20", "workers = 20\ncompromised = 4"),
    ),
    "no values": ("no values of momentum; give some", ('"c"', '"momentum"')),
    "no such measure": ("measure is 'best'", ('"c"', '"c"\nmeasure = "best"')),
    "a part as text": ("seconds is '3'; give a number", ('"c"', '"c"\nseconds = "3"')),
    "no plug-in's name": ("plugins holds 3; give names", ('"c"', '"c"\nplugins = [3]')),
    "a plug-in as text": ("plugins is 'a.py'; give a list", ('"c"', '"c"\nplugins = "a.py"')),
    "no such plug-in": ("a.py' does not exist", ('"c"', '"c"\nplugins = ["a.py"]')),
}


@pytest.mark.parametrize("case", WRONG_FIGURES)
def test_a_wrong_figure_is_one_sentence(tmp_path, case):
    words, (found, instead) = WRONG_FIGURES[case]
    with pytest.raises(BadInput, match=f"(?s)mine.toml.*{words}"):
        load(tmp_path, FIGURE.replace(found, instead, 1))


def test_a_file_names_its_plugins_from_where_it_lies(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import fltrust_repro as fl\n@fl.rule('mine')\ndef mine(updates):\n    return updates[0]\n"
    )
    text = f'plugins = ["mine.py"]\n{GOOD}'.replace('rule = "krum"', 'rule = "mine"')
    rules_of = {cell.setting.rule for cell in load(tmp_path, text).cells}
    assert "mine" in rules_of
    run_afresh([])
    assert "mine" not in rules


# The other tables of the paper, typed from its pages.
TABLES = {
    "table3": """0.10 0.10 0.09 0.69 0.70
                 0.06 0.06 0.07 0.12 0.18
                 0.06 0.06 0.06 0.11 0.32""",
    "table4": "0.14 0.12 0.13  0.70 0.15 0.18  0.14 0.25 0.20",
    "table5": """0.10 0.11 0.15 0.54 0.69  0.23 0.24 0.25 0.85 0.89
                 0.12 0.12 0.13 0.27 0.32  0.13 0.13 0.14 0.19 0.21""",
    "section44": "0.10 0.16",
    "table6": """0.14 0.72 0.13  0.14 0.62 0.13  0.14 0.58 0.14  0.14 0.48 0.14
                 0.12 0.15 0.23  0.12 0.17 0.21  0.12 0.18 0.12  0.12 0.18 0.12
                 0.13 0.17 0.19  0.13 0.21 0.25  0.13 0.20 0.13  0.13 0.19 0.14""",
    "table7b": "0.14 0.36 0.38",
    "table8": "0.14 0.87 0.80  0.12 0.10 0.52  0.13 0.12 0.29",
    "section42": "0.01 0.08 0.07 0.01  0.04 0.09 0.09 0.01",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_papers_values(name):
    cells = load_experiment(name).cells
    assert [cell.paper for cell in cells] == [float(value) for value in TABLES[name].split()]


def test_attacks_meet_rules_and_defenses_as_tables_4_to_8_say():
    def at(name, row, column):
        cells = load_experiment(name).cells
        return next(c.setting for c in cells if (c.row, c.column) == (row, column))

    transfer = at("table4", "trimmed-mean-attack", "krum")
    assert (transfer.rule, transfer.attack, transfer.knowledge) == (
        "krum", "trimmed-mean", "partial",
    )  # fmt: skip
    defended = at("table6", "median-union", "krum")
    assert (defended.rule, defended.defense, defended.attack) == ("median", "union", "krum")
    assert defended.knowledge == "partial"
    bulyan = at("table7b", "full", "bulyan")
    assert (bulyan.rule, bulyan.attack, bulyan.knowledge) == ("bulyan", "krum", "full")
    goal = at("table8", "median", "deviation")
    assert (goal.rule, goal.attack, goal.goal) == ("median", "trimmed-mean", "deviation")
    assert load_experiment("table3").measure == "lowest_error_rate"
    assert set(load_experiment("table3").settings) == set(load_experiment("table2b").settings)
    central = at("section42", "centralized-dnn", "mnist")
    assert (central.workers, central.compromised, central.rule) == (1, 0, "mean")


def test_the_tables_and_figures_share_their_settings():
    table = set(load_experiment("table2a").settings)
    for name in ("table4", "table6", "table8", "figure2", "figure3", "figure4c", "figure5c"):
        assert table & set(load_experiment(name).settings), name


@pytest.mark.long
def test_the_features_and_layers_tried_for_breast_cancer_train(tmp_path):
    folder, out = experiments.home() / "breast-cancer", tmp_path / "out"
    given = (folder / "features2e.toml").read_text(encoding="utf-8")
    few = "[setting]\niterations = 1\nworkers = 10\ncompromised = 2"
    given = given.replace("[setting]", few).replace("features2e.py", f"{folder / 'features2e.py'}")
    (tmp_path / "short.toml").write_text(given, encoding="utf-8")
    command = [sys.executable, "-m", "fltrust_repro", "reproduce", "short.toml", "--jobs", "0"]
    options = ["--trials", "1", "--out", str(out)]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rates = pd.read_csv(out / "short.csv")
    assert len(rates) == 4 * 7
    assert rates["mean"].between(0, 1).all()


def test_other_papers_tables_are_on_their_own_protocols():
    bucketing, foundation = load_experiment("bucketing"), load_experiment("foundationfl1c")
    for cell in bucketing.cells:
        one = cell.setting
        assert (one.workers, one.compromised, one.iterations, one.batch_size) == (25, 5, 600, 32)
        assert (one.model, one.learning_rate) == ("bucketing-cnn", 0.01)
        assert one.readings.dealing == "sorted"
    printed = {(cell.row, cell.column): cell.paper for cell in bucketing.cells}
    alone = [row for row in bucketing.rows if "+" not in row]
    # As printed, buckets help each rule against each attack, but Krum against ALIE.
    worse = [
        (row, column)
        for row in alone
        for column in bucketing.columns
        if printed[f"bucketing+{row}", column] > printed[row, column]
    ]
    assert worse == [("krum", "alie")]
    for cell in foundation.cells:
        one = cell.setting
        assert (one.dataset, one.model, one.workers, one.compromised) == ("har", "lr", 30, 6)
        assert (one.iterations, one.learning_rate) == (1000, 0.01)
        assert one.readings.dealing == "natural"
    assert {cell.setting.pre for cell in foundation.cells} == {"", "foundation"}


def test_two_lines_of_one_name_are_refused(tmp_path):
    file = tmp_path / "apart.toml"
    file.write_text(
        'title = "Apart"\nvary = "c"\nvalues = [1, 2]\n'
        '[setting]\ndataset = "digits"\nworkers = 10\n'
        '[panels]\nx = { rule = "median" }\n"x: y" = { rule = "krum" }\n'
        '[lines]\n"y: z" = { attack = "none" }\nz = { attack = "gaussian" }\n'
    )
    with pytest.raises(BadInput, match="two lines of the figure have one name"):
        load_experiment(str(file))


def test_the_command_of_a_file_with_a_space_can_be_typed(tmp_path):
    (tmp_path / "my dir").mkdir()
    file = tmp_path / "my dir" / "mine.toml"
    file.write_text(
        'title = "Mine"\n[setting]\ndataset = "digits"\nworkers = 10\ncompromised = 2\n'
        '[rows]\nmedian = { rule = "median" }\n[columns]\nnone = { attack = "none" }\n'
    )
    assert load_experiment(str(file)).command == f"reproduce '{file}'"
