"""Kernels and rules against float64 on inputs that break careless arithmetic.

Results are float32, so that a result is at best within half a unit of its 24th binary digit. What
is allowed beyond that is stated with each test.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fltrust_repro.aggregation import bulyan, krum, mean, median, rules, trimmed_mean
from fltrust_repro.backend import nd
from fltrust_repro.distances import squared_distances
from fltrust_repro.kernels import mean_around_median, middle_mean, middle_means_without

NAN, INF = np.float32("nan"), np.float32("inf")
ROUNDING = 2.0**-24  # half a unit of float32's last digit
SMALLEST = 2.0**-149  # the smallest float32 above 0


def array(values):
    return nd.array(np.asarray(values, dtype=np.float32))


def any_floats(rows, columns, **limits):
    """Matrices of any float32 at all: NaN of both signs, infinities, denormals, zeros."""
    elements = st.floats(width=32, **limits)
    return arrays(np.float32, st.tuples(rows, columns), elements=elements)


def _mixed(rng, m, d):
    magnitude = 10.0 ** rng.uniform(-44, 38, (m, d))
    return magnitude * rng.choice([-1, 1], (m, d))


def _few_huge(rng, m, d):
    values = rng.standard_normal((m, d))
    values[0], values[1, ::2], values[2] = 1e30, -1e30, 1e38
    return values


def _non_finite(*bad):
    def make(rng, m, d):
        values = rng.standard_normal((m, d))
        values[: len(bad)] = np.array(bad)[:, None]
        return values

    return make


HARD = {
    "ties": lambda rng, m, d: rng.integers(-2, 3, (m, d)),
    "zeros of both signs": lambda rng, m, d: rng.choice([0.0, -0.0, 1.0], (m, d)),
    "denormals": lambda rng, m, d: rng.integers(-9, 10, (m, d)) * SMALLEST,
    "tiny": lambda rng, m, d: rng.standard_normal((m, d)) * 1e-30,
    "smallest normal": lambda rng, m, d: rng.standard_normal((m, d)) * 1e-37,
    "huge": lambda rng, m, d: rng.uniform(-3.4e38, 3.4e38, (m, d)),
    "all magnitudes": _mixed,
    "few huge": _few_huge,
    "one huge": lambda rng, m, d: np.where(np.arange(m)[:, None] == 3, 1e35, 1.0 + rng.random(d)),
    "same in all": lambda rng, m, d: np.full((m, d), 0.1),
    "NaN rows": _non_finite(NAN, -NAN),
    "infinite rows": _non_finite(INF, -INF),
    "rows of one infinity": _non_finite(INF, INF),
    "NaN and infinite rows": _non_finite(NAN, INF),
}


@pytest.fixture(params=HARD)
def hard(request):
    """A function that makes a hard float32 matrix of a shape."""

    def make(m, d):
        return HARD[request.param](np.random.default_rng(m + d), m, d).astype(np.float32)

    make.kind = request.param
    return make


def assert_within(out, expected, allowed):
    """Equal where not finite, else no further away than allowed."""
    out, expected = out.astype(np.float64), np.asarray(expected)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(out[~finite], expected[~finite])
    away = np.abs(np.subtract(out, expected, where=finite, out=np.zeros(expected.shape)))
    assert (away <= allowed).all(), (out[away > allowed], expected[away > allowed])


def rounding_of(kept, digits=ROUNDING):
    """What float32 may lose on each column's sum: of its largest value, or below any digit."""
    largest = np.array([max(abs(v) for v in column) for column in kept])
    return np.where(np.isfinite(largest), largest, 0) * digits + SMALLEST


# --- order statistics: float64 sums, rounded once


def check_middle_mean(values, first, stop):
    expected = reference.middle_mean(values, first, stop)
    out = middle_mean(array(values), first, stop)
    # Cancellation leaves the float64 sum its own last digits.
    lost = rounding_of(reference.ranks_kept(values, first, stop), len(values) * 2.0**-52)
    finite = np.where(np.isfinite(expected), np.abs(expected), 0)
    assert_within(out, expected, finite * ROUNDING + lost)


@pytest.mark.parametrize(("m", "first", "stop"), [(9, 0, 9), (9, 2, 7), (10, 4, 6), (30, 29, 30)])
def test_middle_mean(hard, m, first, stop):
    check_middle_mean(hard(m, 40), first, stop)


@given(any_floats(st.integers(1, 12), st.integers(1, 3)), st.data())
def test_middle_mean_of_anything(values, data):
    first = data.draw(st.integers(0, len(values) - 1))
    check_middle_mean(values, first, data.draw(st.integers(first + 1, len(values))))


def check_means_without(values, first, stop):
    """Each within float32 rounding of the largest value in its mean."""
    out = middle_means_without(array(values), first, stop)
    for i in range(len(values)):
        others = np.delete(values, i, axis=0)
        allowed = rounding_of(reference.ranks_kept(others, first, stop), 1.01 * ROUNDING)
        assert_within(out[i], reference.middle_mean(others, first, stop), allowed)


@pytest.mark.parametrize(("m", "first", "stop"), [(9, 0, 8), (9, 2, 6), (10, 4, 5), (21, 8, 12)])
def test_means_without_each_row(hard, m, first, stop):
    values = hard(m, 30)
    check_means_without(values, first, stop)


@given(any_floats(st.integers(2, 9), st.integers(1, 3)), st.data())
def test_means_without_each_row_of_anything(values, data):
    first = data.draw(st.integers(0, len(values) - 2))
    stop = data.draw(st.integers(first + 1, len(values) - 1))
    check_means_without(values, first, stop)


def check_around_median(values, rows, keep):
    expected = reference.around_median(values[rows], keep)
    out = mean_around_median(array(values), rows, keep)
    # Two sums may take different ones of two values that are equally far but for rounding.
    largest = np.nanmax(np.where(np.isfinite(values[rows]), np.abs(values[rows]), 0), axis=0)
    assert_within(out, expected, largest * ROUNDING + SMALLEST)


@pytest.mark.parametrize(("n", "keep"), [(9, 1), (9, 5), (10, 6), (7, 7)])
def test_mean_around_the_median(hard, n, keep):
    values = hard(12, 40)
    rows = np.random.default_rng(n).permutation(12)[:n]
    if not np.isfinite(values[rows]).all() and keep > 5:
        pytest.skip("fewer finite values than are kept")
    check_around_median(values, rows, keep)


@given(any_floats(st.integers(1, 12), st.integers(1, 3), allow_nan=False, allow_infinity=False),
       st.data())  # fmt: skip
def test_mean_around_the_median_of_anything_finite(values, data):
    check_around_median(values, np.arange(len(values)), data.draw(st.integers(1, len(values))))


# --- distances: within 1e-5 of the two squared norms


def squared_norms(values):
    return (np.where(np.isfinite(values), values, 0).astype(np.float64) ** 2).sum(axis=1)


def norms_seen(values, distances):
    """From zero; or from a row amid the others, where most of these share a large part with one."""
    norms, half = squared_norms(values), len(values) // 2
    near = distances < norms[:, None] / 15.99  # the code takes 16, of distances that it has rounded
    if (near.sum(axis=1) > half).any():
        middle = np.sort(distances, axis=1)[:, half].argmin()
        with np.errstate(invalid="ignore"):
            moved = values.astype(np.float64) - values[middle]
        norms = np.maximum(norms, squared_norms(moved))
    return norms


def check_distances(values):
    expected = reference.squared_distances(values)
    norms = norms_seen(values, np.asarray(expected))
    assert_within(squared_distances(array(values)), expected, 1e-5 * (norms[:, None] + norms))


@pytest.mark.parametrize("few", [[0.30664062, 0], [0, 0.30664062]])
def test_distances_of_few_beside_most_that_share_a_large_part(few):
    check_distances(np.array([[9], *([value] for value in few), [7], [7]], dtype=np.float32))


@pytest.mark.parametrize(("m", "d"), [(5, 1), (12, 50), (6, 8193)])
def test_distances(hard, m, d):
    values = hard(m, d)
    check_distances(values)


@given(any_floats(st.integers(1, 6), st.integers(1, 4)))
def test_distances_of_anything(values):
    check_distances(values)


def test_distances_of_tiny_rows_beside_ordinary_and_zero_ones():
    values = np.random.default_rng(0).standard_normal((6, 300)) * 1e-25
    values[4:], values[1] = 1, 0
    check_distances(values.astype(np.float32))


# --- rules


@given(any_floats(st.integers(1, 12), st.integers(1, 3)))
def test_mean_of_anything(values):
    check_mean(values)


def test_mean(hard):
    check_mean(hard(10, 60))


def check_mean(values):
    """The mean is summed in float32: of each of m sums, the last digit may be lost."""
    expected = reference.middle_mean(values, 0, len(values))
    lost = rounding_of(list(values.T), len(values) * ROUNDING)
    assert_within(mean(array(values)).asnumpy(), expected, lost)


@pytest.mark.parametrize("name", ["mean", "trimmed-mean", "median"])
def test_rules_without_a_bad_row(hard, name):
    # Mean sums in float32, and the largest of all values sets what that loses.
    values = hard(9, 20)
    found = rules[name].without_each(array(values), c=2, beta=2)
    for i in range(9):
        others = np.delete(values, i, axis=0)
        first, stop = {"mean": (0, 8), "trimmed-mean": (2, 6), "median": (3, 5)}[name]
        expected = reference.middle_mean(others, first, stop)
        kept = values.T if name == "mean" else reference.ranks_kept(others, first, stop)
        if hard.kind == "huge" and name == "mean":
            expected = np.clip(expected, -3.4e38, 3.4e38)
        out = found.aggregates[found.which[i]]
        assert_within(out, expected, rounding_of(list(kept), 9 * ROUNDING))


def test_krum_selects_a_row_of_least_score(hard):
    # But for what distances are allowed to lose.
    values = hard(11, 60)
    squared = reference.squared_distances(values)
    scores = np.sort(squared, axis=1)[:, 1:8].sum(axis=1)  # 11 - 2 - 2 neighbours, not itself
    chosen = krum(array(values), 2).asnumpy()
    (places,) = np.nonzero((values == chosen).all(axis=1))
    norms = squared_norms(values)
    nearest = np.argsort(squared, axis=1)[:, 1:8]
    lost = 1e-5 * (norms[nearest] + norms[:, None]).sum(axis=1)
    assert scores[places[0]] - lost[places[0]] <= (scores + lost).min()


@pytest.mark.parametrize("bad", [NAN, -NAN, INF, -INF, np.float32(3e38), np.float32(-1e20)])
@pytest.mark.parametrize("scale", [SMALLEST * 64, 1e-30, 1e-22, 1.0, 1e15])
def test_bad_rows_reach_no_robust_rule_at_any_scale(bad, scale):
    values = (np.random.default_rng(5).standard_normal((15, 40)) * scale).astype(np.float32)
    values[[2, 7, 9]] = bad
    good = np.delete(values, [2, 7, 9], axis=0)
    for name in ("krum", "bulyan", "trimmed-mean", "median"):
        out = rules[name](array(values), c=3, beta=3).asnumpy()
        assert (good.min(axis=0) <= out).all(), name
        assert (out <= good.max(axis=0)).all(), name


@given(arrays(np.int64, st.tuples(st.integers(9, 12), st.integers(1, 4)),
              elements=st.integers(-50, 50)), st.integers(-149, 120))  # fmt: skip
def test_rules_do_not_depend_on_the_unit(values, power):
    # Exact for small integers times a power of two, from denormals to where squares overflow.
    sent = array(values * 2.0**power)
    unit = 2.0**power
    np.testing.assert_array_equal(sent.asnumpy(), values * unit)
    np.testing.assert_array_equal(krum(sent, 2).asnumpy(), reference.krum(values, 2) * unit)
    for out, expected in (
        (mean(sent), reference.mean(values)),
        (median(sent), reference.median(values)),
        (trimmed_mean(sent, 3), reference.trimmed_mean(values, 3)),
        (bulyan(sent, 2), reference.bulyan(values, 2)),
    ):
        close = np.abs(expected * unit) * 2 * ROUNDING + SMALLEST
        assert_within(out.asnumpy(), expected * unit, close)
