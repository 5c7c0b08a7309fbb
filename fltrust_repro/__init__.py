"""Local model poisoning attacks to Byzantine-robust federated learning, in Apache MXNet.

A reproduction of Fang, Cao, Jia and Gong (USENIX Security 2020) and a test bench for further
aggregation rules and attacks under the paper's protocol. In a notebook:

>>> import fltrust_repro as fl
>>> import numpy as np
>>> updates = np.arange(40.0).reshape(10, 4) ** 1.5
>>> [round(x, 1) for x in fl.trimmed_mean(updates, beta=2).tolist()]  # an NDArray likewise
[80.6, 86.9, 93.4, 100.1]
>>> fl.rules["krum"](updates, c=2).shape
(4,)
>>> fl.trimmed_mean_attack(updates, c=2, knowledge="full", seed=0).shape
(2, 4)
>>> setting = fl.Setting(dataset="digits", attack="krum", iterations=10)
>>> fl.run_trial(setting, seed=0).iterations
10

Names are loaded when they are first used: MXNet, which takes seconds, with the first that needs it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fltrust_repro.registry import Registry, RegistryModule, registering

if TYPE_CHECKING:  # what a type checker or an editor is told of the names that load late
    from fltrust_repro.aggregation import bulyan, krum, mean, median, rule, rules, trimmed_mean
    from fltrust_repro.attacks import attack
    from fltrust_repro.datasets import Dataset, dataset
    from fltrust_repro.defenses import defense
    from fltrust_repro.doors import Limit
    from fltrust_repro.errors import BadInput
    from fltrust_repro.experiments import load_experiment
    from fltrust_repro.models import model
    from fltrust_repro.plugins import load_plugin
    from fltrust_repro.preaggregations import preaggregation
    from fltrust_repro.settings import Readings, Setting
    from fltrust_repro.sweep import run
    from fltrust_repro.threat import Attack
    from fltrust_repro.training import TrialResult, run_trial

    gaussian_attack: Attack
    krum_attack: Attack
    trimmed_mean_attack: Attack

__version__ = "0.1.0"

_ROOMS = {
    "aggregation": ("bulyan", "krum", "mean", "median", "rule", "rules", "trimmed_mean"),
    "attacks": ("attack",),
    "datasets": ("Dataset", "dataset"),
    "defenses": ("defense",),
    "doors": ("Limit",),
    "errors": ("BadInput",),
    "experiments": ("load_experiment",),
    "models": ("model",),
    "plugins": ("load_plugin",),
    "preaggregations": ("preaggregation",),
    "settings": ("Readings", "Setting"),
    "sweep": ("run",),
    "training": ("TrialResult", "run_trial"),
}
_MODULES = {name: room for room, names in _ROOMS.items() for name in names}
# Attacks as functions of the updates of all workers.
_ATTACKS = {
    "gaussian_attack": "gaussian",
    "krum_attack": "krum",
    "trimmed_mean_attack": "trimmed-mean",
}
# Rooms whose rules and attacks are registered when somebody asks for more than the paper's.
_SINCE_2017 = (
    "robust_means", "similarity", "spectral", "server_rules", "judged_rules", "layerwise",
    "detectors", "oblivious_attacks", "lasting_attacks", "tailored_attacks", "tailored",
    "backdoors", "leverage",
)  # fmt: skip
# Rooms named as what they register: the module is looked into as its registry.
_REGISTRIES = ("attacks", "datasets", "defenses", "models", "preaggregations")
__all__ = sorted([*_MODULES, *_ATTACKS, *_REGISTRIES])


class _Package(ModuleType):
    """Makes a room named as its registry one, when Python has imported it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _REGISTRIES and isinstance(value, ModuleType):
            value.__class__ = RegistryModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _more() -> Sequence[str]:
    with registering(None):  # whoever's code asks, these are ours
        for room in _SINCE_2017:
            with contextlib.suppress(ImportError):  # of a library, which `doctor` names
                importlib.import_module(f"{__name__}.{room}")
    return importlib.import_module(f"{__name__}.plugins").load_installed()


Registry.look_further = staticmethod(_more)


def __getattr__(name: str) -> Any:
    """Return one of `__all__`; MXNet is imported with the first that needs it."""
    if name in _ATTACKS:
        return importlib.import_module(f"{__name__}.attacks").attacks[_ATTACKS[name]]
    if name in _REGISTRIES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
