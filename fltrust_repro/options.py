"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fltrust_repro.backend import resolve_device
from fltrust_repro.datasets import datasets, read_digests
from fltrust_repro.doors import LAST_SEED
from fltrust_repro.downloads import search_path
from fltrust_repro.errors import BadInput, choose, shown
from fltrust_repro.files import path_of
from fltrust_repro.plugins import load_plugin
from fltrust_repro.processes import MOST_JOBS, MOST_MINUTES, Machine
from fltrust_repro.settings import Readings, Setting
from fltrust_repro.trials import MOST_TRIALS
from fltrust_repro.words import lasting

LONG_SECONDS = 3600.0


def count(text: str, least: int, most: int) -> Callable:
    """Return a callback that refuses a number outside [least, most], before anything runs."""

    def check(_context: Any, _parameter: Any, value: int | None) -> int | None:
        if value is not None and not least <= value <= most:
            allowed = f"at least {least} and at most {most:,}"
            raise BadInput(f"{text} is {shown(value)}; it must be {allowed}.")
        return value

    return check


class PathType(click.ParamType):
    """A path that the system can look for, with ~ replaced; `file` where it must be no folder."""

    name = "path"

    def __init__(self, file: bool = False) -> None:
        self._file = file

    def convert(self, value: str | Path, parameter: Any, context: Any) -> Path:
        """Return the path, or end with a sentence that names the option."""
        try:
            path = path_of(value)
        except BadInput as error:
            self.fail(str(error), parameter, context)
        if self._file and (path.is_dir() or str(value).endswith("/")):
            self.fail(f"{shown(str(value))} is a folder; name a file.", parameter, context)
        return path


PATH, FILE = PathType(), PathType(file=True)


def _kept(_context: click.Context, _parameter: click.Parameter, path: Path) -> Path:
    if str(path) == ":memory:":
        raise BadInput("--store is ':memory:', which is lost as the command ends; give it a file.")
    return path


store_option = click.option(
    "--store", "store_path", default="trials.sqlite", show_default=True,
    type=FILE, callback=_kept, help="File of finished trials.",
)  # fmt: skip
out_option = click.option(
    "--out", type=PATH, default="results", show_default=True,
    help="Folder for CSV, Markdown and pictures.",
)  # fmt: skip


grey_option = click.option("--grey", is_flag=True, help="Draw pictures in greys, for print.")


def _gathering(gather: Callable[..., dict[str, Any]], *options: Callable) -> Callable:
    """Give a command options, and what `gather` makes of them."""

    def add(command: Callable) -> Callable:
        @functools.wraps(command)
        def gathered(**given: Any) -> None:
            command(**gather(**given))

        return functools.reduce(lambda made, option: option(made), reversed(options), gathered)

    return add


def _loaded(_context: Any, _parameter: Any, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    for path in paths:
        load_plugin(path)
    return paths


plugin_option = _gathering(
    lambda plugins, **given: given,  # they are loaded
    click.option("--plugin", "plugins", multiple=True, type=PATH, callback=_loaded,
                 help="Your Python file of rules, attacks, ...; repeatable."),
)  # fmt: skip
data_dir_option = click.option(
    "--data-dir", type=PATH, help="Where data sets are looked for first."
)


def finished_options() -> Callable:
    """Give a command what tells finished trials of a user's own code: where it and its data lie."""

    def gather(data_dir: Path | None, **given: Any) -> dict[str, Any]:
        if data_dir is not None:
            search_path(data_dir)
            read_digests(datasets, data_dir)
        return given

    return lambda command: _gathering(gather, data_dir_option)(plugin_option(command))


def seed_option(default: int, told: str = "Trials have seeds S, S+1, ...") -> Callable:
    """Give a command `--seed`, as `first_seed`."""
    check = count("--seed", 0, LAST_SEED)
    return click.option("--seed", "first_seed", default=default, show_default=True, metavar="S",
                        callback=check, help=told)  # fmt: skip


def typed(context: click.Context) -> list[tuple[str, str]]:
    """Return the name and the option, as --rule, of what stands on the command line."""
    return [
        (str(parameter.name), parameter.opts[0])
        for parameter in context.command.params
        if context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]


def seeds_option(trials: int, first_seed: int) -> Callable:
    """Give a command `--trials` and `--seed`, as `seeds`, a range."""

    def gather(trials: int, first_seed: int, **given: Any) -> dict[str, Any]:
        if first_seed + trials - 1 > LAST_SEED:
            wrong = f"--seed is {first_seed} and --trials {trials}"
            raise BadInput(f"{wrong}; the last seed must be at most {LAST_SEED}.")
        return {**given, "seeds": range(first_seed, first_seed + trials)}

    return _gathering(
        gather,
        click.option("--trials", default=trials, show_default=True, metavar="N",
                     callback=count("--trials", 1, MOST_TRIALS),
                     help="Seeds per setting; the paper has 50."),
        seed_option(first_seed),
    )  # fmt: skip


def trial_options(trials: int, first_seed: int) -> Callable:
    """Give a command the options of which trials run, where, and where they are kept.

    The command gets them as `seeds`, a range, `machine`, a `Machine`, and `store_path`.
    """
    which, where = seeds_option(trials, first_seed), place_options()
    return lambda command: which(where(command))


def place_options() -> Callable:
    """Give a command the options of where trials run, as `machine`, and `store_path`."""

    def gather(
        device: str, jobs: int | None, data_dir: Path | None, scheduler: str | None,
        checkpoint_minutes: float, **given: Any,
    ) -> dict[str, Any]:  # fmt: skip
        machine = Machine(device, jobs, data_dir, scheduler, checkpoint_minutes)
        if scheduler is None:  # checked now and not after what else takes time
            search_path(data_dir)
            if device == "gpu":
                resolve_device(device)
        return {**given, "machine": machine}

    return _gathering(
        gather,
        click.option("--device", default="auto", show_default=True, metavar="cpu|gpu|auto",
                     help="auto takes a GPU if MXNet sees one."),
        click.option("--jobs", type=int, metavar="N", callback=count("--jobs", 0, MOST_JOBS),
                     help="Processes; default one per core; 0: this one."),
        data_dir_option,
        store_option,
        click.option("--scheduler", metavar="ADDRESS",
                     help="Run on this Dask scheduler, tcp://host:8786."),
        click.option("--checkpoint-minutes", default=5.0, show_default=True, metavar="X",
                     callback=count("--checkpoint-minutes", 0, MOST_MINUTES),
                     help="Between checkpoints of a running trial; 0: none."),
        plugin_option,
    )  # fmt: skip


def setting_options(*without: str) -> Callable:
    """Give a command an option per field of `Setting` but those named, and `--reading`.

    The command gets fields and readings alike by name, as `Setting.from_dict` takes them.
    """
    own = [field for field in dataclasses.fields(Setting) if field.name not in without]

    def gather(readings: tuple[str, ...], **given: Any) -> dict[str, Any]:
        told = list(map(reading, readings))
        for name in dict(told):
            _only([value for one, value in told if one == name], f"--reading {name}")
        return {**given, **dict(told)}

    return _gathering(gather, *map(_option_of, own))


_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "N"), "float": (float, "X"), "str": (str, "NAME")
}  # fmt: skip


def kind_of(field: dataclasses.Field) -> tuple[Callable[[str], Any], str]:
    """Return what reads a field of a setting as it is typed, and what stands for it in the help."""
    return _KINDS[field.type.split(" ")[0]]


def _option_of(field: dataclasses.Field) -> Callable:
    if field.name == "readings":
        return click.option("--reading", "readings", multiple=True, metavar="NAME=VALUE",
                            help="What the paper leaves open; repeatable.")  # fmt: skip
    if field.name == "pre":
        return click.option("--pre", multiple=True, metavar="NAME", help=field.metadata["help"],
                            callback=lambda context, option, names: "+".join(names))  # fmt: skip
    kind, metavar = kind_of(field)
    first, *others = field.metadata["choices"] or (None,)
    choices = ", ".join([f"{first} (default)", *others]) if others else ""
    # Several names might all be meant, as `sweep` has it; of numbers the last one counts.
    how = once(field.default) if kind is str else {"default": field.default}
    return click.option(
        "--" + field.name.replace("_", "-"), field.name, type=kind, metavar=metavar,
        show_default=field.default is not None and not choices, **how,
        help=field.metadata["help"] + f": {choices}." * bool(choices),
    )  # fmt: skip


def once(default: Any) -> dict[str, Any]:
    """What makes an option of a command refuse to be given twice."""
    return {
        "multiple": True,
        "default": () if default is None else (default,),
        "callback": lambda _context, option, values: _only(values, option.opts[0]),
    }


def _only(values: Sequence[Any], option: str) -> Any:
    """The one value that is given for an option, None for none; `BadInput` for several."""
    if len(values) > 1:
        given = ", ".join(map(str, values))
        raise BadInput(f"{option} is given {len(values)} times ({given}); give it once.")
    return values[0] if values else None


def reading(text: str) -> tuple[str, str]:
    """Return a reading of the paper and the value that a text NAME=VALUE names."""
    fields = dataclasses.fields(Readings)
    known = {field.name: " or ".join(field.metadata["choices"]) for field in fields}
    name, value = assigned("--reading", text, "NAME", known)
    Readings(**{name: value})  # which checks it
    return name, value


def assigned(option: str, text: str, what: str, known: Mapping[str, str]) -> tuple[str, str]:
    """Return the name and the value of a text NAME=VALUE; `known` are names, and their values."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in known:
        wrong = f"{option} is {shown(text)}, not {what}=VALUE with a {what} that there is"
        raise BadInput(f"{wrong}; {choose(name, known)}")
    if not equals:
        wrong = f"{option} is {shown(text)}, without a value"
        raise BadInput(f"{wrong}; give {name}={known[name]}.")
    return name, value


def announce(seconds: float, first: float) -> None:
    """Warn of a run that takes hours, and say how long the first seed's trials take alone."""
    if seconds < LONG_SECONDS:
        return
    shorter = 0 < first < seconds
    smaller = f" Smaller: --trials 1 takes about {lasting(first)}." if shorter else ""
    click.echo(
        f"This will take about {lasting(seconds)} on this machine.{smaller} "
        "It can be stopped at any time (Ctrl-C); the same command goes on.",
        err=True,
    )
