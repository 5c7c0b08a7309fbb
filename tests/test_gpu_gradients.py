"""The formulas for a GPU against the Gluon loop on the host; the kernels run as C++ here."""

import numpy as np
import pytest
from emulated import launcher
from test_workers import CASES, RATE, batches_of, examples, learner, somewhere

from fltrust_repro import backend, gpu_gradients, gpu_order
from fltrust_repro.cuda_source import signatures
from fltrust_repro.gpu_gradients import SOURCE

SIZES = [10, 0, 3, 20, 7, 8, 1]


@pytest.mark.parametrize(("name", "classes", "shape"), [*CASES, ("cnn", 10, (1, 28, 28))])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("workspace", [1, 2**30])  # one worker at a time, or all
def test_updates_and_losses_are_the_loops(
    device, monkeypatch, name, classes, shape, rounds, workspace
):
    monkeypatch.setattr(backend, "workspace", lambda ctx: workspace)
    x, labels = examples(classes, shape)
    batches = batches_of(labels, SIZES, rounds=rounds)
    here = learner(name, classes, shape, compiled=False)
    there = learner(name, classes, shape, ctx=device)
    w = somewhere(here.initial)
    expected, losses = here.updates(w, x, batches, RATE)
    updates, told = there.updates(w, there.resident(x), batches, RATE)
    scale = np.abs(expected.asnumpy()).max()
    np.testing.assert_allclose(updates.asnumpy(), expected.asnumpy(), atol=2e-5 * scale)
    np.testing.assert_allclose(told, losses, rtol=1e-5)
    assert np.isnan(told[1])
    assert (updates.asnumpy()[1] == 0).all()


@pytest.mark.parametrize(("name", "classes", "shape"), CASES)
def test_scores_are_the_blocks(device, monkeypatch, name, classes, shape):
    monkeypatch.setattr(gpu_gradients, "_SCORE_CHUNK", 7)  # does not divide the examples
    x, labels = examples(classes, shape)
    here = learner(name, classes, shape, compiled=False)
    there = learner(name, classes, shape, ctx=device)
    w = somewhere(here.initial)
    two = np.stack([w.asnumpy(), here.initial.asnumpy()])
    on_device = there.resident(x)
    np.testing.assert_allclose(
        there._scores(two, on_device), here._scores(two, x), rtol=1e-4, atol=1e-5
    )
    assert there.error_rate(w, on_device, labels) == here.error_rate(w, x, labels)


def test_every_update_that_was_given_stays_until_the_next_call(device):
    x, labels = examples(3, (1, 4, 5))
    batches = batches_of(labels, SIZES)
    there = learner("lr", 3, (1, 4, 5), ctx=device)
    on_device = there.resident(x)
    first, _ = there.updates(there.initial, on_device, batches, RATE)
    kept = first.asnumpy()
    second, _ = there.updates(there.initial, on_device, batches, 2 * RATE)
    np.testing.assert_allclose(second.asnumpy(), 2 * kept, rtol=1e-6)


def test_examples_beyond_a_workers_count_do_not_matter(device):
    x, labels = examples(3, (1, 10, 10))
    batches = batches_of(labels, SIZES)
    there = learner("cnn", 3, (1, 10, 10), ctx=device)
    on_device = there.resident(x)
    expected = there.updates(there.initial, on_device, batches, RATE)[0].asnumpy()
    beyond = np.arange(batches.rows.shape[2]) >= batches.counts[:, None]
    wild = batches._replace(
        rows=np.where(beyond, 10**9, batches.rows), labels=np.where(beyond, -5, batches.labels)
    )
    updates, _ = there.updates(there.initial, on_device, wild, RATE)
    np.testing.assert_array_equal(updates.asnumpy(), expected)


def test_every_kernel_is_found_with_its_parameters():
    found = signatures(SOURCE.read_text())
    assert len(found) == SOURCE.read_text().count("__global__")
    assert found["relu"] == "const float *z, float *inputs, int length, int n"
    assert all(told.endswith("int n") for told in found.values())


def test_the_kernels_compile_without_a_warning(tmp_path):
    for file in (SOURCE, gpu_order.SOURCE):
        assert callable(launcher(tmp_path, file, "-Wall", "-Wextra", "-Werror"))
