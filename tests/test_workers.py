"""All workers' updates: the compiled formulas, the Gluon loop and the reference agree."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import reference

from fltrust_repro import backend, machine, training
from fltrust_repro.aggregation import Rule
from fltrust_repro.backend import mx, nd
from fltrust_repro.errors import BadInput
from fltrust_repro.models import models
from fltrust_repro.partition import Batches, Shards, sample_batches
from fltrust_repro.readers import frozen
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial
from fltrust_repro.workers import Learner, _batches_on

CASES = [
    # A row of features, more channels, sides that the pooling windows do not divide.
    ("lr", 3, (1, 4, 5)),
    ("lr", 2, (3, 7, 3)),
    ("cnn", 3, (1, 10, 10)),
    ("cnn", 4, (2, 13, 11)),
    ("cnn", 2, (1, 1, 30)),
    ("cnn", 2, (2, 1, 31)),
    ("cnn", 3, (3, 17, 24)),
    ("cnn", 10, (1, 28, 28)),
]
RATE = 0.1


def learner(name, classes, shape, seed=0, compiled=True, ctx=None):
    model = models[name] if compiled else replace(models[name], compiled=None, on_gpu=None)
    if ctx is not None and model.on_gpu is None:
        needs_code(ctx)
    return Learner(model, classes, shape, ctx or mx.cpu(), seed)


def needs_code(ctx):
    """Skip what is for a GPU that MXNet's own operators run on."""
    if ctx.device_type == "gpu" and (told := machine.no_code(ctx.device_id, ["lr"])):
        pytest.skip(told)


def test_a_model_without_a_formula_is_refused_where_mxnet_has_no_code(device, monkeypatch):
    monkeypatch.setattr(machine, "no_code", lambda index, names: f"{names} train on it")
    with pytest.raises(BadInput, match=r"'lr', 'cnn'. train on it"):
        Learner(models["resnet20"], 3, (1, 8, 8), device, 0)
    assert learner("lr", 3, (1, 4, 5), ctx=device).initial.ctx == mx.cpu()


def examples(classes, shape, n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, *shape)).astype(np.float32)
    # As in images, some have large constant areas: ties within the pooling windows.
    x[::3, :, :, : shape[2] // 2] = 0
    return frozen(x), rng.integers(0, classes, n)


def batches_of(labels, sizes, batch_size=8, rounds=1, seed=0):
    ends = np.cumsum(sizes)
    shards = Shards.of([np.arange(end - size, end) for size, end in zip(sizes, ends)])
    return sample_batches(shards, labels, batch_size, rounds, np.random.default_rng(seed))


def worker(batches, i):
    """The batches of worker i alone."""
    one = slice(i, i + 1)
    return Batches(batches.rows[:, one], batches.labels[:, one], batches.counts[one])


def somewhere(initial, seed=3):
    """A model off the initial one, whose biases are not zero."""
    noise = np.random.default_rng(seed).standard_normal(initial.size) * 0.05
    return initial + nd.array(noise)


RAGGED = [20, 8, 0, 3, 1, 28, 0]  # full batches, none, and less than a batch


@pytest.mark.parametrize(("name", "classes", "shape"), CASES)
@pytest.mark.parametrize("rounds", [1, 3])
def test_compiled_updates_equal_the_gluon_loop(name, classes, shape, rounds):
    x, labels = examples(classes, shape)
    batches = batches_of(labels, RAGGED, rounds=rounds)
    compiled = learner(name, classes, shape)
    loop = learner(name, classes, shape, compiled=False)
    assert compiled._formula is not None
    w = somewhere(compiled.initial)
    ours, our_losses = compiled.updates(w, x, batches, RATE)
    theirs, their_losses = loop.updates(w, x, batches, RATE)
    assert ours.shape == (len(RAGGED), w.size)
    largest = np.abs(theirs.asnumpy()).max()
    np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), atol=2e-5 * largest)
    np.testing.assert_allclose(our_losses, their_losses, rtol=1e-5)


@pytest.mark.parametrize(("name", "classes", "shape"), CASES)
def test_compiled_updates_equal_the_gluon_loop_where_workers_share_examples(name, classes, shape):
    x, labels = examples(classes, shape)
    shards = Shards.of([np.arange(12)] * 4 + [np.arange(8, 20)] * 3 + [np.arange(5), np.arange(0)])
    batches = sample_batches(shards, labels, 8, 1, np.random.default_rng(0))
    # The same example with different labels, as label flipping makes it.
    batches.labels[:, :2] = classes - 1 - batches.labels[:, :2]
    compiled = learner(name, classes, shape)
    w = somewhere(compiled.initial)
    ours, our_losses = compiled.updates(w, x, batches, RATE)
    loop = learner(name, classes, shape, compiled=False)
    theirs, their_losses = loop.updates(w, x, batches, RATE)
    largest = np.abs(theirs.asnumpy()).max()
    np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), atol=2e-5 * largest)
    np.testing.assert_allclose(our_losses, their_losses, rtol=1e-5)


def test_a_workers_update_by_the_cnn_does_not_depend_on_who_passes_with_it():
    # More workers than pass through the model together, which share no example.
    shape, sizes = (1, 10, 10), [30, 0, 25, 1] * 2
    x, labels = examples(3, shape, n=sum(sizes))
    batches = batches_of(labels, sizes, batch_size=20)
    trainee = learner("cnn", 3, shape)
    updates, losses = trainee.updates(trainee.initial, x, batches, RATE)
    for i in range(len(sizes)):
        alone, loss = trainee.updates(trainee.initial, x, worker(batches, i), RATE)
        np.testing.assert_allclose(updates[i].asnumpy(), alone[0].asnumpy(), atol=1e-7)
        np.testing.assert_allclose(losses[i], loss[0], rtol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["lr", "cnn"])
def test_a_worker_without_examples_sends_a_zero_update(name, compiled):
    shape = (1, 10, 10)
    x, labels = examples(3, shape)
    trainee = learner(name, 3, shape, compiled=compiled)
    batches = batches_of(labels, RAGGED, rounds=2)
    updates, losses = trainee.updates(trainee.initial, x, batches, RATE)
    moved = np.abs(updates.asnumpy()).max(axis=1) > 0
    assert moved.tolist() == [size > 0 for size in RAGGED]
    assert np.isnan(losses).tolist() == [size == 0 for size in RAGGED]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["lr", "cnn"])
def test_no_worker_has_examples(name, compiled):
    x, labels = examples(3, (1, 10, 10))
    trainee = learner(name, 3, (1, 10, 10), compiled=compiled)
    updates, losses = trainee.updates(trainee.initial, x, batches_of(labels, [0, 0]), RATE)
    assert (updates.asnumpy() == 0).all()
    assert np.isnan(losses).all()


@pytest.mark.parametrize("compiled", [True, False])
def test_updates_are_minus_the_learning_rate_times_the_papers_gradient(compiled):
    x, labels = examples(3, (1, 4, 5))
    flat = x.reshape(60, 20).astype(np.float64)
    trainee = learner("lr", 3, (1, 4, 5), compiled=compiled)
    w, batches = somewhere(trainee.initial), batches_of(labels, [30, 5, 25])
    for rate in (0.1, 2.5):
        updates, losses = trainee.updates(w, x, batches, rate)
        for i, count in enumerate(batches.counts):
            rows = batches.rows[0, i, :count]
            loss, gradient = reference.softmax_regression(
                w.asnumpy().astype(np.float64), flat[rows], labels[rows], 3
            )
            np.testing.assert_allclose(updates[i].asnumpy(), -rate * gradient, atol=3e-6 * rate)
            assert losses[i] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
def test_local_rounds_are_gradient_descent_from_the_received_model(compiled):
    x, labels = examples(3, (1, 4, 5))
    flat = x.reshape(60, 20).astype(np.float64)
    trainee = learner("lr", 3, (1, 4, 5), compiled=compiled)
    w, batches = somewhere(trainee.initial), batches_of(labels, [40, 20], rounds=4)
    updates, losses = trainee.updates(w, x, batches, 0.5)
    for i in range(2):
        local = start = w.asnumpy().astype(np.float64)
        for r in range(4):
            rows = batches.rows[r, i]
            loss, gradient = reference.softmax_regression(local, flat[rows], labels[rows], 3)
            local = local - 0.5 * gradient
            if r == 0:
                assert losses[i] == pytest.approx(loss, rel=1e-5)  # at the received model
        np.testing.assert_allclose(updates[i].asnumpy(), local - start, atol=1e-5)


@pytest.mark.parametrize(("name", "classes", "shape"), CASES)
def test_the_received_model_and_the_batches_stay_as_they_are(name, classes, shape):
    x, labels = examples(classes, shape)
    batches = batches_of(labels, RAGGED, rounds=2)
    trainee = learner(name, classes, shape)
    before = (trainee.initial.asnumpy(), x.copy(), labels.copy(), batches.rows.copy())
    trainee.updates(trainee.initial, x, batches, RATE)
    after = (trainee.initial.asnumpy(), x, labels, batches.rows)
    for was, is_now in zip(before, after):
        np.testing.assert_array_equal(was, is_now)


@pytest.mark.parametrize(("name", "classes", "shape"), CASES)
def test_compiled_scores_equal_gluons(name, classes, shape):
    # 123 examples: the compiled CNN scores in blocks, the last one not full.
    x, _ = examples(classes, shape, n=123)
    compiled = learner(name, classes, shape)
    loop = learner(name, classes, shape, compiled=False)
    w = somewhere(compiled.initial)
    w = w.asnumpy()[None]
    np.testing.assert_allclose(compiled._scores(w, x), loop._scores(w, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 123])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_lrs_scores_are_the_linear_function_for_any_number_of_examples(classes, n):
    x, _ = examples(classes, (2, 3, 5), n=n)
    trainee = learner("lr", classes, (2, 3, 5))
    rng = np.random.default_rng(1)
    models = nd.array(rng.standard_normal((3, trainee.initial.size)))
    wide, flat = models.asnumpy().astype(np.float64), x.reshape(n, 30)
    weights, biases = wide[:, : 30 * classes].reshape(3, classes, 30), wide[:, 30 * classes :]
    expected = np.einsum("kcf,nf->knc", weights, flat) + biases[:, None]
    together = trainee._formula.scores_of_all(models.asnumpy(), x)
    np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-5)
    for k in range(3):
        [scores] = trainee._scores(models.asnumpy()[k : k + 1], x)
        np.testing.assert_allclose(scores, expected[k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
def test_error_rate_is_the_share_of_wrong_predictions(compiled):
    # Two features, two classes: the larger feature is the predicted label.
    trainee = learner("lr", 2, (1, 1, 2), compiled=compiled)
    w = nd.array([1, 0, 0, 1, 0, 0])
    x = np.array([[2, 1], [1, 2], [5, 3], [0, 1]], np.float32).reshape((4, 1, 1, 2))
    assert trainee.error_rate(w, x, np.array([0, 1, 0, 1])) == 0
    assert trainee.error_rate(w, x, np.array([0, 1, 0, 0])) == 0.25
    assert trainee.error_rate(w, x, np.array([1, 0, 1, 0])) == 1
    biased = nd.array([1, 0, 0, 1, 0, 1.5])
    assert trainee.error_rate(biased, x, np.array([0, 1, 0, 1])) == 0.25


@pytest.mark.parametrize("compiled", [True, False])
def test_error_rate_of_more_examples_than_fit_a_chunk(compiled):
    trainee = learner("lr", 2, (1, 1, 2), compiled=compiled)
    x = np.zeros((2345, 1, 1, 2), dtype=np.float32)
    x[:, 0, 0, 1] = 1
    labels = np.ones(2345, dtype=np.int64)
    labels[-469:] = 0
    w = nd.array([1, 0, 0, 1, 0, 0])
    assert trainee.error_rate(w, x, labels) == pytest.approx(0.2)


# --- batch normalisation


def statistics_of(trainee):
    return np.concatenate([p.data().asnumpy().ravel() for p in trainee._statistics])


@pytest.fixture(scope="module")
def resnet_case():
    shape = (1, 8, 8)
    x, labels = examples(3, shape, n=40)
    return shape, x, batches_of(labels, [12, 0, 9, 14], batch_size=8)


def test_running_statistics_move_once_to_the_mean_over_the_workers(resnet_case):
    shape, x, batches = resnet_case
    together = learner("resnet20", 3, shape)
    start = statistics_of(together)
    together.updates(together.initial, x, batches, RATE)
    alone = []
    for i in (0, 2, 3):  # worker 1 has no examples
        one = learner("resnet20", 3, shape)
        np.testing.assert_array_equal(statistics_of(one), start)
        one_batch = worker(batches, i)
        one.updates(one.initial, x, one_batch, RATE)
        alone.append(statistics_of(one))
    assert np.abs(np.diff(alone, axis=0)).max() > 1e-3
    np.testing.assert_allclose(
        statistics_of(together), np.mean(alone, axis=0), rtol=1e-4, atol=1e-6
    )


def test_running_mean_is_one_momentum_step_from_the_batch_means(resnet_case):
    shape, x, batches = resnet_case
    trainee = learner("resnet20", 3, shape)
    trainee.updates(trainee.initial, x, batches, RATE)
    # The first batch normalisation sees two convolutions of the input.
    first, block = trainee._net.features[0], trainee._net.features[1][0].body
    convolution = block[0]
    trainee._load(trainee._weights, trainee.initial)
    means = []
    for i in (0, 2, 3):
        rows = batches.rows[0, i, : batches.counts[i]]
        seen = convolution(first(nd.array(x[rows]))).asnumpy()
        means.append(seen.mean(axis=(0, 2, 3)))
    running = block[1].running_mean.data().asnumpy()
    np.testing.assert_allclose(running, 0.1 * np.mean(means, axis=0), rtol=1e-3, atol=1e-6)


def test_a_workers_update_does_not_depend_on_the_workers_before_it(resnet_case):
    shape, x, batches = resnet_case
    together = learner("resnet20", 3, shape)
    updates, losses = together.updates(together.initial, x, batches, RATE)
    last = learner("resnet20", 3, shape)
    alone = worker(batches, 3)
    update, loss = last.updates(last.initial, x, alone, RATE)
    np.testing.assert_allclose(updates[3].asnumpy(), update[0].asnumpy(), rtol=1e-4, atol=1e-6)
    assert losses[3] == pytest.approx(loss[0])
    assert (updates[1].asnumpy() == 0).all()


def test_updates_hold_the_trained_parameters_and_no_statistics(resnet_case):
    shape = resnet_case[0]
    trainee = learner("resnet20", 3, shape)
    names = [p.name for p in trainee._weights]
    assert not [name for name in names if "running" in name]
    # A mean and a variance for each of the 20 batch normalisations.
    assert len(trainee._statistics) == 40
    assert trainee.initial.size == sum(int(np.prod(p.shape)) for p in trainee._weights)


# --- on a GPU


@pytest.mark.parametrize(
    ("name", "shape"), [("lr", (1, 4, 5)), ("cnn", (1, 10, 10)), ("resnet20", (1, 8, 8))]
)
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("formula", [True, False])
def test_a_device_gives_the_numbers_of_the_host_and_gives_them_on_the_host(
    device, name, shape, rounds, formula
):
    x, labels = examples(3, shape)
    batches = batches_of(labels, [20, 0, 3, 28], rounds=rounds)
    here = learner(name, 3, shape, compiled=False)
    there = learner(name, 3, shape, compiled=formula, ctx=device)
    np.testing.assert_array_equal(there.initial.asnumpy(), here.initial.asnumpy())
    w, on_device = somewhere(here.initial), there.resident(x)
    assert on_device.ctx == device
    expected, losses = here.updates(w, x, batches, RATE)
    updates, on_device_losses = there.updates(w, on_device, batches, RATE)
    assert there.initial.ctx == mx.cpu()
    assert updates.ctx.device_type == "cpu_pinned"  # the host's, where a GPU copies quickly
    scale = np.abs(expected.asnumpy()).max()
    np.testing.assert_allclose(updates.asnumpy(), expected.asnumpy(), atol=1e-3 * scale)
    np.testing.assert_allclose(on_device_losses, losses, rtol=1e-4)
    models_ = np.stack([w.asnumpy(), here.initial.asnumpy()])
    for ours, theirs in zip(
        there.judge(models_, on_device, labels), here.judge(models_, x, labels)
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert there.error_rate(w, on_device, labels) == pytest.approx(
        here.error_rate(w, x, labels), abs=0.05
    )


class Traffic:
    """Calls of MXNet's library by which the host waits for a device, or sends numbers to it."""

    WAITS = ("MXNDArraySyncCopyToCPU", "MXNDArrayWaitToRead", "MXNDArrayWaitToWrite")
    SENDS = ("MXNDArraySyncCopyFromCPU",)

    def __init__(self, ctx, monkeypatch):
        self._ctx, self.counts = ctx, np.zeros(2, dtype=int)
        for place, names in enumerate((self.WAITS, self.SENDS)):
            for name in names:
                self._count(name, place, monkeypatch)

    def _count(self, name, place, monkeypatch):
        call = getattr(mx.base._LIB, name)

        def counted(handle, *rest):
            self.counts[place] += self._lies_there(handle)
            return call(handle, *rest)

        monkeypatch.setattr(mx.base._LIB, name, counted)

    def _lies_there(self, handle):
        kind, number = ctypes.c_int(), ctypes.c_int()
        mx.base.check_call(
            mx.base._LIB.MXNDArrayGetContext(handle, ctypes.byref(kind), ctypes.byref(number))
        )
        return mx.Context(mx.Context.devtype2str[kind.value], number.value) == self._ctx


SMALL = {"dataset": "digits", "workers": 11, "compromised": 2, "batch_size": 8}


@pytest.mark.parametrize("rule", ["mean", "krum", "bulyan", "trimmed-mean", "median"])
@pytest.mark.parametrize("attack", ["none", "label-flip", "gaussian", "krum", "trimmed-mean"])
def test_all_but_the_learner_and_sorting_stays_on_the_host(device, monkeypatch, rule, attack):
    monkeypatch.setattr(training.backend, "context", lambda name, index: device)
    traffic, seen, given = Traffic(device, monkeypatch), [], []
    aggregate = Rule.__call__

    def watched(self, updates, **known):
        is_query = isinstance(updates, np.ndarray)  # what would be without the attack
        given.append("host" if is_query else updates.ctx.device_type)
        return aggregate(self, updates, **known)

    monkeypatch.setattr(Rule, "__call__", watched)
    setting = Setting(**SMALL, iterations=3, rule=rule, attack=attack, learning_rate=0.1)
    run_trial(setting, 0, after_iteration=lambda: seen.append(traffic.counts.copy()))
    # It waits for the losses, and sends the model, and of all batches' examples the numbers, the
    # labels, and how many they are, each at once. A rule that sorts sends a sorting network.
    sorts = rule in ("trimmed-mean", "median")
    directed, extreme = attack in ("krum", "trimmed-mean"), attack == "trimmed-mean"
    waits, sends = 1 + directed + extreme + sorts + (rule == "mean"), 4 + sorts
    assert (seen[1] - seen[0]).tolist() == [waits, sends]
    assert {"cpu_pinned"} <= set(given) <= {"cpu_pinned", "host"}


def test_in_the_loop_a_judgement_waits_once_for_all_models(device, monkeypatch):
    monkeypatch.setattr(training.backend, "context", lambda name, index: device)
    monkeypatch.setitem(models._entries, "lr", replace(models["lr"], on_gpu=None))
    needs_code(device)
    traffic, seen = Traffic(device, monkeypatch), []
    setting = Setting(**SMALL, iterations=3, rule="median", attack="trimmed-mean", defense="union")
    run_trial(setting, 0, after_iteration=lambda: seen.append(traffic.counts.copy()))
    # Beside that once for the losses, for the attack's direction and extremes and for the median,
    # whose sorting network it sends beside the model and the batches.
    assert (seen[1] - seen[0]).tolist() == [5, 3]


def test_a_model_that_diverges_on_the_device_ends_the_trial(device, monkeypatch):
    monkeypatch.setattr(training.backend, "context", lambda name, index: device)
    result = run_trial(Setting(**SMALL, rule="mean", learning_rate=1e38, iterations=9), 0)
    assert result.diverged
    assert result.iterations < 9


@pytest.mark.parametrize(
    ("fitting", "chunk"), [(1, 32), (32, 32), (50.5, 50), (1000, 1000), (5000, 1000)]
)
def test_examples_are_tested_in_chunks_that_fit(device, monkeypatch, fitting, chunk):
    one = 4 * (64 + 10)  # LR's layers: the flat input, and the scores
    monkeypatch.setattr(backend, "workspace", lambda ctx: int(fitting * one))
    x = np.random.default_rng(0).random((120, 1, 8, 8)).astype(np.float32)
    here = learner("lr", 10, (1, 8, 8))
    there = learner("lr", 10, (1, 8, 8), compiled=False, ctx=device)
    sizes = []
    net = there._net

    def watched(batch):
        sizes.append(len(batch))
        return net(batch)

    there._net = watched
    two = np.stack([there.initial.asnumpy(), 2 * there.initial.asnumpy()])
    np.testing.assert_allclose(
        there._scores(two, there.resident(x)),
        here._scores(two, here.resident(x)),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    assert sum(sizes) == 2 * 120
    assert max(sizes) == min(chunk, 120)


def test_rows_beyond_the_integers_of_float32_are_told_apart(device):
    needs_code(device)
    first = 2**24
    numbers = nd.arange(first + 8, dtype="int32", ctx=device) - first
    rows = np.array([first + 1, first + 3, 5])
    x = numbers.astype("float32").reshape((-1, 1, 1, 1))
    batch_of = _batches_on(
        device, x, Batches(rows.reshape(1, 1, 3), rows.reshape(1, 1, 3) * 0, np.array([3]))
    )
    np.testing.assert_array_equal(batch_of(0, 0)[0].asnumpy().ravel(), rows - first)
