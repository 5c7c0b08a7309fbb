"""Zeno and FedGreed: their formulas, and what the server's examples protect from."""

import numpy as np
import pytest
import reference_field as reference
from hypothesis import given
from hypothesis import strategies as st
from made import normal

from fltrust_repro.aggregation import rules
from fltrust_repro.errors import BadInput
from fltrust_repro.judged_rules import fedgreed, zeno
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial

NAMES = ("zeno", "fedgreed")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def bowl(d, seed=0):
    """A loss with its least at a point that the updates lead to, and a judge by it."""
    goal, weights = normal(1, d, seed)[0] + 1.0, np.linspace(0.5, 2, d)

    def loss(w):
        return float((weights * (np.asarray(w, dtype=np.float64) - goal) ** 2).sum())

    def judge(models):
        assert models.dtype == np.float32
        assert np.isfinite(models).all()
        return np.zeros(len(models)), np.array([loss(w) for w in models])

    return goal, loss, judge


def state(judge, w_re=None):
    return ServerState(judge=judge, w_re=w_re)


@st.composite
def problems(draw):
    """Updates that lead to the goal from `w_re`, the first c the other way, and a judge."""
    m, d, seed = draw(st.integers(1, 40)), draw(st.integers(1, 12)), draw(st.integers(0, 99))
    c = draw(st.integers(0, (m - 1) // 2))
    goal, loss, judge = bowl(d, seed)
    w_re = normal(1, d, seed + 1)[0]
    updates = (0.3 * (goal - w_re) + 0.5 * normal(m, d, seed + 2)).astype(np.float32)
    updates[:c] *= draw(st.sampled_from([1, -1, 10]))
    return updates, c, w_re, loss, judge


@given(problems(), st.sampled_from([0.0, 0.005, 0.5]))
def test_zeno_equals_the_reference(problem, rho):
    updates, c, w_re, loss, judge = problem
    found = zeno(updates, c, w_re=w_re, judge=judge, rho=rho)
    np.testing.assert_allclose(found, reference.zeno(updates, c, w_re, loss, rho), **CLOSE)


def test_zeno_removes_b_where_that_is_given():
    goal, loss, judge = bowl(5)
    updates = normal(9, 5)
    found = zeno(updates, 1, w_re=np.zeros(5), judge=judge, b=4)
    np.testing.assert_allclose(found, reference.zeno(updates, 4, goal * 0, loss, 0.005), **CLOSE)
    everyone = zeno(updates, 1, w_re=np.zeros(5), judge=judge, b=0)
    np.testing.assert_allclose(everyone, updates.mean(axis=0), **CLOSE)


def test_zeno_lets_long_updates_pay_in_units_of_the_round():
    # Both lower the loss as much, one by a detour along a direction that does not matter.
    def judge(models):
        return np.zeros(len(models)), np.abs(models[:, 0] - 3.0)

    updates = np.float32([[1, 0], [1, 0.1], [1.01, 9]])
    for scale in (1, 1e-3):
        found = zeno(updates * np.float32(scale), c=1, w_re=np.zeros(2), judge=judge)
        np.testing.assert_allclose(found, np.float32([1, 0.05]) * scale, rtol=1e-5)
    costly = zeno(updates, c=1, w_re=np.zeros(2), judge=judge, rho=0.0)
    np.testing.assert_allclose(costly, updates[[2, 0]].mean(axis=0), rtol=1e-5)


@given(problems())
def test_fedgreed_equals_the_reference(problem):
    updates, _, w_re, loss, judge = problem
    found = fedgreed(updates, w_re=w_re, judge=judge)
    np.testing.assert_allclose(found, reference.fedgreed(updates, w_re, loss), **CLOSE)


def test_fedgreed_has_no_more_models_judged_than_it_needs():
    asked = []

    def judge(models):
        asked.append(len(models))
        return np.zeros(len(models)), np.abs(models[:, 0] - 3.0)

    fedgreed(np.float32([[3]] + [[2]] * 99), w_re=np.zeros(1), judge=judge)
    assert asked == [100, 16]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.float32(3e38)])
def test_rows_that_are_not_finite_are_never_kept(name, bad):
    _, _, judge = bowl(6)
    updates = normal(11, 6) + 1
    updates[0], updates[4, 3] = bad, bad
    before, w_re = updates.copy(), normal(1, 6, 1)[0]
    found = rules[name](updates, c=2, state=state(judge, w_re))
    rest = np.delete(updates, [0, 4], axis=0)
    expected = rules[name](rest, c=0, state=state(judge, w_re))
    np.testing.assert_allclose(found, expected, **CLOSE)
    np.testing.assert_array_equal(updates, before)
    nobody = rules[name](np.full((5, 6), np.nan), c=1, state=state(judge))
    assert np.isnan(nobody).all()


@pytest.mark.parametrize("name", NAMES)
@given(problem=problems(), seed=st.integers(0, 9))
def test_workers_have_no_order(name, problem, seed):
    updates, c, w_re, _, judge = problem
    order = np.random.default_rng(seed).permutation(len(updates))
    found, again = (
        rules[name](some, c=c, state=state(judge, w_re)) for some in (updates, updates[order])
    )
    np.testing.assert_allclose(again, found, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_those_who_raise_the_loss_are_left_out_however_they_look(name):
    goal, _, judge = bowl(30)
    updates = (0.1 * goal + 0.02 * normal(20, 30)).astype(np.float32)
    updates[:8] = -updates[8:16]  # as long as the others, and most of all
    found = state(judge)
    aggregate = rules[name](updates, c=8, state=found)
    assert aggregate @ goal > 0.05 * goal @ goal
    assert 0 < found.notes["workers kept"] <= 12


def test_wrong_parameters_and_a_server_without_examples_are_told_in_a_sentence():
    _, _, judge = bowl(3)
    for own in ("rho=-1.0", "b=4", "b=-1", "b=1.5", "b=many"):
        with pytest.raises(BadInput, match=f"'zeno': {own.split('=')[0]} is"):
            rules[f"zeno:{own}"](normal(4, 3), c=1, state=state(judge))
    with pytest.raises(BadInput, match="'zeno' needs m - c >= 1"):
        rules["zeno"](normal(4, 3), c=4, state=state(judge))
    for name in NAMES:
        with pytest.raises(BadInput, match=f"'{name}' asks for judge"):
            rules[name](normal(4, 3), c=1)
        with pytest.raises(BadInput, match="--root-size 100"):
            Setting(dataset="digits", rule=name)


@pytest.mark.parametrize("name", [*NAMES, "zeno:b=4"])
def test_in_a_trial(name):
    setting = Setting(
        dataset="digits", workers=12, compromised=2, iterations=6, rule=name, attack="sign-flip",
        root_size=50,
    )  # fmt: skip
    found, again = (run_trial(setting, seed=3) for _ in range(2))
    assert found.curve == again.curve
    assert 0 < found.notes["workers kept"] <= 60
    assert found.notes["differs from the mean"] > 0
