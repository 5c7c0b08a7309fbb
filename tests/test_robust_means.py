"""Robust means of other papers: the formulas, and what they promise whatever workers send."""

import json
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made import normal

from fltrust_repro import diameters
from fltrust_repro.__main__ import commands
from fltrust_repro.aggregation import krum, rules
from fltrust_repro.diameters import smallest_diameter
from fltrust_repro.distances import inner_products, squared_distances
from fltrust_repro.errors import BadInput
from fltrust_repro.robust_means import (
    centered_clipping,
    clipped_clustering,
    geometric_median,
    mda,
    meamed,
    multi_krum,
    norm_clipping,
    phocas,
    rlr,
    sign_vote,
    weiszfeld,
)
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.training import run_trial
from fltrust_repro.weighing import lengths, sign_votes, weighted_mean, weighted_sum

NAN, INF = np.float32("nan"), np.float32("inf")
BAD = [NAN, -NAN, INF, -INF, *np.float32([1e30, -1e30, 3e38, -3e38])]
NAMES = (
    "multi-krum", "geometric-median", "norm-clipping", "centered-clipping", "meamed", "phocas",
    "mda", "sign-vote", "rlr", "clipped-clustering",
)  # fmt: skip
TRANSLATED = ("multi-krum", "geometric-median", "meamed", "phocas", "mda")
BOUNDED = tuple(name for name in NAMES if name != "rlr")  # whatever the values of c rows


def integers(rows, columns, largest=20):
    return arrays(np.int64, (rows, columns), elements=st.integers(-largest, largest))


@st.composite
def problems(draw, largest=20):
    """Integer updates and a c within every rule's limit."""
    c = draw(st.integers(0, 3))
    m = 2 * c + draw(st.integers(3, 6))
    return draw(integers(m, draw(st.integers(1, 4)), largest)).astype(np.float32), c


def near(found, expected, **how):
    np.testing.assert_allclose(found, expected, **{"rtol": 1e-5, "atol": 1e-6, **how})


# --- definitions


@pytest.mark.parametrize(("m", "c"), [(4, 1), (5, 1), (9, 3), (30, 6), (100, 20)])
def test_rules_equal_the_reference_on_random_updates(m, c):
    updates = normal(m, 37, seed=m)
    near(multi_krum(updates, c), reference.multi_krum(updates, c, m - c))
    near(multi_krum(updates, c, q=2), reference.multi_krum(updates, c, 2))
    near(norm_clipping(updates), reference.norm_clipping(updates, 1))
    near(norm_clipping(updates, radius=0.7), reference.norm_clipping(updates, 0.7))
    near(meamed(updates, c), reference.meamed(updates, c))
    near(phocas(updates, c), reference.phocas(updates, c))
    near(sign_vote(updates), reference.sign_vote(updates, 1))
    near(sign_vote(updates, step=0.3), reference.sign_vote(updates, 0.3))
    near(rlr(updates), reference.rlr(updates, 0.4))
    near(rlr(updates, theta=0.1), reference.rlr(updates, 0.1))


@pytest.mark.parametrize(("m", "d"), [(3, 2), (4, 1), (5, 3), (12, 5), (50, 200)])
def test_the_geometric_median_is_the_reference_s(m, d):
    updates = normal(m, d, seed=m) * np.float32(0.01) + np.float32(3)
    expected = reference.geometric_median(updates, 2_000)
    if (m, d) == (4, 1):  # every point between the middle two
        assert sorted(updates[:, 0])[1] <= geometric_median(updates)[0] <= sorted(updates[:, 0])[2]
    else:
        near(geometric_median(updates), expected, rtol=0, atol=1e-5)


def test_no_point_is_nearer_to_all_than_the_geometric_median():
    updates = normal(15, 4, seed=3)
    found = geometric_median(updates).astype(np.float64)
    least = np.linalg.norm(updates - found, axis=1).sum()
    for away in normal(50, 4, seed=4) * 1e-2:
        assert np.linalg.norm(updates - found - away, axis=1).sum() > least


@given(st.integers(1, 9), st.integers(1, 4), st.data())
def test_nor_is_any_of_the_points_nor_their_mean_with_ties(m, d, data):
    updates = data.draw(integers(m, d, largest=4)).astype(np.float64)

    def away(z):
        return np.linalg.norm(updates - z, axis=1).sum()

    least = min(away(z) for z in [*updates, updates.mean(axis=0)])
    assert away(geometric_median(updates)) <= least * (1 + 1e-3)


def test_near_copies_amid_the_others_draw_the_geometric_median():
    updates = normal(50, 200, seed=8)
    updates[:10] = 0.05 + normal(10, 200, seed=9) * np.float32(1e-4)
    near(geometric_median(updates), reference.geometric_median(updates, 500), atol=1e-4)


@pytest.mark.parametrize("radius", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_centered_clipping_goes_on_from_the_last_round(radius, iterations):
    rounds, memory = [normal(9, 6, seed=t) + 1 for t in range(3)], {}
    for t, updates in enumerate(rounds):
        found = centered_clipping(updates, memory=memory, radius=radius, iterations=iterations)
        near(found, reference.centered_clipping(rounds[: t + 1], radius, iterations))
    found[:] = 99
    assert memory["centre"].max() < 99


def test_clipped_clustering_makes_two_clusters_where_merges_tie():
    """Two groups of attackers at right angles to all others are no reason to keep everybody."""
    updates = np.abs(normal(20, 20)) + 1
    updates[:6], updates[6:, :2] = 0, 0
    updates[:3, 0], updates[3:6, 1] = 5, 5
    notes = Counter()
    rules["clipped-clustering"](updates, c=6, state=ServerState(notes=notes))
    assert notes["workers kept"] == 14


def test_clipped_clustering_remembers_all_lengths():
    rounds, memory = [normal(9, 6, seed=t) * (3 - t) + 1 for t in range(3)], {}
    for t, updates in enumerate(rounds):
        updates[:3] *= -1  # two clusters
        found = clipped_clustering(updates, memory=memory)
        near(found, reference.clipped_clustering(rounds[: t + 1]))
    assert memory["lengths"].shape == (27,)


@given(problems(largest=4))
def test_ties_are_broken_as_the_reference_does(problem):
    updates, c = problem
    m = len(updates)
    for q in {1, m - c, m}:
        near(multi_krum(updates, c, q=q), reference.multi_krum(updates, c, q))
    near(meamed(updates, c), reference.meamed(updates, c))
    near(phocas(updates, c), reference.phocas(updates, c))
    near(mda(updates, c), reference.mda(updates, c))


@given(problems())
def test_multi_krum_of_one_is_krum(problem):
    updates, c = problem
    np.testing.assert_array_equal(multi_krum(updates, c, q=1), krum(updates, c))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("m", "c"), [(4, 1), (9, 4), (13, 6), (14, 3)])
def test_the_smallest_diameter_is_that_of_all_selections(m, c, seed):
    squared = squared_distances(normal(m, 1 + seed, seed))
    marked = smallest_diameter(squared, c)
    assert tuple(np.flatnonzero(marked)) == reference.smallest_diameter(squared, c)


@given(st.integers(1, 9), st.data())
def test_so_many_removals_leave_no_two_apart_exactly_if_some_selection_does(m, data):
    pairs = np.triu(data.draw(arrays(bool, (m, m))), 1)
    apart, c = pairs | pairs.T, data.draw(st.integers(0, m - 1))
    marked = smallest_diameter(apart.astype(float), c)
    expected = reference.smallest_diameter(apart.astype(float), c)
    assert tuple(np.flatnonzero(marked)) == expected


@pytest.mark.parametrize("row", [np.nan, np.inf])
def test_mda_does_not_look_at_places_where_a_row_is_not_finite(row):
    """Any four of the other five have the same diameter: the order of their sums decides."""
    rest = [2, 0, 0], [0, 2, 0], [0, 0, 2], [1, 1, 0], [1, 0, 0.5]
    updates = np.array([[row] * 3, *rest], dtype=np.float32)
    found = {tuple(mda(updates[list(order)], c=2)) for order in permutations(range(6))}
    assert len(found) == 1


def test_mda_gives_no_weight_to_rows_that_are_not_finite_be_they_more_than_c():
    assert mda([[np.nan], [np.inf], [1], [2], [3]], c=1).tolist() == [2.0]
    assert np.isnan(mda([[np.nan], [np.inf], [np.nan]], c=1)).all()


def test_mda_of_100_updates_is_exact_and_beyond_50_removals_refused():
    updates = normal(100, 50)
    updates[:20] = 1.5 * updates[:20] + 1
    marked, squared = smallest_diameter(squared_distances(updates), 20), squared_distances(updates)
    diameter = squared[np.ix_(marked, marked)].max()
    apart = squared >= diameter  # every smaller diameter needs more removals
    assert marked.sum() == 80
    assert not diameters._can_part(apart, np.ones(100, dtype=bool), 20)
    with pytest.raises(BadInput, match=r"may take too long for c = 51 .* at most 50"):
        mda(normal(110, 2), 51)


def test_without_anybody_compromised_selections_are_the_mean():
    updates = normal(7, 5)
    for found in (
        multi_krum(updates, 0), meamed(updates, 0), phocas(updates, 0), mda(updates, 0),
        rules["norm-clipping:radius=100"](updates, c=0),
    ):  # fmt: skip
        near(found, updates.mean(axis=0))


# --- properties


def permuted_alike(name, updates, c):
    order = np.random.default_rng(1).permutation(len(updates))
    near(rules[name](updates[order], c=c), rules[name](updates, c=c))


@pytest.mark.parametrize("name", NAMES)
def test_numbering_the_workers_otherwise_changes_nothing(name):
    permuted_alike(name, normal(11, 6, seed=2) + 1, 2)


@given(problems(), st.sampled_from(["meamed", "phocas", "sign-vote", "rlr", "norm-clipping"]))
def test_nor_does_it_with_ties(problem, name):
    permuted_alike(name, *problem)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**-7, 2.0**40])
def test_scales_are_relative(name, scale):
    updates = normal(11, 6, seed=2) + 1
    scaled = rules[name](updates * np.float32(scale), c=2)
    near(scaled / np.float32(scale), rules[name](updates, c=2))


@pytest.mark.parametrize("name", TRANSLATED)
@given(problem=problems(), shift=st.integers(-100, 100))
def test_a_common_shift_shifts_the_result(name, problem, shift):
    updates, c = problem
    if name == "geometric-median" and updates.shape[1] == 1:
        return  # between the middle two any point is one
    near(rules[name](updates + shift, c=c), rules[name](updates, c=c) + shift, atol=2e-3)


@pytest.mark.parametrize("name", BOUNDED)
@given(problem=problems(), data=st.data())
def test_results_stay_within_reach_whatever_c_rows_are(name, problem, data):
    updates, c = problem
    for i in range(c):
        updates[i] = data.draw(st.sampled_from(BAD))
    found = rules[name](updates, c=c)
    assert np.isfinite(found).all()
    others = np.abs(updates[c:]).max(initial=1) * np.sqrt(updates.shape[1])
    few = (len(updates) - c) / (len(updates) - 2 * c)  # the bound on a geometric median's distance
    assert np.abs(found).max() <= 4 * others * few


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", BAD[:4])
def test_rows_that_are_not_finite_count_for_nothing(name, bad):
    updates = normal(11, 6, seed=2) + 1
    updates[0], updates[4, 3] = bad, bad
    found = rules[name](updates, c=2)
    assert np.isfinite(found).all()
    zeroed = updates.copy()
    zeroed[[0, 4]] = 0
    rest = np.delete(updates, [0, 4], axis=0)
    if name in ("multi-krum", "mda"):  # exactly the others are kept
        near(found, rest.mean(axis=0))
    if name == "geometric-median":
        near(found, geometric_median(rest))
    if name in ("norm-clipping", "centered-clipping"):
        most = np.sort(lengths(rest))[5]  # the median of 11, two of them infinite
        near(found, np.mean([reference.shortened(x, most) for x in zeroed], axis=0))


def test_multi_krum_of_all_leaves_out_rows_that_are_not_finite():
    updates = np.float32([[1, 1], [1, 2], [2, 1], [NAN, 1]])
    near(multi_krum(updates, 1, q=4), updates[:3].mean(axis=0))
    assert np.isnan(multi_krum(np.full((4, 2), NAN, dtype="f4"), 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_too_many_of_them_raise_nothing(name):
    for count in range(6):
        updates = normal(5, 3)
        updates[:count] = np.float32([NAN, INF, -INF])[[0, 1, 2, 0, 1][:count]][:, None]
        assert rules[name](updates, c=1).shape == (3,)
        assert rules[name](updates[:, :1], c=1).shape == (1,)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_not_changed_and_zeros_stay(name):
    updates = normal(9, 4)
    updates[2] = NAN
    before = updates.copy()
    rules[name](updates, c=1)
    np.testing.assert_array_equal(updates, before)
    np.testing.assert_array_equal(rules[name](np.zeros((9, 4)), c=1), np.zeros(4))


@pytest.mark.parametrize("name", ["multi-krum", "meamed", "phocas", "mda"])
def test_limits(name):
    assert np.isfinite(rules[name](normal(5, 3), c=2)).all()
    with pytest.raises(BadInput, match=f"rule '{name}' needs"):
        rules[name](normal(4, 3), c=2)


@pytest.mark.parametrize("name", NAMES)
def test_one_worker_alone_is_followed(name):
    if name != "multi-krum":
        updates = np.float32([[3, -3]])
        near(rules[name](updates, c=0), updates[0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("multi-krum:q=0", "'multi-krum': q is 0; give a whole number of at least 1"),
        ("multi-krum:q=10", "q is 10 of m = 9 workers; give one from 1 to 9"),
        ("multi-krum:q=2.5", "q is 2.5; give a whole number"),
        ("geometric-median:nu=0", "nu is 0.0; give a finite number above 0"),
        ("geometric-median:nu=1e-9", "nu is 1e-09; give at least 1e-07"),
        ("norm-clipping:radius=-1", "radius is -1.0; give a finite number above 0"),
        ("centered-clipping:radius=0", "radius is 0.0"),
        ("centered-clipping:tau=0", "tau is 0; give a finite number above 0"),
        ("centered-clipping:tau=far", "tau is 'far'; give a finite number above 0"),
        ("centered-clipping:iterations=0", "iterations is 0; give a whole number"),
        ("sign-vote:step=0", "step is 0.0"),
        ("rlr:theta=0", "theta is 0.0"),
    ],
)
def test_parameters_out_of_range_are_told_in_a_sentence(name, words):
    with pytest.raises(BadInput, match=words):
        rules[name](normal(9, 3), c=1)


# --- the geometric median from inner products


@pytest.mark.parametrize("far", [1e2, 1e4, 1e8, 1e18, 1e30])
def test_a_far_point_pulls_by_its_direction_alone(far):
    updates = normal(20, 30, seed=5)
    direction = normal(1, 30, seed=6)[0]
    expected = geometric_median(np.vstack([updates, 1e3 * direction]))
    found = geometric_median(np.vstack([updates, np.float32(far) * direction]))
    near(found, expected, atol=2e-2 if far < 1e3 else 2e-3)


@pytest.mark.parametrize(("m", "c"), [(100, 49), (25, 12), (101, 50), (3, 1)])
@pytest.mark.parametrize("far", [1e12, 1e37])
def test_fewer_than_half_of_the_points_never_carry_it_away(m, c, far):
    updates = normal(m, 20)
    updates[:c] = far
    near_by = updates.copy()
    near_by[:c] = 1e4  # where Weiszfeld from the mean finds it, too
    near(geometric_median(updates), geometric_median(near_by), atol=1e-2)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9), st.integers(1, 7))
def test_of_numbers_it_is_their_median(values, unit):
    """Whatever point of theirs the steps begin at, or come by."""
    found = geometric_median(np.float32(values)[:, None] / np.float32(unit))[0]
    ordered, n = sorted(np.float32(values) / np.float32(unit)), len(values)
    assert ordered[(n - 1) // 2] - 1e-5 <= found <= ordered[n // 2] + 1e-5


def test_where_most_points_are_one_it_is_the_median():
    updates = np.vstack([np.full((6, 3), 0.1), 50 * normal(5, 3)]).astype(np.float32)
    np.testing.assert_array_equal(geometric_median(updates), updates[0])


def test_where_a_point_holds_against_the_pull_of_all_others_it_is_the_median():
    # Of 9, 5 lie around the centre, which 4 are: |sum of 5 unit vectors| < 4.
    updates = np.vstack([np.zeros((4, 2)), 1 + normal(5, 2) / 4]) + np.float32(2)
    assert geometric_median(updates)[0] > 2.01  # 5 pull one way: no
    updates[4:] = 2 + normal(5, 2, seed=1)
    near(geometric_median(updates), [2, 2], atol=1e-4)


def test_points_far_from_zero_are_as_exact_as_near_it():
    updates = normal(30, 40, seed=7) * np.float32(1e-3)
    expected = geometric_median(updates)
    moved = (updates + np.float32(8)).astype(np.float32)
    near(geometric_median(moved) - np.float32(8), expected, rtol=0, atol=2e-6)


def test_weiszfeld_tells_its_steps_and_they_are_counted():
    products, _ = inner_products(normal(20, 30))
    weights, steps = weiszfeld(products, 1e-6)
    assert weights.sum() == pytest.approx(1)
    assert 2 < steps < 60
    state = ServerState()
    for _ in range(2):
        rules["geometric-median"](normal(20, 30), c=0, state=state)
    assert state.notes == Counter({"Weiszfeld steps": 2 * steps})


# --- weighing


@pytest.mark.parametrize("d", [1, 2047, 2048, 2049])
def test_sums_lengths_and_votes_across_block_boundaries(d):
    updates, weights = normal(7, d), np.random.default_rng(0).random(7)
    wide = updates.astype(np.float64)
    near(weighted_sum(updates, weights), weights @ wide, rtol=1e-12, atol=1e-12)
    near(weighted_mean(updates, weights), weights @ wide / weights.sum())
    near(lengths(updates), np.linalg.norm(wide, axis=1), rtol=1e-12)
    near(lengths(updates, wide[1]), np.linalg.norm(wide - wide[1], axis=1), rtol=1e-12)
    np.testing.assert_array_equal(sign_votes(updates), np.sign(updates).sum(axis=0))


def test_a_row_of_no_weight_may_hold_anything():
    updates = np.float32([[1, 2], [NAN, INF], [3, 3e38]])
    assert weighted_mean(updates, np.array([1, 0, 0])).tolist() == [1, 2]
    assert np.isnan(weighted_mean(updates, np.zeros(3))).all()
    assert lengths(updates)[1] == np.inf
    assert lengths(updates)[2] == pytest.approx(3e38, rel=1e-6)
    assert sign_votes(np.float32([[NAN, INF, 0], [1, 1, -0.0]])).tolist() == [1, 2, 0]


# --- in a trial


def test_centered_clipping_with_tau_clips_at_an_absolute_length():
    updates, notes = np.float32([[1], [2], [90]]), Counter()
    found = centered_clipping(updates, memory={}, notes=notes, tau=5)
    np.testing.assert_allclose(found, [(1 + 2 + 5) / 3], rtol=1e-6)
    assert notes["updates shortened"] == 1


@pytest.mark.parametrize("name", [*NAMES, "multi-krum:q=3", "centered-clipping:iterations=3"])
def test_a_trial_with_each_rule(name):
    small = {"dataset": "digits", "workers": 12, "compromised": 2, "iterations": 4}
    found = run_trial(Setting(**small, rule=name, attack="trimmed-mean"), 0)
    assert found.iterations == 4
    assert run_trial(Setting(**small, rule=name, attack="trimmed-mean"), 0).curve == found.curve
    told = {"geometric-median": "Weiszfeld steps", "rlr": "parameters reversed"}
    shortened = ("norm-clipping", "centered-clipping", "clipped-clustering")
    bare = name.partition(":")[0]
    if bare in told or bare in shortened:
        assert found.notes[told.get(bare, "updates shortened")] > 0


def test_a_user_names_a_rule_with_its_parameters(capsys, tmp_path):
    def run(rule):
        told = ["--dataset", "digits", "--workers", "12", "--compromised", "2", "--iterations", "4"]
        store = ["--store", str(tmp_path / "trials.sqlite"), "--jobs", "0", "--json"]
        with pytest.raises(SystemExit) as stop:
            commands.main(["run", "--rule", rule, *told, *store], prog_name="fltrust_repro")
        return stop.value.code, *capsys.readouterr()

    code, out, err = run("centered-clipping:radius=0.5,iterations=3")
    assert code == 0, err
    assert json.loads(out)["setting"]["rule"] == "centered-clipping:radius=0.5,iterations=3"
    code, _, err = run("multi-krum:q=13")
    assert code == 2
    assert "q is 13 of m = 12 workers; give one from 1 to 12" in err
    assert "Traceback" not in err
