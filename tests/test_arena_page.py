"""The arena's page and pictures: what stands in them, who can read them, and how they answer."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from browsing import focus, press, shown_at, tree_of
from invoked import told_by

from fltrust_repro import arena, arena_page, heat_maps, shades, standings
from fltrust_repro.arena_protocols import protocols, table_of
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import load_experiment
from fltrust_repro.shades import Scale, as_text, contrast
from fltrust_repro.standings import KNOWS_C, NO_ATTACK, NO_C, SERVER_DATA, Standings
from fltrust_repro.training import TrialResult
from fltrust_repro.trial_files import write_csv
from fltrust_repro.trials import Trial, protocol_of

COLUMNS = (NO_ATTACK, "krum", "alie 1", "tailored")
# Mean error rates under these; the first two are alike, and `torn` lacks a column.
RULES = {
    "caf": (KNOWS_C, (0.1, 0.11, 0.13, 0.12)),
    "dnc": (KNOWS_C, (0.1, 0.11, 0.12, 0.13)),
    "flame+median": (NO_C, (0.11, 0.3, 0.12, 0.12)),
    "torn": (NO_C, (0.12, 0.9, None, 0.2)),
    "fltrust": (SERVER_DATA, (0.11, 0.12, 0.14, 0.2)),
    "zeno": (SERVER_DATA, (0.12, 0.12, 0.15, 0.3)),
}


def an_entry(row, league, means, flags=(), seeds=3, **others):
    cells = {
        column: standings.Cell(column, {10 + k: mean + (k - 1) / 200 for k in range(seeds)}, 0.34,
                               0.04, 0.5, False)
        for column, mean in zip(COLUMNS, means) if mean is not None
    }  # fmt: skip
    return standings.entry(row, league, cells, flags, **others)


def a_ranking(protocol="P1", rules=RULES, columns=COLUMNS, **others) -> Standings:
    entries = standings.ranked([an_entry(row, *told, **others) for row, told in rules.items()])
    return Standings(protocol, 2, "MNIST, p = 0.5", columns, entries, missing=1234)


def the_curves(ranking) -> dict:
    """From 0.9 to each cell's mean."""
    return {
        (entry.row, column): [(10, 0.9), (250, 0.5), (500, cell.mean)]
        for entry in ranking.entries
        for column, cell in entry.cells.items()
    }


def of_page(*rankings, curves=None) -> str:
    return arena_page.page(
        rankings, {r.protocol: the_curves(r) for r in rankings} if curves is None else curves
    )


def text(element) -> str:
    return " ".join("".join(element.itertext()).split())


def tables(tree) -> list[ElementTree.Element]:
    """A protocol's ranking and its heat map, for each."""
    return list(tree.iter("table"))


def lines_of(table) -> dict[str, dict[str, str]]:
    """The texts of a ranking by rule and head."""
    heads = [text(head) for head in table.find("thead/tr")]
    rows = [row for row in table.iterfind("tbody/tr") if row.get("data-league")]
    return {text(row.find("th")): dict(zip(heads, map(text, row))) for row in rows}


# ---- the ranking --------------------------------------------------------------------------------


def test_the_ranking_comes_first_with_its_numbers():
    ranking = a_ranking(breakdown=17, flags=("random",))
    first, *_ = tables(tree_of(of_page(ranking)))
    assert list(lines_of(first)) == ["caf", "dnc", "flame+median", "torn", "fltrust", "zeno"]
    line = lines_of(first)["flame+median"]
    one = next(entry for entry in ranking.entries if entry.row == "flame+median")
    assert line["Worst error"] == f"0.300 ±{one.score.half:.3f}"
    assert line["Gap"] == f"+0.190 ±{one.gap_half:.3f}"
    told = [line[head] for head in ("under", "No attack", "Breakdown", "League", "Flags")]
    assert told == ["krum", "0.110", "17", "does not know c", "random"]


def test_ties_are_shown_as_ties_and_a_league_has_places_of_its_own():
    rows = tables(tree_of(of_page(a_ranking())))[0].iter("tr")
    places = {text(row.find("th")): [text(span) for span in row[0].findall("span")]
              for row in rows if row.get("data-league")}  # fmt: skip
    assert places["caf"] == places["dnc"] == ["=1 tied (1 to 2)", "=1 tied (1 to 2)"]
    assert places["flame+median"] == ["3 (3)", "1 (1)"]
    assert places["fltrust"] == ["1 (1)", "1 (1)"]


def test_a_wide_rank_says_its_interval():
    entries = [replace(entry, rank=(2, 7)) for entry in a_ranking().entries]
    page = of_page(replace(a_ranking(), entries=tuple(entries)))
    assert "3 (2 to 7)" in text(tables(tree_of(page))[0])


def test_rules_with_server_data_are_ranked_by_themselves():
    for table in tables(tree_of(of_page(a_ranking()))):
        without, own = table.findall("tbody")
        leagues = [{row.get("data-league") for row in body} - {None} for body in (without, own)]
        assert leagues == [{KNOWS_C, NO_C}, {SERVER_DATA}]
    alone = a_ranking(rules={name: RULES[name] for name in ("caf", "torn")})
    assert "server data" not in text(tree_of(of_page(alone)).find("body"))


def test_flags_that_are_set_are_explained():
    told = text(tree_of(of_page(a_ranking(flags=("random",)))).find("body"))
    assert "random: draws at random, which no attacker foresees." in told
    assert "diverged" not in told


def test_two_seeds_give_no_interval():
    first, *_ = tables(tree_of(of_page(a_ranking(seeds=2))))
    assert "±" not in text(first)
    assert "nan" not in text(first)


def test_breakdowns_have_a_column_where_any_is_known():
    ranking = a_ranking()
    first, *_ = tables(tree_of(of_page(ranking)))
    assert "Breakdown" not in lines_of(first)["caf"]
    known = tuple(replace(e, breakdown=33 if e.row == "caf" else None) for e in ranking.entries)
    first, *_ = tables(tree_of(of_page(replace(ranking, entries=known))))
    assert lines_of(first)["caf"]["Breakdown"] == "33"
    assert lines_of(first)["dnc"]["Breakdown"] == "–"  # noqa: RUF001


def test_what_is_missing_is_told_and_each_protocol_has_its_place():
    page = of_page(a_ranking(), a_ranking("P1 partial"))
    sections = list(tree_of(page).iter("section"))
    assert [one.get("id") for one in sections] == ["p1", "p1-partial"]
    assert [a.get("href") for a in tree_of(page).iter("a")] == ["#p1", "#p1-partial"]
    assert "1,234 trials are missing still" in text(sections[0])
    assert "6 rules under 3 attacks, 3 seeds a cell, of 10 to 12; version 2" in text(sections[0])
    assert "missing still" not in of_page(replace(a_ranking(), missing=0))


# ---- every cell ---------------------------------------------------------------------------------


def cells_of(table, row) -> list[ElementTree.Element]:
    [line] = [line for line in table.iter("tr") if text(line.find("th")) == row]
    return line.findall("td")[1:]


def test_the_heat_map_has_every_number_and_frames_the_worst():
    ranking = a_ranking()
    heat = tables(tree_of(of_page(ranking)))[1]
    assert [text(head) for head in heat.iterfind("thead/tr/th")] == ["Rule", "worst", *COLUMNS]
    for entry in ranking.entries:
        for column, cell in zip(COLUMNS, cells_of(heat, entry.row)):
            if column not in entry.cells:
                assert "missing" in text(cell)
                continue
            told = as_text(entry.cells[column].mean)
            is_worst = column == entry.worst
            assert text(cell) == told + " worst" * is_worst
            assert ("worst" in cell.get("class")) == is_worst


def data_of(page) -> dict:
    [data] = list(tree_of(page).iter("script"))
    assert data.get("type") == "application/json"
    return json.loads(data.text)


def test_the_script_gets_each_cells_details_in_the_tables_order():
    ranking = a_ranking()
    page = of_page(ranking)
    data, heat = data_of(page), tables(tree_of(page))[1]
    rows = [text(row.find("th")) for row in heat.iterfind("tbody/tr")]
    assert len(data["rows"]) == len(rows)
    assert data["clean"] == 0
    entries = {entry.row: entry for entry in ranking.entries}
    for row, cells in zip(rows, data["rows"]):
        for column, told in zip(COLUMNS, cells):
            cell = entries[row].cells.get(column)
            if cell is None:
                assert told is None
                continue
            assert [f"{number:.3f}" for number in told[:2]] == [
                f"{cell.mean:.3f}",
                f"{cell.half:.3f}",
            ]
            assert told[2:9] == [None, 0.34, 0.04, 0.5, 0, 3, "10 to 12"]
            assert data["iterations"][told[9]] == [10, 250, 500]
            assert told[10] == [900, 500, round(1000 * cell.mean)]


def test_a_cell_and_its_details_are_rounded_alike():
    """Rounded to 0.1095 and then once more, the details would say 0.110."""
    ranking = a_ranking(rules={"caf": (KNOWS_C, (0.1, 0.11448, 0.1, 0.1))}, seeds=1)
    page = of_page(ranking)
    assert data_of(page)["rows"][0][1][0] == 0.109
    assert text(cells_of(tables(tree_of(page))[1], "caf")[1]) == ".109 worst"


def test_a_cell_without_a_curve_or_notes_is_shown_without_them():
    bare = standings.Cell(NO_ATTACK, {10: 0.1}), standings.Cell("krum", {10: 0.2}, reported=0.25)
    entry = standings.entry("caf", KNOWS_C, {cell.column: cell for cell in bare})
    ranking = Standings("P1", 1, "MNIST", (NO_ATTACK, "krum"), standings.ranked([entry]))
    data = data_of(of_page(ranking, curves={}))
    assert data["rows"] == [[[0.1, None, None, None, None, None, 0, 1, "10", 0, []],
                             [0.2, None, 0.25, None, None, None, 0, 1, "10", 0, []]]]  # fmt: skip


def test_a_curve_is_the_mean_of_the_seeds_that_are_ranked():
    cell = replace(load_experiment("table2a").cells[0], row="caf", column=NO_ATTACK)

    def a_trial(seed, error, curve=None):
        curve = [(i, error, 1.0) for i in range(10, 501, 10)] if curve is None else curve
        result = TrialResult(error, error, 500, False, 1.0, curve, 0)
        return Trial(cell.setting, seed, result, "cpu", "", "", protocol_of(cell.setting))

    trials = {cell.setting: [a_trial(10, 0.1), a_trial(11, 0.3), a_trial(13, 0.9)]}
    found = arena_page.curves_of(a_ranking(), [cell], trials)
    curve = found["caf", NO_ATTACK]
    assert (curve[0][0], curve[-1][0], len(curve)) == (10, 500, arena_page.POINTS)
    assert {round(error, 6) for _, error in curve} == {0.2}
    assert arena_page.curves_of(a_ranking(), [replace(cell, row="no row")], trials) == {}
    assert arena_page.curves_of(a_ranking(), [cell], {cell.setting: [a_trial(10, 0.1, [])]}) == {}


# ---- a page for everybody -----------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_stand_out_from_every_shade_and_grey_keeps_their_order(dark):
    every = shades.shades(dark)
    assert len(every) == shades.LEVELS
    assert min(contrast(shade.fill, shade.ink) for shade in every) >= 4.5  # WCAG 2.2, AA
    page = "#161616" if dark else "#ffffff"
    greys = [contrast(shade.fill, page) for shade in every]
    assert greys == sorted(greys)
    assert greys[-1] > 10 > 1.5 > greys[0]


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#0000ff", "#ffffff") == contrast("#ffffff", "#0000ff")


def test_a_scale_has_the_least_and_the_largest_error_at_its_ends():
    scale = Scale.of(a_ranking())
    assert (scale.level(0.1), scale.level(0.9)) == (0, shades.LEVELS - 1)
    levels = [scale.level(0.1 + k / 100) for k in range(80)]
    assert levels == sorted(levels)
    assert scale.part(0.3) == pytest.approx(0.5)  # as far from 0.1 as from 0.9
    assert scale.ticks() == [0.1, 0.2, 0.5]
    assert Scale.over([0.21, 0.3]).ticks() == [0.3, 0.4]  # where round ones are far between


def test_errors_that_are_alike_have_shades_that_are():
    alike = a_ranking(rules={"caf": (KNOWS_C, (0.1, 0.101, 0.102, 0.103))})
    assert Scale.of(alike).level(0.103) <= 1
    none = a_ranking(rules={"caf": (KNOWS_C, (0.005, 0.005, 0.005, 0.005))})
    assert Scale.of(none).level(0.0) == 0


def test_the_page_needs_nothing_else_and_lets_its_own_script_run_alone():
    page = of_page(a_ranking())
    [script] = re.findall(r"<script>(.*)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert not re.search(r"url\(|@import|\bsrc=|<link|https?:(?!//www\.w3\.org/)", page)
    tree = tree_of(page)
    assert tree.get("lang") == "en"
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for table in tables(tree):
        assert table.get("aria-label")
        assert all(th.get("scope") for th in table.iter("th"))


def test_names_that_look_like_markup_stay_text():
    odd = '</script><img src=x onerror="alert(1)"> & {{ 7 * 7 }}\n\x1b[31m'
    rules = {odd: RULES["caf"], "dnc": RULES["dnc"]}
    ranking = replace(a_ranking(rules=rules), title=odd)
    tree = tree_of(of_page(ranking))
    assert not list(tree.iter("img"))
    for table in tables(tree):
        assert {text(row.find("th")) for row in table.iterfind("tbody/tr")} == {
            one_line(odd),
            "dnc",
        }


def the_largest() -> Standings:
    columns = (NO_ATTACK, *(f"attack-of-some-length {k}" for k in range(29)))
    cells = {name: standings.Cell(name, {10 + k: 0.1 + k / 999 for k in range(20)}, 0.123, 0.456,
                                  0.789) for name in columns}  # fmt: skip
    entries = [standings.entry(f"some+pre-aggregation+rule {k}", KNOWS_C, cells) for k in range(40)]
    return Standings("P1", 1, "MNIST", columns, standings.ranked(entries))


def test_a_large_arena_is_no_large_page():
    ranking = the_largest()
    iterations = range(10, 501, 20)
    curves = {(entry.row, column): [(at, 0.123) for at in iterations]
              for entry in ranking.entries for column in ranking.columns}  # fmt: skip
    assert len(of_page(ranking, curves={"P1": curves}).encode()) < 500_000


# ---- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rankings = [a_ranking(), a_ranking("P1 partial")]
    curves = {one.protocol: the_curves(one) for one in rankings}
    return arena_page.write(rankings, curves, tmp_path_factory.mktemp("page"))


def test_a_page_and_two_pictures_of_each_protocol_are_written(written):
    names = ["arena.html", "arena-p1.png", "arena-p1.svg", "arena-p1-partial.png",
             "arena-p1-partial.svg"]  # fmt: skip
    assert [file.name for file in written] == names
    assert {file.name for file in written[0].parent.iterdir()} == set(names)
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_the_same_numbers_give_the_same_bytes(written, tmp_path):
    rankings = [a_ranking(), a_ranking("P1 partial")]
    curves = {one.protocol: the_curves(one) for one in rankings}
    again = arena_page.write(rankings, curves, tmp_path / "again")
    assert [file.read_bytes() for file in written] == [file.read_bytes() for file in again]


def test_a_picture_has_each_name_and_number_as_they_are():
    ranking = a_ranking(rules={**RULES, r"_$\frac$": RULES["caf"]})
    picture = heat_maps.standings_picture(ranking, arena_page.told(ranking), "svg").decode()
    # Matplotlib names the text of each group of outlines in a comment.
    drawn = re.findall(r"<!-- (.*?) -->", picture)
    assert "P1, version 2: MNIST, p = 0.5; seeds 10 to 12" in drawn
    for entry in ranking.entries:
        assert f"{entry.row}  {entry.place}" in drawn
        assert {as_text(cell.mean) for cell in entry.cells.values()} <= set(drawn)
    assert set(COLUMNS) <= set(drawn)
    assert "<image" not in picture  # lines and letters stay sharp at any size


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """A folder of results with three trials of two rows in every cell of a protocol."""
    monkeypatch.setattr("fltrust_repro.experiments.published", lambda: tmp_path / "published")
    table = table_of(protocols()["P5"])
    errors = {"krum": 0.2, "median": 0.1}
    trials = []
    met = [cell for cell in table.experiment.cells if cell.row in errors]
    for cell in met:
        for seed in arena.SEEDS[:3]:
            error = errors[cell.row] + 0.1 * (cell.column == "sign-flip") + seed / 10_000
            result = TrialResult(
                error, error, 300, False, 1.0, [(10, 0.9, 2.0), (300, error, 1.0)], 0
            )
            trials.append(Trial(cell.setting, seed, result, "cpu", "python 3", "2020-01-01T10:00",
                                protocol_of(cell.setting)))  # fmt: skip
    write_csv(tmp_path / "out" / "some.trials.csv", trials)
    return tmp_path


def told_in(folder, *arguments) -> str:
    places = ["--out", str(folder / "out"), "--store", str(folder / "none.sqlite")]
    return told_by(*arguments, *places)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("report", "--html"), marks=pytest.mark.long),
        ("arena", "--protocol", "P5", "--draw", "--html"),
    ],
)
def test_commands_write_the_page_of_what_is_at_hand(at_hand, arguments):
    told = told_in(at_hand, *arguments)
    out = at_hand / "out"
    assert f"{out / 'arena'}.html; {out / 'arena-p5'}.png, .svg" in told.replace("Wrote ", "")
    first, heat = tables(tree_of((out / "arena.html").read_text(encoding="utf-8")))
    lines = lines_of(first)
    assert {name: line["under"] for name, line in lines.items()} == dict.fromkeys(
        ("median", "krum"), "sign-flip"
    )
    assert lines["median"]["Worst error"].startswith("0.201 ")
    assert [text(row.find("th")) for row in heat.iterfind("tbody/tr")] == ["median", "krum"]
    assert data_of((out / "arena.html").read_text(encoding="utf-8"))["iterations"] == [[10, 300]]


@pytest.mark.slow
def test_the_report_shows_the_best_rules_first_and_leads_to_the_arena(at_hand):
    told_in(at_hand, "report", "--html")
    tree = tree_of((at_hand / "out" / "fidelity.html").read_text(encoding="utf-8"))
    first = next(tree.iter("table"))
    assert [[text(cell) for cell in row] for row in first.iterfind("tbody/tr")] == [
        ["1", "median", "0.201 ±0.000", "sign-flip", "0.101"],
        ["2", "krum", "0.301 ±0.000", "sign-flip", "0.201"],
    ]
    assert "arena.html" in [a.get("href") for a in tree.iter("a")]


@pytest.mark.slow
def test_without_a_ranking_there_is_no_page(tmp_path, monkeypatch):
    monkeypatch.setattr("fltrust_repro.experiments.published", lambda: tmp_path / "published")
    told_in(tmp_path, "report", "--html")
    assert "arena" not in (tmp_path / "out" / "fidelity.html").read_text(encoding="utf-8")
    assert not list((tmp_path / "out").glob("arena*"))


# ---- in a browser -------------------------------------------------------------------------------


def shown_rules(browser, table) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tr[data-league]')]"
        ".filter(row => row.offsetParent !== null).map(row => row.cells[0].tagName === 'TH'"
        " ? row.cells[0].textContent : row.cells[1].textContent)",
        table,
    )


@pytest.mark.browser
@pytest.mark.parametrize("table", [".ranking", ".grid"])
def test_the_keyboard_sorts_by_a_column_and_backwards(browser, written, table):
    browser.get(written[0].as_uri())
    shown_at(browser, 1280)
    column = COLUMNS.index("krum") + 3 if table == ".grid" else 6  # else: the gap
    head = f"#p1 {table} thead th:nth-child({column})"
    focus(browser, f"{head} button")
    orders, sorts = [], []
    for key in ("ENTER", "SPACE"):
        press(browser, key)
        orders.append(shown_rules(browser, f"#p1 {table}"))
        script = "return document.querySelector(arguments[0]).getAttribute('aria-sort')"
        sorts.append(browser.execute_script(script, head))
    assert sorts == ["ascending", "descending"]
    up, down = orders
    assert up == ["caf", "dnc", "flame+median", "torn", "fltrust", "zeno"]
    assert down[:2] == ["torn", "flame+median"]
    assert set(down[4:]) == {"zeno", "fltrust"}  # by themselves
    every = browser.find_elements("css selector", f"#p1 {table} th[aria-sort]")
    assert len(every) == 1


@pytest.mark.browser
def test_what_is_missing_is_sorted_last_either_way(browser, written):
    browser.get(written[0].as_uri())
    head = f"#p1 .grid thead th:nth-child({COLUMNS.index('alie 1') + 3}) button"
    focus(browser, head)
    for _ in range(2):
        press(browser, "ENTER")
        assert shown_rules(browser, "#p1 .grid")[3] == "torn"


@pytest.mark.browser
def test_a_league_is_shown_alone_in_every_table(browser, written):
    from selenium.webdriver.support.select import Select

    browser.get(written[0].as_uri())
    league = Select(browser.find_element("css selector", "#league"))
    assert [option.text for option in league.options] == ["all", KNOWS_C, NO_C, SERVER_DATA]
    league.select_by_visible_text(NO_C)
    for table in ("#p1 .ranking", "#p1 .grid", "#p1-partial .grid"):
        assert shown_rules(browser, table) == ["flame+median", "torn"]
    place = browser.find_element("css selector", "#p1 tr[data-league='does not know c'] td")
    assert place.text == "1 (1)"
    assert "2 rules under" in browser.find_element("css selector", "#p1 p").text
    league.select_by_index(0)
    assert place.text == "3 (3)"


@pytest.mark.browser
def test_a_table_can_be_reached_though_the_cell_last_chosen_is_hidden(browser, written):
    from selenium.webdriver.support.select import Select

    browser.get(written[0].as_uri())
    focus(browser, "#p1 .grid tbody td")  # of a rule that knows c
    Select(browser.find_element("css selector", "#league")).select_by_visible_text(SERVER_DATA)
    [stop] = browser.find_elements("css selector", "#p1 .grid [tabindex='0']")
    assert stop.is_displayed()


@pytest.mark.browser
def test_arrow_keys_lead_to_cells_that_tell_their_details_and_show_their_curve(browser, written):
    browser.get(written[0].as_uri())
    shown_at(browser, 1280)
    stops = browser.find_elements("css selector", "#p1 .grid [tabindex='0']")
    assert [stop.text for stop in stops] == ["Rule"]  # one for the whole table
    focus(browser, "#p1 .grid [tabindex='0']")
    press(browser, "ARROW_DOWN", "ARROW_DOWN", "ARROW_RIGHT", "ARROW_RIGHT", "ARROW_RIGHT")
    detail = browser.find_element("css selector", "#p1 .detail")
    assert detail.text.splitlines()[:6] == [
        "dnc, krum",
        "0.110 ±0.012, the mean of 3 seeds: 10 to 12",
        "0.100 ±0.012 without attack, +0.010 under it",
        "It undoes 34% of a step on average",
        "It has no effect in 4% of the steps",
        "The rule gives the mean in 50% of the steps",
    ]
    lines = detail.find_elements("css selector", "svg[role=img] polyline")
    assert len(lines) == 2
    press(browser, "END")
    assert "dnc, tailored" in detail.text
    press(browser, "HOME", "ARROW_UP", "ARROW_UP", "ARROW_UP", "ARROW_RIGHT", "ARROW_RIGHT")
    assert browser.switch_to.active_element.text == NO_ATTACK
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_pointing_at_a_cell_shows_its_details(browser, written):
    from selenium.webdriver import ActionChains

    browser.get(written[0].as_uri())
    shown_at(browser, 1280)
    detail = browser.find_element("css selector", "#p1 .detail")
    assert detail.text.startswith("caf, alie 1")  # the best rule's worst, from the first
    cell = "#p1 .grid tbody:last-child tr:last-child td:last-child"
    element = browser.find_element("css selector", cell)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(browser).move_to_element(element).perform()
    assert detail.text.startswith("zeno, tailored")


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_only_tables_scroll_sideways_and_the_ranking_is_on_the_first_screen(
    browser, tmp_path, width, scheme
):
    page = tmp_path / "arena.html"
    page.write_text(of_page(the_largest()), encoding="utf-8")
    browser.get(page.as_uri())
    shown_at(browser, width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    top = browser.execute_script(
        "return document.querySelector('.ranking tbody').getBoundingClientRect().top"
    )
    assert top < 400
    paper = browser.execute_script("return getComputedStyle(document.documentElement).background")
    assert ("255, 255, 255" in paper) == (scheme == "light")
    cell = browser.find_element("css selector", "#p1 .grid td.l0")
    fill = shades.shades(dark=scheme == "dark")[0].fill
    rgb = ", ".join(str(int(fill[k : k + 2], 16)) for k in (1, 3, 5))
    assert rgb in cell.value_of_css_property("background-color")
    assert browser.get_log("browser") == []
