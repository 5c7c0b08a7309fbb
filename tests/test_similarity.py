"""FoolsGold, SignGuard and FLAME: their formulas, memories, and what they promise."""

from dataclasses import replace

import numpy as np
import pytest
import reference as reference_2020
import reference_field as reference
from hypothesis import given, reject
from hypothesis import strategies as st
from made import normal

from fltrust_repro import similarity
from fltrust_repro.aggregation import rules
from fltrust_repro.errors import BadInput
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.similarity import flame, foolsgold, gas, signguard
from fltrust_repro.training import run_trial

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
NAMES = ("foolsgold", "signguard", "flame:noise=0.0", "gas", "signguard:similarity=cosine")


def benign(m, d, seed=0):
    """Updates that share a direction, as those of workers who learn the same do."""
    return normal(m, d, seed) + 2 * np.abs(normal(1, d, seed + 1))


@st.composite
def problems(draw, least=1):
    """Updates in general position, and how many of the first ones are pushed away."""
    m, d = draw(st.integers(least, 14)), draw(st.integers(2, 30))
    c = draw(st.integers(0, (m - 1) // 2))
    updates = benign(m, d, draw(st.integers(0, 2**16)))
    updates[:c] *= draw(st.sampled_from([1, -1, 5, 1e3]))
    return updates, c


def aggregate(name, updates, c=0):
    return rules[name](updates, c=c, state=ServerState(np.random.default_rng(0)))


# --- FoolsGold


@given(problems(), st.integers(1, 3))
def test_foolsgold_equals_the_reference_over_several_iterations(problem, iterations):
    first, _ = problem
    rounds = [first, *(normal(*first.shape, seed=k) for k in range(1, iterations))]
    memory = {}
    for k in range(iterations):
        found = foolsgold(rounds[k], memory=memory)
        np.testing.assert_allclose(found, reference.foolsgold(rounds[: k + 1]), **CLOSE)


def test_foolsgold_gives_those_who_send_the_same_no_say():
    updates = normal(12, 400)
    updates[:4] = updates[0] + np.float32(0.05) * updates[:4]
    np.testing.assert_allclose(foolsgold(updates), updates[4:].mean(axis=0), **CLOSE)


def test_foolsgold_remembers_what_workers_sent_before():
    rounds = [normal(8, 400, seed=k) for k in range(30)]
    for updates in rounds:
        updates[:3] += np.float32(0.5)  # too little to see in one iteration
    memory = {}
    shares = []
    for updates in rounds:
        foolsgold(updates, memory=memory)
        weights = reference.foolsgold_weights(np.stack([*memory["histories"].values()]))
        shares.append(sum(weights[:3]) / sum(weights))
    assert shares[0] > 0.3
    assert shares[-1] == 0
    for worker, total in enumerate(sum(rounds)):
        np.testing.assert_allclose(memory["histories"][str(worker)], total, **CLOSE)


def test_foolsgold_pardons_the_honest_who_look_like_one_who_copies():
    # The third is like the first two, but less than these are like each other.
    updates = np.array([[1, 0, 0], [1, 0.01, 0], [1, 0, 1], [0, 0, -1]], dtype=np.float32)
    weights = reference.foolsgold_weights(updates)
    assert weights[0] == weights[1] == 0 < weights[2]
    np.testing.assert_allclose(foolsgold(updates), reference.foolsgold([updates]), **CLOSE)


def test_foolsgold_leaves_the_model_where_nobody_is_trusted():
    assert foolsgold(np.ones((4, 2))).tolist() == [0, 0]
    assert foolsgold(np.full((4, 2), np.nan)).tolist() == [0, 0]


@pytest.mark.parametrize("m", [5, 20, 37])
def test_foolsgold_trusts_no_copies_however_their_products_round(m):
    row = normal(1, 7850, 3)
    assert not foolsgold(np.repeat(row, m, axis=0)).any()
    assert not foolsgold(row * np.linspace(0.1, 3, m, dtype=np.float32)[:, None]).any()


@given(st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=5))
def test_foolsgold_keeps_histories_of_those_who_send_by_who_they_are(senders):
    memory, totals = {}, {}
    for k, some in enumerate(map(sorted, senders)):
        updates = normal(len(some), 9, seed=k)
        for worker, update in zip(some, updates):
            totals[worker] = totals.get(worker, 0) + update
        found = foolsgold(updates, memory=memory, workers=np.array(some))
        weights = reference.foolsgold_weights(np.stack([totals[worker] for worker in some]))
        expected = weights @ updates / (sum(weights) or 1)
        np.testing.assert_allclose(found, expected, **CLOSE)


def test_a_worker_that_sends_what_is_not_finite_has_no_say_in_foolsgold_from_then_on():
    rounds, memory = [normal(6, 9, seed=k) for k in range(3)], {}
    rounds[1][0, 2], rounds[1][1, 3], rounds[1][2, 4] = np.nan, np.inf, -np.inf
    foolsgold(rounds[0], memory=memory)
    assert np.isfinite(foolsgold(rounds[1], memory=memory)).all()
    rest = reference.foolsgold([one[3:] for one in rounds])
    np.testing.assert_allclose(foolsgold(rounds[2], memory=memory), rest, **CLOSE)


# --- SignGuard


@given(problems(), st.integers(0, 9), st.sampled_from([0.1, 0.5, 1.0]))
def test_signguard_equals_the_reference(problem, seed, share):
    updates, _ = problem
    found = signguard(updates, rng=np.random.default_rng(seed), share=share)
    try:
        expected = reference.signguard(updates, np.random.default_rng(seed), share)
    except reference.OnTheEdgeError:
        reject()
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize(("m", "seed"), [(1, 0), (9, 1), (9, 2), (20, 3), (60, 4)])
def test_signguard_by_similarity_equals_the_reference_with_and_without_a_last_aggregate(m, seed):
    # With given numbers: groups of a few rows are so often tied that rounding would decide.
    of_rule, of_reference = (np.random.default_rng(seed) for _ in range(2))
    last, memory = None, {}
    for k in range(3):
        updates = benign(m, 300, seed=10 * seed + k)
        updates[: m // 4] *= -1
        found = signguard(updates, rng=of_rule, memory=memory, similarity="cosine")
        expected = reference.signguard(updates, of_reference, similarity=True, last=last)
        np.testing.assert_allclose(found, expected, **CLOSE)
        np.testing.assert_array_equal(memory["last"], found)
        last = found


def test_what_is_done_to_a_result_does_not_change_what_signguard_remembers():
    memory, updates = {}, benign(9, 300)
    found = signguard(updates, memory=memory, similarity="cosine")
    before = found.copy()
    found *= 0
    np.testing.assert_array_equal(memory["last"], before)


def test_signguard_by_similarity_bears_rows_in_any_order_and_such_that_are_not_finite():
    updates = benign(20, 300)
    updates[:4] *= -1
    found = aggregate("signguard:similarity=cosine", updates)
    order = np.random.default_rng(0).permutation(20)
    again = aggregate("signguard:similarity=cosine", updates[order])
    np.testing.assert_allclose(again, found, **CLOSE)
    broken = np.vstack([updates, np.full_like(updates[:3], np.nan)])
    again = aggregate("signguard:similarity=cosine", broken)
    np.testing.assert_allclose(again, found, **CLOSE)


@pytest.mark.parametrize("similarity", [None, "cosine"])
def test_signguard_leaves_out_those_of_other_signs_and_of_other_lengths(similarity):
    updates = benign(20, 500)
    updates[0] *= 4  # too long
    updates[1] *= np.float32(0.05)  # too short
    updates[2:6] *= -1
    long = np.linalg.norm(updates, axis=1)
    shortened = updates * np.minimum(1, np.median(long) / long)[:, None]
    found = signguard(updates, similarity=similarity)
    np.testing.assert_allclose(found, shortened[6:].mean(axis=0), **CLOSE)


@pytest.mark.parametrize("seed", range(4))
def test_signguard_counts_zeros_as_a_sign_of_their_own(seed):
    updates = benign(40, 200, seed)
    there = np.random.default_rng(seed).random(updates.shape) < 0.4
    updates[6:] *= there[6:]
    updates[3:6] *= ~there[3:6]
    found = signguard(updates, rng=np.random.default_rng(seed), share=0.7)
    expected = reference.signguard(updates, np.random.default_rng(seed), share=0.7)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_those_without_a_zero_among_many_with_zeros_are_of_another_group():
    # As the Krum attack's updates, -lambda s, are of half the signs of the others each.
    updates = normal(30, 400)
    updates[:, 200:] = 0
    updates[:6, ::2], updates[:6, 1::2] = 0.5, -0.5
    found = signguard(updates)
    assert np.abs(found[:200]).max() > 0
    assert found[200:].tolist() == [0] * 200


def test_the_length_limits_of_signguard_are_relative_to_the_median():
    updates = benign(20, 500)
    updates[:3] *= 4
    wide = signguard(updates, share=1.0, upper=10.0)
    assert np.abs(wide - signguard(updates, share=1.0)).max() > 0.01


def test_signguard_shortens_each_trusted_update_to_the_median_length():
    updates = np.float32([[1, 1], [1, 1], [2, 2], [1, 1], [2, 2]])
    np.testing.assert_allclose(signguard(updates, share=1.0), [1, 1], rtol=1e-6)


def test_where_the_largest_group_has_no_trusted_update_all_trusted_ones_are_averaged():
    # By signs the first three are alike, but their lengths are out of bounds.
    updates = np.float32(
        [[9, 9, 9], [8, 8, 8], [9, 8, 9], [1, -1, 0], [-1, 1, 1], [1, 0, -1], [0, -1, -1]]
    )
    expected = reference.signguard(updates, np.random.default_rng(0), share=1.0)
    trusted = updates[3:]
    long = np.linalg.norm(trusted, axis=1)
    assert np.median(np.linalg.norm(updates, axis=1)) == pytest.approx(long.max())
    np.testing.assert_allclose(signguard(updates, share=1.0), trusted.mean(axis=0), **CLOSE)
    np.testing.assert_allclose(expected, trusted.mean(axis=0), **CLOSE)


def test_where_mean_shift_finds_no_group_all_are_one():
    updates = np.float32([[1, 1]] * 4 + [[-1, -1]] * 2)
    np.testing.assert_allclose(signguard(updates, share=1.0), [1, 1], **CLOSE)
    # Each has half of all features at distance 0: no bandwidth.
    np.testing.assert_allclose(signguard(updates[2:], share=1.0), [0, 0], atol=1e-6)


def test_only_zeros_or_mostly_zeros_give_zeros():
    updates = np.zeros((5, 3), dtype=np.float32)
    for name in NAMES:
        assert aggregate(name, updates).tolist() == [0, 0, 0]
    updates[0] = 9
    for name in NAMES[1:]:
        assert aggregate(name, updates, c=1).tolist() == [0, 0, 0]


# --- FLAME


@given(problems(), st.sampled_from([0.0, 1.0, 30.0]))
def test_flame_equals_the_reference(problem, far):
    updates, _ = problem
    w_re = np.float32(far) * normal(1, updates.shape[1], seed=5)[0]
    found = flame(updates, w_re=w_re, noise=0.0)
    np.testing.assert_allclose(found, reference.flame(updates, w_re), **CLOSE)


def test_flame_tells_updates_apart_though_all_models_have_nearly_one_direction():
    updates = np.float32(1e-3) * benign(20, 300)
    updates[:8] *= np.float32(-1.5)
    w_re = 100 * normal(1, 300, seed=5)[0]
    kept = reference.flame_kept(updates, w_re)
    assert len(kept) > 10
    assert min(kept) >= 8
    found = flame(updates, w_re=w_re, noise=0.0)
    np.testing.assert_allclose(found, reference.flame(updates, w_re), rtol=1e-3, atol=1e-7)


def test_flame_looks_at_models_and_not_at_updates():
    updates = np.float32([[1, 0], [1.1, 0], [0.9, 0], [1, 0.4], [1, 0.6]])
    alone = flame(updates, noise=0.0)
    along = flame(updates, w_re=np.float32([0, 5]), noise=0.0)
    assert np.abs(alone - along).max() > 0.01
    np.testing.assert_allclose(along, reference.flame(updates, [0, 5]), **CLOSE)


def test_the_noise_of_flame_is_relative_to_the_median_length_and_drawn_from_the_generator():
    updates = benign(9, 20_000)
    for scale in np.float32([1, 1e-4]):
        rng = np.random.default_rng(3)
        noisy = flame(scale * updates, rng=rng, noise=0.01)
        noise = (noisy - flame(scale * updates, noise=0.0)) / scale
        expected = 0.01 * np.median(np.linalg.norm(updates, axis=1))
        assert noise.std() == pytest.approx(expected, rel=0.05)
        assert rng.random() != np.random.default_rng(3).random()
    assert (flame(updates) != flame(updates, noise=0.0)).any()


@given(st.data())
def test_the_majority_is_what_the_closest_groups_joined_first(data):
    m = data.draw(st.integers(2, 20))
    points = normal(m, 3, data.draw(st.integers(0, 2**16))).astype(np.float64)
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    np.testing.assert_array_equal(
        np.flatnonzero(similarity._majority(apart)), reference.majority(apart)
    )


# --- GAS


@given(problems(least=7), st.integers(0, 9), st.sampled_from([1, 3, 1000]))
def test_gas_equals_the_reference(problem, seed, p):
    updates, _ = problem
    for base, known in (("median", lambda rows, c: reference_2020.median(rows)),
                        ("krum", reference_2020.krum)):  # fmt: skip
        of_rule, of_reference = (np.random.default_rng(seed) for _ in range(2))
        found = gas(updates, c=2, rng=of_rule, base=base, p=p)
        np.testing.assert_allclose(
            found, reference.gas(updates, 2, of_reference, known, p), **CLOSE
        )


def test_gas_finds_those_who_are_a_little_off_in_every_group():
    updates = normal(30, 2000)
    updates[:6] += np.float32(0.7)
    np.testing.assert_allclose(gas(updates, c=6), updates[6:].mean(axis=0), **CLOSE)
    np.testing.assert_allclose(gas(updates, c=0), updates.mean(axis=0), **CLOSE)


def test_gas_does_not_matter_where_updates_are_counted_from():
    updates = normal(9, 40)
    moved = gas(updates + np.float32(3), c=2, rng=np.random.default_rng(1)) - 3
    np.testing.assert_allclose(moved, gas(updates, c=2, rng=np.random.default_rng(1)), **CLOSE)


def test_the_rule_that_gas_takes_may_have_parameters_and_has_its_own_limits():
    updates = normal(9, 40)
    assert np.isfinite(aggregate("gas:base=dnc:b=3", updates, c=2)).all()
    with pytest.raises(BadInput, match=r"'bulyan' needs m - 4c"):
        aggregate("gas:base=bulyan", updates, c=4)
    with pytest.raises(BadInput, match="unknown rule 'kruum'"):
        aggregate("gas:base=kruum", updates)
    for base in ("foolsgold", "centered-clipping", "flame", "fltrust"):
        with pytest.raises(BadInput, match=f"'gas': base is '{base}', which asks for .*median"):
            aggregate(f"gas:base={base}", updates, c=2)
    with pytest.raises(BadInput, match=r"'gas': p is 0"):
        aggregate("gas:p=0", updates)


# --- all of them


@given(problems(), st.sampled_from([np.nan, np.inf, -np.inf]), st.sampled_from(NAMES[:-1]))
def test_a_row_that_is_not_finite_is_as_one_that_is_not_there(problem, value, name):
    updates, c = problem
    broken = updates.copy()
    broken[:c, 0] = value
    before = broken.copy()
    found, rest = aggregate(name, broken, c=c), aggregate(name, updates[c:])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, rest, **CLOSE)
    np.testing.assert_array_equal(broken, before)


@pytest.mark.parametrize("name", NAMES[1:])
def test_without_a_finite_row_the_result_is_nan(name):
    assert np.isnan(aggregate(name, np.full((4, 2), np.inf, dtype=np.float32))).all()


@given(problems(), st.sampled_from(NAMES[:-1]), st.integers(0, 9))
def test_workers_have_no_order_and_updates_no_scale(problem, name, seed):
    updates, c = problem
    found = aggregate(name, updates, c)
    order = np.random.default_rng(seed).permutation(len(updates))
    np.testing.assert_allclose(aggregate(name, updates[order], c), found, **CLOSE)
    for scale in np.float32([2.0**-20, 2.0**20]):
        np.testing.assert_allclose(aggregate(name, updates * scale, c) / scale, found, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_one_update_and_one_worker_alone(name):
    one = normal(1, 7)
    np.testing.assert_allclose(aggregate(name, one), one[0], **CLOSE)
    if name != "foolsgold":  # which trusts nobody then
        np.testing.assert_allclose(aggregate(name, np.tile(one, (9, 1))), one[0], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("large", [1e18, 1e38])
def test_values_that_a_float_can_just_hold_do_not_count(name, large):
    updates = benign(20, 50)
    updates[:4] = -np.float32(large)
    found = aggregate(name, updates, c=4)
    assert np.abs(found - updates[4:].mean(axis=0)).max() < 1


def test_wrong_parameters_are_told_in_a_sentence():
    updates = normal(4, 3)
    wrong = "similarity=angle", "share=0.0", "share=1.5", "lower=4.0", "lower=-1.0"
    for own in wrong:
        with pytest.raises(BadInput, match=rf"'signguard': .*{own.split('=')[0]}"):
            aggregate(f"signguard:{own}", updates)
    with pytest.raises(BadInput, match=r"'flame': noise is -1\.0"):
        aggregate("flame:noise=-1.0", updates)


# --- in a trial


@pytest.mark.parametrize("name", [*NAMES, "caf", "dnc:iterations=5,b=50", "gas:p=20"])
def test_in_a_trial_a_rule_is_known_by_name_and_the_same_twice(name):
    setting = Setting(
        dataset="digits", workers=12, compromised=2, iterations=4, rule=name, attack="trimmed-mean"
    )
    found, again = (run_trial(setting, seed=3) for _ in range(2))
    assert found.curve == again.curve
    assert not found.diverged
    assert found.iterations == 4
    assert 0 < found.notes["workers kept"] <= 48
    defended = run_trial(replace(setting, defense="lfr"), seed=3)
    assert 0 < defended.notes["workers kept"] <= 40


def test_flame_notes_those_of_the_majority_alone():
    updates = np.float32([[1, 0.1 * k] for k in range(9)] + [[-1, 0.1 * k] for k in range(3)])
    notes = ServerState().notes
    flame(updates, notes=notes, noise=0.0)
    assert notes["workers kept"] == len(reference.flame_kept(updates, np.zeros(2))) < len(updates)
