"""`python -m fltrust_repro`: the commands of `cli`, and `doctor` by itself.

`doctor` is there for machines on which the other commands do not even load. What a program
promises to its shell is kept here: it ends quietly when interrupted, whenever that is; it does
its work to the end though nobody reads its output any more; and its exit code does not lie.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
from types import FrameType
from typing import NoReturn, TextIO

from fltrust_repro.errors import BadInput

_INTERRUPTED = 130


class _Output(io.FileIO):
    """A standard stream that may end early: what comes after is dropped, and why is kept."""

    fault: OSError | None = None

    def write(self, content: bytes) -> int:
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


def _on_signals(action: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a script's `&`
            signal.signal(number, action)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(_INTERRUPTED)  # while modules load; an exception would come out of whichever it is


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    _on_signals(signal.SIG_IGN)  # the first is being obeyed
    raise KeyboardInterrupt


def _run() -> None:
    if sys.argv[1:2] == ["doctor"]:
        from fltrust_repro.doctor import doctor

        _on_signals(_stop)
        doctor(sys.argv[2:], prog_name="python -m fltrust_repro doctor")
    from fltrust_repro.cli import main as commands

    _on_signals(_stop)
    commands()


def main() -> NoReturn:
    """Run the command that was typed, and end the program with its exit code."""
    _on_signals(_leave)
    code = 0
    try:
        _open_outputs()
        _run()
    except BadInput as error:
        print(f"Error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except SystemExit as end:
        code = end.code
    _on_signals(signal.SIG_IGN)
    fault = sys.stdout.buffer.raw.fault
    # A reader that goes early, as `head` does, has seen enough; a full disk has not.
    if fault and fault.errno != errno.EPIPE:
        problem = f"standard output could not be written ({fault.strerror})"
        print(f"Error: {problem}.", file=sys.stderr)
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
