"""The report as one HTML page: what stands in it, that it needs nothing else, how it looks."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from browsing import shown_at
from click.testing import CliRunner

from fltrust_repro import fidelity, figures, reproduction
from fltrust_repro.__main__ import commands
from fltrust_repro.archive import Archive
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import load_experiment
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


def made(experiments, trials) -> ElementTree.Element:
    """The page as a tree; it is written such that it is well-formed XML, too."""
    frame = fidelity.as_frame(experiments, trials)
    return ElementTree.fromstring(fidelity.html(experiments, trials, frame))


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
            assert f"({cell.paper:.2f})" in text(cells[cell.row, cell.column])
            printed += 1
    assert f"0 of the {printed} values" in text(tree)
    assert printed > 150


def test_a_cell_shows_ours_its_interval_the_papers_and_the_difference():
    experiment = load_experiment("table7b")
    tree = made([experiment], near(experiment.cells))
    for m in fidelity.measured(experiment, near(experiment.cells)):
        cell = cells_of(tree, "table7b")[m.cell.row, m.cell.column]
        assert text(cell) == f"{m.mean:.2f} ±{m.half_width:.2f} ({m.cell.paper:.2f}, +0.00)"
    assert "3 inside" in text(section(tree, "table7b"))
    assert "3 trials per cell" in text(section(tree, "table7b"))


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
    assert cells["krum", "no-attack"].get("class") == "outside"
    assert text(cells["krum", "no-attack"]).endswith("outside")
    assert text(cells["krum", "full"]).endswith("too few trials")
    [link] = [a for a in tree.iterfind("body/header//a") if a.get("href") == "#table2a"]
    assert "1 outside the tolerance" in text(tree.find("body/header"))
    assert text(link) == experiment.title


def test_missing_cells_say_their_hours():
    experiment = load_experiment("table2b")
    tree = made([experiment], {})
    hours = 50 * experiment.seconds / 3600
    for cell in experiment.cells:
        shown = text(cells_of(tree, "table2b")[cell.row, cell.column])
        assert shown == f"missing, {hours:.1f} h ({cell.paper:.2f})"
    assert f"take about {15 * hours:.1f} hours" in text(section(tree, "table2b"))
    alone = made([replace(experiment, seconds=None)], {})
    assert "missing, unknown time" in text(alone)


def test_claims_have_their_verdict_in_words(experiments, trials):
    rows = section(made(experiments, trials), "claims").findall(".//tbody/tr")
    verdicts = {text(row[0]): text(row[1]) for row in rows if len(row) == 2}
    assert set(verdicts.values()) == {"holds", "fails", "not measured"}
    [partial] = [v for claim, v in verdicts.items() if claim.startswith("Partial knowledge raises")]
    assert partial == "holds"


def test_a_figure_is_a_picture_with_a_description_and_its_numbers(experiments, trials):
    tree = made(experiments, trials)
    [picture] = section(tree, "figure4a").findall(".//img")
    assert picture.get("src").startswith("data:image/svg+xml;base64,")
    assert "rounds of local SGD" in picture.get("alt")
    assert cells_of(tree, "figure4a")
    # Not all points of the other one are measured: it has numbers, and no picture yet.
    assert not section(tree, "figure5b").findall(".//img")
    assert "points measured" in text(section(tree, "figure5b"))


def test_each_row_with_trials_has_its_error_curves(experiments, trials):
    found = section(made(experiments, trials), "table2a")
    panels = [svg for svg in found.iter("svg") if svg.get("role") == "img"]
    assert len(panels) == 3
    assert {len(panel.findall("polyline")) for panel in panels} == {5}
    assert "no-attack 0.14, gaussian 0.13" in panels[0].get("aria-label")
    styles = {(line.get("stroke-dasharray"), line.get("stroke-opacity"))
              for line in panels[0].findall("polyline")}  # fmt: skip
    assert len({dashes for dashes, _ in styles}) == 5


def test_a_curve_is_the_mean_and_a_diverged_trial_keeps_its_last_error_rate():
    setting = load_experiment("table2a").cells[0].setting
    long = a_trial(setting, 0, 0.2, [(10, 0.6, 1.0), (20, 0.4, 1.0), (30, 0.2, 1.0)])
    short = a_trial(setting, 1, 0.8, [(10, 0.8, 1.0), (13, 1.0, 1.0)])
    iterations, rates = figures.mean_curve([short, long])
    assert iterations.tolist() == [10, 20, 30]
    assert rates == pytest.approx([0.7, 0.7, 0.6])


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    setting = load_experiment("table2b").cells[0].setting
    curve = [(i, 1 - i / 2000, 1.0) for i in range(10, 2001, 10)]
    iterations, rates = figures.mean_curve([a_trial(setting, 0, 0.0, curve)])
    assert (len(iterations), iterations[0], iterations[-1]) == (51, 10, 2000)
    assert (rates[0], rates[-1]) == (0.995, 0)


def test_trials_without_a_curve_are_shown_without_one():
    experiment = load_experiment("table7b")
    trials = near(experiment.cells)
    bare = {
        setting: [replace(trial, result=replace(trial.result, curve=[])) for trial in some]
        for setting, some in trials.items()
    }
    assert not list(made([experiment], bare).iter("svg"))


def test_each_table_says_where_its_numbers_come_from():
    experiment = load_experiment("table7b")
    cell = experiment.cells[0]
    trials = {cell.setting: [a_trial(cell.setting, seed, 0.1) for seed in (0, 1, 10)]}
    tree = made([experiment], trials)
    told = text(section(tree, "table7b").find(".//dl"))
    assert "reproduce table7b --trials 2 --seed 0 " in told
    assert "reproduce table7b --trials 1 --seed 10 " in told
    assert "3 in all, seeds 0 to 1, 10 " in told
    assert "python 3, cpu" in told
    assert "protocol version 1" in told
    assert "2020-01-01" in text(section(tree, "origin"))


def test_the_page_needs_nothing_else_and_its_links_lead_somewhere(experiments, trials):
    tree = made(experiments, trials)
    assert tree.get("lang") == "en"
    assert tree.find("head/title").text
    assert not {"script", "link", "iframe", "object"} & {element.tag for element in tree.iter()}
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in tree.iter():
        link = element.get("href", element.get("src", "#claims"))
        assert link.startswith("data:") or link[1:] in ids
    assert not re.search(r"url\(|@import|https?:", tree.find("head/style").text)
    contents = [a.get("href")[1:] for a in tree.iterfind("body/nav//a")]
    assert contents == [s.get("aria-labelledby") for s in tree.iterfind("body/main/section")]


def test_names_that_look_like_markup_stay_text():
    odd = "<img src=x onerror=\"alert(1)\"> & 'rule' {{ 7 * 7 }}\n\x1b[31m"
    experiment = load_experiment("table7b")
    cells = tuple(replace(cell, row=f"{odd} {cell.row}", column=odd) for cell in experiment.cells)
    rows = tuple(dict.fromkeys(cell.row for cell in cells))
    strange = replace(experiment, title=odd, rows=rows, columns=(odd,), cells=cells, command=odd)
    trials = {
        setting: [replace(trial, versions=odd, device=odd) for trial in some]
        for setting, some in near(cells).items()
    }
    tree = made([strange], trials)
    assert not list(tree.iter("img"))
    shown = {(one_line(row), one_line(odd)) for row in rows}
    assert set(cells_of(tree, "table7b")) == shown
    assert text(section(tree, "table7b").find("h2")) == one_line(odd)


def test_the_same_numbers_give_the_same_bytes(experiments, trials):
    first, second = (ElementTree.tostring(made(experiments, trials)) for _ in range(2))
    assert first == second


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The page that the command writes for a few trials, where none is published."""
    monkeypatch.setattr("fltrust_repro.experiments.published", lambda: tmp_path / "published")
    out = tmp_path / "results"
    out.mkdir()
    trials = {}
    for name in ("figure4a", "figure5a", "table2a"):
        trials.update(near(load_experiment(name).cells))
    write_csv(out / "some.trials.csv", [trial for some in trials.values() for trial in some])
    arguments = ["report", "--html", "--out", str(out), "--store", str(tmp_path / "none.sqlite")]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    assert f"Wrote {out / 'fidelity.md'}, .csv, .html" in result.output
    return out / "fidelity.html"


def test_the_command_writes_the_page_beside_the_markdown(written):
    tree = ElementTree.fromstring(written.read_text(encoding="utf-8"))
    assert "15 inside" in text(section(tree, "table2a"))
    assert len(list(tree.iter("img"))) == 2
    assert (written.parent / "fidelity.md").is_file()
    assert not [*written.parent.glob("*.png"), *written.parent.glob("*.svg")]
    assert written.stat().st_size < 1_000_000


@pytest.mark.browser
def test_a_browser_shows_all_tables_and_pictures_and_says_nothing(browser, written):
    browser.get(written.as_uri())
    shown_at(browser, 1200)
    tables, pictures = browser.execute_script(
        "return [document.querySelectorAll('table').length,"
        " [...document.images].map(one => one.naturalWidth)]"
    )
    # A table of claims, one per table of the paper, and one per figure with a trial.
    trials = reproduction.finished(Archive(written.parent / "none"), written.parent, [])
    paper = fidelity.by_paper(fidelity.all_experiments())[fidelity.PAPER]
    known = [e for e in paper if not e.figure or trials.keys() & e.settings]
    assert tables == 1 + len(known)
    assert len(pictures) == 2
    assert min(pictures) > 0
    assert browser.get_log("browser") == []
    assert browser.title.startswith("Fidelity report")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_only_wide_tables_and_pictures_scroll(browser, written, tmp_path, scheme):
    browser.get(written.as_uri())
    shown_at(browser, 390, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    beyond = browser.execute_script(
        "const right = one => one.getBoundingClientRect().right;"
        "const edge = right(document.querySelector('main')) + 1;"
        "return [...document.querySelectorAll('body *')]"
        ".filter(one => !one.closest('.scroll') && right(one) > edge)"
        ".map(one => one.outerHTML.slice(0, 80))"
    )
    assert beyond == []
    paper = browser.execute_script("return getComputedStyle(document.documentElement).background")
    assert ("255, 255, 255" in paper) == (scheme == "light")
    picture = tmp_path / f"phone-{scheme}.png"
    assert browser.save_screenshot(str(picture))
    assert picture.stat().st_size > 10_000
