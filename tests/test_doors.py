"""Where a user's arrays come in: any array of numbers is taken, and nothing else, for one door."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fltrust_repro as fl
from fltrust_repro import backend
from fltrust_repro.aggregation import (
    WithoutEach,
    bulyan,
    krum,
    mean,
    median,
    rule,
    rules,
    trimmed_mean,
)
from fltrust_repro.attacks import attack, attacks
from fltrust_repro.backend import mx, nd
from fltrust_repro.defenses import Suspicion
from fltrust_repro.distances import squared_distances
from fltrust_repro.doors import LentArray, Limit, as_numbers, as_updates
from fltrust_repro.errors import BadInput
from fltrust_repro.kernels import mean_around_median, middle_mean, middle_means_without
from fltrust_repro.server import ServerState
from fltrust_repro.settings import Setting
from fltrust_repro.threat import Attack, Master, Round
from fltrust_repro.training import run_trial

VALUES = np.array([[1], [2], [4], [5], [3], [90], [7], [6], [8]])
DTYPES = ["float64", "float16", "int32", "int64", "uint8", "int8"]
RULES = ["mean", "krum", "bulyan", "trimmed-mean", "median"]
NO_MATRIX = {
    "a vector": np.ones(5),
    "three dimensions": np.ones((5, 2, 2)),
    "no rows": np.ones((0, 3)),
    "no columns": np.ones((5, 0)),
    "truth values": np.ones((5, 2)) > 0,
    "complex": np.ones((5, 2)) * 1j,
    "text": np.array([["a"], ["b"], ["c"]]),
    "nothing": None,
    "a ragged list": [[1, 2], [3], [4]],
    "a number": 3.0,
    "objects": np.array([[1], [None], [3]]),
    "an NDArray of one dimension": nd.ones(4),
}


SEVEN = np.random.default_rng(0).standard_normal((7, 3))


def a_round(known=SEVEN, c=2, w_re=None, knowledge="full", seed=0):
    w_re = np.zeros(np.shape(known)[1]) if w_re is None else w_re
    master = Master(12, c, c, rules["median"])
    return Round(known, c, w_re, knowledge, np.random.default_rng(seed), master)


@pytest.fixture
def register(monkeypatch):
    """Registers rules and attacks that are gone after the test."""
    for registry in (rules, attacks):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    return {"rule": rule, "attack": attack}


# --- updates


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("make", [lambda v, t: nd.array(v, dtype=t), lambda v, t: v.astype(t)])
def test_every_rule_takes_every_type_of_number(name, dtype, make):
    expected = rules[name](nd.array(VALUES), c=1).asnumpy()
    given = make(VALUES, dtype)
    out = rules[name](given, c=1)
    assert isinstance(out, type(given))
    np.testing.assert_array_equal(as_numbers(out, (1,), "test", "it"), expected)


def test_a_list_is_taken_and_a_numpy_array_stays_as_it_was():
    assert median([[1], [2], [9]]).tolist() == [2]
    given = np.float32([[1], [2], [9]])
    trimmed_mean(given, beta=1)
    assert given.flags.writeable
    assert given.tolist() == [[1], [2], [9]]


def test_numbers_beyond_float32_count_as_infinite():
    assert np.isinf(mean(np.array([[1e300], [1.0]]))).all()
    assert median(np.array([[1e300], [1.0], [2.0]])).tolist() == [2]


@pytest.mark.parametrize("what", NO_MATRIX)
@pytest.mark.parametrize(
    "use",
    [
        mean,
        median,
        lambda u: krum(u, c=1),
        lambda u: bulyan(u, c=1),
        lambda u: trimmed_mean(u, beta=1),
        lambda u: rules["krum"].without_each(u, c=1),
        squared_distances,
        lambda u: middle_mean(u, 0, 1),
        lambda u: middle_means_without(u, 0, 1),
        lambda u: mean_around_median(u, np.arange(1), 1),
        lambda u: a_round(u, 1, w_re=np.ones(3)),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused_by_name(use, what):
    with pytest.raises(BadInput, match=r"must be numbers of shape \(m, d\), not "):
        use(NO_MATRIX[what])


def test_memory_of_another_type_is_never_read_as_float32():
    with pytest.raises(BadInput, match="float64"):
        backend.host_view(nd.ones(3, dtype="float64"))


# --- limits, at each call


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda u: krum(u, c=9), "m - c - 2 >= 1"),
        (lambda u: krum(u, c=8), "m - c - 2 >= 1"),
        (lambda u: krum(u, -3), "c is -3"),
        (lambda u: krum(u, 1.5), "c is 1.5"),
        (lambda u: bulyan(u, c=4), "m - 4c >= 1"),
        (lambda u: bulyan(u, c=3), "m - 4c >= 1"),
        (lambda u: trimmed_mean(u, 5), "m - 2 beta >= 1"),
        (lambda u: trimmed_mean(u, beta=-1), "beta is -1"),
        (lambda u: trimmed_mean(u, 7), "m - 2 beta >= 1"),
        (lambda u: rules["trimmed-mean"](u, c=5), "m - 2 beta >= 1"),
        (lambda u: rules["krum"].without_each(u, c=9), "m - c - 2 >= 1"),
        (lambda u: middle_mean(u, 3, 3), "ranks"),
        (lambda u: middle_mean(u, 0, 11), "ranks"),
        (lambda u: middle_means_without(u, 0, 10), "ranks"),
        (lambda u: mean_around_median(u, np.arange(4), 5), "ranks"),
        (lambda u: mean_around_median(u, np.array([3, 10]), 1), "rows"),
        (lambda u: mean_around_median(u, np.array([3, -1]), 1), "rows"),
    ],
)
def test_limits_hold_for_every_call(use, message):
    with pytest.raises(BadInput, match=message):
        use(np.float32(np.random.default_rng(0).standard_normal((10, 3))))


@pytest.mark.parametrize("value", [lambda m, c, beta: 1 // 0, lambda m, c, beta: sys.exit(0), None])
def test_a_limit_that_cannot_be_computed_is_one_sentence(value):
    limit = Limit("m", value)
    with pytest.raises(BadInput, match="the limit of rule 'mine' cannot be computed"):
        limit.check("rule 'mine'", 5, 1, 1)


@pytest.mark.parametrize("kind", ["rule", "attack"])
def test_what_is_no_limit_is_told_when_it_is_given(kind):
    register = {"rule": rule, "attack": attack}[kind]
    with pytest.raises(BadInput, match=f"{kind} 'mine': its limit is .*give a Limit, as fl.Limit"):
        register("mine", limit=lambda m, c, beta: m - 2 * c)(lambda given: given)


@pytest.mark.parametrize(
    ("register", "kind"),
    [
        (rule, "rule"), (attack, "attack"), (fl.defense, "defense"), (fl.model, "model"),
        (fl.dataset, "data set"), (fl.preaggregation, "pre-aggregation"),
    ],
)  # fmt: skip
def test_a_decorator_without_a_name_is_told(register, kind):
    def mine(given):
        return given

    with pytest.raises(BadInput, match=f'a {kind} is registered without a name; .*"my-name".*mine'):
        register(mine)
    with pytest.raises(BadInput, match=f"a {kind} has the name 3"):
        register(3)


@pytest.mark.parametrize("seed", [-1, 2**31, 1.5, "a", True, None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(BadInput, match=r"seed is .*; give a whole number from 0 to 2,147,483,647"):
        run_trial(Setting(dataset="digits", workers=4, compromised=1, iterations=1), seed)
    with pytest.raises(BadInput, match="attack 'gaussian': seed is"):
        attacks["gaussian"](VALUES, c=2, seed=seed)


def test_a_trials_device_is_one_that_there_is(monkeypatch):
    setting = Setting(dataset="digits", workers=4, compromised=1, iterations=1)
    with pytest.raises(BadInput, match="device is 'x'; choose cpu, gpu or auto"):
        run_trial(setting, 0, device="x")
    monkeypatch.setattr(backend, "gpu_count", lambda: 2)
    with pytest.raises(BadInput, match="gpu is -1; give a number from 0 to 1"):
        run_trial(setting, 0, device="gpu", gpu=-1)
    with pytest.raises(BadInput, match="gpu is 2; give a number from 0 to 1"):
        run_trial(setting, 0, device="auto", gpu=2)


def test_beta_is_c_unless_given():
    updates = np.arange(10.0).reshape(-1, 1) ** 2
    assert rules["trimmed-mean"](updates, c=2) == trimmed_mean(updates, beta=2)
    assert rules["trimmed-mean"](updates, c=2, beta=4) == trimmed_mean(updates, beta=4)


def test_a_rules_own_defaults_hold_when_it_is_called_by_its_name(register):
    seen = []

    @register["rule"]("mine")
    def mine(updates, c=1, beta=2):
        seen.append((c, beta))
        return updates[0]

    updates = np.ones((9, 2))
    for call in (lambda: mine(updates), lambda: mine(updates, beta=3), lambda: mine(updates, 2)):
        call()
    assert seen == [(1, 2), (1, 3), (2, 2)]


@pytest.mark.parametrize(
    "name",
    ["leverage", "centered-clipping", "foolsgold", "fldetector", "signguard:similarity=cosine"],
)
def test_a_state_is_of_updates_of_one_length(name):
    state = ServerState()
    rules[name](np.eye(6, 50), c=1, state=state)
    with pytest.raises(BadInput, match=r"d = 50, these have d = 400; give it a new ServerState"):
        rules[name](np.eye(6, 400), c=1, state=state)
    with pytest.raises(BadInput, match="new ServerState"):
        rules[name].seen_at(state)(np.eye(6, 400), c=1)


def test_a_centre_of_another_length_is_refused():
    state = ServerState(memory={"centre": np.zeros(2, np.float32)})
    with pytest.raises(BadInput, match=r"its centre must be numbers of shape \(3,\)"):
        rules["centered-clipping"](np.eye(3), c=0, state=state)


def test_a_leave_one_out_that_changes_its_input_changes_a_copy(register):
    def without(updates):
        updates[:] = 0
        return WithoutEach(updates, np.arange(len(updates)))

    rule("mine", leave_one_out=without)(lambda updates: updates[0])
    updates = nd.ones((4, 2))
    rules["mine"].without_each(updates, c=1)
    assert (updates.asnumpy() == 1).all()


# --- what a plug-in's rule or attack gives back

LIKE_A_RESULT = {
    "numpy": lambda row: row,
    "float64": lambda row: row.astype("float64"),
    "a list": lambda row: row.tolist(),
    "an NDArray": lambda row: nd.array(row),
    "an NDArray of float64": lambda row: nd.array(row, dtype="float64"),
    "mx.np": lambda row: nd.array(row).as_np_ndarray(),
}
UNLIKE = {
    "a scalar": lambda row: row.sum(),
    "one number": lambda row: row[:1],
    "a number less": lambda row: row[1:],
    "a matrix of one row": lambda row: row.reshape(1, -1),
    "a column": lambda row: row.reshape(-1, 1),
    "nothing": lambda row: None,
    "text": lambda row: "median",
    "a float64 NDArray of one row": lambda row: nd.array(row.reshape(1, -1), dtype="float64"),
}


@pytest.mark.parametrize("like", LIKE_A_RESULT)
def test_a_rule_may_return_any_array_of_d_numbers(register, like):
    register["rule"]("mine")(lambda u: LIKE_A_RESULT[like](u.asnumpy()[1]))
    out = rules["mine"](nd.array([[1, 2, 3], [4, 5, 6]]), c=0)
    assert isinstance(out, nd.NDArray)
    assert out.dtype == np.float32
    assert out.asnumpy().tolist() == [4, 5, 6]


@pytest.mark.parametrize("unlike", UNLIKE)
def test_what_a_rule_returns_is_checked(register, unlike):
    register["rule"]("mine")(lambda u: UNLIKE[unlike](u.asnumpy()[1]))
    message = r"rule 'mine' \(test_doors.py, line \d+\): its result must be numbers of shape \(3,\)"
    with pytest.raises(BadInput, match=message):
        rules["mine"](nd.array([[1, 2, 3], [4, 5, 6]]), c=0)


@pytest.mark.parametrize("like", ["numpy", "float64", "a list", "an NDArray of float64"])
def test_an_attack_may_send_any_array_of_c_rows(register, like):
    rows = np.float32([[1, 2, 3], [4, 5, 6]])
    register["attack"]("mine")(lambda step: LIKE_A_RESULT[like](rows))
    out = attacks["mine"].crafted(a_round())
    assert type(out) is np.ndarray
    assert out.dtype == np.float32
    assert out.tolist() == rows.tolist()


@pytest.mark.parametrize(
    "sent", [np.ones(3), np.ones((1, 3)), np.ones((7, 3)), np.ones((2, 2)), 1.0, None, "text"]
)
@pytest.mark.parametrize("by_decorator", [True, False])
def test_what_an_attack_sends_is_checked(register, sent, by_decorator):
    if by_decorator:
        register["attack"]("mine")(lambda step: sent)
    else:
        attacks.add("mine", Attack("mine", craft=lambda step: sent))
    with pytest.raises(BadInput, match=r"attack 'mine' \(test_doors.py, line \d+\).*\(2, 3\)"):
        attacks["mine"].crafted(a_round())


@pytest.mark.parametrize(
    ("rows", "c", "knowledge"), [(5, 0, "full"), (5, 5, "full"), (3, 2, "partial"), (3, 4, "full")]
)
def test_a_round_whose_numbers_do_not_fit_is_refused(rows, c, knowledge):
    with pytest.raises(BadInput, match=f"c is {c}, but {rows} updates are known"):
        a_round(np.ones((rows, 4)), c, knowledge=knowledge)


def test_the_received_model_has_to_fit_the_updates():
    with pytest.raises(BadInput, match=r"received model must be numbers of shape \(4,\)"):
        a_round(np.ones((9, 4)), w_re=np.zeros(5))


# --- user code that changes what it is given

SMALL = {
    "dataset": "digits",
    "workers": 10,
    "compromised": 2,
    "iterations": 12,
    "attack": "trimmed-mean",
}


def in_place(updates):
    """Sorts where it stands, as the quickest trimmed mean to write does."""
    updates.sort(axis=0)
    return updates[2:-2].mean(axis=0)


def on_a_copy(updates):
    """The same on a copy."""
    return np.sort(updates.asnumpy(), axis=0)[2:-2].mean(axis=0)


@pytest.mark.parametrize(
    "fields", [{}, {"defense": "lfr"}, {"defense": "union"}, {"direction": "rule"}], ids=str
)
def test_a_rule_that_changes_its_input_gives_what_it_gives_on_a_copy(register, fields):
    register["rule"]("in-place")(in_place)
    register["rule"]("copied")(on_a_copy)
    curves = [
        run_trial(Setting.from_dict({"rule": name, **SMALL, **fields}), 0).curve
        for name in ("in-place", "copied")
    ]
    assert curves[0] == curves[1]


def test_an_attack_that_changes_what_it_knows_changes_nothing_else(register):
    def spoil(step):
        known = step.known.asnumpy()
        step.known[:] = 7
        step.w_re[:] = 7
        return -known[: step.c]

    register["attack"]("spoil")(spoil)
    register["attack"]("opposite")(lambda step: -step.known.asnumpy()[: step.c])
    curves = [
        run_trial(Setting(rule="median", **{**SMALL, "attack": name}), 0).curve
        for name in ("spoil", "opposite")
    ]
    assert curves[0] == curves[1]


def test_impacts_of_a_rule_that_changes_its_input(register):
    updates = np.random.default_rng(0).standard_normal((9, 4))

    def judge(models):
        sums = models.sum(axis=1)
        return sums, sums

    def impacts(function):
        register["rule"](function.__name__)(function)
        of = rules[function.__name__]
        rng = np.random.default_rng(0)
        case = Suspicion(nd.array(updates), nd.zeros(4), of, 2, 2, judge, rng)
        return case.impacts[0]

    np.testing.assert_array_equal(impacts(in_place), impacts(on_a_copy))


@given(st.integers(1, 4), st.integers(1, 3))
def test_float32_on_the_host_is_not_copied(m, d):
    for updates in (nd.ones((m, d)), np.ones((m, d), dtype=np.float32)):
        as_updates(updates, "test")[:] = 5
        assert (as_updates(updates, "test") == 5).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda v: np.asfortranarray(v),
        lambda v: np.repeat(v, 2, axis=1)[:, ::2],
        lambda v: v.astype(">f4"),
        lambda v: np.broadcast_to(v[:1], (4, 2)),
        lambda v: v.view(LentArray),
        lambda v: np.frombuffer(b"-" + v.tobytes(), np.float32, offset=1).reshape(4, 2),
        lambda v: nd.array(v).tostype("csr"),
    ],
)
def test_inside_an_array_lies_plainly_however_it_came(make):
    given = make(np.float32([[1, 2], [3, 4], [5, 6], [7, 8]]))
    inside = as_updates(given, "test")
    assert type(inside) is np.ndarray
    assert inside.dtype == np.float32
    assert inside.dtype.isnative
    assert inside.flags.carray
    np.testing.assert_array_equal(inside, np.asarray(getattr(given, "asnumpy", lambda: given)()))


def test_what_a_rule_keeps_of_its_result_is_its_own(register):
    memory = np.zeros(2, dtype=np.float32)

    @register["rule"]("momentum")
    def momentum(updates):
        nonlocal memory
        memory *= 0.9
        memory += updates.mean(axis=0)
        return memory

    for updates in (np.ones((4, 2), dtype=np.float32), nd.ones((4, 2))):
        first = rules["momentum"](updates, c=1)
        before = np.array(first.tolist() if isinstance(first, np.ndarray) else first.asnumpy())
        rules["momentum"](updates, c=1)
        np.testing.assert_array_equal(as_numbers(first, (2,), "test", "it"), before)


def test_a_plug_in_written_for_ndarrays_goes_on(register):
    register["rule"]("old")(lambda updates: nd.array(updates.asnumpy()).mean(axis=0))
    register["attack"]("old")(
        lambda step: nd.array(-step.known.asnumpy()[: step.c]) + 0 * nd.array(step.w_re.asnumpy())
    )
    updates = np.float32([[1, 2], [3, 4], [5, 6]])
    assert rules["old"](updates, c=1).tolist() == [3, 4]
    assert attacks["old"](updates, c=1).tolist() == [[-1, -2]]


def test_an_ndarray_goes_back_to_where_it_came_from():
    updates = nd.array([[1, 2], [3, 4], [5, 6]], ctx=mx.cpu(1))
    assert median(updates).ctx == mx.cpu(1)
    assert attacks["gaussian"](updates, c=1).ctx == mx.cpu(1)


# --- the package's own names, and attacks as functions


def printed(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_numpy_in_never_loads_mxnet():
    code = """
import sys, numpy as np, fltrust_repro as fl
from fltrust_repro.server import ServerState
updates = np.random.default_rng(0).standard_normal((12, 5))
for name in fl.rules:
    state = ServerState(root=updates[0], judge=lambda models: (models[:, 0], models[:, 1]))
    fl.rules[name](updates, c=2, state=state)
for knowledge in ("full", "partial"):
    fl.krum_attack(updates, c=2, knowledge=knowledge)
    fl.trimmed_mean_attack(updates, c=2, knowledge=knowledge)
fl.gaussian_attack(updates, c=2)
import fltrust_repro.training
print("mxnet" in sys.modules)
"""
    assert printed(code) == "False"


# --- attacks as functions


@pytest.mark.parametrize("name", ["krum", "trimmed-mean", "gaussian"])
@pytest.mark.parametrize("knowledge", ["full", "partial"])
def test_an_attack_is_a_function_of_all_updates(name, knowledge):
    updates = np.random.default_rng(0).standard_normal((12, 5))
    sent = attacks[name](updates, c=3, knowledge=knowledge, seed=4)
    assert type(sent) is np.ndarray
    partial = knowledge == "partial" and name != "gaussian"
    known = {"known": updates[:3], "knowledge": "partial"} if partial else {"known": updates}
    step = a_round(**known, c=3, seed=4)
    np.testing.assert_array_equal(sent, attacks[name].crafted(step))
    assert isinstance(attacks[name](nd.array(updates), c=3), nd.NDArray)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("label-flip", {"c": 2}, "crafts no updates"),
        ("none", {"c": 2}, "crafts no updates"),
        ("krum", {"c": 0}, "c is 0"),
        ("krum", {"c": 6}, "c is 6; .*less than half of m = 12"),
        ("krum", {"c": 5.0}, "c is 5.0"),
        ("krum", {"c": 2, "knowledge": "most"}, "knowledge is 'most'"),
        ("krum", {"c": 2, "epsilonn": 1.0}, "unknown parameter epsilonn; there are epsilon, b, "),
        ("krum", {"c": 2, "epsilon": -1}, "epsilon is -1"),
        ("krum", {"c": 2, "rule": "krumm"}, "unknown rule 'krumm'"),
        ("krum", {"c": 2, "w_re": np.zeros(4)}, "received model must be"),
    ],
)
def test_what_an_attack_as_a_function_refuses(name, fields, message):
    with pytest.raises(BadInput, match=message):
        attacks[name](np.ones((12, 5)), **fields)


def test_a_number_computed_of_a_lent_array_rounds_and_hashes_as_numpys_does():
    lent = np.float32([[1.25, 2.5], [3.75, 0.5]]).view(LentArray)
    assert round(lent.max(), 1) == 3.8
    assert {float(np.median(lent)): 1} == {np.median(lent): 1}
    many = np.array([2**60 + 1, 5]).view(LentArray)
    assert hash(many.max()) == hash(2**60 + 1)
    for call in (hash, round):
        with pytest.raises(ValueError, match="size 1"):
            call(lent)
