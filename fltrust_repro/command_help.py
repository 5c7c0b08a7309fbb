"""`--help` of a command: its options in groups, the names that may be given, and examples.

What few people change, the readings of the paper, is told by `--help-all`. A room of the paper is
loaded where an option takes its names: `doctor` shows its help where others do not load.
"""

from __future__ import annotations

import copy
import dataclasses
import textwrap
from importlib import import_module

import click

_ALL = "help of all"
_OWN, _LAST = "Options", "Run and files"
_GROUPS = {  # of options, by the names that functions know them by; others come first
    "What is trained": (
        "dataset", "model", "rule", "rule_names", "pre", "defense", "workers", "compromised",
        "non_iid", "beta", "root_size", "root_bias",
    ),
    "Attack": (
        "attack", "attack_names", "knowledge", "knowledges", "goal", "epsilon", "b",
        "poisoned_fraction", "poisoned_share", "distribution",
    ),
    "Training": ("iterations", "batch_size", "learning_rate", "rounds", "momentum", "selected"),
    "Readings of the paper": ("readings",),
    _LAST: (
        "seeds", "trials", "first_seed", "device", "jobs", "scheduler", "checkpoint_minutes",
        "plugins", "data_dir", "store_path", "out", "name", "picture", "grey", "draw", "as_json",
        "as_html", "as_latex", "help_all", "help",
    ),
}  # fmt: skip
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}
_NAMES = {  # of options that take registered ones: the registry, and the room that has it
    "dataset": ("datasets", "datasets"), "model": ("models", "models"),
    "rule": ("aggregation", "rules"), "rule_names": ("aggregation", "rules"),
    "pre": ("preaggregations", "preaggregations"), "defense": ("defenses", "defenses"),
    "attack": ("attacks", "attacks"), "attack_names": ("attacks", "attacks"),
}  # fmt: skip
_MORE = ("rule", "rule_names", "attack", "attack_names")  # many come when they are asked for
_COLUMN = 26  # where the texts begin

EXAMPLES = {
    "run": (
        "run --dataset digits --rule median --attack trimmed-mean",
        "run --attack krum --knowledge partial --trials 3",
        "run --plugin my_rule.py --rule clipped-mean --attack min-max --json",
    ),
    "reproduce": (
        "reproduce table2a",
        "reproduce table2a --trials 3 --fresh --out mine",
        "reproduce table2b --row krum --column full --trials 1",
    ),
    "sweep": (
        "sweep --vary c --values 5,10,20 --trials 3",
        "sweep --vary learning-rate --values 0.01..1 --rule median --dataset digits",
        "sweep --vary c --vary p --rule krum --draw",
    ),
    "arena": (
        "arena --draw",
        "arena --rule median --trials 3",
        "arena --plugin my_rule.py --rule clipped-mean",
    ),
    "check": ("check my_rule.py", "check --rule krum --attack min-max"),
    "report": ("report", "report --html --out mine"),
    "status": ("status", "status table2a figure2", "status --all"),
    "show": (
        "show table2a krum full --seed 10 --picture a.png",
        "show --dataset digits --rule median",
    ),
    "trials": ("trials --rule krum --attack krum", "trials mine.sqlite --each"),
    "compare": (
        "compare mine.sqlite theirs.sqlite",
        "compare --plugin my_rule.py --rule krum --against rule=clipped-mean",
        "compare --plugin my_rule.py --rule clipped-mean --edit",
    ),
    "export": ("export trials.csv", "export trials.parquet --store other.sqlite"),
    "import": ("import other.sqlite", "import colleague/*.trials.csv"),
    "list": ("list", "list --plugin my_rule.py"),
    "poison": ("poison --picture poisoned.png --seed 3",),
    "data": ("data status", "data fetch mnist fashion-mnist", "data verify mnist"),
    "doctor": ("doctor", "doctor --store trials.sqlite"),
}


def explained(command: click.Command) -> click.Command:
    """Return a command whose help is in groups and has examples."""
    if isinstance(command, click.Group):
        command.epilog = "\n".join(["\b", "Examples:", *EXAMPLES[str(command.name)]])
        return command
    more = [_HELP_ALL] * any(one.name == "readings" for one in command.params)
    return _Explained(command.name, callback=command.callback, help=command.help,
                      params=[*command.params, *more])  # fmt: skip


class _Explained(click.Command):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in groups."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in (_OWN, *_GROUPS)}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and not parameter.hidden:
                group = _GROUP_OF.get(str(parameter.name), _OWN)
                groups[_LAST if "--help" in parameter.opts else group].append(_line(parameter, ctx))
        for name, lines in groups.items():
            if lines:
                with formatter.section(name):
                    for option, text in lines:
                        formatter.write(_wrapped(option, text, formatter.width))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        with formatter.section("Examples"):
            for example in EXAMPLES.get(str(self.name), ()):
                formatter.write(f"  {ctx.find_root().info_name} {example}\n")


def _wrapped(option: str, text: str, width: int) -> str:
    """An option, and its text beside it or below it."""
    room = width - _COLUMN
    lines = [one for part in text.split("\n")
             for one in textwrap.wrap(part, room, break_on_hyphens=False)]  # fmt: skip
    first = f"  {option}"
    if len(first) > _COLUMN - 2:
        lines = ["", *lines]
    return "\n".join(
        [f"{first:{_COLUMN}}{lines[0]}".rstrip(), *(" " * _COLUMN + one for one in lines[1:]), ""]
    )


def _show_all(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


_HELP_ALL = click.Option(
    ["--help-all"], is_flag=True, expose_value=False, is_eager=True, callback=_show_all,
    help="Show this, with the readings of the paper, and exit.",
)  # fmt: skip


def _line(option: click.Option, ctx: click.Context) -> tuple[str, str]:
    """An option and what it is, with the names that it takes."""
    told, text = copy.copy(option), str(option.help)
    if option.name in _NAMES:
        room, registry = _NAMES[option.name]
        entries = getattr(import_module(f"fltrust_repro.{room}"), registry)
        names, more = ", ".join(entries.at_hand()), option.name in _MORE
        told.help = f"{text.rstrip('.')}: {names}{'; `list` has more' * more}."
    if option.name == "iterations":
        from fltrust_repro.models import models

        own = ", ".join(f"{name} {models[name].iterations:,}" for name in models.at_hand())
        told.help = f"{text.rstrip('.')}: {own}."
    if option.name == "readings":
        from fltrust_repro.settings import Readings

        every = map(_reading, dataclasses.fields(Readings)) if _ALL in ctx.meta else ()
        told.help = "\n".join([text, *every]) if every else f"{text} --help-all names them."
    return told.get_help_record(ctx) or ("", "")


def _reading(field: dataclasses.Field) -> str:
    """A reading's values, the default first, and what it is."""
    text, choices = field.metadata["help"], "|".join(field.metadata["choices"])
    return f"{field.name}={choices}" + f": {text}" * bool(text)
