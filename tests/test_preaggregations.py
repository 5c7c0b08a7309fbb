"""Pre-aggregations against slow versions written from their formulas, and before a rule."""

import numpy as np
import pytest
import reference_field as reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fltrust_repro.aggregation import rule, rules
from fltrust_repro.errors import BadInput
from fltrust_repro.preaggregations import (
    adaptive_robust_clipping,
    behind,
    bucketing,
    clip,
    foundation,
    nearest_neighbour_mixing,
    preaggregation,
    preaggregations,
)
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial

UPDATES = arrays(np.float32, (7, 3), elements=st.integers(-50, 50).map(float))
SMALL = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 8}


@given(UPDATES, st.integers(0, 3))
def test_nnm_is_each_ones_mean_of_its_nearest(updates, c):
    mixed = nearest_neighbour_mixing(updates, c)
    for i, row in enumerate(updates):
        distances = ((updates.astype(float) - row) ** 2).sum(axis=1)
        distances[i] = -1
        nearest = sorted(range(7), key=lambda k: (distances[k], k))[: 7 - c]
        np.testing.assert_allclose(mixed[i], updates[nearest].mean(axis=0), rtol=1e-5, atol=1e-5)


@given(UPDATES, st.integers(1, 8), st.integers(0, 99))
def test_buckets_hold_every_update_once(updates, size, seed):
    buckets = bucketing(updates, np.random.default_rng(seed), size=size)
    assert len(buckets) == -(-7 // size) == preaggregations[f"bucketing:size={size}"].rows(7)
    sizes = [min(size, 7 - start) for start in range(0, 7, size)]
    total = (buckets * np.array(sizes)[:, None]).sum(axis=0)
    np.testing.assert_allclose(total, updates.sum(axis=0), rtol=1e-4, atol=1e-3)


def test_buckets_are_drawn_anew():
    updates, rng = np.arange(40, dtype=np.float32)[:, None], np.random.default_rng(0)
    assert (bucketing(updates, rng) != bucketing(updates, rng)).any()


@given(UPDATES, st.integers(0, 3), st.sampled_from([0.5, 1.0, 2.0]))
def test_clipping_keeps_directions_and_bounds_lengths(updates, c, radius):
    lengths = np.linalg.norm(updates.astype(float), axis=1)
    k = 2 * c * (7 - c) // 7
    bounds = {"clip": radius * np.median(lengths), "arc": np.sort(lengths)[7 - k - 1]}
    found = {"clip": clip(updates, radius=radius), "arc": adaptive_robust_clipping(updates, c)}
    for name, clipped in found.items():
        for row, length, given_row in zip(clipped, lengths, updates):
            expected = given_row * min(1.0, bounds[name] / length) if length else given_row
            np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


@given(UPDATES, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_foundation_adds_copies_of_the_one_farthest_from_the_extremes(updates, share):
    found = foundation(updates, share=share)
    assert len(found) == preaggregations[f"foundation:share={share}"].rows(7)
    np.testing.assert_array_equal(found, reference.foundation(updates, int(share * 7)))


def test_foundation_copies_no_row_that_is_not_finite_and_sees_no_extreme_there():
    updates = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    broken = np.vstack([np.full_like(updates[:3], value) for value in (np.nan, np.inf)] + [updates])
    np.testing.assert_array_equal(foundation(broken)[12:], np.tile(foundation(updates)[6], (6, 1)))
    assert foundation(broken[:4]).shape == (6, 4)
    with pytest.raises(BadInput, match="share is -1"):
        foundation(updates, share=-1.0)


@pytest.mark.parametrize("seed", range(3))
def test_three_workers_of_a_hundred_have_foundation_copy_what_they_like(seed):
    # Two far ones make both extremes; of all others the longest whose values add up to 0 is then
    # the farthest from them: fifty copies, of which trimmed mean cuts twenty.
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=(100, 1500)).astype(np.float32)
    towards = np.where(np.arange(1500) < 750, 1000.0, -1000.0)
    updates[0], updates[1], updates[2] = 1e6, -1e6, towards
    benign = updates[3:].mean(axis=0)
    plain = rules["trimmed-mean"](updates, c=20)
    np.testing.assert_array_equal(foundation(updates)[100:], np.tile(updates[2], (50, 1)))
    before = behind("foundation", rules["trimmed-mean"])(updates, c=20)
    assert np.abs(plain - benign).max() < 1
    assert (np.sign(towards) * (before - benign)).min() > 100  # standard deviations


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_rows_beyond_numbers_do_not_spoil_the_others(value):
    updates = np.float32([[1, 2], [2, 1], [value, 1], [1, 1], [2, 2]])
    for clipped in (clip(updates), adaptive_robust_clipping(updates, 1)):
        assert np.isfinite(clipped).all()
        np.testing.assert_array_equal(clipped[0], updates[0])
    mixed = nearest_neighbour_mixing(updates, 1)
    assert np.isfinite(mixed[[0, 1, 3, 4]]).all()


def test_steps_come_in_their_order_and_are_named_once():
    setting = Setting(**SMALL, pre=" nnm+ clip:radius=1.0", rule="trimmed-mean")
    assert setting.pre == "nnm+clip"
    assert setting.at_master.rule.name == "nnm+clip+trimmed-mean"
    for written in ("2e+0", "+2", "+2.0E+0"):
        assert Setting(**SMALL, pre=f"clip:radius={written}+nnm").pre == "clip:radius=2+nnm"
    other = Setting(**SMALL, pre="clip+nnm", rule="trimmed-mean")
    assert other.key() != setting.key() != Setting(**SMALL, rule="trimmed-mean").key()
    updates = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    updates[0] *= 50
    by_hand = rules["trimmed-mean"](clip(nearest_neighbour_mixing(updates, 4)), c=4)
    np.testing.assert_array_equal(setting.at_master.rule(updates, c=4), by_hand)
    other_way = rules["trimmed-mean"](nearest_neighbour_mixing(clip(updates), 4), c=4)
    np.testing.assert_array_equal(other.at_master.rule(updates, c=4), other_way)


def test_limits_follow_the_rows_that_are_left():
    Setting(**SMALL, pre="bucketing", rule="trimmed-mean")
    with pytest.raises(BadInput, match=r"'bucketing:size=3\+trimmed-mean' needs m - 2 beta >= 1"):
        Setting(**SMALL, pre="bucketing:size=3", rule="trimmed-mean")
    with pytest.raises(BadInput, match=r"unknown pre-aggregation 'nmm'; .*Did you mean 'nnm'"):
        Setting(**SMALL, pre="nmm")
    with pytest.raises(BadInput, match="size is 0"):
        run_trial(Setting(**SMALL, pre="bucketing:size=0", rule="mean"), 0)


def test_a_limit_tells_how_many_rows_are_left():
    few = {**SMALL, "workers": 10, "compromised": 2}
    with pytest.raises(BadInput, match=r"with m = 2 rows, of 10 workers, c = 2 .* it is -2"):
        Setting(**few, pre="bucketing:size=5", rule="krum")


@pytest.mark.parametrize("name", ["krum", "trimmed-mean", "bulyan", "mda", "multi-krum"])
def test_rows_that_a_step_does_not_tell_of_are_no_rules_silent_nonsense(name):
    @preaggregation("short")
    def short(updates):
        return updates[:3]

    try:
        with pytest.raises(BadInput, match=f"rule '{name}' behind 'short' needs .* m = 3 workers"):
            behind("short", rules[name])(np.ones((20, 4)), c=4)
        assert behind("short", rules["median"])(np.ones((20, 4)), c=4).tolist() == [1, 1, 1, 1]
    finally:
        preaggregations.remove("short")


@pytest.mark.parametrize("name", ["foolsgold", "fldetector", "leverage"])
@pytest.mark.parametrize("step", ["bucketing", "foundation", "clip+bucketing:size=3"])
def test_a_rule_that_remembers_workers_is_not_given_rows_that_are_nobodys(name, step):
    with pytest.raises(BadInput, match=f"rule '{name}' remembers workers, and '.*' leaves"):
        Setting(**SMALL, pre=step, rule=name)
    Setting(**SMALL, pre="clip+nnm", rule=name)
    Setting(**SMALL, pre="bucketing:size=1", rule=name)


def test_a_step_that_remembers_workers_is_not_given_rows_that_are_nobodys():
    @preaggregation("remembers")
    def remembers(updates, memory, workers):
        return updates

    try:
        with pytest.raises(BadInput, match="pre-aggregation 'remembers' remembers workers, and 'b"):
            behind("bucketing+remembers", rules["median"])
        behind("remembers+bucketing", rules["median"])
    finally:
        preaggregations.remove("remembers")


@pytest.mark.parametrize("wrong", [lambda m: 1 / 0, lambda m: None, lambda m: m / 2])
def test_rows_that_cannot_be_told_are_refused_before_a_trial(wrong):
    preaggregation("odd", rows=wrong)(lambda updates: updates)
    try:
        with pytest.raises(BadInput, match=r"'odd': its rows of 100 cannot be told .*whole number"):
            Setting(**SMALL, pre="odd", rule="median")
    finally:
        preaggregations.remove("odd")


def test_rows_may_depend_on_some_of_a_steps_parameters():
    @preaggregation("some", rows=lambda m, *, size=2: m // size)
    def some(updates, *, size=2, share=1.0):
        return share * updates[: len(updates) // size]

    try:
        for text in ("some:share=2", "some:size=4,share=2"):
            m = 10 if "size" not in text else 5
            with pytest.raises(BadInput, match=f"rule '{text}.krum' needs .* m = {m} rows"):
                behind(text, rules["krum"])(np.ones((20, 4)), c=9)
            assert behind(text, rules["mean"])(np.ones((20, 4)), c=0).tolist() == [2, 2, 2, 2]
    finally:
        preaggregations.remove("some")


@pytest.mark.parametrize("pre", ["none", " none", "", "none+none"])
def test_none_is_no_step(pre):
    plain = Setting(**SMALL, rule="median")
    assert Setting(**SMALL, pre=pre, rule="median") == plain
    assert Setting(**SMALL, pre="nnm+none", rule="median").pre == "nnm"


def test_what_cannot_be_registered_is_told_in_a_sentence():
    with pytest.raises(BadInput, match="'none', which is no step"):
        preaggregation("none")
    with pytest.raises(BadInput, match="'a\\+b'; what follows a \\+ is another"):
        preaggregation("a+b")
    with pytest.raises(BadInput, match="'short': rows is 3; give a function of m"):
        preaggregation("short", rows=3)


def test_a_large_parameter_is_no_other_step():
    setting = Setting(**SMALL, pre="clip:radius=1e20+nnm", rule="median")
    assert setting.pre == "clip:radius=1e20+nnm"
    assert Setting(**{**SMALL, "pre": setting.pre, "rule": "median"}) == setting
    updates = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    by_hand = rules["median"](nearest_neighbour_mixing(updates, 4), c=4)
    np.testing.assert_array_equal(setting.at_master.rule(updates, c=4), by_hand)


@pytest.mark.parametrize("step", ["nnm", "arc"])
@pytest.mark.parametrize("c", [4, 5, 99])
def test_more_compromised_workers_than_updates_are_told(step, c):
    with pytest.raises(BadInput, match=f"'{step}': c is {c}; with m = 4 it must be below 4"):
        behind(step, rules["mean"])(np.ones((4, 3)), c=c)


def test_a_rule_behind_a_step_may_keep_what_it_returned():
    buffer = np.zeros(3, dtype=np.float32)

    @rule("buffered")
    def buffered(updates):
        buffer[:] = np.median(updates, axis=0)
        return buffer

    @rule("short")
    def short(updates):
        return updates[0, 1:]

    try:
        both = behind("clip:radius=1e6", rules["buffered"])
        first = both(np.full((5, 3), 1.0), c=1)
        both(np.full((5, 3), 2.0), c=1)
        assert first.tolist() == [1.0] * 3
        with pytest.raises(BadInput, match=r"'clip\+short' \(test_preaggregations.py, line \d+\)"):
            behind("clip", rules["short"])(np.ones((5, 3)), c=1)
    finally:
        rules.remove("buffered")
        rules.remove("short")


def test_means_of_buckets_are_those_of_a_mean():
    large = np.full((4, 2), 3e38, dtype=np.float32)
    np.testing.assert_array_equal(behind("bucketing", rules["mean"])(large, c=0), large[0])


def test_a_share_of_copies_is_not_cut_by_rounding():
    shares = [k / 100 for k in range(101)]
    rows = [preaggregations[f"foundation:share={share}"].rows(100) for share in shares]
    assert rows == list(range(100, 201))


def test_each_step_and_the_rule_have_a_memory_of_their_own():
    @preaggregation("counting")
    def counting(updates, memory):
        memory["calls"] = memory.get("calls", 0) + 1
        return updates + memory["calls"]

    @rule("counting")
    def counting_rule(updates, memory):
        memory["calls"] = memory.get("calls", 0) + 10
        return updates.mean(axis=0) + memory["calls"]

    try:
        both, state = behind("counting", rules["counting"]), ServerState()
        zeros = np.zeros((3, 1))
        assert [both(zeros, c=0, state=state)[0] for _ in range(2)] == [11.0, 22.0]
        assert both(zeros, c=0)[0] == 11.0
    finally:
        preaggregations.remove("counting")
        rules.remove("counting")


@pytest.mark.parametrize("pre", ["nnm", "bucketing", "clip", "arc", "arc+nnm", "foundation"])
@pytest.mark.parametrize("attack", ["trimmed-mean", "krum"])
def test_trials_run_with_each_under_attack_and_defense(pre, attack):
    found = run_trial(Setting(**SMALL, pre=pre, rule="median", attack=attack, defense="lfr"), 0)
    assert 0 <= found.error_rate <= 1
    assert not found.diverged


@pytest.mark.parametrize(
    ("step", "told"), [("bucketing:size=0", "size is 0"), ("foundation:share=-2", "share is -2")]
)
def test_a_wrong_parameter_is_told_before_anything_runs(step, told):
    """And not the limit of the rule behind it, which would be of so many rows."""
    with pytest.raises(BadInput, match=f"pre-aggregation '{step.split(':')[0]}': {told}"):
        Setting(pre=step, rule="krum")


@pytest.mark.parametrize("radius", [0, -1, np.nan])
def test_updates_are_clipped_to_a_length_above_zero(radius):
    with pytest.raises(BadInput, match=r"'clip': radius is .*; give a finite number above 0"):
        clip(np.ones((3, 2), dtype=np.float32), radius=radius)


def test_what_a_step_does_to_the_servers_update_is_seen_by_no_other():
    """Nor to the model, or to whose rows they are; the same step as a rule's author would write."""
    seen = []

    @preaggregation("spoils")
    def spoils(updates, root, w_re, workers):
        root[:], w_re[:], workers[:] = 0, 7, 3
        return updates

    @rule("sees")
    def sees(updates, root, w_re, workers):
        seen.append((root.tolist(), w_re.tolist(), workers.tolist()))
        return updates[0]

    try:
        state = ServerState(root=np.float32([1, 2]), w_re=np.float32([5, 6]))
        behind("spoils", rules["sees"])(np.ones((3, 2)), c=0, state=state)
    finally:
        preaggregations.remove("spoils")
        rules.remove("sees")
    assert seen == [([1, 2], [5, 6], [0, 1, 2])]


def test_buckets_of_one_leave_updates_where_they_are():
    updates = np.arange(20, dtype=np.float32).reshape(10, 2)
    rng = np.random.default_rng(0)
    step = preaggregations["bucketing:size=1"]
    np.testing.assert_array_equal(step.function(updates, rng), updates)
