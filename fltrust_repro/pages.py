"""Pages of HTML from the templates beside this module; what a name holds stays text."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from fltrust_repro.errors import one_line


def render(template: str, **values: Any) -> str:
    """Return the page that a template, a file of this package, makes of values."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # few commands write pages

    environment = Environment(
        loader=FunctionLoader(text), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
        # Names and evidence, which are str; what macros return is Markup and has lines.
        finalize=lambda value: one_line(value) if type(value) is str else value,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def text(name: str) -> str:
    """Return the text of a file of this package."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def script(*names: str) -> tuple[str, str]:
    """Return the text of scripts as one, and what a content security policy allows it by."""
    joined = "".join(map(text, names))
    digest = hashlib.sha256(joined.encode()).digest()
    return joined, f"sha256-{base64.b64encode(digest).decode()}"
