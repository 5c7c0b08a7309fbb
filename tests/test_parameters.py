"""Own parameters of rules and attacks, and what they may ask for: generator, memory, notes."""

from collections import Counter

import numpy as np
import pytest

import fltrust_repro as fl
from fltrust_repro import backend
from fltrust_repro.aggregation import rule, rules
from fltrust_repro.errors import BadInput
from fltrust_repro.parameters import chosen, own_parameters
from fltrust_repro.preaggregations import preaggregations
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Round, attack, attacks
from fltrust_repro.training import Federation, run_trial

SMALL = {"dataset": "digits", "workers": 20, "compromised": 4, "iterations": 6}


@pytest.fixture
def shrunk():
    """A rule that asks for everything, with two parameters of its own, for as long as a test."""

    @rule("shrunk")
    def shrunk(updates, c, rng, memory, notes, w_re, *, by=0.5, of="mean"):
        """A share of the mean, halved with every call."""
        memory["calls"] = memory.get("calls", 0) + 1
        memory["last"] = updates.mean(axis=0)
        notes["called"] += 1
        notes["drawn"] += rng.random()
        assert w_re.shape == updates.shape[1:]
        return by * updates.mean(axis=0) / memory["calls"]

    yield shrunk
    rules.remove("shrunk")


@pytest.fixture
def away():
    """An attack that remembers, with a parameter of its own."""

    @attack("away")
    def away(step, *, by=1.0):
        """By so much beyond what it sent before."""
        sent = step.memory.get("sent", np.zeros(step.known.shape[1], dtype=np.float32)) + by
        step.memory["sent"] = sent
        step.notes["queried"] += bool(step.master.rule(step.known, c=0) is not None)
        return np.tile(sent, (step.c, 1))

    yield away
    attacks.remove("away")


def test_parameters_follow_the_name_and_the_name_is_one(shrunk, away):
    assert rules["shrunk:by=0.25"](np.ones((4, 3)), c=1).tolist() == [0.25] * 3
    assert rules["shrunk: of=median , by=0.25"].name == "shrunk:by=0.25,of=median"
    assert rules["shrunk:by=0.5"].name == "shrunk"  # the default
    assert rules["shrunk:by=3.0"].name == "shrunk:by=3"
    assert rules["shrunk:of=3.0"].name == "shrunk:of=3.0"  # a text
    assert rules["multi-krum:q=9007199254740993"].name == "multi-krum:q=9007199254740993"
    assert rules["multi-krum:q=07"].name == rules["multi-krum:q=7e0"].name == "multi-krum:q=7"
    assert attacks["away:by=2"](np.ones((4, 3)), c=1).tolist() == [[2.0] * 3]
    one = Setting(**SMALL, rule="shrunk:of=median,by=.25", attack="away:by=2")
    other = Setting(**SMALL, rule="shrunk:by=0.250,of=median", attack="away:by=2.0")
    assert one == other
    assert one.key() == other.key() != Setting(**SMALL, rule="shrunk", attack="away").key()
    assert "shrunk:by=3" in rules
    assert rules.digest("shrunk:by=3") == rules.digest("shrunk")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shrunk:", r"'' is no choice of a parameter; write name=value"),
        ("shrunk:by", r"'by' is no choice"),
        ("shrunk:bye=1", r"unknown parameter 'bye'; choose one of by, of. Did you mean 'by'"),
        ("shrunk:by=much", r"rule 'shrunk': by is 'much'; give a number"),
        ("shrunk:by=inf", r"by is 'inf'; give a finite number"),
        ("shrunk:by=1,by=2", r"by is given twice"),
        ("median:by=1", r"rule 'median': unknown parameter 'by'; it has none"),
        ("nothing:by=1", r"unknown rule 'nothing'"),
    ],
)
def test_wrong_parameters_are_told_in_a_sentence(shrunk, name, words):
    with pytest.raises(BadInput, match=words):
        Setting(**SMALL, rule=name)


def test_other_things_have_no_parameters():
    with pytest.raises(BadInput, match=r"defense 'err:by=1': a defense has no parameters"):
        Setting(**SMALL, defense="err:by=1")
    with pytest.raises(BadInput, match="attack 'label-flip' has no parameters"):
        Setting(**SMALL, attack="label-flip:by=1")
    with pytest.raises(BadInput, match="what follows a : are parameters"):
        rule("a:b")(lambda updates: updates[0])
    with pytest.raises(BadInput, match="its parameter by has no default"):

        @rule("bare")
        def bare(updates, *, by):
            return by * updates[0]


def test_without_a_state_a_call_begins_anew_and_with_one_it_goes_on(shrunk):
    updates, state = np.ones((4, 2)), ServerState()
    assert [rules["shrunk"](updates, c=0)[0] for _ in range(2)] == [0.5, 0.5]
    assert [rules["shrunk"](updates, c=0, state=state)[0] for _ in range(2)] == [0.5, 0.25]
    seen = rules["shrunk"].seen_at(state)
    assert [seen(updates, c=0)[0] for _ in range(2)] == [pytest.approx(0.5 / 3)] * 2
    assert seen.without_each(updates, c=0).aggregates.shape == (4, 2)
    assert state.memory["calls"] == 2
    assert state.notes["called"] == 2
    assert shrunk(updates, 0, memory={"calls": 4}, by=1.0)[0] == pytest.approx(0.2)


def test_in_a_trial_memory_lasts_and_queries_leave_it_alone(shrunk, away):
    setting = Setting(**SMALL, rule="shrunk", attack="away", defense="lfr")
    found = run_trial(setting, 0)
    assert found.notes["called"] == 6  # one by the master in each iteration, none by others
    assert found.notes["queried"] == 6
    assert 0 < found.notes["drawn"] < 6
    assert run_trial(setting, 0).curve == found.curve
    assert run_trial(setting, 1).notes["drawn"] != found.notes["drawn"]


def test_a_trial_that_goes_on_has_its_memories(shrunk, away):
    setting = Setting(**SMALL, rule="shrunk", attack="away")
    whole, taken = [], []
    run_trial(setting, 0, keep=lambda take: whole.append(take()))
    first = Federation(setting, 0, backend.context("cpu"), None)
    course = first.begin(whole[2])
    taken.append(first.snapshot(course))
    run_trial(setting, 0, begun=whole[2], keep=lambda take: taken.append(take()))
    for ours, theirs in zip(taken, whole[2:]):
        assert ours.told["rule's"] == theirs.told["rule's"]
        assert ours.arrays.keys() == theirs.arrays.keys() >= {"rule's last", "attack's sent"}
        for name, array in theirs.arrays.items():
            np.testing.assert_array_equal(ours.arrays[name], array)
    assert len(taken) == len(whole) - 2


def test_an_attack_sees_its_memory_outside_of_a_trial(away):
    w_re = np.zeros(2, dtype=np.float32)
    known, master = np.ones((3, 2)), Setting(**SMALL).at_master
    step = Round(known, 1, w_re, "full", np.random.default_rng(0), master, notes=Counter())
    assert [attacks["away"].crafted(step)[0, 0] for _ in range(2)] == [1, 2]


# ---- what papers and their authors' code have, unless it is told


def test_own_parameters_have_the_values_that_published_trials_were_made_with():
    """Another default is another rule or attack under the same name: then PROTOCOL moves."""
    defaults = {
        "rule": {
            "krum": {"power": 2.0}, "multi-krum": {"q": None}, "geometric-median": {"nu": 1e-6},
            "norm-clipping": {"radius": 1.0},
            "centered-clipping": {"radius": 1.0, "iterations": 1, "tau": None},
            "sign-vote": {"step": 1.0}, "rlr": {"theta": 0.4},
            "signguard": {"similarity": None, "share": 0.1, "lower": 0.1, "upper": 3.0},
            "flame": {"noise": 0.001}, "gas": {"base": "median", "p": 1000},
            "dnc": {"iterations": 1, "fraction": 1.0, "b": 10_000},
            "zeno": {"rho": 0.005, "b": None},
            "lasa": {"sparsity": 0.3, "norm_radius": 2.0, "sign_radius": 1.0},
            "fldetector": {"base": "median", "window": 10, "start": 50},
            "leverage": {"decay": 0.985, "near": 4},
        },
        "attack": {
            "sign-flip": {"of": "own", "scale": 1.0}, "ipm": {"epsilon": 0.1},
            "alie": {"z": None, "side": "below"}, "byzmean": {"z": 0.5, "side": "below"},
            "min-max": {"vector": "std"}, "min-sum": {"vector": "std", "bound": "max"},
            "mpaf": {"scale": 1e6}, "poisonedfl": {"scale": 8.0},
            "rop": {"z": None, "angle": 90.0, "relocation": 1.0, "reference": 0.9},
            "mimic": {"warmup": 1}, "fltrust-adaptive": {"search": "random"},
            "tailored": {"queries": 12}, "tailored-persistent": {"queries": 12},
            "tailored-pull": {"queries": 12, "far": 2.0}, "scaling": {"factor": None},
        },
        "pre-aggregation": {
            "bucketing": {"size": 2}, "clip": {"radius": 1.0}, "foundation": {"share": 0.5},
        },
    }  # fmt: skip
    functions = {"rule": "function", "attack": "craft", "pre-aggregation": "function"}
    for registry in (rules, attacks, preaggregations):
        ours = {
            name: own_parameters(getattr(registry[name], functions[registry.kind]))
            for name in registry
            if registry.owner(name) is None and getattr(registry[name], functions[registry.kind])
        }
        assert {name: own for name, own in ours.items() if own} == defaults[registry.kind]
    backdoor = fl.attacks["scaling"].backdoor
    assert (backdoor.share, backdoor.target) == (0.3, 0)


# ---- what cannot be an entry is told when it is registered

WRONG = {
    "c behind the star": ("rule", "def f(updates, *, c=7): ...", "c by keyword alone; name it"),
    "a memory behind it": ("rule", "def f(updates, *, memory=None): ...", "memory by keyword"),
    "no updates": ("rule", "def f(*, q=1): ...", "cannot be called with one argument"),
    "c by position alone": ("rule", "def f(updates, c, /): ...", "one argument and c by name"),
    "an attack without a default": ("attack", "def f(step, *, share): ...", "has no default"),
    "an attack with rng": ("attack", "def f(step, rng): ...", "one argument .*: 'rng'"),
    "an attack of nothing": ("attack", "def f(): ...", "cannot be called with one argument"),
    "no function": ("attack", "f = 3", "tells no signature"),
    "a defense with rng": ("defense", "def f(case, rng): ...", "one argument .*: 'rng'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_signature_that_no_trial_could_call_is_refused(case):
    kind, text, told = WRONG[case]
    made: dict = {}
    exec(text, made)
    with pytest.raises(BadInput, match=told):
        getattr(fl, kind)("wrong")(made["f"])


def test_a_leave_one_out_takes_what_its_rule_takes():
    for twin in (lambda rows: rows, lambda rows, *, other=1: rows):
        with pytest.raises(
            BadInput, match="its leave_one_out cannot be called with one argument and scale by name"
        ):
            fl.rule("loo", leave_one_out=twin)(lambda updates, *, scale=1.0: updates[0])
    try:
        fl.rule("loo", leave_one_out=lambda rows, **known: rows)(lambda updates, *, q=1: updates[0])
    finally:
        rules.remove("loo")


def test_true_false_and_none_are_values():
    def one(updates, *, flag=False, q=None):
        return flag, q

    for text, values in (
        ("flag=true", {"flag": True}), ("flag=False", {}), ("q=None", {}), ("q=3", {"q": 3}),
    ):  # fmt: skip
        assert chosen("rule 'one'", one, text) == values
    with pytest.raises(BadInput, match="flag is '7'; give true or false"):
        chosen("rule 'one'", one, "flag=7")


def test_any_default_is_let_in_and_what_cannot_be_typed_is_chosen_in_code():
    ones, three = np.ones(2), np.int64(3)

    def one(updates, *, a=float("nan"), b=ones, c=three, d=float("inf"), e=(1, 2)):
        return a, b, c, d, e

    assert chosen("rule 'one'", one, "c=4,a=2,d=1") == {"a": 2.0, "c": 4, "d": 1.0}
    for typed in ("b=3", "e=1"):
        with pytest.raises(BadInput, match="by default, which is chosen in code alone"):
            chosen("rule 'one'", one, typed)
