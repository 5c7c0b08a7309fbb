"""Defenses (Section 5): which workers are removed, by whatever order they are numbered in."""

from dataclasses import replace

import numpy as np
import pytest
import reference

from fltrust_repro.aggregation import rules
from fltrust_repro.backend import nd
from fltrust_repro.defenses import Suspicion, defenses
from fltrust_repro.errors import BadInput
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial

CENTER = np.array([1.0, -2.0, 0.5])


def judge(models):
    """A stand-in for a validation set: error by the first parameter, loss by the distance."""
    models = getattr(models, "asnumpy", lambda: models)().astype(np.float64)
    return np.abs(models[:, 0] - CENTER[0]), np.square(models - CENTER).sum(axis=1)


def case(updates, rule="trimmed-mean", c=2, seed=0, judged_by=judge):
    updates = np.asarray(updates, dtype=np.float32)
    rng = np.random.default_rng(seed)
    w_re = nd.array(np.full(updates.shape[1], 0.25))
    return Suspicion(nd.array(updates), w_re, rules[rule], c, c, judged_by, rng)


def some_updates(m=12, seed=0):
    return np.random.default_rng(seed).standard_normal((m, 3)).astype(np.float32)


@pytest.mark.parametrize("rule", ["mean", "krum", "trimmed-mean", "median"])
def test_impacts_are_those_of_the_papers_text(rule):
    updates = some_updates()
    errors, losses = case(updates, rule).impacts
    expected = reference.impacts(updates, 0.25, rule, 2, judge)
    np.testing.assert_allclose(errors, expected[0], atol=1e-5)
    np.testing.assert_allclose(losses, expected[1], atol=1e-5)


@pytest.mark.parametrize("rule", ["mean", "trimmed-mean", "median"])
def test_the_workers_of_largest_impact_are_removed(rule):
    updates = some_updates()
    impacts = reference.impacts(updates, 0.25, rule, 2, judge)
    for name, impact in zip(("err", "lfr"), impacts):
        removed = defenses[name].function(case(updates, rule))
        assert len(set(removed.tolist())) == 2
        assert impact[removed].min() >= np.delete(impact, removed).max() - 1e-6


def test_union_removes_what_either_removes():
    step = case(some_updates(), "mean")
    either = {worker for name in ("err", "lfr") for worker in defenses[name].function(step)}
    assert set(defenses["union"].function(step)) == either
    assert 2 <= len(either) <= 4


def test_who_is_removed_does_not_depend_on_how_workers_are_numbered():
    updates, order = some_updates(), np.random.default_rng(5).permutation(12)
    removed = defenses["lfr"].function(case(updates))
    renumbered = defenses["lfr"].function(case(updates[order]))
    assert set(order[renumbered].tolist()) == set(removed.tolist())


def test_equal_impacts_are_broken_at_random():
    impacts = np.zeros(20)
    impacts[7] = 1.0
    step, counts = case(some_updates(m=20)), np.zeros(20)
    for _ in range(2000):
        counts[step.largest(impacts)] += 1
    assert counts[7] == 2000  # of the two removed, one by its impact
    others = np.delete(counts, 7)
    assert others.sum() == 2000
    assert 60 < others.min() <= others.max() < 160  # 105 expected, deviation 10


def test_with_krum_most_impacts_are_equal():
    # Leaving out a worker that was not selected changes nothing, unless it was a near neighbour.
    impacts = case(some_updates(m=20), "krum").impacts[0]
    assert (impacts == np.median(impacts)).sum() >= 10


def test_infinite_losses_are_harmless():
    def diverged(models):
        errors, losses = judge(models)
        return errors, np.where(np.arange(len(losses)) % 2 == 0, np.inf, losses)

    impacts = case(some_updates(), judged_by=diverged).impacts
    assert np.isfinite(impacts[1]).all()
    assert len(defenses["union"].function(case(some_updates(), judged_by=diverged))) <= 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_worker_that_sends_no_numbers_harms_no_robust_rule(value):
    updates = some_updates()
    updates[:2] = value
    for name in ("krum", "trimmed-mean", "median"):
        for defense in ("err", "lfr", "union"):
            step = case(updates, name)
            kept = np.delete(updates, defenses[defense].function(step), axis=0)
            out = rules[name](nd.array(kept), c=2, beta=2).asnumpy()
            assert np.isfinite(out).all(), (name, defense)


def test_a_rule_that_cannot_do_with_what_a_defense_leaves_is_refused():
    with pytest.raises(BadInput, match=r"rule 'bulyan' after defense 'err'.*m - 4c >= 1"):
        Setting(rule="bulyan", defense="err")
    Setting(rule="bulyan", defense="err", compromised=10)
    Setting(rule="bulyan", defense="err", master_assumes="zero")


@pytest.mark.parametrize(("assumes", "c"), [("zero", 0), ("c", 2)])
def test_the_rule_is_told_how_many_compromised_a_defense_leaves(monkeypatch, assumes, c):
    told = []

    def spy(updates, c):
        told.append((len(updates), c))
        return updates[0].copy()

    monkeypatch.setitem(rules._entries, "krum", replace(rules["krum"], function=spy))
    fields = {"dataset": "digits", "workers": 12, "compromised": 2, "iterations": 1}
    run_trial(Setting(rule="krum", defense="lfr", master_assumes=assumes, **fields), 0)
    assert told == [(12, 2), (10, c)]  # to judge the workers, then to aggregate
