"""Every rule since 2017, and every step before a rule, under every attack: a table of trials."""

import numpy as np
import pytest

import fltrust_repro as fl
from fltrust_repro.attacks import attacks
from fltrust_repro.preaggregations import preaggregations
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial

SMALL = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 30, "root_size": 50}
OWN = {"fldetector": ":start=5,window=4"}  # so that 30 iterations are enough for it
COUNTED = {
    "attacked iterations", "direction agreement", "compared with the mean",
    "attack success rate", "scale lowered",
}  # fmt: skip


def since_2017():
    rooms = {f"fltrust_repro.{room}" for room in fl._SINCE_2017}
    found = [name for name in fl.rules if fl.rules[name].function.__module__ in rooms]
    return [name + OWN.get(name, "") for name in sorted(found)]


RULES = [*since_2017(), *(f"{step}+trimmed-mean" for step in sorted(preaggregations))]


def test_the_table_has_every_rule():
    assert len(RULES) >= 26


@pytest.mark.long
@pytest.mark.parametrize("attack", sorted(attacks))
@pytest.mark.parametrize("name", RULES)
def test_a_trial_ends_with_numbers_and_tells_what_the_rule_did(name, attack):
    pre, _, rule = name.rpartition("+")
    found = run_trial(Setting(**SMALL, pre=pre, rule=rule, attack=attack), 1)
    assert 0 <= found.lowest_error_rate <= found.error_rate <= 1
    assert np.isfinite([error for _, error, _ in found.curve]).all()
    assert found.iterations == 30
    assert not found.diverged
    told = {key for key, count in found.notes.items() if count > 0} - COUNTED
    assert told or (rule == "rlr" and attack == "none")
    assert np.isfinite(list(found.notes.values())).all()
