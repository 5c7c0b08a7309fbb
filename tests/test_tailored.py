"""The attack on any rule: what it asks, that nothing asked about does more, what it remembers."""

import contextlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fltrust_repro as fl
from fltrust_repro import tailored
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attack, attacks, changing_direction
from fltrust_repro.errors import BadInput
from fltrust_repro.lasting_attacks import base_model
from fltrust_repro.preaggregations import behind
from fltrust_repro.settings import Setting
from fltrust_repro.tailored import world
from fltrust_repro.tailored_lines import Line, lines
from fltrust_repro.threat import Master, Parameters, Round
from fltrust_repro.training import run_trial

RULES = (
    "mean", "trimmed-mean", "median", "krum", "multi-krum", "geometric-median", "caf", "dnc",
    "norm-clipping", "lasa", "nnm+trimmed-mean",
)  # fmt: skip
NAMES = ("tailored", "tailored-persistent", "tailored-pull")
DRAWN = 2 * 0.01 * np.sqrt(30)  # what the Krum attack's epsilon, of which it draws, can make


def master_of(rule, m, c):
    *steps, name = rule.split("+")
    return Master(m, c, c, behind("+".join(steps), fl.rules[name]))


def a_round(rule="median", m=15, d=8, c=3, seed=0, knowledge="full", **parameters):
    rng = np.random.default_rng(seed)
    updates = (rng.standard_normal((m, d)) + rng.standard_normal(d)).astype("f4")
    known = updates[:c] if knowledge == "partial" else updates
    rng, chosen = np.random.default_rng(seed), Parameters(**parameters)
    return Round(known, c, np.zeros(d), knowledge, rng, master_of(rule, m, c), chosen)


def directed_deviation(step, sent, s=None):
    """Section 3.1, by the rule itself."""
    s = changing_direction(step) if s is None else s
    after = np.concatenate([sent, step.known[step.c :]])
    before, after = (step.master.answer(rows).astype(float) for rows in (step.known, after))
    return float(s @ (before - after))


def again(step):
    """The same round, of an attacker who has drawn nothing and remembers nothing yet."""
    return replace(step, rng=np.random.default_rng(0), memory={}, notes=Counter())


def overheard(step):
    """The same round, and what the master device is asked about in it."""
    asked = []

    def answers(rows, states):
        asked.append(rows[: step.c].copy())
        return step.master.answers(rows, [state.rng for state in states])

    return replace(again(step), master=replace(step.master, defended=answers)), asked


# ---- what it asks about is what the module says -------------------------------------------------


def test_each_line_is_what_its_module_says():
    """Of nine benign workers; in the last parameter none differs, and no line moves it by s."""
    rng = np.random.default_rng(3)
    known = (rng.standard_normal((12, 7)) + 1).astype("f4")
    known[:, -1] = 0.5
    step = Round(known, 3, np.zeros(7), "full", rng, master_of("median", 12, 3))
    s, s_rule = np.float32([1, -1, 1, 1, -1, -1, 1]), np.float32([1, 1, -1, 1, -1, 1, 1])
    own, others = known[:3].astype(float), known[3:].astype(float)
    mu, sigma = others.mean(axis=0), others.std(axis=0)
    live = sigma > 1e-6
    r = np.sqrt(np.mean(sigma[live] ** 2))
    p = {"std": -s * sigma, "sign": -s * r * live, "rule": -s_rule * r * live, "mean": -mu}
    p["beyond"] = np.where(s > 0, others.min(axis=0), others.max(axis=0)) - mu
    gaps = np.linalg.norm(own[:, None] - others, axis=2)
    noise = own - np.array([others[np.argsort(row)[:4]].mean(axis=0) for row in gaps])
    lengths = np.linalg.norm(others, axis=1)
    values = np.sort(others[np.argsort(lengths)[4]])

    def expected(form, p, g):
        half = np.tile(p, (3, 1))
        half[:1, ::2] = half[1:, 1::2] = 0
        row = np.empty(7)
        row[np.argsort(p)] = values
        return {
            "copies": mu + g * np.tile(p, (3, 1)), "own": own + g * p, "noisy": mu + g * p + noise,
            "groups": mu + g * half, "origin": g * np.tile(p, (3, 1)),
            "disguised": g * np.tile(row, (3, 1)),
        }[form]  # fmt: skip

    found = lines(step, s, s_rule)
    assert len({line.name for line in found}) == len(found) == 15
    for line in found:
        form, _, direction = line.name.split()[0], *line.name.split()[-2:]
        for g in (0.5, 3.0):
            sent = line.at(np.float32(g))
            assert sent.dtype == np.float32
            np.testing.assert_allclose(sent, expected(form, p[direction], g), rtol=1e-4, atol=1e-5)


def test_with_partial_knowledge_the_others_are_drawn_as_the_own_ones_vary():
    """Few own ones, so that a covariance over c is told from one over c - 1."""
    step = a_round(m=20_003, c=3, d=2, knowledge="partial")
    step = replace(step, known=np.float32([[0, 0], [3, 1], [0, 5]]))
    drawn = world(step).known[3:]
    assert drawn.shape == (20_000, 2)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(step.known.T), rtol=0.1)
    np.testing.assert_allclose(drawn.mean(axis=0), step.known.mean(axis=0), atol=0.1)


@pytest.mark.parametrize("peak", [0.01, 0.3, 50.0])
def test_the_scale_climbs_to_where_harm_is_largest_from_either_side(peak):
    line = Line("line", lambda g: np.full((1, 1), g, dtype=np.float32), 1.0)
    kept = {"scale": [1.0, 2.0]}

    class Asked:
        left = 1000

        def ask(self, name, crafted):
            self.left -= 1
            return -abs(np.log(crafted[0, 0] / peak))

    inquiry, harm = Asked(), -abs(np.log(1 / peak))
    for _ in range(6):
        harm = tailored.climb(inquiry, line, kept, harm, 4)
    assert kept["scale"][0] == pytest.approx(peak, rel=0.3)


def test_harm_is_of_parameters_that_some_update_changes():
    """A rule may move others by itself, whatever is sent: that is nobody's harm."""

    @contextlib.contextmanager
    def registered():
        @fl.rule("moves-all")
        def moves_all(updates):
            found = np.median(updates, axis=0)
            found[-1] = 1000 * np.abs(updates).max()
            return found

        yield
        rules.remove("moves-all")

    with registered():
        step = a_round("moves-all", m=15, c=3)
        step.known[:, -1] = 0
        sent = attacks["tailored"].crafted(step)
    plain = a_round("median", m=15, c=3)
    plain.known[:, -1] = 0
    np.testing.assert_array_equal(sent, attacks["tailored"].crafted(plain))


# ---- in one iteration nothing that it asks about does more


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=6)
@given(st.integers(0, 2**16))
def test_it_does_at_least_what_each_of_its_members_does(rule, seed):
    step = a_round(rule, seed=seed)
    listening, asked = overheard(step)
    least = directed_deviation(step, attacks["tailored:queries=36"].crafted(listening))
    s, s_rule = (changing_direction(replace(step, parameters=Parameters(direction=whose)))
                 for whose in ("mean", "rule"))  # fmt: skip
    tried = [line.at(np.float32(line.first)) for line in lines(step, s, s_rule)]
    rng = np.random.default_rng(0)
    rng.integers(2**31, size=1)
    drawing = replace(again(step), rng=rng)
    members = [attacks[name].crafted(drawing) for name in ("trimmed-mean", "krum")]
    for one in [step.known[: step.c], *members, *tried]:
        assert any(np.array_equal(one, other) for other in asked)
    most = max(directed_deviation(step, sent) for sent in asked)
    assert least == pytest.approx(most, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["alie:z=1,side=against", "ipm:epsilon=1", "trimmed-mean", "krum"])
@pytest.mark.parametrize("rule", RULES)
def test_it_does_at_least_what_fixed_attacks_do_that_its_lines_pass_through(rule, name):
    for seed in range(3):
        step = a_round(rule, m=20, c=4, d=30, seed=seed)
        sent = attacks[name].crafted(again(step))
        least = directed_deviation(step, attacks["tailored:queries=40"].crafted(again(step)))
        assert least >= directed_deviation(step, sent) - DRAWN


def test_with_the_deviation_goal_it_is_that_which_is_maximised():
    moved = {}
    for goal in ("deviation", "directed-deviation"):
        step = a_round("geometric-median", m=20, c=5, d=40, goal=goal)
        after = np.concatenate([attacks["tailored"].crafted(step), step.known[step.c :]])
        moved[goal] = np.abs(step.master.answer(step.known) - step.master.answer(after)).sum()
    assert moved["deviation"] >= moved["directed-deviation"]


# ---- what it asks


@contextlib.contextmanager
def own_rule(function):
    fl.rule("asked")(function)
    try:
        yield
    finally:
        fl.rules.remove("asked")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("queries", [9, 12, 24, 60])
def test_it_asks_for_as_many_aggregations_as_it_may(name, queries):
    calls = []

    def counted(updates):
        calls.append(1)
        return updates.mean(axis=0)

    with own_rule(counted):
        step = a_round("asked")
        for _ in range(3):
            calls.clear()
            attacks[f"{name}:queries={queries}"].crafted(step)
            assert len(calls) == queries
    assert step.notes["aggregations asked for"] == 3 * queries
    assert sum(n for note, n in step.notes.items() if note.startswith("sent: ")) == 3


def test_a_rule_that_draws_is_asked_with_other_draws_and_twice():
    seen = []

    def drawing(updates, rng):
        seen.append(rng.random())
        return updates.mean(axis=0)

    with own_rule(drawing):
        step = a_round("asked")
        attacks["tailored"].crafted(step)
        own = step.master.rule.state
    assert own is None or seen.count(own.rng.random()) == 0
    draws, counts = np.unique(seen, return_counts=True)
    assert len(draws) == 2
    assert set(counts) == {12}
    assert step.notes["aggregations asked for"] == 24


def test_a_rule_that_may_draw_but_does_not_is_asked_once():
    step = a_round("dnc")  # draws where there are more than 10,000 parameters
    attacks["tailored"].crafted(step)
    assert step.notes["aggregations asked for"] == 12


@pytest.mark.parametrize("name", NAMES)
def test_too_few_queries_are_refused(name):
    with pytest.raises(BadInput, match=rf"'{name}': queries is 8; give at least 9"):
        attacks[f"{name}:queries=8"].crafted(a_round())


def test_the_defense_is_asked_too():
    """LFR removes whom the attacker makes suspicious: what it answers is not the bare rule's."""
    small = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 10}
    asked = []

    def spying(step):
        rows = step.known.copy()
        rows[: step.c] = -100 * rows[: step.c]
        asked.append((step.master.answer(rows), step.master.rule(rows, c=4, beta=4)))
        return step.known[: step.c]

    attack("spying")(spying)
    try:
        run_trial(Setting(**small, rule="mean", attack="spying", defense="lfr"), 0)
        defended = [np.abs(a).max() < np.abs(b).max() for a, b in asked]
        asked.clear()
        run_trial(Setting(**small, rule="mean", attack="spying"), 0)
    finally:
        attacks.remove("spying")
    assert all(defended)
    assert all(np.array_equal(a, b) for a, b in asked)


# ---- lines and scales, over iterations


def asked_about(step, iterations, queries, monkeypatch):
    """Which lines were asked about, by iteration."""
    seen, ask = [], tailored.Inquiry.ask

    def noting(inquiry, name, crafted):
        seen[-1].add(name)
        return ask(inquiry, name, crafted)

    monkeypatch.setattr(tailored.Inquiry, "ask", noting)
    for _ in range(iterations):
        seen.append(set())
        attacks[f"tailored:queries={queries}"].crafted(step)
    return seen


@pytest.mark.parametrize("queries", [9, 12, 24])
@pytest.mark.parametrize("rule", ["krum", "nnm+trimmed-mean", "lasa"])
def test_every_line_is_asked_about_again_and_again(rule, queries, monkeypatch):
    step = a_round(rule, m=20, d=30, c=4)
    seen = asked_about(step, 45, queries, monkeypatch)
    names = {line.name for line in lines(step, np.ones(30), np.ones(30))}
    for first in (0, 15, 30):
        assert names <= set.union(*seen[first : first + 15])


def test_the_lines_that_come_closest_are_asked_about_in_every_iteration(monkeypatch):
    step = a_round("nnm+trimmed-mean", m=20, d=30, c=4)
    asked_about(step, 15, 12, monkeypatch)
    for _ in range(20):
        kept = step.memory["lines"]
        closest = sorted(kept, key=lambda name: -kept[name]["close"])[:3]
        (names,) = asked_about(step, 1, 12, monkeypatch)
        assert {*closest} < names


@pytest.mark.parametrize(
    ("harm", "most", "close"),
    [(2.0, 2.0, 1.0), (1.0, 2.0, 0.5), (-1.0, 2.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0),
     (np.inf, np.inf, 1.0), (1.0, np.inf, 0.0)],
)  # fmt: skip
def test_how_close_a_line_comes_is_a_share_of_the_most_harm(harm, most, close):
    kept = {"new": {"close": 2.0, "waits": 4}, "old": {"close": 1.0, "waits": 0},
            "waiting": {"close": 0.3, "waits": 7}}  # fmt: skip
    tailored.compare(kept, {"new": harm, "old": harm}, most)
    assert kept["new"] == {"close": close, "waits": 0}
    assert kept["old"]["close"] == pytest.approx(0.9 + 0.1 * close)
    assert kept["waiting"] == {"close": 0.3, "waits": 8}


def test_it_finds_how_far_a_rule_lets_it_go():
    """The mean of all updates that are no farther than 3 from their median one."""

    def cut(updates):
        far = np.linalg.norm(updates - np.median(updates, axis=0), axis=1)
        return updates[far < 3].mean(axis=0)

    with own_rule(cut):
        step = a_round("asked", m=40, c=8, d=4)
        step = replace(step, known=0.1 * step.known)
        for _ in range(6):
            sent = attacks["tailored"].crafted(step)
        center = np.median(np.concatenate([sent, step.known[8:]]), axis=0)
    far = np.linalg.norm(sent - center, axis=1)
    assert (far < 3).all()
    assert far.mean() > 2.4


@pytest.mark.parametrize("name", NAMES)
def test_what_it_remembers_can_be_written_down(name):
    step = a_round()
    attacks[name].crafted(step)
    kept = {key: value for key, value in step.memory.items() if not isinstance(value, np.ndarray)}
    assert json.loads(json.dumps(kept)) == kept
    asked_once = {"tailored": set(), "tailored-persistent": {"s"}, "tailored-pull": {"base"}}
    assert step.memory.keys() - kept.keys() == asked_once[name]


def test_the_persistent_one_keeps_its_first_direction():
    step = a_round("mean", m=20, c=4)
    attacks["tailored-persistent"].crafted(step)
    first = step.memory["s"].copy()
    turned = replace(step, known=-step.known)
    sent = attacks["tailored-persistent"].crafted(turned)
    np.testing.assert_array_equal(step.memory["s"], first)
    assert directed_deviation(turned, sent, first) > 0


def nearer(step, model, sent):
    """How much nearer to a model what is sent brings the global one, to first order."""
    way = step.w_re - model
    return directed_deviation(step, sent, way / np.linalg.norm(way))


@pytest.mark.parametrize("rule", RULES)
def test_the_pulling_one_brings_the_model_nearer_to_one_model_than_its_lines_do(rule):
    step = replace(a_round(rule, m=20, c=4, d=30), w_re=np.linspace(-1, 2, 30, dtype="f4"))
    model = 2 * base_model(again(step))
    listening, asked = overheard(step)
    most = nearer(step, model, attacks["tailored-pull"].crafted(listening))
    assert most >= max(nearer(step, model, sent) for sent in asked) - 1e-5
    assert most > 0


@pytest.mark.parametrize("rule", ["norm-clipping", "centered-clipping", "geometric-median"])
def test_where_lengths_are_cut_it_pulls_at_least_as_mpaf_does(rule):
    step = replace(a_round(rule, m=20, c=4, d=30), w_re=np.linspace(-1, 2, 30, dtype="f4"))
    base, mpaf = base_model(again(step)), attacks["mpaf"].crafted(again(step))
    attacker = again(step)
    for _ in range(8):  # by which it has found its scale
        sent = attacks["tailored-pull:far=1"].crafted(attacker)
    assert nearer(step, base, sent) >= 0.99 * nearer(step, base, mpaf)


def test_the_pulling_one_has_one_model_through_the_trial():
    step = replace(a_round("mean"), w_re=np.linspace(-1, 1, 8, dtype="f4"))
    attacks["tailored-pull"].crafted(step)
    first = step.memory["base"].copy()
    attacks["tailored-pull"].crafted(replace(step, w_re=-3 * step.w_re))
    np.testing.assert_array_equal(step.memory["base"], first)
    np.testing.assert_array_equal(base_model(again(step)), first)


def test_a_model_that_is_there_already_is_not_pulled():
    step = a_round("mean")
    there = replace(step, w_re=(2 * base_model(step)).astype("f4"), memory=step.memory)
    there.memory["base"] = there.w_re.astype(float) / 2
    np.testing.assert_array_equal(attacks["tailored-pull"].crafted(there), step.known[: step.c])


@pytest.mark.parametrize("far", ["nan", "inf", "x"])
def test_a_model_is_a_finite_number_of_times_as_far(far):
    with pytest.raises(BadInput, match="tailored-pull"):
        attacks[f"tailored-pull:far={far}"].crafted(a_round())


# ---- what it knows


@pytest.mark.parametrize("name", NAMES)
def test_with_partial_knowledge_it_draws_the_others_like_its_own(name):
    step = a_round("median", m=400, c=100, d=3, knowledge="partial")
    drawn = world(step).known[100:]
    own = step.known.astype(float)
    assert drawn.shape == (300, 3)
    np.testing.assert_allclose(drawn.mean(axis=0), own.mean(axis=0), atol=0.2)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(own.T), atol=0.3)
    assert attacks[name].crafted(step).shape == (100, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("knowledge", ["full", "partial"])
@pytest.mark.parametrize("rule", ["mean", "krum", "caf"])
def test_updates_that_are_not_finite_are_borne(rule, knowledge, value):
    step = a_round(rule, knowledge=knowledge)
    known = step.known.copy()
    known[1, 2] = value
    sent = attacks["tailored"].crafted(replace(step, known=known))
    assert sent.shape == (3, 8)


def test_what_is_disguised_holds_the_values_of_a_benign_update():
    step = a_round(m=9, c=2)
    by_name = {line.name: line for line in lines(step, *[changing_direction(step)] * 2)}
    row = by_name["disguised mean"].at(np.float32(1))[0]
    long = np.linalg.norm(step.known[2:], axis=1)
    middle = step.known[2:][np.argsort(long)[3]]
    np.testing.assert_array_equal(np.sort(row), np.sort(middle))
    mu = step.known[2:].mean(axis=0)
    assert (np.argsort(row) == np.argsort(-mu)).all()


# ---- in training


SMALL = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 60}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "fields",
    [
        {"rule": "trimmed-mean", "defense": "lfr"},
        {"rule": "foolsgold"},
        {"rule": "geometric-median", "pre": "bucketing"},
        {"rule": "median", "selected": 10},
        {"rule": "krum", "knowledge": "partial"},
        {"rule": "mean", "goal": "deviation"},
        {"rule": "fltrust", "root_size": 30},
    ],
)
def test_it_attacks_whatever_the_master_device_does(fields, name):
    setting = Setting(**{**SMALL, "iterations": 12, "attack": name, **fields})
    found = run_trial(setting, 0)
    again = run_trial(setting, 0)
    assert (found.curve, found.notes) == (again.curve, again.notes)
    sent = sum(n for note, n in found.notes.items() if note.startswith("sent: "))
    assert sent == found.notes["attacked iterations"] > 8


def test_it_breaks_krum_in_training():
    clean, attacked = (run_trial(Setting(**SMALL, rule="krum", attack=attack), 1).error_rate
                       for attack in ("none", "tailored-persistent"))  # fmt: skip
    assert attacked > clean + 0.2


def test_a_benign_update_that_is_not_finite_spoils_no_line():
    step = a_round("caf", m=20, d=8, c=4)
    known = step.known.copy()
    known[9, 3] = np.nan
    broken = replace(step, known=known)
    assert all(np.isfinite(one.at(np.float32(1))).all() for one in lines(broken, *np.ones((2, 8))))
    assert np.isfinite(attacks["tailored"].crafted(again(broken))).all()
    others = replace(step, known=np.delete(known, 9, axis=0))  # as if it had not been sent
    for one, other in zip(lines(broken, *np.ones((2, 8))), lines(others, *np.ones((2, 8)))):
        np.testing.assert_allclose(one.at(np.float32(1)), other.at(np.float32(1)), rtol=1e-5)
