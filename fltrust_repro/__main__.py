"""`python -m fltrust_repro`: the commands, and what a program promises to its shell.

It ends quietly when interrupted, whenever that is; it does its work to the end though nobody reads
its output any more; and its exit code does not lie. A command's module is loaded when the command
is typed, so that help comes at once, and `doctor` works on machines where others do not load.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn, TextIO

import click

from fltrust_repro.command_help import explained
from fltrust_repro.errors import BadInput, choose, one_line, shown

_INTERRUPTED = 130
_SOON = 0.005  # seconds
_LONGEST_SENTENCE = 2000  # characters; an error may quote a name from a file

_COMMANDS = {  # the module of each, and its line of help
    "run": ("trial_commands", "Run trials of one setting."),
    "reproduce": ("trial_commands", "Run tables and figures of the paper, or your own .toml."),
    "sweep": ("trial_commands", "Run a figure: error rates as one parameter varies."),
    "arena": ("arena_commands", "Rank rules by their error under the worst attack."),
    "check": ("check_commands", "Try your plug-in: what it breaks and what it keeps."),
    "report": ("store_commands", "Set every number that the paper prints beside ours."),
    "status": ("status_command", "Say what is done and what is missing."),
    "show": ("store_commands", "Print one trial's error curve."),
    "trials": ("trials_command", "List finished trials by setting."),
    "compare": ("compare_command", "Compare trials setting by setting."),
    "export": ("store_commands", "Write finished trials as one table."),
    "import": ("store_commands", "Take over the finished trials of other stores."),
    "list": ("list_command", "List rules, attacks, models, data sets and experiments."),
    "poison": ("trial_commands", "Make the back-gradient attack's poisoned examples."),
    "data": ("doctor", "Look for, download and check the data sets."),
    "doctor": ("doctor", "Say what is installed and at hand, and what is wrong."),
}
_HELP_ASKED: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())  # since click 8.2
_RESUMED = "Finished trials are kept: the same command goes on."
_STOPPED = {  # what an interrupt leaves, by command
    **dict.fromkeys(("run", "reproduce", "sweep", "arena"), _RESUMED),
    "import": "Files that were read to their end are taken over.",
    "poison": "The examples are kept only when all are made: the same command begins anew.",
    "data": "Files that were whole are kept.",
}


def _load(name: str) -> click.Command | None:
    if name not in _COMMANDS:
        return None
    there = vars(import_module(f"fltrust_repro.{_COMMANDS[name][0]}")).values()
    return explained(next(c for c in there if isinstance(c, click.Command) and c.name == name))


class _Commands(click.Group):
    """Loads what is typed, and tells what is wrong with it in a sentence."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        name = arguments[0]
        if name not in _COMMANDS and not (context.resilient_parsing or name.startswith("-")):
            raise BadInput(f"unknown command {shown(name)}; {choose(name, _COMMANDS)}")
        return super().resolve_command(context, arguments)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        return _load(name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in _COMMANDS.items()])

    def invoke(self, context: click.Context) -> Any:
        try:
            with context.obj or contextlib.nullcontext():
                return super().invoke(context)
        except KeyboardInterrupt:
            kept = _STOPPED.get(str(context.invoked_subcommand), "")
            click.echo(f"\nStopped. {kept}".rstrip(" "), err=True)
            context.exit(_INTERRUPTED)

    def main(self, *arguments: Any, **given: Any) -> NoReturn:
        run: Any = super().main
        with _in_a_sentence():
            sys.exit(run(*arguments, **given, standalone_mode=False) or 0)


@contextlib.contextmanager
def _in_a_sentence() -> Iterator[None]:
    """End the program, exit code 2, with a sentence on what the user can mend."""
    try:
        yield
    except _HELP_ASKED as error:
        error.show()
    except BadInput as error:
        click.echo(f"Error: {_sentence(str(error))}", err=True)
    except click.UsageError as error:
        said = _sentence(error.format_message()).rstrip(".")
        end = "" if said.endswith(("?", "?)")) else "."
        more = f" `{error.ctx.command_path} --help` tells what it takes." if error.ctx else ""
        click.echo(f"Error: {said[:1].lower()}{said[1:]}{end}{more}", err=True)
    else:
        return
    sys.exit(2)


def _sentence(text: str) -> str:
    return one_line(" ".join(text.split())[:_LONGEST_SENTENCE])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="To begin: list; run --dataset digits; reproduce table2a. COMMAND --help has more.",
)
@click.version_option(package_name="fltrust_repro")
def commands() -> None:
    """Attacks on, and defenses of, Byzantine-robust federated learning (Fang et al., 2020)."""


# ---- the shell ----------------------------------------------------------------------------------


class _Output(io.FileIO):
    """A standard stream that may end early: what comes after is dropped, and why is kept."""

    fault: OSError | None = None

    def write(self, content: Any) -> int:
        if self.fault is None:
            try:
                return super().write(content)
            except OSError as error:
                self.fault = error
        return len(content)


def _opened(descriptor: int, before: TextIO | None) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Output(descriptor, "w", closefd=False))
    encoding = before.encoding if before else None
    return io.TextIOWrapper(buffer, encoding, errors="backslashreplace", line_buffering=True)


def _open_outputs() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed; the next file opened, a store perhaps, would take its place
            os.open(os.devnull, os.O_RDWR)
    closed = sys.stdout is None
    sys.stdout, sys.stderr = _opened(1, sys.stdout), _opened(2, sys.stderr)
    if closed:
        raise BadInput("standard output is closed; send it to a file, or to /dev/null.")


def _on_signals(action: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a script's `&`
            signal.signal(number, action)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(_INTERRUPTED)  # while modules load; an exception would come out of whichever it is


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    _on_signals(signal.SIG_IGN)  # the first is being obeyed
    sys.unraisablehook = _once_more
    raise KeyboardInterrupt


def _once_more(dropped: Any) -> None:
    """Interrupt again, soon: Python drops what is raised in a finalizer, as MXNet's arrays have.

    Of other errors there nothing is said any more: they are of what the interrupt left half made.
    """
    if dropped.exc_type is KeyboardInterrupt:
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, _SOON)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let signals stop the command, which says so; before and behind it nobody would."""
    _on_signals(_stop)
    try:
        yield
    finally:
        _on_signals(signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)  # the one that was to come once more


def main() -> NoReturn:
    """Run the command that was typed, and end the program with its exit code."""
    _on_signals(_leave)
    code: Any = 0
    try:
        with _in_a_sentence():
            _open_outputs()
            for name in sys.argv[1:2]:
                _load(name)
        commands(obj=_interruptible())
    except SystemExit as end:
        code = end.code
    _on_signals(signal.SIG_IGN)
    output: Any = sys.stdout.buffer
    fault = output.raw.fault
    # A reader that goes early, as `head` does, has seen enough; a full disk has not.
    if fault and fault.errno != errno.EPIPE:
        print(f"Error: standard output could not be written ({fault.strerror}).", file=sys.stderr)
        code = code or 1
    if code == _INTERRUPTED:
        # Python would kill itself by SIGINT where the interrupt, though caught, passed through an
        # exec(), such as modules call while they load.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
