"""One style per attack, the same in every figure."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

import fltrust_repro as fl
from fltrust_repro.attacks import attacks
from fltrust_repro.shades import contrast
from fltrust_repro.styles import Style, style_of, styles_of

PAPER = ("no-attack", "gaussian", "label-flip", "partial", "full")
# Okabe and Ito's eight without yellow and black, and the grey that R has beside them.
OKABE_ITO = {"#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#999999"}


def built_in() -> list[str]:
    return sorted({*PAPER, *attacks} - {"none"})


@pytest.mark.parametrize("name", [*PAPER, *sorted(attacks), "somebody's", "somebody's, full"])
def test_a_style_belongs_to_a_name_whatever_else_is_drawn(name):
    alone = style_of(name)
    assert alone.colour in OKABE_ITO
    assert styles_of([*PAPER, name])[name] == styles_of([name, *reversed(PAPER)])[name] == alone


def test_every_built_in_attack_has_a_look_of_its_own():
    styles = [style_of(name) for name in built_in()]
    for one, other in combinations(styles, 2):
        assert (one.colour, one.marker) != (other.colour, other.marker)
        assert (one.grey, one.marker) != (other.grey, other.marker)


def test_the_papers_columns_differ_in_all_that_is_drawn():
    for what in ("colour", "grey", "marker", "dashes"):
        assert len({getattr(style_of(name), what) for name in PAPER}) == len(PAPER)


def test_full_is_the_strongest_line_in_colour_and_in_grey():
    full, others = style_of("full"), [style_of(name) for name in built_in() if name != "full"]
    assert full.dashes == () and full.svg_dashes == "none"
    assert all(full.width > 1.5 * other.width for other in others)
    assert contrast(full.grey, "#ffffff") == max(
        contrast(other.grey, "#ffffff") for other in (full, *others)
    )


@pytest.mark.parametrize("name", built_in())
def test_every_grey_is_seen_on_paper(name):
    assert contrast(style_of(name).grey, "#ffffff") >= 3  # WCAG 2.2 asks it of graphics


def test_names_of_one_picture_are_told_apart_in_any_order():
    names = [f"attack {k}" for k in range(20)]
    styles = styles_of([*names, *built_in()])
    looks = {(style.colour, style.marker) for style in styles.values()}
    assert len(looks) == len(styles)
    assert styles_of([*reversed(built_in()), *reversed(names)]) == styles


@pytest.mark.parametrize("name", built_in())
def test_every_marker_can_be_drawn_on_the_page(name):
    page = (Path(fl.__file__).parent / "page.html").read_text()
    names = {"^": "caret", "*": "star"}
    assert f'id="mark-{names.get(style_of(name).marker, style_of(name).marker)}"' in page


def test_the_style_of_a_strange_name_never_changes():
    """Golden: a change here changes pictures that were printed."""
    assert style_of("my-attack") == Style("#009e73", "#6e6e6e", "P", (8.0, 3.0))


def test_more_names_than_styles_still_have_one():
    assert len(styles_of(f"attack {k}" for k in range(200))) == 200


@pytest.mark.parametrize("name", ["krum", "trimmed-mean", "mine"])
def test_what_the_attacker_knows_is_the_dashes(name):
    partial, full = style_of(f"{name}, partial"), style_of(f"{name}, full")
    assert (partial.colour, partial.marker) == (full.colour, full.marker)
    assert (full.dashes, full.width) == (style_of("full").dashes, style_of("full").width)
    assert partial.dashes == style_of("partial").dashes != full.dashes
    assert partial.width < full.width


@pytest.mark.parametrize("name", ["none", "no attack", "no-attack"])
def test_no_attack_has_one_style_by_all_its_names(name):
    assert style_of(name) == style_of("no-attack")


def test_grey_replaces_colour():
    style = style_of("partial")
    assert (style.ink(grey=False), style.ink(grey=True)) == (style.colour, style.grey)
    assert style.svg_dashes == "4 2"
