"""`trials`: what finished trials there are, and where they lie."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from fltrust_repro import finding, options, report, reproduction
from fltrust_repro.errors import one_line
from fltrust_repro.filters import Wanted, filter_options
from fltrust_repro.finding import Found, Group
from fltrust_repro.labels import labels, ordered
from fltrust_repro.trials import TOOK_OVER
from fltrust_repro.words import counted

_LIBRARY = re.compile(r"(python|fltrust_repro|mxnet\S*|numpy|scipy|numba|BLAS) ")
_RATES = ("error_rate", "lowest_error_rate", "iterations", "diverged", "seconds")


@click.command("trials")
@click.argument("sources", nargs=-1, type=options.PATH, metavar="[STORE|FOLDER|FILE]...")
@filter_options
@click.option("--each", is_flag=True, help="A line per trial, not per setting.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects instead.")
@options.store_option
@options.out_option
@options.finished_options()
def trials_command(
    sources: tuple[Path, ...], wanted: Wanted, each: bool, as_json: bool, store_path: Path,
    out: Path,
) -> None:  # fmt: skip
    """List finished trials by setting: how many, which seeds, their mean error rate and its file.

    Of the stores, folders of results and .trials.csv files named; else of the store, of OUT and of
    what is published with the program. Every option of `run` that belongs to a setting chooses
    among them, as --rule krum --iterations 500. `export` writes a store's as a table.
    """
    found = finding.gathered(sources, store_path, out, quietly=bool(wanted))
    chosen = finding.chosen(found, wanted)
    places = {one: place for place, one in enumerate(ordered({f.trial.setting for f in chosen}))}
    groups = sorted(finding.groups(chosen), key=lambda g: (places[g.setting], not g.is_current))
    if as_json:
        lines = [line for group in groups for line in _as_json(group, each)]
        click.echo(json.dumps(lines, indent=2))
    elif groups:
        _print(groups, each)
    else:
        click.echo("No finished trial is so." if wanted else "There is no finished trial.")


def _print(groups: Sequence[Group], each: bool) -> None:
    shared, names = labels(group.setting for group in groups)
    every = [one for group in groups for one in group.found]
    machines = Counter(machine(one) for one in every)
    is_current = [group.is_current for group in groups]
    lines: list[dict[str, Any]] = []
    for group, is_todays in zip(groups, is_current):
        told: dict[str, Any] = {**names[group.setting]}
        if not all(is_current):
            told["code"] = "today's" if is_todays else "earlier"
        for some in [[one] for one in group.found] if each else [group.found]:
            line = {**told, **(_of_trial(some[0]) if each else _of_group(some))}
            if len(machines) > 1:
                line["on"] = _told(map(machine, some))
            lines.append({**line, "from": _told(reproduction.name_of(one.file) for one in some)})
    click.echo(f"{shared}\n")
    click.echo(report.rendered(lines, "simple", ".3f"))
    settings = len({group.setting for group in groups})
    summed = f"{counted(settings, 'setting')}, {counted(len(every), 'trial')}"
    if len(machines) > 1:
        where = ", ".join(f"{count:,} on {name}" for name, count in machines.most_common())
        summed += f": {where}"
    else:
        summed += f", on {next(iter(machines))}"
    click.echo(f"\n{summed}.")


def _of_group(some: Sequence[Found]) -> dict[str, Any]:
    errors = [one.trial.result.error_rate for one in some]
    half = report.half_width(errors)
    return {
        "trials": len(some),
        "seeds": report.seeds_told(one.trial.seed for one in some),
        "error": fmean(errors),
        "±": None if math.isnan(half) else half,
    }


def _of_trial(one: Found) -> dict[str, Any]:
    result = one.trial.result
    return {
        "seed": one.trial.seed,
        "error": result.error_rate,
        "lowest": result.lowest_error_rate,
        "s": f"{result.seconds:.1f}",
        "finished": one.trial.finished[:16],
    }


def _told(texts: Iterable[str]) -> str:
    """Different texts in the order in which they come; of many the first and a count."""
    first, *others = dict.fromkeys(texts)
    return f"{first} and {len(others)} more" if len(others) > 1 else ", ".join([first, *others])


def machine(one: Found) -> str:
    """Return in short what a trial was made on: the last name of no library, else the device.

    In `versions` the CPU or the GPU comes last, behind the libraries; before there was either, the
    architecture is the only such name. So it is of each machine that the trial was on.
    """
    named = []
    for place in re.sub(r" \([^)]*\)", "", one.trial.versions).split(TOOK_OVER):
        names = [part for part in place.split(", ") if not _LIBRARY.match(part)]
        named.append(names[-1] if names else one.trial.device)
    return one_line(", then ".join(named))


def _as_json(group: Group, each: bool) -> list[dict[str, Any]]:
    of_setting = {
        "setting": group.setting.as_dict(),
        "key": group.setting.key(),
        "protocol": group.protocol,
        "current": group.is_current,
    }
    if not each:
        numbers = _of_group(group.found)
        told = {
            "trials": numbers["trials"],
            "seeds": [one.trial.seed for one in group.found],
            "mean_error_rate": numbers["error"],
            "half_width": numbers["±"],
            "machines": [*dict.fromkeys(map(machine, group.found))],
            "files": [*dict.fromkeys(str(one.file) for one in group.found)],
        }
        return [{**of_setting, **told}]
    return [
        {
            **of_setting,
            "seed": one.trial.seed,
            **{name: getattr(one.trial.result, name) for name in _RATES},
            **{name: getattr(one.trial, name) for name in ("device", "versions", "finished")},
            "file": str(one.file),
        }
        for one in group.found
    ]
