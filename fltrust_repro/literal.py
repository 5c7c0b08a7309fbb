"""Text that is meant literally, such as a user's own names, for what would interpret it."""

from __future__ import annotations

import re
import unicodedata

# An underscore inside a word is one; anywhere else it would begin or end an emphasis.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~$]|(?<![^\W_])_|_(?![^\W_])")
_BREAKS = {"Zl", "Zp"}


def one_line(text: str) -> str:
    r"""Return text that a terminal, a table or a page shows as it is, in one line.

    Line breaks, escape sequences and other control characters are written as Python writes them.

    >>> from fltrust_repro.literal import one_line
    >>> print(one_line("two\nlines"))
    two\nlines
    """
    return "".join(
        repr(character)[1:-1]
        if (kind := unicodedata.category(character)).startswith("C") or kind in _BREAKS
        else character
        for character in text
    )


def markdown(text: str) -> str:
    r"""Return Markdown that reads as this text, in a table too.

    >>> from fltrust_repro.literal import markdown
    >>> print(markdown("a|b *c* my_rule"))
    a\|b \*c\* my_rule
    """
    return _MARKDOWN.sub(lambda found: "\\" + found[0], one_line(text))


def markdown_code(text: str) -> str:
    """Return Markdown that shows this text as code, fenced by more backticks than it has.

    >>> from fltrust_repro.literal import markdown_code
    >>> print(markdown_code("make test"))
    `make test`
    """
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{one_line(text)}{space}{fence}"
