"""Order statistics on a GPU are those of the CPU to the bit; the kernels run as C++ here."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fltrust_repro import backend, gpu_order, kernels
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FLOATS)


@pytest.fixture
def passes(device):
    return gpu_order._passes(device.device_id)


def in_pinned_memory(updates):
    place = backend.pinned(updates.shape, 0)
    backend.host_view(place)[:] = updates
    return backend.host_view(place)


@pytest.fixture(scope="module")
def emulated(emulated_kernels):
    ctx = backend.mx.cpu()
    return gpu_order.Passes(ctx, emulated_kernels(gpu_order.SOURCE, ctx))


@given(updates=MATRICES, ranks=st.data())
def test_middle_mean_is_the_cpus_to_the_bit(emulated, updates, ranks):
    m = len(updates)
    first = ranks.draw(st.integers(0, m - 1))
    stop = ranks.draw(st.integers(first + 1, m))
    network = kernels.selection_network(m, first, stop)
    found = emulated.middle_mean(updates, network, first, stop)
    np.testing.assert_array_equal(found, kernels.middle_mean(updates, first, stop))


# A single column is to numpy one run of memory, which it sums in another order.
@given(updates=MATRICES.filter(lambda updates: updates.shape[1] > 1))
def test_mean_is_numpys_to_the_bit(emulated, updates):
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(emulated.mean(updates), updates.mean(axis=0))


@given(updates=MATRICES, sides=st.data())
def test_extremes_are_the_cpus_to_the_bit(emulated, updates, sides):
    d = updates.shape[1]
    side = np.float32(sides.draw(st.lists(st.sampled_from([-1, 1]), min_size=d, max_size=d)))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(
            emulated.extremes(updates, side), kernels.extremes(updates, side)
        )


@pytest.mark.parametrize(("m", "d"), [(1, 1), (10, 300), (100, 7_850), (101, 513)])
def test_on_the_device_too(passes, m, d):
    updates = np.random.default_rng(m).standard_normal((m, d), dtype=np.float32)
    sides = np.where(updates[0] > 0, 1, -1).astype(np.float32)
    kept = updates.copy()
    for first, stop in ((0, 1), (m // 5, m - m // 5), ((m - 1) // 2, m // 2 + 1), (m - 1, m)):
        network = kernels.selection_network(m, first, stop)
        found = passes.middle_mean(updates, network, first, stop)
        np.testing.assert_array_equal(found, kernels.middle_mean(updates, first, stop))
    np.testing.assert_array_equal(passes.extremes(updates, sides), kernels.extremes(updates, sides))
    np.testing.assert_array_equal(passes.mean(updates), kernels.column_mean(updates))
    np.testing.assert_array_equal(updates, kept)


def test_memory_is_known_by_what_it_was_cut_from():
    pinned = in_pinned_memory(np.ones((6, 4), dtype=np.float32))
    for part in (pinned, pinned[2:], pinned.reshape(4, 6), pinned[1]):
        assert backend.pinned_for(part) == 0
    other = backend.host_view(backend.nd.ones((6, 4)))
    for array in (pinned.copy(), pinned + 1, np.delete(pinned, 0, axis=0), other, np.ones(3)):
        assert backend.pinned_for(array) is None


def test_a_sum_that_overflows_there_is_taken_in_float64(device):
    updates = np.float32([[3e38, 1], [3e38, 2], [-3e38, 3]])
    expected = kernels.column_mean(updates)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(kernels.column_mean(in_pinned_memory(updates)), expected)


@pytest.mark.parametrize("name", ["mean", "trimmed-mean", "median"])
def test_a_rule_goes_where_the_updates_are_and_its_result_is_the_same(device, monkeypatch, name):
    updates = np.random.default_rng(0).standard_normal((20, 40), dtype=np.float32)
    expected = rules[name](updates, c=4)
    used = count_calls(
        monkeypatch, gpu_order._passes(0), "mean" if name == "mean" else "middle_mean"
    )
    np.testing.assert_array_equal(rules[name](updates, c=4), expected)
    assert not used
    there = rules[name](in_pinned_memory(updates), c=4)
    np.testing.assert_array_equal(there, expected)
    assert len(used) == 1


def test_updates_can_be_written_after_they_were_copied(passes):
    pinned = in_pinned_memory(np.ones((6, 4), dtype=np.float32))
    passes.mean(pinned)
    assert pinned.flags.writeable


def test_an_attack_likewise(device, monkeypatch):
    updates = np.random.default_rng(0).standard_normal((20, 40), dtype=np.float32)
    expected = attacks["trimmed-mean"](updates, c=4)
    used = count_calls(monkeypatch, gpu_order._passes(0), "extremes")
    np.testing.assert_array_equal(attacks["trimmed-mean"](in_pinned_memory(updates), c=4), expected)
    assert len(used) == 1


def count_calls(monkeypatch, passes, name):
    calls, own = [], getattr(passes, name)
    monkeypatch.setattr(passes, name, lambda *given: calls.append(name) or own(*given))
    return calls
