"""Looking at a user's rules, attacks, ...: what each breaks and what it keeps, a line each.

In a test of one's own, after `from fltrust_repro.checking import check`:

    for name, findings in check("my_rule.py").items():
        assert all(finding.level != "fails" for finding in findings), name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fltrust_repro import backend
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.datasets import datasets
from fltrust_repro.defenses import defenses
from fltrust_repro.errors import BadInput
from fltrust_repro.files import path_of
from fltrust_repro.models import models
from fltrust_repro.party_checks import check_attack, check_defense
from fltrust_repro.plugins import load_plugin, plugins_for
from fltrust_repro.preaggregations import preaggregations
from fltrust_repro.probes import Entry, Finding, Findings
from fltrust_repro.registry import Registry
from fltrust_repro.rule_checks import check_preaggregation, check_rule
from fltrust_repro.training_checks import check_dataset, check_model

KINDS: Mapping[str, tuple[Registry, Callable[[Entry], Findings]]] = {
    "rule": (rules, check_rule),
    "pre-aggregation": (preaggregations, check_preaggregation),
    "attack": (attacks, check_attack),
    "defense": (defenses, check_defense),
    "model": (models, check_model),
    "data set": (datasets, check_dataset),
}


def check(path: str | Path, data_dir: str | Path | None = None) -> dict[str, list[Finding]]:
    """Return what was found of each entry of a plug-in, by its kind and name: "rule 'mine'".

    Data sets are looked for in `data_dir` first. Raises `BadInput` where the file does not load, or
    registers nothing.
    """
    folder = None if data_dir is None else path_of(data_dir)
    return {f"{kind} {name!r}": checked(kind, name, folder) for kind, name in entries_of(path)}


def entries_of(path: str | Path) -> list[tuple[str, str]]:
    """Load a plug-in; return kind and name of what it registers. `BadInput` where that is none."""
    module = load_plugin(path).__name__
    found = []
    for kind, (registry, _) in KINDS.items():
        owners = {name: getattr(registry.owner(name), "plugin", None) for name in registry}
        found += [(kind, name) for name, of in owners.items() if of and of.module == module]
    if not found:
        raise BadInput(f"plug-in {str(path)!r} registers nothing; decorate a function of it.")
    return found


@backend.one_thread()
def checked(kind: str, name: str, data_dir: Path | None = None) -> list[Finding]:
    """Return what was found of one entry of a kind; `BadInput` where there is no such entry."""
    registry, look = KINDS[kind]
    registry[name]  # or it is unknown
    return [*look(Entry(registry, name, plugins_for({registry.owner(name)}), data_dir))]
