"""What rules and attacks note: numbers of any kind, and nothing else."""

import copy
import json
import pickle

import numpy as np
import pytest

from fltrust_repro.backend import to_ndarray
from fltrust_repro.errors import WrongNumbers
from fltrust_repro.notes import Notes, plain

ONE = {
    "int": 1, "float": 1.0, "bool": True, "numpy": np.float32(1), "numpy int": np.int64(1),
    "array of one": np.ones((1, 1)), "longdouble": np.longdouble(1), "half": np.float16(1),
    "unsigned": np.uint64(1), "NDArray": to_ndarray(np.ones(1, dtype=np.float32)),
}  # fmt: skip
WRONG = {
    "text": "high", "None": None, "two": np.ones(2), "none": [], "complex": 1j,
    "dict": {"a": 1}, "ragged": [[1], [1, 2]], "beyond numbers": 10**5000, "long": 2**64,
}  # fmt: skip


def noted_by(way, value):
    notes = Notes()
    if way == "set":
        notes["x"] = value
    elif way == "update":
        notes.update({"x": value})
    elif way == "made":
        return Notes({"x": value})
    else:
        notes.setdefault("x", value)
    return notes


@pytest.mark.parametrize("kind", ONE)
@pytest.mark.parametrize("way", ["set", "update", "made", "default"])
def test_numbers_of_every_kind_become_plain_ones(kind, way):
    notes = noted_by(way, ONE[kind])
    assert notes == {"x": 1}
    assert type(notes["x"]) in (int, float)


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("way", ["set", "update", "made", "default"])
def test_what_is_no_number_is_refused_where_it_is_noted(kind, way):
    with pytest.raises(WrongNumbers, match=r"'x' is noted as .*; notes are numbers\."):
        noted_by(way, WRONG[kind])


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_number_is_not_added_to_one(kind):
    notes = Notes(x=1)
    with pytest.raises(WrongNumbers, match="'x' is noted as"):
        notes.update({"x": WRONG[kind]})
    assert notes == {"x": 1}


@pytest.mark.parametrize("noted", [2**63, -(2**63), 2**70 / 1, float("nan"), float("inf")])
def test_what_is_noted_can_be_stored(noted):
    notes = Notes()
    notes["x"] = noted
    assert repr(json.loads(json.dumps(plain(notes)))["x"]) == repr(noted)


def test_counts_add_up_and_copies_are_their_own():
    notes = Notes(a=1)
    notes["a"] += 0.5
    notes["b"] += np.float32(2)
    notes.update({"a": 1, "c": 3}, b=1)
    assert notes == {"a": 2.5, "b": 3, "c": 3}
    for other in (copy.deepcopy(notes), notes.copy(), pickle.loads(pickle.dumps(notes))):
        assert type(other) is Notes
        other["a"] += 1
        assert notes["a"] == 2.5
    assert notes.setdefault("a", 7) == 2.5
    assert Notes(self=3) == {"self": 3}


def test_means_are_told_as_such():
    told = plain(Notes({"undone": 3, "compared with no attack": 4, 7: 1}))
    assert told == {"undone": 0.75, "compared with no attack": 4, "7": 1}
    assert plain(Notes({"undone": 3})) == {"undone": 3}  # somebody's own
