"""FLTrust: its formula, and what it promises whatever workers send."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltrust_repro.aggregation import rules
from fltrust_repro.errors import BadInput
from fltrust_repro.server import ServerState
from fltrust_repro.server_rules import fltrust

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def reference(updates, root):
    """From the text: one worker after the other."""
    updates, root = np.asarray(updates, dtype=np.float64), np.asarray(root, dtype=np.float64)
    total, trusted = np.zeros(len(root)), 0.0
    for update in updates:
        length = math.sqrt(sum(x * x for x in update))
        own = math.sqrt(sum(x * x for x in root))
        if not 0 < length * own < math.inf:
            continue
        score = max(0.0, sum(x * y for x, y in zip(update, root)) / (length * own))
        total += score * own / length * update
        trusted += score
    return total / trusted if trusted else total


@st.composite
def problems(draw):
    m, d = draw(st.integers(1, 12)), draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    root = rng.standard_normal(d).astype(np.float32)
    updates = rng.standard_normal((m, d)).astype(np.float32) + np.float32(0.5) * root
    updates *= np.float32(10.0) ** rng.integers(-5, 6, (m, 1))
    updates[rng.random(m) < 0.2] = 0
    return updates, root


@pytest.mark.parametrize("wrong", [{}, {"x": 1}, 0, "state"])
def test_a_state_that_is_none_is_refused(wrong):
    for name in ("mean", "leverage"):
        with pytest.raises(BadInput, match=f"rule '{name}': state is .*; give a ServerState"):
            rules[name](np.ones((6, 4), dtype=np.float32), c=1, state=wrong)


@given(problems())
def test_it_is_the_formula(problem):
    updates, root = problem
    notes = ServerState().notes
    np.testing.assert_allclose(
        fltrust(updates, root=root, notes=notes), reference(*problem), **CLOSE
    )
    cosines = (updates @ root.astype(np.float64)) > 0
    assert notes["workers kept"] == np.count_nonzero(cosines)
    lengths = np.linalg.norm(updates.astype(float), axis=1) * np.linalg.norm(root.astype(float))
    trust = np.maximum(updates @ root.astype(np.float64), 0) / np.where(lengths > 0, lengths, 1)
    assert notes["trust"] == pytest.approx(trust.sum(), rel=1e-4, abs=1e-6)


@given(problems(), st.floats(0.01, 100), st.integers(0, 99))
def test_workers_have_no_order_and_their_lengths_do_not_count(problem, scale, seed):
    updates, root = problem
    result = fltrust(updates, root=root)
    order = np.random.default_rng(seed).permutation(len(updates))
    np.testing.assert_allclose(fltrust(updates[order], root=root), result, **CLOSE)
    longer = updates * np.float32(scale)
    np.testing.assert_allclose(fltrust(longer, root=root), result, **CLOSE)
    with_root = fltrust(updates, root=root * np.float32(scale))
    np.testing.assert_allclose(with_root, result * scale, rtol=1e-4, atol=1e-4 * scale)


@given(problems())
def test_no_result_is_longer_than_the_servers_own_update_or_goes_against_it(problem):
    updates, root = problem
    result = fltrust(updates, root=root).astype(np.float64)
    assert np.linalg.norm(result) <= np.linalg.norm(root.astype(np.float64)) * (1 + 1e-5)
    assert result @ root >= 0


@given(problems(), st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 99))
def test_a_row_that_is_not_finite_is_as_one_that_is_not_there(problem, value, place):
    updates, root = problem
    bad = np.insert(updates, place % (len(updates) + 1), updates[0], axis=0)
    row = bad[place % (len(updates) + 1)]
    row[place % row.size] = value
    np.testing.assert_array_equal(fltrust(bad, root=root), fltrust(updates, root=root))


@pytest.mark.parametrize("root", [[0, 0], [np.nan, 1], [np.inf, 1]])
def test_a_server_that_has_no_direction_trusts_nobody(root):
    assert fltrust([[1, 2], [3, 4]], root=np.float32(root)).tolist() == [0, 0]


def test_where_all_go_against_the_server_the_model_stays():
    assert fltrust([[-1, 0], [0, 0], [-3, 0.5]], root=[1, 0]).tolist() == [0, 0]


def test_copies_of_the_servers_update_are_it_and_values_may_be_as_large_as_floats_are():
    root = np.float32([3e38, -1, 2])
    for scale in (1, 1e-30):
        found = fltrust(np.tile(root * np.float32(scale), (5, 1)), root=root)
        np.testing.assert_allclose(found, root, rtol=1e-5)


def test_it_needs_the_servers_own_update_of_the_right_size():
    with pytest.raises(BadInput, match=r"'fltrust' asks for root, .*ServerState\(root=...\)"):
        rules["fltrust"](np.ones((3, 2)), c=0)
    with pytest.raises(BadInput, match=r"'fltrust': root must be numbers of shape \(2,\)"):
        rules["fltrust"](np.ones((3, 2)), c=0, state=ServerState(root=np.ones(3)))
    state = ServerState(root=[1, 1])  # a list likewise
    assert rules["fltrust"]([[1, 1]], c=0, state=state).tolist() == [1, 1]


def test_arguments_stay_as_they_are():
    updates, root = np.ones((3, 2), dtype=np.float32), np.ones(2, dtype=np.float32)
    fltrust(updates, root=root)
    assert (updates == 1).all()
    assert (root == 1).all()
