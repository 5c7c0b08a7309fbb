"""Pages of HTML from the templates beside this module; what a name holds stays text."""

from __future__ import annotations

from importlib import resources
from typing import Any

from fltrust_repro.errors import one_line


def render(template: str, **values: Any) -> str:
    """Return the page that a template, a file of this package, makes of values."""
    from jinja2 import Environment, StrictUndefined  # here, since few commands write pages

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        # Names and evidence, which are str; what macros return is Markup and has lines.
        finalize=lambda value: one_line(value) if type(value) is str else value,
    )  # fmt: skip
    return environment.from_string(text(template)).render(**values)


def text(name: str) -> str:
    """Return the text of a file of this package."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
