"""FLDetector: its formula, whom it detects, and that it bears selection, resuming and queries."""

import copy

import numpy as np
import pytest
import reference_field as reference
from hypothesis import given
from hypothesis import strategies as st

from fltrust_repro.aggregation import rule, rules
from fltrust_repro.detectors import hessian_products, upper_group
from fltrust_repro.errors import BadInput
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial

SMALL = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 30}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def quadratic(m, d, c=0, noise=0.0, seed=0):
    """What workers send from a model: steps of gradient descent; the first c, something new."""
    hessian, goals = np.linspace(0.1, 1, d), 0.3 * normal(m, d, seed=seed)
    rng = np.random.default_rng(seed + 1)

    def send(w):
        updates = -0.1 * (w + goals) * hessian + noise * rng.standard_normal((m, d))
        updates[:c] = updates.mean(axis=0) + 0.02 * rng.standard_normal((c, d))
        return updates.astype(np.float32)

    return send


def rounds(send, count, rule, c=0):
    """Rounds (updates, w) by the rule, its aggregates, and the state after them."""
    state, told, aggregates = ServerState(np.random.default_rng(7)), [], []
    w = np.zeros(send(np.float32(0)).shape[1], dtype=np.float32)
    for _ in range(count):
        state.w_re, updates = w, send(w)
        told.append((updates, w))
        aggregates.append(rules[rule](updates, c=c, state=state))
        w = w + aggregates[-1]
    return told, aggregates, state


def left_out(state):
    return np.flatnonzero(state.memory["left out"]).tolist()


@given(st.integers(1, 6), st.integers(7, 12), st.integers(0, 999))
def test_hessian_products_are_those_of_the_matrix_that_bfgs_makes(n, d, seed):
    steps = normal(n, d, seed=seed)
    changes = steps * np.linspace(0.5, 2, d) + 0.01 * normal(n, d, seed=seed + 1)
    ways = normal(3, d, seed=seed + 2)
    for sign in (1, -0.1):  # of gradients, and of updates, which are -alpha times these
        found = hessian_products(steps, sign * changes, ways)
        expected = ways @ (sign * reference.bfgs(steps, changes)).T
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_where_nothing_moved_or_two_steps_are_one_products_are_finite():
    ways, zeros = normal(2, 5), np.zeros((3, 5))
    np.testing.assert_array_equal(hessian_products(zeros, zeros, ways), np.zeros((2, 5)))
    np.testing.assert_array_equal(hessian_products(zeros[:0], zeros[:0], ways), np.zeros((2, 5)))
    twice = np.tile(normal(1, 5), (3, 1))
    assert np.isfinite(hessian_products(twice, 2 * twice, ways)).all()
    assert not hessian_products(twice, np.full((3, 5), np.inf), ways).any()


@pytest.mark.long
@given(st.integers(3, 25), st.integers(0, 999), st.sampled_from([0, 0.3, 2, 9]))
def test_groups_are_those_of_k_means_and_the_gap_statistic(n, seed, apart):
    scores = normal(n, seed=seed)
    scores[: n // 3] += apart
    found = upper_group(scores, np.random.default_rng(seed))
    expected = reference.suspects(scores, np.random.default_rng(seed))
    assert np.flatnonzero(found).tolist() == expected


def test_equal_scores_are_one_group_and_two_values_are_two():
    rng = np.random.default_rng(0)
    assert not upper_group(np.ones(9), rng).any()
    for few in range(3):
        assert upper_group(np.arange(few) * 1.0, rng).tolist() == [False] * few
    two = upper_group(np.array([1.0, 3, 1, 3, 1, 1, 1, 1]), rng)
    assert np.flatnonzero(two).tolist() == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "noise"),
    [
        ("mean", 0.01),
        ("median", 0.0),
        pytest.param("mean", 0.0, marks=pytest.mark.long),
        pytest.param("median", 0.01, marks=pytest.mark.long),
    ],
)
def test_fldetector_equals_the_reference_round_by_round(noise, base):
    rule = f"fldetector:base={base},window=4,start=5"
    seen, found, state = rounds(quadratic(20, 12, 5, noise), 24, rule, c=5)
    rng = np.random.default_rng(7)
    plain = {"mean": np.mean, "median": np.median}[base]
    expected, out = reference.fldetector(seen, rng, lambda rows: plain(rows, axis=0), 4, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert left_out(state) == out[-1]
    assert out[-1][:5] == [0, 1, 2, 3, 4]


def test_those_who_send_something_new_each_time_are_left_out_and_nobody_else():
    _, _, state = rounds(quadratic(40, 60, 8), 40, "fldetector:start=10", c=8)
    assert left_out(state) == list(range(8))
    assert state.notes["workers detected"] == 8
    assert state.notes["workers kept"] == 20 * 40 + 20 * 32  # a full window after the start
    _, _, peace = rounds(quadratic(40, 60, 0, noise=0.01), 40, "fldetector:start=10")
    assert left_out(peace) == []


def test_base_is_told_of_as_many_fewer_compromised():
    # 9 of 20 workers and trimmed mean: 2 beta < m holds before and after.
    rule = "fldetector:base=trimmed-mean,start=3,window=3"
    seen, found, state = rounds(quadratic(20, 40, 9), 12, rule, c=9)
    assert left_out(state) == list(range(9))
    np.testing.assert_allclose(found[-1], seen[-1][0][9:].mean(axis=0), rtol=1e-4, atol=1e-6)


def test_base_is_told_of_all_compromised_where_those_left_out_do_not_take_part():
    """C counts those of one iteration, in which other 20 of 40 workers send."""
    told = []

    @rule("noting-c")
    def noting(updates, c):
        told.append((len(updates), c))
        return updates.mean(axis=0)

    try:
        state = ServerState(np.random.default_rng(0))
        for first in (0, 20, 0):
            state.workers, state.w_re = np.arange(first, first + 20), np.zeros(3, np.float32)
            updates = normal(20, 3).astype(np.float32)
            updates[:4] = np.nan if not told else updates[:4]
            rules["fldetector:base=noting-c"](updates, c=4, state=state)
    finally:
        rules.remove("noting-c")
    assert told == [(16, 0), (20, 4), (16, 0)]


@pytest.mark.parametrize("base", ["centered-clipping", "clipped-clustering", "lasa", "zeno"])
def test_a_base_that_would_lose_what_it_asks_for_is_refused(base):
    with pytest.raises(BadInput, match=f"'fldetector': base is '{base}', which asks for"):
        rules[f"fldetector:base={base}"](normal(9, 4), c=1)


def test_a_base_that_draws_draws_anew_in_each_iteration():
    state, drawn = ServerState(np.random.default_rng(0)), []

    @rule("drawing")
    def drawing(updates, rng):
        drawn.append(rng.random())
        return updates.mean(axis=0)

    try:
        for _ in range(3):
            rules["fldetector:base=drawing"](normal(9, 4), c=1, state=state)
    finally:
        rules.remove("drawing")
    assert len(set(drawn)) == 3


def test_half_of_the_workers_are_never_detected():
    send = quadratic(10, 40, 6)
    _, _, state = rounds(send, 20, "fldetector:start=3,window=3", c=4)
    assert len(left_out(state)) < 5


def test_selected_workers_are_known_by_identity():
    send, state, rng = quadratic(40, 60, 8), ServerState(), np.random.default_rng(1)
    w = np.zeros(60, dtype=np.float32)
    for _ in range(90):
        state.w_re, state.workers = w, np.sort(rng.choice(40, 20, replace=False))
        w = w + rules["fldetector:base=mean,start=10"](send(w)[state.workers], c=4, state=state)
    assert left_out(state) == list(range(8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_who_sends_what_is_not_finite_is_left_out_at_once_and_for_good(bad):
    send, state = quadratic(9, 6), ServerState()
    for k in range(12):
        state.w_re = np.full(6, 0.1 * k, dtype=np.float32)
        updates = send(state.w_re)
        if k == 4:
            updates[2, 1] = bad
        before = updates.copy()
        found = rules["fldetector:base=mean"](updates, c=1, state=state)
        np.testing.assert_array_equal(updates, before)
        kept = np.delete(updates, 2, axis=0) if k >= 4 else updates
        np.testing.assert_allclose(found, kept.mean(axis=0), rtol=1e-5)
    assert left_out(state) == [2]
    assert not rules["fldetector"](np.full((5, 3), bad), c=1).any()


@pytest.mark.parametrize("base", ["krum", "multi-krum", "bulyan"])
def test_where_too_few_are_left_for_its_base_the_model_stays(base):
    state, asked = ServerState(workers=np.arange(20)), rules[f"fldetector:base={base}"]
    updates = normal(20, 3)
    updates[:4] = np.nan
    assert asked(updates, c=4, state=state).any()
    state.workers = np.array([0, 1, 2, 8, 9])
    few = asked(updates[[0, 1, 2, 8, 9]], c=1, state=state)
    assert few.any() == (base == "bulyan")  # which needs m - 4c >= 1, and c is 0 now


def test_values_that_a_float_can_just_hold_are_borne():
    send, state = quadratic(9, 6), ServerState()
    for k in range(12):
        state.w_re = np.float32([3e38, -3e38, 0, 1, 2, 3]) * np.float32((-1) ** k)
        updates = send(state.w_re * np.float32(1e-38))
        updates[:4] = np.float32(3e38) * np.float32((-1) ** k)
        found = rules["fldetector:base=median,start=2,window=3"](updates, c=4, state=state)
        assert np.isfinite(found).all()
    assert left_out(state) == [0, 1, 2, 3]


def test_its_memory_is_arrays_and_numbers_and_a_query_moves_nothing():
    send = quadratic(12, 9, 2)
    _, _, state = rounds(send, 8, "fldetector:start=3,window=3", c=2)
    assert {type(value) for value in state.memory.values()} == {np.ndarray, int}
    before = copy.deepcopy(state.memory)
    asked = rules["fldetector:start=3,window=3"].seen_at(state)
    first, again = (asked(send(state.w_re), c=2) for _ in range(2))
    assert first.shape == again.shape == (9,)
    for name, value in before.items():
        np.testing.assert_array_equal(state.memory[name], value)
    without = asked.without_each(send(state.w_re), c=2)
    assert without.aggregates.shape == (12, 9)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_before_the_start_it_is_its_base(m, d, seed):
    updates = normal(m, d, seed=seed).astype(np.float32)
    found = rules["fldetector:base=median"](updates, c=0)
    np.testing.assert_array_equal(found, rules["median"](updates, c=0))


def test_workers_have_no_order():
    order = np.random.default_rng(0).permutation(20)
    plain, turned = (ServerState() for _ in range(2))
    send, w = quadratic(20, 30, 5, noise=0.01), np.zeros(30, dtype=np.float32)
    for _ in range(20):
        updates, plain.w_re, turned.w_re = send(w), w, w
        found = rules["fldetector:start=4,window=5"](updates, c=5, state=plain)
        again = rules["fldetector:start=4,window=5"](updates[order], c=5, state=turned)
        np.testing.assert_allclose(again, found, rtol=1e-4, atol=1e-6)
        w = w + found
    assert sorted(order[left_out(turned)].tolist()) == left_out(plain) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("own", ["window=0", "start=0", "window=1.5"])
def test_wrong_parameters_are_told_in_a_sentence(own):
    with pytest.raises(BadInput, match=f"'fldetector': {own.split('=')[0]} is"):
        rules[f"fldetector:{own}"](normal(4, 3), c=1)
    with pytest.raises(BadInput, match="unknown rule 'kruum'"):
        rules["fldetector:base=kruum"](normal(4, 3), c=1)


# --- in a trial


@pytest.mark.parametrize("more", [{}, {"selected": 12}, {"defense": "lfr"}, {"pre": "nnm"}])
def test_a_trial_that_was_broken_off_goes_on_with_the_same_bits(more):
    setting = Setting(
        **{**SMALL, **more}, rule="fldetector:start=5,window=4", attack="trimmed-mean",
    )  # fmt: skip
    kept = []
    whole = run_trial(setting, 3, keep=lambda take: kept.append(take()))
    for snapshot in (kept[8], kept[20]):
        rest = run_trial(setting, 3, begun=snapshot)
        assert rest.curve == whole.curve
        assert rest.notes == whole.notes
    assert 0 < whole.notes["workers kept"] <= 30 * 20


def test_in_a_trial_the_compromised_ones_are_detected():
    setting = Setting(**SMALL, rule="fldetector:start=5,window=4", attack="trimmed-mean")
    found = run_trial(setting, 3)
    assert found.notes["workers detected"] == 4
    assert found.error_rate < run_trial(Setting(**SMALL, rule="median"), 3).error_rate + 0.1
