"""`check`: what a plug-in's entries break and keep."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter
from pathlib import Path

import click

from fltrust_repro import options
from fltrust_repro.errors import BadInput, one_line
from fltrust_repro.words import counted

_KINDS = {"rules": "rule", "steps": "pre-aggregation", "attacks": "attack", "defenses": "defense",
          "models": "model", "data": "data set"}  # fmt: skip
_COLOURS = {"ok": "green", "note": "yellow", "fails": "red"}
_INDENT = 9


@click.command("check")
@click.argument("files", nargs=-1, type=options.FILE, metavar="[FILE]...")
@click.option("--rule", "rules", multiple=True, metavar="NAME", help="Look at this rule, too.")
@click.option("--pre", "steps", multiple=True, metavar="NAME", help="A pre-aggregation.")
@click.option("--attack", "attacks", multiple=True, metavar="NAME", help="An attack.")
@click.option("--defense", "defenses", multiple=True, metavar="NAME", help="A defense.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="A model.")
@click.option("--dataset", "data", multiple=True, metavar="NAME", help="A data set.")
@options.data_dir_option
@options.plugin_option
def check_command(files: tuple[Path, ...], data_dir: Path | None, **names: tuple[str, ...]) -> None:
    """Try your plug-in: what it breaks and what it keeps, on updates of every kind.

    Each rule, attack, ... of FILE, or of those named, gets a line per thing tried: "ok"; "note" for
    what a good one may well do, as not to move when all updates do; and "fails" for what a trial
    would stumble over or could not repeat, with exit code 1.
    """
    from fltrust_repro.checking import KINDS, checked, entries_of  # with all that trains

    entries = [entry for file in files for entry in entries_of(file)]
    entries += [(_KINDS[kind], name) for kind, some in names.items() for name in some]
    if not entries:
        raise BadInput("there is nothing to check; give your plug-in's file, or --rule NAME.")
    for kind, name in entries:
        KINDS[kind][0][name]  # or it is unknown, which is said before anything else
    counts: Counter[str] = Counter()
    for kind, name in dict.fromkeys(entries):
        click.echo(one_line(f"{kind} {name!r}"))
        for level, text in checked(kind, name, data_dir):
            counts[level] += 1
            click.echo(_line(level, one_line(text)))
    click.echo(_summed_up(counts))
    if counts["fails"]:
        sys.exit(1)


def _line(level: str, text: str) -> str:
    """One line of what is read by a program; as many as it takes on a terminal."""
    line = f"  {level:{_INDENT - 4}}  {text}"
    if not sys.stdout.isatty():
        return line
    width = max(shutil.get_terminal_size().columns, 3 * _INDENT)
    told = textwrap.fill(line, width, subsequent_indent=_INDENT * " ", break_on_hyphens=False)
    return told.replace(level, click.style(level, fg=_COLOURS[level]), 1)


def _summed_up(counts: Counter[str]) -> str:
    lines = sum(counts.values())
    fails = f"{counts['fails']} of {lines} lines fail" if counts["fails"] else "Nothing fails"
    return f"{fails}; {counted(counts['note'], 'note')}, {counts['ok']} ok."
