"""Backdoors: the trigger, who trains on it, and how often it succeeds."""

import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from fltrust_repro.attacks import attacks
from fltrust_repro.backdoors import pattern
from fltrust_repro.datasets import Dataset
from fltrust_repro.errors import BadInput
from fltrust_repro.partition import Batches
from fltrust_repro.poisoning import Backdoor
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Attack, attack
from fltrust_repro.training import Federation, run_trial

DIGITS = {"dataset": "digits", "rule": "mean", "workers": 20, "compromised": 4, "iterations": 150}


@pytest.fixture
def own():
    """Attacks of one test."""
    before = dict(attacks._entries)
    yield attacks
    attacks._entries.clear()
    attacks._entries.update(before)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.float32, 1)])
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 8, 9)])
def test_the_trigger_of_images_is_four_white_pixels_in_the_lower_right_corner(shape, dtype, white):
    x = np.zeros(shape, dtype)
    made = Backdoor(pattern).triggered(x)
    assert not x.any()
    assert made.dtype == dtype
    rows, columns = shape[2] - np.array([2, 3, 2, 4]), shape[3] - np.array([2, 3, 4, 2])
    expected = np.zeros(shape, dtype)
    for row, column in zip(rows, columns):
        expected[:, :, row, column] = white
    np.testing.assert_array_equal(made, expected)


def test_the_trigger_of_features_sets_every_20th_to_0():
    x = np.ones((2, 1, 1, 61), np.float32)
    made = Backdoor(pattern).triggered(x)
    assert np.flatnonzero(made[0] == 0).tolist() == [19, 39, 59]
    with pytest.raises(BadInput, match="have 12; take a data set of at least 20 features"):
        Backdoor(pattern).triggered(np.ones((2, 1, 1, 12), np.float32))


def a_data_set(classes=3):
    x, y = np.zeros((6, 1, 5, 5), np.uint8), np.arange(6, dtype=np.int32) % classes
    return Dataset(x, y, x, y, classes, "made")


def test_copies_stand_behind_the_examples_with_the_trigger_and_the_targets_label():
    data = a_data_set()
    both = Backdoor(pattern, target=2).added_to(data)
    np.testing.assert_array_equal(both.train_x[:6], data.train_x)
    np.testing.assert_array_equal(both.train_x[6:], pattern(data.train_x.copy()))
    assert both.train_y.tolist() == [0, 1, 2, 0, 1, 2, 2, 2, 2, 2, 2, 2]
    assert both.train_y.dtype == np.int32
    np.testing.assert_array_equal(both.test_x, data.test_x)


@pytest.mark.parametrize("target", [3, 99_999])
def test_a_target_that_the_data_set_does_not_have_is_refused(target):
    with pytest.raises(
        BadInput, match=f"target is class {target}, but .*'made' has classes 0 to 2"
    ):
        Backdoor(pattern, target).added_to(a_data_set())


@pytest.mark.parametrize("trigger", [lambda x: x[:, :, :4], lambda x: x / 255, lambda x: None])
def test_a_trigger_that_makes_something_else_of_examples_is_refused(trigger):
    with pytest.raises(BadInput, match="it must return the examples as it is given them"):
        Backdoor(trigger).triggered(np.zeros((2, 1, 8, 8), np.uint8))


def test_a_share_of_the_compromised_workers_batches_and_of_no_others_is_copies():
    rows = np.tile(np.arange(100), (2, 6, 1))
    batches = Batches(rows.copy(), rows % 10, np.full(6, 100))
    Backdoor(pattern, target=7, share=0.3).plant(batches, 4, 1000, np.random.default_rng(0))
    planted = batches.rows >= 1000
    np.testing.assert_array_equal(batches.rows % 1000, rows)
    np.testing.assert_array_equal(batches.labels, np.where(planted, 7, rows % 10))
    assert not planted[:, 4:].any()
    assert planted[:, :4].mean() == pytest.approx(0.3, abs=0.05)


def test_scaling_multiplies_what_training_gives_by_m_or_as_told():
    updates = np.random.default_rng(0).standard_normal((9, 4)).astype("f4")
    np.testing.assert_allclose(attacks["scaling"](updates, c=3), 9 * updates[:3])
    np.testing.assert_allclose(attacks["scaling:factor=2"](updates, c=3), 2 * updates[:3])
    updates[1, 2] = np.nan
    assert attacks["scaling"](updates, c=3).shape == (3, 4)


def test_workers_train_on_the_trigger_in_attacked_iterations_alone(monkeypatch):
    seen = []
    plant = Backdoor.plant
    monkeypatch.setattr(Backdoor, "plant", lambda *args: (seen.append(args[2]), plant(*args))[1])
    found = run_trial(Setting(attack="scaling", poisoned_fraction=0.2, **DIGITS), 0)
    assert seen == [4] * 30
    assert found.notes["attacked iterations"] == 30


def test_without_an_attacked_iteration_it_is_no_attack_and_does_not_succeed():
    silent = run_trial(Setting(attack="scaling", poisoned_fraction=0, **DIGITS), 0)
    none = run_trial(Setting(attack="none", **DIGITS), 0)
    assert silent.curve == none.curve
    assert silent.notes["attack success rate"] < 0.1
    assert "attack success rate" not in none.notes


def test_it_succeeds_against_mean_whose_error_rate_rises_little():
    found = run_trial(Setting(attack="scaling:factor=5", **DIGITS), 0)
    clean = run_trial(Setting(attack="none", **DIGITS), 0)
    assert found.notes["attack success rate"] > 0.9
    assert found.error_rate < clean.error_rate + 0.1


def test_scaling_is_what_makes_it_succeed():
    weak, strong = (
        run_trial(Setting(attack=f"scaling:factor={factor}", **DIGITS | {"iterations": 30}), 0)
        for factor in (0.2, 5)
    )
    assert weak.notes["attack success rate"] < strong.notes["attack success rate"] - 0.3


def test_the_success_rate_is_of_other_classes_test_examples_with_the_trigger():
    setting = Setting(attack="scaling", **DIGITS)
    federation = Federation(setting, 0, __import__("mxnet").cpu(), None)
    others = federation._data.test_x[federation._data.test_y != 0]
    triggered = pattern(others.copy())
    w = federation.learner.initial
    scores = federation.learner.scores(w, federation.learner.resident(triggered))
    expected = np.mean([row.argmax() == 0 for row in scores])
    assert federation.finished_notes(w)["attack success rate"] == pytest.approx(expected)
    assert len(others) < len(federation._data.test_x)


def test_a_model_that_diverged_has_no_success(own):
    @attack("own", has_knowledge=False, backdoor=Backdoor(pattern))
    def diverging(step):
        return np.full_like(step.known[: step.c], np.nan)

    found = run_trial(Setting(attack="own", **DIGITS), 0)
    assert found.diverged
    assert found.notes["attack success rate"] == 0


def test_a_trial_that_goes_on_has_the_same_success():
    setting, taken = Setting(attack="scaling", **DIGITS | {"iterations": 20}), []
    whole = run_trial(setting, 0, keep=lambda take: taken.append(take()))
    for begun in (taken[9], taken[-1]):
        again = run_trial(setting, 0, begun=begun)
        assert again.curve == whole.curve
        assert again.notes == whole.notes


def test_a_backdoor_of_ones_own_needs_no_crafting(own):
    own.add("own", Attack("own", backdoor=Backdoor(pattern, target=3, share=1.0)))
    found = run_trial(Setting(attack="own", **DIGITS), 0)
    assert Counter(found.notes)["attacked iterations"] == 150
    assert 0 <= found.notes["attack success rate"] <= 1


@pytest.mark.slow
def test_a_run_tells_the_success_beside_the_error_rate(alone, tmp_path):
    words = ["run", "--dataset", "digits", "--rule", "mean", "--iterations", "20", "--jobs"]
    command = [sys.executable, "-m", "fltrust_repro", *words, "0", "--attack", "scaling:factor=5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert re.match(
        r"seed 0: error rate 0\.\d{4} \(.*\), attack success rate [01]\.\d{4}, 20", done.stdout
    )


@pytest.mark.parametrize(("given", "told"), [
    ({"target": 1.5}, "target is 1.5; give a whole number"), ({"target": "a"}, "target is 'a'"),
    ({"target": -1}, "target is -1"),
    ({"share": 30}, r"share is 30; give a number in \(0, 1\]"), ({"share": -1}, "share is -1"),
    ({"share": float("nan")}, "share is nan"), ({"trigger": 3}, "trigger is 3; give a function"),
])  # fmt: skip
def test_a_backdoor_that_is_none_is_refused_when_it_is_made(given, told):
    with pytest.raises(BadInput, match=told):
        Backdoor(**{"trigger": lambda x: x, **given})


def test_an_attack_brings_a_backdoor_and_no_trigger_alone():
    with pytest.raises(BadInput, match=r"give Backdoor\(trigger, target\)"):
        attack("mine", backdoor=lambda x: x)(lambda step: step.known[: step.c])
