"""Pictures: names as they are, and files that are named right."""

from __future__ import annotations

import re
import warnings
from xml.etree import ElementTree

import pytest
from matplotlib.text import Text

from fltrust_repro import captions, curves, drawing, figures, report, trial_pictures
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import figure_of
from fltrust_repro.settings import Setting
from fltrust_repro.styles import MOST_TICKS, style_of
from fltrust_repro.training import TrialResult
from fltrust_repro.trials import Trial

SHARED = {"dataset": "digits", "model": "lr"}


def a_figure(panels=("a", "b"), lines=("x", "y")):
    return figure_of(
        "mine", "reproduce mine", "Mine", SHARED,
        {name: {"iterations": 10 + k} for k, name in enumerate(panels)},
        {name: {"batch_size": 32 + k} for k, name in enumerate(lines)},
        "p", (0.1, 0.5),
    )  # fmt: skip


def measured(figure, errors=(0.1, 0.2, 0.3)):
    return [report.Measured(cell, tuple(errors), 0) for cell in figure.cells]


def a_trial(curve) -> Trial:
    result = TrialResult(0.1, 0.1, 10, False, 1.0, curve, 0)
    return Trial(Setting(**SHARED), 0, result, "cpu", "", "", "1")


NAMES = [r"$\frac$", "x^{", r"a_{b", "$$", "100%", "_hidden", "[red]", r"\LaTeX{", "$5 and $6"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "svg"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_mathematics(name, kind):
    figure = a_figure(panels=(name, "b\x1b\n"), lines=(name, "y"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = figures.picture(figure, measured(figure), kind)
    if kind == "svg":
        # Matplotlib names the text of each group of outlines in a comment.
        # That of a panel's title, and of the line's end in each of the two.
        assert content.decode().count(f"<!-- {name} -->") == 3
        ElementTree.fromstring(content)


def test_dollars_take_as_much_room_as_they_have_letters():
    """As mathematics the dollars would be gone, and the rest set in italics."""
    plain, dollars = (
        figures.picture(a_figure(lines=(name, "y")), measured(a_figure(lines=(name, "y"))), "svg")
        for name in ("alpha", "$alpha$")
    )
    assert len(dollars) > len(plain)
    assert b"<!-- $alpha$ -->" in dollars


@pytest.mark.parametrize("name", ["p.xyz", "p", "png", "p.jpg", ".png", "p.svg.txt", "p.pdf"])
def test_a_picture_of_another_kind_is_refused_before_anything_is_done(tmp_path, name):
    for check in (drawing.check_picture, lambda path: trial_pictures.draw_trial(None, path)):
        with pytest.raises(BadInput, match=r"neither \.png nor \.svg"):
            check(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_picture(tmp_path):
    (tmp_path / "p.png").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        drawing.check_picture(tmp_path / "p.png")


@pytest.mark.parametrize(("name", "start"), [("p.png", b"\x89PNG"), ("P.PNG", b"\x89PNG"),
                                             ("p.svg", b"<?xml")])  # fmt: skip
def test_a_trials_picture_is_of_the_kind_that_its_name_says(tmp_path, name, start):
    trial_pictures.draw_trial(a_trial([(10, 0.5, 2.0), (20, 0.4, 1.0)]), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_a_trial_without_a_curve_is_not_drawn(tmp_path):
    with pytest.raises(BadInput, match="no error curve"):
        trial_pictures.draw_trial(a_trial([]), tmp_path / "p.png")


@pytest.mark.parametrize("errors", [(0.5,), (0.4, 0.6)])
def test_few_trials_have_no_band(errors):
    [m, *_] = measured(a_figure(), errors)
    assert drawing.band(m) == (0.5, 0.5)
    text = figures.picture(a_figure(), measured(a_figure(), errors), "svg").decode()
    assert "bands:" not in text
    assert "bands:" in figures.picture(a_figure(), measured(a_figure()), "svg").decode()


@pytest.mark.parametrize("errors", [(1.0, 1.0, 0.4), (0.0, 0.0, 0.3), (0.0, 1.0, 1.0)])
def test_bands_stay_within_0_and_1_and_are_else_those_of_the_table(errors):
    [m, *_] = measured(a_figure(), errors)
    low, high = drawing.band(m)
    assert 0 <= low < m.mean < high <= 1
    assert (low, high) == (max(m.mean - m.half_width, 0), min(m.mean + m.half_width, 1))
    assert (m.mean - m.half_width, m.mean + m.half_width) != (low, high)  # it would leave [0, 1]


@pytest.mark.parametrize(("trials", "bands"), [
    ((3, 3, 3, 3), 1), ((3, 3, 2, 3), 1), ((3, 3, 1, 4, 5), 2), ((3, 2, 3, 1), 0), ((2, 3, 3), 1),
])  # fmt: skip
def test_bands_have_a_gap_at_points_of_too_few_trials(trials, bands):
    """They would be narrowest where least is known."""
    values = (0.1, 0.3, 0.5, 0.7, 0.9)[: len(trials)]
    lines = {"x": {}}
    figure = figure_of("m", "reproduce m", "M", SHARED, {"": {}}, lines, "p", values)
    cells = [report.Measured(c, (0.1, 0.2, 0.3, 0.4, 0.5)[:n], 0)
             for c, n in zip(figure.cells, trials)]  # fmt: skip
    drawn = ElementTree.fromstring(figures.picture(figure, cells, "svg"))
    svg = "{http://www.w3.org/2000/svg}"
    [group] = [g for g in drawn.iter(f"{svg}g") if "PolyCollection" in g.get("id", "")]
    drawn_paths = [path.get("d", "") for path in group.iter(f"{svg}path")]
    places = (re.findall(r"([\d.]+) -?[\d.]+", path) for path in drawn_paths)
    assert sum(len({*x}) > 1 for x in places) == bands
    [line] = curves.as_varied(figure, cells).panels[""]
    runs = "".join("x" if n > 2 else " " for n in trials).split()
    assert line.band.count("M") == len(runs)  # of one point, too: the page tells its numbers
    assert ("with gaps around" in captions.of_bands(cells)) == (min(trials) < 3)


# ---- styles, labels and captions ----------------------------------------------------------------

PAPER = ("no-attack", "gaussian", "label-flip", "partial", "full")


def svg_of(figure, errors=(0.1, 0.2, 0.3), grey=False) -> str:
    return figures.picture(figure, measured(figure, errors), "svg", grey).decode()


@pytest.mark.parametrize("grey", [False, True])
def test_an_attack_has_one_style_whatever_is_drawn_beside_it(grey):
    for lines in (PAPER, ("full",), ("full", "no-attack"), ("somebody's", "full", "gaussian")):
        text = svg_of(a_figure(lines=lines), grey=grey)
        for line in lines:
            style = style_of(line)
            assert f"stroke: {style.ink(grey)}; stroke-width: {style.width:g}" in text
            assert f"stroke: {style.ink(not grey)}; stroke-width: {style.width:g}" not in text


def drawn(figure, errors_of, monkeypatch):
    """The axes of a picture, whose cells have the errors that a function of the line gives."""
    kept: list = []
    monkeypatch.setattr(drawing, "as_bytes", lambda sheet, *_: kept.append(sheet))
    cells = [report.Measured(c, errors_of(c.row), 0, tuple(range(len(errors_of(c.row)))))
             for c in figure.cells]  # fmt: skip
    figures.picture(figure, cells, "png")
    kept[0].draw_without_rendering()
    return kept[0]


@pytest.mark.parametrize("count", [2, 5, 16])
def test_labels_stand_at_the_ends_of_lines_and_never_on_each_other(count, monkeypatch):
    lines = tuple(f"attack {k}" for k in range(count))
    figure = a_figure(panels=("a", "b"), lines=lines)
    sheet = drawn(figure, lambda row: (0.14, 0.14, 0.14), monkeypatch)  # all on one place
    assert not sheet.legends
    for axis in sheet.axes:
        boxes = sorted(map(Text.get_window_extent, axis.texts), key=lambda box: box.y0)
        assert [text.get_text() for text in axis.texts] == list(lines)
        assert all(low.y1 <= high.y0 + 1 for low, high in zip(boxes, boxes[1:]))
        assert all(box.x0 > axis.get_window_extent().x1 for box in boxes)
        assert max(box.x1 for box in boxes) <= sheet.bbox.x1


@pytest.mark.parametrize("lines", [tuple(f"attack {k}" for k in range(17)), ("x" * 27, "y")])
def test_where_labels_do_not_fit_there_is_a_legend(lines, monkeypatch):
    sheet = drawn(a_figure(lines=lines), lambda row: (0.2, 0.3, 0.4), monkeypatch)
    assert not any(axis.texts for axis in sheet.axes)
    [legend] = sheet.legends
    assert [text.get_text() for text in legend.get_texts()] == list(lines)


def test_markers_on_one_place_are_hollow_and_of_different_sizes(monkeypatch):
    sheet = drawn(a_figure(lines=PAPER), lambda row: (0.14, 0.14), monkeypatch)
    shown = sheet.axes[0].get_lines()
    sizes = [line.get_markersize() for line in shown]
    assert sizes == sorted(set(sizes), reverse=True)
    assert {line.get_markerfacecolor() for line in shown} == {"none"}
    full = shown[-1]
    assert full.get_zorder() == max(line.get_zorder() for line in shown)


@pytest.mark.parametrize(("errors", "top"), [((0.10, 0.11, 0.12), 0.15), ((0.5, 0.9, 0.95), 1)])
def test_the_axis_begins_at_0_ends_above_all_and_says_so_where_it_is_not_1(errors, top):
    text = svg_of(a_figure(), errors)
    assert (f"vertical axes end at {top:g}" in text) == ("vertical axes end" in text) == (top < 1)
    assert drawing.top_of(errors) == top


def test_a_picture_says_what_it_was_made_with():
    figure = figure_of("mine", "reproduce mine", "Mine", SHARED, {"a": {}}, {"x": {}}, "c", (5, 10))
    few, many = (
        [report.Measured(cell, (0.1,) * (3 + k * more), 0, tuple(range(10, 13 + k * more)))
         for k, cell in enumerate(figure.cells)]
        for more in (0, 2)
    )  # fmt: skip
    start = "lr on digits, m = 100, c = 5 to 10, p = 0.5; "
    for cells, told in ((few, "3 trials per point, seeds 10 to 12"),
                        (many, "3 to 5 trials per point, seeds 10 to 14")):  # fmt: skip
        assert start + told in figures.picture(figure, cells, "svg").decode()


def test_a_picture_of_too_many_rows_is_not_drawn_and_costs_no_table(tmp_path):
    many = a_figure(panels=tuple(f"panel {k}" for k in range(41)))
    assert not many.has_picture
    assert figures.draw(many, measured(many), tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert "![" not in report.page(many, measured(many), [])
    assert "![" in report.page(a_figure(), measured(a_figure()), [])


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_panels_stand_in_rows_of_three(count, monkeypatch):
    figure = a_figure(panels=tuple(f"panel {k}" for k in range(count)))
    sheet = drawn(figure, lambda row: (0.2, 0.3, 0.4), monkeypatch)
    titles = [axis.get_title() for axis in sheet.axes if axis.get_title()]
    assert titles == list(figure.figure.panels)
    assert len({axis.get_position().y0 for axis in sheet.axes}) == -(-count // 3)


# ---- a trial -------------------------------------------------------------------------------------

CURVE = [(10, 0.5, 2.0), (20, 0.4, 1.0), (30, 0.3, 0.5)]


def of_attack(seed: int, curve=CURVE, attack="krum") -> Trial:
    setting = Setting(**SHARED, rule="krum", attack=attack)
    return Trial(setting, seed, a_trial(curve).result, "cpu", "", "", "1")


def picture_of(tmp_path, *arguments, grey=False) -> str:
    trial_pictures.draw_trial(of_attack(10), tmp_path / "p.svg", *arguments, grey=grey)
    return (tmp_path / "p.svg").read_text(encoding="utf-8")


def test_a_trial_has_two_panels_a_title_and_the_same_seed_without_attack(tmp_path):
    text = picture_of(tmp_path, of_attack(10, attack="none"), [of_attack(11), of_attack(12)])
    title = "krum under krum (full), lr on digits, m = 100, c = 20, p = 0.5; seed 10"
    for told in (title, "testing error rate", "training loss", "thin: seeds 11 to 12"):
        assert f"<!-- {told} -->" in text
    for label in ("without attack", "seed 10"):
        assert text.count(f"<!-- {label} -->") == 2


def test_a_trial_alone_is_drawn_alone(tmp_path):
    text = picture_of(tmp_path)
    assert "without attack" not in text
    assert "thin" not in text


def test_a_trial_has_its_attacks_colour_or_grey(tmp_path):
    style = style_of("krum, full")
    for grey in (False, True):
        text = picture_of(tmp_path, None, (), grey=grey)
        assert f"stroke: {style.ink(grey)}; stroke-width: {style.width:g}" in text


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e30])
def test_a_loss_without_end_hides_no_other(tmp_path, loss, monkeypatch):
    wild, kept = [(10, 0.5, 2.0), (20, 0.9, loss), (30, 0.9, loss)], []
    monkeypatch.setattr(drawing, "as_bytes", lambda sheet, *_: kept.append(sheet) or b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trial_pictures.draw_trial(of_attack(10), tmp_path / "p.png", None, [of_attack(11, wild)])
        trial_pictures.draw_trial(of_attack(10, wild), tmp_path / "p.png")
    assert 2 < kept[0].axes[1].get_ylim()[1] <= 4


# ---- the charts of pages ------------------------------------------------------------------------


def test_values_that_grow_lie_by_their_ratios_and_ticks_have_room():
    assert curves._positions([0.01, 0.1, 1]) == [0, 800, 1600]
    assert curves._positions([1, 2, 3]) == [0, 800, 1600]
    values = tuple(k / 100 for k in range(1, 2 * MOST_TICKS + 2))
    figure = figure_of("m", "c", "M", SHARED, {"": {}}, {"x": {}}, "p", values)
    chart = curves.as_varied(figure, measured(figure))
    assert len(chart.places) == len(values)
    assert len(chart.ticks) <= MOST_TICKS


def test_of_a_line_over_iterations_the_last_value_is_the_strongest():
    opacities = [opacity for _, opacity in curves._of_columns(a_figure()).values()]
    assert opacities[:2] == [pytest.approx(0.4), 1.0]


def test_many_seeds_are_told_by_their_number_and_ends():
    figure = a_figure()
    cells = [report.Measured(cell, (0.1,) * 40, 0, tuple(range(0, 80, 2)))
             for cell in figure.cells]  # fmt: skip
    assert captions.of_trials(cells, "point") == "40 trials per point, seeds 40 from 0 to 78"
