"""Who decides which update FoundationFL copies: the plug-in of experiments/foundation."""

from __future__ import annotations

import numpy as np
import pytest

import fltrust_repro as fl
from fltrust_repro import experiments
from fltrust_repro.errors import BadInput
from fltrust_repro.preaggregations import foundation

FOLDER, M, D = experiments.home() / "foundation", 30, 200


@pytest.fixture(autouse=True)
def _plugin():
    fl.load_plugin(FOLDER / "selection.py")


def updates(seed: int) -> np.ndarray:
    """Updates (M, D) around one direction, some ten times as long as others."""
    rng = np.random.default_rng(seed)
    scales = rng.lognormal(size=(M, 1))
    return (scales * (rng.normal(size=D) + rng.normal(size=(M, D)))).astype(np.float32)


def copied(sent: np.ndarray, benign: np.ndarray) -> np.ndarray:
    """What `foundation` makes copies of."""
    return foundation(np.concatenate([sent, benign]))[-1]


@pytest.mark.parametrize("knowledge", ["full", "partial"])
@pytest.mark.parametrize(("form", "c"), [("three", 3), ("three", 6), ("one", 1), ("one", 6)])
def test_the_attackers_vector_is_what_is_copied(form, c, knowledge):
    attack = fl.attacks[f"foundation-selection:form={form},times=50"]
    for seed in range(20):
        known = updates(seed)
        sent = attack(known, c=c, knowledge=knowledge)
        assert np.array_equal(copied(sent, known[c:]), sent[-1])
        source = known[:c] if knowledge == "partial" else known
        assert (np.sign(sent[-1]) == -np.sign(source.mean(axis=0))).all()


@pytest.mark.parametrize("length", [0.99, 1.01])
def test_between_k_and_minus_k_the_longest_of_sum_zero_is_copied(length):
    benign = updates(0)[3:]
    benign -= benign.mean(axis=1, keepdims=True)
    k = np.full((1, D), 3 * np.abs(benign).max(), dtype=np.float32)
    lengths = np.linalg.norm(benign, axis=1)
    v = np.random.default_rng(1).permutation(np.tile([1, -1], D // 2))[None]
    v = (v * length * lengths.max() / np.linalg.norm(v)).astype(np.float32)
    chosen = copied(np.concatenate([k, -k, v]), benign)
    assert np.array_equal(chosen, v[0] if length > 1 else benign[lengths.argmax()])


def test_one_vector_is_copied_where_the_two_inequalities_hold():
    held = 0
    for seed in range(200):
        known, rng = updates(seed)[:4, :6], np.random.default_rng(seed)
        benign, s = known[1:].astype(np.float64), np.where(known.mean(axis=0) > 0, 1, -1)
        k = np.abs(benign).max() * rng.uniform(1, 2)
        high, low, p, n = benign.max(axis=0), benign.min(axis=0), s > 0, s < 0
        below, above = ((high - benign) * (2 * k + high + benign)), (high - benign) ** 2
        raised, under = ((benign - low) * (2 * k - low - benign)), (benign - low) ** 2
        if (below[:, p].sum(1) > under[:, n].sum(1)).all() and (
            raised[:, n].sum(1) > above[:, p].sum(1)
        ).all():
            held += 1
            v = (-k * s)[None].astype(np.float32)
            assert np.array_equal(copied(v, known[1:]), v[0])
    assert 20 < held < 200


def test_the_vector_is_finite_and_zeros_where_all_signs_are_one():
    up = np.abs(updates(0))
    sent = fl.attacks["foundation-selection"](up, c=3)
    assert (sent[2] == 0).all()
    assert np.isfinite(fl.attacks["foundation-selection:times=1000000"](up, c=3)).all()


@pytest.mark.parametrize("text", ["form=two", "times=0.5"])
def test_a_wrong_parameter_is_one_sentence(text):
    with pytest.raises(BadInput, match=text.split("=")[0]):
        fl.attacks[f"foundation-selection:{text}"](updates(0), c=3)


def test_the_experiment_trains_and_its_trials_note_the_copies():
    given = experiments.load_experiment(str(FOLDER / "foundation-selection.toml"))
    (one,) = {cell.setting.attack for cell in given.cells if cell.column == "one"}
    workers = {"dataset": "digits", "iterations": 10, "workers": 30, "compromised": 3}
    setting = fl.Setting(**workers, rule="trimmed-mean", pre="foundation", attack=one)
    result = fl.run_trial(setting, 0)
    assert result.notes["copied"] == 10
    assert result.notes["undone"] > 1
