"""The arena: protocols that stay what they are, which trials a ranking needs, and its command."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from functools import partial

import pandas as pd
import pytest
from invoked import ended
from test_store import RESULT, trial

from fltrust_repro import arena, arena_protocols, experiments, fall, standings, sweep, tailored
from fltrust_repro.arena import FEW, SEEDS
from fltrust_repro.arena_protocols import Protocol, protocols, table_of
from fltrust_repro.attacks import attack, attacks
from fltrust_repro.errors import BadInput, DataUnavailable
from fltrust_repro.experiments import Cell, load_experiment
from fltrust_repro.settings import Setting
from fltrust_repro.standings import NO_ATTACK
from fltrust_repro.store import Store
from fltrust_repro.sweep import Outcome
from fltrust_repro.trial_files import read_csv, write_csv

# ---- the protocols that are published -----------------------------------------------------------

FROZEN = {
    ("P1", 3): "6be8401b476a85dc",
    ("P2", 3): "409d873d6be8736c",
    ("P3", 3): "ce4f1bc5e2ceaca1",
    ("P4", 3): "7d866492f614a484",
    ("P5", 3): "58eb2ee8b99115da",
}
ROWS = "eb2de121751f201f"


def digest(one: Protocol) -> str:
    """Of all that decides every row's numbers."""
    told = [one.setting, list(one.columns.items()), list(SEEDS), FEW]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def test_a_protocol_that_changes_is_a_new_version():
    """Numbers of two settings must never be in one ranking: raise `version`, add a line here."""
    assert {(one.name, one.version): digest(one) for one in protocols().values()} == FROZEN


def test_a_row_keeps_its_name_only_as_long_as_its_rule():
    """Rows are added behind; one that is there has numbers, and may not become another."""
    told = json.dumps([*protocols()["P1"].rows.items()][:36])
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == ROWS


def test_a_digest_is_of_all_that_decides_the_numbers():
    one = protocols()["P1"]
    fields = {
        "setting": {**one.setting, "non_iid": 0.6},
        "columns": {**one.columns, "ipm 4": {"attack": "ipm:epsilon=5"}},
    }
    changed = [dataclasses.replace(one, **{name: value}) for name, value in fields.items()]
    fewer = {name: one.columns[name] for name in [*one.columns][:-1]}
    changed.append(dataclasses.replace(one, columns=fewer))
    assert len({digest(one), *(digest(other) for other in changed)}) == 4


def test_the_first_protocol_is_the_papers_and_has_its_trials_and_values():
    cells = table_of(protocols()["P1"], printed=arena_protocols.reported()).experiment.choose(
        ["krum"]
    )
    papers = load_experiment("table2a").choose(["krum"])
    assert {one.setting for one in papers} & {one.setting for one in cells}
    (fell,) = (one for one in cells if one.column == "krum")
    assert (fell.paper, fell.setting) == (0.80, Setting(attack="krum"))


def test_none_before_a_row_is_nothing():
    protocol = protocols()["P1"]
    for row in ("nnm+median", "median"):
        assert protocol.row(row, "none") == protocol.row(row)
    assert protocol.row("median", "nnm+none") == protocol.row("nnm+median")


def test_every_protocol_has_every_row_but_for_cells_that_a_limit_forbids():
    for protocol in protocols().values():
        for knowledge in ("full", "partial"):
            table = table_of(protocol, knowledge)
            assert len({cell.row for cell in table.experiment.cells}) == len(protocol.rows)
            assert table.experiment.columns[0] == NO_ATTACK


def test_the_protocols_are_no_experiment():
    assert (experiments.home() / "arena.toml").is_file()
    assert "arena" not in experiments.available()


def test_leagues():
    cells = table_of(protocols()["P1"]).experiment.choose(columns=[NO_ATTACK])
    of = {cell.row: arena.league(cell.setting) for cell in cells}
    asked = "krum trimmed-mean caf nnm+median median rlr clip+caf fltrust zeno union+trimmed-mean"
    assert [of[row] for row in asked.split()] == [
        *[standings.KNOWS_C] * 4, *[standings.NO_C] * 2, standings.KNOWS_C,
        *[standings.SERVER_DATA] * 3,
    ]  # fmt: skip


# ---- which trials -------------------------------------------------------------------------------

SMALL = """
[protocols.P5]
version = 3
title = "Small"
seconds = 0.1
setting = { dataset = "digits", workers = 10, compromised = 2, iterations = 10 }
[protocols.P6]
version = 1
title = "Another"
seconds = 0.1
setting = { dataset = "digits", workers = 10, compromised = 2, iterations = 11 }
[rows]
mean = { rule = "mean" }
median = { rule = "median" }
"clip+median" = { pre = "clip", rule = "median" }
krum = { rule = "krum" }
bulyan = { rule = "bulyan" }
"bucketing+geometric-median" = { pre = "bucketing", rule = "geometric-median" }
fltrust = { rule = "fltrust", root_size = 20 }
[columns]
no-attack = { attack = "none" }
gaussian = { attack = "gaussian" }
"ipm 4" = { attack = "ipm:epsilon=4" }
trimmed-mean = { attack = "trimmed-mean" }
krum = { attack = "krum" }
"""
ERRORS = {NO_ATTACK: 0.1, "gaussian": 0.15, "ipm 4": 0.4, "trimmed-mean": 0.3, "krum": 0.2}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A protocol of small trials, in a folder of its own."""
    (tmp_path / "arena.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(arena_protocols, "home", lambda: tmp_path)
    monkeypatch.setattr(arena_protocols, "reported", dict)
    monkeypatch.setattr(experiments, "published", lambda: tmp_path / "published")
    return tmp_path


def made(cell: Cell, seeds=SEEDS[:FEW], error: float | None = None, **notes):
    """Trials of a cell that nobody ran."""
    column = cell.column.partition(",")[0]
    result = dataclasses.replace(
        RESULT, error_rate=ERRORS[column] if error is None else error, diverged=False, notes=notes
    )
    return [trial(seed, cell.setting, result=result) for seed in seeds]


@pytest.fixture
def own(small):
    """The cells of the median."""
    return table_of(protocols()["P5"]).experiment.choose(["median"])


def test_few_seeds_everywhere_then_all_where_it_counts(own):
    assert set(arena.wanted(own, {}).values()) == {SEEDS[:3]}
    assert sum(arena.missing(own, {}).values()) == 5 * 3 + 4 * 17
    known = {cell.setting: made(cell) for cell in own}
    plan = {cell.column: seeds for cell, seeds in arena.wanted(own, known).items()}
    assert plan.pop("gaussian") == SEEDS[:3]
    assert set(plan) == {NO_ATTACK, "ipm 4", "trimmed-mean", "krum"}
    assert set(plan.values()) == {SEEDS}
    assert len(SEEDS) == 20
    assert sum(arena.missing(own, known).values()) == 4 * 17


@pytest.mark.parametrize(
    ("row", "asked", "is_random"),
    [("dnc", 12, False), ("dnc", 24, True), ("dnc", None, True), ("union+trimmed-mean", 24, True),
     ("union+trimmed-mean", None, True), ("median", 12, False), ("median", None, False)],
)  # fmt: skip
def test_a_master_device_draws_if_attackers_who_ask_it_say_so(row, asked, is_random):
    """Of a rule that draws they ask more often than they have questions."""
    own = table_of(protocols()["P1"]).experiment.choose([row])
    notes = {} if asked is None else {tailored.ASKED: 500 * asked, "attacked iterations": 500}
    known = {cell.setting: [] for cell in own}
    [cell] = [cell for cell in own if cell.column == "tailored"]
    known[cell.setting] = made(cell, error=0.2, **notes)
    assert arena.draws(own, known) == is_random


def test_a_row_that_lacks_a_trial_is_neither_refined_nor_ranked(small, own):
    table = table_of(protocols()["P5"])
    known = {cell.setting: made(cell) for cell in own}
    assert [one.row for one in arena.ranking(table, known).entries] == ["median"]
    known[own[1].setting].pop()
    assert set(arena.wanted(own, known).values()) == {SEEDS[:3]}
    assert arena.ranking(table, known).entries == ()


def test_what_else_is_at_hand_does_not_change_a_ranking(small, own):
    table = table_of(protocols()["P5"])
    known = {cell.setting: made(cell) for cell in own}
    before = arena.ranking(table, known)
    (mild,) = (cell for cell in own if cell.column == "gaussian")
    known[mild.setting] += made(mild, [*SEEDS[3:], 99], error=1.0)
    assert arena.ranking(table, known) == before
    assert before.entries[0].worst == "ipm 4"
    assert before.entries[0].flags == (arena.INCOMPLETE,)


def test_notes_of_trials_become_shares(own):
    notes = {"compared with no attack": 10, "undone": 0.4, "no effect": 3,
             "compared with the mean": 10, "differs from the mean": 4}  # fmt: skip
    known = {own[1].setting: made(own[1], [10], **notes) + made(own[1], [11])}
    found = arena.measured(own[1], known, SEEDS)
    assert (found.undone, found.no_effect, found.same_as_mean) == (0.4, 0.3, 0.6)
    assert set(found.errors) == {10, 11}
    older = arena.measured(own[1], known, [11])
    assert (older.undone, older.no_effect, older.same_as_mean) == (None, None, None)


def test_partial_knowledge_is_a_table_of_the_attacks_that_it_concerns(small):
    table = table_of(protocols()["P5"], "partial")
    assert table.name == "P5 partial"
    assert table.experiment.columns == (NO_ATTACK, "ipm 4", "trimmed-mean", "krum")
    told = {cell.column: cell.setting.knowledge for cell in table.experiment.choose(["median"])}
    assert told == {
        NO_ATTACK: None,
        "ipm 4": "partial",
        "trimmed-mean": "partial",
        "krum": "partial",
    }


# ---- breakdown ----------------------------------------------------------------------------------


def search(own, holds_below: int):
    """What is asked for one after the other, and the answer, of a rule broken from a c on."""
    known, asked = {cell.setting: made(cell, error=ERRORS[cell.column] / 4) for cell in own}, []
    known[own[0].setting] = made(own[0])
    while more := (found := arena.breakdown(own, known)).asked:
        c = more[0].setting.compromised
        asked.append(c)
        error = 0.21 if c >= holds_below else 0.19
        known.update({cell.setting: made(cell, error=error) for cell in more})
    return asked, found.c, found.by_limit


@pytest.fixture
def of_fifty(small):
    protocol = dataclasses.replace(
        protocols()["P5"], setting={"dataset": "digits", "workers": 50, "compromised": 10}
    )
    return lambda row: table_of(protocol).experiment.choose([row])


@pytest.mark.parametrize("c", [11, 12, 17, 24, 25])
def test_the_breakdown_is_found_by_halving(of_fifty, c):
    asked, found, by_limit = search(of_fifty("median"), c)
    assert (found, by_limit) == (c, False)
    assert len(asked) <= 5  # the protocol's own c is at hand
    assert len({*asked}) == len(asked)
    assert 9 * len(asked) <= arena.most_trials(50)


def test_beyond_its_limit_a_rule_is_broken_and_it_is_said(of_fifty):
    assert search(of_fifty("bulyan"), 99)[1:] == (13, True)  # m - 4c >= 1
    assert search(of_fifty("bulyan"), 11)[1:] == (11, False)


def test_where_only_the_attack_has_a_limit_none_is_told_of_the_rule(small):
    """Of 8 selected 5 are taken to be compromised, which the Krum attack is not made for."""
    fields = {"dataset": "digits", "workers": 40, "selected": 8, "compromised": 8}
    protocol = dataclasses.replace(protocols()["P5"], setting=fields)
    own = table_of(protocol, columns=["krum"]).experiment.choose(["mean"])
    assert [cell.column for cell in own] == [NO_ATTACK, "krum"]
    assert search(own, 99)[1:] == (None, False)


def test_a_row_may_be_broken_at_the_protocols_own_c_already(own):
    known = {cell.setting: made(cell) for cell in own}  # 0.4 beside 0.1
    asked = arena.breakdown(own, known).asked
    assert {cell.setting.compromised for cell in asked} == {1}
    assert {cell.setting.beta for cell in asked} == {1}
    known.update({cell.setting: made(cell, error=0.3) for cell in asked})
    assert arena.breakdown(own, known)[:2] == (1, False)
    assert arena.breakdown(own, {}) == (None, False, ())


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def call(small, capsys):
    return partial(ended, capsys, "arena", "--protocol", "P5", "--jobs", "0")


@pytest.fixture
def others(small):
    """Trials of the mean, the median and a random rule, in OUT, as if they had been run."""
    (small / "results").mkdir()
    table, trials = table_of(protocols()["P5"]), []
    for row, worse in (("mean", 0.3), ("median", 0.1), ("bucketing+geometric-median", 0.2)):
        own = table.experiment.choose([row])
        more = {c.column: 0.0 if c.column == NO_ATTACK else worse for c in own}
        known = {c.setting: made(c, error=ERRORS[c.column] + more[c.column]) for c in own}
        for cell, seeds in arena.wanted(own, known).items():
            trials += made(cell, seeds, error=ERRORS[cell.column] + more[cell.column])
    write_csv(small / "results" / "any.trials.csv", trials)


def test_a_part_runs_resumes_and_keeps_its_trials_but_no_ranking(call, small):
    words = ("--rule", "krum", "--rule", "median", "--attack", "trimmed-mean")
    code, out, err = call(*words)
    assert code == 0, err
    assert "P5: 2 rules under 1 attack, 12 trials to run" in err
    assert "Only a part of the protocol, at most 3 seeds: no ranking is kept." in err
    assert out.startswith("P5, version 3: Small; of 4 attacks these alone: trimmed-mean\n")
    assert len(re.findall(r"^1=? \d\S* +(krum|median) ", out, re.MULTILINE)) >= 1
    assert [file.name for file in (small / "results").iterdir()] == ["arena-p5.trials.csv.gz"]
    assert len(read_csv(small / "results" / "arena-p5.trials.csv.gz")) == 12
    again = call(*words)
    assert "0 trials to run" in again[2]
    assert again[1].replace("Wrote", "") in out  # the same numbers, and nothing written


def test_a_quick_look_has_one_seed_and_no_rank(call, small):
    code, out, err = call("--trials", 1, "--rule", "median", "--rule", "mean")
    assert code == 0, err
    assert "at most 1 seed:" in err
    assert re.search(r"^1= 1-2 +me", out, re.MULTILINE)
    assert not (small / "results" / "arena-p5.csv").exists()


def test_drawing_runs_nothing_and_writes_the_ranking(call, small, others):
    code, out, err = call("--draw")
    assert (code, err) == (0, "")
    assert not (small / "trials.sqlite").exists()
    ranks = re.findall(r"^(\d=? \S+) +(\S+) +(\S+) +(\S+) ±\S+ +(\S+) +(.+)$", out, re.MULTILINE)
    assert [one[:2] for one in ranks] == [
        ("1 1", "median"), ("2 2", "bucketing+"), ("3 3", "mean"),
    ]  # fmt: skip
    assert ranks[0][2:] == ("0.100", "0.500", "+0.400", "ipm 4")
    assert "  geometric-median" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "Draws at random, which no attacker foresees: bucketing+geometric-median." in out
    assert "Do not know c; their places among such rules: 1 median" in out
    assert "Not ranked, as they have not met every attack: clip+median, krum," in out
    table = pd.read_csv(small / "results" / "arena-p5.csv")
    assert list(table[table["decides"] == 1]["row"]) == list(dict.fromkeys(table["row"]))
    assert set(table[table["column"] == "gaussian"]["trials"]) == {3}
    assert set(table[table["decides"] == 1]["trials"]) == {20}
    page = (small / "results" / "arena-p5.md").read_text()
    assert page.startswith("# Arena P5, version 3: Small\n")
    assert "`python -m fltrust_repro arena --protocol P5`" in page
    assert re.search(r"^\*\*\d+ trials are missing still: places may change\.\*\*$", page, re.M)


def test_the_page_counts_the_trials_that_the_ranking_does(call, small, others):
    assert call("--draw")[0] == 0
    page = (small / "results" / "arena-p5.md").read_text()
    table = pd.read_csv(small / "results" / "arena-p5.csv")
    assert f"{table['trials'].sum():,} in all" in page


def test_a_quick_look_at_nothing_does_not_advise_itself(call, small):
    _, out, _ = call("--draw", "--trials", "1")
    assert "has met every attack with 1 seed yet." in out


def test_of_what_is_published_nothing_is_kept_twice(call, small, others, monkeypatch):
    """Nor of the breakdown's trials, which are asked for when the others are known."""
    monkeypatch.setattr(experiments, "published", lambda: small / "published")
    (small / "results").rename(small / "published")
    own = table_of(protocols()["P5"]).experiment.choose(["median"])
    known = {cell.setting: made(cell) for cell in own}
    asked = arena.breakdown(own, known).asked
    searched = [trial for cell in asked for trial in made(cell)]
    assert searched
    write_csv(small / "published" / "breakdown.trials.csv", searched)
    code, _, err = call("--draw")
    assert code == 0, err
    assert [file.name for file in (small / "results").glob("*.trials.*")] == []


def test_drawing_replays_nothing_of_a_row_of_ones_own(call, small, others, monkeypatch):
    explained = []
    monkeypatch.setattr(fall, "explain", lambda *pair: explained.append(pair) or "")
    (small / "mine.py").write_text(
        "import fltrust_repro as fl\n\n\n"
        '@fl.rule("own")\ndef own(updates):\n    return updates.mean(axis=0)\n'
    )
    words = ("--plugin", "mine.py", "--rule", "own", "--trials", 3)
    code, ran, err = call(*words)
    assert code == 0, err
    assert len(explained) == 1
    code, drawn, err = call(*words, "--draw")
    assert code == 0, err
    assert len(explained) == 1
    place = re.search(r"^own: place .*$", ran, re.MULTILINE)
    assert place and place[0] in drawn


def test_cells_that_a_limit_forbids_are_named(call, small, others):
    (small / "arena.toml").write_text(SMALL.replace("compromised = 2", "compromised = 4"))
    code, _, err = call("--draw")
    assert code == 0, err
    assert "Left out: bulyan under 5 columns: " in err
    assert "needs m - 4c >= 1" in err


@pytest.mark.slow
def test_a_whole_row_is_refined_and_its_breakdown_searched(call, small, others):
    """Of a user's own rule, which is placed among those that are known."""
    (small / "mine.py").write_text(
        "import fltrust_repro as fl\nimport numpy as np\n\n\n"
        '@fl.rule("my-rule")\ndef mine(updates, *, share=0.5):\n    return np.median(updates, 0)\n'
    )
    words = ("--plugin", "mine.py", "--rule", "my-rule:share=0.4", "--pre", "clip", "--breakdown")
    code, out, err = call(*words)
    assert code == 0, err
    assert re.search("P5: 1 rule under 4 attacks, 83 trials to run, about . minutes? of a co", err)
    assert "of a core; then at most 27 trials for the breakdown" in err
    name = "clip+my-rule:share=0.4"
    assert re.search(rf"^{re.escape(name)}: place \d=? of 4 \(rank ", out, re.MULTILINE)
    assert "median" in out
    assert "fltrust" not in out
    assert re.search(r"doubles the clean error: clip\+my-rule:share=0.4\s+\d", out)
    file = small / "results" / "arena-p5-clip-my-rule-share-0.4.csv"
    assert not (small / "results" / "arena-p5.csv").exists()
    own = pd.read_csv(file).query("row == @name")
    assert sorted(own["trials"]) == [3, 20, 20, 20, 20]
    kept = read_csv(file.with_suffix(".trials.csv.gz"))
    assert {one.setting.rule for one in kept} == {"my-rule:share=0.4"}
    assert len({one.setting.compromised for one in kept}) > 1  # those of the breakdown, too
    with Store("trials.sqlite") as store:
        assert len(list(store.everything())) == len(kept)


def test_without_its_data_a_protocol_is_drawn_and_the_next_one_runs(call, others, monkeypatch):
    def run_missing(cells, *_):
        if cells[0].setting.iterations == 10:
            raise DataUnavailable("no digits here.")
        return Outcome(0, [])

    monkeypatch.setattr(sweep, "run_missing", run_missing)
    code, out, err = call("--protocol", "P6", "--breakdown")
    assert code == 1
    assert "not run: no digits here.\n" in err
    assert err.endswith("Not run for want of data: P5.\n")
    assert "1 1      median" in out
    assert "P6, version 1: Another" in out
    assert "None of them has met every attack with 3 seeds yet" in out


def test_a_rule_that_fails_is_not_ranked_and_told(call, small, others):
    (small / "mine.py").write_text(
        'import fltrust_repro as fl\n\n\n@fl.rule("mine")\ndef mine(updates):\n    return 1 / 0\n'
    )
    code, out, err = call("--plugin", "mine.py", "--rule", "mine")
    assert code == 1
    assert "3 trials failed:" in err
    assert "mine.py, line" in err
    assert "None of them has met every attack" in out


def test_the_trials_that_are_explained_have_one_seed(own):
    known = {cell.setting: made(cell, [11, 12]) for cell in own}
    known[own[0].setting] = made(own[0], [12, 13])
    fell, clean = arena.pair(own, known, "krum")
    assert (fell.seed, fell.setting.attack, clean.seed) == (12, "krum", 12)
    assert fell.setting.without_attack() == clean.setting
    known[own[0].setting] = []
    assert arena.pair(own, known, "krum") is None


def test_a_rule_with_server_data_gets_some(small):
    assert protocols()["P5"].row("zeno")[1]["root_size"] == arena_protocols.ROOT_EXAMPLES
    assert protocols()["P5"].row("median", "clip")[0] == "clip+median"
    assert protocols()["P5"].row("fltrust")[1]["root_size"] == 20  # as its row has


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--protocol P7", ["--protocol is 'P7'", "choose one of P5, P6."]),
        ("--rule nonsense", ["P5 has no row 'nonsense'", "no such rule", "mean, median"]),
        ("--attack nonsense", ["P5 has no column 'nonsense'", "no such attack"]),
        ("--attack gausian", ["Did you mean 'gaussian'"]),
        ("--attack none", ["P5 has no column 'none'"]),
        ("--attack ipm:epsilon=much", ["ipm", "epsilon is 'much'"]),
        ("--attack no-attack", ["no-attack alone ranks nothing", "of an attack too"]),
        ("--rule clip+median --pre clip", ["is a row of P5 and no rule", "leave --pre out"]),
        ("--pre clip", ["--pre is given without --rule"]),
        ("--trials 21", ["--trials is 21", "at most 20"]),
        ("--knowledge half", ["--knowledge is 'half'", "full, partial"]),
        ("--knowledge partial --attack gaussian", ["'gaussian' is the same with partial"]),
        ("--rule krum --pre nonsense", ["unknown pre-aggregation 'nonsense'"]),
        ("--rule multi-krum:z=1", ["multi-krum", "z"]),
        ("--seed 3", ["no such option"]),
        ("--out arena.toml", ["arena.toml", "--out"]),
    ],
)
def test_bad_input_is_a_sentence_before_any_work(call, small, words, told):
    code, out, err = call(*words.split())
    assert code == 2
    assert out == ""
    assert all(part in err for part in told), err
    assert not (small / "trials.sqlite").exists()


def test_a_row_of_ones_own_that_cannot_be(small):
    limited = {"mine": {"rule": "bulyan", "compromised": 4}}
    with pytest.raises(BadInput, match="bulyan"):
        table_of(protocols()["P5"], rows=limited)


@pytest.mark.parametrize("name", protocols())
def test_what_attacks_the_servers_own_training_meets_only_those_who_train(name):
    table = table_of(protocols()[name])
    met = [cell.row for cell in table.experiment.cells if cell.column == "fltrust-adaptive"]
    assert met == ["fltrust", "zeno", "fedgreed"]
    assert table.refused == {}
    asked = table_of(protocols()[name], columns=["fltrust-adaptive"])
    assert [cell.row for cell in asked.experiment.cells if cell.column != NO_ATTACK] == met
    [(why, places)] = asked.refused.items()
    assert "--root-size 100" in why
    assert len(places) == len(table.protocol.rows) - len(met)


def test_any_attack_is_a_column_where_it_is_named():
    @attack("own-still")
    def still(step):
        return 0 * step.known[: step.c]

    try:
        for name in ("own-still", "ipm:epsilon=9", "scaling"):
            cells = table_of(protocols()["P5"], columns=[name, "krum"]).experiment.cells
            assert {cell.column for cell in cells} == {NO_ATTACK, name, "krum"}
            assert {one.setting.attack for one in cells} == {"none", name, "krum"}
    finally:
        attacks.remove("own-still")


def test_a_column_takes_as_long_as_its_trials_at_hand_in_the_middle():
    [first, second, *_] = load_experiment("table2a").cells
    table = dataclasses.replace(load_experiment("table2a"), columns=(first.column, second.column))
    table = dataclasses.replace(table, cells=(first, second))
    results = [dataclasses.replace(RESULT, seconds=seconds) for seconds in (1.0, 2.0, 90.0)]
    known = {first.setting: [dataclasses.replace(trial(seed, first.setting), result=result)
                             for seed, result in enumerate(results)]}  # fmt: skip
    assert arena.seconds_of(table, known) == {first.column: 2.0, second.column: 2.0}


def test_of_two_papers_that_print_a_setting_the_first_ones_value_is_told(monkeypatch):
    table = load_experiment("table2a")
    other = dataclasses.replace(
        table, cells=tuple(dataclasses.replace(cell, paper=0.99) for cell in table.cells)
    )
    monkeypatch.setattr(arena_protocols, "readable", lambda: [table, other])
    arena_protocols.reported.cache_clear()
    try:
        for cell in table.cells:
            assert arena_protocols.reported()[cell.setting] == cell.paper
    finally:
        arena_protocols.reported.cache_clear()
