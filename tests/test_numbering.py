"""A user's own code meets the workers in an order drawn for the trial, and gains nothing by it."""

from __future__ import annotations

import numpy as np
import pytest

import fltrust_repro as fl
from fltrust_repro import backend
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.backend import host_view
from fltrust_repro.defenses import defenses
from fltrust_repro.numbering import Numbering
from fltrust_repro.preaggregations import preaggregations
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.training import Federation, run_trial
from fltrust_repro.trials import protocol_of

LR = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 40, "learning_rate": 0.5}
NUMBERING = Numbering(np.array([2, 0, 3, 1]))
ROWS = np.arange(5, dtype=np.float32)[:, None]


@pytest.fixture
def own():
    """Code of a user that would know, by the order of workers, which of them attack."""

    @fl.rule("own-last")
    def last(updates, c):
        return updates[c:].mean(axis=0)

    @fl.rule("own-known")
    def known(updates, workers, c):
        return updates[workers >= c].mean(axis=0)

    @fl.rule("own-random")
    def some(updates, rng, c):
        return updates[rng.permutation(len(updates))[c:]].mean(axis=0)

    @fl.rule("own-first")
    def first(updates):
        return updates[0]

    @fl.preaggregation("own-left")
    def left(updates, c):
        return updates[c:]

    @fl.defense("own-first")
    def remove_first(case):
        return np.arange(case.c)

    @fl.attack("own-reverse")
    def reverse(step):
        return np.tile(-20 * step.known.mean(axis=0), (step.c, 1))

    yield
    for registry in (rules, preaggregations, defenses, attacks):
        for name in [name for name in registry if name.startswith("own-")]:
            registry.remove(name)


def error(**fields) -> float:
    return run_trial(Setting(**{**LR, "attack": "own-reverse", **fields}), 1).error_rate


KNOWS = [
    {"rule": "own-last"},
    {"rule": "own-known"},
    {"rule": "own-last", "selected": 12},
    {"rule": "mean", "pre": "own-left"},
    {"rule": "mean", "defense": "own-first"},
]


@pytest.mark.parametrize("fields", KNOWS, ids=str)
def test_who_takes_the_first_for_the_compromised_fares_as_one_who_guesses(fields, own, monkeypatch):
    guessed = error(rule="own-random")
    assert guessed > 0.5
    assert error(**fields) > 0.5
    monkeypatch.setattr(Setting, "numbered", False)  # as it would be if they came first
    assert error(**fields) < 0.2


def test_built_in_code_is_met_as_ever_whoever_attacks(own):
    for fields in ({}, {"attack": "own-reverse"}, {"pre": "nnm", "defense": "union"}):
        setting = Setting(**LR, rule="krum", **fields)
        assert not setting.numbered
        assert "numbered" not in protocol_of(setting)
    for fields in KNOWS:
        setting = Setting(**{**LR, **fields})
        assert setting.numbered
        assert protocol_of(setting).startswith("1+numbered+")
    assert protocol_of(Setting()) == "1"


@pytest.mark.parametrize("told", ["gas:base={}", "fldetector:base={}"])
def test_a_users_rule_that_another_is_told_of_counts_as_used(told, own):
    setting = Setting(**LR, rule=told.format("own-first"))
    assert setting.numbered
    assert protocol_of(setting) == protocol_of(Setting(**LR, rule="own-first"))
    assert not Setting(**LR, rule=told.format("krum")).numbered
    assert protocol_of(Setting(**LR, rule=told.format("krum"))) == "1"


@pytest.mark.parametrize(
    "fields",
    [
        {"rule": "own-first"},
        {"rule": "own-first", "pre": "own-left"},
        {"rule": "own-first", "selected": 12},
        {"rule": "krum", "pre": "own-left"},
        {"rule": "own-first", "defense": "lfr"},
        {"rule": "krum", "defense": "own-first"},
        {"rule": "own-first", "pre": "own-left", "defense": "own-first", "selected": 15},
    ],
    ids=str,
)
def test_an_attacker_who_asks_is_told_what_the_master_device_does(fields, own):
    setting = Setting(**LR, **fields, attack="own-reverse")
    federation = Federation(setting, 3, backend.context("cpu"), None)
    w = federation.begin(None).w
    for iteration in (1, 2):
        sent = federation.sent(w, iteration, True)
        master, updates = federation.master.seen(), host_view(sent.updates)
        answer = master.answer(updates)
        if setting.defense == "none":
            c, beta = master.c, master.beta
            np.testing.assert_array_equal(master.rule(updates, c=c, beta=beta), answer)
        following = federation.moved(w, sent, True)
        np.testing.assert_array_equal(host_view(following), host_view(w) + answer)
        w = following


def test_nothing_else_moves(own):
    @fl.rule("own-mean")
    def mean(updates):
        return updates.mean(axis=0)

    kept = {**LR, "attack": "gaussian", "selected": 12, "momentum": 0.5, "iterations": 20}
    curves = [run_trial(Setting(**kept, rule=name), 2).curve for name in ("mean", "own-mean")]
    np.testing.assert_allclose(*curves, atol=0.01)  # sums are rounded otherwise


def test_rows_come_in_the_order_of_the_workers_numbers():
    rows, numbers = NUMBERING.arranged(ROWS[:4], np.arange(4))
    assert rows.ravel().tolist() == [1, 3, 0, 2]
    assert numbers.tolist() == [0, 1, 2, 3]
    rows, numbers = NUMBERING.arranged(ROWS[:2], np.array([2, 3]))
    assert (rows.ravel().tolist(), numbers.tolist()) == ([1, 0], [1, 3])
    rows, numbers = NUMBERING.arranged(ROWS, np.array([0, 2, 3, 4, 7]))  # two who are nobody
    assert (rows.ravel().tolist(), numbers.tolist()) == ([2, 0, 1, 3, 4], [1, 2, 3, 4, 7])


def test_a_rule_is_asked_by_identity_and_leaves_out_whom_one_means(own):
    @fl.rule("own-told")
    def told(updates, workers):
        return updates[0] + 10 * workers[0]

    asked = NUMBERING.behind(rules["own-told"]).seen_at(ServerState(workers=np.arange(4)))
    assert asked(ROWS[:4], c=1).tolist() == [1]  # worker 1 has number 0
    without = asked.without_each(ROWS[:4], c=1)
    assert without.aggregates[without.which].ravel().tolist() == [1, 13, 1, 1]
