"""What a trial hands to rules: identities, the server's own examples, momentum; what it notes."""

import json
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from fltrust_repro import backend, datasets, training
from fltrust_repro.__main__ import commands
from fltrust_repro.aggregation import rule, rules
from fltrust_repro.attacks import attacks
from fltrust_repro.backend import host_view
from fltrust_repro.errors import BadInput
from fltrust_repro.partition import Batches
from fltrust_repro.preaggregations import preaggregation, preaggregations
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Round, attack
from fltrust_repro.training import generator, run_trial
from fltrust_repro.workers import Learner

LR = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 12, "learning_rate": 0.5}


@contextmanager
def ruling(function, name="own"):
    """A rule of one's own, for as long as it is needed."""
    rule(name)(function)
    try:
        yield
    finally:
        rules.remove(name)


@contextmanager
def attacking(craft, **how):
    attack("own", **how)(craft)
    try:
        yield
    finally:
        attacks.remove("own")


@pytest.fixture
def trained(monkeypatch):
    """Batches and updates of every iteration, as the learner has and gives them."""
    seen = []

    class Watched(Learner):
        def updates(self, w_re, x, batches, learning_rate):
            found = super().updates(w_re, x, batches, learning_rate)
            copies = Batches(*(part.copy() for part in batches))
            seen.append((copies, host_view(found[0]).copy()))
            return found

    monkeypatch.setattr(training, "Learner", Watched)
    return seen


# ---- the server's own examples


@pytest.mark.parametrize("dealing", ["once", "each-iteration", "shared"])
def test_the_server_trains_as_one_more_worker_on_examples_that_nobody_else_holds(trained, dealing):
    given = []

    def own(updates, root, w_re, layers):
        given.append((updates.copy(), root, w_re))
        assert [*layers] == [slice(0, 640), slice(640, 650)]
        return root

    with ruling(own):
        setting = Setting.from_dict({**LR, "rule": "own", "root_size": 40, "dealing": dealing})
        run_trial(setting, 1)
    labels = datasets.load("digits", generator(1, "split")).train_y
    servers, workers = set(), set()
    for (batches, updates), (rows, root, _) in zip(trained, given):
        assert len(batches.counts) == len(updates) == 21
        np.testing.assert_array_equal(rows, updates[_met(1, range(20))])
        np.testing.assert_array_equal(root, updates[20])
        assert batches.counts[20] == 32
        mine = batches.rows[0, 20]
        np.testing.assert_array_equal(batches.labels[0, 20], labels[mine])
        servers.update(mine.tolist())
        for i, count in enumerate(batches.counts[:20]):
            workers.update(batches.rows[0, i, :count].tolist())
    assert len(servers) == 40
    assert not servers & workers
    # Moved by the rule's result alone, which was the server's update.
    np.testing.assert_allclose(given[1][2], given[0][2] + given[0][1], rtol=1e-6)


def test_other_examples_are_dealt_as_they_would_be_without_the_servers(trained):
    def own(updates, root):
        return root

    run_trial(Setting(**LR, rule="mean"), 1)
    without = [batches.counts.copy() for batches, _ in trained]
    holders = _holders(trained)
    trained.clear()
    with ruling(own):
        run_trial(Setting(**LR, rule="own", root_size=40), 1)
    assert (without[0] >= trained[0][0].counts[:20]).all()
    for example, worker in _holders(trained).items():
        assert holders.get(example, worker) == worker or worker == 20


def _holders(trained):
    return {
        row: i
        for batches, _ in trained
        for i, count in enumerate(batches.counts)
        for row in batches.rows[0, i, :count].tolist()
    }


def test_class_1_has_its_share_of_biased_root_examples(trained):
    setting = Setting(**LR, rule="fltrust", root_size=32, root_bias=0.75)
    run_trial(setting, 1)
    labels = trained[0][0].labels[0, 20]  # all of them are one batch
    assert np.count_nonzero(labels == 1) == 24


def test_judging_alone_trains_nothing_and_judges_on_the_servers_examples(trained):
    found = []

    def own(updates, judge, w_re):
        models = w_re + updates[:3]
        found.append(judge(models))
        with pytest.raises(BadInput, match="rule 'own': models that it has judged"):
            judge(models[0])
        return updates.mean(axis=0)

    with ruling(own):
        run_trial(Setting(**LR, rule="own", root_size=40), 1)
    assert all(len(updates) == 20 for _, updates in trained)
    errors, losses = map(np.array, zip(*found))
    assert errors.shape == losses.shape == (12, 3)
    np.testing.assert_array_equal(errors * 40, (errors * 40).round())
    assert losses[-1].mean() < losses[0].mean()


def test_who_asks_for_root_data_and_gets_none_is_told_what_to_do():
    words = "rule 'fltrust' asks for root, .*server's own; use --root-size 100"
    with pytest.raises(BadInput, match=words):
        Setting(rule="fltrust")
    with pytest.raises(BadInput, match=r"rule 'nnm\+fltrust' asks for root"):
        Setting(rule="fltrust", pre="nnm")

    def own(step):
        return step.known[: step.c]

    with (
        attacking(own, asks=("root",)),
        pytest.raises(BadInput, match="attack 'own' asks for root"),
    ):
        Setting(attack="own", rule="mean")


def test_a_step_before_the_rule_may_ask_for_root_data():
    @preaggregation("rooted")
    def rooted(updates, root):
        return updates + 0 * root

    try:
        with pytest.raises(BadInput, match=r"rule 'rooted\+mean' asks for root"):
            Setting(**LR, rule="mean", pre="rooted")
        setting = Setting(**LR, rule="mean", pre="rooted", root_size=20)
        found = run_trial(setting, 0)
    finally:
        preaggregations.remove("rooted")
    assert found.notes["differs from the mean"] == 0


def test_root_data_that_nobody_asks_for_are_none():
    assert Setting(rule="mean", root_size=100, root_bias=0.5) == Setting(rule="mean")
    biased = Setting(rule="fltrust", root_size=100, root_bias=0.5)
    keys = {s.key() for s in (biased, Setting(rule="fltrust", root_size=100), Setting(rule="mean"))}
    assert len(keys) == 3


def test_more_root_examples_than_there_are_end_in_a_sentence():
    with pytest.raises(BadInput, match="root_size is 1437; it must be less than all 1437 examples"):
        run_trial(Setting(**LR, rule="fltrust", root_size=1437), 0)


def test_statistics_and_updates_of_a_model_with_batch_normalisation_may_have_a_server():
    setting = Setting(
        dataset="digits", model="resnet20", workers=5, compromised=1, iterations=3,
        rule="fltrust", root_size=20, attack="trimmed-mean",
    )  # fmt: skip
    found = run_trial(setting, 0)
    assert found.curve == run_trial(setting, 0).curve
    assert not found.diverged


def test_fltrust_learns_whatever_the_workers_send():
    given = {**LR, "iterations": 150, "rule": "fltrust", "root_size": 100}
    for attack_name in ("none", "trimmed-mean", "krum", "gaussian", "label-flip"):
        assert run_trial(Setting(**given, attack=attack_name), 0).error_rate < 0.25, attack_name


def test_list_names_the_league(runner):
    told = runner("list")
    [line] = [line for line in told.splitlines() if line.startswith("  fltrust ")]
    assert line.endswith("[server data]")
    [line] = [line for line in told.splitlines() if line.startswith("  krum ") and "update" in line]
    assert "server data" not in line


@pytest.fixture
def runner():
    from click.testing import CliRunner

    def call(*words):
        result = CliRunner().invoke(commands, words)
        assert result.exit_code == 0, result.output
        return result.output

    return call


# ---- what attackers may know


def test_an_attack_is_given_the_servers_update_if_it_asks():
    seen = []

    def own(step):
        seen.append(step.root)
        return np.tile(-step.root, (step.c, 1))

    with attacking(own, asks=("root",)):
        for rule_name in ("fltrust", "mean"):
            run_trial(Setting(**LR, attack="own", rule=rule_name, root_size=30), 0)
        assert attacks["own"](np.ones((5, 2)), c=2, root=[1, 2]).tolist() == [[-1, -2]] * 2
        with pytest.raises(BadInput, match=r"attack 'own' asks for root, .*give root="):
            attacks["own"](np.ones((5, 2)), c=2)
    assert len(seen) == 25
    assert {root.dtype for root in seen} == {np.dtype(np.float32)}


def test_an_attack_that_does_not_ask_is_not_given_it():
    def own(step):
        assert step.root is None
        return step.known[: step.c]

    with attacking(own):
        run_trial(Setting(**LR, attack="own", rule="fltrust", root_size=30), 0)


def test_what_an_attack_may_ask_for_is_told_where_it_is_registered():
    with pytest.raises(BadInput, match="attack 'own' asks for judge; an attack may ask for root"):
        attack("own", asks=("judge",))(lambda step: step.known)
    with pytest.raises(BadInput, match=r"against is one name; give several, against=\('krum',\)"):
        attack("own", against="krum")(lambda step: step.known)
    assert "own" not in attacks


def test_attackers_may_query_a_rule_of_the_servers_league():
    setting = Setting.from_dict(
        {**LR, "attack": "trimmed-mean", "direction": "rule", "rule": "fltrust", "root_size": 30}
    )
    assert run_trial(setting, 0).notes["attacked iterations"] == 12


def test_a_round_takes_the_servers_update_of_its_own_size_only():
    master = Setting(**LR).at_master
    given = np.ones((3, 2)), 1, np.zeros(2), "full", np.random.default_rng(0), master
    with pytest.raises(BadInput, match="the server's own update must be numbers of shape"):
        Round(*given, root=np.ones(3))


# ---- identities


@pytest.mark.parametrize("defense", ["none", "err", "lfr", "union"])
@pytest.mark.parametrize("selected", [20, 9])
def test_a_rule_is_told_who_sent_the_rows_that_it_is_given(trained, defense, selected):
    received = {}

    def own(updates, workers, memory):
        memory["calls"] = memory.get("calls", 0) + 1
        # The master device's own call is the last of those that know of so many.
        received[memory["calls"]] = updates.copy(), workers.copy()
        return updates.mean(axis=0)

    with ruling(own):
        given = {**LR, "rule": "own", "attack": "krum", "defense": defense, "selected": selected}
        run_trial(Setting(**given), 3)
    masters = list(received.values())
    assert len(masters) == 12
    holders = _identities(trained, selected)
    for (rows, workers), (_, updates), everyone in zip(masters, trained, holders):
        assert (np.diff(workers) > 0).all()
        for row, number in zip(rows, workers):
            if (worker := _met(3, range(20))[number]) >= 4:  # the others attack
                sent = updates[everyone.index(worker)]
                np.testing.assert_array_equal(row, sent)
        assert len(rows) == len(workers)


def _met(seed, workers):
    """Workers in the order in which a user's own code meets them, by the trial's own generator."""
    numbers = generator(seed, "numbers").permutation(20)
    return sorted(workers, key=lambda worker: numbers[worker])


def _identities(trained, selected):
    """Who took part in each iteration, by the trial's own generator."""
    if selected == 20:
        return [list(range(20))] * len(trained)
    rng = generator(3, "selected")
    return [np.sort(rng.choice(20, selected, replace=False)).tolist() for _ in trained]


def test_leaving_one_out_leaves_out_its_identity():
    seen = []

    def own(updates, workers):
        seen.append(workers.tolist())
        return updates.mean(axis=0)

    with ruling(own):
        state = ServerState(workers=np.array([2, 5, 7]))
        rules["own"].seen_at(state).without_each(np.ones((3, 2)), c=0)
        assert seen == [[5, 7], [2, 7], [2, 5]]
        seen.clear()
        for asked in (rules["own"].seen_at(ServerState()), rules["own"]):
            asked.without_each(np.ones((3, 2)), c=0)
        assert seen == 2 * [[1, 2], [0, 2], [0, 1]]  # 0..m-1 where nobody told
        seen.clear()
        for rows, expected in ((2, [2, 5]), (5, [2, 5, 7, 8, 9])):
            rules["own"].seen_at(state)(np.ones((rows, 2)), c=0)
            assert seen[-1] == expected


def test_rows_that_are_no_workers_any_more_are_numbered():
    seen = []

    def own(updates, workers):
        seen.append(workers.tolist())
        return updates.mean(axis=0)

    with ruling(own):
        given = {**LR, "rule": "own", "selected": 9, "iterations": 1}
        run_trial(Setting(**given, pre="bucketing"), 3)
        run_trial(Setting(**given, pre="nnm"), 3)
    assert seen[0] == [0, 1, 2, 3, 4]
    selected = generator(3, "selected").choice(20, 9, replace=False)
    assert seen[1] == [_met(3, range(20)).index(worker) for worker in _met(3, selected)]


def test_what_a_rule_is_told_is_its_own_to_change():
    def own(updates, w_re, workers, root):
        w_re[:] = workers[:] = root[:] = 0
        return updates.mean(axis=0)

    with ruling(own):
        changed = run_trial(Setting(**LR, rule="own", root_size=30), 0)
    with ruling(lambda updates, root: updates.mean(axis=0)):
        assert run_trial(Setting(**LR, rule="own", root_size=30), 0).curve == changed.curve


def test_queries_copy_what_a_rule_remembers_but_no_models(monkeypatch):
    class Costly:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def judge(self, models):
            return np.zeros(len(models)), np.zeros(len(models))

    def own(updates, memory, judge):
        memory["calls"] = memory.get("calls", 0) + 1
        return updates.mean(axis=0) * memory["calls"]

    with ruling(own):
        state = ServerState(judge=Costly().judge)
        assert rules["own"].seen_at(state)(np.ones((3, 2)), c=0).tolist() == [1, 1]
        assert state.memory == {}


# ---- memories under selection and defenses


@pytest.mark.parametrize("defense", ["none", "err", "lfr", "union"])
@pytest.mark.parametrize("selected", [20, 9])
def test_foolsgold_adds_to_the_history_of_those_whose_updates_it_is_given(
    trained, defense, selected
):
    given = {**LR, "rule": "foolsgold", "attack": "krum", "defense": defense, "selected": selected}
    taken = []
    run_trial(Setting(**given), 3, keep=lambda take: taken.append(take()))
    before: dict[int, np.ndarray] = {}
    most_removed = {"none": 0, "union": 2}.get(defense, 1) * -(-4 * selected // 20)
    for kept, (_, updates), who in zip(taken, trained, _identities(trained, selected)):
        arrays = {int(n.split()[-1]): a for n, a in kept.arrays.items() if "histories" in n}
        moved = {w for w, a in arrays.items() if not np.array_equal(a, before.get(w, 0 * a))}
        assert moved <= {*who}
        assert len(who) - most_removed <= len(moved) <= len(who) - (defense != "none")
        for worker in moved - {0, 1, 2, 3}:  # these attack
            expected = before.get(worker, 0) + updates[who.index(worker)]
            np.testing.assert_array_equal(arrays[worker], expected)
        before = arrays


@pytest.mark.parametrize("defense", ["none", "err", "lfr", "union"])
@pytest.mark.parametrize("selected", [20, 9])
def test_centered_clipping_goes_on_from_the_last_change_of_the_model(defense, selected):
    given = {**LR, "rule": "centered-clipping", "attack": "trimmed-mean", "defense": defense}
    taken = []
    run_trial(Setting(**given, selected=selected), 3, keep=lambda take: taken.append(take().arrays))
    for before, after in zip(taken, taken[1:]):
        change = after["w"] - before["w"]  # and none of the queries' results
        np.testing.assert_allclose(after["rule's centre"], change, atol=1e-6)


@pytest.mark.slow
def test_trials_are_the_same_in_other_processes_and_through_the_command(tmp_path):
    fields = {"iterations": 20, "selected": 9, "momentum": 0.9, "root_size": 40, "root_bias": 0.5}
    given = {**LR, **fields, "rule": "fltrust", "pre": "clip", "attack": "krum", "defense": "lfr"}
    words = [w for name, v in given.items() for w in ("--" + name.replace("_", "-"), str(v))]
    code, out, err = _called("run", *words, "--trials", "2", "--jobs", "1", "--json",
                             "--device", "cpu", "--store", str(tmp_path / "t.sqlite"))  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert told["setting"]["root_size"] == 40
    here = [run_trial(Setting(**given), seed).error_rate for seed in range(2)]
    assert [trial["error_rate"] for trial in told["trials"]] == here


def test_the_command_says_what_a_rule_of_the_servers_league_takes(tmp_path):
    store = str(tmp_path / "t.sqlite")
    code, _, err = _called("run", "--dataset", "digits", "--rule", "fltrust", "--store", store)
    assert code == 2
    assert "use --root-size 100" in err
    assert len(err.splitlines()) == 1


def _called(*words):
    done = subprocess.run(
        [sys.executable, "-m", "fltrust_repro", *words], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


# ---- momentum


def test_momentum_is_kept_by_worker_from_its_first_update_on(trained):
    received, b = [], 0.75

    def own(updates):
        received.append(updates.copy())
        return updates.mean(axis=0)

    with ruling(own):
        run_trial(Setting(**LR, rule="own", selected=9, momentum=b), 3)
    momenta = {}
    for (_, updates), rows, who in zip(trained, received, _identities(trained, 9)):
        for row, worker in zip(rows, _met(3, who)):
            update = updates[who.index(worker)]
            last = momenta.get(worker, update)
            momenta[worker] = (1 - b) * update + b * last
            np.testing.assert_allclose(row, momenta[worker], rtol=1e-4, atol=1e-6)


def test_momentum_is_of_what_a_compromised_worker_would_have_sent():
    known = []

    def own(step):
        known.append(step.known.copy())
        return 100 * step.known[: step.c]

    with attacking(own):
        run_trial(Setting(**{**LR, "rule": "median"}, attack="own", momentum=0.9), 3)
    lengths = [np.linalg.norm(rows, axis=1) for rows in known]
    assert max(long[:4].max() / long[4:].max() for long in lengths) < 3  # not of 100 times as much


def test_the_server_has_momentum_as_workers_have(trained):
    roots = []

    def own(updates, root):
        roots.append(root.copy())
        return updates.mean(axis=0)

    with ruling(own):
        run_trial(Setting(**LR, rule="own", root_size=30, momentum=0.5), 3)
    expected = 0.5 * (trained[0][1][20] + trained[1][1][20])
    np.testing.assert_allclose(roots[1], expected, rtol=1e-4, atol=1e-6)


def test_without_momentum_nothing_is_kept_and_nothing_changes(monkeypatch):
    taken = []
    plain = run_trial(Setting(**LR), 0, keep=lambda take: taken.append(take()))
    assert not [name for name in taken[-1].arrays if name.startswith("workers'")]
    assert Setting(**LR, momentum=0.0).key() == Setting(**LR).key()
    taken.clear()
    other = run_trial(Setting(**LR, momentum=0.9), 0, keep=lambda take: taken.append(take()))
    kept = [array for name, array in taken[-1].arrays.items() if name.startswith("workers'")]
    assert (len(kept), kept[0].shape, kept[0].dtype) == (20, (650,), np.float32)
    assert other.curve != plain.curve


@pytest.mark.parametrize("momentum", [-0.1, 1, float("nan")])
def test_momentum_is_at_least_0_and_less_than_1(momentum):
    with pytest.raises(BadInput, match=r"momentum is .*; it must be at least 0 and less than 1"):
        Setting(momentum=momentum)


# ---- notes: did the rule do anything


def test_notes_tell_how_often_a_rule_gave_another_result_than_the_mean():
    def mostly(updates, memory):
        """The mean with a float's rounding, once with more."""
        memory["calls"] = memory.get("calls", 0) + 1
        mean = updates.mean(axis=0, dtype=np.float64)
        return mean * (1.001 if memory["calls"] == 20 else 1 + 1e-7)

    with ruling(mostly):
        notes = run_trial(Setting(**{**LR, "iterations": 31}, rule="own"), 0).notes
    assert notes["compared with the mean"] == 4  # iterations 10, 20, 30, 31
    assert notes["differs from the mean"] == 1
    found = run_trial(Setting(**LR, rule="trimmed-mean", beta=4), 0).notes
    assert found["differs from the mean"] == found["compared with the mean"] == 2
    assert run_trial(Setting(**LR, rule="mean"), 0).notes["differs from the mean"] == 0


def test_the_mean_after_a_defense_is_that_of_those_who_are_left():
    found = run_trial(Setting(**LR, rule="mean", defense="lfr"), 0).notes
    assert (found["compared with the mean"], found["differs from the mean"]) == (2, 0)


FORESEEN = [{"rule": "mean", "defense": "err"}, {"rule": "median", "pre": "bucketing"}]


@pytest.mark.parametrize("fields", FORESEEN, ids=str)
def test_an_attacker_foresees_no_draw_of_the_master_device(fields):
    """Not whom a defense removes by lot, where impacts are equal, nor what a rule draws."""
    asked, made = [], []

    def spying(step):
        told = step.master.answer(step.known)
        asked.append(told)
        np.testing.assert_array_equal(told, step.master.answer(step.known))  # nothing has moved
        made.append(step.master.answers(step.known, [np.random.default_rng(n) for n in range(6)]))
        return step.known[: step.c]  # so that the master device is given what was asked about

    with attacking(spying):
        setting = Setting(**{**LR, "iterations": 4}, attack="own", **fields)
        federation = training.Federation(setting, 3, backend.context("cpu"), None)
        w, moved = federation.begin(None).w, []
        for iteration in range(1, 5):
            sent = federation.sent(w, iteration, True)
            exact = federation.master.seen().answer(host_view(sent.updates))
            after = federation.moved(w, sent, True)
            moved.append(host_view(after) - host_view(w))
            np.testing.assert_allclose(exact, moved[-1], atol=1e-6)  # the trial itself may know
            w = after
    assert any(np.abs(told - way).max() > 1e-6 for told, way in zip(asked, moved))
    assert any(len({one.tobytes() for one in answers}) > 1 for answers in made)


@pytest.mark.parametrize("defense", ["err", "lfr", "union"])
@pytest.mark.parametrize(("pre", "judgments"), [("", 1), ("bucketing", 4)])
def test_draws_asked_about_together_are_those_asked_about_alone(
    defense, pre, judgments, monkeypatch
):
    """Workers are judged once for all of them, unless what the rule makes of them is drawn, too."""
    judged, judge = [], Learner.judge

    def counted(*given):
        judged.append(given)
        return judge(*given)

    monkeypatch.setattr(Learner, "judge", counted)
    differing = []

    def spying(step):
        def draws():
            return [np.random.default_rng(n) for n in range(4)]

        alone = [step.master.answers(step.known, [rng])[0] for rng in draws()]
        judged.clear()
        together = step.master.answers(step.known, draws())
        assert len(judged) == judgments
        np.testing.assert_array_equal(alone, together)
        differing.append(len({one.tobytes() for one in together}))
        return step.known[: step.c]

    with attacking(spying):
        size = {"workers": 30, "compromised": 4, "iterations": 3}
        fields = {**LR, **size, "rule": "mean", "defense": defense, "pre": pre}
        run_trial(Setting(**fields, attack="own"), 0)
    assert max(differing) > 1 or defense == "lfr"  # error rates of 100 examples are often equal
