"""Settings: the paper's defaults, and one clear sentence for every wrong value."""

import dataclasses
import re
import subprocess
import sys

import pytest

from fltrust_repro.errors import BadInput
from fltrust_repro.settings import CHOICES, Setting


def test_defaults_are_table_1_and_section_4_1():
    setting = Setting()
    assert (setting.workers, setting.compromised) == (100, 20)
    assert (setting.non_iid, setting.epsilon, setting.beta, setting.b) == (0.5, 0.01, 20, 2.0)
    assert (setting.iterations, setting.batch_size, setting.rounds) == (500, 32, 1)
    assert (setting.dataset, setting.model, setting.knowledge) == ("mnist", "lr", None)


@pytest.mark.parametrize(
    ("fields", "iterations", "batch_size"),
    [
        ({"model": "lr"}, 500, 32),
        ({"model": "cnn"}, 2000, 32),
        ({"model": "resnet20", "dataset": "ch-mnist"}, 2000, 32),
        ({"model": "cnn", "dataset": "fashion-mnist"}, 2000, 64),
        ({"model": "cnn", "dataset": "breast-cancer"}, 2000, 32),
    ],
)
def test_iterations_and_batch_size_follow_the_model_and_the_data_set(
    fields, iterations, batch_size
):
    setting = Setting(**fields)
    assert (setting.iterations, setting.batch_size) == (iterations, batch_size)
    assert Setting(iterations=7, batch_size=9, **fields).iterations == 7
    assert Setting(iterations=7, batch_size=9, **fields).batch_size == 9


@pytest.mark.parametrize("c", [0, 5, 49])
def test_beta_is_c_unless_given(c):
    assert Setting(compromised=c, rule="median").beta == c
    assert Setting(compromised=c, rule="median", beta=30).beta == 30


def test_readings_of_the_paper_default_to_those_that_fit_its_tables():
    setting = Setting(attack="krum")
    readings = {name: getattr(setting, name) for name in CHOICES}
    assert readings == {
        "knowledge": "full",
        "direction": "mean",
        "worker_order": "shuffled",
        "attacker_assumes": "zero",
        "base": "received",
        "interval_space": "update",
        "goal": "directed-deviation",
        "distribution": "uniform",
        "dealing": "once",
        "master_assumes": "c",
        "initial": "xavier-3",
    }


def test_after_a_defense_the_rule_takes_c_for_compromised_or_none():
    assert Setting(rule="krum", defense="lfr").c_left == 20
    assert Setting(rule="krum", defense="lfr", master_assumes="zero").c_left == 0
    assert Setting(rule="krum", master_assumes="zero") == Setting(rule="krum")
    median = Setting(rule="median", defense="lfr", master_assumes="zero")
    assert median == Setting(rule="median", defense="lfr")  # it takes no c


WRONG = [
    # fields, and the words the message has to hold
    ({"workers": 0}, "workers is 0; it must be at least 1"),
    ({"workers": -3, "compromised": 0}, "workers is -3; it must be at least 1"),
    ({"workers": "many"}, "workers is 'many'; give a whole number"),
    ({"workers": 10.0}, "workers is 10.0; give a whole number"),
    ({"workers": True}, "workers is True; give a whole number"),
    ({"compromised": -1}, "compromised is -1; .*at least 0 and less than half of the 100"),
    ({"compromised": 50}, "compromised is 50; .*less than half of the 100 workers"),
    ({"compromised": 0, "attack": "krum"}, "compromised is 0; .*at least 1"),
    ({"compromised": None}, "compromised is None; give a whole number"),
    ({"beta": -1}, r"beta is -1; it must be in \[0, m/2\), m = 100"),
    ({"beta": 50}, r"beta is 50; it must be in \[0, m/2\), m = 100"),
    ({"beta": 1.5}, "beta is 1.5; give a whole number"),
    ({"non_iid": 0}, r"non_iid is 0.0; it must be in \(0, 1\]"),
    ({"non_iid": 1.01}, r"non_iid is 1.01; it must be in \(0, 1\]"),
    ({"non_iid": float("nan")}, r"non_iid is nan; it must be in \(0, 1\]"),
    ({"non_iid": "0.5"}, "non_iid is '0.5'; give a number"),
    ({"epsilon": -0.01}, "epsilon is -0.01; it must be finite and at least 0"),
    ({"epsilon": float("inf")}, "epsilon is inf; it must be finite"),
    ({"b": 1}, "b is 1.0; it must be a finite number above 1"),
    ({"b": float("nan")}, "b is nan; it must be a finite number above 1"),
    ({"iterations": 0}, "iterations is 0; it must be at least 1"),
    ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ({"rounds": 0}, "rounds is 0; it must be at least 1"),
    ({"rounds": None}, "rounds is None; give a whole number"),
    ({"learning_rate": 0}, "learning_rate is 0.0; it must be a finite number above 0"),
    ({"learning_rate": float("inf")}, "learning_rate is inf; it must be a finite number"),
    ({"learning_rate": False}, "learning_rate is False; give a number"),
    ({"learning_rate": 10**400}, "learning_rate is "),
    ({"dataset": "mnits"}, "unknown data ?set 'mnits'; choose one of .*mnist.*mean 'mnist'"),
    ({"dataset": 7}, "dataset is 7; give a name"),
    ({"model": "cnn2"}, "unknown model 'cnn2'; choose one of .*lr.*Did you mean 'cnn'"),
    ({"rule": "crum"}, "unknown rule 'crum'; choose one of .*krum.*Did you mean 'krum'"),
    ({"attack": "gausian"}, "unknown attack 'gausian'.*Did you mean 'gaussian'"),
    ({"knowledge": "some", "attack": "krum"}, "knowledge is 'some'; choose one of full, partial"),
    ({"direction": "sign"}, "direction is 'sign'; choose one of mean, rule"),
    ({"worker_order": "random"}, "worker_order is 'random'; choose one of shuffled, grouped"),
    ({"attacker_assumes": "0"}, "attacker_assumes is '0'; choose one of zero, added, c"),
    ({"base": "global"}, "base is 'global'; choose one of received, before-attack"),
    ({"interval_space": "local"}, "interval_space is 'local'; choose one of update, model"),
    (
        {"workers": 3, "compromised": 1},
        "rule 'krum' needs m - c - 2 >= 1.*m = 3.*c = 1.*it is 0",
    ),
    (
        {"workers": 5, "compromised": 2, "attack": "krum", "rule": "median"},
        "attack 'krum' needs m - 2c - 1 >= 1.*m = 5.*c = 2.*it is 0",
    ),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_a_wrong_value_is_named_with_what_is_allowed(fields, message):
    with pytest.raises(BadInput) as error:
        Setting(**fields)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"workers": 1, "compromised": 0, "rule": "mean"},
        {"workers": 3, "compromised": 0},
        {"workers": 4, "compromised": 1},
        {"workers": 4, "compromised": 1, "attack": "krum"},
        {"workers": 6, "compromised": 2, "attack": "krum"},
        {"workers": 3, "compromised": 1, "attack": "trimmed-mean", "rule": "trimmed-mean"},
        {"compromised": 49, "rule": "trimmed-mean", "beta": 49, "attack": "gaussian"},
        {"non_iid": 1, "epsilon": 0, "b": 1.0001, "attack": "krum"},
    ],
    ids=str,
)
def test_values_at_the_edge_of_what_is_allowed(fields):
    setting = Setting(**fields)
    assert all(getattr(setting, name) == value for name, value in fields.items())


def test_without_attack_what_only_an_attacker_reads_is_left_at_its_default():
    plain = Setting(attack="none", epsilon=3, goal="deviation", poisoned_share=0.5)
    assert plain == Setting(attack="none") == Setting(attack="krum", epsilon=3).without_attack()


@pytest.mark.parametrize("attack", ["none", "gaussian", "label-flip"])
def test_knowledge_is_nothing_to_attacks_that_have_none(attack):
    full, partial = (Setting(attack=attack, knowledge=k) for k in ("full", "partial"))
    assert full.knowledge is partial.knowledge is None
    assert full.key() == partial.key()


@pytest.mark.parametrize("attack", ["krum", "trimmed-mean"])
def test_knowledge_is_full_unless_partial_is_asked_for(attack):
    assert Setting(attack=attack).knowledge == "full"
    assert Setting(attack=attack, knowledge=None).knowledge == "full"
    partial = Setting(attack=attack, knowledge="partial")
    assert partial.knowledge == "partial"
    assert partial.key() != Setting(attack=attack).key()


def test_the_key_does_not_depend_on_order_or_on_spelling_defaults_out():
    key = Setting(rule="median", attack="krum", compromised=10).key()
    assert Setting(compromised=10, attack="krum", rule="median").key() == key
    assert Setting(rule="median", attack="krum", compromised=10, beta=10, b=2).key() == key
    spelled_out = Setting(rule="median", attack="krum", compromised=10).as_dict()
    assert Setting.from_dict(dict(reversed(list(spelled_out.items())))).key() == key
    assert re.fullmatch("[0-9a-f]{16}", key)


# Where every field matters.
EVERYTHING = {**Setting(attack="krum", defense="lfr").as_dict(), "selected": 90}


def other_values():
    for name, value in EVERYTHING.items():
        if name in CHOICES:
            yield name, next(choice for choice in CHOICES[name] if choice != value)
        elif isinstance(value, str):
            others = {"dataset": "ch-mnist", "model": "cnn", "rule": "mean", "defense": "err"}
            yield name, others.get(name, "none")
        else:
            yield (
                name,
                value / 2
                if name in ("non_iid", "poisoned_fraction", "poisoned_share")
                else value + 1,
            )


@pytest.mark.parametrize(("name", "value"), list(other_values()))
def test_every_field_changes_the_key(name, value):
    default = Setting.from_dict(EVERYTHING)
    assert Setting.from_dict({**EVERYTHING, name: value}).key() != default.key()


def test_the_key_is_the_same_in_another_process():
    code = "from fltrust_repro.settings import Setting; print(Setting(rule='median').key())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split()[-1] == Setting(rule="median").key()


def test_from_dict_names_an_unknown_field_and_those_there_are():
    with pytest.raises(BadInput) as error:
        Setting.from_dict({"rule": "krum", "lamda": 1})
    assert "unknown setting lamda" in str(error.value)
    for field in dataclasses.fields(Setting):
        assert field.name in str(error.value)


def test_a_setting_says_of_every_field_what_it_is():
    for field in dataclasses.fields(Setting):
        assert field.metadata["help"].endswith("."), field.name


def test_a_setting_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Setting().beta = 3
