"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fltrust_repro.backend import check_device, resolve_device
from fltrust_repro.downloads import search_path
from fltrust_repro.errors import BadInput, shown
from fltrust_repro.files import path_of
from fltrust_repro.plugins import load_plugin
from fltrust_repro.processes import Machine, check_address
from fltrust_repro.records import LAST_SEED
from fltrust_repro.settings import CHOICES, Setting

LONG_HOURS = 1.0
MOST_TRIALS = 10_000  # per setting
MOST_JOBS = 1_000


def count(text: str, least: int, most: int) -> Callable:
    """Return a callback that refuses a number outside [least, most], before anything runs."""

    def check(
        _context: click.Context, _parameter: click.Parameter, value: int | None
    ) -> int | None:
        if value is not None and not least <= value <= most:
            raise BadInput(
                f"{text} is {shown(value)}; it must be at least {least} and at most {most:,}."
            )
        return value

    return check


class PathType(click.ParamType):
    """A path that the system can look for, with ~ replaced; `file` where it must be no folder."""

    name = "path"

    def __init__(self, file: bool = False) -> None:
        self._file = file

    def convert(
        self, value: str | Path, parameter: click.Parameter | None, context: click.Context | None
    ) -> Path:
        """Return the path, or end with a sentence that names the option."""
        try:
            path = path_of(value)
        except BadInput as error:
            self.fail(str(error), parameter, context)
        if self._file and (path.is_dir() or str(value).endswith("/")):
            self.fail(f"{shown(str(value))} is a folder; name a file.", parameter, context)
        return path


PATH, FILE = PathType(), PathType(file=True)


def seed_range(first: int, trials: int) -> range:
    """Return the seeds of N trials, S to S + N - 1."""
    if first + trials - 1 > LAST_SEED:
        raise BadInput(
            f"--seed is {first} and --trials {trials}; the last seed must be at most {LAST_SEED}."
        )
    return range(first, first + trials)


def _loaded(
    _context: click.Context, _parameter: click.Parameter, paths: tuple[Path, ...]
) -> tuple[Path, ...]:
    for path in paths:
        load_plugin(path)
    return paths


store_option = click.option(
    "--store", "store_path", default="trials.sqlite", show_default=True,
    type=FILE, help="File of finished trials.",
)  # fmt: skip
plugin_option = click.option(
    "--plugin", "plugins", multiple=True, type=PATH, callback=_loaded,
    help="Python file with a rule, attack, model or data set of yours; may be repeated.",
)  # fmt: skip


def trial_options(default: int) -> Callable:
    """Give a command the options of which trials run, where, and where they are kept.

    The command gets them as `seeds`, a range, `machine`, a `Machine`, and `store_path`.
    """
    options = [
        trials_option(default),
        click.option("--seed", "first_seed", default=0, show_default=True, metavar="S",
                     callback=count("--seed", 0, LAST_SEED), help="Trials have seeds S, S+1, ..."),
        click.option("--device", default="auto", show_default=True, metavar="cpu|gpu|auto",
                     help="Where to compute; auto takes a GPU if MXNet sees one."),
        click.option("--jobs", type=int, callback=count("--jobs", 0, MOST_JOBS),
                     help="Worker processes, 0 for none; default one per core, on GPUs what fits."),
        click.option("--data-dir", type=PATH, help="Where data sets are looked for first."),
        store_option,
        click.option("--scheduler", metavar="ADDRESS",
                     help="Run on the workers of this Dask scheduler, tcp://host:8786."),
        plugin_option,
    ]  # fmt: skip

    def add(command: Callable) -> Callable:
        @functools.wraps(command)
        def gathered(
            *,
            trials: int,
            first_seed: int,
            device: str,
            jobs: int | None,
            data_dir: Path | None,
            scheduler: str | None,
            plugins: tuple[Path, ...],
            **others: Any,
        ) -> None:
            check_device(device)
            if scheduler is None:  # now and not after what else takes time
                search_path(data_dir)
            else:
                check_address(scheduler)
            if device == "gpu" and scheduler is None:
                resolve_device(device)
            machine = Machine(device, jobs, data_dir, scheduler)
            command(seeds=seed_range(first_seed, trials), machine=machine, **others)

        return functools.reduce(lambda given, option: option(given), reversed(options), gathered)

    return add


def setting_options(*without: str) -> Callable:
    """Give a command one option per field of `Setting` but those named."""

    def add(command: Callable) -> Callable:
        for field in reversed(dataclasses.fields(Setting)):
            if field.name not in without:
                command = _option_of(field)(command)
        return command

    return add


def _option_of(field: dataclasses.Field) -> Callable:
    return click.option(
        "--" + field.name.replace("_", "-"),
        field.name,
        type={"int": int, "float": float, "str": str}[field.type.split(" ")[0]],
        default=field.default,
        show_default=field.default is not None,
        metavar="|".join(CHOICES[field.name]) if field.name in CHOICES else None,
        help=field.metadata["help"],
    )


def trials_option(default: int) -> Callable:
    """Give a command `--trials`."""
    return click.option(
        "--trials",
        default=default,
        show_default=True,
        callback=count("--trials", 1, MOST_TRIALS),
        help="Trials (seeds) per setting; the paper has 50.",
    )


def out_option(command: Callable) -> Callable:
    """Give a command `--out`."""
    return click.option(
        "--out",
        type=PATH,
        default="experiments/results",
        show_default=True,
        help="Folder for CSV, Markdown and pictures.",
    )(command)


def announcer(trials: int) -> Callable[[float], None]:
    """Return a function that warns of a run that takes hours, and says how to shorten it."""

    def announce(hours: float) -> None:
        if hours < LONG_HOURS:
            return
        click.echo(
            f"This will take about {hours:.1f} hours on this machine. Smaller: --trials 1 takes "
            f"about {hours / trials:.1f} hours. It can be stopped at any time (Ctrl-C); the same "
            "command goes on.",
            err=True,
        )

    return announce
