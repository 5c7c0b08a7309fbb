"""Commands in the tests' own process, where no worker process or exit code of one is the point."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from fltrust_repro.__main__ import commands


def told_by(*arguments: str) -> str:
    """What a command that goes well writes to standard output."""
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def ended(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code of a command, and what it writes to standard output and standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        commands.main([str(word) for word in words], prog_name="fltrust_repro")
    return stop.value.code, *capsys.readouterr()
