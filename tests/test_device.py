"""What an iteration asks of a GPU: how often the host waits, what it uploads, what memory holds."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from fltrust_repro import backend, training
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import Attack, attacks
from fltrust_repro.backend import mx, nd
from fltrust_repro.models import models
from fltrust_repro.partition import Batches
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial
from fltrust_repro.workers import Learner, _batches_on

SMALL = {"dataset": "digits", "workers": 9, "compromised": 2, "beta": 2, "batch_size": 8}
RULES = ["mean", "krum", "bulyan", "trimmed-mean", "median"]
ATTACKS = [
    {"attack": "none"},
    {"attack": "label-flip"},
    {"attack": "gaussian"},
    {"attack": "krum", "knowledge": "full"},
    {"attack": "krum", "knowledge": "partial"},
    {"attack": "krum", "knowledge": "full", "base": "before-attack"},
    {"attack": "trimmed-mean", "knowledge": "full"},
    {"attack": "trimmed-mean", "knowledge": "partial"},
    {"attack": "trimmed-mean", "knowledge": "full", "goal": "deviation"},
    {"attack": "trimmed-mean", "knowledge": "full", "direction": "rule"},
]


class Traffic:
    """Calls of MXNet's library by which the host waits for a device, or sends numbers to it."""

    WAITS = ("MXNDArraySyncCopyToCPU", "MXNDArrayWaitToRead", "MXNDArrayWaitToWrite")
    SENDS = ("MXNDArraySyncCopyFromCPU",)

    def __init__(self, ctx, monkeypatch):
        self._ctx, self.waits, self.sends = ctx, 0, 0
        for names, count in ((self.WAITS, self._wait), (self.SENDS, self._send)):
            for name in names:
                self._count(name, count, monkeypatch)
        monkeypatch.setattr(mx.base._LIB, "MXNDArrayWaitAll", self._wait_for_all)

    def _count(self, name, count, monkeypatch):
        call = getattr(mx.base._LIB, name)

        def counted(handle, *rest):
            count(int(self._lies_there(handle)))
            return call(handle, *rest)

        monkeypatch.setattr(mx.base._LIB, name, counted)

    def _wait(self, count):
        self.waits += count

    def _send(self, count):
        self.sends += count

    def _wait_for_all(self):
        raise AssertionError("the host waits for everything")

    def _lies_there(self, handle):
        kind, number = ctypes.c_int(), ctypes.c_int()
        mx.base.check_call(
            mx.base._LIB.MXNDArrayGetContext(handle, ctypes.byref(kind), ctypes.byref(number))
        )
        return mx.Context(mx.Context.devtype2str[kind.value], number.value) == self._ctx


@pytest.fixture
def traffic(device, monkeypatch):
    """The traffic with the device, on which all trials run."""
    monkeypatch.setattr(training, "context", lambda name, index: device.ctx)
    return Traffic(device.ctx, monkeypatch)


def counts(traffic, iterations=3, **fields):
    """Waits and sends of each iteration of a trial but the last, in which the model is tested."""
    seen = []
    setting = Setting.from_dict({**SMALL, "iterations": iterations, **fields})
    run_trial(setting, 0, after_iteration=lambda: seen.append((traffic.waits, traffic.sends)))
    steps = np.diff(np.array(seen), axis=0)[:-1]
    assert len({tuple(step) for step in steps.tolist()}) == 1
    return tuple(steps[0].tolist())


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda fields: " ".join(fields.values()))
@pytest.mark.parametrize("rule", RULES)
def test_the_host_waits_once_in_an_iteration_and_sends_the_batches_rows_at_once(
    traffic, rule, attack
):
    if rule == "bulyan":
        attack = {**attack, "workers": 11}
    waits, sends = counts(traffic, rule=rule, **attack)
    assert waits == 1
    # The Krum attack also sends the radii of its supporters.
    assert sends == 1 + (attack["attack"] == "krum")


@pytest.mark.parametrize("fields", [{"rounds": 3}, {"selected": 7}, {"dealing": "each-iteration"}])
def test_other_protocols_wait_no_more(traffic, fields):
    assert counts(traffic, rule="krum", attack="krum", **fields) == (1, 2)


@pytest.mark.parametrize("defense", ["err", "lfr", "union"])
@pytest.mark.parametrize("rule", RULES)
def test_a_defense_waits_for_its_judgement_and_for_krums_distances(traffic, rule, defense):
    fields = {"workers": 15 if rule == "bulyan" else 9, "defense": defense}
    waits, _ = counts(traffic, rule=rule, attack="trimmed-mean", **fields)
    assert waits == (3 if rule == "krum" else 2)


def test_an_evaluation_waits_once_more(traffic):
    before_last = []
    setting = Setting(**SMALL, iterations=2, rule="median")
    run_trial(setting, 0, after_iteration=lambda: before_last.append(traffic.waits))
    assert before_last[1] - before_last[0] == 2


def test_what_looks_at_a_number_is_counted(traffic, monkeypatch):
    def curious(step):
        assert step.known.asnumpy().shape
        return step.known[: step.c] * float(step.w_re[:1].asscalar() ** 0)

    monkeypatch.setitem(attacks._entries, "curious", Attack("curious", craft=curious))
    waits, _ = counts(traffic, rule="median", attack="curious")
    assert waits == 3


# --- the same numbers as on the host
# Iterations are held against each other one by one, from the same model: two trials part for good
# where a last bit decides what Krum selects.


def iterated(federation, w, iteration):
    """The updates that reach the rule, the change of model w, and the losses, as numpy arrays."""
    seen = []
    defended = federation._defended
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            federation, "_defended", lambda *args: seen.append(args[0].copy()) or defended(*args)
        )
        moved, losses = federation.iterate(w, iteration)
    return seen[0].asnumpy(), moved.asnumpy() - w.asnumpy(), backend.fetch(losses)[0]


def assert_same_iterations(setting, device, iterations=2):
    here, there = (training.Federation(setting, 3, ctx, None) for ctx in (mx.cpu(), device.ctx))
    w = here.learner.initial
    np.testing.assert_array_equal(w.asnumpy(), there.learner.initial.asnumpy())
    for iteration in range(1, iterations + 1):
        updates, change, losses = iterated(here, w, iteration)
        on_device = iterated(there, w.copyto(device.ctx), iteration)
        for ours, theirs in zip((updates, change, losses), on_device):
            same = np.isclose(
                theirs, ours, rtol=1e-4, atol=1e-4 * np.nanmax(abs(ours)), equal_nan=True
            )
            # Of two values as far from the median, a last bit decides which one Bulyan keeps.
            assert same.mean() >= (0.99 if setting.rule == "bulyan" and ours is change else 1)
        if setting.rule == "krum":
            selected = [
                np.abs(rows - moved).sum(axis=1).argmin()
                for rows, moved in ((updates, change), on_device[:2])
            ]
            assert selected[0] == selected[1]
        w = w + nd.array(change)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda fields: " ".join(fields.values()))
def test_an_iteration_on_the_device_gives_the_numbers_of_one_on_the_host(
    device, host_randomness, rule, attack
):
    setting = Setting.from_dict({**SMALL, "workers": 11, "iterations": 2, "rule": rule, **attack})
    assert_same_iterations(setting, device)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("attack", ["krum", "trimmed-mean"])
def test_a_trial_on_the_device_goes_as_one_on_the_host(
    traffic, host_randomness, monkeypatch, rule, attack
):
    fields = {**SMALL, "workers": 11, "attack": attack, "knowledge": "partial"}
    setting = Setting(**fields, iterations=12, rule=rule)
    there = run_trial(setting, 3)
    monkeypatch.setattr(training, "context", lambda name, index: mx.cpu())
    here = run_trial(setting, 3)
    np.testing.assert_allclose(there.curve, here.curve, rtol=0.1, atol=0.1)
    assert there.notes == pytest.approx(here.notes, rel=0.1, abs=0.1)


@pytest.mark.parametrize("model", ["cnn", "resnet20"])
def test_deep_models_wait_no_more_and_learn_the_same(traffic, device, host_randomness, model):
    fields = {"model": model, "rule": "median", "attack": "trimmed-mean", "knowledge": "partial"}
    data = {"dataset": "breast-cancer"} if model == "cnn" else {}
    waits, _ = counts(traffic, **fields, **data)
    assert waits == 1
    assert_same_iterations(Setting.from_dict({**SMALL, **data, **fields, "iterations": 2}), device)


def test_a_model_that_diverges_on_the_device_ends_the_trial(traffic):
    result = run_trial(Setting(**SMALL, rule="mean", learning_rate=1e38, iterations=9), 0)
    assert result.diverged
    assert result.iterations < 9


# --- memory


@pytest.fixture
def narrow(device, monkeypatch):
    """A device on which 100 columns of 11 rows are as much as one step may take."""
    monkeypatch.setattr(backend, "workspace", lambda ctx: 8 * 4 * 11 * 100)
    return device


@pytest.mark.parametrize("d", [99, 100, 101, 530])
@pytest.mark.parametrize("rule", RULES)
def test_blocks_of_columns_change_no_result(narrow, rule, d):
    values = np.random.default_rng(d).standard_normal((11, d)).astype(np.float32)
    values[3, :2] = np.inf, np.nan
    if rule == "mean":
        values[3] = 0
    updates, expected = narrow.array(values), nd.array(values)
    assert len(list(backend.column_blocks(updates))) == -(-d // 100)
    out = rules[rule](updates, c=2, beta=2)
    assert out.ctx == narrow.ctx
    np.testing.assert_allclose(
        out.asnumpy(), rules[rule](expected, c=2, beta=2).asnumpy(), rtol=1e-5, atol=1e-6
    )
    without = rules[rule].without_each(updates, c=2, beta=2)
    again = rules[rule].without_each(expected, c=2, beta=2)
    np.testing.assert_allclose(
        without.aggregates.asnumpy()[without.which],
        again.aggregates.asnumpy()[again.which],
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("examples", "chunk"), [(1, 32), (32, 32), (50.5, 50), (1000, 1000), (5000, 1000)]
)
def test_examples_are_tested_in_chunks_that_fit(device, monkeypatch, examples, chunk):
    one = 4 * (64 + 10)  # LR's layers: the flat input, and the scores
    monkeypatch.setattr(backend, "workspace", lambda ctx: int(examples * one))
    x = np.random.default_rng(0).random((120, 1, 8, 8)).astype(np.float32)
    there = Learner(models["lr"], 10, (1, 8, 8), device.ctx, 0)
    here = Learner(models["lr"], 10, (1, 8, 8), mx.cpu(), 0)
    sizes = []
    net = there._net

    def watched(batch):
        sizes.append(len(batch))
        return net(batch)

    there._net = watched
    scores = there._scores(there.initial, device.array(x)).asnumpy()
    np.testing.assert_allclose(
        scores, here._scores(here.initial, nd.array(x)), rtol=1e-4, atol=1e-5
    )
    assert sum(sizes) == 120
    assert max(sizes) == min(chunk, 120)


def test_rows_beyond_the_integers_of_float32_are_told_apart(device):
    first = 2**24
    numbers = nd.arange(first + 8, dtype="int32", ctx=device.ctx) - first
    rows = np.array([first + 1, first + 3, 5])
    taken = backend.take_rows(numbers, rows)
    np.testing.assert_array_equal(taken.asnumpy(), rows - first)
    x = numbers.astype("float32").reshape((-1, 1, 1, 1))
    batch_of = _batches_on(
        device.ctx, x, Batches(rows.reshape(1, 1, 3), rows.reshape(1, 1, 3) * 0, np.array([3]))
    )
    np.testing.assert_array_equal(batch_of(0, 0)[0].asnumpy().ravel(), rows - first)


def test_a_trial_that_does_not_fit_says_what_to_do(monkeypatch):
    def full(*args):
        raise mx.base.MXNetError("Check failed: cudaMalloc retry failed: out of memory")

    monkeypatch.setattr(training, "Federation", full)
    with pytest.raises(MemoryError, match="run fewer trials at a time"):
        run_trial(Setting(**SMALL), 0)


def test_another_error_of_mxnet_stays_as_it_is(monkeypatch):
    def broken(*args):
        raise mx.base.MXNetError("an illegal memory access was encountered")

    monkeypatch.setattr(training, "Federation", broken)
    with pytest.raises(mx.base.MXNetError, match="illegal memory access"):
        run_trial(Setting(**SMALL), 0)
