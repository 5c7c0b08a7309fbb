"""Settings in short: enough to type them again, and no more."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fltrust_repro import experiments
from fltrust_repro.errors import BadInput
from fltrust_repro.experiments import load_experiment
from fltrust_repro.labels import changed, labels, ordered, told
from fltrust_repro.settings import Setting

PLAIN = Setting()
NAMES = ("table2a", "table2e", "table5", "table6", "table8", "figure3", "figure4a", "readings")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_of_a_setting_makes_it_again(name):
    for setting in load_experiment(name).settings:
        own = {n: getattr(setting, n) for n in ("pre", "rule", "attack", "knowledge")}
        assert Setting.from_dict({**own, **told(setting)}) == setting


def test_what_follows_from_another_field_is_not_told():
    assert told(PLAIN) == {}
    assert told(Setting(workers=50, compromised=10)) == {"workers": 50, "compromised": 10}
    assert told(Setting(compromised=10, beta=12)) == {"compromised": 10, "beta": 12}
    assert told(Setting(model="cnn")) == {"model": "cnn"}


@pytest.mark.parametrize("name", NAMES)
def test_no_two_settings_have_the_same_label(name):
    settings = load_experiment(name).settings
    _, found = labels(settings)
    assert list(found) == ordered(settings)
    assert len({tuple(label.items()) for label in found.values()}) == len(set(settings))
    assert len({tuple(label) for label in found.values()}) == 1


def test_what_all_have_is_told_once_and_what_differs_in_a_column():
    shared, found = labels(replace(PLAIN, non_iid=p) for p in (0.1, 0.5))
    assert shared == "rule krum, attack none, dataset mnist, model lr"
    assert [*found.values()] == [{"setting": "non-iid 0.1"}, {"setting": ""}]
    attacked = [Setting(dataset="digits", attack="krum", knowledge=k) for k in ("full", "partial")]
    shared, found = labels(attacked)
    assert shared == "rule krum, dataset digits, model lr"
    assert [*found.values()] == [{"attack": "krum, full"}, {"attack": "krum, partial"}]
    assert labels([PLAIN]) == ("rule krum, attack none, dataset mnist, model lr", {PLAIN: {}})


def test_fields_can_be_left_out():
    shared, found = labels([PLAIN, Setting(attack="krum")], without=("rule",))
    assert shared == "dataset mnist, model lr"
    assert [*found.values()] == [{"attack": "none"}, {"attack": "krum, full"}]


def test_the_order_is_that_of_list_whatever_comes_first():
    settings = load_experiment("table2a").settings
    mixed = random.Random(0).sample(settings, len(settings))
    assert ordered(mixed) == ordered(settings)
    assert [one.rule for one in ordered(mixed)][::5] == ["krum", "trimmed-mean", "median"]
    assert ordered(mixed)[0].attack == "none"


def test_a_changed_setting_takes_along_what_was_left_to_its_default():
    assert changed(PLAIN, {"compromised": 10}) == Setting(compromised=10)
    assert changed(PLAIN, {"attack": "krum"}) == Setting(attack="krum")
    assert changed(Setting(attack="krum"), {"attack": "none"}) == PLAIN
    assert changed(Setting(beta=30), {"compromised": 10}).beta == 30
    assert changed(PLAIN, {"dataset": "digits"}) == Setting(dataset="digits")
    with pytest.raises(BadInput, match="compromised is 60"):
        changed(PLAIN, {"compromised": 60})


def test_labels_of_all_experiments_are_quick_enough_for_a_list():
    every = {s for one in experiments.readable() for s in one.settings}
    assert len(labels(every)[1]) == len(every)
