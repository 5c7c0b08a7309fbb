"""The rule `leverage` without some of its parts: the plug-in of experiments/leverage."""

from __future__ import annotations

import numpy as np
import pytest
from made import normal

import fltrust_repro as fl
from fltrust_repro import experiments
from fltrust_repro.attacks import Round
from fltrust_repro.errors import BadInput
from fltrust_repro.master import Master
from fltrust_repro.server import ServerState
from fltrust_repro.training import run_trial

FOLDER = experiments.home() / "leverage"


@pytest.fixture(autouse=True)
def _plugin():
    fl.load_plugin(FOLDER / "parts.py")


def test_with_all_its_parts_it_is_the_rule():
    updates = normal(20, 50)
    updates[:4] = 0.1
    updates[7, 3] = np.inf
    whole = fl.rules["leverage"](updates, c=4)
    np.testing.assert_array_equal(fl.rules["leverage-parts"](updates, c=4), whole)
    assert np.isnan(fl.rules["leverage-parts"](np.full((5, 3), np.nan), c=1)).all()


def test_without_any_it_is_the_mean_of_shortened_updates():
    updates = normal(20, 50)
    long = np.linalg.norm(updates, axis=1)
    shortened = updates * np.minimum(1, np.median(long) / long)[:, None]
    found = fl.rules["leverage-parts:ridge=0,filters=none"](updates, c=4)
    np.testing.assert_allclose(found, shortened.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    "part",
    [
        "ridge=1",
        "ridge=0",
        "noise=median",
        "filters=all",
        "filters=both",
        "filters=none",
        "price=0",
        "near=2",
    ],
)
def test_each_part_counts(part):
    """Among workers of one kind, or of five, where eight push with noise of their own."""
    kinds, moved = np.random.default_rng(1).standard_normal((5, 40)), []
    for updates in (normal(30, 40), normal(30, 40) + 3 * kinds[np.arange(30) % 5]):
        updates[:8] -= 2
        names = ("leverage", f"leverage-parts:{part}")
        whole, less = (fl.rules[name](updates, c=8) for name in names)
        moved.append(np.abs(whole - less).max())
    assert max(moved) > 0.05


def test_memory_counts():
    """What a worker sent before is part of what it keeps saying."""
    after = []
    for name in ("leverage", "leverage-parts", "leverage-parts:decay=0"):
        state = ServerState(workers=np.arange(30))
        for seed in range(3):
            updates = normal(30, 40, seed)
            updates[:8] -= 2
            change = fl.rules[name](updates, c=8, state=state)
        after.append(change)
    np.testing.assert_array_equal(after[0], after[1])
    assert np.abs(after[0] - after[2]).max() > 0.05


def test_answers_count():
    small = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 60}
    rules = ("leverage", "leverage-parts", "leverage-parts:answers=0")
    with_answers, same, without = (
        run_trial(fl.Setting(**small, rule=rule, attack="sign-flip"), 0).notes["workers kept"]
        for rule in rules
    )
    assert with_answers == pytest.approx(same, rel=1e-6)
    assert with_answers < 0.95 * without


def test_who_is_compared_counts_where_some_are_selected():
    """What five say of whom most are compromised, beside what all twenty have said."""
    after = []
    for name in ("leverage", "leverage-parts", "leverage-parts:compared=selected"):
        state = ServerState(workers=np.arange(20))
        for seed in range(3):
            fl.rules[name](normal(20, 40, seed), c=4, state=state)
        state.workers = np.arange(5)
        updates = normal(5, 40, 3)
        updates[:3] = 9
        after.append(fl.rules[name](updates, c=1, state=state))
    np.testing.assert_array_equal(after[0], after[1])
    lengths = [np.linalg.norm(change) for change in after]
    assert lengths[2] > 2 * lengths[0]


def test_a_part_that_there_is_not_is_refused():
    with pytest.raises(BadInput, match="compared is 'none'; choose one of"):
        fl.rules["leverage-parts:compared=none"](normal(9, 3), c=1)
    with pytest.raises(BadInput, match="filters is 'some'; choose one of"):
        fl.rules["leverage-parts:filters=some"](normal(9, 3), c=1)
    with pytest.raises(BadInput, match="noise is 'most'; choose one of"):
        fl.rules["leverage-parts:noise=most"](normal(9, 3), c=1)
    with pytest.raises(BadInput, match="there is no line 'loud'"):
        fl.attacks["line:name=loud"](normal(9, 3), c=1)


@pytest.mark.slow
def test_the_experiment_trains():
    cells = experiments.load_experiment(str(FOLDER / "leverage-parts.toml")).cells
    small = {"dataset": "digits", "iterations": 3, "workers": 20, "compromised": 4}
    settings = {(cell.setting.rule, cell.setting.pre, cell.setting.attack) for cell in cells}
    for rule, pre, attack in sorted(settings):
        result = run_trial(fl.Setting(**small, rule=rule, pre=pre, attack=attack), 0)
        assert 0 <= result.error_rate <= 1


def test_a_lasting_line_keeps_its_first_direction():
    small = {"dataset": "digits", "iterations": 5, "workers": 20, "compromised": 4, "rule": "mean"}
    moved = [run_trial(fl.Setting(**small, attack=f"line:scale=3,lasting={k}"), 0).error_rate
             for k in (0, 1)]  # fmt: skip
    assert moved[0] != moved[1]


def test_who_turns_around_says_the_reverse_of_what_it_keeps_saying():
    memory, own, rng = {}, [], np.random.default_rng(0)
    master = Master(9, 3, 3, fl.rules["mean"])
    for t in range(4):
        own.append(normal(9, 5) + np.float32(t))
        step = Round(own[-1], 3, np.zeros(5), "full", rng, master, memory=memory)
        sent = fl.attacks["turned:decay=0.5"].crafted(step)
    usual = np.tensordot(np.array([1, 2, 4, 8]) / 15, np.array(own)[:, :3], 1)
    np.testing.assert_allclose(sent, own[-1][:3] - 2 * usual, atol=1e-5)
