"""`compare`: how two sets of finished trials differ."""

from __future__ import annotations

import hashlib
import shlex
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fltrust_repro import comparison, comparison_page, difference_picture, finding, options
from fltrust_repro.comparison_page import Cell, Comparison
from fltrust_repro.drawing import KINDS
from fltrust_repro.errors import BadInput
from fltrust_repro.files import check_writable, in_name, write_bytes, write_text
from fltrust_repro.filters import Wanted, assignment, filter_options
from fltrust_repro.finding import Found
from fltrust_repro.labels import changed, in_words
from fltrust_repro.reproduction import wrote
from fltrust_repro.settings import Setting
from fltrust_repro.trial_files import ENDING, PACKED
from fltrust_repro.words import counted

MOST_LINES = 40  # on a terminal; the files have all
_LONGEST_NAME = 30  # bytes of a side's name in that of a file


@click.command("compare")
@click.argument("sources", nargs=-1, type=options.PATH, metavar="[A] [B]")
@filter_options
@click.option("--against", multiple=True, metavar="FIELD=VALUE",
              help="B: the same settings but with this; repeatable.")  # fmt: skip
@click.option("--edit", is_flag=True,
              help="A: before the latest edit of a plug-in, B: today.")  # fmt: skip
@click.option("--html", "as_html", is_flag=True, help="Write a page of HTML too.")
@options.store_option
@options.out_option
@options.finished_options()
def compare_command(
    sources: tuple[Path, ...], wanted: Wanted, against: tuple[str, ...], edit: bool, as_html: bool,
    store_path: Path, out: Path,
) -> None:  # fmt: skip
    """Compare trials setting by setting: B - A with its 95% interval, in pairs of the same seed.

    A and B are two stores, folders of results or .trials.csv files; or, of the store, of OUT and of
    what is published, two settings (--against), or what a plug-in gave before its latest edit, and
    today (--edit). Every option of `run` that belongs to a setting chooses among A's. Writes a
    page, a table and a picture, OUT/compare-A-B.
    """
    fields = dict(assignment("--against", text) for text in against)
    _check(sources, fields, edit)
    check_writable(out)
    found = _found(sources, store_path, out, wanted, plain=not (fields or edit))
    sides = (finding.before, finding.today) if edit else (finding.current, finding.current)
    a, b = (side(trials) for side, trials in zip(sides, found))
    others, refused = _counterparts(a, fields)
    if fields:  # what B is asked for is no setting of A's
        a = {one: some for one, some in a.items() if others.get(one) != one}
    pairs = {one: others[one] for one in a if others.get(one) in b}
    names = _names(sources, wanted, fields, edit)
    if not pairs:
        raise refused or BadInput(_nothing(names, (len(a), len(b)), fields, edit))
    if edit and (old := len(a) - len(pairs)):
        left = f"Left out: {counted(old, 'setting')} of which today's code has no trial."
        click.echo(left, err=True)
    if fields or edit:  # else all that B has is meant to be compared
        b = {other: b[other] for other in pairs.values()}
    compared = comparison_page.compare(names, (a, b), pairs, [*fields])
    _print(compared)
    click.echo(wrote(_write(compared, out, as_html)))


def _found(
    sources: Sequence[Path], store_path: Path, out: Path, wanted: Wanted, plain: bool
) -> tuple[list[Found], list[Found]]:
    """The trials of A, of those wanted, and of B; only of a `plain` comparison of those, too."""
    if len(sources) == 2:
        a, b = (finding.lying_in(source) for source in sources)
        return finding.chosen(a, wanted), finding.chosen(b, wanted) if plain else b
    every = finding.gathered(sources, store_path, out, quietly=True)
    return finding.chosen(every, wanted), every


def _check(sources: Sequence[Path], fields: Mapping[str, Any], edit: bool) -> None:
    """Refuse what does not say two sides."""
    if edit and (fields or len(sources) > 1):
        alone = "give at most one store and no --against"
        raise BadInput(f"--edit takes both sides from the same trials; {alone}.")
    if len(sources) > 2 or (len(sources) < 2 and not fields and not edit):
        given = ", ".join(map(str, sources)) or "nothing"
        do = "give two of them, or one or none with --against FIELD=VALUE or --edit"
        raise BadInput(f"{given} is no pair of stores, folders or files; {do}.")


def _counterparts(
    settings: Iterable[Setting], fields: Mapping[str, Any]
) -> tuple[dict[Setting, Setting], BadInput | None]:
    """Each setting with what it is with these fields, and why there is no such one of another."""
    if not fields:
        return {setting: setting for setting in settings}, None
    found, refused = {}, None
    for setting in settings:
        try:
            found[setting] = changed(setting, fields)
        except BadInput as error:  # a limit, or a name that nothing has
            refused = error
    return found, refused


def _names(
    sources: tuple[Path, ...], wanted: Wanted, fields: Mapping[str, Any], edit: bool
) -> tuple[str, str]:
    """What A and B are called."""
    if edit:
        return "before the edit", "today"
    if not fields:
        a, b = map(str, sources)
        return a, b
    own = {
        name: values[0] for name, values in wanted.items() if name in fields and len(values) == 1
    }
    told = in_words(own) if own else f"any other {', '.join(fields).replace('_', '-')}"
    if len(sources) == 2:
        return f"{sources[0]}, {told}", f"{sources[1]}, {in_words(fields)}"
    return told, in_words(fields)


def _nothing(
    names: tuple[str, str], counts: tuple[int, int], fields: Mapping[str, Any], edit: bool
) -> str:
    """Say why there is nothing to compare."""
    a, b = counts
    if edit:
        earlier = "no setting at hand has trials of today's plug-ins and of earlier ones"
        return f"{earlier}; `trials` lists what there is."
    if fields and not a:
        return f"no setting without {names[1]} is chosen; `trials` lists what there is."
    if fields:
        none = f"none of the {a:,} settings chosen has been run with {names[1]} too"
        return f"{none}; `trials` lists what there is."
    return f"A has {a:,} settings, B {b:,}, and none in common; `trials {names[0]}` lists A's."


# ---- what is told and written -------------------------------------------------------------------


def _print(found: Comparison) -> None:
    click.echo(f"A: {found.names[0]}\nB: {found.names[1]}\n{found.shared}\n")
    cells, more = found.cells, ""
    if len(cells) > MOST_LINES:
        differ = tuple(filter(_differs, cells))
        cells = differ[:MOST_LINES]
        more = (
            f"Shown: {len(cells)} of {len(differ)} that differ, or perhaps do; the files have all."
        )
    if cells:
        click.echo(f"{comparison_page.table(cells, 'simple')}\n")
    for line in [more] * bool(more) + comparison_page.summary(found):
        click.echo(textwrap.fill(line, 80, subsequent_indent="  ", break_on_hyphens=False))


def _differs(cell: Cell) -> bool:
    return cell.verdict in (comparison.LOWER, comparison.HIGHER, *comparison.PERHAPS.values())


def _write(found: Comparison, out: Path, as_html: bool) -> list[Path]:
    name = _file_name(found.names)
    command = shlex.join(["python", "-m", "fltrust_repro", *sys.argv[1:]])
    pictures = {kind: difference_picture.picture(found, kind) for kind in KINDS}
    files = {ending: out / f"{name}.{ending}" for ending in ("md", "csv", *KINDS)}
    write_text(files["md"], comparison_page.markdown(found, command, f"{name}.png"))
    write_text(files["csv"], comparison_page.as_frame(found).to_csv(index=False))
    for kind, content in pictures.items():
        write_bytes(files[kind], content)
    if as_html:
        files["html"] = out / f"{name}.html"
        write_text(files["html"], comparison_page.html(found, command, pictures["svg"]))
    return list(files.values())


def _file_name(names: tuple[str, str]) -> str:
    """Name the files by the last parts of both sides, where these are paths."""
    depths = [["-".join(Path(name).parts[-depth:]) for name in names] for depth in (1, 2)]
    sides = next((both for both in depths if both[0] != both[1]), depths[-1])
    words = [_in_file_name(side) for side in sides]
    short = [in_name(word, _LONGEST_NAME) for word in words]
    name = "-".join(["compare", *(word.strip("-.") or "results" for word in short)])
    if sides[0] != sides[1] and short == words:
        return name
    # What was left out may be all that tells this pair from another.
    return f"{name}-{hashlib.sha256(repr(names).encode()).hexdigest()[:6]}"


def _in_file_name(side: str) -> str:
    for ending in (PACKED, ENDING, ".sqlite", ".csv"):
        side = side.removesuffix(ending)
    return in_name(side)
