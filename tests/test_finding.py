"""Finished trials wherever they lie: found once each, chosen by field, grouped by code."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_store import SETTING, trial

from fltrust_repro import experiments, finding
from fltrust_repro.errors import BadInput
from fltrust_repro.finding import Found
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.trial_files import write_csv

OTHER = replace(SETTING, epsilon=0.2)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A store, a folder and what is published, each with seed 0 and one of its own."""
    monkeypatch.setattr(experiments, "published", lambda: tmp_path / "published")
    with Store(tmp_path / "s.sqlite") as store:
        store.add(trial(0), trial(1))
    write_csv(tmp_path / "out" / "mine.trials.csv", [trial(0), trial(2)])
    write_csv(tmp_path / "published" / "theirs.trials.csv.gz", [trial(0), trial(3)])
    return tmp_path


def names(found) -> list[tuple[int, str]]:
    return [(one.trial.seed, one.file.name) for one in found]


def test_a_trial_is_found_once_in_the_first_of_store_out_and_published(places):
    found = finding.gathered([], places / "s.sqlite", places / "out")
    assert names(found) == [
        (0, "s.sqlite"), (1, "s.sqlite"), (2, "mine.trials.csv"), (3, "theirs.trials.csv.gz"),
    ]  # fmt: skip


def test_sources_that_are_named_are_read_alone(places):
    for source, seeds in (("s.sqlite", [0, 1]), ("out", [0, 2]),
                          ("published/theirs.trials.csv.gz", [0, 3])):  # fmt: skip
        found = finding.gathered([places / source], places / "none.sqlite", places / "none")
        assert [seed for seed, _ in names(found)] == seeds
    both = finding.gathered([places / "out", places / "s.sqlite"], places / "x", places / "y")
    assert [seed for seed, _ in names(both)] == [0, 2, 1]


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing", "does not exist; give a store, a folder"), ("empty", "no file NAME.trials.csv"),
     ("none.sqlite", "no trial that is read")],
)  # fmt: skip
def test_a_source_without_trials_is_one_sentence(tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    Store(tmp_path / "none.sqlite").close()
    with pytest.raises(BadInput, match=said):
        finding.lying_in(tmp_path / name)


def test_trials_are_chosen_by_any_of_several_values_and_by_all_fields(tmp_path):
    found = [
        Found(trial(seed, setting), tmp_path) for setting in (SETTING, OTHER) for seed in (0, 1)
    ]
    assert finding.chosen(found, {}) == found
    assert finding.chosen(found, {"epsilon": (0.2,)}) == found[2:]
    assert finding.chosen(found, {"epsilon": (0.2, SETTING.epsilon)}) == found
    assert finding.chosen(found, {"epsilon": (0.2,), "rule": (SETTING.rule,)}) == found[2:]
    with pytest.raises(BadInput, match=r"no trial at hand has epsilon 7.*choose one of 0\.1, 0\.2"):
        finding.chosen(found, {"epsilon": (0.2, 7.0)})
    assert finding.chosen([], {"epsilon": (7.0,)}) == []


def test_a_choice_is_the_same_however_its_own_parameters_are_written(tmp_path):
    setting = Setting(dataset="digits", rule="median", pre="clip:radius=2", attack="alie:z=1")
    found = [Found(trial(0, one), tmp_path) for one in (setting, SETTING)]
    for wanted in ({"attack": ("alie:z=1.0",)}, {"attack": ("alie: z=1",)},
                   {"pre": ("clip:radius=2.0",)}, {"attack": ("alie:z=1",)}):  # fmt: skip
        assert finding.chosen(found, wanted) == found[:1]
    plain = [Found(trial(0, Setting(dataset="digits", attack="gaussian")), tmp_path)]
    for field in ("pre", "knowledge"):
        assert (
            finding.chosen(found[1:] + plain, {field: ("none",), "attack": ("gaussian",)}) == plain
        )
    with pytest.raises(BadInput, match="no trial at hand has pre 'none'; choose one of clip"):
        finding.chosen(found[:1], {"pre": ("none",)})
    with pytest.raises(BadInput, match="no trial at hand has attack 'alie:y=1'"):
        finding.chosen(found, {"attack": ("alie:y=1",)})


def test_trials_of_other_code_are_a_group_of_their_own(tmp_path):
    old = [replace(trial(s), protocol="0", finished="2020-01-01") for s in (0, 1)]
    older = [replace(trial(5), protocol="00", finished="2019-01-01")]
    found = [Found(one, tmp_path) for one in (*old, *older, trial(0))]
    told = [(one.protocol, len(one.found), one.is_current) for one in finding.groups(found)]
    assert told == [("0", 2, False), (trial(0).protocol, 1, True), ("00", 1, False)]
    assert finding.current(found) == {SETTING: [trial(0)]}
    assert finding.before(found) == {SETTING: old}
    # Also where an older checkout was used once more, later.
    later = [Found(replace(trial(9), protocol="0", finished="9999-01-01"), tmp_path)]
    assert finding.current(found + later) == {SETTING: [trial(0)]}
    # Where nothing is of today's code, the latest answers.
    assert finding.current(found[:3]) == {SETTING: old}
    assert finding.before(found[3:]) == {}
