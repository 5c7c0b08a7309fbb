"""CAF and DnC: their formulas, and what they promise whatever c workers send."""

import numpy as np
import pytest
import reference_field as reference
from hypothesis import given
from hypothesis import strategies as st
from made import normal

from fltrust_repro.aggregation import rules
from fltrust_repro.distances import squared_distances
from fltrust_repro.errors import BadInput
from fltrust_repro.spectral import caf, dnc, spread

CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@st.composite
def problems(draw):
    """Updates in general position, c of which may be pushed one way, and c; m at the limit too."""
    c = draw(st.integers(0, 4))
    m, d = 2 * c + draw(st.integers(1, 8)), draw(st.integers(1, 30))
    updates = normal(m, d, draw(st.integers(0, 2**16)))
    updates[:c] += draw(st.sampled_from([0.0, 0.5, 3.0, 1e3]))
    return updates, c


def both(updates, c):
    return [caf(updates, c=c), dnc(updates, c=c), dnc(updates, c=c, iterations=5, b=len(updates))]


# --- formulas


@pytest.mark.parametrize("m", [2, 9, 40])
def test_the_spread_of_points_is_that_of_their_covariance(m):
    points = normal(m, 6)
    shares = np.random.default_rng(1).random(m)
    shares /= shares.sum()
    mean = shares @ points
    covariance = (points - mean).T @ np.diag(shares) @ (points - mean)
    values, vectors = np.linalg.eigh(covariance)
    variance, places = spread(squared_distances(points), shares)
    assert variance == pytest.approx(values[-1], rel=1e-4)
    expected = (points - mean) @ vectors[:, -1]
    np.testing.assert_allclose(places * np.sign(places @ expected), expected, **CLOSE)


@given(problems())
def test_caf_equals_the_reference(problem):
    updates, c = problem
    np.testing.assert_allclose(caf(updates, c=c), reference.caf(updates, c), **CLOSE)


def test_caf_equals_the_reference_where_it_filters_often():
    updates = normal(60, 20)
    updates[:15] -= np.float32(0.8)
    found = caf(updates, c=15)
    np.testing.assert_allclose(found, reference.caf(updates, 15), **CLOSE)
    assert np.abs(found - updates.mean(axis=0)).max() > 0.05


def test_caf_goes_on_after_the_farthest_is_gone():
    # The second outlier is as nothing beside the first, which counts no more once its weight is 0.
    updates = normal(9, 4)
    updates[0], updates[1] = 1e6, (1e3, -1e3, 1e3, -1e3)
    honest = updates[2:].mean(axis=0)
    assert np.abs(caf(updates, c=2) - honest).max() < 0.5


@given(problems(), st.integers(0, 9), st.sampled_from([0.5, 1.0]))
def test_dnc_equals_the_reference(problem, seed, fraction):
    updates, c = problem
    d = updates.shape[1]
    for iterations, b in ((1, 10_000), (1, max(d // 2, 2)), (5, max(d // 2, 2))):
        of_rule, of_reference = (np.random.default_rng(seed) for _ in range(2))
        own = {"iterations": iterations, "fraction": fraction, "b": b}
        found = dnc(updates, c=c, rng=of_rule, **own)
        np.testing.assert_allclose(found, reference.dnc(updates, c, of_reference, **own), **CLOSE)


def test_dnc_draws_as_many_coordinates_as_it_is_told_and_anew_in_each_iteration():
    # Ten coordinates, in each of which another update is far out: by all of them each goes alike.
    updates = np.eye(10, dtype=np.float32) * np.float32(100) + normal(10, 10)
    found = dnc(updates, c=1, b=1, iterations=4, rng=np.random.default_rng(0))
    drawn = np.random.default_rng(0)
    gone = {int(drawn.choice(10, 1, replace=False)[0]) for _ in range(4)}
    assert len(gone) > 1
    np.testing.assert_allclose(found, np.delete(updates, list(gone), axis=0).mean(axis=0), **CLOSE)


def test_where_no_update_survives_all_of_dnc_those_that_most_often_did_are_averaged():
    updates = np.eye(4, dtype=np.float32) * np.float32(100) + normal(4, 4)
    drawn = np.random.default_rng(0)
    times = np.bincount([drawn.choice(4, 1, replace=False)[0] for _ in range(12)], minlength=4)
    assert (times > 0).all()
    found = dnc(updates, c=1, b=1, iterations=12, rng=np.random.default_rng(0))
    np.testing.assert_allclose(found, updates[times == times.min()].mean(axis=0), **CLOSE)


# --- promises


@given(problems())
def test_the_mean_is_the_result_where_nobody_is_compromised_or_all_agree(problem):
    updates, c = problem
    for found in both(updates, 0):
        np.testing.assert_allclose(found, updates.mean(axis=0), **CLOSE)
    for found in both(np.tile(updates[0], (len(updates), 1)), c):
        np.testing.assert_allclose(found, updates[0], rtol=1e-6)


@given(problems(), st.integers(0, 9))
def test_workers_have_no_order_and_updates_no_origin_nor_scale(problem, seed):
    updates, c = problem
    order = np.random.default_rng(seed).permutation(len(updates))
    for rule in (caf, dnc):
        found = rule(updates, c=c)
        np.testing.assert_allclose(rule(updates[order], c=c), found, **CLOSE)
        np.testing.assert_allclose(rule(updates + np.float32(4), c=c), found + 4, **CLOSE)
        for scale in np.float32([2.0**-20, -4, 2.0**20]):
            np.testing.assert_allclose(rule(updates * scale, c=c) / scale, found, **CLOSE)


@given(problems(), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_a_row_that_is_not_finite_is_as_one_that_is_not_there(problem, value, data):
    updates, c = problem
    lost = data.draw(st.integers(0, c))
    broken = updates.copy()
    broken[:lost, -1] = value
    before = broken.copy()
    expected = updates[lost:].mean(axis=0)
    for found in both(broken, c):
        assert np.isfinite(found).all()
    if lost == c:
        np.testing.assert_allclose(dnc(broken, c=c), expected, **CLOSE)
    np.testing.assert_array_equal(broken, before)


def test_without_a_finite_row_the_result_is_nan():
    for found in both(np.full((5, 3), np.inf, dtype=np.float32), 2):
        assert np.isnan(found).all()


@pytest.mark.parametrize("large", [1e18, 1e38])
def test_a_value_that_a_float_can_just_hold_does_not_count(large):
    updates = normal(12, 5)
    updates[:3] = np.float32(large)
    for found in both(updates, 3):
        assert np.abs(found - updates[3:].mean(axis=0)).max() < 0.6


@pytest.mark.parametrize("push", [0.5, 1.0, 5.0, 1e4])
def test_a_common_push_of_a_fifth_of_all_workers_is_undone(push):
    updates = normal(100, 1500)
    updates[:20] -= np.float32(push)
    honest = updates[20:].mean(axis=0)
    for found in (caf(updates, c=20), dnc(updates, c=20)):
        assert (found - honest).mean() == pytest.approx(0, abs=0.01)


def test_caf_keeps_the_mean_where_nobody_pushes():
    updates = normal(100, 1500)
    assert np.abs(caf(updates, c=20) - updates.mean(axis=0)).max() < 0.1


def test_dnc_is_the_same_for_the_same_generator_alone():
    updates = normal(10, 200)
    first, again, other = (
        dnc(updates, c=3, b=5, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_limits_and_wrong_parameters_are_told():
    with pytest.raises(BadInput, match=r"'caf' needs m - 2c >= 1"):
        caf(normal(4, 2), c=2)
    with pytest.raises(BadInput, match=r"'dnc' needs m - c >= 1"):
        dnc(normal(4, 2), c=4)
    assert caf(normal(5, 2), c=2).shape == (2,)
    for own in ("iterations=0", "b=0", "fraction=-1.0", "fraction=9.0"):
        with pytest.raises(BadInput, match=own.split("=")[0]):
            rules[f"dnc:{own}"](normal(4, 2), c=1)
