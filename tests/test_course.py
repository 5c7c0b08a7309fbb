"""What is kept of a trial between two iterations, however deep it lies."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fltrust_repro import backend
from fltrust_repro.course import Course, Moving, Snapshot
from fltrust_repro.notes import Notes

ARRAYS = arrays(np.float32, st.integers(0, 3), elements=st.floats(-9, 9, width=32))
LEAVES = ARRAYS | st.integers() | st.text(max_size=3) | st.none() | st.booleans()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
MEMORIES = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


def moving(memory, seed=0):
    return Moving({"a": np.random.default_rng(seed)}, Counter(), {"rule's": memory, "other": {}})


def same(one, other):
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def through_json(kept: Snapshot) -> Snapshot:
    return kept._replace(told=json.loads(json.dumps(kept.told)))


@given(MEMORIES)
def test_a_memory_comes_back_as_it_was(memory):
    course = Course(backend.to_ndarray(np.ones(2, dtype=np.float32)), 7, [(1, 0.5, 2.0)], 3.0)
    before, after = moving(memory), moving({"stale": 1}, seed=9)
    before.notes["shots"] += 2
    before.rngs["a"].random(5)
    place, rng = after.memories["rule's"], after.rngs["a"]
    kept = through_json(before.snapshot(course, np.zeros(0)))
    again = after.restore(kept, (2,))
    assert same(memory, after.memories["rule's"])
    assert after.memories["rule's"] is place  # in place: others hold it
    assert rng.random() == before.rngs["a"].random()
    assert after.notes == {"shots": 2}
    assert (again.iterations, again.curve, again.seconds) == (7, [(1, 0.5, 2.0)], 3.0)


def test_what_is_kept_does_not_move_with_the_trial():
    memory = {"deep": {"list": [np.zeros(2)]}, "number": np.float32(0.5)}
    course = Course(backend.to_ndarray(np.ones(2, dtype=np.float32)))
    one = moving(memory)
    kept = through_json(one.snapshot(course, np.zeros(0)))
    memory["deep"]["list"][0] += 1
    for _ in range(2):
        one.restore(kept, (2,))
        assert one.memories["rule's"]["deep"]["list"][0].tolist() == [0, 0]
        one.memories["rule's"]["deep"]["list"][0] += 1
    assert one.memories["rule's"]["number"] == 0.5


def test_notes_that_are_no_numbers_move_nothing():
    one = Moving({"a": np.random.default_rng(0)}, Notes(), {"rule's": {"calls": 3}})
    course = Course(backend.to_ndarray(np.ones(2, dtype=np.float32)))
    kept = one.snapshot(course, np.zeros(0))
    one.rngs["a"].random(5)
    before = one.rngs["a"].bit_generator.state
    one.memories["rule's"]["calls"] = 4
    kept.told["notes"] = {"shots": "many"}
    with pytest.raises(ValueError, match="notes are numbers"):
        one.restore(kept, (2,))
    assert one.rngs["a"].bit_generator.state == before
    assert one.memories["rule's"] == {"calls": 4}


@pytest.mark.parametrize("lacks", ["w", "generators", "curve", "rule's", "notes"])
def test_what_is_of_another_trial_moves_nothing(lacks):
    one = moving({"calls": 3})
    course = Course(backend.to_ndarray(np.ones(2, dtype=np.float32)))
    kept = one.snapshot(course, np.zeros(0))
    for part in (kept.told, kept.arrays):
        part.pop(lacks, None)
    state = one.rngs["a"].bit_generator.state
    one.memories["rule's"]["calls"] = 4
    with pytest.raises(KeyError):
        one.restore(kept, (2,))
    assert one.memories["rule's"] == {"calls": 4}
    assert one.rngs["a"].bit_generator.state == state
