"""The rule of this program: its formula, and what it promises whatever c workers send."""

from collections import Counter

import numpy as np
import pytest
import reference_field as reference
from hypothesis import given
from hypothesis import strategies as st
from made import normal

from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.distances import squared_distances
from fltrust_repro.errors import BadInput
from fltrust_repro.leverage import (
    Said,
    among_all,
    answering,
    beside_the_nearest,
    leverages,
    make_room,
    take_in,
    voices,
)
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.spectral import products_of
from fltrust_repro.training import run_trial

RULE = rules["leverage"]


def grouped(m, d, groups, seed=0, noise=0.1):
    """Updates of workers of several kinds."""
    rng = np.random.default_rng(seed)
    kinds = rng.standard_normal((groups, d))
    return (kinds[np.arange(m) % groups] + noise * rng.standard_normal((m, d))).astype("f4")


def course(rounds, c, workers=None, rule=RULE):
    """The results of one iteration after another, and what was noted."""
    state = ServerState(notes=Counter())
    found = []
    for number, updates in enumerate(rounds):
        state.workers = np.arange(len(updates)) if workers is None else workers[number]
        found.append(rule(updates, c=c, state=state))
    return found, state


# ---- the formula


@given(st.integers(0, 2**16), st.integers(0, 3), st.integers(1, 4), st.floats(0.0, 3.0))
def test_it_equals_the_reference(seed, c, iterations, pushed):
    rounds = [normal(2 * c + 9, 12, seed + t) for t in range(iterations)]
    for updates in rounds:
        updates[:c] -= np.float32(pushed)
    found, _ = course(rounds, c)
    expected = reference.leverage(rounds, c)
    np.testing.assert_allclose(found[-1], expected, rtol=2e-2, atol=2e-3)


@given(st.integers(0, 2**16), st.integers(0, 3), st.integers(1, 6), st.floats(0.0, 3.0))
def test_it_equals_the_reference_where_some_are_selected(seed, c, iterations, pushed):
    rng, m = np.random.default_rng(seed), 2 * c + 9
    selected = [rng.choice(3 * m, m, replace=False) for _ in range(iterations)]
    rounds = [normal(m, 12, seed + t) for t in range(iterations)]
    for updates, workers in zip(rounds, selected):
        updates[workers < 3 * c] *= np.float32(1 + pushed)
    found, _ = course(rounds, c, selected)
    expected = reference.leverage(rounds, c, selected=selected)
    np.testing.assert_allclose(found[-1], expected, rtol=2e-2, atol=2e-3)


def test_it_equals_the_reference_where_workers_are_of_several_kinds():
    kinds = grouped(40, 30, 5, seed=3, noise=0)
    # With noise of its own in each round: of rounds that are all alike answers are rounding.
    rounds = [kinds + np.float32(0.3) * normal(40, 30, t) for t in range(3)]
    found, _ = course(rounds, 8)
    np.testing.assert_allclose(found[-1], reference.leverage(rounds, 8), rtol=2e-2, atol=2e-3)


def test_leverages_are_the_diagonal_of_a_ridge_projection():
    points = normal(12, 20)
    centred = points - points.mean(axis=0)
    gram = (centred @ centred.T).astype(float)
    found = products_of(squared_distances(points))
    np.testing.assert_allclose(found, gram, atol=1e-4)
    rho = 3 * np.sort(np.linalg.eigvalsh(gram))[2]
    expected = np.diag(gram @ np.linalg.inv(gram + rho * np.eye(12)))
    np.testing.assert_allclose(leverages(found, 2, 3.0), expected, atol=1e-3)


def test_leverages_of_points_that_are_all_alike_or_span_little():
    """G is then 0, or has no eigenvalue that could measure noise."""
    alike = np.ones((6, 4), np.float32)
    np.testing.assert_array_equal(leverages(products_of(squared_distances(alike)), 2), np.zeros(6))
    points = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [0, 0], [0, 0]], np.float32)
    held = leverages(products_of(squared_distances(points)), 2)
    np.testing.assert_allclose(held, [0.5, 0.5, 0.5, 0.5, 0, 0], atol=1e-3)


@given(st.integers(0, 6), st.integers(0, 2**16), st.floats(0.01, 100.0))
def test_what_measures_noise_lies_among_the_others(c, seed, far):
    """Whatever c points are, between the smallest and the (c + 1)th smallest of the others'."""
    points = grouped(24, 60, 5, seed).astype(float)
    points[:c] = far * np.random.default_rng(seed + 1).standard_normal((c, 60)) * (seed % 2)
    [all_of_them, others] = [
        np.sort(np.linalg.eigvalsh(rows @ rows.T))
        for rows in (points - points.mean(axis=0), points[c:] - points.mean(axis=0))
    ]
    assert others[0] - 1e-9 <= all_of_them[c] <= others[min(c, len(others) - 1)] + 1e-9


@given(st.integers(2, 8), st.integers(0, 2**16))
def test_copies_share_one_voice(copies, seed):
    points = normal(20, 40, seed)
    points[:copies] = points[0]
    held = leverages(products_of(squared_distances(points)), copies, 1.0)
    assert held[:copies].max() <= 1 / copies + 1e-3


@given(st.integers(2, 12), st.integers(0, 2**16), st.floats(0.0, 100.0))
def test_of_copies_more_say_less(copies, seed, far):
    """All k together at most 1 / (k (med h)^2), whatever they say."""
    points = normal(25, 40, seed)
    points[:copies] = np.float32(far)
    squared = squared_distances(points)
    middle = np.median(leverages(products_of(squared), copies))
    assert voices(squared, copies)[:copies].sum() <= 1.01 / (copies * middle**2)


def test_copies_lose_their_voice_where_others_have_one_each():
    points = normal(50, 200)
    points[:10] = 0.1
    found = voices(squared_distances(points), 10)
    assert found[:10].sum() < 0.05 * found.sum()


def test_copies_far_away_lose_their_voice_among_few_workers_of_many_kinds():
    """As under P5: the median eigenvalue is one of the ten kinds', and would hear them."""
    points = grouped(20, 40, 10, seed=1)
    points[:4] = -4 * points[4:].mean(axis=0)
    squared = squared_distances(points)
    shares = [found[:4].sum() / found.sum() for found in (voices(squared, 4), voices(squared, 10))]
    assert shares[0] < 0.1 < 0.2 < shares[1]


# ---- answers


def descending(seed, workers, d=6, iterations=40, wander=0.1):
    """What workers answered who descend quadratic losses of their own, and the model wanders."""
    rng = np.random.default_rng(seed)
    roots, best = rng.standard_normal((workers, d, d)), rng.standard_normal((workers, d))
    memory = {}
    make_room(np.arange(workers), d, memory)
    for _ in range(iterations):
        gradients = np.einsum("ikj,ikl,il->ij", roots, roots, memory["model"] - best)
        sent = (-0.05 * gradients).astype("f4")
        take_in(sent, np.ones(workers), np.arange(workers), memory, 0.985)
        memory["model"] += sent.mean(axis=0) + wander * rng.standard_normal(d)
    return memory["answers"]


@given(st.integers(0, 2**16), st.floats(0.0, 1.0))
def test_who_descends_a_convex_loss_never_moves_with_the_model(seed, wander):
    answers = descending(seed, 5, wander=wander)
    assert (answers <= 1e-4 * np.abs(answers).max()).all()


def test_answers_are_covariances_of_updates_and_places():
    rng, memory, sent, places = np.random.default_rng(0), {}, [], []
    make_room(np.arange(4), 7, memory)
    for _ in range(30):
        sent.append(normal(4, 7, len(sent)))
        take_in(sent[-1], np.full(4, 0.5), np.arange(4), memory, 0.9)
        places.append(memory["model"].copy())
        memory["model"] += rng.standard_normal(7)
    weights = 0.9 ** np.arange(29, -1, -1.0)
    for i in range(4):
        rows = np.column_stack([np.array(sent)[:, i] / 2, places])
        expected = weights.sum() * np.trace(np.cov(rows.T, aweights=weights, ddof=0)[:7, 7:])
        np.testing.assert_allclose(memory["answers"][i], expected, rtol=1e-4, atol=1e-4)


def test_weights_of_answers():
    counts = np.full(6, 2.0)
    answers = np.array([-4.0, -4.0, -4.0, -1.0, 0.0, 4.0])
    np.testing.assert_allclose(answering(answers, np.zeros(6), counts), [1, 1, 1, 0.8, 0, 0])
    doubted = answering(answers, np.array([0, 0, 0, 1.0, 0.04, 1.0]), counts)
    np.testing.assert_allclose(doubted, [1, 1, 1, 1, 0.48, 0])
    counts[5] = 1.0
    np.testing.assert_allclose(answering(answers, np.zeros(6), counts), [1, 1, 1, 0.5, 0, 1])
    for nobody in (np.zeros(6), np.ones(6)):
        assert (answering(answers, np.zeros(6), nobody) == 1).all()
    for nothing_told in (-answers, np.full(6, np.nan)):
        assert (answering(nothing_told, np.zeros(6), np.full(6, 2.0)) == 1).all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e36])
def test_answers_of_any_size(size):
    rounds = [np.float32(size) * grouped(12, 6, 3, t) for t in range(4)]
    ones = [rows / np.float32(size) for rows in rounds]
    found, state = course(rounds, 2)
    assert np.isfinite(found).all() and np.isfinite(state.memory["answers"]).all()
    np.testing.assert_allclose(found[-1] / size, course(ones, 2)[0][-1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("rounds", [3, 80])
@pytest.mark.parametrize("m, d, groups, c", [(40, 30, 5, 8), (20, 7, 4, 4)])
def test_updates_that_never_change_tell_nothing(m, d, groups, c, rounds):
    """Their answers are rounding, which adds up, however far the model went."""
    for seed in range(3):
        _, state = course([grouped(m, d, groups, seed, noise=0.3)] * rounds, c)
        told = (state.memory[name] for name in ("answers", "doubts", "counts"))
        np.testing.assert_array_equal(answering(*told), np.ones(m))


def test_what_points_differ_by_from_their_nearest():
    points = grouped(20, 30, 4)
    alone = beside_the_nearest(squared_distances(points), 4)
    apart = [x - points[np.argsort(((points - x) ** 2).sum(axis=1))[1:5]].mean(axis=0)
             for x in points]  # fmt: skip
    np.testing.assert_allclose(alone, squared_distances(np.array(apart)), atol=1e-3)


# ---- what it promises


@given(st.integers(0, 2**16), st.sampled_from([0.0, 1.0, 1e3, 1e30]))
def test_it_is_no_longer_than_a_usual_update(seed, size):
    updates = normal(15, 8, seed)
    updates[:3] *= np.float32(size)
    result = RULE(updates, c=3)
    assert np.linalg.norm(result) <= np.median(np.linalg.norm(updates.astype(float), axis=1)) + 1e-4


@given(st.integers(0, 2**16), st.sampled_from([1.0, 1e3, 1e30]))
def test_it_is_no_longer_than_usual_though_most_of_those_selected_are_compromised(seed, size):
    """Twenty workers are known, of whom four are compromised; then these and one other send."""
    before = [normal(20, 8, seed + t) for t in range(3)]
    now = normal(5, 8, seed + 3)
    now[:4] = np.float32(size)
    found, _ = course([*before, now], 1, [np.arange(20)] * 3 + [np.arange(5)])
    usual = np.linalg.norm(before[-1].astype(float), axis=1)
    usual[:5] = np.linalg.norm(now.astype(float), axis=1)
    assert np.linalg.norm(found[-1]) <= np.median(usual) * (1 + 1e-5)


def test_where_nobody_who_is_heard_sends_the_model_stays():
    """Four send the reverse of what they would answer, until nobody hears them."""
    rng = np.random.default_rng(0)
    state = ServerState(notes=Counter(), workers=np.arange(20))
    best = rng.standard_normal((20, 6))
    for _ in range(80):
        model = state.memory.get("model", np.zeros(6))
        sent = (0.1 * (best - model + 0.1 * rng.standard_normal((20, 6)))).astype("f4")
        sent[:4] *= -1
        RULE(sent, c=4, state=state)
    before = state.memory["model"].copy()
    state.workers = np.arange(4)
    np.testing.assert_array_equal(RULE(sent[:4], c=1, state=state), np.zeros(6))
    np.testing.assert_array_equal(state.memory["model"], before)


def test_of_those_known_as_many_are_expected_as_of_those_who_send():
    now = Said(None, None, None, np.zeros((36, 36)), None)
    assert among_all(20, 4, now) == (36, 7)
    assert among_all(50, 10, now) == (50, 10)  # of whom some are not finite


def test_copies_are_heard_less_though_most_of_those_selected_send_them():
    kinds = grouped(20, 40, 20, seed=1)
    kinds[:4] = -kinds[4:].mean(axis=0)
    rounds = [kinds + np.float32(0.1) * normal(20, 40, t) for t in range(4)]
    rounds[-1] = rounds[-1][[0, 1, 2, 3, 4, 5]]
    found, _ = course(rounds, 1, [np.arange(20)] * 3 + [np.arange(6)])
    honest, copied = rounds[-1][4:].mean(axis=0), rounds[-1][:4].mean(axis=0)
    assert np.linalg.norm(found[-1] - honest) < 0.2 * np.linalg.norm(copied - honest)


def test_who_sends_what_is_all_that_counts():
    rounds = [grouped(20, 10, 4, seed=t, noise=0.5) for t in range(3)]
    found, _ = course(rounds, 4)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(20) for _ in rounds]
    shuffled, _ = course([one[o] for one, o in zip(rounds, orders)], 4, orders)
    np.testing.assert_allclose(found[-1], shuffled[-1], rtol=1e-3, atol=1e-4)


def test_lengths_are_relative():
    updates = grouped(20, 10, 4)
    np.testing.assert_allclose(RULE(1000 * updates, c=4), 1000 * RULE(updates, c=4), rtol=5e-3)


def test_a_worker_that_is_not_selected_keeps_what_it_said():
    memory = {}

    def mean(rows, *workers):
        make_room(np.array(workers), 4, memory)
        take_in(rows, np.full(len(rows), 0.5), np.array(workers), memory, 0.9)
        return memory["sums"][[*workers]] / memory["counts"][[*workers], None]

    first, second = normal(3, 4), normal(2, 4, 1)
    np.testing.assert_allclose(mean(first, 0, 1, 2), first / 2, rtol=1e-5)
    found = mean(second, 1, 5)
    np.testing.assert_allclose(found[0], (0.9 * first[1] + second[0]) / 3.8, rtol=1e-5)
    np.testing.assert_allclose(found[1], second[1] / 2, rtol=1e-5)
    again = mean(second[:1], 0)
    np.testing.assert_allclose(again[0], (0.9 * first[0] + second[0]) / 3.8, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_left_out_and_not_remembered(value):
    updates = normal(12, 5)
    broken = updates.copy()
    broken[2, 3] = value
    _, state = course([broken, updates], 2)
    assert np.isfinite(state.memory["sums"]).all()
    assert np.isfinite(course([broken, updates], 2)[0][1]).all()
    assert state.memory["counts"][2] == 1
    assert np.isnan(RULE(np.full((5, 3), value), c=1)).all()


@pytest.mark.parametrize("length", [1e36, 1e37, 3e38])
def test_rows_whose_sums_would_overflow_are_left_out_and_the_others_go_on(length):
    huge, updates = np.full((9, 5), np.float32(length)), grouped(9, 5, 3)
    found, state = course([huge] * 70 + [updates] * 3, 2)
    assert all(np.isfinite(one).all() for one in state.memory.values() if np.ndim(one))
    assert np.isfinite(found[-1]).all()
    assert np.isfinite(found[0]).all() == (length == 1e36)


def test_rows_that_are_not_finite_are_among_those_that_the_filter_may_take():
    """More than a third send them, and the others are pairs of opposites, who go together."""
    updates = np.float32([[-1, 0], [1, 0], [0, 0.5], [0, -0.5], *[[np.nan, 0]] * 3])
    assert np.isfinite(RULE(updates, c=3)).all()
    rng = np.random.default_rng(0)
    for m in range(4, 10):
        for c in range(1, (m - 1) // 2 + 1):
            for _ in range(20):
                updates = rng.integers(-1, 2, (m, 2)).astype(np.float32)
                updates[m - c :] = np.nan
                assert np.isfinite(RULE(updates, c=c)).all()


def test_equal_updates_are_returned():
    np.testing.assert_allclose(RULE(np.ones((7, 3)), c=2), 1, rtol=1e-6)


def test_own_parameters_are_checked():
    for name, text in (("leverage:decay=1", "decay is 1"), ("leverage:near=-1", "near is -1")):
        with pytest.raises(BadInput, match=text):
            rules[name](normal(5, 3), c=1)


# ---- what it is for


@pytest.mark.parametrize("attack", ["alie:z=0.5,side=against", "ipm:epsilon=0.5", "krum"])
def test_copies_that_push_a_little_are_heard_less(attack):
    """Among workers of several kinds, where no one-round spectral filter sees them."""
    rng, kinds = np.random.default_rng(0), np.random.default_rng(1).standard_normal((5, 60))
    rounds, heard = [], []
    for _ in range(12):
        updates = (1 + 2 * kinds[np.arange(50) % 5] + rng.standard_normal((50, 60))).astype("f4")
        updates[:10] = attacks[attack](updates, c=10, rule="krum")
        rounds.append(updates)
    state = ServerState(notes=Counter())
    for updates in rounds:
        before = state.notes["workers kept"]
        state.workers = np.arange(50)
        result = RULE(updates, c=10, state=state)
        heard.append(state.notes["workers kept"] - before)
    away = np.linalg.norm(result - updates[10:].mean(axis=0))
    assert away < 0.7 * np.linalg.norm(updates.mean(axis=0) - updates[10:].mean(axis=0))


@pytest.mark.parametrize("c", [14, 17, 19])
def test_copies_by_more_than_a_third_are_not_all_that_is_left(c):
    """Among themselves they have no variance, and of m - 2c nobody else need be left."""
    kinds, rounds = np.random.default_rng(1).standard_normal((8, 60)), []
    for t in range(12):
        updates = (1 + 2 * kinds[np.arange(40) % 8] + normal(40, 60, t)).astype("f4")
        updates[:c] = attacks["alie:z=1,side=against"](updates, c=c, rule="krum")
        rounds.append(updates)
    found, _ = course(rounds, c)
    honest = updates[c:].mean(axis=0)
    away, whole = (np.linalg.norm(x - honest) for x in (found[-1], updates[0]))
    assert away < 0.6 * whole


@pytest.mark.parametrize("attack", ["sign-flip", "ipm:epsilon=4"])
def test_who_does_not_answer_to_the_model_is_not_heard(attack):
    small = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 200}
    result = run_trial(Setting(**small, rule="leverage", attack=attack), 1)
    assert result.error_rate < 0.15
    assert result.notes["workers kept"] < 16.5 * 200


def test_a_trial_goes_well():
    small = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 300}
    attacked, clean = (run_trial(Setting(**small, rule="leverage", attack=attack), 0).error_rate
                       for attack in ("alie:z=1,side=against", "none"))  # fmt: skip
    assert clean < 0.1
    assert attacked < clean + 0.1


@pytest.mark.slow
def test_a_trial_goes_well_though_most_of_those_selected_are_compromised_at_times():
    """Three of the five selected or more, in 18 of 300 iterations."""
    small = {"dataset": "digits", "workers": 20, "compromised": 4, "selected": 5}
    setting = {**small, "iterations": 300, "attack": "ipm:epsilon=100"}
    found = [run_trial(Setting(**setting, **rule), 1).error_rate
             for rule in ({"rule": "leverage"}, {"rule": "caf", "pre": "clip"})]  # fmt: skip
    assert found[0] < 0.15 < 0.8 < found[1]
