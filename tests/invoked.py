"""Commands in the tests' own process, where no worker process or exit code of one is the point."""

from __future__ import annotations

from click.testing import CliRunner

from fltrust_repro.__main__ import commands


def told_by(*arguments: str) -> str:
    """What a command that goes well writes to standard output."""
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout
