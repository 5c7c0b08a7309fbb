"""LASA: its formula, and what it sees in a layer that is lost in the whole."""

import numpy as np
import pytest
import reference_field as reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made import normal

from fltrust_repro.aggregation import rules
from fltrust_repro.errors import BadInput
from fltrust_repro.layerwise import lasa, layer_statistics, ordinary
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial
from fltrust_repro.weighing import weighted_sum

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def cut(d, *at):
    ends = [0, *at, d]
    return tuple(slice(a, b) for a, b in zip(ends, ends[1:]))


@st.composite
def problems(draw):
    m, d = draw(st.integers(1, 14)), draw(st.integers(3, 40))
    updates = normal(m, d, draw(st.integers(0, 2**16))) + np.float32(draw(st.integers(0, 2)))
    updates[: draw(st.integers(0, m // 2))] *= draw(st.sampled_from([1, -1, 5, 1e3]))
    return updates, cut(d, *sorted({draw(st.integers(1, d - 1)) for _ in range(2)}))


@given(arrays(np.float64, 2, elements=st.floats(-1e6, 1e6, width=32)))
def test_two_values_both_lie_one_deviation_from_their_median(values):
    assert ordinary(values, 1.0).all()


@given(problems(), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([0.5, 1.0, 2.0]))
def test_lasa_equals_the_reference(problem, sparsity, radius):
    updates, layers = problem
    # Where a radius lies just on a value, rounding decides: shifted a little.
    own = {"sparsity": sparsity, "norm_radius": radius + 0.0123, "sign_radius": 1.0321}
    found = lasa(updates, layers=layers, **own)
    expected = reference.lasa(updates, layers, *own.values())
    np.testing.assert_allclose(found, expected, **CLOSE)


@given(st.integers(1, 60), st.data())
def test_the_largest_magnitudes_are_found_whatever_the_numbers(d, data):
    special = st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, 1.0, -1.0])
    numbers = st.floats(-1e3, 1e3, width=32) | special
    row = np.float32([data.draw(st.lists(numbers, min_size=d, max_size=d))])
    keep = data.draw(st.integers(1, d))
    norms, purity = layer_statistics(row, np.array([0]), keep, np.array([0, d]))
    least = np.sort(np.abs(row[0]))[::-1][keep - 1]
    kept = row[0][np.abs(row[0]) >= least].astype(np.float64)
    signs = np.sign(kept).sum() / max(np.abs(np.sign(kept)).sum(), 1)
    np.testing.assert_allclose(norms[0, 0], np.linalg.norm(kept), rtol=1e-12)
    assert purity[0, 0] == pytest.approx((1 + signs) / 2)


def test_layers_come_in_any_order_and_hold_each_parameter_once():
    updates = normal(6, 4)
    expected = rules["lasa"](updates, c=0, state=ServerState(layers=(slice(2), slice(2, 4))))
    for layers in ((slice(2, 4), slice(0, 2)), (slice(2, None), slice(-2))):
        found = rules["lasa"](updates, c=0, state=ServerState(layers=layers))
        np.testing.assert_array_equal(found, expected)
    for wrong in ((slice(2),), (slice(3), slice(2, 4)), (slice(1), slice(2, 4))):
        with pytest.raises(BadInput, match=r"layers are 0:.*; they must hold each of 4 param"):
            rules["lasa"](updates, c=0, state=ServerState(layers=wrong))


def test_who_stands_apart_in_one_layer_is_left_out_there_alone():
    updates, layers = normal(20, 400) + np.float32(0.2), cut(400, 350)
    updates[:4, 350:] *= -4  # too long there, and of other signs; the whole is hardly longer
    found, seen = (ServerState(layers=layers) for _ in range(2))
    result = rules["lasa:sign_radius=9"](updates, c=0, state=found)
    assert abs(result[350:].mean() - 0.2) < 0.1
    rules["lasa:sign_radius=9"](updates[4:], c=0, state=seen)
    assert found.notes["workers kept"] < seen.notes["workers kept"] + 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_as_one_that_is_not_there(bad):
    updates, layers = normal(12, 30), cut(30, 20)
    broken = np.vstack([updates, np.full_like(updates[:2], bad)])
    before = broken.copy()
    np.testing.assert_allclose(lasa(broken, layers=layers), lasa(updates, layers=layers), **CLOSE)
    np.testing.assert_array_equal(broken, before)
    assert np.isnan(lasa(np.full((3, 4), bad))).all()


@given(problems(), st.sampled_from([2.0**-20, 2.0**20]), st.integers(0, 9))
def test_workers_have_no_order_and_updates_no_scale(problem, scale, seed):
    updates, layers = problem
    order = np.random.default_rng(seed).permutation(len(updates))
    own = {"layers": layers, "norm_radius": 1.4142, "sign_radius": 1.0321}
    found, again = lasa(updates, **own), lasa(updates[order] * np.float32(scale), **own)
    np.testing.assert_allclose(again / np.float32(scale), found, **CLOSE)


def test_copies_of_one_update_one_worker_and_zeros():
    updates = np.tile(normal(1, 9), (5, 1))
    np.testing.assert_allclose(lasa(updates), updates[0], **CLOSE)
    np.testing.assert_allclose(lasa(updates[:1]), updates[0], **CLOSE)
    assert lasa(np.zeros((5, 3))).tolist() == [0, 0, 0]


def test_sums_of_some_columns_are_those_of_all():
    updates, weights = normal(7, 5000), np.random.default_rng(0).random(7)
    whole = weighted_sum(updates, weights)
    for columns in (slice(0, 1), slice(17, 4200), slice(4999, 5000)):
        np.testing.assert_array_equal(weighted_sum(updates, weights, columns), whole[columns])


@pytest.mark.parametrize("own", ["sparsity=1", "sparsity=-0.1", "norm_radius=0", "sign_radius=-1"])
def test_wrong_parameters_are_told_in_a_sentence(own):
    with pytest.raises(BadInput, match=f"'lasa': {own.split('=')[0]} is"):
        rules[f"lasa:{own}"](normal(4, 3), c=1)


def test_in_a_trial_it_looks_at_the_model_s_layers():
    setting = Setting(
        dataset="digits", workers=12, compromised=2, iterations=6, rule="lasa", attack="ipm"
    )
    found, again = (run_trial(setting, seed=3) for _ in range(2))
    assert found.curve == again.curve
    assert 0 < found.notes["workers kept"] < 72
