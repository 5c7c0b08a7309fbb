"""One trial, start to end: the numbers it gives, what attacks do to them, and what ends it."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from fltrust_repro import datasets, downloads, training
from fltrust_repro.aggregation import Rule
from fltrust_repro.attacks import attacks, krum_attack
from fltrust_repro.backend import mx, nd
from fltrust_repro.errors import BadInput
from fltrust_repro.partition import Batches, partition
from fltrust_repro.poisoning import PoisonedSet
from fltrust_repro.settings import Readings, Setting
from fltrust_repro.threat import Attack
from fltrust_repro.training import generator, run_trial
from fltrust_repro.workers import Learner

SMALL = {"dataset": "digits", "workers": 20, "compromised": 4, "learning_rate": 0.5}


def small(iterations: int = 60, **fields) -> Setting:
    return Setting.from_dict({**SMALL, "iterations": iterations, **fields})


def error_rate(**fields) -> float:
    """Mean over three seeds."""
    return fmean(run_trial(small(**fields), seed).error_rate for seed in range(3))


def need(dataset: str) -> None:
    data = os.environ.get("FLTRUST_DATA")
    if not data or downloads.locate(dataset, (Path(data),)) is None:
        pytest.skip(f"{dataset} is not in $FLTRUST_DATA")


def test_what_is_no_setting_is_refused():
    with pytest.raises(BadInput, match=r"the setting is .*krum.*; give a Setting"):
        run_trial({"rule": "krum"}, 0)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    setting = small(30, rule="krum", attack="krum")
    first, again, other = (run_trial(setting, seed) for seed in (7, 7, 8))
    assert first.curve == again.curve
    assert first.error_rate == again.error_rate
    assert first.curve != other.curve


@pytest.mark.parametrize("attack", ["gaussian", "label-flip", "krum", "trimmed-mean"])
def test_every_attack_draws_from_the_seed_alone(attack):
    setting = small(10, rule="mean", attack=attack)
    np.random.seed(1)
    first = run_trial(setting, 3)
    np.random.seed(2)
    assert run_trial(setting, 3).curve == first.curve


def test_no_generator_of_a_trial_depends_on_how_much_another_has_drawn():
    before = generator(5, "attack").random()
    generator(5, "batches").random(1000)
    assert generator(5, "attack").random() == before
    assert generator(5, "batches").random() != before
    assert generator(6, "attack").random() != before


@pytest.mark.parametrize("rule", ["mean", "krum", "trimmed-mean", "median"])
def test_without_attack_every_rule_learns(rule):
    result = run_trial(small(rule=rule), 0)
    assert result.error_rate < 0.3
    assert result.curve[-1][2] < 0.7 * result.curve[0][2]


def test_the_krum_attack_ruins_krum():
    assert error_rate(rule="krum", attack="krum") > error_rate(rule="krum") + 0.3


@pytest.mark.parametrize("knowledge", ["full", "partial"])
@pytest.mark.parametrize("rule", ["trimmed-mean", "median"])
def test_the_trimmed_mean_attack_harms_trimmed_mean_and_median(rule, knowledge):
    attacked = error_rate(rule=rule, attack="trimmed-mean", knowledge=knowledge)
    assert attacked > error_rate(rule=rule) + 0.05


@pytest.fixture
def watched(monkeypatch):
    """Copies of the batches of every iteration of the trials that run."""
    seen = []

    class Watched(Learner):
        def updates(self, w_re, x, batches, learning_rate):
            seen.append(Batches(batches.rows, batches.labels.copy(), batches.counts))
            return super().updates(w_re, x, batches, learning_rate)

    monkeypatch.setattr(training, "Learner", Watched)
    return seen


@pytest.mark.parametrize("dealing", ["once", "each-iteration", "shared", "sorted"])
def test_label_flipping_flips_the_compromised_workers_labels_and_no_others(watched, dealing):
    run_trial(small(3, attack="label-flip", dealing=dealing), 2)
    true = datasets.load("digits", generator(2, "split")).train_y
    assert len(watched) == 3
    for batches in watched:
        np.testing.assert_array_equal(batches.labels[:, :4], 9 - true[batches.rows[:, :4]])
        np.testing.assert_array_equal(batches.labels[:, 4:], true[batches.rows[:, 4:]])


def test_examples_dealt_once_stay_where_they_are_and_otherwise_move(watched):
    def holders(dealing: str) -> dict[int, set[int]]:
        watched.clear()
        run_trial(small(30, attack="none", dealing=dealing), 0)
        found: dict[int, set[int]] = {}
        for batches in watched:
            for worker, count in enumerate(batches.counts):
                for row in batches.rows[0, worker, :count].tolist():
                    found.setdefault(row, set()).add(worker)
        return found

    assert max(map(len, holders("once").values())) == 1
    assert np.mean([len(workers) for workers in holders("each-iteration").values()]) > 3
    # Two workers per group of digits: they share all of its examples, and no other worker does.
    assert {len(workers) for workers in holders("shared").values()} <= {1, 2}


def test_sorted_examples_are_parts_of_the_benign_and_all_those_of_who_attacks(watched):
    run_trial(small(30, attack="sign-flip", dealing="sorted", rule="mean"), 0)
    true = datasets.load("digits", generator(0, "split")).train_y
    parts = np.array_split(np.sort(true), 16)  # benign workers, of 20
    for worker in range(20):
        held = {*np.concatenate([batches.labels[0, worker] for batches in watched]).tolist()}
        assert held == ({*range(10)} if worker < 4 else {*parts[worker - 4].tolist()})


def test_batches_with_replacement_are_whole_for_all_who_hold_an_example(watched):
    small_shards = {"workers": 500, "compromised": 4, "batch_size": 32}  # three examples each
    run_trial(small(2, attack="none", batches="with-replacement", **small_shards), 0)
    for batches in watched:
        assert {*batches.counts.tolist()} == {0, 32}


def test_summed_gradients_weigh_workers_by_their_examples(watched, monkeypatch):
    received, aggregate = [], Rule.__call__

    def spied(self, updates, **known):
        received.append(updates.asnumpy())
        return aggregate(self, updates, **known)

    monkeypatch.setattr(Rule, "__call__", spied)
    for gradient in ("mean", "sum"):
        run_trial(small(1, attack="none", workers=100, compromised=4, gradient=gradient), 0)
    weights = watched[0].counts / 32
    assert weights.min() < weights.max() < 1
    mean, total = received
    np.testing.assert_allclose(total, mean * weights[:, None], rtol=1e-6)


def test_selected_workers_are_drawn_anew_and_attacked_by_identity(watched, monkeypatch):
    known = []

    def craft(step):
        known.append(step.c)
        return step.known[: step.c]

    monkeypatch.setitem(attacks._entries, "watch", Attack("watch", craft=craft))
    setting = small(200, attack="watch", selected=5, rule="median")
    result = run_trial(setting, 0)
    assert {batches.rows.shape[1] for batches in watched} == {5}
    # Hypergeometric: 5 of 20 workers, 4 compromised; none among them in 28% of the iterations.
    assert result.notes["attacked iterations"] == len(known) == pytest.approx(144, abs=20)
    assert 1.2 < fmean(known) < 1.6
    master = setting.at_master
    assert (master.m, master.c, master.beta) == (5, 1, 1)


@pytest.mark.parametrize(("fraction", "expected"), [(0, 0), (0.25, 5), (0.5, 10), (1, 20)])
def test_a_fraction_of_the_iterations_is_attacked(fraction, expected):
    setting = small(20, rule="median", attack="trimmed-mean", poisoned_fraction=fraction)
    assert run_trial(setting, 0).notes["attacked iterations"] == expected


@pytest.mark.parametrize(("selected", "compromised"), [(2, 4), (5, 9)])
@pytest.mark.parametrize("attack", ["trimmed-mean", "tailored"])
def test_few_workers_selected_are_attacked_with_any_goal(attack, selected, compromised):
    """Where as many are compromised, rounded up, as trimmed mean could not cut off."""
    few = {"workers": 20, "selected": selected, "compromised": compromised, "rule": "median"}
    result = run_trial(small(20, **few, attack=attack, goal="deviation"), 0)
    assert result.notes["attacked iterations"] > 0
    assert np.isfinite(result.error_rate)


def test_no_iteration_attacked_is_no_attack():
    attacked = run_trial(small(20, rule="krum", attack="krum", poisoned_fraction=0), 0)
    assert attacked.curve == run_trial(small(20, rule="krum"), 0).curve


def test_attacking_more_iterations_harms_more():
    fields = {"rule": "krum", "attack": "krum"}
    assert error_rate(**fields) > error_rate(**fields, poisoned_fraction=0.2) + 0.1


def test_one_worker_that_holds_everything_is_centralized_learning():
    central = small(60, rule="mean", workers=1, compromised=0)
    assert run_trial(central, 0).error_rate < 0.3


@pytest.mark.parametrize("rule", ["krum", "trimmed-mean", "median"])
@pytest.mark.parametrize("defense", ["err", "lfr", "union"])
def test_a_defended_model_learns(rule, defense):
    assert run_trial(small(rule=rule, defense=defense), 0).error_rate < 0.35


@pytest.mark.slow
@pytest.mark.parametrize("defense", ["lfr", "union"])
def test_rejection_by_loss_takes_most_of_the_trimmed_mean_attacks_harm(defense):
    attack = {"rule": "trimmed-mean", "attack": "trimmed-mean"}
    harmed = error_rate(**attack) - error_rate(rule="trimmed-mean")
    left = error_rate(**attack, defense=defense) - error_rate(rule="trimmed-mean")
    assert left < 0.5 * harmed


def test_the_attacker_of_krum_tells_how_often_it_found_no_lambda(monkeypatch):
    sent = []

    def watched(step):
        crafted = krum_attack(step)
        sent.append(abs(crafted[0, 0]))
        return crafted

    monkeypatch.setitem(attacks._entries, "krum", replace(attacks["krum"], craft=watched))
    notes = run_trial(small(30, rule="krum", attack="krum"), 0).notes
    assert notes["attacked iterations"] == len(sent) == 30
    # Where none is found, the last one tried is sent: the first below 1e-5.
    assert notes["lambda not found"] == sum(scale < 1e-5 for scale in sent)
    assert 0 < notes["lambda not found"] < 30


def test_partial_knowledge_tells_most_directions_and_more_with_more_compromised():
    def agreement(c: int) -> float:
        setting = small(
            30, rule="median", attack="trimmed-mean", knowledge="partial", compromised=c
        )
        return run_trial(setting, 0).notes["direction agreement"]

    assert 0.5 < agreement(2) < agreement(8) < 1


def test_the_deviation_goal_moves_krum_and_not_trimmed_mean():
    plain = error_rate(rule="trimmed-mean")
    fields = {"rule": "trimmed-mean", "attack": "trimmed-mean"}
    assert error_rate(**fields, goal="deviation") < plain + 0.5 * (error_rate(**fields) - plain)
    krum = error_rate(rule="krum", attack="krum", goal="deviation")
    assert krum > error_rate(rule="krum") + 0.3


def test_the_curve_has_every_tenth_iteration_and_the_last_one():
    calls, started = [], time.perf_counter()
    result = run_trial(small(23), 0, after_iteration=lambda: calls.append(1))
    assert [iteration for iteration, _, _ in result.curve] == [10, 20, 23]
    assert result.error_rate == result.curve[-1][1]
    assert result.lowest_error_rate == min(error for _, error, _ in result.curve)
    assert result.iterations == 23 == len(calls)
    assert 0 < result.seconds < time.perf_counter() - started
    assert not result.diverged


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_a_diverged_model_ends_the_trial_and_is_reported_with_its_error_rate():
    result = run_trial(small(rule="mean", learning_rate=1e38), 0)
    assert result.diverged
    assert result.iterations < 60
    assert result.curve[-1][0] == result.iterations
    assert result.error_rate == result.curve[-1][1]
    # Of scores that are not numbers argmax takes the first: every digit is called a zero.
    test_y = datasets.load("digits", generator(0, "split")).test_y
    assert result.error_rate == pytest.approx((test_y != 0).mean())


@pytest.mark.parametrize("attack", ["none", "trimmed-mean"])
def test_a_cnn_that_diverges_ends_at_once(attack):
    fields = {"dataset": "breast-cancer", "model": "cnn", "rule": "mean", "attack": attack}
    setting = Setting(
        **fields, workers=10, compromised=2, learning_rate=30.0 if attack != "none" else 1e30
    )
    result = run_trial(setting, 0)
    assert result.diverged
    assert result.iterations < 20 < setting.iterations
    assert 0 < result.error_rate < 1


@pytest.fixture
def hostile(monkeypatch):
    """An attack that sends what the test says, from all compromised workers."""

    def send(value: float) -> str:
        def craft(step):
            return nd.array(np.full((step.c, step.w_re.size), value, dtype=np.float32))

        monkeypatch.setitem(attacks._entries, "hostile", Attack("hostile", craft=craft))
        return "hostile"

    return send


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ["krum", "trimmed-mean", "median"])
def test_values_that_are_no_numbers_do_not_get_past_a_robust_rule(rule, value, hostile):
    result = run_trial(small(40, rule=rule, attack=hostile(value)), 0)
    assert not result.diverged
    assert result.error_rate < 0.5


def test_values_that_are_no_numbers_do_get_past_the_mean(hostile):
    result = run_trial(small(40, rule="mean", attack=hostile(math.nan)), 0)
    assert result.diverged
    assert result.iterations == 1


# ---- what an attack of one's own gives ----------------------------------------------------------


@pytest.fixture
def own(monkeypatch):
    """Run ten iterations under an attack of the parts given."""

    def run(poisoned_fraction=1.0, **parts):
        monkeypatch.setitem(attacks._entries, "own", Attack("own", **parts))
        setting = small(10, rule="mean", attack="own", poisoned_fraction=poisoned_fraction)
        return run_trial(setting, 0)

    return run


def in_place(labels, classes):
    labels *= -1
    labels += classes - 1
    return labels


def test_labels_may_be_poisoned_in_place_and_in_any_integer_type(own):
    curve = run_trial(small(10, rule="mean", attack="label-flip"), 0).curve
    assert own(poison=in_place).curve == curve
    assert (
        own(poison=lambda labels, classes: (classes - 1 - labels).astype(np.uint8)).curve == curve
    )
    assert own(poison=lambda labels, classes: (classes - 1 - labels).tolist()).curve == curve


@pytest.mark.parametrize(
    ("poison", "problem"),
    [
        (lambda labels, classes: labels + classes, r"int32 \(1, 4, 32\)"),
        (lambda labels, classes: labels - classes, "int32"),
        (lambda labels, classes: labels * 1.0, "float64"),
        (lambda labels, classes: labels[:, :1], r"int32 \(1, 1, 32\)"),
        (lambda labels, classes: 3, r"int64 \(\)"),
        (lambda labels, classes: None, "object"),
    ],
)
def test_labels_that_the_data_set_does_not_have_are_refused(own, poison, problem):
    with pytest.raises(BadInput, match=rf"attack 'own' gives labels {problem}.* from 0 to 9, of"):
        own(poison=poison)


def injected(x=(3, 1, 8, 8), labels=(0, 1, 9), dtype="float32"):
    def inject(data, share, rng, after_step):
        return PoisonedSet(np.full(x, 0.5, dtype), np.array(labels), None)

    return inject


def test_injected_examples_are_trained_on_in_iterations_that_are_attacked(own):
    """As with any other attack, none of them where no iteration is."""
    curves = [own(inject=injected(), poisoned_fraction=part).curve for part in (0, 0.5, 1)]
    assert curves[0] == run_trial(small(10, rule="mean"), 0).curve
    assert len({repr(curve) for curve in curves}) == 3


def test_injected_examples_of_another_precision_are_the_same_examples(own):
    curve = own(inject=injected()).curve
    assert own(inject=injected(dtype="float64")).curve == curve
    assert curve != run_trial(small(10, rule="mean"), 0).curve


@pytest.mark.parametrize(
    ("inject", "problem"),
    [
        (injected(x=(3, 8, 8)), r"examples of shape \(8, 8\); the data set has \(1, 8, 8\)"),
        (injected(labels=(0, 1, 10)), r"labels int64 \(3,\).* 0 to 9"),
        (injected(labels=(0, 1)), r"labels int64 \(2,\).* of shape \(3,\)"),
        (lambda *given: None, "a NoneType, not a PoisonedSet"),
    ],
)
def test_injected_examples_that_do_not_fit_are_refused(own, inject, problem):
    with pytest.raises(BadInput, match=f"attack 'own' .*{problem}"):
        own(inject=inject)


def test_notes_are_plain_numbers_that_any_store_can_hold(own):
    def noting(step):
        step.notes["count"] += 1
        step.notes["share"] += np.float32(0.5)
        step.notes["array"] += np.ones(1)
        step.notes["whole"] += np.int64(2)
        return step.known[: step.c]

    notes = own(craft=noting).notes
    assert notes == {
        "attacked iterations": 10, "count": 10, "share": 5.0, "array": 10.0, "whole": 20,
        "compared with the mean": 1, "differs from the mean": 0,
        "compared with no attack": 1, "undone": 0.0, "no effect": 1,
    }  # fmt: skip
    assert {type(value) for value in notes.values()} == {int, float}


def test_a_note_that_is_no_number_is_named(own):
    def noting(step):
        step.notes["who"] = "me"
        return step.known[: step.c]

    with pytest.raises(BadInput, match="'who' is noted as 'me'; notes are numbers"):
        own(craft=noting)


def test_workers_without_examples_are_counted_and_harmless():
    setting = Setting(
        dataset="breast-cancer", iterations=20, rule="mean", readings=Readings(dealing="once")
    )
    result = run_trial(setting, 0)
    train_y = datasets.load("breast-cancer", generator(0, "split")).train_y
    held = partition(train_y, 2, 100, 0.5, generator(0, "partition")).sizes
    assert result.empty_workers == (held == 0).sum() > 0
    assert not result.diverged
    assert result.error_rate < 0.5


def test_several_local_rounds_learn_faster_than_one():
    one, five = (run_trial(small(10, rule="mean", rounds=rounds), 0) for rounds in (1, 5))
    assert five.error_rate < one.error_rate


def test_the_cnn_learns_on_breast_cancer():
    setting = Setting(
        dataset="breast-cancer", model="cnn", rule="median", workers=20, compromised=4,
        iterations=30,
    )  # fmt: skip
    result = run_trial(setting, 0)
    assert result.curve[-1][2] < 0.9 * result.curve[0][2]
    assert result.error_rate < 0.3


@pytest.mark.slow
def test_the_attack_on_real_mnist_multiplies_the_error_rate_of_trimmed_mean():
    need("mnist")
    setting = {"dataset": "mnist", "rule": "trimmed-mean", "iterations": 60}
    plain = run_trial(Setting(**setting), 0).error_rate
    attacked = run_trial(Setting(**setting, attack="trimmed-mean"), 0).error_rate
    assert plain < 0.25
    assert attacked > 1.7 * plain


@pytest.mark.long
def test_resnet20_learns_on_real_tissue_tiles():
    need("ch-mnist-8")
    setting = Setting(
        dataset="ch-mnist-8", model="resnet20", rule="median", workers=4, compromised=1,
        iterations=20,
    )  # fmt: skip
    result = run_trial(setting, 0)
    assert [iteration for iteration, _, _ in result.curve] == [10, 20]
    assert result.curve[1][2] < result.curve[0][2]


def test_a_trial_has_one_thread_whatever_the_process_set_up_before():
    seen = []

    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(limits=2, user_api="blas"):
        run_trial(
            Setting(dataset="digits", iterations=1, workers=10, compromised=2),
            0,
            after_iteration=lambda: seen.append(threads()),
        )
        assert 2 in threads()
    assert seen == [{1}]


def test_a_trial_that_does_not_fit_says_what_to_do(monkeypatch):
    def full(*args):
        raise mx.base.MXNetError("Check failed: cudaMalloc retry failed: out of memory")

    monkeypatch.setattr(training, "Federation", full)
    with pytest.raises(MemoryError, match="run fewer trials at a time"):
        run_trial(small(), 0)


def test_another_error_of_mxnet_stays_as_it_is(monkeypatch):
    def broken(*args):
        raise mx.base.MXNetError("an illegal memory access was encountered")

    monkeypatch.setattr(training, "Federation", broken)
    with pytest.raises(mx.base.MXNetError, match="illegal memory access"):
        run_trial(small(), 0)
