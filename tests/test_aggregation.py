"""Aggregation rules: the paper's definitions, and what they promise whatever c workers send."""

import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fltrust_repro import aggregation
from fltrust_repro.aggregation import (
    Limit,
    bulyan,
    krum,
    mean,
    median,
    rule,
    rules,
    trimmed_mean,
)
from fltrust_repro.backend import nd
from fltrust_repro.distances import squared_distances
from fltrust_repro.errors import BadInput, BeyondLimit

NAN, INF = np.float32("nan"), np.float32("inf")


def array(values):
    return nd.array(np.asarray(values, dtype=np.float32))


def integers(rows, columns, largest=50):
    """Matrices of small integers: sums and distances of them are exact, ties are frequent."""
    return arrays(np.int64, (rows, columns), elements=st.integers(-largest, largest))


@st.composite
def problems(draw, spare=1):
    """Integer updates with c and beta >= c, m > 2 beta, and m >= 2c + spare."""
    c = draw(st.integers(0, 3))
    m = 2 * c + draw(st.integers(spare, 6))
    beta = draw(st.integers(c, (m - 1) // 2))
    return draw(integers(m, draw(st.integers(1, 5)))), c, beta


# --- definitions


@pytest.mark.parametrize(("m", "c"), [(4, 1), (5, 1), (10, 3), (25, 5), (100, 20)])
def test_rules_equal_the_reference_on_random_updates(m, c):
    values = np.random.default_rng(m).standard_normal((m, 37)).astype(np.float32)
    updates = array(values)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(mean(updates).asnumpy(), reference.mean(values), **close)
    np.testing.assert_array_equal(krum(updates, c).asnumpy(), reference.krum(values, c))
    expected = reference.trimmed_mean(values, c)
    np.testing.assert_allclose(trimmed_mean(updates, c).asnumpy(), expected, **close)
    np.testing.assert_allclose(median(updates).asnumpy(), reference.median(values), **close)


@pytest.mark.parametrize(("m", "c"), [(5, 1), (6, 0), (9, 2), (30, 7), (100, 20)])
def test_bulyan_equals_the_reference(m, c):
    values = np.random.default_rng(m).standard_normal((m, 19)).astype(np.float32)
    expected = reference.bulyan(values, c)
    np.testing.assert_allclose(bulyan(array(values), c).asnumpy(), expected, rtol=1e-5, atol=1e-6)


@given(st.data())
def test_bulyan_on_ties_and_with_c_rows_that_are_anything(data):
    c = data.draw(st.integers(0, 2))
    m = 4 * c + data.draw(st.integers(1, 4))
    values = data.draw(integers(m, 3)).astype(np.float32)
    np.testing.assert_allclose(bulyan(array(values), c).asnumpy(), reference.bulyan(values, c))
    values[:c] = data.draw(st.sampled_from([NAN, INF, -INF, np.float32(1e30)]))
    out = bulyan(array(values), c).asnumpy()
    assert (values[c:].min(axis=0) <= out).all()
    assert (out <= values[c:].max(axis=0)).all()


LEAVE_ONE_OUT = ("mean", "krum", "trimmed-mean", "median", "bulyan")


@pytest.mark.parametrize("name", LEAVE_ONE_OUT)
@pytest.mark.parametrize(("m", "c"), [(6, 1), (7, 1), (30, 5), (31, 5)])
def test_aggregates_without_each_worker_equal_the_naive_ones(name, m, c):
    values = np.random.default_rng(m).standard_normal((m, 23)).astype(np.float32)
    found = rules[name].without_each(array(values), c=c, beta=c)
    for i in range(m):
        naive = rules[name](array(np.delete(values, i, axis=0)), c=c, beta=c).asnumpy()
        row = found.aggregates[found.which[i]]
        np.testing.assert_allclose(row, naive, rtol=1e-6, atol=1e-6)


@given(st.data(), st.sampled_from(LEAVE_ONE_OUT[:4]))
def test_aggregates_without_each_worker_on_ties(data, name):
    c = data.draw(st.integers(0, 2))
    m = 2 * c + data.draw(st.integers(4, 7))
    values = data.draw(integers(m, 2, largest=3)).astype(np.float32)
    found = rules[name].without_each(array(values), c=c, beta=c)
    for i in range(m):
        naive = rules[name](array(np.delete(values, i, axis=0)), c=c, beta=c).asnumpy()
        np.testing.assert_allclose(found.aggregates[found.which[i]], naive, atol=1e-5)


@pytest.mark.parametrize(("name", "m"), [("krum", 4), ("trimmed-mean", 3), ("bulyan", 5)])
def test_a_limit_holds_for_all_but_one_worker_too(name, m):
    assert rules[name](np.eye(m), c=1).shape == (m,)
    with pytest.raises(BeyondLimit, match=f"rule '{name}' needs .* m = {m - 1} workers"):
        rules[name].without_each(np.eye(m), c=1)


def test_krum_without_each_worker_has_as_many_aggregates_as_differ():
    values = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    found = rules["krum"].without_each(array(values), c=3, beta=3)
    assert len(found.aggregates) == len(np.unique(found.which)) == 2


def test_a_rule_of_ones_own_is_left_out_the_slow_way(monkeypatch):
    monkeypatch.setattr(rules, "_entries", dict(rules))

    @rule("test-largest")
    def largest(updates):
        """Largest of each."""
        return updates.max(axis=0)

    found = rules["test-largest"].without_each(array([[1], [5], [3]]), c=0, beta=0)
    np.testing.assert_array_equal(found.aggregates[found.which], [[5], [3], [5]])


@given(problems(spare=3))
def test_rules_equal_the_reference_on_tied_integers(problem):
    values, c, beta = problem
    updates = array(values)
    np.testing.assert_array_equal(krum(updates, c).asnumpy(), reference.krum(values, c))
    np.testing.assert_array_equal(median(updates).asnumpy(), reference.median(values))
    expected = reference.trimmed_mean(values, beta).astype(np.float32)
    np.testing.assert_array_equal(trimmed_mean(updates, beta).asnumpy(), expected)


def test_mean_of_a_column():
    np.testing.assert_array_equal(mean(array([[1, 0], [2, 0], [6, 3]])).asnumpy(), [3, 1])


def test_trimmed_mean_drops_beta_values_at_each_end_of_each_column():
    columns = array([[5, 1], [1, 5], [2, 2], [9, 3], [4, -7]])
    np.testing.assert_array_equal(trimmed_mean(columns, 0).asnumpy(), np.float32([4.2, 0.8]))
    np.testing.assert_array_equal(trimmed_mean(columns, 2).asnumpy(), [4, 2])
    third = np.float32([11 / 3, 2])
    np.testing.assert_array_equal(trimmed_mean(columns, 1).asnumpy(), third)


@pytest.mark.parametrize(
    ("column", "expected"),
    [([7], 7), ([7, 9], 8), ([3, 1, 2], 2), ([4, 1, 3, 2], 2.5), ([1, 1, 9, 9], 5), ([-1, 1], 0)],
)
def test_median_of_an_even_number_is_the_mean_of_the_middle_two(column, expected):
    assert median(array(column).reshape((-1, 1))).asscalar() == expected


@pytest.mark.parametrize("m", [*range(1, 12), 50, 99, 100, 150])
def test_median_for_any_number_of_workers(m):
    values = np.random.default_rng(m).standard_normal((m, 9)).astype(np.float32)
    np.testing.assert_allclose(
        median(array(values)).asnumpy(), reference.median(values), rtol=1e-6, atol=1e-7
    )


def krum_by_float64(values, c):
    """The row of least score, and all scores."""
    squared = reference.squared_distances(values)
    scores = np.sort(squared, axis=1)[:, 1 : len(values) - c - 1].sum(axis=1)
    return scores.argmin(), scores


def test_krum_far_from_zero_selects_the_right_row():
    values = np.float32(4096 + np.array([[0], [8], [9], [10], [40]]) / 64)
    assert krum(values, c=1) == values[2]


@pytest.mark.parametrize(("offset", "sigma"), [(10, 0.01), (100, 0.001), (0.0, 1.0)])
def test_krum_on_local_models_selects_what_it_selects_on_updates(offset, sigma):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = (offset + sigma * rng.standard_normal((20, 1000))).astype(np.float32)
        values[7] = offset + 10 * sigma * rng.standard_normal(1000)
        best, scores = krum_by_float64(values, 4)
        chosen = np.flatnonzero((values == krum(values, c=4)).all(axis=1))
        assert chosen.size == 1
        assert scores[chosen[0]] <= scores[best] * (1 + 1e-6)


@pytest.mark.parametrize("m", [5, 11, 20])
def test_of_equal_updates_krum_and_bulyan_take_the_first(m):
    # Whole numbers, so that no product is rounded; a row's copies have its distances.
    values = np.random.default_rng(m).integers(-9, 10, (m, 300)).astype(np.float32)
    values[[2, m - 1]] = values[1]
    squared = squared_distances(array(values))
    assert aggregation.Crowd(squared).select(2)[0] == 1
    assert aggregation.bulyan_selection(squared, 1, 3).tolist()[:2] == [1, 2]


@given(st.integers(0, 2**16), st.integers(4, 12))
def test_two_mutually_nearest_rows_tie_for_the_first(seed, m):
    # With one neighbour, the nearest pair has one distance, the least of all.
    values = np.random.default_rng(seed).standard_normal((m, 50)).astype(np.float32)
    squared = squared_distances(array(values))
    pair = np.unravel_index((squared + np.diag(np.full(m, np.inf))).argmin(), squared.shape)
    assert aggregation.Crowd(squared).select(1)[0] == min(pair)
    assert aggregation.bulyan_selection(squared, m - 3, 1) == min(pair)


def test_krum_bulyan_and_leaving_one_out_select_alike():
    squared = squared_distances(np.random.default_rng(0).standard_normal((12, 40)))
    crowd = aggregation.Crowd(squared)
    for neighbours in range(1, 11):
        for left_out in range(12):
            others = np.arange(12) != left_out
            alone = aggregation.Crowd(squared[np.ix_(others, others)]).select(neighbours)
            choice, score = crowd.select(neighbours, others)
            assert (np.flatnonzero(others)[alone[0]], alone[1]) == (choice, score)


@given(st.data())
def test_copies_of_one_more_model_are_selected_as_if_they_stood_among_the_others(data):
    values = data.draw(integers(data.draw(st.integers(2, 8)), 2, largest=4))
    n, copies = len(values), data.draw(st.integers(1, 4))
    everyone = np.concatenate([np.tile(data.draw(integers(1, 2, largest=4)), (copies, 1)), values])
    squared = reference.squared_distances(everyone)
    neighbours = data.draw(st.integers(1, n + copies - 1))
    crowd = aggregation.Crowd(squared[copies:, copies:])
    choice, score = crowd.select(neighbours, None, squared[0, copies:], copies)
    expected, least = aggregation.Crowd(squared).select(neighbours)
    assert score == least
    assert choice == (expected - copies if expected >= copies else -1)


@pytest.mark.parametrize("large", [1e10, -1e10, 1e30, INF, NAN])
@pytest.mark.parametrize("place", [0, 3])
def test_the_mean_without_a_large_row_is_that_of_the_others(large, place):
    values = np.float32([[1], [1], [1], [1]])
    values[place] = large
    without = rules["mean"].without_each(array(values), c=1)
    assert without.aggregates[without.which][place] == 1


def test_krum_sums_squared_distances():
    # Two neighbours. Plain distances choose 0 (0.1 + 5, against 3 + 3), squared ones 20 (9 + 9,
    # against 0.01 + 25).
    assert krum(array([[0], [-0.1], [5], [20], [23], [17]]), 2).asscalar() == 20


def test_krum_of_fourth_powers_is_another_rule():
    updates = np.float32([[1.7], [8.0], [6.4], [9.5], [3.6], [4.3]])
    by_power = {power: rules[f"krum:power={power}"](updates, c=2).item() for power in (2, 4)}
    scores = {p: [sum(sorted(abs(a - b) ** p for b in updates.ravel())[1:3])
                  for a in updates.ravel()] for p in (2, 4)}  # fmt: skip
    assert by_power == {p: updates[int(np.argmin(scores[p]))].item() for p in (2, 4)}
    assert by_power[2] != by_power[4]
    assert rules["krum:power=2"].name == "krum"
    left = rules["krum:power=4"].without_each(updates, c=1)
    for i in range(6):
        rest = np.delete(updates, i, axis=0)
        alone = rules["krum:power=4"](rest, c=1)
        np.testing.assert_array_equal(left.aggregates[left.which[i]], alone)
    with pytest.raises(BadInput, match="power is 0"):
        rules["krum:power=0"](updates, c=1)


def test_krum_looks_at_exactly_m_minus_c_minus_2_neighbours():
    # One neighbour: the pair 10, 10.1. Two: the middle of 0, 1.2, 2.4. Then ever more central.
    values = array([[0], [1.2], [2.4], [5], [10], [10.1]])
    selected = [krum(values, c).asscalar() for c in (3, 2, 1, 0)]
    assert selected == [np.float32(w) for w in (10, 1.2, 2.4, 5)]


def test_krum_takes_the_first_of_equal_scores():
    # 1 and 2 are mirror images; so are 3 and 4.
    assert krum(array([[2], [1], [4], [3]]), 1).asscalar() == 2
    assert krum(array([[4, 1], [3, 2], [1, 3], [2, 4]]), 1).asnumpy().tolist() == [4, 1]


@given(problems(spare=3))
def test_krum_returns_one_of_its_models(problem):
    values, c, _ = problem
    assert krum(array(values), c).asnumpy().tolist() in values.tolist()


def test_krum_returns_a_copy():
    updates = array([[1], [1], [1], [9]])
    chosen = krum(updates, 1)
    chosen[:] = 5
    assert updates.asnumpy().ravel().tolist() == [1, 1, 1, 9]


def test_a_registered_rule_takes_what_it_needs_of_c_and_beta():
    updates = array([[0], [1], [2], [4], [9]])
    assert rules["mean"](updates, c=1, beta=2).asscalar() == np.float32(3.2)
    assert rules["trimmed-mean"](updates, c=1, beta=2).asscalar() == 2
    assert rules["krum"](updates, c=1, beta=2).asscalar() == 1
    assert rules["median"](updates, c=1, beta=0).asscalar() == 2


def test_a_rule_may_ask_for_what_there_is_only():
    with pytest.raises(BadInput, match=r"'mine' takes gamma.*take c, beta, rng"):
        rule("mine")(lambda updates, gamma: updates[0])
    assert "mine" not in rules


def test_a_limit_says_what_is_missing():
    limit = Limit("m - 2c", lambda m, c, beta: m - 2 * c)
    limit.check("rule 'mine'", m=5, c=2, beta=0)
    with pytest.raises(BadInput, match=r"rule 'mine' needs m - 2c >= 1.*m = 4.*c = 2.*it is 0"):
        limit.check("rule 'mine'", m=4, c=2, beta=0)


# --- properties


@given(problems(), st.randoms(use_true_random=False))
def test_numbering_the_workers_otherwise_changes_nothing(problem, random):
    values, _, beta = problem
    order = list(range(len(values)))
    random.shuffle(order)
    updates, permuted = array(values), array(values[order])
    for aggregate in (median, lambda u: trimmed_mean(u, beta), mean):
        np.testing.assert_array_equal(aggregate(updates).asnumpy(), aggregate(permuted).asnumpy())


@given(problems(spare=3), st.data())
def test_a_common_shift_shifts_the_result(problem, data):
    values, c, beta = problem
    shift = data.draw(integers(1, values.shape[1]))
    updates, shifted = array(values), array(values + shift)
    for aggregate in (median, lambda u: krum(u, c)):
        moved = aggregate(updates).asnumpy() + shift[0]
        np.testing.assert_array_equal(aggregate(shifted).asnumpy(), moved)
    for aggregate in (mean, lambda u: trimmed_mean(u, beta)):
        moved = aggregate(updates).asnumpy() + shift[0]
        np.testing.assert_allclose(aggregate(shifted).asnumpy(), moved, rtol=1e-5, atol=1e-5)


BAD = [NAN, -NAN, INF, -INF, *np.float32([1e30, -1e30, 3e38, -3e38])]


@given(problems(), st.data())
def test_trimmed_mean_and_median_stay_among_the_benign_values(problem, data):
    values, c, beta = problem
    benign = values[c:]
    sent = values.astype(np.float32)
    for i in range(c):
        sent[i] = data.draw(st.sampled_from([*BAD, np.float32(60), np.float32(-0.0)]))
    for out in (median(array(sent)).asnumpy(), trimmed_mean(array(sent), beta).asnumpy()):
        assert (out >= benign.min(axis=0)).all()
        assert (out <= benign.max(axis=0)).all()


@given(problems(spare=3), st.data())
def test_a_bad_row_counts_as_an_extreme_one(problem, data):
    values, c, beta = problem
    rows = data.draw(st.permutations(range(len(values))))[:c]
    sent, extreme = values.astype(np.float32), values.astype(np.float32)
    for i in rows:
        bad = data.draw(st.sampled_from(BAD))
        sent[i], extreme[i] = bad, np.copysign(1e6, bad)
    for name in ("krum", "trimmed-mean", "median"):
        out = rules[name](array(sent), c=c, beta=beta).asnumpy()
        assert np.isfinite(out).all()
        np.testing.assert_array_equal(out, rules[name](array(extreme), c=c, beta=beta).asnumpy())


@given(problems(spare=3), st.data())
def test_krum_never_selects_a_row_with_one_bad_value(problem, data):
    values, c, _ = problem
    assume(c > 0)
    sent = values.astype(np.float32)
    rows = data.draw(st.permutations(range(len(values))))[:c]
    for i in rows:
        sent[i, data.draw(st.integers(0, values.shape[1] - 1))] = data.draw(st.sampled_from(BAD))
    out = krum(array(sent), c).asnumpy()
    assert out.tolist() in [values[i].tolist() for i in range(len(values)) if i not in rows]


def test_one_bad_value_reaches_the_mean():
    # Why the robust rules exist: one compromised worker is enough (2.2).
    assert np.isnan(mean(array([[1], [2], [NAN]])).asscalar())
    assert mean(array([[1], [2], [INF]])).asscalar() == np.inf


@pytest.mark.parametrize("d", [511, 512, 513, 8191, 8192, 8193])
def test_bad_rows_are_kept_out_in_every_block_of_columns(d):
    values = np.random.default_rng(d).standard_normal((9, d)).astype(np.float32)
    clean = values[2:].copy()
    values[0], values[1, -1] = INF, NAN
    for name in ("krum", "trimmed-mean", "median"):
        out = rules[name](array(values), c=2, beta=2).asnumpy()
        assert (out >= clean.min(axis=0)).all()
        assert (out <= clean.max(axis=0)).all()


def test_mixed_magnitudes():
    values = array([[1e-30, 1e20], [2e-30, -1e20], [3e-30, 1], [4e-30, 2], [5e-30, 3]])
    np.testing.assert_allclose(trimmed_mean(values, 1).asnumpy(), [3e-30, 2], rtol=1e-6)
    np.testing.assert_array_equal(median(values).asnumpy(), np.float32([3e-30, 2]))
    assert krum(values, 2).asnumpy()[1] in (1, 2, 3)
