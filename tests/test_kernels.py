"""The two primitives: every width, rank and awkward value."""

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from fltrust_repro.backend import nd
from fltrust_repro.distances import distances_from, lengths_and_slopes, squared_distances
from fltrust_repro.kernels import (
    extremes,
    middle_mean,
    moments,
    selection_network,
    sorting_network,
)

NAN, INF = np.float32("nan"), np.float32("inf")


def array(values):
    return nd.array(np.asarray(values, dtype=np.float32))


def apply_network(network, values):
    values = values.copy()
    for low, high in network:
        pair = values[:, [low, high]]
        values[:, low], values[:, high] = pair.min(axis=1), pair.max(axis=1)
    return values


@pytest.mark.parametrize("n", range(1, 11))
def test_network_sorts_every_input_of_zeros_and_ones(n):
    inputs = reference.zero_one_inputs(n)
    np.testing.assert_array_equal(apply_network(sorting_network(n), inputs), np.sort(inputs, 1))


@pytest.mark.parametrize("n", [11, 15, 16, 17, 31, 33, 50, 63, 64, 65, 80, 99, 100, 127, 129, 150])
def test_network_sorts_random_inputs_and_thresholds(n):
    rng = np.random.default_rng(n)
    inputs = np.concatenate(
        [
            rng.permuted(np.tile(np.arange(n), (200, 1)), axis=1),
            rng.random((200, n)) < rng.random((200, 1)),
            np.tril(np.ones((n, n), dtype=int)),
            np.triu(np.ones((n, n), dtype=int)),
        ]
    )
    np.testing.assert_array_equal(apply_network(sorting_network(n), inputs), np.sort(inputs, 1))


def test_network_of_one_value_compares_nothing():
    assert sorting_network(1).shape == (0, 2)


@pytest.mark.parametrize("n", range(1, 9))
def test_selection_brings_every_range_of_ranks_to_its_places(n):
    inputs = reference.zero_one_inputs(n)
    ordered = np.sort(inputs, 1)
    for first in range(n):
        for stop in range(first + 1, n + 1):
            places = apply_network(selection_network(n, first, stop), inputs)
            for part in (slice(None, first), slice(first, stop), slice(stop, None)):
                assert (places[:, part].sum(axis=1) == ordered[:, part].sum(axis=1)).all()


def test_selection_compares_less_than_sorting_and_nothing_for_all_ranks():
    assert selection_network(7, 0, 7).shape == (0, 2)
    assert len(selection_network(9, 0, 1)) == 8
    assert len(selection_network(100, 20, 80)) < 0.9 * len(sorting_network(100))


@pytest.mark.parametrize("d", [1, 2, 511, 512, 513, 1023, 1024, 1025])
@pytest.mark.parametrize("m", [1, 2, 5, 8, 33])
def test_every_rank_is_exact_across_block_boundaries(m, d):
    values = np.random.default_rng(m * d).standard_normal((m, d)).astype(np.float32)
    ordered = np.sort(values, axis=0)
    for rank in {0, m // 2, m - 1}:
        out = middle_mean(array(values), rank, rank + 1)
        np.testing.assert_array_equal(out, ordered[rank])


@pytest.mark.parametrize(("m", "first", "stop"), [(3, 0, 3), (10, 2, 8), (100, 20, 80), (7, 3, 4)])
def test_middle_mean_is_the_mean_of_the_ranks_asked_for(m, first, stop):
    values = np.random.default_rng(m).standard_normal((m, 700)).astype(np.float32)
    expected = np.sort(values.astype(np.float64), axis=0)[first:stop].mean(axis=0)
    out = middle_mean(array(values), first, stop)
    assert (out.shape, out.dtype) == ((700,), np.float32)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-7)


AWKWARD = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, -1e-40, 1.0, 1.0000001, -1.0, 3e38, -3e38, 1e-6]


@given(st.lists(st.sampled_from([*AWKWARD, float("inf"), -float("inf")]), min_size=1, max_size=20))
def test_ties_denormals_zeros_and_infinities_are_ranked_as_numpy_ranks_them(column):
    values = np.array(column, dtype=np.float32).reshape(-1, 1)
    out = [middle_mean(array(values), k, k + 1).item() for k in range(len(column))]
    np.testing.assert_array_equal(np.array(out, dtype=np.float32), np.sort(values[:, 0]))


@pytest.mark.parametrize("seed", range(3))
def test_neighbouring_floats_are_told_apart(seed):
    near = np.float32([*AWKWARD, INF, -INF])
    with np.errstate(over="ignore"):
        values = np.concatenate([near, np.nextafter(near, INF), np.nextafter(near, -INF)])
    np.random.default_rng(seed).shuffle(values)
    column = array(values.reshape(-1, 1))
    out = [middle_mean(column, rank, rank + 1).item() for rank in range(len(values))]
    np.testing.assert_array_equal(np.array(out, dtype=np.float32), np.sort(values))


@pytest.mark.parametrize("nan", [NAN, -NAN])
def test_nan_of_either_sign_is_an_extreme_beyond_the_infinities(nan):
    column = array([[1], [nan], [2], [INF], [-INF], [3], [nan]])
    ranks = [middle_mean(column, k, k + 1).item() for k in range(7)]
    finite = [-np.inf, 1.0, 2.0, 3.0, np.inf]
    assert ranks[:5] == finite or ranks[2:] == finite
    assert np.isnan(ranks).sum() == 2


def test_a_column_with_nan_does_not_touch_its_neighbours():
    values = np.arange(15, dtype=np.float32).reshape(5, 3)
    values[2, 1] = NAN
    out = middle_mean(array(values), 2, 3)
    assert out[0] == 6
    assert out[2] == 8


def test_sums_do_not_lose_small_values_beside_large_ones():
    # In float32 1e8 + 1 - 1e8 is 0.
    assert middle_mean(array([[1e8], [1.5], [-1e8]]), 0, 3).item() == 0.5


def test_the_mean_of_two_huge_values_does_not_overflow():
    assert middle_mean(array([[3e38], [3e38]]), 0, 2).item() == np.float32(3e38)


@pytest.mark.parametrize("d", [1, 4095, 4096, 4097])
@pytest.mark.parametrize("m", [1, 2, 9])
def test_extremes_are_on_the_side_asked_for_and_nan_is_one(m, d):
    rng = np.random.default_rng(d)
    values = rng.choice(np.float32([-INF, -2, -1, 0, 1, 2, INF, 3e38]), (m, d))
    values[rng.random((m, d)) < 0.1] = NAN
    sides = rng.choice(np.float32([-1, 1]), d)
    expected = np.where(sides > 0, values.max(axis=0), values.min(axis=0))
    np.testing.assert_array_equal(extremes(values, sides), expected)


@pytest.mark.parametrize("d", [1, 511, 512, 513])
@pytest.mark.parametrize("m", [1, 2, 33])
def test_moments_are_numpys_and_what_is_not_finite_stays_in_its_column(m, d):
    values = np.random.default_rng(m).standard_normal((m, d)).astype(np.float32)
    values[0, -1] = INF
    mean, deviation = moments(values)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(deviation, values.std(axis=0), rtol=1e-6, atol=1e-7)


def test_kernels_leave_their_input_as_it_is():
    values = np.random.default_rng(0).standard_normal((6, 600)).astype(np.float32)
    values[2, 3] = NAN
    updates = array(values)
    middle_mean(updates, 1, 5)
    squared_distances(updates)
    np.testing.assert_array_equal(updates.asnumpy(), values)


def test_distances_of_a_triangle():
    squared = squared_distances(array([[0, 0], [3, 4], [0, 1]]))
    assert squared.dtype == np.float64
    np.testing.assert_array_equal(squared, [[0, 25, 1], [25, 0, 18], [1, 18, 0]])


def integer_distances(values):
    wide = values.astype(np.float64)
    return ((wide[:, None] - wide[None]) ** 2).sum(axis=2)


@pytest.mark.parametrize("d", [1, 511, 8191, 8192, 8193, 16385])
def test_distances_of_small_integers_are_exact_across_block_boundaries(d):
    values = np.random.default_rng(d).integers(-3, 4, (5, d))
    np.testing.assert_array_equal(squared_distances(array(values)), integer_distances(values))


def test_distances_are_as_exact_as_float32_products_allow():
    values = np.random.default_rng(3).standard_normal((40, 9000)).astype(np.float32) * 0.01
    expected = integer_distances(values)
    np.testing.assert_allclose(squared_distances(array(values)), expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [NAN, -NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 8192, 8199])
def test_one_non_finite_value_puts_its_row_infinitely_far_and_harms_no_other(bad, place):
    values = np.random.default_rng(0).integers(-3, 4, (5, 8200)).astype(np.float32)
    expected = integer_distances(values)
    expected[3, :] = expected[:, 3] = np.inf
    expected[3, 3] = 0
    values[3, place] = bad
    np.testing.assert_array_equal(squared_distances(array(values)), expected)


@pytest.mark.parametrize("huge", [1e18, 1e19, 1e30, -3e38])
def test_a_row_of_huge_values_is_far_away_and_harms_no_other(huge):
    values = np.random.default_rng(0).integers(-3, 4, (5, 8200)).astype(np.float32)
    expected = integer_distances(values)
    values[1] = huge
    squared = squared_distances(array(values))
    others = [0, 2, 3, 4]
    np.testing.assert_array_equal(squared[np.ix_(others, others)], expected[np.ix_(others, others)])
    np.testing.assert_allclose(squared[1, others], 8200 * float(huge) ** 2, rtol=1e-5)
    assert not np.isnan(squared).any()


def test_non_finite_and_huge_rows_together():
    squared = squared_distances(array([[0, 0], [NAN, 1], [1e30, 0], [3, 4], [0, -INF]]))
    assert squared[0, 3] == 25
    assert squared[0, 2] == pytest.approx(1e60, rel=1e-6)
    assert np.isinf(squared[1, [0, 2, 3, 4]]).all()
    assert np.isinf(squared[4, [0, 1, 2, 3]]).all()
    np.testing.assert_array_equal(np.diag(squared), np.zeros(5))


# --- far from zero, and the same both ways


@pytest.mark.parametrize("m", [2, 5, 11, 20, 33, 100])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_distances_are_exactly_symmetric(m, offset):
    values = np.random.default_rng(m).standard_normal((m, 9000)) + offset
    squared = squared_distances(array(values))
    np.testing.assert_array_equal(squared, squared.T)
    assert (np.diag(squared) == 0).all()


def test_of_an_asymmetric_product_one_half_is_taken():
    products = np.array([[4.0, 99.0, -99.0], [1.0, 9.0, 99.0], [2.0, 3.0, 16.0]])
    squared = distances_from(products, np.ones(3, dtype=bool))
    assert squared.tolist() == [[0, 11, 16], [11, 0, 19], [16, 19, 0]]


@given(
    st.integers(0, 2**16),
    st.sampled_from([1.0, 30.0, 1e3, -1e6]),
    st.sampled_from([1.0, 1e-2, 1e-3]),
    st.integers(3, 12),
)
def test_a_large_common_part_does_not_cancel_the_distances(seed, offset, spread, m):
    rng = np.random.default_rng(seed)
    values = (offset + spread * rng.standard_normal((m, 60))).astype(np.float32)
    expected = reference.squared_distances(values)
    np.testing.assert_allclose(squared_distances(array(values)), expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("d", [1, 50, 9000])
def test_rows_times_factors_are_as_far_apart_as_if_they_had_been_multiplied(offset, d):
    rng = np.random.default_rng(d)
    values = (offset + rng.standard_normal((9, d))).astype(np.float32)
    values[3] = INF
    factors = rng.choice([0.0, 0.5, 1.0, 1.0], size=9)
    with np.errstate(invalid="ignore"):
        expected = squared_distances(values * factors.astype("f4")[:, None])
    np.testing.assert_allclose(squared_distances(values, factors), expected, rtol=1e-3, atol=1e-3)


def test_the_smallest_numbers_that_crowd_are_told_from_zero():
    values = np.float32([[0], [1e-45], [1e-45]])
    np.testing.assert_array_equal(
        squared_distances(array(values)), reference.squared_distances(values)
    )


@pytest.mark.parametrize("sent", [0.0, 1e10, -1e4, NAN, INF])
def test_a_minority_cannot_bring_the_cancellation_back(sent):
    rng = np.random.default_rng(0)
    values = (1000 + 0.01 * rng.standard_normal((9, 200))).astype(np.float32)
    values[:4] = sent
    expected = reference.squared_distances(values[4:])
    squared = squared_distances(array(values))[4:, 4:]
    np.testing.assert_allclose(squared, expected, rtol=1e-4)


def test_lengths_and_slopes_are_summed_in_float64():
    rows = np.float32([[3e38, 3e38], [1, 1e-5], [-4096, 4096.015625]])
    direction = np.float32([1, 1])
    wide = rows.astype(np.float64)
    out = lengths_and_slopes(rows, direction)
    np.testing.assert_allclose(out, [(wide**2).sum(axis=1), wide.sum(axis=1)], rtol=1e-14)


def test_lengths_of_rows_that_are_not_finite_are_not_finite():
    out = lengths_and_slopes(np.float32([[NAN, 1], [INF, 1], [1, 2]]), np.float32([1, -1]))
    assert np.isfinite(out).tolist() == [[False, False, True]] * 2
