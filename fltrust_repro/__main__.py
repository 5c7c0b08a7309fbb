"""`python -m fltrust_repro`."""

from fltrust_repro.cli import main

main()
