"""Why a rule fell, in words: of the trial that was run, and of any rule what it does."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import fltrust_repro as fl
from fltrust_repro import backend, fall, replay
from fltrust_repro.distances import squared_distances
from fltrust_repro.errors import BadInput
from fltrust_repro.facts import Facts, _along_the_spread, measured
from fltrust_repro.plugins import plugins_for
from fltrust_repro.settings import Setting
from fltrust_repro.training import Federation, TrialResult, run_trial
from fltrust_repro.trial_process import afresh
from fltrust_repro.trials import Trial

SMALL = {"dataset": "digits", "workers": 20, "compromised": 4, "learning_rate": 0.5}


def small(iterations: int = 30, **fields) -> Setting:
    return Setting.from_dict({**SMALL, "iterations": iterations, **fields})


def trial(setting: Setting, seed: int = 10) -> Trial:
    with afresh(seed, plugins_for(())):  # as commands run them
        result = run_trial(setting, seed)
    return Trial(setting, seed, result, "cpu", "versions", "today", "1")


def told(setting: Setting) -> str:
    """The text, without its line ends."""
    text = fall.explain(trial(setting), trial(setting.without_attack()))
    lines = text.splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= fall.WIDTH
    return text.replace("\n", " ")


@pytest.fixture
def plugin(tmp_path):
    def load(text: str) -> None:
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        fl.load_plugin(tmp_path / "mine.py")

    return load


COUNTS = """
import fltrust_repro as fl

calls = []

@fl.rule("counts")
def counts(updates):
    calls.append(1)
    return updates.mean(axis=0) * (1 + 0.01 * len(calls))
"""


def test_the_iteration_looked_at_is_the_trials_though_a_rule_keeps_variables(plugin):
    """What it kept at the end of the span must not be what it begins with again."""
    plugin(COUNTS)
    setting = small(rule="counts", attack="gaussian")
    with afresh(0, plugins_for(())):
        federation = Federation(setting, 0, backend.context("cpu"), None)
        w = federation.begin(None).w
        for iteration in range(1, 13):
            w = federation.moved(w, federation.sent(w, iteration, False), False)
        error = federation.error_rate(w)
    seen = replay.replayed(setting, 0, range(13, 14), None)
    assert seen.iteration == 13
    assert seen.errors[0] == error


@pytest.mark.parametrize(
    ("attacked", "begun"),
    [
        ([0.9, 0.7, 0.5, 0.5], 10),
        ([0.5, 0.5, 0.2, 0.2], 30),  # half a step below twice at iteration 20
        ([0.5, 0.9, 0.9, 0.19], None),
        ([0.1, 0.1, 0.1, 0.2], 40),
        ([0, 0, 0, 0], None),
    ],
)
def test_it_has_fallen_from_where_the_error_stays_at_twice_the_clean_one(attacked, begun):
    clean = [(10, 0.4, 0.0), (20, 0.3, 0.0), (30, 0.1, 0.0), (40, 0.1, 0.0)]
    curve = [(i, error, 0.0) for (i, _, _), error in zip(clean, attacked)]
    assert fall.fell_at(curve, clean) == begun


def test_a_trial_that_diverged_between_two_evaluations_is_held_against_the_one_before():
    clean = [(10, 0.4, 0.0), (20, 0.1, 0.0)]
    assert fall.fell_at([(10, 0.4, 0.0), (13, 0.9, 0.0)], clean) == 13
    assert fall.fell_at([(10, 0.4, 0.0), (13, 0.7, 0.0)], clean) is None
    assert fall.fell_at([(3, 0.9, 0.0)], clean) == 3


REMEMBERS = """
import fltrust_repro as fl
import numpy as np

seen = []

@fl.rule("remembers")
def remembers(updates, memory):
    seen.append(np.random.random())
    memory["velocity"] = 0.5 * memory.get("velocity", 0) + updates.mean(axis=0)
    return memory["velocity"] * (1 + 0.1 * seen[0])
"""


@pytest.mark.parametrize(
    "fields",
    [
        {"rule": "krum", "attack": "krum"},
        {"rule": "median", "attack": "label-flip"},
        {"rule": "fldetector", "attack": "mimic"},
        {"rule": "fltrust", "attack": "fltrust-adaptive:search=exact", "root_size": 20},
        {"rule": "geometric-median", "pre": "bucketing", "attack": "gaussian", "momentum": 0.5},
        {"rule": "krum", "attack": "krum", "defense": "lfr"},
        {"rule": "mean", "attack": "poisonedfl", "selected": 10, "poisoned_fraction": 0.9},
        {"rule": "mean", "attack": "trimmed-mean", "dealing": "each-iteration"},
        {"rule": "remembers", "attack": "trimmed-mean"},
    ],
    ids=lambda fields: fields["rule"],
)
def test_what_is_replayed_is_the_trial_to_the_last_bit(fields, plugin):
    plugin(REMEMBERS)
    setting = small(**fields)
    one = trial(setting)
    with afresh(one.seed, plugins_for(())):
        seen = replay.replayed(setting, one.seed, range(11, 21), None)
    assert seen.end == (20, {i: error for i, error, _ in one.result.curve}[20])
    assert seen.iteration in range(11, 21)
    assert seen.before is not None or setting.attack == "label-flip"
    assert seen.updates.shape[0] == setting.selected
    text = told(setting)
    assert "Replayed here" not in text
    assert "have" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"rule": "krum", "attack": "krum"},
        {"rule": "fldetector", "attack": "sign-flip"},
        {"rule": "leverage", "attack": "ipm:epsilon=4", "selected": 8},
    ],
    ids=lambda fields: fields["rule"],
)
def test_the_model_after_the_iteration_that_is_looked_at_is_the_trials(fields, monkeypatch):
    setting, models = small(**fields), []
    error_rate = replay.Federation.error_rate
    kept = lambda self, w: models.append(w.asnumpy()) or error_rate(self, w)  # noqa: E731
    monkeypatch.setattr(replay.Federation, "error_rate", kept)
    run_trial(setting, 0)
    trained, models[:] = models[:2], []
    seen = replay.replayed(setting, 0, range(11, 21), None)
    assert np.array_equal(models[0], trained[0])
    assert np.array_equal(models[10], trained[1])
    at = seen.iteration - 10
    assert np.array_equal(models[11], models[at - 1])  # come to once more
    assert np.array_equal(models[12], models[at])
    change = seen.master.answer(seen.updates)
    np.testing.assert_array_equal(models[at - 1] + change, models[at])


ONE_BLOW = """
import fltrust_repro as fl

@fl.attack("one-blow")
def one_blow(step):
    step.memory["iteration"] = step.memory.get("iteration", 0) + 1
    return step.known[: step.c] * (-1000 if step.memory["iteration"] == 24 else 1)
"""


def test_the_iteration_that_is_looked_at_is_that_in_which_the_error_rises(plugin):
    plugin(ONE_BLOW)
    text = told(small(60, rule="mean", attack="one-blow"))
    assert "Iteration 24: in it the error goes from 0." in text
    assert "clip updates to their median length" in text


WHEN_MANY = """
import fltrust_repro as fl

@fl.attack("when-many")
def when_many(step):
    step.memory["attacked"] = step.memory.get("attacked", 0) + 1
    many = step.memory["attacked"] > 20 and 2 * step.c >= len(step.known)
    return step.known[: step.c] * (-1000 if many else 1)
"""


def test_where_most_of_those_selected_are_compromised_the_text_says_so(plugin):
    plugin(WHEN_MANY)
    text = told(small(60, rule="mean", pre="clip", attack="when-many", selected=4))
    assert "in it the error goes from" in text
    assert re.search(r"(2|3) of 4 who send are compromised, where c is taken to be 1", text)
    assert "Look at what was sent before" in text


def test_the_first_later_iteration_counts_where_nobody_attacked_in_the_span():
    setting = small(60, rule="mean", attack="ipm:epsilon=100", poisoned_fraction=0.05)
    assert replay.replayed(setting, 0, range(11, 21), None).iteration == 21
    assert replay.replayed(setting, 0, range(55, 61), None) is None


def test_of_one_benign_update_no_distances_to_others_are_told():
    rows = updates()[:4]
    rows[:3] *= -9
    words = fall._crafted(measured(rows, 3, mean(rows), mean))
    assert "nearest" not in words and "deviations" not in words and "nan" not in words
    assert "over a million" not in words


def test_a_benign_update_that_is_not_finite_spoils_no_number():
    rows = np.concatenate([facts_rows := updates(), updates(1, seed=3)])
    rows[:4], rows[-1, 7] = -facts_rows[4], np.inf
    found = measured(rows, 4, fl.median(rows), fl.median)
    alone = measured(rows[:-1], 4, fl.median(rows), fl.median)
    assert found.share is not None
    assert (found.cosine, found.length, found.apart) == (alone.cosine, alone.length, alone.apart)
    rows[4:] = np.nan
    assert "nan" not in fall._crafted(measured(rows, 4, fl.median(rows), fl.median))


def test_what_most_send_is_not_shortened_to_its_own_length():
    rows = updates()
    rows[:11] = -50 * rows[11:].mean(axis=0)
    assert not measured(rows, 11, mean(rows), mean).shortened


def test_distances_of_benign_updates_are_told_whatever_most_send():
    """Twelve of twenty send one update far away, amid which the others are all at one place."""
    rows = updates()
    rows[:12] = 1e7
    found = measured(rows, 12, mean(rows), mean)
    assert 1e3 < found.nearest < 1e8
    assert "over a million times its distance to the nearest" in fall._crafted(found)


def test_the_iterations_to_look_at():
    curve = [(10, 0.9, 0.0), (20, 0.5, 0.0), (23, 0.9, 0.0)]
    assert fall.span(curve, 20) == range(11, 21)
    assert fall.span(curve, 10) == range(1, 11)
    assert fall.span(curve, 23) == range(21, 24)
    assert fall.span(curve, None) == range(23, 24)


def updates(m: int = 20, d: int = 300, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=d) + rng.normal(size=(m, d))).astype(np.float32)


def beyond(rows: np.ndarray) -> np.ndarray:
    """Beyond all values, against where the mean goes."""
    return np.where(rows.mean(axis=0) > 0, rows.min(axis=0) - 1, rows.max(axis=0) + 1)


def facts(sent: np.ndarray, answer, benign: np.ndarray | None = None) -> Facts:
    """Of 16 benign updates and what 4 workers send."""
    rows = updates() if benign is None else benign
    crafted = np.concatenate([np.broadcast_to(sent, rows[:4].shape), rows[4:]]).astype(np.float32)
    return measured(crafted, 4, answer(rows), answer)


def mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(axis=0, dtype=np.float64).astype(np.float32)


def krum(rows: np.ndarray) -> np.ndarray:
    return fl.krum(rows, c=4)


def scaled(rows: np.ndarray) -> np.ndarray:
    """The mean of updates of one length."""
    return mean(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def clipped(rows: np.ndarray) -> np.ndarray:
    """The mean of updates of their median length at most."""
    return fl.rules["norm-clipping"](rows, c=4)


def trimmed(rows: np.ndarray) -> np.ndarray:
    return fl.trimmed_mean(rows, beta=4)


@pytest.mark.parametrize("factor", [1.0, 0.5])  # a part of it, as with momentum at the server
def test_everyone_has_a_fair_share_of_a_mean(factor):
    found = facts(-updates()[:4], lambda rows: factor * mean(rows))
    assert found.share == pytest.approx(0.2, abs=1e-3)
    assert found.followed == (4, 16)
    if factor == 1:
        assert found.way == pytest.approx(0.2, abs=0.1)


def test_krum_follows_the_one_it_picks():
    crowd = updates().mean(axis=0)
    picked = facts(crowd, krum)
    assert (picked.share, picked.followed) == (1, (None, 0))  # which of the copies is no matter
    assert picked.way == pytest.approx(1)
    far = facts(100 * updates()[:4], krum)
    assert (far.share, far.followed) == (0, (0, 1))


def test_what_is_trimmed_is_not_followed_and_moves_the_result_nevertheless():
    found = facts(beyond(updates()), trimmed)
    assert found.share == pytest.approx(0, abs=1e-6)
    assert found.followed == (0, 16)
    assert found.undone > 0.1


@pytest.mark.parametrize("answer", [lambda rows: np.sign(mean(rows)), lambda rows: 0 * rows[0]])
def test_a_rule_that_follows_nobody_by_small_steps_has_no_shares(answer):
    found = facts(-updates()[:4], answer)
    assert (found.share, found.followed) == (None, None)


def test_zeros_stay_zeros_when_a_rule_is_asked():
    rows = updates()
    rows[:, :50] = 0
    rows[3, 60] = 0
    asked = []

    def answer(given: np.ndarray) -> np.ndarray:
        asked.append((given == 0).sum())
        return mean(given)

    facts(-rows[:4], answer, rows)
    assert len(set(asked[1:])) == 1


def test_what_the_updates_look_like():
    rows = updates()
    found = facts(-3 * rows[4:].mean(axis=0), mean, rows)
    norms = np.linalg.norm(rows[4:], axis=1)
    away = np.linalg.norm(rows[4:] + 3 * rows[4:].mean(axis=0), axis=1).min()
    between = np.linalg.norm(rows[4:, None] - rows[4:], axis=2) + np.diag([np.inf] * 16)
    expected = 3 * np.linalg.norm(rows[4:].mean(axis=0)) / np.median(norms)
    assert found.length == pytest.approx(expected, rel=1e-3)
    assert found.cosine[0] == pytest.approx(-1, abs=1e-5)
    assert found.nearest == pytest.approx(away / np.median(between.min(axis=1)), rel=1e-3)
    assert found.among == pytest.approx(0, abs=1e-3)
    assert found.apart > 3


def test_the_direction_of_the_largest_spread_is_that_of_the_updates():
    rows, c = updates(30, 50, seed=3), 5
    rows[:, 7] *= 20
    rows[:c, 7] += 40
    centred = rows - rows.mean(axis=0)
    places = centred @ np.linalg.svd(centred.astype(np.float64))[2][0]
    expected = abs(places[:c].mean() - places[c:].mean()) / places[c:].std()
    squared = squared_distances(rows)
    assert _along_the_spread(squared, c) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("sent", "answer", "words"),
    [
        (beyond(updates()), trimmed, "what is cut"),
        (-50 * updates().mean(axis=0), mean, "clip updates to their median length"),
        (updates().mean(axis=0), krum, "copies"),
        (-0.1 * updates().mean(axis=0), scaled, "do not lengthen"),
        (-updates().mean(axis=0), mean, "the direction in which updates spread most"),
        (updates(seed=1)[:4] + updates().mean(axis=0) - updates(seed=1).mean(axis=0), mean,
         "what they have in common"),
        (np.full(300, np.nan), trimmed, "not finite"),
        (-9000 * updates().mean(axis=0), clipped, "the direction in which updates spread most"),
    ],
)  # fmt: skip
def test_what_to_look_at_is_chosen_by_what_was_measured(sent, answer, words):
    rows = updates()
    seen = replay.Moment(20, rows, 4, None, None, (0.5, 0.5), (20, 0.5))
    assert words in fall._advice(seen, facts(sent, answer, rows), begun=20)


@pytest.mark.parametrize(("share", "cut"), [(0.019, True), (0.021, False), (0.0, True)])
def test_what_is_cut_has_less_than_a_tenth_of_its_fair_share(share, cut):
    rows = updates()
    seen = replay.Moment(20, rows, 4, None, None, (0.5, 0.5), (20, 0.5))
    found = replace(facts(beyond(rows), trimmed, rows), share=share)
    assert ("what is cut" in fall._advice(seen, found, begun=20)) == cut


def test_what_a_rule_shortens_is_judged_as_it_takes_it():
    rows = updates()
    found = facts(-9000 * rows[4:].mean(axis=0), clipped, rows)
    assert found.shortened
    assert found.length > 1000
    assert "times its length, which the rule shortens" in fall._crafted(found)
    assert 0.1 < found.way < 0.5
    assert not facts(-9000 * rows[4:].mean(axis=0), mean, rows).shortened


def test_the_text_says_when_by_whom_and_how_far():
    text = told(small(60, rule="krum", attack="krum"))
    assert "krum fell under krum, seed 10, at iteration" in text
    assert "the 4 compromised workers have 100% of the influence (fair: 20%)" in text
    assert "the result follows 0 of the 16 benign ones" in text
    assert "Look at copies" in text


def test_a_rule_that_holds_did_not_fall_and_its_last_iteration_is_looked_at():
    text = told(small(40, rule="trimmed-mean", attack="gaussian"))
    assert "did not fall" in text
    assert "Iteration 40:" in text
    text = told(small(40, rule="multi-krum:q=5", attack="sign-flip"))
    assert "undid 0.00 of that step" in text
    assert "Look at" not in text


@pytest.mark.slow
def test_long_names_keep_the_text_short():
    pre, attack = "arc+nnm+clip:radius=1.25", "min-max:vector=std-against"
    text = told(small(60, rule="trimmed-mean", pre=pre, attack=attack, defense="lfr"))
    assert f"{pre}+trimmed-mean behind lfr " in text


def test_where_nobody_attacks_the_text_says_so():
    setting = small(30, rule="mean", attack="krum", poisoned_fraction=0.0)
    assert "From iteration 30 on no worker attacked." in told(setting)


def test_a_model_that_diverged_is_told_of(plugin):
    plugin(
        "import fltrust_repro as fl, numpy as np\n\n"
        "@fl.attack('infinite')\n"
        "def infinite(step):\n"
        "    return np.full((step.c, step.known.shape[1]), np.inf)\n"
    )
    text = told(small(30, rule="mean", attack="infinite"))
    assert "as the model diverged" in text
    assert "values that are not finite" in text
    assert "values that are not finite" in told(small(30, rule="median", attack="infinite"))


def test_two_trials_that_are_no_pair_are_told():
    setting = small(10, rule="mean", attack="gaussian")
    attacked, clean = trial(setting), trial(setting.without_attack())
    for other in (replace(clean, seed=11), attacked, replace(clean, setting=small(rule="mean"))):
        with pytest.raises(BadInput, match="no pair"):
            fall.explain(attacked, other)


def test_a_replay_that_rounds_otherwise_is_told_of():
    setting = small(30, rule="krum", attack="krum")
    attacked, clean = trial(setting), trial(setting.without_attack())
    moved = [(i, error + 0.001, loss) for i, error, loss in attacked.result.curve]
    attacked = replace(attacked, result=replace(attacked.result, curve=moved))
    assert "machines round differently" in fall.explain(attacked, clean).replace("\n", " ")


def test_what_an_attack_undid_and_where_it_undid_nothing_is_told_as_noted():
    notes = {"compared with no attack": 10, "undone": 0.3, "no effect": 2}
    curve = [(10, 0.5, 0.0), (20, 0.5, 0.0)]
    setting = small(rule="mean", attack="ipm")
    made = [Trial(one, 0, TrialResult(0.5, 0.5, 20, False, 1.0, curve, 0, own), "cpu", "", "", "1")
            for one, own in ((setting, notes), (setting.without_attack(), {}))]  # fmt: skip
    assert "undid 0.30 of a step on average, nothing in 2 of 10" in fall._course(*made, None)


def test_the_cosine_is_of_what_was_sent_and_in_brackets_what_is_usual():
    rows = updates()
    rows[:4] = -rows[4:].mean(axis=0)
    found = measured(rows, 4, mean(rows), mean)
    to_mean, usual = found.cosine
    assert to_mean < -0.9 < 0 < usual
    assert f"cosine to the benign mean {to_mean:.2f} ({usual:.2f})" in fall._crafted(found)
