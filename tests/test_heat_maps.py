"""Tables as coloured cells: every number, the paper's beside it, and what is to be seen first."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fltrust_repro import captions, drawing, figures, heat_maps
from fltrust_repro.experiments import Experiment, load_experiment, published
from fltrust_repro.report import Measured
from fltrust_repro.shades import LEVELS, Scale, contrast, shades

SEEDS = tuple(range(10, 13))


def measured(experiment: Experiment, changed: dict[tuple[str, str], float] | None = None):
    """Three trials a cell, around what the paper prints, or what `changed` says."""
    found = []
    for cell in experiment.cells:
        mean = (changed or {}).get((cell.row, cell.column), cell.paper)
        errors = () if mean is None or mean != mean else (mean - 0.002, mean, mean + 0.002)
        found.append(Measured(cell, errors, 0, SEEDS[: len(errors)]))
    return found


def drawn_texts(svg: bytes) -> list[str]:
    """What is written in a picture: Matplotlib names each text's outlines in a comment."""
    ElementTree.fromstring(svg.decode())
    return re.findall(r"<!-- (.*?) -->", svg.decode(), re.DOTALL)


def image(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_a_table_has_each_name_number_and_printed_value():
    table = load_experiment("table2a")
    texts = drawn_texts(heat_maps.table_picture(table, measured(table), "svg"))
    assert {*table.rows, *table.columns, table.title} <= set(texts)
    for cell in table.cells:
        assert f"{cell.paper:.3f}"[1:] in texts
        assert f"{cell.paper:.2f}"[1:] in texts
    told = "lr on mnist, m = 100, c = 20, p = 0.5; 3 trials per cell, seeds 10 to 12"
    assert any(text.startswith(told) for text in texts)


def test_what_is_outside_the_tolerance_is_framed_starred_and_told():
    table = load_experiment("table2a")
    inside, outside = (
        heat_maps.table_picture(table, measured(table, changed), "svg")
        for changed in ({}, {("krum", "full"): 0.3})
    )
    assert not [text for text in drawn_texts(inside) if "*" in text]
    assert ".300*" in drawn_texts(outside)
    assert any("* and a frame: outside the tolerance" in text for text in drawn_texts(outside))
    frame = "stroke: #000000; stroke-width: 2; stroke-linejoin: miter"
    assert outside.decode().count(frame) == inside.decode().count(frame) + 1


def test_what_is_missing_or_of_too_few_trials_is_told():
    table = load_experiment("table2a")
    cells = measured(table, {("krum", "full"): float("nan")})
    cells[0] = Measured(cells[0].cell, cells[0].errors[:2], 0, SEEDS[:2])
    texts = drawn_texts(heat_maps.table_picture(table, cells, "svg"))
    assert "-" in texts
    assert any(re.fullmatch(r"\.\d{3}\?", text) for text in texts)
    [note] = [text for text in texts if "not measured" in text]
    assert "?: too few trials to say" in note
    assert "2 to 3 trials per cell" in " ".join(texts)


@pytest.mark.parametrize("kind", drawing.KINDS)
@pytest.mark.parametrize("grey", [False, True])
def test_the_same_numbers_give_the_same_bytes(kind, grey):
    table = load_experiment("table7b")
    one, other = (heat_maps.table_picture(table, measured(table), kind, grey) for _ in range(2))
    assert one == other


def test_a_printed_value_is_seen_where_it_differs():
    """The two parts of a cell have one colour where they agree, and two where not."""
    table = load_experiment("table7b")
    fill = shades()[Scale().level(0.9)].fill
    dark = [int(fill[k : k + 2], 16) for k in (1, 3, 5)]
    agreed, apart = (
        (np.abs(image(heat_maps.table_picture(table, cells, "png")) - dark).sum(axis=2) < 30).sum()
        for cells in (measured(table), measured(table, {("full", "bulyan"): 0.9}))
    )
    cell = heat_maps.TABLE.width * heat_maps.TABLE.height * 150**2  # pixels
    assert (1 - heat_maps.STRIP) * cell * 0.6 < apart - agreed < (1 - heat_maps.STRIP) * cell


@pytest.mark.parametrize("name", ["table2a", "figure5c"])
def test_grey_has_no_colour(name):
    experiment = load_experiment(name)
    cells = measured(experiment, {(c.row, c.column): 0.3 for c in experiment.cells})
    draw = figures.picture if experiment.figure else heat_maps.table_picture
    colour, grey = (image(draw(experiment, cells, "png", grey)) for grey in (False, True))
    assert np.ptp(grey, axis=2).max() <= 2
    assert np.ptp(colour, axis=2).max() > 100


@pytest.mark.parametrize("grey", [False, True])
def test_numbers_can_be_read_on_every_shade(grey):
    every = shades(grey=grey)
    assert len(every) == LEVELS
    assert all(contrast(shade.fill, shade.ink) >= 4.5 for shade in every)


def test_a_scale_over_errors_has_both_ends_and_is_never_empty():
    scale = Scale.over([0.1, 0.4, 0.9])
    assert (scale.level(0.1), scale.level(0.9)) == (0, LEVELS - 1)
    assert Scale.over([0.2]).level(0.2) == 0
    for errors in ([0.8, 0.9], [1.0], [0.51, 1.0]):  # no error rate is above 1
        assert Scale.over(errors) == Scale(0.5, 1.0)
    assert Scale.over([0.4, 0.9]) == Scale(0.4, 0.9)
    assert Scale.over([0.3, 0.4]) == Scale(0.3, 0.6)
    assert Scale.over([]).part(0.5) == 1


def test_a_grid_of_two_parameters_has_its_axes_and_leaves_out_what_is_not_known():
    values = {("0.1", "5"): 0.1, ("0.1", "10"): 0.2, ("0.5", "5"): 0.3}
    picture = heat_maps.grid_picture(
        "p and c varied", "degree p", ["0.1", "0.5"], "compromised c", ["5", "10"], values, "svg",
        notes=["3 trials per cell"],
    )  # fmt: skip
    texts = drawn_texts(picture)
    assert {"p and c varied", "degree p", "compromised c", "3 trials per cell"} <= set(texts)
    assert {".100", ".200", ".300", "-"} <= set(texts)
    assert texts.index(".300") < texts.index(".100")  # the first row is the lowest


@pytest.mark.parametrize("letters", [40, 300])
def test_long_names_are_never_cut(letters):
    """A picture grows to the left, and above, with the names."""
    columns = ["c" * letters, "d"]
    values = {("r" * letters, column): 0.2 for column in columns}
    sizes = [
        image(heat_maps.grid_picture("t", "y", [row], "x", ["a", "d"], {}, "png")).shape
        for row in ("r" * letters, "r")
    ]
    assert sizes[0][1] - sizes[1][1] > 5 * (letters - 1)
    texts = drawn_texts(
        heat_maps.grid_picture("t", "y", ["r" * letters], "x", columns, values, "svg")
    )
    assert {"r" * letters, *columns} <= set(texts)


def test_long_names_of_columns_stand_upright_on_few_lines_where_there_is_room():
    table = load_experiment("table8")
    texts = drawn_texts(heat_maps.table_picture(table, measured(table), "svg"))
    assert {"directed-", "deviation"} <= set(texts) and "directed-deviation" not in texts


def test_data_sets_of_one_table_are_all_told():
    cells = load_experiment("section42").cells[:4]
    told = captions.of_settings(cell.setting for cell in cells[:3])
    assert told.startswith("cnn and resnet20 on mnist, fashion-mnist and ch-mnist, m = ")
    assert " on 4 datasets, " in captions.of_settings(cell.setting for cell in cells)
    assert captions.of_trials([], "cell") == "no trials yet"


def test_the_published_pages_show_pictures_that_are_there_and_small():
    shown = 0
    for page in sorted(published().glob("*.md")):
        for name in re.findall(r"!\[.*\]\((\S+\.png)\)", page.read_text(encoding="utf-8")):
            assert (published() / name).stat().st_size < 100_000, name
            shown += 1
    assert shown > 20


def test_numbers_below_the_scale_stand_at_their_shades(monkeypatch):
    """And the line between those that are ranked apart between them."""
    made = []
    monkeypatch.setattr(heat_maps, "_finished", lambda axis, *_: made.append(axis))
    monkeypatch.setattr(heat_maps.drawing, "as_bytes", lambda *_, **__: b"")
    values = {("a", "x"): 0.1, ("a", "y"): 0.4}
    heat_maps.grid_picture("t", "rows", ["a"], "columns", ["x", "y"], values, "svg")
    [axis] = made
    bar, scale = axis.figure.axes[1], Scale.over([0.1, 0.4])
    assert list(bar.get_xticks()) == [scale.part(tick) for tick in scale.ticks()]
    assert [text.get_text() for text in bar.get_xticklabels()] == ["0.1", "0.2"]
