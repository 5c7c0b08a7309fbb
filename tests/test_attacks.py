"""Attacks: the paper's optimisation problems, against versions that try everything naively."""

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import (
    KrumProblem,
    attack,
    attacks,
    benign_interval,
    changing_direction,
    direction_agreement,
    estimated_interval,
    krum_problem,
    largest_lambda,
    undone,
)
from fltrust_repro.backend import nd
from fltrust_repro.errors import BadInput
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Master, Parameters, Round
from fltrust_repro.training import run_trial


def array(values):
    return nd.array(np.asarray(values, dtype=np.float32))


def benign_like(seed, m, d, spread=1.0):
    """Updates that share a direction, as gradients do, and scatter around it."""
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(d) + 0.1 * spread * rng.standard_normal((m, d))).astype("f4")


def a_round(updates, c, name, seed=0, received=None, rule="median", beta=None, **fields):
    """What the attack `name` is given when all m workers' updates are these."""
    knowledge = fields.pop("knowledge", None) if attacks[name].has_knowledge else None
    known = updates[:c] if knowledge == "partial" else updates
    w_re = np.zeros(updates.shape[1]) if received is None else received
    master = Master(len(updates), c, c if beta is None else beta, rules[rule])
    rng = np.random.default_rng(seed)
    fields.pop("knowledge", None)
    return Round(known, c, w_re, knowledge or "full", rng, master, Parameters(**fields))


def craft(updates, c, name, **fields):
    return attacks[name].crafted(a_round(updates, c, name, **fields))


signs = changing_direction


def solve_full(problem, copies, assumed):
    return problem.largest_lambda([copies], lambda _: assumed)


def solve_partial(problem, c, assumes):
    assumed = {"zero": lambda q: 0, "added": lambda q: q, "c": lambda q: c}[assumes]
    return problem.largest_lambda(range(1, c + 1), assumed)


def direction_of(known):
    return reference.changing_direction(known.astype(np.float64), np.zeros(known.shape[1]))


# --- direction


def test_no_change_counts_as_minus_one():
    updates = np.float32([[1, -1, 0, 2, -0.0], [1, -1, 0, -2, 0], [-3, 3, 0, 1, 0]])
    step = a_round(updates, 1, "trimmed-mean")
    assert signs(step).tolist() == [-1, 1, -1, 1, -1]


def test_direction_is_that_of_the_mean_of_the_known_updates():
    updates = np.float32([[1, -1], [2, 5], [-9, 9], [-9, 9], [-9, 9]])
    full = a_round(updates, 2, "trimmed-mean")
    assert signs(full).tolist() == [-1, 1]
    partial = a_round(updates, 2, "trimmed-mean", knowledge="partial")
    assert signs(partial).tolist() == [1, 1]


def test_direction_of_the_rule_is_what_the_rule_would_output():
    # The mean grows, the median shrinks.
    updates = np.float32([[-1], [-1], [-1], [9], [9]])
    known = {"direction": "rule", "rule": "median"}
    assert signs(a_round(updates, 2, "trimmed-mean")).tolist() == [1]
    assert signs(a_round(updates, 2, "trimmed-mean", **known)).tolist() == [-1]
    with_mean = a_round(updates, 2, "trimmed-mean", direction="rule", rule="mean")
    assert signs(with_mean).tolist() == [1]


def test_direction_of_the_rule_needs_full_knowledge():
    updates = np.float32([[-1], [-1], [9], [-1], [-1], [-1], [-1]])
    step = a_round(updates, 3, "trimmed-mean", knowledge="partial", direction="rule")
    assert signs(step).tolist() == [1]  # the median of the three is -1


# --- Krum: the problem


def problem_of(others, s):
    others = others.astype(np.float64)
    squared = ((others[:, None] - others[None]) ** 2).sum(axis=2)
    return KrumProblem(squared, (others**2).sum(axis=1), others @ s, len(s))


def in_model_space(updates, seed):
    """The local models and the received one whose updates these are."""
    received = np.random.default_rng(seed).standard_normal(updates.shape[1])
    return received + updates.astype(np.float64), received


@pytest.mark.parametrize("seed", range(5))
def test_bound_is_theorem_1_on_local_models(seed):
    updates = benign_like(seed, 15, 6)
    c, benign = 4, updates[4:]
    models, received = in_model_space(benign, seed)
    bound = problem_of(benign, np.ones(6)).upper_bound(c, c)
    assert bound == pytest.approx(reference.theorem_1(models, received, c), rel=1e-9)


def test_bound_by_hand():
    # Four benign models 0, 1, 2, 4 and one compromised: m - c - 2 = 2 neighbours, of which
    # m - 2c - 1 = 2 benign. Least sum: 1 + 1 around 1; farthest from the origin: 4.
    problem = problem_of(np.array([[0], [1], [2], [4]]), np.ones(1))
    assert problem.upper_bound(1, 1) == pytest.approx(np.sqrt(2 / 2) + 4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("copies", "assumed"), [(4, 4), (1, 0), (3, 3), (2, 0), (4, 12), (1, 1)])
def test_picks_crafted_equals_running_krum(seed, copies, assumed):
    rng = np.random.default_rng(seed)
    others = rng.standard_normal((10, 5)) * 0.3
    models, received = in_model_space(others, seed)
    s = rng.choice([-1, 1], 5)
    problem = problem_of(others, s)
    outcomes = []
    for scale in 10.0 ** rng.uniform(-3, 1, 25):
        picked = problem.picks_crafted(scale, copies, assumed)
        assert picked == reference.krum_picks_crafted(models, received, s, scale, copies, assumed)
        outcomes.append(picked)
    if (copies, assumed) == (4, 4):
        assert 0 < sum(outcomes) < len(outcomes)


@st.composite
def crowds(draw):
    c = draw(st.integers(1, 4))
    n = draw(st.integers(c + 2, c + 7))
    d = draw(st.integers(1, 4))
    updates = draw(arrays(np.float64, (n, d), elements=st.integers(-20, 20).map(lambda k: k / 8)))
    s = draw(arrays(np.int64, (d,), elements=st.sampled_from([-1, 1])))
    return updates, s, c


@given(crowds(), st.floats(1.001, 50))
def test_above_theorem_1_krum_never_picks_the_crafted_model(crowd, factor):
    updates, s, c = crowd
    bound = reference.theorem_1(updates, np.zeros(len(s)), c)
    scale = bound * factor + 1e-3
    assert not reference.krum_picks_crafted(updates, np.zeros(len(s)), s, scale, c, c)
    assert not problem_of(updates, s).picks_crafted(scale, c, c)


@given(crowds())
def test_the_search_finds_the_largest_halving_that_works(crowd):
    updates, s, c = crowd
    problem = problem_of(updates, s)
    start = problem.upper_bound(c, c)
    scale, found = solve_full(problem, c, c)
    halvings = [start / 2**k for k in range(60) if start / 2**k >= 1e-5]
    working = [x for x in halvings if problem.picks_crafted(x, c, c)]
    assert found == bool(working)
    assert scale == (working[0] if working else halvings[-1] / 2 if halvings else start)


def test_a_search_without_solution_ends_below_the_threshold():
    # Three equal benign models: any crafted one has a larger sum.
    problem = problem_of(np.zeros((3, 2)) + 5, np.ones(2))
    scale, found = solve_full(problem, 1, 1)
    assert not found
    assert 0.5e-5 <= scale < 1e-5


class NeverPicked(KrumProblem):
    """A problem that counts its tries."""

    def upper_bound(self, copies, assumed):
        """The largest there is."""
        return float(np.finfo(np.float32).max)

    def picks_crafted(self, scale, copies, assumed):
        """Never."""
        self.tries.append(scale)
        return False


@pytest.mark.parametrize("knowledge", ["full", "partial"])
@pytest.mark.parametrize("seed", range(5))
def test_the_exact_search_finds_up_to_twice_what_halving_finds(seed, knowledge):
    updates = np.random.default_rng(seed).standard_normal((20, 30), dtype=np.float32)
    found = {}
    for search in ("halving", "exact"):
        step = a_round(updates, 4, "krum", rule="krum", knowledge=knowledge, search=search)
        problem, _ = krum_problem(step, signs(step))
        found[search], picked = largest_lambda(problem, step)
        assert picked
    copies = 4 if knowledge == "full" else 1
    assumed = 4 if knowledge == "full" else 0
    assert found["halving"] <= found["exact"] <= 2 * found["halving"]
    assert problem.picks_crafted(found["exact"], copies, assumed)
    beyond = found["exact"] * (1 + 2e-6)
    at_the_bound = beyond > problem.upper_bound(copies, assumed)
    assert at_the_bound or not problem.picks_crafted(beyond, copies, assumed)


def test_the_search_ends_where_nothing_is_ever_picked():
    problem = NeverPicked(np.zeros((3, 3)), np.zeros(3), np.zeros(3), 2)
    object.__setattr__(problem, "tries", [])
    scale, found = problem.largest_lambda([1, 2], lambda _: 1)
    assert not found
    assert scale < 1e-5
    assert len(problem.tries) == 2 * 145


@pytest.mark.parametrize("offset", [1e60, np.inf, np.nan])
def test_theorem_1s_bound_is_finite_whatever_is_sent(offset):
    squared = np.full((4, 4), offset)
    problem = KrumProblem(squared, np.full(4, offset), np.zeros(4), 3)
    assert problem.upper_bound(1, 1) <= np.finfo(np.float32).max or np.isnan(offset)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3e38, -1e30])
@pytest.mark.parametrize("where", ["own", "others", "all"])
@pytest.mark.parametrize("knowledge", ["full", "partial"])
@pytest.mark.parametrize("fields", [{}, {"base": "before-attack"}, {"goal": "deviation"}], ids=str)
def test_the_krum_attack_ends_on_hostile_updates(bad, where, knowledge, fields):
    if knowledge == "partial" and "goal" in fields:
        return
    updates = benign_like(1, 12, 6)
    updates[{"own": slice(0, 3), "others": slice(5, 7), "all": slice(None)}[where], 2] = bad
    assert craft(updates, 3, "krum", knowledge=knowledge, **fields).shape == (3, 6)


def test_the_krum_attack_measures_models_close_to_the_crafted_one_exactly():
    # |delta + lambda s|^2 of updates near -lambda s is what is left of three large terms.
    s = np.ones(4)
    near = -1000.0 * s + np.random.default_rng(0).standard_normal((5, 4))
    near = near.astype(np.float32)
    problem, _ = krum_problem(a_round(np.concatenate([near[:1], near]), 1, "krum"), np.float32(s))
    crafted = problem.offsets + 2 * 1000.0 * problem.slopes + 1000.0**2 * problem.d
    expected = ((near.astype(np.float64) + 1000.0) ** 2).sum(axis=1)
    np.testing.assert_allclose(crafted, expected, rtol=1e-6)


# --- Krum: the attack


def krum_rounds():
    return [(seed, m, c, d) for seed, (m, c, d) in enumerate([(8, 2, 5), (15, 5, 20), (30, 6, 3)])]


@pytest.mark.parametrize(("seed", "m", "c", "d"), krum_rounds())
@pytest.mark.parametrize("spread", [0.05, 1.0, 5.0])
def test_full_knowledge_finds_the_lambda_of_the_naive_search(seed, m, c, d, spread):
    updates = benign_like(seed, m, d, spread)
    models, received = in_model_space(updates, seed)
    s = reference.changing_direction(models, received)
    expected, found = reference.krum_attack_full(models, received, s, c)
    crafted = craft(updates, c, "krum", epsilon=0.0)
    assert found == (expected >= 1e-5)
    assert found or spread < 5
    np.testing.assert_allclose(crafted, np.tile(-expected * s, (c, 1)), rtol=1e-4)
    assert (crafted == crafted[0]).all()


@pytest.mark.parametrize("assumes", ["zero", "added", "c"])
@pytest.mark.parametrize(("seed", "m", "c", "d"), [*krum_rounds(), (3, 9, 3, 4), (4, 5, 1, 3)])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_partial_knowledge_finds_the_lambda_of_the_naive_search(seed, m, c, d, spread, assumes):
    updates = benign_like(seed, m, d, spread)
    own, received = in_model_space(updates[:c], seed)
    s = reference.changing_direction(own, received)
    expected, _, _ = reference.krum_attack_partial(own, received, s, assumes)
    fields = {"knowledge": "partial", "attacker_assumes": assumes, "epsilon": 0.0}
    crafted = craft(updates, c, "krum", **fields)
    np.testing.assert_allclose(crafted, np.tile(-expected * s, (c, 1)), rtol=1e-4)


def test_partial_knowledge_adds_models_until_one_is_picked():
    # Own models nearer to each other than to the received one: a lone crafted model is never the
    # most central, so that several have to be added.
    own = benign_like(0, 8, 30, 0.5)
    models, received = in_model_space(own, 0)
    s = reference.changing_direction(models, received)
    expected, copies, found = reference.krum_attack_partial(models, received, s, "zero")
    assert found
    assert copies == 6
    scale, ours = solve_partial(problem_of(own, s), 8, "zero")
    assert ours
    assert scale == pytest.approx(expected, rel=1e-4)


def test_what_the_attacker_assumes_changes_lambda():
    updates = benign_like(2, 30, 10, 0.2)
    own, received = in_model_space(updates[:8], 0)
    s = reference.changing_direction(own, received)
    lambdas = []
    for assumes in ("zero", "added", "c"):
        crafted = craft(updates, 8, "krum", knowledge="partial", attacker_assumes=assumes)
        lambdas.append(abs(crafted[0, 0]))
        expected, _, _ = reference.krum_attack_partial(own, received, s, assumes)
        assert lambdas[-1] == pytest.approx(expected, rel=1e-4)
    assert len(set(lambdas)) > 1


@pytest.mark.parametrize("seed", range(10))
def test_the_rule_picks_the_crafted_model_where_the_search_succeeded(seed):
    updates = benign_like(seed, 20, 12, 5.0)
    c = 4
    _, found = solve_full(problem_of(updates[c:], direction_of(updates)), c, c)
    assert found
    crafted = craft(updates, c, "krum", epsilon=0.0)
    sent = array(np.concatenate([crafted, updates[c:]]))
    np.testing.assert_array_equal(rules["krum"](sent, c=c, beta=c).asnumpy(), crafted[0])


@pytest.mark.parametrize("knowledge", ["full", "partial"])
def test_the_first_crafted_model_is_received_minus_lambda_s_exactly(knowledge):
    updates = benign_like(1, 12, 50)
    s = direction_of(updates if knowledge == "full" else updates[:3])
    first = craft(updates, 3, "krum", knowledge=knowledge)[0]
    assert len(set(np.abs(first).tolist())) == 1
    np.testing.assert_array_equal(np.sign(first), -s)


@pytest.mark.parametrize("epsilon", [0.01, 2.0])
def test_supporters_lie_within_epsilon_of_the_crafted_model(epsilon):
    updates = benign_like(1, 60, 200)
    crafted = craft(updates, 25, "krum", epsilon=epsilon).astype(np.float64)
    distances = np.sqrt(((crafted[1:] - crafted[0]) ** 2).sum(axis=1)) / epsilon
    assert distances.max() <= 1 + 1e-3
    # Uniform in (0, 1), hence neither all alike nor all at the rim.
    assert 0.3 < distances.mean() < 0.7
    assert distances.min() < 0.3
    assert distances.max() > 0.7
    offsets = crafted[1:] - crafted[0]
    cosines = (offsets @ offsets.T) / np.outer(distances, distances) / epsilon**2
    assert np.abs(cosines - np.eye(24)).max() < 0.4  # independent directions


def test_base_before_attack_deviates_from_the_model_krum_would_select():
    updates = benign_like(3, 12, 6)
    c, s = 3, direction_of(updates)
    selected = reference.krum(updates, c).astype(np.float64)
    received = craft(updates, c, "krum", epsilon=0.0)[0]
    before = craft(updates, c, "krum", epsilon=0.0, base="before-attack")[0]
    benign = updates[c:].astype(np.float64)
    bound = reference.theorem_1(benign, selected, c)
    expected, _ = reference.halve(benign, selected, s, bound, c, c)
    np.testing.assert_allclose(before, selected - expected * s, rtol=1e-4, atol=1e-6)
    assert not np.allclose(before, received)


def test_base_before_attack_with_partial_knowledge_uses_the_own_models_alone():
    updates = benign_like(3, 16, 6)
    c = 6
    own, s = updates[:c].astype(np.float64), direction_of(updates[:c])
    selected = own[reference.krum_index(own, 0)]
    expected, _, _ = reference.krum_attack_partial(own, selected, s, "zero")
    fields = {"knowledge": "partial", "base": "before-attack", "epsilon": 0.0}
    before = craft(updates, c, "krum", **fields)[0]
    np.testing.assert_allclose(before, selected - expected * s, rtol=1e-4, atol=1e-6)


# --- trimmed mean


@pytest.mark.parametrize("b", [1.5, 2.0, 10.0])
def test_full_knowledge_takes_the_interval_of_the_papers_four_cases(b):
    rng = np.random.default_rng(5)
    # Columns whose benign values are all positive, all negative, or of both signs.
    updates = (rng.standard_normal((14, 60)) + np.tile([3, -3, 0], 20)).astype(np.float32)
    updates[:, 30:33] = 0
    step = a_round(updates, 4, "trimmed-mean", b=b)
    s = direction_of(updates)
    # Signs of the mean alone would not reach all four cases: turn half of them round.
    s[:30] *= -1
    near, far = benign_interval(step, s.astype(np.float32))
    low, high = reference.trimmed_mean_interval(updates[4:], s, b)
    np.testing.assert_allclose(np.minimum(near, far), low, rtol=1e-6)
    np.testing.assert_allclose(np.maximum(near, far), high, rtol=1e-6)
    extremes = np.where(s < 0, updates[4:].max(axis=0), updates[4:].min(axis=0))
    np.testing.assert_array_equal(near, extremes)


def test_crafted_values_lie_beyond_every_benign_one_inside_the_interval():
    updates = benign_like(4, 15, 500)
    s = direction_of(updates)
    crafted = craft(updates, 5, "trimmed-mean")
    low, high = reference.trimmed_mean_interval(updates[5:], s, 2.0)
    assert (crafted >= low - 1e-7).all()
    assert (crafted <= high + 1e-7).all()
    assert (crafted[:, s < 0] >= updates[5:, s < 0].max(axis=0)).all()
    assert (crafted[:, s > 0] <= updates[5:, s > 0].min(axis=0)).all()
    shares = (crafted - low) / (high - low)
    assert shares.mean() == pytest.approx(0.5, abs=0.03)  # uniform over the interval
    assert shares.std() == pytest.approx(12**-0.5, abs=0.03)


@pytest.mark.parametrize("rule", ["trimmed-mean", "median"])
@pytest.mark.parametrize("beta", [3, 4])
def test_b_changes_nothing_where_beta_is_at_least_c(rule, beta):
    updates = benign_like(6, 11, 40)
    outputs = []
    for b in (1.1, 2.0, 100.0):
        crafted = craft(updates, 3, "trimmed-mean", b=b, seed=int(b), rule=rule, beta=beta)
        sent = array(np.concatenate([crafted, updates[3:]]))
        outputs.append(rules[rule](sent, c=3, beta=beta).asnumpy())
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-6)
    np.testing.assert_allclose(outputs[2], outputs[0], rtol=1e-6)


def test_b_matters_against_the_mean():
    updates = benign_like(6, 11, 40)
    s = direction_of(updates)
    moved = []
    for b in (1.1, 2.0, 100.0):
        crafted = craft(updates, 3, "trimmed-mean", b=b)
        moved.append(-s @ np.concatenate([crafted, updates[3:]]).mean(axis=0))
    assert moved[0] < moved[1] < moved[2]


@st.composite
def small_attacks(draw):
    c = draw(st.integers(1, 2))
    m = draw(st.integers(2 * c + 1, 2 * c + 4))
    beta = draw(st.integers(c, (m - 1) // 2))
    values = st.integers(-16, 16).map(lambda k: k / 4)
    updates = draw(arrays(np.float32, (m, 2), elements=values))
    anything = st.one_of(values, st.floats(-1e6, 1e6, width=32))
    others = draw(arrays(np.float32, (c, 2), elements=anything))
    return updates, others, c, beta


@given(small_attacks())
@settings(max_examples=100)
def test_no_other_values_move_trimmed_mean_further(case):
    # Section 3.3 claims the attack to be an optimal solution of Equation 1.
    updates, others, c, beta = case
    s = direction_of(updates)
    crafted = craft(updates, c, "trimmed-mean", beta=beta, rule="trimmed-mean")
    ours = reference.trimmed_mean(np.concatenate([crafted, updates[c:]]), beta)
    theirs = reference.trimmed_mean(np.concatenate([others, updates[c:]]), beta)
    assert (s * ours <= s * theirs + 1e-6).all()


def test_interval_of_models_is_taken_around_the_received_model():
    updates = benign_like(7, 11, 30)
    received = np.random.default_rng(8).standard_normal(30)
    models = received + updates.astype(np.float64)
    s = direction_of(updates)
    fields = {"received": received, "interval_space": "model"}
    near, far = benign_interval(a_round(updates, 3, "trimmed-mean", **fields), s.astype("f4"))
    low, high = reference.trimmed_mean_interval(models[3:], s, 2.0)
    np.testing.assert_allclose(np.minimum(near, far) + received, low, atol=1e-6)
    np.testing.assert_allclose(np.maximum(near, far) + received, high, atol=1e-6)
    crafted = received + craft(updates, 3, "trimmed-mean", **fields)
    assert (crafted >= low - 1e-6).all()
    assert (crafted <= high + 1e-6).all()
    of_updates = craft(updates, 3, "trimmed-mean", received=received)
    assert np.abs(crafted - received - of_updates).max() > 0.1


def test_partial_knowledge_samples_three_to_four_deviations_from_the_own_mean():
    updates = benign_like(9, 21, 400)
    own = updates[:8]
    s = direction_of(own)
    low, high = reference.estimated_interval(own, s)
    step = a_round(updates, 8, "trimmed-mean", knowledge="partial")
    near, far = estimated_interval(step, s.astype(np.float32))
    np.testing.assert_allclose(np.minimum(near, far), low, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.maximum(near, far), high, rtol=1e-4, atol=1e-6)
    crafted = craft(updates, 8, "trimmed-mean", knowledge="partial")
    assert (crafted >= low - 1e-5).all()
    assert (crafted <= high + 1e-5).all()
    shares = (crafted - low) / (high - low)
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.std() == pytest.approx(12**-0.5, abs=0.03)


# --- Gaussian


def test_gaussian_fits_each_parameter_of_all_workers():
    rng = np.random.default_rng(10)
    center, width = rng.uniform(-5, 5, 12), 10.0 ** rng.uniform(-2, 1, 12)
    updates = (center + width * rng.standard_normal((50, 12))).astype(np.float32)
    draws = np.concatenate([craft(updates, 20, "gaussian", seed=seed) for seed in range(200)])
    mu, sigma = updates.mean(axis=0, dtype=np.float64), updates.std(axis=0, dtype=np.float64)
    scores = (draws - mu) / sigma
    n = len(draws)
    assert n == 4000
    assert np.abs(scores.mean(axis=0)).max() < 4.5 / n**0.5
    assert np.abs(scores.std(axis=0) - 1).max() < 4.5 / (2 * n) ** 0.5
    assert np.abs(np.corrcoef(scores.T) - np.eye(12)).max() < 0.08  # independent parameters
    assert (np.abs(scores) > 3).mean() == pytest.approx(0.0027, abs=0.0015)


def test_gaussian_knows_the_benign_workers():
    updates = np.float32([[0.0], [0.0], [6.0], [6.0], [6.0]])
    draws = np.concatenate([craft(updates, 2, "gaussian", seed=seed) for seed in range(500)])
    assert draws.mean() == pytest.approx(3.6, abs=0.4)


# --- all attacks

CRAFTING = [
    ("gaussian", None),
    ("krum", "full"),
    ("krum", "partial"),
    ("trimmed-mean", "full"),
    ("trimmed-mean", "partial"),
]


@pytest.mark.parametrize(("name", "knowledge"), CRAFTING)
def test_the_generator_decides_the_crafted_updates(name, knowledge):
    updates = benign_like(11, 15, 20)
    first, again, other = (
        craft(updates, 5, name, knowledge=knowledge, seed=seed) for seed in (1, 1, 2)
    )
    assert first.shape == (5, 20)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("name", "knowledge"), CRAFTING)
def test_attacks_leave_the_before_attack_updates_as_they_are(name, knowledge):
    updates = benign_like(11, 15, 20)
    step = a_round(updates, 5, name, knowledge=knowledge)
    attacks[name].crafted(step)
    np.testing.assert_array_equal(step.known, updates[: len(step.known)])


@pytest.mark.parametrize("name", ["krum", "trimmed-mean"])
def test_partial_knowledge_gives_the_same_whatever_the_benign_workers_do(name):
    updates = benign_like(12, 15, 20)
    elsewhere = updates.copy()
    elsewhere[5:] = 1e6
    np.testing.assert_array_equal(
        craft(updates, 5, name, knowledge="partial"), craft(elsewhere, 5, name, knowledge="partial")
    )


@pytest.mark.parametrize("name", ["krum", "trimmed-mean"])
@pytest.mark.parametrize("knowledge", ["full", "partial"])
def test_one_compromised_worker_is_enough_to_attack(name, knowledge):
    crafted = craft(benign_like(13, 6, 10), 1, name, knowledge=knowledge)
    assert crafted.shape == (1, 10)
    assert np.isfinite(crafted).all()


@pytest.fixture(scope="module")
def gradient_steps():
    """One SGD step of 25 workers of a half-trained softmax regression, non-IID, 3 classes."""
    rng = np.random.default_rng(14)
    labels = np.arange(300) % 3
    x = 2.0 * rng.standard_normal((300, 8)) + 1.5 * rng.standard_normal((3, 8))[labels]
    w = np.zeros(27)
    for _ in range(20):
        w -= 0.1 * reference.softmax_regression(w, x, labels, 3)[1]
    updates = []
    for worker in range(25):
        share = np.where(labels == worker % 3, 3.0, 1.0)
        rows = rng.choice(300, 16, replace=False, p=share / share.sum())
        updates.append(-0.1 * reference.softmax_regression(w, x[rows], labels[rows], 3)[1])
    return np.array(updates, dtype=np.float32)


def deviation(updates, c, name, knowledge, rule):
    """Equation 1's s^T (w - w'), per parameter and relative to the step without attack."""
    before = rules[rule](array(updates), c=c, beta=c).asnumpy()
    crafted = craft(updates, c, name, knowledge=knowledge, rule=rule)
    sent = array(np.concatenate([crafted, updates[c:]]))
    after = rules[rule](sent, c=c, beta=c).asnumpy()
    return float(direction_of(updates) @ (before - after)) / np.abs(before).sum()


@pytest.mark.parametrize(
    ("name", "knowledge", "rule", "least"),
    [
        ("krum", "full", "krum", 1.0),
        ("krum", "partial", "krum", 0.5),
        ("trimmed-mean", "full", "trimmed-mean", 1.0),
        ("trimmed-mean", "partial", "trimmed-mean", 0.5),
        ("trimmed-mean", "full", "median", 0.8),
        ("trimmed-mean", "partial", "median", 0.3),
        ("trimmed-mean", "full", "mean", 2.0),
        ("trimmed-mean", "partial", "mean", 0.6),
    ],
)
def test_the_attack_works_against_its_rule(gradient_steps, name, knowledge, rule, least):
    # At 1 the global model no longer moves along s, above it moves backwards.
    assert deviation(gradient_steps, 5, name, knowledge, rule) > least


@pytest.mark.parametrize("rule", ["trimmed-mean", "median"])
def test_random_crafting_does_not_work(gradient_steps, rule):
    ours = deviation(gradient_steps, 5, "trimmed-mean", "full", rule)
    assert abs(deviation(gradient_steps, 5, "gaussian", None, rule)) < ours / 10


def test_an_attack_is_registered_once():
    with pytest.raises(BadInput, match="attack 'krum' exists already"):
        attack("krum")(lambda step: step.known)


def test_attacks_say_in_a_sentence_what_they_do():
    assert attacks["none"].summary == "The compromised workers behave."
    assert "Krum" in attacks["krum"].summary
    assert attacks["label-flip"].summary.startswith("Flip each label")


# --- what an attacker chooses


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("epsilon", -0.1, "at least 0"),
        ("epsilon", np.inf, "finite and at least 0"),
        ("epsilon", "small", "finite and at least 0"),
        ("b", 1, "a finite number above 1"),
        ("b", np.nan, "a finite number above 1"),
        ("b", True, "a finite number above 1"),
        ("goal", "chaos", "choose one of directed-deviation, deviation"),
        ("direction", None, "choose one of mean, rule"),
        ("base", "zero", "choose one of received, before-attack"),
        ("attacker_assumes", 3, "choose one of zero, added, c"),
        ("interval_space", "", "choose one of update, model"),
    ],
)
def test_a_wrong_choice_of_the_attacker_is_one_sentence(field, value, problem):
    with pytest.raises(BadInput, match=rf"^{field} is .*; .*{problem}\.$"):
        Parameters(**{field: value})


def test_the_rules_direction_is_that_of_the_rule_the_attack_is_made_for_unless_named():
    # The mean grows, the median shrinks.
    updates = np.float32([[-1], [-1], [-1], [-1], [9], [9], [9]])
    attack_of = attacks["trimmed-mean"]
    assert attack_of.against[0] == "trimmed-mean"
    assert attack_of(updates, c=1)[0, 0] <= -1
    assert attack_of(updates, c=1, direction="rule")[0, 0] <= -1  # of 3 9s, 2 are left
    assert attack_of(updates, c=1, direction="rule", rule="median")[0, 0] >= 9
    with pytest.raises(BadInput, match="unknown rule 'mode'"):
        attack_of(updates, c=1, direction="rule", rule="mode")


def test_how_many_directions_partial_knowledge_tells_right():
    updates = np.float32([[1, -1, 1, 1], [1, 1, 1, -9], [1, 1, -9, 9], [1, 1, -9, 9]])
    step = a_round(updates, 1, "trimmed-mean", knowledge="partial")
    assert direction_agreement(step, updates) == 0.5


@pytest.mark.long
@pytest.mark.parametrize("knowledge", ["full", "partial"])
def test_a_trial_that_diverges_under_the_krum_attack_ends(knowledge):
    fields = {"dataset": "breast-cancer", "model": "cnn", "workers": 10, "compromised": 2}
    setting = Setting(attack="krum", rule="mean", learning_rate=3.0, knowledge=knowledge, **fields)
    result = run_trial(setting, 0)
    assert result.diverged
    assert result.iterations < 100


def test_of_a_model_that_stands_still_no_share_of_a_step_outweighs_all_others():
    way = np.float32([1, 0])
    assert undone(way, np.float32([0.25, 9])) == 0.75
    assert undone(way, way) == 0
    assert undone(way, np.float32([-3, 0])) == 4
    assert (undone(1e-9 * way, -way), undone(1e-9 * way, way)) == (10, -10)
    assert undone(0 * way, way) == 0
    assert np.isnan(undone(way, np.float32([np.inf, 0])))
    assert np.isnan(undone(way, np.float32([np.nan, 0])))


@pytest.mark.parametrize(("given", "told"), [
    ({"beta": -1}, "beta is -1; give a whole number from 0 to 4"), ({"beta": "x"}, "beta is 'x'"),
    ({"beta": 1.5}, "beta is 1.5"), ({"beta": 5}, "beta is 5"), ({"rule": ""}, "unknown rule ''"),
    ({"knowledge": "bogus"}, "knowledge is 'bogus'; choose one of full, partial"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["krum", "trimmed-mean", "gaussian"])
def test_a_call_with_what_no_setting_takes_is_refused(name, given, told):
    with pytest.raises(BadInput, match=told):
        attacks[name](np.ones((9, 3)), c=2, **given)


@pytest.mark.parametrize("name", ["krum", "trimmed-mean", "tailored"])
def test_the_deviation_goal_is_for_full_knowledge_where_that_makes_a_difference(name):
    goal, updates = {"c": 2, "goal": "deviation"}, np.random.default_rng(0).normal(size=(9, 3))
    with pytest.raises(BadInput, match="Appendix B"):
        attacks[name](updates, knowledge="partial", **goal)
    attacks[name](updates, knowledge="full", **goal)
    attacks["gaussian"](updates, knowledge="partial", **goal)
