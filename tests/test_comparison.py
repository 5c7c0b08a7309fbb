"""The statistics of a comparison, against scipy's, and what holds whatever the numbers are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fltrust_repro import comparison
from fltrust_repro.comparison import by_chance, difference, holm, verdict, verdicts

rates = st.floats(0, 1).map(lambda rate: round(rate, 4))
samples = st.dictionaries(st.integers(0, 20), rates, min_size=1, max_size=12)


def drawn(seed: int, n: int, first: int = 0) -> dict[int, float]:
    return dict(enumerate(np.random.default_rng(seed).uniform(0.1, 0.4, n), first))


# ---- against scipy ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 10, 50])
def test_same_seeds_are_compared_in_pairs_as_scipy_does(n):
    a = drawn(1, n)
    b = {seed: 0.8 * rate + other for (seed, rate), other in zip(a.items(), drawn(2, n).values())}
    found, theirs = difference(a, b), stats.ttest_rel(list(b.values()), list(a.values()))
    low, high = theirs.confidence_interval(0.95)
    assert found.paired
    assert found.counts == (n, n)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.value - found.half == pytest.approx(low, abs=1e-12)
    assert found.value + found.half == pytest.approx(high, abs=1e-12)


def test_the_order_in_which_seeds_come_pairs_nothing():
    a, b = drawn(1, 10), drawn(2, 10)
    assert difference(a, dict(reversed(b.items()))) == difference(a, b)


@pytest.mark.parametrize(("shared", "paired"), [(3, False), (4, True), (7, True)])
def test_pairs_are_half_of_the_seeds_or_more(shared, paired):
    assert difference(drawn(1, 7), drawn(2, 7, 7 - shared)).paired == paired


@pytest.mark.parametrize(("n", "m"), [(3, 3), (5, 40), (50, 47)])
def test_other_seeds_are_compared_by_welch_as_scipy_does(n, m):
    a, b = drawn(1, n), drawn(2, m, 100)
    ours, others = list(a.values()), list(b.values())
    found = difference(a, b)
    theirs = stats.ttest_ind(others, ours, equal_var=False)
    # scipy gives this interval by hand only, before 1.11.
    squares = [np.var(x, ddof=1) / len(x) for x in (ours, others)]
    freedom = sum(squares) ** 2 / sum(s**2 / (len(x) - 1) for s, x in zip(squares, (ours, others)))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(squares))
    assert not found.paired
    assert found.counts == (n, m)
    assert found.value == pytest.approx(np.mean(others) - np.mean(ours))
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.half == pytest.approx(half, rel=1e-9)


def test_holms_correction_is_that_of_its_definition():
    ps = [0.04, 0.001, 0.3, math.nan, 0.04, 0.02]
    left = sorted(p for p in ps if p == p)
    expected = [
        max(min(1.0, (len(left) - k) * q) for k, q in enumerate(left) if q <= p) if p == p else p
        for p in ps
    ]
    assert holm(ps) == pytest.approx(expected, nan_ok=True)


# ---- which trials are compared ------------------------------------------------------------------


def test_pairs_leave_out_what_only_one_side_has():
    a = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.9}
    b = {1: 0.2, 2: 0.3, 3: 0.5, 7: 0.0}
    found = difference(a, b)
    assert (found.paired, found.counts) == (True, (3, 3))
    assert found.means == pytest.approx((0.2, 1 / 3))
    assert found.value == pytest.approx(0.4 / 3)


def test_a_few_shared_seeds_do_not_throw_away_all_others():
    a, b = drawn(1, 50), drawn(2, 50, 47)
    assert difference(a, b).counts == (50, 50)
    assert not difference(a, b).paired


@pytest.mark.parametrize("b", [{1: 0.2}, {1: 0.2, 2: 0.9}, {7: 0.2, 8: 0.4}])
def test_too_few_trials_give_a_difference_and_no_verdict(b):
    found = difference({1: 0.1, 2: 0.3, 3: 0.2}, b)
    assert math.isnan(found.half)
    assert verdict(found, math.nan) == "too few trials"
    assert math.isfinite(found.value)


# ---- whatever the numbers -----------------------------------------------------------------------


@given(samples, samples)
def test_b_against_a_is_the_negative_of_a_against_b(a, b):
    one, other = difference(a, b), difference(b, a)
    assert other.value == -one.value
    assert other.means == one.means[::-1]
    assert other.counts == one.counts[::-1]
    assert (other.paired, other.equal) == (one.paired, one.equal)
    for mine, theirs in ((one.half, other.half), (one.p, other.p)):
        assert mine == theirs or (math.isnan(mine) and math.isnan(theirs))
    swapped = {comparison.LOWER: comparison.HIGHER, comparison.HIGHER: comparison.LOWER}
    swapped |= {word: comparison.PERHAPS[swapped[way]] for way, word in comparison.PERHAPS.items()}
    words = verdict(one, one.p), verdict(other, other.p)
    assert swapped.get(words[0], words[0]) == words[1]


@given(samples)
def test_a_sample_equals_itself(a):
    found = difference(a, dict(a))
    assert found.value == 0
    assert found.equal
    assert verdict(found, 1.0) == "equal"
    assert len(a) < 3 or (found.half, found.p) == (0, 1)


@given(samples, samples)
def test_the_interval_leaves_out_0_where_chance_is_below_5_percent(a, b):
    found = difference(a, b)
    if found.half > 1e-9 and abs(found.p - 0.05) > 1e-9:
        assert (abs(found.value) > found.half) == (found.p < 0.05)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=8))
def test_the_correction_keeps_the_order_and_lowers_nothing(ps):
    corrected = holm(ps)
    known = [(p, q) for p, q in zip(ps, corrected) if p == p]
    assert all(p <= q <= 1 for p, q in known)
    by_p = [q for _, q in sorted(known)]
    assert by_p == sorted(by_p)
    assert [math.isnan(q) for q in corrected] == [math.isnan(p) for p in ps]


# ---- in words -----------------------------------------------------------------------------------


def test_a_verdict_says_which_way_and_how_sure():
    lower = difference(drawn(1, 50), {seed: rate - 0.05 for seed, rate in drawn(1, 50).items()})
    assert verdict(lower, 0.049) == "B lower"
    assert verdict(lower, 0.051) == "perhaps lower"
    assert verdict(replace(lower, value=0.05, p=0.03), 0.01) == "B higher"
    assert verdict(replace(lower, value=0.05, p=0.03), 0.2) == "perhaps higher"
    unsure = replace(lower, value=-0.0034, half=0.0051, p=0.2)
    assert verdict(unsure, 0.2) == "within ±0.009"


@pytest.mark.parametrize(("examples", "word"), [(1, "within"), (2, "B higher"), (30, "B higher")])
def test_pairs_that_all_differ_by_the_same_have_the_spread_of_whole_examples(examples, word):
    """Three of 114 test examples each: one more may be chance, as a coin of three sides has it."""
    one = {seed: errors / 114 for seed, errors in enumerate((3, 7, 20))}
    found = difference(one, {seed: rate + examples / 114 for seed, rate in one.items()})
    assert found.paired
    # Two roundings, uniform over one example, in three pairs: t with 2 degrees of freedom.
    t = examples / math.sqrt(2 / 12 / 3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert verdict(found, found.p).startswith(word)
    assert difference(one, one).p == 1


def test_constant_sides_of_other_seeds_are_told_apart():
    constant = difference({1: 0.5, 2: 0.5, 3: 0.5}, {7: 0.4, 8: 0.4, 9: 0.4})
    assert verdict(constant, constant.p) == "B lower"
    assert difference({1: 0.5, 2: 0.5, 3: 0.5}, {7: 0.5, 8: 0.5, 9: 0.5}).p == 1


def test_chance_has_no_part_in_what_is_equal_or_not_judged():
    other = difference(drawn(1, 10), drawn(2, 10))
    same, few = difference(drawn(1, 10), drawn(1, 10)), difference({1: 0.1}, {1: 0.2})
    assert by_chance([other, other, same, few]) == pytest.approx(0.1)


def test_verdicts_are_corrected_for_the_number_of_cells_that_can_differ():
    base = drawn(1, 10)
    seed = next(s for s in range(50) if 0.02 < difference(base, drawn(s, 10)).p < 0.05)
    other, same = difference(base, drawn(seed, 10)), difference(base, base)
    way = "lower" if other.value < 0 else "higher"
    assert verdicts([other, same]) == [f"B {way}", "equal"]
    assert verdicts([other, other, other]) == [f"perhaps {way}"] * 3
