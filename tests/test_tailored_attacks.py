"""FLTrust's adaptive attack: its search, its maximum, and what both do to a model."""

import numpy as np
import pytest
import reference_attacks as reference
from hypothesis import given
from hypothesis import strategies as st

from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks, trimmed_mean_attack
from fltrust_repro.errors import BadInput
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.tailored_attacks import best_for_all, searched, trust_problem
from fltrust_repro.threat import Master, Round
from fltrust_repro.training import run_trial

EXACT, RANDOM = "fltrust-adaptive:search=exact", "fltrust-adaptive"


def a_problem(seed, m=12, d=9, cosine=0.5):
    """Updates that mostly go the server's way, and the server's own."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal(d).astype("f4")
    updates = rng.standard_normal((m, d)).astype("f4") + np.float32(cosine) * root
    return updates, root


def a_round(updates, root, c, seed=0):
    master = Master(len(updates), c, c, rules["fltrust"].seen_at(ServerState(root=root)))
    rng = np.random.default_rng(seed)
    return Round(updates, c, np.zeros(len(root)), "full", rng, master, root=root)


def craft(name, updates, root, c, seed=0):
    return attacks[name].crafted(a_round(updates, root, c, seed))


def gain(sent, updates, root):
    unit = sent.astype(float) / np.linalg.norm(sent, axis=1, keepdims=True)
    return reference.fltrust_gain(unit, updates.astype(float), root.astype(float))


@given(st.integers(0, 2**16), st.integers(1, 4), st.integers(2, 12))
def test_no_unit_vectors_move_fltrust_more_than_the_exact_ones(seed, c, d):
    updates, root = a_problem(seed, d=d)
    sent = craft(EXACT, updates, root, c)
    np.testing.assert_allclose(np.linalg.norm(sent, axis=1), np.linalg.norm(root), rtol=1e-4)
    most = gain(sent, updates, root)
    rng, best = np.random.default_rng(seed), sent / np.linalg.norm(root)
    for spread in (0.003, 0.03, 0.3, 3.0):
        for _ in range(10):
            others = best + spread * rng.standard_normal(best.shape)
            others /= np.linalg.norm(others, axis=1, keepdims=True)
            assert reference.fltrust_gain(others, updates.astype(float), root) <= most + 1e-5


@pytest.mark.slow
@given(st.integers(0, 2**16), st.integers(1, 3))
def test_the_search_is_the_papers(seed, c):
    updates, root = a_problem(seed, m=8, d=6)
    start = updates[:c] / np.linalg.norm(updates[:c], axis=1, keepdims=True)
    draws = np.random.default_rng(seed)
    us = (np.sqrt(0.5) * draws.standard_normal(6, dtype=np.float32) for _ in range(100 * c))
    slow = reference.fltrust_search(
        start.astype(float), updates.astype(float), root.astype(float), us
    )
    problem = trust_problem(a_round(updates, root, c), root)
    fast = searched(problem, start.copy(), np.random.default_rng(seed))
    np.testing.assert_allclose(fast, slow, atol=5e-3)


def test_the_search_climbs_towards_the_maximum_from_where_it_is_trusted():
    climbed = []
    for seed in range(20):
        updates, root = a_problem(seed, m=20, d=30)
        start = updates[:4] / np.linalg.norm(updates[:4], axis=1, keepdims=True)
        problem = trust_problem(a_round(updates, root, 4), root)
        found = searched(problem, start.copy(), np.random.default_rng(0))
        best = np.tile(best_for_all(problem, 4), (4, 1))
        before, after, most = (gain(vectors, updates, root) for vectors in (start, found, best))
        assert after < most
        climbed.append((after - before) / (most - before))
    assert np.mean(climbed) > 0.1


def test_a_start_that_nobody_trusts_stays_where_it_is():
    updates, root = a_problem(0, m=20, d=50)
    start = trimmed_mean_attack(a_round(updates, root, 4))
    assert (start @ root < 0).all()
    sent = craft(RANDOM, updates, root, 4)
    units = start / np.linalg.norm(start, axis=1, keepdims=True)
    np.testing.assert_allclose(sent, np.linalg.norm(root) * units, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [EXACT, RANDOM])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38, 0])
def test_it_ends_on_hostile_updates_and_leaves_them_as_they_are(name, bad):
    updates, root = a_problem(1)
    updates[6], updates[9, 2] = bad, bad
    before = updates.copy()
    sent = craft(name, updates, root, 3)
    assert sent.shape == (3, 9)
    assert np.isfinite(sent).all()
    np.testing.assert_array_equal(updates, before)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_a_server_that_trusts_nobody_is_sent_what_training_gives(value):
    updates, root = a_problem(2)
    root[:] = value
    np.testing.assert_array_equal(craft(EXACT, updates, root, 3), updates[:3])


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**30])
@pytest.mark.parametrize("name", [EXACT, RANDOM])
def test_it_has_no_scale_of_its_own(name, factor):
    updates, root = a_problem(3)
    small = craft(name, updates, root, 3)
    large = craft(name, updates * np.float32(factor), root * np.float32(factor), 3)
    np.testing.assert_allclose(large, small * np.float32(factor), rtol=1e-4)


def test_it_is_told_where_there_is_no_server_with_examples():
    with pytest.raises(BadInput, match="'fltrust-adaptive' asks for root"):
        Setting(dataset="digits", attack=RANDOM, rule="mean", root_size=0)
    with pytest.raises(BadInput, match="search is 'halving'; choose one of random, exact"):
        attacks["fltrust-adaptive:search=halving"](np.eye(5), c=1, root=np.ones(5))


@pytest.mark.slow
def test_the_maximum_harms_fltrust_and_mean():
    def error_rate(attack, rule):
        fields = {"dataset": "digits", "iterations": 200, "root_size": 100, "rule": rule}
        errors = [run_trial(Setting(attack=attack, **fields), seed).error_rate for seed in range(3)]
        return float(np.mean(errors))

    clean = error_rate("none", "fltrust")
    assert clean < 0.3
    assert error_rate(EXACT, "fltrust") > clean + 0.1
    assert error_rate(EXACT, "mean") > error_rate("none", "mean") + 0.01
