"""The report as one HTML page: what stands in it, that it needs nothing else, how it looks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from itertools import accumulate
from xml.etree import ElementTree

import pandas as pd
import pytest
from browsing import press, serious, shown_at, tree_of
from invoked import told_by

from fltrust_repro import (
    curves,
    definitions,
    fidelity,
    fidelity_page,
    report,
    reproduction,
    standings,
)
from fltrust_repro.errors import LeftOut, one_line
from fltrust_repro.experiments import load_experiment
from fltrust_repro.shades import Scale
from fltrust_repro.styles import style_of
from fltrust_repro.training import TrialResult
from fltrust_repro.trial_files import write_csv
from fltrust_repro.trials import Trial, protocol_of

NAMES = ("table2a", "table3", "table7b", "figure4a", "figure5b")


def a_trial(setting, seed, error, curve=None) -> Trial:
    curve = [(10, 0.9, 2.0), (500, error, 1.0)] if curve is None else curve
    diverged = curve[-1][0] < 500
    result = TrialResult(error, error, curve[-1][0], diverged, 36.0, curve, 0)
    return Trial(setting, seed, result, "cpu", "python 3", "2020-01-01T10:00", protocol_of(setting))


def near(cells, difference=0.0, n=3):
    """N trials of each cell, this far from the paper's value; from 0.4 where it prints none."""
    return {
        cell.setting: [
            a_trial(cell.setting, 10 + k, (cell.paper or 0.4) + difference + k / 1000)
            for k in range(n)
        ]
        for cell in cells
    }


def made(experiments, trials, **others) -> ElementTree.Element:
    """The page as a tree."""
    frame = fidelity.as_frame(experiments, trials)
    return tree_of(fidelity_page.page(experiments, trials, frame, **others))


def text(element) -> str:
    return " ".join("".join(element.itertext()).split())


def section(tree, name) -> ElementTree.Element:
    [found] = [one for one in tree.iter("section") if one.get("aria-labelledby") == name]
    return found


def cells_of(tree, name) -> dict[tuple[str, str], ElementTree.Element]:
    """The cells of an experiment's table by row and column."""
    table = section(tree, name).find(".//table")
    columns = [text(head) for head in table.findall("thead/tr/th")]
    return {
        (text(row.find("th")), column): cell
        for row in table.findall("tbody/tr")
        for column, cell in zip(columns, row.findall("td"))
    }


@pytest.fixture
def experiments():
    return [load_experiment(name) for name in NAMES]


@pytest.fixture
def trials(experiments):
    """Trials of Table 2 (a) and Figure 4 (a); Table 3 and the rest have what they share."""
    return {**near(experiments[3].cells), **near(experiments[0].cells)}


def test_every_value_of_the_paper_stands_in_its_row_and_column():
    everything = fidelity.by_paper(fidelity.all_experiments())[fidelity.PAPER]
    tree = made(everything, {})
    printed = 0
    for experiment in everything:
        known = [cell for cell in experiment.cells if cell.paper is not None]
        cells = cells_of(tree, experiment.name) if known else {}
        for cell in known:
            assert f"paper {cell.paper:.2f}" in text(cells[cell.row, cell.column])
            printed += 1
    assert f"0 of the {printed} values" in text(tree)
    assert printed > 150


def test_a_cell_shows_ours_its_interval_the_papers_and_the_verdict():
    experiment = load_experiment("table7b")
    tree = made([experiment], near(experiment.cells))
    for m in fidelity.measured(experiment, near(experiment.cells)):
        cell = cells_of(tree, "table7b")[m.cell.row, m.cell.column]
        half = f"±{m.half_width:.3f}"
        assert text(cell) == f"{m.mean:.2f} {half} paper {m.cell.paper:.2f} ✓ inside"
    assert "3 inside" in text(section(tree, "table7b"))
    assert "3 trials per cell" in text(section(tree, "table7b"))


def test_a_cell_tells_its_tolerance_and_its_trials():
    experiment = load_experiment("table2a")
    tree = made([experiment], near(experiment.cells))
    cells = cells_of(tree, "table2a")
    # 0.03 + 20% of what the paper prints: from 0.14 to 0.80.
    assert cells["krum", "full"].get("title") == (
        "krum, full: 0.801 ±0.002 over 3 trials; the paper has 0.80, difference +0.001, "
        "tolerance ±0.162 and significantly above no attack: inside"
    )
    told = cells["krum", "gaussian"].get("title")
    assert told.endswith("the paper has 0.13, difference +0.001, tolerance ±0.030: inside")


def test_a_cells_shade_is_that_of_its_error_rate():
    experiment = load_experiment("table2a")
    tree = made([experiment], near(experiment.cells))
    cells = cells_of(tree, "table2a")
    shades = {place: int(cell.get("class")[1:].split()[0]) for place, cell in cells.items()}
    assert shades["krum", "full"] == max(shades.values()) > shades["median", "full"]
    assert shades["trimmed-mean", "gaussian"] == min(shades.values()) == Scale().level(0.11)


def test_two_trials_are_too_few_for_an_interval_or_a_verdict():
    experiment = load_experiment("table7b")
    tree = made([experiment], near(experiment.cells, n=2))
    for cell in cells_of(tree, "table7b").values():
        assert "±" not in text(cell)
        assert text(cell).endswith("too few trials")
    assert "3 too few trials" in text(section(tree, "table7b"))
    [verdict] = {
        text(row[1]) for row in section(tree, "claims").iter("tr") if "Bulyan (" in text(row[0])
    }
    assert verdict == "too few trials"


def test_cells_outside_or_with_too_few_trials_are_marked_in_words():
    experiment = load_experiment("table2a")
    plain, *_, full = experiment.cells[:5]
    trials = {**near([plain], 0.1), **near([full], n=1)}
    tree = made([experiment], trials)
    cells = cells_of(tree, "table2a")
    assert "outside" in cells["krum", "no-attack"].get("class").split()
    assert text(cells["krum", "no-attack"]).endswith("✗ outside")
    assert text(cells["krum", "full"]).endswith("? too few trials")
    assert "1 value outside the tolerance" in text(tree.find("body/main"))


def test_the_head_says_how_faithful_and_where_not(experiments):
    table2a, table3, table7b, *_ = experiments
    trials = {**near(table2a.cells), **near(table7b.cells[:2], 0.3), **near(table3.cells[:1])}
    head = made(experiments, trials).find("body/header")
    assert "16 of the 18 values judged (89%) are inside the tolerance" in text(head)
    assert "2 outside" in text(head)
    assert "Where notTable 7 (b) (2)" in text(head)
    assert [a.get("href") for a in head.iter("a")] == ["#table7b", "#claims"]
    held = re.search(r"\d+ hold, \d+ not measured", text(head))
    assert held[0] in text(section(made(experiments, trials), "claims"))
    nothing = text(made(experiments, {}).find("body/header"))
    assert "No value of the paper is judged yet." in nothing
    assert "33 of 33 values are not measured" in nothing


def test_a_tile_leads_to_each_table_and_says_its_verdict(experiments):
    table2a, table3, table7b, figure4a, _ = experiments
    trials = {**near(table2a.cells), **near(table7b.cells[:2], 0.3), **near(figure4a.cells[1:4])}
    trials = {**trials, **near(table3.cells[:1], n=2)}
    tiles = made(experiments, trials).findall("body/nav/ul/li/a")
    states = {tile.get("href"): (text(tile.find("b")), text(tile.find("span"))) for tile in tiles}
    assert states == {
        "#table2a": ("Table 2 (a)", "15 inside"),
        "#table3": ("Table 3", "1 too few trials, 14 missing"),
        "#table7b": ("Table 7 (b)", "2 outside, 1 missing"),
        "#figure4a": ("Figure 4 (a)", "5 of 10 points"),
        "#figure5b": ("Figure 5 (b)", "8 of 18 points"),  # which are of Table 2 (a), too
    }


def test_the_head_says_which_rule_holds(experiments, trials):
    tree = made(experiments, trials, arena=a_ranking())
    held = "leverage: 0.111 ±0.002 under tailored-persistent, the worst of 1 attack (arena P1)"
    assert held in text(tree.find("body/header"))
    assert "9 trials missing still" in text(section(tree, "arena"))
    rules = [text(row.find("th")) for row in section(tree, "arena").iterfind(".//tbody/tr")]
    assert rules == ["leverage", "arc+nnm+trimmed-mean", "foundation+trimmed-mean"]


def test_missing_cells_say_their_hours():
    experiment = load_experiment("table2b")
    tree = made([experiment], {})
    hours = 50 * experiment.seconds / 3600
    for cell in experiment.cells:
        shown = cells_of(tree, "table2b")[cell.row, cell.column]
        assert text(shown) == f"missing paper {cell.paper:.2f}"
        assert f"50 trials take {hours:.1f} hours" in shown.get("title")
    assert f"take about {15 * hours:.1f} hours" in text(section(tree, "table2b"))
    alone = made([replace(experiment, seconds=None)], {})
    assert "take unknown time" in cells_of(alone, "table2b")["krum", "full"].get("title")


def test_claims_have_their_verdict_in_words(experiments, trials):
    rows = section(made(experiments, trials), "claims").findall(".//tbody/tr")
    verdicts = {text(row[0]): text(row[1]) for row in rows if len(row) == 2}
    assert set(verdicts.values()) == {"holds", "fails", "not measured"}
    [partial] = [v for claim, v in verdicts.items() if claim.startswith("Partial knowledge raises")]
    assert partial == "holds"


def lines_of(svg) -> dict[str, ElementTree.Element]:
    return {line.get("data-label"): line for line in svg.findall("g")}


def test_a_figure_is_a_chart_of_lines_with_bands_and_says_its_values(experiments, trials):
    found = section(made(experiments, trials), "figure4a")
    chart = found.find("div[@class='panels wide']//svg")
    assert chart.get("role") == "img"
    assert "median: error rate against rounds of local SGD" in chart.get("aria-label")
    lines = lines_of(chart)
    assert set(lines) == {"no-attack", "partial"}
    for label, line in lines.items():
        style = style_of(label)
        mean = line.find("path[@class='mean']")
        assert (mean.get("stroke"), mean.get("stroke-dasharray")) == (
            style.colour, style.svg_dashes
        )  # fmt: skip
        assert line.find("path[@class='band']").get("fill") == style.colour
        assert len(line.findall("use")) == 5
    said = [text(mark) for mark in lines["partial"].findall("use")]
    assert said[1] == "partial, rounds = 2: 0.40 ±0.00"
    assert cells_of(made(experiments, trials), "figure4a")


def test_a_figure_shows_the_points_that_there_are(experiments):
    figure = experiments[3]
    known = near([cell for cell in figure.cells if cell.column != "rounds = 3"])
    chart = section(made(experiments, known), "figure4a").find(".//svg[@role='img']")
    assert {len(line.findall("use")) for line in lines_of(chart).values()} == {4}
    assert not section(made(experiments, known), "figure5b").findall(".//svg")


def test_each_row_with_trials_has_its_error_curves(experiments, trials):
    found = section(made(experiments, trials), "table2a")
    panels = [svg for svg in found.iter("svg") if svg.get("role") == "img"]
    assert len(panels) == 3
    assert {len(lines_of(panel)) for panel in panels} == {5}
    assert "no-attack 0.14, gaussian 0.13" in panels[0].get("aria-label")
    dashes = {line.find("path[@class='mean']").get("stroke-dasharray")
              for line in lines_of(panels[0]).values()}  # fmt: skip
    assert len(dashes) == 5


def test_a_band_is_the_interval_of_the_mean_and_stays_in_the_chart():
    experiment = load_experiment("table7b")
    cell = experiment.cells[0]
    rates = [(0.95, 0.2), (0.8, 0.3), (0.99, 0.25)]
    trials = {cell.setting: [a_trial(cell.setting, k, end, [(10, first, 1.0), (500, end, 1.0)])
                             for k, (first, end) in enumerate(rates)]}  # fmt: skip
    [line] = curves.over_iterations(experiment, trials).panels[cell.row]
    half = report.half_width([end for _, end in rates])
    [(x, y), (_, end)] = points_of(line.path)
    assert (x, y) == (1600 * 10 / 500, pytest.approx(1000 - 1000 * sum(a for a, _ in rates) / 3, 1))
    upper, lower = points_of(line.band)[1:3]
    assert (lower[1] - upper[1]) / 2000 == pytest.approx(half, abs=0.001)
    assert (upper[1] + lower[1]) / 2 == pytest.approx(end, abs=1)
    assert min(y for _, y in points_of(line.band)) == 0  # 0.91 and its interval end above 1


def points_of(path) -> list[tuple[int, int]]:
    numbers = list(map(int, re.findall(r"-?\d+", path)))
    steps = zip(numbers[::2], numbers[1::2])
    return list(accumulate(steps, lambda place, step: (place[0] + step[0], place[1] + step[1])))


def test_a_curve_is_the_mean_and_a_diverged_trial_keeps_its_last_error_rate():
    setting = load_experiment("table2a").cells[0].setting
    long = a_trial(setting, 0, 0.2, [(10, 0.6, 1.0), (20, 0.4, 1.0), (30, 0.2, 1.0)])
    short = a_trial(setting, 1, 0.8, [(10, 0.8, 1.0), (13, 1.0, 1.0)])
    iterations, rates = curves.mean_curve([short, long], 51)
    assert iterations.tolist() == [10, 20, 30]
    assert rates == pytest.approx([0.7, 0.7, 0.6])


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    setting = load_experiment("table2b").cells[0].setting
    curve = [(i, 1 - i / 2000, 1.0) for i in range(10, 2001, 10)]
    iterations, rates = curves.mean_curve([a_trial(setting, 0, 0.0, curve)], 51)
    assert (len(iterations), iterations[0], iterations[-1]) == (51, 10, 2000)
    assert (rates[0], rates[-1]) == (0.995, 0)


def test_trials_without_a_curve_are_shown_without_one():
    experiment = load_experiment("table7b")
    trials = near(experiment.cells)
    bare = {
        setting: [replace(trial, result=replace(trial.result, curve=[])) for trial in some]
        for setting, some in trials.items()
    }
    assert not list(section(made([experiment], bare), "table7b").iter("svg"))


def test_each_table_says_where_its_numbers_come_from():
    experiment = load_experiment("table7b")
    cell = experiment.cells[0]
    trials = {cell.setting: [a_trial(cell.setting, seed, 0.1) for seed in (0, 1, 10)]}
    tree = made([experiment], trials)
    commands = [text(code) for code in section(tree, "table7b").iter("code")]
    assert [command.partition("reproduce ")[2] for command in commands] == [
        "table7b --trials 2 --seed 0", "table7b --trials 1 --seed 10",
    ]  # fmt: skip
    told = text(section(tree, "table7b").find(".//dl"))
    assert "3 in all, seeds 0 to 1, 10 " in told
    assert "python 3, cpu" in told
    assert "protocol version 1" in told
    assert "2020-01-01" in text(section(tree, "origin"))


def test_the_page_needs_nothing_else_and_its_links_lead_somewhere(experiments, trials):
    tree = made(experiments, trials)
    assert tree.get("lang") == "en"
    assert tree.find("head/title").text
    assert not {"img", "link", "iframe", "object"} & {element.tag for element in tree.iter()}
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    within = [a.get("href") for a in tree.iter() if a.get("href", "").startswith("#")]
    assert {link[1:] for link in within} <= set(ids)
    beside = {a.get("href") for a in tree.iter("a")} - set(within)
    assert beside == {
        "fidelity.csv",
        *(f"fidelity/{name}.csv" for name in ("table2a", "figure4a", "figure5b")),
    }
    assert not re.search(r"url\(|@import|https?:", tree.find("head/style").text)


def test_only_the_pages_own_script_may_run(experiments, trials):
    page = fidelity_page.page(experiments, trials, fidelity.as_frame(experiments, trials))
    [script] = re.findall("<script>(.*)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = re.findall('Content-Security-Policy" content="([^"]*)"', page)
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_names_that_look_like_markup_stay_text():
    odd = "<img src=x onerror=\"alert(1)\"> & 'rule' {{ 7 * 7 }}\n\x1b[31m"
    experiment = load_experiment("table7b")
    cells = tuple(replace(cell, row=f"{odd} {cell.row}", column=odd) for cell in experiment.cells)
    rows = tuple(dict.fromkeys(cell.row for cell in cells))
    strange = replace(experiment, title=odd, rows=rows, columns=(odd,), cells=cells)
    trials = {
        setting: [replace(trial, versions=odd, device=odd) for trial in some]
        for setting, some in near(cells).items()
    }
    tree = made([strange], trials, own=[replace(strange, command=odd)], own_trials=trials)
    assert not list(tree.iter("img"))
    assert one_line(odd) in text(section(tree, "own-table7b"))
    shown = {(one_line(row), one_line(odd)) for row in rows}
    assert set(cells_of(tree, "table7b")) == shown
    assert text(section(tree, "table7b").find("h2")) == one_line(odd)


def test_the_same_numbers_give_the_same_bytes(experiments, trials):
    first, second = (ElementTree.tostring(made(experiments, trials)) for _ in range(2))
    assert first == second


# ---- one's own ----


OWN = """
title = "My own: krum at home"
[setting]
dataset = "digits"
workers = 10
compromised = 2
[rows]
krum = { rule = "krum", attack = "krum" }
[columns]
no-attack = { attack = "none" }
full = { knowledge = "full" }
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page that the command writes for a few trials, where none is published; only read."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fltrust_repro.experiments.published", lambda: folder / "published")
        return written_to(folder / "results", folder / "mine.toml")


def written_to(out, file):
    out.mkdir()
    file.write_text(OWN, encoding="utf-8")
    trials = near(load_experiment(file).cells)
    for name in ("figure4a", "figure5a", "table2a"):
        trials.update(near(load_experiment(name).cells))
    write_csv(out / "some.trials.csv", [trial for some in trials.values() for trial in some])
    where = ["--out", str(out), "--store", str(out.parent / "none.sqlite")]
    told_by("reproduce", str(file), "--trials", "3", *where)
    assert f"Wrote {out / 'fidelity.md'}, .csv, .html" in told_by("report", "--html", *where)
    return out / "fidelity.html"


def test_the_command_writes_the_page_beside_the_markdown(written):
    tree = tree_of(written.read_text(encoding="utf-8"))
    assert "15 inside" in text(section(tree, "table2a"))
    assert len(section(tree, "figure4a").findall(".//figure")) == 1 + 2  # a chart, rows' curves
    assert (written.parent / "fidelity.md").is_file()
    drawn = [*written.parent.glob("*.png"), *written.parent.glob("*.svg")]
    assert {file.stem for file in drawn} == {"mine"}  # by `reproduce`


def test_the_files_that_the_page_links_to_are_there(written):
    links = [a.get("href") for a in tree_of(written.read_text(encoding="utf-8")).iter("a")]
    beside = {link for link in links if not link.startswith("#")}
    assert "fidelity/table2a.csv" in beside
    assert not [link for link in beside if not (written.parent / link).is_file()]
    frame = pd.read_csv(written.parent / "fidelity" / "figure4a.csv")
    assert len(frame) == 10


def test_ones_own_experiment_is_on_the_page(written):
    tree = tree_of(written.read_text(encoding="utf-8"))
    tiles = {a.get("href"): text(a) for a in tree.findall("body/nav/ul/li/a")}
    assert tiles["#own-mine"] == "My own 2 cells"
    found = section(tree, "own-mine")
    assert text(cells_of(tree, "own-mine")["krum", "full"]).startswith("0.40 ±")
    assert "reproduce" in text(found.find(".//code"))
    assert "own-mine" not in (written.parent / "fidelity.csv").read_text(encoding="utf-8")


def test_ones_own_trials_count_whatever_their_seeds(written):
    """Only the paper's numbers leave out the seeds that chose the readings."""
    experiment = load_experiment("table7b")
    own = replace(experiment, command="sweep")
    trials = {s: [replace(t, seed=0) for t in some]
              for s, some in near(experiment.cells).items()}  # fmt: skip
    tree = made([experiment], reproduction.reported(trials), own=[own], own_trials=trials)
    assert "not measured" in text(section(tree, "table7b"))
    assert "3 inside" in text(section(tree, "own-table7b"))


@pytest.mark.parametrize("name", ["table7b", "figure5b"])
def test_a_definition_is_read_as_it_was_kept(name, tmp_path):
    mine = replace(load_experiment(name), command=f"reproduce my/{name}.toml")
    [file] = definitions.keep(mine, tmp_path)
    assert file == tmp_path / f"{name}.json"
    left_out = LeftOut()
    assert definitions.kept(tmp_path, left_out) == [mine]
    assert not left_out


def test_a_table_of_ones_own_may_lack_cells(tmp_path):
    """Those beyond a limit, even the first."""
    whole = load_experiment("table2a")
    some = tuple(cell for cell in whole.cells if (cell.row, cell.column) != ("krum", "no-attack"))
    mine = replace(whole, cells=some, command="sweep")
    definitions.keep(mine, tmp_path)
    assert definitions.kept(tmp_path, LeftOut()) == [mine]
    tree = made([whole], {}, own=[mine], own_trials=near(some))
    cells = cells_of(tree, "own-table2a")
    assert "there is no such cell" in text(cells["krum", "no-attack"])
    assert text(cells["krum", "gaussian"]).startswith("0.13")
    assert text(cells["median", "full"]).startswith("0.29")


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("values", []),
        ("values", [5, 5, 5, 5, 5, 5]),
        ("values", [1, 2, 3, 4, 5, float("nan")]),
        ("values", [1, 2, 3, 4, 5, "6"]),
        ("lines", []),
        ("lines", [1]),
        ("panels", ["x"]),
        ("panels", "abc"),
    ],
)
def test_a_figure_that_does_not_fit_is_left_out_by_name(part, damage, tmp_path):
    mine = replace(load_experiment("figure2"), command="sweep")
    [file] = definitions.keep(mine, tmp_path)
    told = json.loads(file.read_text(encoding="utf-8"))
    told["figure"][part] = damage
    file.write_text(json.dumps(told), encoding="utf-8")
    left_out = LeftOut()
    assert definitions.kept(tmp_path, left_out) == []
    assert len(left_out) == 1


def test_what_comes_with_the_program_is_not_kept(tmp_path):
    assert definitions.keep(load_experiment("table7b"), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_definitions_that_are_not_understood_are_named_and_others_files_left_alone(
    tmp_path, capsys
):
    mine = replace(load_experiment("table7b"), command="sweep")
    [file] = definitions.keep(mine, tmp_path)
    right = file.read_text(encoding="utf-8")
    for name, content in {
        "theirs": '{"a": 1}',
        "list": "[1, 2]",
        "broken": right[:-20],
        "rule": right.replace('"bulyan"', '"mine"'),
        "measure": right.replace('"error_rate"', '"odd"'),
        "cells": right.replace('"row"', '"line"'),
        "astray": right.replace('"row": "full"', '"row": "none"'),
        "rate": re.sub(r'"paper": 0\.\d+', '"paper": "high"', right),
        "seconds": re.sub(r'"seconds": [^,]+', '"seconds": "abc"', right),
        "values": right.replace(
            '"figure": null',
            '"figure": {"label": "c", "values": ["x"], "panels": ["p"], "lines": ["l"]}',
        ),
    }.items():
        (tmp_path / f"{name}.json").write_text(content, encoding="utf-8")
    left_out = LeftOut()
    assert definitions.kept(tmp_path, left_out) == [mine]
    left_out.tell()
    told = capsys.readouterr().err
    for name in ("broken", "rule", "measure", "cells", "astray", "rate", "seconds", "values"):
        assert f"{name}.json" in told
    assert "unknown rule 'mine'; give --plugin to show it" in told
    assert "theirs" not in told
    assert "list" not in told


# ---- in a browser ----

SIZES = [
    (390, 844, "dark"),
    (1280, 800, "light"),
    pytest.param(390, 844, "light", marks=pytest.mark.long),
    pytest.param(1280, 800, "dark", marks=pytest.mark.long),
]


def a_ranking() -> standings.Standings:
    def cell(column, mean):
        return standings.Cell(column, {10 + k: mean + k / 1000 for k in range(3)})

    columns = (standings.NO_ATTACK, "tailored-persistent")
    rows = {"foundation+trimmed-mean": 0.3, "arc+nnm+trimmed-mean": 0.2, "leverage": 0.11}
    cells = {row: {c: cell(c, m) for c, m in zip(columns, (0.1, worst))}
             for row, worst in rows.items()}  # fmt: skip
    entries = [standings.entry(row, standings.KNOWS_C, some) for row, some in cells.items()]
    return standings.Standings("P1", 1, "MNIST, p = 0.5", columns, standings.ranked(entries), 9)


def told_after(browser, table) -> str:
    script = "return arguments[0].closest('.scroll').nextElementSibling.textContent"
    return browser.execute_script(script, table)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_a_checker_of_accessibility_finds_nothing_serious(
    browser, experiments, trials, tmp_path, width, height, scheme
):
    table2a, _, table7b, figure4a, _ = experiments
    mine = replace(table7b, command="sweep")
    few, outside = near(table2a.cells[7:9], n=1), near(table2a.cells[:7], 0.1)
    trials = {**trials, **few, **outside, **near(table7b.cells[1:], 0.5)}
    some = [table2a, figure4a, table7b]
    page = fidelity_page.page(
        some, trials, fidelity.as_frame(some, trials), a_ranking(), [mine], trials
    )
    file = tmp_path / "fidelity.html"
    file.write_text(page, encoding="utf-8")
    browser.get(file.as_uri())
    shown_at(browser, width, scheme, height)
    assert serious(browser) == []
    # It sees what is wrong where something is.
    pale = "document.querySelector('.heat th[scope=row]').style.color = 'rgb(128 128 128 / 50%)'"
    browser.execute_script(pale)
    assert [rule for rule, _ in serious(browser)] == ["color-contrast"]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_the_first_screen_answers(browser, tmp_path, width, height, scheme):
    """With all tables and figures of the paper on it."""
    everything = fidelity.by_paper(fidelity.all_experiments())[fidelity.PAPER]
    trials = near([cell for one in everything for cell in one.cells if one.name != "table2b"])
    page = tmp_path / "fidelity.html"
    frame, arena = fidelity.as_frame(everything, trials), a_ranking()
    page.write_text(fidelity_page.page(everything, trials, frame, arena), encoding="utf-8")
    assert page.stat().st_size < 1_500_000
    browser.get(page.as_uri())
    shown_at(browser, width, scheme, height, opened=False)
    bottoms = browser.execute_script(
        "return ['.lead', '.answers', '.tiles'].map("
        "one => document.querySelector(one).getBoundingClientRect().bottom)"
    )
    assert max(bottoms) <= height
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    if width > 1000:
        failing = "return document.querySelector('.failing').getBoundingClientRect().top"
        assert browser.execute_script(failing) < height
    ground = browser.execute_script("return getComputedStyle(document.documentElement).background")
    assert ("255, 255, 255" in ground) == (scheme == "light")
    assert browser.get_log("browser") == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_scrolls_sideways_and_a_rule_is_seen_whole(browser, written, scheme):
    browser.get(written.as_uri())
    shown_at(browser, 390, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    beyond = browser.execute_script(
        "return [...document.querySelectorAll('body *')]"
        ".filter(one => !one.closest('.unseen') && one.getBoundingClientRect().right > 391)"
        ".map(one => one.outerHTML.slice(0, 80))"
    )
    assert beyond == []
    tops = browser.execute_script(
        "return [...document.querySelectorAll('[aria-labelledby=table2a] tbody tr')].map("
        "row => [...row.cells].map(cell => cell.getBoundingClientRect().top))"
    )
    for name, *cells in tops:
        assert len(set(cells)) == 1  # side by side
        assert name < cells[0]  # the rule above
    label = "return getComputedStyle(document.querySelector('td[data-column=full]'), '::before')"
    assert browser.execute_script(f"{label}.content").startswith('"full"')


@pytest.mark.browser
def test_the_keyboard_reaches_a_cell_and_its_tolerance(browser, written):
    browser.get(written.as_uri())
    shown_at(browser, 1280)
    table = browser.find_element("css selector", "[aria-labelledby=table2a] table")
    stops = table.find_elements("css selector", "[tabindex='0']")
    assert [stop.text for stop in stops] == ["krum"]  # one for the whole table
    browser.execute_script("arguments[0].focus()", stops[0])
    press(browser, "ARROW_DOWN", "END")
    assert browser.switch_to.active_element.get_attribute("data-column") == "full"
    told = told_after(browser, table)
    assert told.startswith("trimmed-mean, full: 0.521 ±0.002 over 3 trials; the paper has 0.52")
    assert "tolerance ±0.110" in told
    press(browser, "HOME", "ARROW_UP", "ARROW_RIGHT")
    assert told_after(browser, table).startswith("krum, no-attack: ")


@pytest.mark.browser
def test_pointing_tells_a_cells_tolerance_and_a_charts_values(browser, written):
    from selenium.webdriver import ActionChains

    browser.get(written.as_uri())
    shown_at(browser, 1280)
    table = browser.find_element("css selector", "[aria-labelledby=table2a] table")
    chart = browser.find_element("css selector", "[aria-labelledby=figure4a] .wide svg.chart")
    for element in (table.find_element("css selector", "td[data-column=gaussian]"), chart):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(browser).move_to_element(element).perform()
    assert told_after(browser, table).startswith("krum, gaussian: 0.131 ±0.002 over 3 trials")
    told = browser.find_element("css selector", "[aria-labelledby=figure4a] .wide + .told")
    assert re.fullmatch(
        r"median, rounds = \d: no-attack 0\.40 \(0\.40 to 0\.40\); partial 0\.40 \(.*\)", told.text
    )
    browser.execute_script("arguments[0].focus()", chart)
    press(browser, *["ARROW_LEFT"] * 9)
    assert told.text.startswith("median, rounds = 1: ")
    press(browser, "ARROW_RIGHT")
    assert told.text.startswith("median, rounds = 2: ")


@pytest.mark.browser
def test_a_chart_tells_each_points_own_interval_and_none_of_few_trials(browser, tmp_path):
    figure = load_experiment("figure4a")
    rounds = dict(zip(figure.columns, (3, 2, 3, 3, 1)))
    trials: dict = {}
    for cell in figure.cells:
        k = figure.columns.index(cell.column)
        rates = [0.2 + k / 10 + (1 + k) * j / 100 for j in range(rounds[cell.column])]
        trials[cell.setting] = [a_trial(cell.setting, 10 + j, one) for j, one in enumerate(rates)]
    file = tmp_path / "fidelity.html"
    frame = fidelity.as_frame([figure], trials)
    file.write_text(fidelity_page.page([figure], trials, frame), encoding="utf-8")
    browser.get(file.as_uri())
    shown_at(browser, 1280)
    chart = browser.find_element("css selector", "[aria-labelledby=figure4a] .wide svg.chart")
    told = browser.find_element("css selector", "[aria-labelledby=figure4a] .wide + .told")
    browser.execute_script("arguments[0].focus()", chart)
    press(browser, *["ARROW_LEFT"] * 9)
    for k, column in enumerate(figure.columns):
        first = re.search(r": \S+ (\d\.\d\d)( \((.*?) to (.*?)\))?", told.text)
        rates = [0.2 + k / 10 + (1 + k) * j / 100 for j in range(rounds[column])]
        half = report.half_width(rates)
        assert float(first[1]) == pytest.approx(sum(rates) / len(rates), abs=0.006)
        if rounds[column] < 3:
            assert first[2] is None
        else:
            assert float(first[3]) == pytest.approx(sum(rates) / 3 - half, abs=0.006)
            assert float(first[4]) == pytest.approx(sum(rates) / 3 + half, abs=0.006)
        press(browser, "ARROW_RIGHT")


@pytest.mark.browser
def test_a_command_is_copied_by_a_button(browser, written):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(written.as_uri())
    button = browser.find_element("css selector", "[aria-labelledby=table2a] code + button")
    assert button.text == "Copy"
    seen = """window.seen = "";
    new MutationObserver(() => { window.seen += arguments[0].textContent; })
        .observe(arguments[0], { childList: true });
    arguments[0].click()"""
    browser.execute_script(seen, button)
    WebDriverWait(browser, 5).until(
        lambda _: re.search("Copied|Selected", browser.execute_script("return window.seen"))
    )


@pytest.mark.browser
def test_without_its_script_the_page_lacks_no_number(browser, written):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(written.as_uri())
    cell = browser.find_element("css selector", "[aria-labelledby=table2a] td[data-column=full]")
    assert "tolerance ±0.162" in cell.get_attribute("title")
    assert cell.text.split() == ["0.80", "±0.002", "paper", "0.80", "✓", "inside"]
    assert not browser.find_elements("css selector", "button")
    hints = browser.find_elements("css selector", ".told")
    assert hints
    assert not any(hint.is_displayed() for hint in hints)


@pytest.mark.browser
def test_in_print_all_that_is_folded_is_shown(browser, written):
    browser.get(written.as_uri())
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    folded = browser.find_elements("css selector", "details:not([open]) figure")
    assert folded
    seen = "return arguments[0].map(one => one.checkVisibility() && one.offsetHeight > 50)"
    assert all(browser.execute_script(seen, folded))
    assert not browser.find_element("css selector", ".told").is_displayed()
