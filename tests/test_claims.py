"""Claims in words: what holds, what fails, and when neither can be said."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltrust_repro import claims
from fltrust_repro.claims import CLAIMS
from fltrust_repro.experiments import available, load_experiment
from fltrust_repro.settings import Setting
from fltrust_repro.training import TrialResult
from fltrust_repro.trials import Trial


def trials(errors, lowest=None, loss=(2.0, 1.0), **notes) -> list[Trial]:
    return [
        Trial(
            Setting(dataset="digits"),
            10 + k,
            TrialResult(
                error, error if lowest is None else lowest, 500, False, 1.0,
                [(10, error, loss[0]), (500, error, loss[1])], 0, notes,
            ),
            "cpu", "", "", "1",
        )
        for k, error in enumerate(errors)
    ]  # fmt: skip


def around(mean: float, spread: float = 0.002) -> list[Trial]:
    return trials([mean - spread, mean, mean + spread])


def verdict(start: str, cells) -> str:
    [one] = [one for one in CLAIMS if one.text.startswith(start)]
    [(_, word, _)] = claims.judge([one], claims.Numbers(cells))
    return word


def figure(name: str, row: str, means) -> dict:
    columns = load_experiment(name).columns
    return {(name, row, column): around(mean) for column, mean in zip(columns, means)}


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((0.13, 0.14, 0.15, 0.17, 0.20), "holds"),
        ((0.13, 0.13, 0.13, 0.17, 0.20), "holds"),
        ((0.13, 0.141, 0.140, 0.17, 0.20), "holds"),  # within the intervals
        ((0.13, 0.60, 0.15, 0.17, 0.20), "fails"),  # its ends rise, it does not
        ((0.13, 0.14, 0.10, 0.17, 0.20), "fails"),
        ((0.13, 0.14, 0.15, 0.20, 0.17), "fails"),
        ((0.15, 0.15, 0.15, 0.15, 0.15), "fails"),
        ((0.20, 0.17, 0.15, 0.14, 0.13), "fails"),
    ],
)
def test_a_line_rises_by_all_of_its_points(means, expected):
    rising = {**figure("figure5c", "partial", means), **figure("figure5c", "full", means)}
    assert verdict("Error rates rise as more iterations", rising) == expected
    falling = figure("figure5a", "partial", (means[-1], *means[::-1]))
    assert verdict("Our attack is less effective as more", falling) == expected


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_a_line_that_rises_does_not_fall_and_sorted_means_never_do(means, rng: random.Random):
    points = [[mean - 0.01 * rng.random(), mean, mean + 0.01] for mean in means]
    assert not (claims.rises(points) and claims.rises(points[::-1]))
    assert claims.never_falls(sorted(points, key=sum))


@pytest.mark.parametrize(
    ("attacked", "expected"),
    [(0.55, "fails"), (0.57, "holds"), (0.70, "holds"), (0.83, "holds"), (0.85, "fails")],
)
def test_around_four_hundred_percent_is_a_range_with_two_ends(attacked, expected):
    cells = {
        ("table2a", "krum", "no-attack"): around(0.14),
        ("table2a", "krum", "partial"): around(attacked),
    }
    assert verdict("Partial knowledge raises Krum's", cells) == expected


@pytest.mark.parametrize(
    ("start", "row", "other", "printed"),
    [
        ("240 poisoned", ("section44", "centralized-clean", "mnist-6000-lr"),
         ("section44", "centralized-bga", "mnist-6000-lr"), 0.6),
        ("Distributed uniformly", ("table5", "mean", "no-attack"),
         ("table5", "mean", "uniform"), 0.5),
        ("The Krum attack still raises Krum's", ("table6", "krum-lfr", "no-attack"),
         ("table6", "krum-lfr", "krum"), 3.14),
    ],
)  # fmt: skip
def test_a_printed_increase_is_missed_by_too_little_and_by_too_much(start, row, other, printed):
    def found(increase):
        return verdict(start, {row: around(0.1), other: around(0.1 * (1 + increase))})

    assert [found(printed * share) for share in (0.7, 0.8, 1, 1.2, 1.3)] == [
        "fails", "holds", "holds", "holds", "fails",
    ]  # fmt: skip


def test_the_best_models_increases_are_of_the_lowest_error_rates():
    lowest = {"krum": (0.1, 0.69), "trimmed-mean": (0.06, 0.12), "median": (0.06, 0.11)}
    cells = {
        ("table3", rule, column): trials([0.9, 0.9, 0.9], lowest=value)
        for rule, values in lowest.items()
        for column, value in zip(("no-attack", "partial"), values)
    }
    assert verdict("With the best model kept", cells) == "holds"
    cells["table3", "median", "partial"] = trials([0.9] * 3, lowest=0.3)  # +400%, not +83%
    assert verdict("With the best model kept", cells) == "fails"


def breast_cancer(plain, attacked_krum, attacked_median) -> str:
    cells = {}
    for rule, attacked in (("krum", attacked_krum), ("median", attacked_median)):
        cells["table2e", rule, "no-attack"] = around(plain)
        for column in ("partial", "full"):
            cells["table2e", rule, column] = around(attacked)
    return verdict("On Breast Cancer, Krum is comparable", cells)


def test_comparable_under_an_attack_needs_an_attack_that_works():
    assert breast_cancer(0.03, 0.17, 0.18) == "holds"
    assert breast_cancer(0.03, 0.03, 0.03) == "fails"
    assert breast_cancer(0.03, 0.03, 0.06) == "fails"
    assert breast_cancer(0.03, 0.25, 0.17) == breast_cancer(0.03, 0.17, 0.25) == "fails"


def test_an_attack_transfers_to_no_rule_only_if_it_works_on_its_own():
    cells = {
        ("table4", row, rule): around(0.14)
        for row in ("no-attack", "trimmed-mean-attack")
        for rule in ("krum", "trimmed-mean")
    }
    assert verdict("The trimmed mean attack does not transfer", cells) == "fails"
    cells["table4", "trimmed-mean-attack", "trimmed-mean"] = around(0.25)
    assert verdict("The trimmed mean attack does not transfer", cells) == "holds"


def test_no_notable_impact_has_two_ends():
    for change, expected in ((0.02, "holds"), (-0.02, "holds"), (0.04, "fails"), (-0.04, "fails")):
        cells = {
            ("table2a", rule, column): around(mean)
            for rule in ("krum", "trimmed-mean", "median")
            for column, mean in (("no-attack", 0.14), ("gaussian", 0.14 + change))
        }
        assert verdict("Gaussian attacks have no", cells) == expected


def test_a_training_loss_that_ends_low_but_rose_meanwhile_does_not_fall():
    def found(middle):
        cells = {}
        for rule in ("krum", "trimmed-mean", "median"):
            for column in ("partial", "full"):
                curves = [[(10, 0.5, 2.0 + k), (20, 0.5, middle + k), (30, 0.5, 1.0 + k)]
                          for k in (0, 0.01, 0.02)]  # fmt: skip
                cells["table2a", rule, column] = [
                    replace(trial, result=replace(trial.result, curve=curve))
                    for trial, curve in zip(around(0.5), curves)
                ]
        return verdict("The training error still falls", cells)

    assert found(1.5) == "holds"
    assert found(3.0) == "fails"
    assert found(math.inf) == found(math.nan) == "fails"


def test_no_claim_is_judged_by_fewer_than_three_trials():
    """One cell short of trials, or without any, is enough to leave a claim open."""
    tables = [load_experiment(name) for name in available() if not name.startswith("readings")]
    cells = [(table.name, cell.row, cell.column) for table in tables for cell in table.cells]
    three = {cell: trials([0.3, 0.31, 0.32], **{"direction agreement": 0.5}) for cell in cells}
    assert {word for _, word, _ in claims.judge(CLAIMS, claims.Numbers(three))} == {
        "holds", "fails",
    }  # fmt: skip
    for n in (1, 2):
        few = {cell: some[:n] for cell, some in three.items()}
        judged = claims.judge(CLAIMS, claims.Numbers(few))
        assert {word for _, word, _ in judged} == {"too few trials"}
        assert all(f"has {n} of at least 3 trials" in told for _, _, told in judged)
    for one in CLAIMS:
        asked = Asked(three)
        claims.judge([one], claims.Numbers(asked))
        looked_up = {cell for cell in asked.cells if leaves_open(one, three, cell)}
        assert len(looked_up) >= 2, one.text


class Asked(dict):
    """Trials by cell, and which cells were asked for."""

    def __init__(self, trials):
        super().__init__(trials)
        self.cells = set()

    def get(self, cell, default=None):
        """Return the trials of a cell that is asked for."""
        self.cells.add(cell)
        return super().get(cell, default)


def leaves_open(one: claims.Claim, three, cell) -> bool:
    fewer = claims.Numbers({**three, cell: three[cell][:2]})
    [(_, word, evidence)] = claims.judge([one], fewer)
    assert (word == "too few trials") == (", ".join(cell) in evidence)
    return word == "too few trials"


def test_verdicts_are_counted_in_one_order():
    def judged(*words):
        return [(CLAIMS[0], word, "") for word in words]

    words = ("not measured", "fails", "holds", "too few trials", "holds")
    assert claims.counted(judged(*words)) == "2 hold, 1 fails, 1 too few trials, 1 not measured"
