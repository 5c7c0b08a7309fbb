"""Text that is meant literally stays so, whatever is in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fltrust_repro.literal import markdown, markdown_code, one_line

# Leading and trailing space says nothing in a table or a span of code.
TEXT = st.text(st.sampled_from("ab_ *`|\\[]()<>&~$!#-1.\n\t\x1b\u2028") | st.characters()).filter(
    lambda text: text.strip() and text == text.strip()
)
RENDERER = MarkdownIt().enable("table")


def test_control_characters_are_written_and_all_others_stay():
    assert one_line("two\nlines\t\x1b[31m\u2028\u202e") == r"two\nlines\t\x1b[31m\u2028\u202e"
    assert one_line("\u00b1 \u03b2 \u4e2d $x^{ |") == "\u00b1 \u03b2 \u4e2d $x^{ |"


@given(TEXT)
def test_a_cell_of_a_markdown_table_shows_the_text(text):
    tokens = RENDERER.parse(f"| a | b |\n|---|---|\n| {markdown(text)} | 1 |")
    shown = [token.children for token in tokens if token.type == "inline"]
    assert len(shown) == 4
    assert "".join(child.content for child in shown[2]) == one_line(text)
    assert {child.type for child in shown[2]} <= {"text", "text_special"}


@given(TEXT)
def test_markdown_code_shows_the_text(text):
    [_, inline, _] = RENDERER.parse(f"Command: {markdown_code(text)}")
    *_, code = inline.children
    assert (code.type, code.content) == ("code_inline", one_line(text))


@pytest.mark.parametrize("name", ["no-attack", "trimmed-mean", "my_rule", "m = 50", "p = 0.5"])
def test_common_names_are_left_as_they_are(name):
    assert markdown(name) == name
