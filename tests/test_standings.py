"""The arena's statistics, on errors made up so that the right answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fltrust_repro import arena, arena_report, standings
from fltrust_repro.standings import KNOWS_C, NO_ATTACK, NO_C, SERVER_DATA, Cell, Entry

SEEDS = range(10, 30)


def cell(column: str, errors, first: int = 10, **others) -> Cell:
    return Cell(column, dict(enumerate(errors, first)), **others)


def entry(row: str, errors, clean=(0.1, 0.1, 0.1), league: str = KNOWS_C) -> Entry:
    cells = [cell(NO_ATTACK, clean), cell("hard", errors), cell("easy", [0.0] * len(errors))]
    return standings.entry(row, league, {one.column: one for one in cells})


def noise(seed: int, width: float = 0.05) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, width, len(SEEDS))


# ---- the column that decides --------------------------------------------------------------------


def cells(**errors) -> dict[str, Cell]:
    return {name: cell(name, some) for name, some in {NO_ATTACK: [0.1] * 20, **errors}.items()}


def test_the_mean_decides_and_never_the_worst_seed():
    assert standings.worst_column(cells(even=[0.5] * 3, odd=[0.9, 0.2, 0.2])) == "even"


def test_the_seeds_that_all_columns_have_say_which_three_are_candidates():
    """And not those that only some have, though with these others would be among them."""
    found = cells(a=[0.5] * 3, b=[0.4] * 3 + [0.0] * 17, c=[0.3] * 3, d=[0.2] * 3 + [0.9] * 17)
    assert standings.candidates(found) == ["a", "b", "c"]


def test_of_the_candidates_the_seeds_that_these_share_decide():
    """On three seeds the worst is `lucky`, lifted by noise as the worst of many columns is."""
    lucky, true = [0.6] * 3 + [0.2] * 17, [0.5] * 20
    found = cells(lucky=lucky, true=true, third=[0.3] * 20, other=[0.29] * 3)
    assert standings.candidates(found)[0] == "lucky"
    assert standings.worst_column(found) == "true"
    # Where one candidate has got further than the others, what they share is compared.
    found["lucky"] = cell("lucky", lucky[:3])
    assert standings.worst_column(found) == "lucky"


def test_it_is_told_where_an_attack_of_few_seeds_is_above_the_one_that_decides():
    lucky = [0.6] * 3 + [0.2] * 17
    found = cells(a=lucky, b=lucky, c=lucky, true=[0.5] * 3)
    assert standings.entry("a", KNOWS_C, found).flags == ("unsettled",)
    assert standings.entry("a", KNOWS_C, found).worst != "true"
    found["true"] = cell("true", [0.1] * 3)
    assert standings.entry("a", KNOWS_C, found).flags == ()


def test_no_attack_is_the_worst_where_every_attack_helps():
    found = standings.entry("a", KNOWS_C, cells(a=[0.05] * 3))
    assert found.worst == NO_ATTACK
    assert found.gap == 0


def test_the_gap_is_paired_by_seed():
    base = np.linspace(0.1, 0.3, 20)
    found = standings.entry(
        "a", KNOWS_C, {NO_ATTACK: cell(NO_ATTACK, base), "x": cell("x", (base + 0.2)[:5])}
    )
    assert found.gap == pytest.approx(0.2)
    assert found.gap_half == pytest.approx(0, abs=1e-12)
    assert found.score.half > 0.01
    assert math.isnan(entry("few", [0.5, 0.5], clean=[0.1, 0.1]).gap_half)


# ---- ranks and places ---------------------------------------------------------------------------


def test_rows_that_differ_by_more_than_their_noise_are_told_apart():
    found = standings.ranked([entry("b", 0.5 + noise(1)), entry("a", 0.3 + noise(2))])
    assert [(one.row, one.rank, one.place) for one in found] == [
        ("a", (1, 1), 1),
        ("b", (2, 2), 2),
    ]


def test_seeds_are_paired_across_rows():
    """A small difference in every seed is sure, however much seeds differ."""
    hard = 0.5 + noise(1, 0.2)
    found = standings.ranked([entry("a", hard), entry("b", hard + 0.01)])
    assert [one.rank for one in found] == [(1, 1), (2, 2)]
    found = standings.ranked([entry("a", hard), entry("b", 0.51 + noise(2, 0.2))])
    assert [(one.rank, one.place) for one in found] == [((1, 2), 1)] * 2


def test_equal_rows_and_rows_that_noise_may_have_ordered_share_a_place():
    same = 0.5 + noise(1)
    other = same[::-1]  # of the same mean, in another order of sums
    rows = [entry("a", same), entry("b", other), entry("c", 0.9 + noise(2)), entry("d", same)]
    found = standings.ranked(rows)
    assert {one.row: one.place for one in found} == {"a": 1, "b": 1, "d": 1, "c": 4}
    assert found[-1].rank == (4, 4)
    below = standings.told_apart([dict.fromkeys(SEEDS, 0.5)] * 2)
    assert standings.rank_intervals(below) == [(1, 2)] * 2


def test_a_place_has_no_row_that_another_of_it_is_surely_below():
    """The first may be too noisy to be told from rows that others are told from."""
    noisy, low, high = [0.1, 0.3, 0.11], [0.2, 0.201, 0.2], [0.25, 0.25, 0.251]
    found = standings.ranked([entry("noisy", noisy), entry("low", low), entry("high", high)])
    told = [(one.row, one.place, one.rank) for one in found]
    assert told == [("noisy", 1, (1, 3)), ("low", 1, (1, 2)), ("high", 3, (2, 3))]


@given(st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=7), min_size=1, max_size=7))
@example([[4, 5, 4], [2, 3, 2] + 17 * [6]])
def test_a_place_is_one_of_the_ranks_that_a_row_may_have(errors):
    for one in standings.ranked([entry(str(i), own) for i, own in enumerate(errors)]):
        assert one.rank[0] <= one.place <= one.rank[1]


def test_rows_are_told_apart_in_the_order_of_their_means_alone():
    """The second row is surely below on the seeds that both have met, and above on its own."""
    few, many = [0.20, 0.21, 0.20], [0.15, 0.16, 0.15] + 17 * [0.24]
    found = standings.ranked([entry("few", few), entry("many", many)])
    assert [(one.row, one.place, one.rank) for one in found] == [
        ("few", 1, (1, 2)), ("many", 1, (1, 2)),
    ]  # fmt: skip


def test_rows_of_fewer_than_three_seeds_may_have_any_rank():
    rows = [entry("a", [0.2, 0.2]), entry("b", [0.9, 0.9]), entry("c", 0.5 + noise(1))]
    assert [one.rank for one in standings.ranked(rows)] == [(1, 3), (1, 3), (1, 3)]


def test_a_row_with_some_of_the_seeds_is_ranked_by_those_it_has():
    rows = [entry("a", [0.2, 0.25, 0.2]), entry("b", 0.5 + noise(1))]
    assert [one.rank for one in standings.ranked(rows)] == [(1, 1), (2, 2)]


def test_rows_of_different_seeds_are_compared_over_those_that_both_have():
    """The first three seeds are hard for everybody, and one row has met these alone."""
    hard = np.array([0.2, 0.21, 0.22] + [0.1] * 17)
    rows = [entry("twenty", hard), entry("three", hard[:3])]
    assert [one.rank for one in standings.ranked(rows)] == [(1, 2), (1, 2)]
    assert [one.place for one in standings.ranked(rows)] == [1, 1]


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_of_equal_rows_hardly_more_than_the_level_are_told_apart(seeds):
    rng, parted = np.random.default_rng(0), 0
    for _ in range(400):
        one, other = (dict(enumerate(errors)) for errors in rng.normal(0.5, 0.05, (2, seeds)))
        parted += standings.surely_below(one, other) or standings.surely_below(other, one)
    assert 4 <= parted <= 36  # of 400, where 20 are meant: 0.1% of binomials lie outside


def test_the_same_numbers_give_the_same_ranks():
    rows = [entry(str(seed), 0.5 + noise(seed)) for seed in range(9)]
    assert standings.ranked(rows) == standings.ranked(rows[::-1])


def test_rows_with_server_data_are_ranked_apart_and_a_league_by_itself():
    rows = [
        entry("s", 0.1 + noise(1, 0.01), league=SERVER_DATA),
        entry("k", 0.3 + noise(2, 0.01)),
        entry("n", 0.5 + noise(3, 0.01), league=NO_C),
    ]
    found = {one.row: (one.place, one.rank, one.league_place) for one in standings.ranked(rows)}
    assert found == {"s": (1, (1, 1), 1), "k": (1, (1, 1), 1), "n": (2, (2, 2), 1)}


# ---- flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notes", "flags"),
    [
        ({}, ()),
        ({"no_effect": 0.5, "same_as_mean": 0.94}, ()),
        ({"no_effect": 0.51}, ("attack without effect",)),
        ({"same_as_mean": 0.95}, ("equals the mean",)),
        ({"diverged": True}, ("diverged",)),
    ],
)
def test_flags_are_of_the_column_that_decides(notes, flags):
    own = {
        NO_ATTACK: cell(NO_ATTACK, [0.1] * 3, same_as_mean=1.0),
        "mild": cell("mild", [0.2] * 3, no_effect=1.0, same_as_mean=1.0),
        "hard": cell("hard", [0.5] * 3, **notes),
    }
    assert standings.entry("a", KNOWS_C, own).flags == flags
    own["mild"] = cell("mild", [0.2] * 3, diverged=True)
    assert "diverged" in standings.entry("a", KNOWS_C, own).flags  # wherever it was
    assert standings.entry("a", KNOWS_C, own, ["random"]).flags[-1] == "random"


# ---- what is told of a ranking ------------------------------------------------------------------


def told_of(**rows: tuple[float, ...]) -> standings.Standings:
    """Rules in their order, of three seeds each."""
    entries = standings.ranked([entry(row, errors) for row, errors in rows.items()])
    return standings.Standings("P1", 2, "MNIST", (NO_ATTACK, "hard", "easy"), entries, 0)


def test_a_row_is_summed_up_by_its_place_its_worst_and_what_it_has_without_attack():
    found = told_of(b=(0.4, 0.5, 0.6), a=(0.2, 0.2, 0.2))
    [one] = [entry for entry in found.entries if entry.row == "b"]
    assert arena_report.summary(one, found) == (
        "b: place 2 of 2 (rank 2 to 2), 0.500 ±0.248 under hard, 0.100 without attack."
    )


def test_every_cell_of_the_page_is_a_mean_over_seeds():
    page = arena_report.page(told_of(a=(0.2, 0.3, 0.7)), "arena", [], [])
    table = page.partition("Every cell")[2]
    assert "0.400" in table
    assert "0.200" not in table


def test_what_papers_print_stands_beside_what_is_measured_with_the_difference():
    printed = cell("hard", (0.1, 0.2, 0.3), reported=0.25)
    cells = {NO_ATTACK: cell(NO_ATTACK, (0.1, 0.1, 0.1)), "hard": printed}
    entries = standings.ranked([standings.entry("a", KNOWS_C, cells)])
    found = standings.Standings("P1", 2, "MNIST", tuple(cells), entries, 0)
    [line] = [line for line in arena_report.page(found, "arena", [], []).splitlines()
              if "0.25" in line]  # fmt: skip
    assert "-0.050" in line
    assert "0.200" in line


def test_a_breakdown_says_where_it_is_but_a_limit():
    found = told_of(a=(0.2, 0.2, 0.2), b=(0.3, 0.3, 0.3))
    first, second = found.entries
    limited = replace(first, breakdown=13, flags=(arena.LIMIT,))
    entries = [limited, replace(second, breakdown=20)]
    notes = arena_report.notes(replace(found, entries=entries), ["a", "b"], 20)
    [told] = [one for one in notes if "doubles the clean error" in one]
    assert told.endswith("a 13 (its limit), b 20.")


def test_around_ones_own_row_stand_its_neighbours():
    names = "abcdefghij"
    found = told_of(**{name: (0.1 * k + 0.1,) * 3 for k, name in enumerate(names)})
    table = arena_report.table(found.entries, "simple", near=["e"])
    words = [word for line in table.splitlines()[2:] for word in line.split()]
    assert [word for word in words if word in [*names]] == ["c", "d", "e", "f", "g"]
    assert words.count("...") == 2
