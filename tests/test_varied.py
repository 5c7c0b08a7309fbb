"""What figures vary, and which rules and attacks read it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attack, attacks
from fltrust_repro.errors import BadInput, BeyondLimit
from fltrust_repro.experiments import figure_of, grid_of
from fltrust_repro.settings import FIELDS, Setting
from fltrust_repro.threat import Master, Parameters, Round
from fltrust_repro.training import run_trial
from fltrust_repro.varied import VARIED, Axis, axis, setting_at, varied

SMALL = {"dataset": "digits", "workers": 10, "compromised": 2, "iterations": 2}


def test_every_number_of_a_setting_can_be_varied_by_the_name_of_its_option():
    numbers = [f.name for f in FIELDS.values() if f.type.startswith(("int", "float"))]
    assert len(numbers) > 15
    for name in numbers:
        assert varied(name.replace("_", "-")).field == name
        assert varied(name).field == name
    assert varied("m").fields(50, {}) == {"workers": 50, "compromised": 10}
    assert varied("workers").fields(50, {}) == {"workers": 50}  # alone
    assert varied("non-iid") is varied("p") is VARIED["p"]


OTHER = {"beta": 5, "epsilon": 50.0, "b": 9.0}


def crafted(name: str, knowledge: str, goal: str, **changed) -> np.ndarray:
    """What an attack on the median sends in its first iteration."""
    c, m, d = 3, 12, 30
    rng = np.random.default_rng(0)
    known = rng.normal(0.1, 1, size=(c if knowledge == "partial" else m, d)).astype(np.float32)
    master = Master(m, c, changed.pop("beta", c), rules["median"])
    root = known.mean(axis=0) if attacks[name].asks else None
    told = knowledge, np.random.default_rng(1), master, Parameters(goal=goal, **changed)
    w_re = np.ones(d, np.float32)
    return attacks[name].crafted(Round(known, c, w_re, *told, Counter(), {}, root))


@pytest.mark.parametrize("name", [name for name in attacks if attacks[name].craft is not None])
def test_what_changes_what_an_attack_sends_is_varied_for_it(name):
    for knowledge, goal in (("full", "directed-deviation"), ("partial", "directed-deviation"),
                            ("full", "deviation")):  # fmt: skip
        if knowledge == "partial" and not attacks[name].has_knowledge:
            continue
        told = {"attack": name, "knowledge": knowledge, "goal": goal, "root_size": 10}
        one = Setting.from_dict({**SMALL, "rule": "median", **told})
        usual = crafted(name, knowledge, goal)
        for field, other in OTHER.items():
            if not varied(field).is_read_by(one):
                same = crafted(name, knowledge, goal, **{field: other})
                np.testing.assert_array_equal(same, usual, f"{field}, {knowledge}, {goal}")


@settings(max_examples=15)
@given(
    rule=st.sampled_from(["krum", "trimmed-mean", "median", "mean", "bulyan", "multi-krum"]),
    name=st.sampled_from(["none", "gaussian", "label-flip", "krum", "trimmed-mean", "alie"]),
    knowledge=st.sampled_from(["full", "partial"]),
    field=st.sampled_from(["beta", "epsilon", "b"]),
)
def test_what_is_not_read_changes_no_number(rule, name, knowledge, field):
    told = {**SMALL, "rule": rule, "attack": name, "knowledge": knowledge}
    one = Setting.from_dict(told)
    other = Setting.from_dict({**told, field: {**OTHER, "beta": 4}[field]})
    if not varied(field).is_read_by(one):
        assert run_trial(one, 3).curve == run_trial(other, 3).curve


def test_what_is_read_changes_numbers():
    for field, rule, values in (("beta", "trimmed-mean", (2, 4)), ("epsilon", "krum", (0.01, 50))):
        told = {**SMALL, "iterations": 20, "rule": rule, "attack": rule}
        one, other = (Setting.from_dict({**told, field: value}) for value in values)
        assert varied(field).is_read_by(one)
        assert run_trial(one, 3).curve != run_trial(other, 3).curve


def test_of_a_plug_ins_attack_anything_is_read():
    @attack("looks-at-everything")
    def everything(step):
        return step.known[: step.c] * step.parameters.epsilon

    try:
        one = Setting.from_dict({**SMALL, "rule": "median", "attack": "looks-at-everything"})
        assert all(varied(field).is_read_by(one) for field in OTHER)
    finally:
        attacks.remove("looks-at-everything")


def columns_of(rule: str, line: dict, vary: str, values: list, **more) -> list[Setting]:
    figure = figure_of("f", "", "", {**SMALL, **more}, {rule: {"rule": rule}}, {"l": line}, vary,
                       values)  # fmt: skip
    return list(figure.settings)


def test_a_line_that_does_not_read_it_is_one_setting_the_given_one():
    given_ = Setting.from_dict({**SMALL, "rule": "krum", "attack": "gaussian"})
    line = {"attack": "gaussian"}
    assert columns_of("krum", line, "beta", [3, 4]) == [given_] * 2
    assert columns_of("krum", line, "epsilon", [0.5, 1.0, 2.0]) == [given_] * 3
    assert len({*columns_of("trimmed-mean", line, "beta", [3, 4])}) == 2
    assert columns_of("krum", line, "poisoned_share", [0.1, 0.2]) == [given_] * 2
    assert columns_of("krum", line, "root_size", [10, 20]) == [given_] * 2
    natural = columns_of("krum", line, "p", [0.1, 0.2], dealing="sorted")
    assert natural[0] == natural[1]


def test_a_line_keeps_its_key_and_so_its_trials():
    figure = figure_of("f", "", "", {}, {"krum": {"rule": "krum"}}, {"n": {"attack": "none"}},
                       "beta")  # fmt: skip
    assert {one.key() for one in figure.settings} == {Setting(rule="krum").key()}


def test_what_is_level_or_left_out_is_told():
    panels = {name: {"rule": name} for name in ("krum", "trimmed-mean")}
    lines = {"none": {"attack": "none"}, "flip": {"attack": "label-flip"}}
    for vary, where in (("root-bias", "krum; trimmed-mean"), ("epsilon", "krum; trimmed-mean"),
                        ("poisoned-fraction", "krum: none; trimmed-mean: none")):  # fmt: skip
        (told,) = figure_of("f", "", "", SMALL, panels, lines, vary, [0.1, 0.2]).notes
        assert told == f"Nothing reads {vary} in {where}: it is not varied there."
    figure = figure_of("f", "", "", SMALL, panels, lines, "beta", [2, 3])
    assert figure.notes == ("Nothing reads beta in krum: it is not varied there.",)
    figure = figure_of("f", "", "", SMALL, {"bulyan": {"rule": "bulyan"}}, lines, "c", [0, 1, 3, 4])
    assert [cell.column for cell in figure.cells] == ["c = 0", "c = 1"] * 2
    out, origin = figure.notes
    assert out.startswith("Left out: bulyan at c = 3, 4: rule 'bulyan' needs m - 4c >= 1, but")
    assert origin == "At c = 0 no worker is compromised, and nobody attacks."
    with pytest.raises(
        BadInput, match=r"no point is left\. Left out: bulyan at c = 3: rule 'bulya"
    ):
        figure_of("f", "", "", SMALL, {"bulyan": {"rule": "bulyan"}}, lines, "c", [3])
    only = {"krum": {"rule": "krum", "attack": "krum"}}
    lines = {"none": {"attack": "none"}, "full": {"knowledge": "full"}}
    told = figure_of(
        "f", "", "", {**SMALL, "workers": 5, "compromised": 1}, only, lines, "c", [1, 2]
    )
    assert told.notes[0].startswith("Left out: full at c = 2: attack 'krum' needs m - 2c - 1 >= 1")


def test_a_value_that_no_rule_can_have_is_refused_and_not_left_out():
    with pytest.raises(BadInput, match=r"column 'c = 5': compromised is 5") as refused:
        columns_of("krum", {"attack": "gaussian"}, "c", [1, 5])
    assert not isinstance(refused.value, BeyondLimit)


def test_without_compromised_workers_nobody_attacks():
    at = columns_of("median", {"attack": "trimmed-mean", "knowledge": "full"}, "c", [0, 1])
    assert at[0] == Setting.from_dict({**SMALL, "rule": "median", "compromised": 0})
    assert at[1].attack == "trimmed-mean"
    # A single worker that holds poisoned examples is centralized learning (4.4).
    alone = {"attack": "back-gradient"}
    (one,) = columns_of("mean", alone, "c", [0], workers=1)
    assert (one.attack, one.workers) == ("back-gradient", 1)


def test_an_own_parameter_is_whole_by_its_default_or_annotation():
    whole = ("multi-krum:q", "bucketing:size", "tailored:queries", "fldetector:window")
    assert all(varied(name).is_whole for name in whole)
    others = ("clip:radius", "alie:z", "gas:base", "centered-clipping:tau")
    assert not any(varied(name).is_whole for name in others)
    for wrong in ("multi-krum:p", "median:q"):
        with pytest.raises(BadInput):
            varied(wrong)


def test_own_parameters_are_varied_where_something_has_them():
    q = varied("multi-krum:q")
    assert q.fields(5, {"rule": "multi-krum"}) == {"rule": "multi-krum:q=5"}
    assert q.fields(5, {"rule": "krum", "attack": "krum"}) == {}
    assert varied("clip:radius").fields(2, {"pre": "nnm+clip"}) == {"pre": "nnm+clip:radius=2"}
    assert varied("alie:z").fields(1.5, {"attack": "alie:side=above"}) == {
        "attack": "alie:side=above,z=1.5"
    }
    panels = {name: {"rule": name} for name in ("multi-krum", "median")}
    figure = figure_of(
        "f", "", "", SMALL, panels, {"n": {"attack": "none"}}, "multi-krum:q", [3, 5]
    )
    assert [one.rule for one in figure.settings] == [
        "multi-krum:q=3", "multi-krum:q=5", "median", "median",
    ]  # fmt: skip
    assert figure.columns == ("multi-krum:q = 3", "multi-krum:q = 5")
    with pytest.raises(BadInput, match=r"krum has no parameter 'q'; choose one of power"):
        varied("krum:q")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, unique=True))
def test_values_that_print_alike_stay_apart(values):
    one = Axis(VARIED["p"], tuple(values))
    assert len({*one.columns}) == len(values)


def test_labels_have_no_more_digits_than_needed():
    assert axis("p", [0.5, 0.5000001]).columns == ("p = 0.5", "p = 0.5000001")
    assert axis("p", [0.1, 1 / 3]).columns == ("p = 0.1", "p = 0.333333")
    assert axis("c").columns[0] == "c = 5"


def test_a_grid_has_a_row_per_map_and_value_and_leaves_out_what_no_limit_allows():
    panels = {"trimmed-mean": {"rule": "trimmed-mean"}, "krum": {"rule": "krum"}}
    lines = {"none": {"attack": "none"}, "flip": {"attack": "label-flip"}}
    grid = grid_of("g", "", "", SMALL, panels, lines, axis("c", [1, 2, 3]), axis("beta", [2, 4]))
    assert grid.columns == ("c = 1", "c = 2", "c = 3")
    assert grid.rows[:3] == (
        "trimmed-mean: none, beta = 2", "trimmed-mean: none, beta = 4",
        "trimmed-mean: flip, beta = 2",
    )  # fmt: skip
    of = {(cell.row, cell.column): cell.setting for cell in grid.cells}
    assert ("trimmed-mean: none, beta = 2", "c = 3") not in of
    assert of["trimmed-mean: none, beta = 4", "c = 3"].beta == 4
    # Krum reads no beta, and its limit is the same for both.
    assert of["krum: flip, beta = 2", "c = 1"] == of["krum: flip, beta = 4", "c = 1"]
    told, unread = grid.notes
    assert unread == "Nothing reads beta in krum: it is not varied there."
    assert told.startswith("Left out: trimmed-mean, beta = 2 at c = 3: beta is 2; it must be")
    assert grid.maps["krum: flip"] == "g-krum-flip"


def test_of_what_limits_leave_nothing_of_there_is_no_map_and_no_cell_to_choose():
    rules = {"bulyan": {"rule": "bulyan"}, "mean": {"rule": "mean"}}
    digits = {"dataset": "digits", "workers": 10}
    made = grid_of(
        "g", "sweep", "G", digits, rules, {"none": {"attack": "none"}}, axis("p", [0.5]),
        axis("c", [4]),
    )  # fmt: skip
    assert list(made.maps) == ["mean: none"]
    with pytest.raises(BadInput, match="has no cell there"):
        made.choose([row for row in made.rows if row.startswith("bulyan")] or ["bulyan: none"])


def test_a_point_that_a_limit_forbids_keeps_its_error():
    point = {axis("c", [3]): 3}
    with pytest.raises(BeyondLimit, match="bulyan"):
        setting_at({**SMALL, "rule": "bulyan"}, point)


def test_values_are_in_order_however_they_are_typed():
    assert axis("learning-rate", [1, 0.01, 0.3, 0.1]).values == (0.01, 0.1, 0.3, 1)
