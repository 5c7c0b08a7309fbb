"""Defenses (Section 5): which workers are removed, by whatever order they are numbered in."""

from dataclasses import replace

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from fltrust_repro import defenses as defenses_module
from fltrust_repro.aggregation import rules
from fltrust_repro.backend import nd
from fltrust_repro.defenses import Defense, Suspicion, defenses
from fltrust_repro.errors import BadInput
from fltrust_repro.plugins import load_plugin
from fltrust_repro.settings import Readings, Setting
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
    Setting(rule="bulyan", defense="err", readings=Readings(master_assumes="zero"))


@pytest.mark.parametrize(("assumes", "c"), [("zero", 0), ("c", 2)])
def test_the_rule_is_told_how_many_compromised_a_defense_leaves(monkeypatch, assumes, c):
    told = []

    def spy(updates, c):
        told.append((len(updates), c))
        return updates[0].copy()

    monkeypatch.setitem(rules._entries, "krum", replace(rules["krum"], function=spy))
    fields = {"dataset": "digits", "workers": 12, "compromised": 2, "iterations": 1}
    readings = Readings(master_assumes=assumes)
    run_trial(Setting(rule="krum", defense="lfr", readings=readings, **fields), 0)
    assert told == [(12, 2), (10, c)]  # to judge the workers, then to aggregate


# ---- what a defense of one's own returns --------------------------------------------------------


def removed(answer, most: int = 1, m: int = 12, c: int = 2) -> list[int]:
    own = Defense("own", lambda case: answer, most)
    return own.removed(case(some_updates(m), c=c)).tolist()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (np.arange(12), "removed 12 workers of 12; .*may remove 2 of them .most = 1, c = 2."),
        ([1, 2, 3], "removed 3 workers of 12"),
        ([0, 12], "returned worker 12 of 12"),
        ([-1], "returned worker -1 of 12"),
        (np.array([2**63], dtype=np.uint64), "returned worker 9223372036854775808 of 12"),
        ([3, 3], "returned a worker twice"),
        ([0.0, 1.0], "returned float64 of shape"),
        (np.arange(12) < 2, "returned bool of shape"),
        (nd.array([0, 1]), "returned float32 of shape"),
        ([[0, 1]], r"returned int64 of shape \(1, 2\)"),
        (3, r"returned int64 of shape \(\)"),
        (np.zeros((0, 2), dtype=int), r"returned int64 of shape \(0, 2\)"),
        (None, "returned object of shape"),
        ({1, 2}, "returned object of shape"),
        ([[1], [2, 3]], "returned object of shape"),
        (["1"], "returned <U1 of shape"),
    ],
)
def test_a_defense_that_returns_anything_else_is_named(answer, problem):
    with pytest.raises(BadInput, match=f"defense 'own' {problem}") as error:
        removed(answer)
    assert "whole numbers from 0 to 11, each once" in str(error.value)


def test_all_workers_are_never_removed():
    with pytest.raises(BadInput, match=r"removed 3 workers of 3; .* may remove 2"):
        removed([0, 1, 2], most=9, m=3, c=1)


@given(st.lists(st.integers(-3, 14), max_size=6), st.integers(0, 3))
def test_a_defense_may_remove_different_workers_up_to_most_times_c(answer, most):
    different = len(set(answer)) == len(answer)
    if not (different and len(answer) <= 2 * most and set(answer) <= set(range(12))):
        with pytest.raises(BadInput, match="defense 'own'"):
            removed(answer, most)
        return
    told = [answer, tuple(answer), np.array(answer), np.array(answer, dtype=np.uint8)]
    if answer:
        told.append(nd.array(answer, dtype="int64"))
    assert all(removed(kind, most) == answer for kind in told)


@pytest.mark.parametrize("most", [-1, 1.5, True, "2"])
def test_how_many_a_defense_may_remove_is_a_whole_number(most):
    with pytest.raises(BadInput, match="defense 'own' has most = "):
        defenses_module.defense("own", most=most)(abs)
    assert "own" not in defenses


OWN = """
import numpy as np
from fltrust_repro.backend import nd
from fltrust_repro.defenses import defense

def first_by_loss(case, models):
    errors, losses = case.judge(models)
    assert errors.shape == losses.shape == (len(models),)
    return np.argsort(-losses, kind="stable")[: case.c]

@defense("reads")
def reads(case):
    return first_by_loss(case, case.w_re.asnumpy() + case.updates.asnumpy())

@defense("writes")
def writes(case):
    updates = case.updates
    updates += case.w_re
    case.w_re[:] = 7
    models = updates.copy()
    updates[:] = np.nan
    return first_by_loss(case, models)

@defense("doubles")
def doubles(case):
    models = case.w_re.asnumpy() + case.updates.asnumpy()
    return first_by_loss(case, nd.array(models, dtype="float64"))

@defense("bends")
def bends(case):
    return case.judge(case.updates[:, :-1])
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    load_plugin(path)
    fields = {"dataset": "digits", "workers": 12, "compromised": 2, "iterations": 10}
    return lambda name: run_trial(
        Setting(**fields, rule="mean", attack="gaussian", defense=name), 0
    )


def test_a_defense_that_writes_to_what_it_is_given_changes_nothing_but_its_choice(own):
    curve = own("reads").curve
    assert own("writes").curve == curve
    assert own("doubles").curve == curve
    assert own("none").curve != curve


def test_models_of_a_wrong_length_are_not_judged(own):
    with pytest.raises(BadInput, match=r"'bends': models .* shape \(m, 650\), not .*\(12, 649\)"):
        own("bends")


def test_impacts_are_of_what_was_received_whatever_a_defense_made_of_its_copy():
    rows = np.zeros((10, 3), np.float32)
    rows[8:] = 50

    def judged(models):
        return np.zeros(len(models)), np.abs(models).sum(axis=1)

    def spoils(case):
        case.updates[:], case.w_re[:] = 0, 9
        return case.largest(case.impacts[1])

    def case():
        rng = np.random.default_rng(0)
        return Suspicion(rows, np.zeros(3), rules["mean"], 2, 2, judged, rng)

    assert sorted(Defense("spoils", spoils, 1).removed(case())) == [8, 9]

    def turned(case):
        return case.largest(replace(case, updates=case.updates[::-1]).impacts[1])

    assert sorted(Defense("turned", turned, 1).removed(case())) == [0, 1]
