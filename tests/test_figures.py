"""Pictures: names as they are, and files that are named right."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree

import pytest

from fltrust_repro import drawing, figures, report, trial_pictures
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import figure_of
from fltrust_repro.settings import Setting
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
    assert figures.band(m) == (0.5, 0.5)
    text = figures.picture(a_figure(), measured(a_figure(), errors), "svg").decode()
    assert "bands:" not in text
    assert "bands:" in figures.picture(a_figure(), measured(a_figure()), "svg").decode()


@pytest.mark.parametrize("errors", [(1.0, 1.0, 0.4), (0.0, 0.0, 0.3), (0.0, 1.0, 1.0)])
def test_bands_stay_within_0_and_1_and_are_else_those_of_the_table(errors):
    [m, *_] = measured(a_figure(), errors)
    low, high = figures.band(m)
    assert 0 <= low < m.mean < high <= 1
    assert (low, high) == (max(m.mean - m.half_width, 0), min(m.mean + m.half_width, 1))
    assert (m.mean - m.half_width, m.mean + m.half_width) != (low, high)  # it would leave [0, 1]
