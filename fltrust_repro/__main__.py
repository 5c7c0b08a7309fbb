"""`python -m fltrust_repro`: the commands of `cli`, and `doctor` by itself.

`doctor` is there for machines on which the other commands do not even load.
"""

import sys

from fltrust_repro.errors import BadInput


def main() -> None:
    """Run the command that was typed."""
    if sys.argv[1:2] == ["doctor"]:
        from fltrust_repro.doctor import doctor

        doctor(sys.argv[2:], prog_name="python -m fltrust_repro doctor")
    try:
        from fltrust_repro.cli import main as commands
    except BadInput as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    commands()


main()
