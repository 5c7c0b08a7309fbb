"""Pixels are trained on as the float32 numbers that they stand for, to the bit, on every path."""

import re
from pathlib import Path

import numpy as np
import pytest
from test_workers import CASES, RAGGED, RATE, batches_of, learner, needs_code, somewhere

from fltrust_repro import datasets, downloads, gpu_gradients, poisoning, training, workers
from fltrust_repro.backend import nd
from fltrust_repro.pixels import gathered, numbers
from fltrust_repro.readers import frozen
from fltrust_repro.settings import Setting

EVERY = np.arange(256, dtype=np.uint8)
UNIT = np.divide(EVERY, 255, dtype=np.float32)
MODELS = [*CASES, ("resnet20", 3, (1, 8, 8))]


def same_bits(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def images(classes, shape, n=60):
    """Random pixels, the numbers they stand for, and labels."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, *shape)).astype(np.uint8)
    x[::3, :, :, : shape[2] // 2] = 0
    return frozen(x), frozen(UNIT[x]), rng.integers(0, classes, n)


def test_each_pixel_is_rounded_once():
    exact = EVERY.astype(np.float64) / 255
    same_bits(UNIT, exact.astype(np.float32))
    assert (EVERY.astype(np.float32) * np.float32(1 / 255) != UNIT).any()  # of which there is word


@pytest.mark.parametrize("shape", [(256, 1), (64, 4), (16, 2, 8, 1)])
def test_gathered_pixels_are_their_numbers(shape):
    x = frozen(EVERY.reshape(shape))
    rows = np.array([3, 0, 3, len(x) - 1])
    same_bits(gathered(x, rows), UNIT.reshape(shape)[rows])
    same_bits(numbers(x), UNIT.reshape(shape))
    assert gathered(x, rows[:0]).shape == (0, *shape[1:])


def test_gathered_numbers_are_themselves():
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38, 0.1, -7], np.float32).reshape(4, 2)
    same_bits(gathered(frozen(odd), np.array([2, 0, 3, 1])), odd[[2, 0, 3, 1]])
    assert numbers(odd) is odd


def results(trainee, x, labels, rounds=2):
    """All that is computed of examples, from a model that is not the initial one."""
    w, x = somewhere(trainee.initial), trainee.resident(x)
    updates, losses = trainee.updates(w, x, batches_of(labels, RAGGED, rounds=rounds), RATE)
    both = np.stack([w.asnumpy(), trainee.initial.asnumpy()])
    judged = trainee.judge(both, x, labels)
    return updates.asnumpy(), losses, trainee.scores(w, x), *judged, trainee.statistics


def check_equal(make, classes, shape):
    pixels, unit, labels = images(classes, shape)
    for found, expected in zip(results(make(), pixels, labels), results(make(), unit, labels)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("name", "classes", "shape"), MODELS)
def test_models_learn_the_same_to_the_bit(name, classes, shape, compiled):
    check_equal(lambda: learner(name, classes, shape, compiled=compiled), classes, shape)


@pytest.mark.parametrize("formula", [True, False])
@pytest.mark.parametrize(("name", "classes", "shape"), MODELS)
def test_models_learn_the_same_on_a_device(device, name, classes, shape, formula):
    if not formula:
        needs_code(device)
    given = {"compiled": formula, "ctx": device}
    check_equal(lambda: learner(name, classes, shape, **given), classes, shape)


def test_a_devices_kernel_and_its_own_division_round_as_the_cpu(device):
    x = nd.array(EVERY.reshape(256, 1), ctx=device, dtype="uint8")
    rows = nd.array(EVERY[::-1], ctx=device, dtype="int32")
    out = nd.empty((256, 1), ctx=device)
    launch = gpu_gradients.kernels_of(gpu_gradients.SOURCE, device)
    launch("gather_pixels", x, rows, out, 1, 256, 1, 256)
    same_bits(out.asnumpy().ravel(), UNIT[::-1])
    needs_code(device)
    same_bits(workers._numbers(x).asnumpy().ravel(), UNIT)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_examples_keep_their_type_and_the_cpu_makes_no_copy(device, dtype):
    x = np.ones((5, 1, 4, 5), dtype)
    here = learner("lr", 3, (1, 4, 5)).resident(x)
    assert here.dtype == dtype
    assert np.shares_memory(here, x)
    assert not here.flags.writeable
    assert x.flags.writeable
    there = learner("lr", 3, (1, 4, 5), ctx=device).resident(x)
    assert there.dtype == dtype
    assert there.ctx == device
    np.testing.assert_array_equal(there.asnumpy(), x)


def most_memory(call):
    """Bytes of memory that a call takes for a while, beyond what is held before it."""
    state = Path("/proc/self/status")

    def now(field):
        return int(re.search(rf"{field}:\s+(\d+) kB", state.read_text())[1]) * 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = now("VmRSS")
    except OSError:
        pytest.skip("this system does not say how much memory a process took")
    call()
    return now("VmHWM") - before


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        ("lr", True),
        ("lr", False),
        ("cnn", True),
        pytest.param("cnn", False, marks=pytest.mark.long),
    ],
)
def test_an_evaluation_never_holds_the_numbers_of_all_examples(name, compiled):
    n, shape = 150_000, (1, 10, 10)
    trainee = learner(name, 3, shape, compiled=compiled)
    x = trainee.resident(np.ones((n, *shape), np.uint8))
    trainee.scores(trainee.initial, x[:2000])
    assert most_memory(lambda: trainee.scores(trainee.initial, x)) < 4 * x.nbytes / 2


# --- whole trials


@pytest.fixture
def two_sets(tmp_path, monkeypatch):
    """The same images as pixels and as numbers, and no other data."""
    x, unit, _ = images(4, (1, 10, 10), n=260)
    y = (np.arange(260) % 4).astype(np.int32)
    monkeypatch.setattr(downloads, "search_path", lambda _=None: (tmp_path,))
    for name, given in (("as-pixels", x), ("as-numbers", unit)):
        parts = given[:200], y[:200], given[200:], y[200:]
        datasets.dataset(name)(lambda *_, parts=parts: datasets.Dataset(*parts, classes=4))
    yield tmp_path
    for name in ("as-pixels", "as-numbers"):
        del datasets.datasets._entries[name]


FEW = {"workers": 10, "compromised": 2, "iterations": 12, "batch_size": 8, "learning_rate": 0.1}
KINDS = [
    {"rule": "trimmed-mean", "attack": "trimmed-mean", "model": "cnn"},
    {"rule": "median", "attack": "label-flip", "rounds": 2},
    {"rule": "krum", "attack": "krum", "defense": "union"},
    {"rule": "mean", "attack": "back-gradient", "poisoned_share": 0.1},
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["attack"])
def test_trials_of_pixels_and_of_numbers_are_the_same(two_sets, kind):
    curves = [
        training.run_trial(Setting(dataset=name, **FEW, **kind), 0).curve
        for name in ("as-pixels", "as-numbers")
    ]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_poisoned_examples_of_pixels_are_made_kept_and_joined_as_numbers(
    two_sets, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fields = {"attack": "back-gradient", "poisoned_share": 0.05}
    made = [
        training.poisoned_examples(Setting(dataset=name, **fields), 0, None)
        for name in ("as-pixels", "as-numbers")
    ]
    np.testing.assert_array_equal(made[0].x, made[1].x)
    kept = [
        file.stem.rpartition("-")[2] for file in tmp_path.glob("fltrust_repro/back-gradient/*.npz")
    ]
    assert len(kept) == 2
    assert kept[0] == kept[1]  # the digest of the numbers, which older sets lie under
    data = datasets.load("as-pixels", np.random.default_rng(0))
    joined = poisoning.with_examples(data, made[0]).train_x
    same_bits(joined, np.concatenate([UNIT[data.train_x], made[0].x]))


def test_real_images_take_a_byte_a_pixel():
    if downloads.locate("mnist", downloads.search_path(None)) is None:
        pytest.skip("MNIST is not at hand")
    data = datasets.load("mnist", np.random.default_rng(0))
    assert data.train_x.nbytes + data.test_x.nbytes == 70_000 * 28 * 28
