"""Mean shift, beside scikit-learn's."""

import contextlib
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.cluster import MeanShift, estimate_bandwidth

from fltrust_repro.mean_shift import mean_shift, reach


def theirs(points, width):
    shift = MeanShift(bandwidth=width, bin_seeding=True, cluster_all=False)
    with warnings.catch_warnings(), contextlib.suppress(ValueError):  # no point is near a seed
        warnings.simplefilter("ignore")  # that no two points share a cell
        return shift.fit(points).labels_
    return np.full(len(points), -1)


@given(st.integers(0, 2**16), st.integers(2, 60), st.integers(0, 20), st.sampled_from([1, 2, 3]))
def test_groups_are_scikit_learns(seed, many, few, k):
    rng = np.random.default_rng(seed)
    points = np.concatenate([0.1 * rng.standard_normal((many, k)), 2 * rng.random((few, k))])
    width = 1.01 * estimate_bandwidth(points, quantile=0.5)  # no distance between two points
    assume(width > 1e-6)
    assert reach(points, 0.5) == pytest.approx(width / 1.01)
    np.testing.assert_array_equal(mean_shift(points, width), theirs(points, width))


@pytest.mark.parametrize("width", [0.02, 0.2, 1.0, 50.0])
def test_groups_are_scikit_learns_at_any_width(width):
    points = np.random.default_rng(0).standard_normal((80, 3))
    np.testing.assert_array_equal(mean_shift(points, width), theirs(points, width))


def test_where_no_place_meets_a_point_there_is_no_group():
    corners = np.array([[0.49, 0.49, 0.49], [0.49, 0.49, 0.49]])  # 0.85 from their cell's center
    np.testing.assert_array_equal(mean_shift(corners, 1.0), [0, 0])
    away = np.full((2, 5), 0.49)  # and 1.1
    np.testing.assert_array_equal(mean_shift(away, 1.0), theirs(away, 1.0))
    np.testing.assert_array_equal(mean_shift(away, 1.0), [-1, -1])
