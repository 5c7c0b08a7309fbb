"""Settings: the paper's defaults, and one clear sentence for every wrong value."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fltrust_repro import settings as settings_module
from fltrust_repro.datasets import dataset, datasets
from fltrust_repro.errors import BadInput, BeyondLimit, LeftOut
from fltrust_repro.models import model, models
from fltrust_repro.plugins import load_plugin
from fltrust_repro.settings import FIELDS, Readings, Setting
from fltrust_repro.trial_files import read_csv


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


@pytest.fixture
def brought(monkeypatch):
    """A data set and a model that bring what they are trained with."""
    monkeypatch.setattr(datasets, "_entries", {**datasets})
    monkeypatch.setattr(models, "_entries", {**models})
    dataset("theirs", 16, {"short": 0.5}, "each-iteration")(lambda directories, rng: None)
    model("short", iterations=7)(lambda classes, shape: None)


def test_a_data_set_and_a_model_of_ones_own_bring_what_they_are_trained_with(brought):
    setting = Setting(dataset="theirs", model="short")
    assert (setting.iterations, setting.batch_size, setting.learning_rate) == (7, 16, 0.5)
    assert setting.readings.dealing == "each-iteration"
    assert Setting(dataset="theirs", model="cnn").learning_rate == 0.1
    told = {"iterations": 8, "batch_size": 9, "learning_rate": 0.2, "dealing": "once"}
    other = Setting.from_dict({"dataset": "theirs", "model": "short", **told}).as_dict()
    assert {name: other[name] for name in told} == told


WRONG_DEFAULTS = {
    "data set 'x': batch_size is 0; give a whole number of at least 1.": {"batch_size": 0},
    "data set 'x': batch_size is 2.0; give a whole number": {"batch_size": 2.0},
    "data set 'x': learning_rates is 0.1; give a rate": {"learning_rates": 0.1},
    "the learning rate of 'lr' is nan; give a finite": {"learning_rates": {"lr": float("nan")}},
    "data set 'x': dealing is 'one'; choose .* mean 'once'": {"dealing": "one"},
    "model 'x': iterations is True; give a whole number": {"iterations": True},
}


@pytest.mark.parametrize(
    "dataset, model, rate",
    [("mnist", "lr", 0.1), ("mnist", "cnn", 0.01), ("fashion-mnist", "lr", 0.1),
     ("fashion-mnist", "cnn", 0.3), ("breast-cancer", "cnn", 0.1), ("ch-mnist", "resnet20", 0.1)],
)  # fmt: skip
def test_learning_rates_are_those_that_the_readings_name(dataset, model, rate):
    assert Setting(dataset=dataset, model=model).learning_rate == rate


@pytest.mark.parametrize("sentence", WRONG_DEFAULTS)
def test_a_wrong_default_of_ones_own_is_told_where_it_is_registered(brought, sentence):
    register = model if "model" in sentence else dataset
    with pytest.raises(BadInput, match=sentence):
        register("x", **WRONG_DEFAULTS[sentence])(lambda *_: None)


def test_numbers_as_numpy_has_them_are_numbers():
    setting = Setting(rule="median", compromised=np.int64(5), non_iid=np.float32(0.25))
    assert setting.key() == Setting(rule="median", compromised=5, non_iid=0.25).key()


def test_readings_are_readings():
    with pytest.raises(BadInput, match=r"readings is 'mean'; give Readings\(...\)"):
        Setting(readings="mean")
    with pytest.raises(BadInput, match="direction is None; give a name"):
        Readings(direction=None)


@pytest.mark.parametrize("c", [0, 5, 49])
def test_beta_is_c_unless_given(c):
    assert Setting(compromised=c, rule="median").beta == c
    assert Setting(compromised=c, rule="median", beta=30).beta == 30


def test_readings_of_the_paper_default_to_those_that_fit_its_tables():
    setting = Setting(attack="krum")
    assert (setting.knowledge, setting.goal) == ("full", "directed-deviation")
    assert setting.distribution == "uniform"
    assert dataclasses.asdict(setting.readings) == {
        "direction": "mean",
        "worker_order": "shuffled",
        "attacker_assumes": "zero",
        "base": "received",
        "interval_space": "update",
        "search": "halving",
        "dealing": "once",
        "master_assumes": "c",
        "initial": "xavier-3",
        "batches": "distinct",
        "gradient": "mean",
    }


XAVIER_1 = Readings(initial="xavier-1")


def test_names_of_settings_never_change():
    # Stored trials are found by them. Whoever changes a default puts the old one into FORMERLY.
    assert Setting().key() == "11bcbb0eab343e46"
    assert Setting(rule="median", attack="trimmed-mean", beta=30).key() == "260e6243d5afad87"
    assert Setting(model="cnn", readings=XAVIER_1, attack="krum", b=3).key() == "3493469640c02bdc"


RESULTS = Path(__file__).parent.parent / "experiments" / "results"
COMMITTED = sorted(RESULTS.glob("*.trials.csv*"))
PLUGINS = {
    "features2e.trials.csv": RESULTS.parent / "breast-cancer" / "features2e.py",
    "foundation-selection.trials.csv": RESULTS.parent / "foundation" / "selection.py",
    "leverage-parts.trials.csv": RESULTS.parent / "leverage" / "parts.py",
}


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.name)
def test_names_of_committed_settings_are_those_they_have(file):
    left_out = LeftOut()  # takes each trial whose key is not that of its setting
    if file.name in PLUGINS:
        load_plugin(PLUGINS[file.name])
    read_csv(file, left_out)
    assert not len(left_out)


def test_there_are_committed_settings():
    assert sum(len(read_csv(file)) > 0 for file in COMMITTED) > 15


def test_a_changed_default_changes_no_stored_setting(monkeypatch):
    before = Setting(attack="trimmed-mean")
    stored = before.as_dict()
    del stored["b"]  # as if it had been written before there was this choice
    monkeypatch.setattr(settings_module, "FORMERLY", {"b": 3.0})
    settings_module._key_of.cache_clear()
    assert Setting.from_stored(stored).b == 3.0
    assert Setting.from_stored(before.as_dict()).b == 2.0
    keys = {Setting(attack="trimmed-mean", b=b).key() for b in (2.0, 3.0)}
    assert len(keys) == 2
    assert before.key() != Setting.from_stored(stored).key()


@pytest.fixture(autouse=True)
def _keys_of_this_test():
    yield
    settings_module._key_of.cache_clear()


def test_after_a_defense_the_rule_takes_c_for_compromised_or_none():
    assert Setting(rule="krum", defense="lfr").c_left == 20
    zero = Readings(master_assumes="zero")
    assert Setting(rule="krum", defense="lfr", readings=zero).c_left == 0
    assert Setting(rule="krum", readings=zero) == Setting(rule="krum")
    median = Setting(rule="median", defense="lfr", readings=zero)
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
    (
        {"rule": "crum"},
        r"unknown rule 'crum'; choose one of the \d+ there .*mean 'krum'",
    ),
    ({"attack": "gausian"}, "unknown attack 'gausian'.*Did you mean 'gaussian'"),
    ({"knowledge": "some", "attack": "krum"}, "knowledge is 'some'; choose one of full, partial"),
    ({"readings": "mean"}, r"unknown setting readings; choose one of the \d+ there are\. Did you"),
    ({"direction": "rul"}, "direction is 'rul'; choose one of mean, rule. Did you mean 'rule'?"),
    ({"dealing": 3}, "dealing is 3; give a name"),
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
        Setting.from_dict(fields)
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
    read = Readings("rule", attacker_assumes="c", base="before-attack", interval_space="model")
    plain = Setting(attack="none", epsilon=3, goal="deviation", poisoned_share=0.5, readings=read)
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
EVERYTHING = {
    **Setting(attack="krum", defense="lfr", rule="fltrust", pre="nnm", root_size=50).as_dict(),
    "selected": 90,
    "root_bias": 0.5,
    "momentum": 0.5,
}


def other_values():
    for name, value in EVERYTHING.items():
        if choices := FIELDS[name].metadata["choices"]:
            yield name, next(choice for choice in choices if choice != value)
        elif isinstance(value, str):
            others = {
                "dataset": "ch-mnist",
                "model": "cnn",
                "rule": "mean",
                "pre": "arc",
                "defense": "err",
            }
            yield name, others.get(name, "none")
        else:
            yield (
                name,
                value / 2
                if name
                in ("non_iid", "poisoned_fraction", "poisoned_share", "root_bias", "momentum")
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
    for name in FIELDS:
        assert name in str(error.value)


def test_every_field_says_what_it_is_and_names_its_default_first():
    for name, field in FIELDS.items():
        assert field.metadata["help"] or name in (
            "dealing",
            "initial",
            "batches",
            "gradient",
        )  # say it themselves
        if field.metadata["choices"] and field.default is not None:
            assert field.default == field.metadata["choices"][0]  # as `--help` says


def test_a_setting_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Setting().beta = 3


def test_a_rule_that_a_defense_asks_beyond_its_limit_is_refused_before_anything_runs():
    """ERR and LFR ask it about all but one worker, with the real c, whatever the master assumes."""
    zero = Readings(master_assumes="zero")
    few = {"dataset": "digits", "rule": "bulyan", "compromised": 5, "readings": zero}
    with pytest.raises(BadInput, match=r"'bulyan', asked by 'lfr', needs .*m = 20 workers"):
        Setting(**few, defense="lfr", workers=21)
    assert Setting(**few, defense="lfr", workers=22).workers == 22
    assert Setting(**few, defense="none", workers=21).workers == 21


@pytest.mark.parametrize("rule", ["gas", "fldetector"])
def test_the_limit_of_a_base_is_that_of_its_rule_too(rule):
    few = {"dataset": "digits", "workers": 12, "rule": f"{rule}:base=bulyan"}
    with pytest.raises(BeyondLimit, match=r"^rule 'bulyan' needs m - 4c >= 1, but with m = 12"):
        Setting(**few, compromised=4)
    assert Setting(**few, compromised=2).compromised == 2
    if rule == "gas":  # the other takes no rows of nobody's
        with pytest.raises(BeyondLimit, match=r"'bucketing.bulyan' needs .* 6 rows, of 12 workers"):
            Setting(**few, compromised=2, pre="bucketing")


@pytest.mark.parametrize(
    ("workers", "own"),
    [(5, {"rule": "trimmed-mean", "compromised": 0, "beta": 2}),
     (4, {"rule": "krum", "compromised": 1, "readings": Readings(master_assumes="zero")})],
)  # fmt: skip
def test_a_rule_with_a_fast_way_to_leave_one_out_is_asked_within_its_limit_too(workers, own):
    few = {"dataset": "digits", "defense": "lfr", **own}
    with pytest.raises(BeyondLimit, match=rf"', asked by 'lfr', needs .* m = {workers - 1}"):
        Setting(**few, workers=workers)
    assert Setting(**few, workers=workers + 1).workers == workers + 1


@pytest.mark.parametrize("rule", ["mean", "median"])
@pytest.mark.parametrize(("selected", "compromised"), [(2, 4), (5, 9)])
def test_a_defense_that_may_remove_all_who_take_part_is_refused(rule, selected, compromised):
    few = {"dataset": "digits", "workers": 20, "rule": rule, "selected": selected}
    with pytest.raises(BadInput, match=rf"^of the {selected} workers .*'union' may remove \d"):
        Setting(**few, compromised=compromised, defense="union")
    assert Setting(**few, compromised=compromised, defense="lfr").selected == selected


@pytest.mark.parametrize("defense", ["err", "lfr", "union"])
@pytest.mark.parametrize("rule", ["mean", "median", "norm-clipping"])
def test_one_worker_alone_is_compared_with_nobody(defense, rule):
    few = {"dataset": "digits", "workers": 10, "compromised": 2, "rule": rule}
    with pytest.raises(BadInput, match="selected is 1; it must be at least 2 with a defense"):
        Setting(**few, selected=1, defense=defense)
    assert Setting(**few, selected=1).selected == 1
