"""Attacks since 2017: their formulas, how inconspicuous they are, and that they do harm."""

import math
from collections import Counter

import numpy as np
import pytest
import reference_attacks as reference
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fltrust_repro import lasting_attacks, oblivious_attacks
from fltrust_repro.__main__ import commands
from fltrust_repro.aggregation import rules
from fltrust_repro.errors import BadInput
from fltrust_repro.oblivious_attacks import SIDES, VECTORS, benign_rows, exact_moments, z_max
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Attack, Master, Round, attacks
from fltrust_repro.training import run_trial

CRAFTED = [
    "sign-flip", "ipm", "alie", "byzmean", "min-max", "min-sum",
    "mpaf", "poisonedfl", "rop", "mimic",
]  # fmt: skip
OWN_ROOMS = [oblivious_attacks, lasting_attacks]


def benign_like(seed, m, d, spread=1.0):
    """Updates that share a direction, as gradients do, and scatter around it."""
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(d) + 0.1 * spread * rng.standard_normal((m, d))).astype("f4")


def a_round(updates, c, knowledge="full", memory=None, w_re=None, seed=0):
    known = updates[:c] if knowledge == "partial" else updates
    w_re = np.zeros(updates.shape[1]) if w_re is None else w_re
    master = Master(len(updates), c, c, rules["mean"])
    kept = {} if memory is None else {"memory": memory}
    return Round(known, c, w_re, knowledge, np.random.default_rng(seed), master, **kept)


def craft(name, updates, c, **fields):
    return attacks[name].crafted(a_round(updates, c, **fields))


def seen(updates, c, knowledge):
    """What an attacker takes for benign."""
    return updates[:c] if knowledge == "partial" else updates[c:]


def close(got, expected, updates):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * float(np.abs(updates).max()))


both = pytest.mark.parametrize("knowledge", ["full", "partial"])


# --- what all promise


@both
@pytest.mark.parametrize("name", CRAFTED)
@pytest.mark.parametrize(("m", "c"), [(3, 1), (4, 1), (9, 4), (10, 4)])
def test_an_attack_sends_finite_rows_and_leaves_its_arguments_as_they_are(name, knowledge, m, c):
    updates = benign_like(m, m, 7)
    before, w_re = updates.copy(), np.ones(7, dtype=np.float32)
    sent = craft(name, updates, c, knowledge=knowledge, w_re=w_re)
    assert sent.shape == (c, 7)
    assert sent.dtype == np.float32
    assert np.isfinite(sent).all()
    np.testing.assert_array_equal(updates, before)
    assert (w_re == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [one for one in CRAFTED if one != "sign-flip"])
def test_rows_that_are_not_finite_are_not_looked_at(name, bad):
    updates = benign_like(3, 12, 5)
    hostile = updates.copy()
    hostile[6, 2], hostile[9] = bad, bad
    rest = np.delete(hostile, [6, 9], axis=0)
    sent, alone = craft(name, hostile, 3), craft(name, rest, 3)
    assert np.isfinite(sent).all()
    if name not in ("alie", "byzmean", "rop"):  # which count all m
        np.testing.assert_array_equal(sent, alone)


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38, -1e30])
@pytest.mark.parametrize("name", CRAFTED)
def test_an_attack_ends_on_hostile_updates_alone(name, bad, knowledge):
    updates = benign_like(1, 12, 6)
    updates[:, 2] = bad
    assert craft(name, updates, 3, knowledge=knowledge).shape == (3, 6)


@pytest.mark.parametrize("name", CRAFTED)
def test_with_partial_knowledge_the_others_are_not_looked_at(name):
    updates = benign_like(2, 12, 6)
    others = updates.copy()
    others[4:] = 99
    partial = {"knowledge": "partial" if attacks[name].has_knowledge else "full"}
    ours, theirs = craft(name, updates, 4, **partial), craft(name, others, 4, **partial)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", CRAFTED)
@pytest.mark.parametrize("factor", [2.0**-60, 2.0**40])
def test_an_attack_has_no_scale_of_its_own(name, factor):
    updates, w_re = benign_like(4, 11, 6), benign_like(5, 1, 6)[0]
    small = craft(name, updates, 3, w_re=w_re)
    large = craft(name, updates * np.float32(factor), 3, w_re=w_re * np.float32(factor))
    np.testing.assert_allclose(large, small * np.float32(factor), rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["alie:z=1", "byzmean", "min-max", "min-max:vector=std-above", "min-sum", "mimic"]
)
def test_attacks_around_the_mean_move_with_it(name):
    updates = np.round(benign_like(6, 11, 5) * 64) / 64
    shift = np.float32([3, -2, 1, 0.5, 8])
    moved = craft(name, updates + shift, 3) - shift
    np.testing.assert_allclose(moved, craft(name, updates, 3), atol=1e-5)


@pytest.mark.parametrize("name", [one for one in CRAFTED if one not in ("sign-flip", "mimic")])
def test_how_the_benign_workers_are_numbered_does_not_matter(name):
    updates = benign_like(7, 12, 6)
    order = np.concatenate([[0, 1, 2], np.random.default_rng(0).permutation(9) + 3])
    np.testing.assert_allclose(craft(name, updates[order], 3), craft(name, updates, 3), rtol=1e-5)


@pytest.mark.parametrize("name", ["min-max", "min-sum", "alie", "byzmean", "rop", "mimic"])
def test_where_all_agree_so_do_the_attackers(name):
    updates = np.tile(np.float32([1, -2, 0]), (9, 1))
    sent = craft(f"{name}:z=0" if name == "rop" else name, updates, 3)
    expected = np.zeros((3, 3)) if name == "rop" else updates[:3]  # whose last change is none
    np.testing.assert_allclose(sent, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("sign-flip:of=all", "of is 'all'; choose one of own, mean"),
        ("sign-flip:scale=x", "scale is 'x'; give a number"),
        ("alie:z=large", "z is 'large'; give a finite number"),
        ("alie:side=up", "side is 'up'; choose one of below, above, against"),
        ("byzmean:side=up", "side is 'up'"),
        ("min-max:vector=stdd", "vector is 'stdd'.*Did you mean 'std'"),
        ("min-sum:vector=all", "vector is 'all'"),
        ("min-sum:bound=mean", "bound is 'mean'; choose one of max, min"),
        ("rop:z=x", "z is 'x'"),
        ("mimic:warmup=1.5", "give a whole number"),
        ("mimic:warmup=0", "warmup is 0; it must be at least 1"),
    ],
)
def test_a_wrong_parameter_is_told_in_a_sentence(name, problem):
    with pytest.raises(BadInput, match=problem):
        craft(name, benign_like(0, 9, 3), 2)


# --- the mean and the deviation


@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 4100), (80, 5)])
def test_moments_are_those_of_each_column(n, d):
    rows = benign_like(n, n, d)
    mu, sigma = exact_moments(rows)
    np.testing.assert_allclose(mu, rows.astype(np.float64).mean(axis=0), atol=1e-15)
    np.testing.assert_allclose(sigma, rows.astype(np.float64).std(axis=0), atol=1e-15)


def test_of_hostile_rows_alone_one_of_zeros_is_left():
    assert benign_rows(a_round(np.full((5, 3), np.nan, "f4"), 2)).tolist() == [[0, 0, 0]]


def test_sign_flip_turns_each_own_update_round():
    updates = benign_like(1, 9, 4)
    np.testing.assert_array_equal(craft("sign-flip", updates, 3), -updates[:3])
    np.testing.assert_array_equal(craft("sign-flip:scale=4", updates, 3), -4 * updates[:3])


@both
def test_sign_flip_and_ipm_turn_the_benign_mean_round(knowledge):
    updates = benign_like(1, 9, 4)
    mu, _ = reference.mean_and_deviation(seen(updates, 3, knowledge))
    for name, factor in (("sign-flip:of=mean", 1), ("ipm", 0.1), ("ipm:epsilon=7", 7)):
        close(craft(name, updates, 3, knowledge=knowledge), np.tile(-factor * mu, (3, 1)), updates)


@pytest.mark.parametrize(("epsilon", "turned"), [(3.9, False), (4.1, True)])
def test_ipm_turns_mean_round_from_epsilon_of_m_less_c_over_c_on(epsilon, turned):
    updates = benign_like(1, 100, 20)
    mu, _ = exact_moments(updates[20:])
    updates[:20] = craft(f"ipm:epsilon={epsilon}", updates, 20)
    assert (updates.mean(axis=0) @ mu < 0) == turned


# --- a little is enough


@pytest.mark.parametrize(
    ("m", "c", "z"),
    [(100, 10, 0.112), (100, 20, 0.286), (100, 30, 0.524), (100, 40, 0.903), (50, 24, 1.43),
     (50, 12, 0.336), (51, 12, 0.361), (25, 5, 0.253), (50, 10, 0.253)],
)  # fmt: skip
def test_z_max_is_that_of_the_paper_s_formula(m, c, z):
    assert z_max(m, c) == pytest.approx(z, abs=6e-4 if z < 1 else 5e-3)
    assert z_max(m, c) == pytest.approx(reference.z_max(m, c), abs=1e-9)


def test_z_max_ends_at_0_and_is_finite_where_the_attackers_are_a_majority():
    assert z_max(100, 1) == z_max(100, 2) == z_max(4, 1) == z_max(2, 1) == 0
    assert 0 < z_max(20, 15) < 1


@both
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("z", [None, 1.5])
def test_alie_is_z_deviations_from_the_mean(side, z, knowledge):
    updates = benign_like(2, 25, 30)
    name = f"alie:side={side}" if z is None else f"alie:z={z},side={side}"
    expected = reference.alie(seen(updates, 5, knowledge), reference.z_max(25, 5) if z is None
                              else z, side)  # fmt: skip
    sent = craft(name, updates, 5, knowledge=knowledge)
    close(sent, np.tile(expected, (5, 1)), updates)


matrices = st.tuples(st.integers(1, 3), st.integers(1, 4)).flatmap(
    lambda shape: arrays(
        np.float32,
        (2 * shape[0] + 4, shape[1]),
        elements=st.integers(-16, 16).map(lambda k: np.float32(k / 8)),
    ).map(lambda updates: (updates, shape[0]))
)


@given(matrices, st.sampled_from(list(SIDES)), st.sampled_from([0.25, 1.0, 3.0]))
def test_alie_stays_within_z_standard_deviations(crowd, side, z):
    updates, c = crowd
    mu, sigma = reference.mean_and_deviation(updates[c:])
    sent = craft(f"alie:z={z},side={side}", updates, c)
    assert (np.abs(sent - mu) <= z * sigma + 1e-6).all()
    if side == "against":
        assert (np.where(mu > 0, 1, -1) * (sent - mu) <= 1e-6).all()


def test_against_the_mean_no_change_counts_as_a_decrease():
    updates = np.float32([[9, 9, 9], [1, 0, 0], [-1, 2, -2]])
    assert craft("alie:z=1,side=against", updates, 1).tolist() == [[1, 0, 0]]


@both
@pytest.mark.parametrize(("m", "c"), [(25, 5), (9, 4), (5, 1)])
def test_byzmean_makes_the_mean_of_all_what_alie_sends(m, c, knowledge):
    updates = benign_like(3, m, 8)
    sent = craft("byzmean:z=0.7", updates, c, knowledge=knowledge)
    if knowledge == "full":
        close(sent, reference.byzmean(updates[c:], m, c, 0.7, "below"), updates)
        together = np.concatenate([sent, updates[c:]]).astype(np.float64).mean(axis=0)
        close(together, craft("alie:z=0.7", updates, c)[0], updates)
    near = craft("alie:z=0.7", updates, c, knowledge=knowledge)[: c // 2]
    np.testing.assert_array_equal(sent[: c // 2], near)
    assert len(np.unique(sent, axis=0)) == min(c, 2)


# --- Min-Max and Min-Sum


def a_kind(name):
    """The inequality that an attack keeps."""
    if name == "min-max":
        return reference.within_min_max
    bound = name.partition("bound=")[2] or "max"
    return lambda x, benign: reference.within_min_sum(x, benign, bound)


KINDS = ["min-max", "min-sum", "min-sum:bound=min"]


def with_vector(name, vector):
    return f"{name}{',' if ':' in name else ':'}vector={vector}"


@both
@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.2, 3.0])
def test_gamma_is_that_of_a_long_search(kind, vector, knowledge, spread):
    updates = benign_like(8, 13, 6, spread)
    benign = seen(updates, 5, knowledge)
    within = a_kind(kind)
    _, expected = reference.largest_gamma(benign, vector, lambda x: within(x, benign))
    sent = craft(with_vector(kind, vector), updates, 5, knowledge=knowledge)
    close(sent, np.tile(expected, (5, 1)), updates)


@given(matrices, st.sampled_from(KINDS), st.sampled_from(list(VECTORS)))
@settings(max_examples=150)
def test_no_gamma_is_too_large_and_none_larger_would_do(crowd, kind, vector):
    updates, c = crowd
    benign, within = updates[c:].astype(np.float64), a_kind(kind)
    mu, _ = reference.mean_and_deviation(benign)
    away = craft(with_vector(kind, vector), updates, c)[0].astype(np.float64) - mu
    gamma = np.linalg.norm(away)
    # In units of what float32 can tell apart here.
    unit = 1e-6 * math.sqrt(max(reference.squared(a, b) for a in benign for b in benign))
    assert gamma <= unit or within(mu + away * (1 - unit / gamma), benign)
    assert gamma <= unit or not within(mu + away * (1 + 10 * unit / gamma), benign)


def test_min_sum_is_as_far_from_the_mean_as_the_farthest_benign_update():
    updates = benign_like(9, 20, 50)
    mu, _ = exact_moments(updates[4:])
    lengths = np.linalg.norm(updates[4:] - mu, axis=1)
    for bound, expected in (("max", lengths.max()), ("min", lengths.min())):
        sent = craft(f"min-sum:bound={bound},vector=unit", updates, 4)[0]
        assert np.linalg.norm(sent - mu) == pytest.approx(expected, rel=1e-6)


# --- those that remember


@both
@pytest.mark.parametrize("choice", ["", ":z=1", ":z=2,angle=30,relocation=0.5,reference=0.3"])
def test_rop_is_the_formula_s_in_each_iteration(choice, knowledge):
    values = {"z": reference.z_max(11, 4), "angle": 90, "relocation": 1, "reference": 0.9}
    values |= {k: float(v) for k, _, v in (p.partition("=") for p in choice[1:].split(",") if p)}
    memory, w, v = {}, benign_like(1, 1, 6)[0], None
    for t in range(3):
        updates = benign_like(10 + t, 11, 6)
        round_ = {"knowledge": knowledge, "memory": memory, "w_re": w}
        sent = craft(f"rop{choice}", updates, 4, **round_)
        expected = reference.rop(seen(updates, 4, knowledge).astype(np.float64), v, **values)
        close(sent, np.tile(expected, (4, 1)), updates)
        last = w
        w = w + updates.mean(axis=0)
        v = w.astype(np.float64) - last


def test_rop_stands_right_beside_where_the_model_last_went():
    updates, memory, w = benign_like(3, 20, 40), {}, np.ones(40, "f4")
    craft("rop", updates, 4, memory=memory, w_re=w)
    v = updates[4:].mean(axis=0)
    away = craft("rop:z=0.5", updates, 4, memory=memory, w_re=w + v)[0] - v
    median = np.median(np.linalg.norm(updates[4:], axis=1))
    assert np.linalg.norm(away) == pytest.approx(0.5 * median, rel=1e-4)
    assert abs(away @ v) < 1e-4 * median * np.linalg.norm(v)


def test_mpaf_points_to_one_base_model_throughout_a_trial():
    memory, rng = {}, np.random.default_rng(0)
    aims = []
    for t in range(3):
        w = rng.standard_normal(50).astype("f4") * 10**t
        aims.append(craft("mpaf:scale=100", benign_like(t, 9, 50), 2, memory=memory, w_re=w, seed=t)
                    / 100 + w)  # fmt: skip
    for aim in aims[1:]:
        np.testing.assert_allclose(aim, aims[0], rtol=1e-4, atol=1e-4)
    assert 0.5 < aims[0].std() < 2  # as wide as the first model
    other = craft("mpaf:scale=100", benign_like(0, 9, 50), 2, seed=5)
    assert not np.allclose(other / 100, aims[0])


@pytest.mark.parametrize("scale", [8, 0.6])
def test_poisonedfl_is_the_formula_and_tests_every_50_iterations(scale):
    memory, notes, w = {}, Counter(), np.random.default_rng(0).standard_normal(40).astype("f4")
    slow = None
    for t in range(160):
        step = a_round(benign_like(t, 9, 40), 2, memory=memory, w_re=w)
        step.notes.update(notes)
        sent = attacks[f"poisonedfl:scale={scale}"].crafted(step)
        notes = step.notes
        slow = slow or reference.PoisonedFL(memory["s"], scale)
        np.testing.assert_allclose(sent, np.tile(slow.update(w), (2, 1)), rtol=1e-3, atol=1e-4)
        assert (sent * memory["s"] >= 0).all()
        # Followed for 50 iterations, and then not.
        change = 0.01 * np.random.default_rng(t).standard_normal(40)
        w = (w + (0.02 * memory["s"] if 50 <= t < 100 else 0) + change).astype("f4")
    assert set(np.unique(memory["s"])) == {-1, 1}
    lowered = 0 if scale < 1 else 2  # not below 0.5
    assert memory["scale"] == pytest.approx(scale * 0.7**lowered)
    assert notes["scale lowered"] == lowered


def test_poisonedfl_looks_at_no_update_and_sends_nothing_at_first():
    w = np.ones(6, "f4")
    assert not craft("poisonedfl", benign_like(0, 9, 6), 2, w_re=w).any()
    sent = []
    for seed in (1, 2):
        memory = {}
        craft("poisonedfl", benign_like(seed, 9, 6), 2, memory=memory, w_re=w)
        sent.append(craft("poisonedfl", benign_like(seed, 9, 6), 2, memory=memory, w_re=2 * w))
    np.testing.assert_array_equal(*sent)
    np.testing.assert_allclose(np.linalg.norm(sent[0][0]), 8 * np.linalg.norm(w), rtol=1e-5)


@both
@pytest.mark.parametrize("warmup", [1, 4])
def test_mimic_copies_whom_ojas_rule_finds(warmup, knowledge):
    memory = {}
    first = np.random.default_rng(0).standard_normal(6)  # as the attacker draws it
    slow = reference.Mimic(first, warmup)
    chosen = []
    for t in range(7):
        updates = benign_like(20 + t, 15, 6)
        benign = seen(updates, 5, knowledge)
        sent = craft(f"mimic:warmup={warmup}", updates, 5, memory=memory, knowledge=knowledge)
        row = slow.choose(benign)
        np.testing.assert_array_equal(sent, np.tile(benign[row], (5, 1)))
        chosen.append(row)
    assert len(set(chosen[warmup - 1 :])) == 1
    assert warmup == 1 or len(set(chosen)) > 1


def test_mimic_finds_the_direction_in_which_updates_vary_most():
    rng, memory = np.random.default_rng(1), {}
    axis = np.float32([0.6, 0.8, 0, 0, 0])
    for _ in range(30):
        updates = 0.1 * rng.standard_normal((40, 5)).astype("f4")
        updates += np.float32(rng.standard_normal((40, 1))) * axis
        craft("mimic:warmup=30", updates, 4, memory=memory)
    assert abs(memory["z"] @ axis) > 0.99


def test_mimic_holds_with_fewer_workers_than_before():
    memory = {}
    craft("mimic", np.eye(12, dtype="f4"), 2, memory=memory)
    memory["row"] = 9
    sent = craft("mimic", np.eye(8, dtype="f4"), 2, memory=memory)
    np.testing.assert_array_equal(sent, np.eye(8)[[7, 7]])


@pytest.mark.parametrize("name", ["mpaf:scale=0.1", "poisonedfl", "rop:z=1", "mimic:warmup=20"])
def test_a_trial_that_goes_on_remembers(name):
    setting = Setting(dataset="digits", attack=name, rule="median", iterations=25)
    taken = []

    def keep(take):
        if len(taken) < 12:
            taken.append(take())

    whole = run_trial(setting, 0, keep=keep)
    assert run_trial(setting, 0, begun=taken[-1]).curve == whole.curve
    arrays = {name: array for name, array in taken[-1].arrays.items() if "attack" not in name}
    told = {**taken[-1].told, "attack's": {}}
    forgotten = run_trial(setting, 0, begun=taken[-1]._replace(arrays=arrays, told=told))
    assert forgotten.curve[-1] != whole.curve[-1]


# --- on data


def test_random_labels_are_drawn_evenly_and_by_the_attackers_generator():
    labels = np.zeros((2, 20, 100), dtype=np.int32)
    rngs = [np.random.default_rng(seed) for seed in (0, 0, 1)]
    first, again, other = (attacks["random-labels"].relabel(labels, 4, rng, None) for rng in rngs)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert np.bincount(first.ravel()).tolist() == pytest.approx([1000] * 4, rel=0.1)


def test_dynamic_flips_take_what_the_received_model_finds_least_likely(monkeypatch):
    # The model (weights, then biases) and the examples, as the attacker gets both.
    seen, real = [], oblivious_attacks.least_likely_labels

    def watched(labels, classes, scores):
        seen.append((labels, scores(), real(labels, classes, scores)))
        return seen[-1][2]

    monkeypatch.setitem(
        attacks._entries, "dynamic-label-flip", Attack("dynamic-label-flip", poison=watched)
    )
    setting = Setting(dataset="digits", attack="dynamic-label-flip", rule="mean", iterations=60)
    run_trial(setting, 0)
    labels, scores, given = seen[-1]
    assert scores.shape == (*labels.shape, 10)
    right = (scores.argmax(axis=-1) == labels).mean()
    assert right > 0.5  # of these examples, then, and not of others
    assert (np.take_along_axis(scores, given[..., None], -1)[..., 0] == scores.min(axis=-1)).all()
    assert (given != labels).mean() > 0.95


# --- they work


def error_rate(attack, **fields):
    fields = {"dataset": "digits", "rule": "mean", "iterations": 200} | fields
    errors = [run_trial(Setting(attack=attack, **fields), seed).error_rate for seed in range(3)]
    return float(np.mean(errors))


@pytest.fixture(scope="module")
def unattacked():
    return error_rate("none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("sign-flip", 0.05),
        pytest.param("sign-flip:scale=5", 0.7, marks=pytest.mark.long),
        pytest.param("sign-flip:of=mean", 0.02, marks=pytest.mark.long),
        pytest.param("ipm:epsilon=10", 0.7, marks=pytest.mark.long),
        pytest.param("alie:z=1", 0.015, marks=pytest.mark.long),
        ("alie:z=1,side=against", 0.1),
        pytest.param("byzmean", 0.1, marks=pytest.mark.long),
        ("byzmean:side=against", 0.4),
        pytest.param("min-max", 0.04, marks=pytest.mark.long),
        pytest.param("min-max:vector=unit", 0.6, marks=pytest.mark.long),
        ("min-max:vector=sign", 0.5),
        pytest.param("min-max:vector=std-against", 0.25, marks=pytest.mark.long),
        pytest.param("min-sum", 0.04, marks=pytest.mark.long),
        pytest.param("min-sum:vector=unit", 0.6, marks=pytest.mark.long),
        ("min-sum:vector=sign", 0.5),
        ("rop:z=1", 0.08),
        ("mpaf", 0.7),
        pytest.param("mpaf:scale=1", 0.6, marks=pytest.mark.long),
        ("poisonedfl", 0.6),
        ("mimic", 0.015),
    ],
)
def test_mean_learns_worse_under_attack(name, least, unattacked):
    assert unattacked < 0.13
    assert error_rate(name) > unattacked + least


@pytest.mark.parametrize(("name", "least"), [("random-labels", 0.03), ("dynamic-label-flip", 0.07)])
def test_mean_learns_worse_from_wrong_labels(name, least, unattacked):
    assert error_rate(name, compromised=45) > unattacked + least


@pytest.mark.long
@both
def test_the_two_sides_of_the_mean_are_not_the_same_for_logistic_regression(knowledge):
    fields = {"rule": "trimmed-mean", "knowledge": knowledge}
    above, below, against = (
        error_rate(f"alie:z=1,side={side}", **fields) for side in ("above", "below", "against")
    )
    assert above < below < against - 0.1


def test_a_user_chooses_an_attack_and_its_parameters_by_name(alone, monkeypatch, tmp_path):
    def run(attack):
        words = ["run", "--dataset", "digits", "--rule", "mean", "--iterations", "20", "--jobs"]
        return CliRunner().invoke(commands, [*words, "0", "--attack", attack])

    monkeypatch.chdir(tmp_path)
    done, wrong = run("min-max:vector=unit"), run("min-max:vector=stdd")
    assert (done.exit_code, done.stdout[:19]) == (0, "seed 0: error rate ")
    assert wrong.exit_code == 2
    assert "Traceback" not in wrong.output
    assert "attack 'min-max': vector is 'stdd'; choose one of unit, sign, std, " in wrong.output
