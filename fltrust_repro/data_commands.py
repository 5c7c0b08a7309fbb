"""The commands `data status | fetch | verify`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fltrust_repro import datasets
from fltrust_repro.errors import BadInput
from fltrust_repro.options import PATH


@click.group()
def data() -> None:
    """Look for, download and check the data sets."""


_data_dir = click.option("--data-dir", type=PATH, help="Looked in first.")


def _names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        datasets.datasets[name]
    return names or tuple(datasets.datasets)


@data.command("status")
@_data_dir
def data_status(data_dir: Path | None) -> None:
    """Say which data sets are at hand, and where."""
    for row in datasets.status(data_dir):
        click.echo(f"{row.name:14} {row.where or 'not at hand':40} {row.source}")


@data.command("fetch")
@click.argument("names", nargs=-1, metavar="[DATASET]...")
@_data_dir
def data_fetch(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Download what is not at hand, all data sets by default; exit code 1 if one is missing."""
    _each(_names(names), lambda name: datasets.fetch(name, data_dir), "here")


@data.command("verify")
@click.argument("names", nargs=-1, metavar="[DATASET]...")
@_data_dir
def data_verify(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Check the files of data sets, all by default; exit code 1 if one is wrong or missing."""
    _each(_names(names), lambda name: datasets.verify(name, data_dir), "verified")


def _each(names: tuple[str, ...], action: Callable[[str], Any], word: str) -> None:
    failed = False
    for name in names:
        try:
            action(name)
            click.echo(f"{name}: {word}")
        except BadInput as error:
            failed = True
            click.echo(f"{name}: {error}", err=True)
    if failed:
        sys.exit(1)
