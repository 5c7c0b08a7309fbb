"""Errors in words that any process can read: what, where in the user's code, and what to do."""

import contextlib
import pickle

import pytest

from fltrust_repro.errors import (
    BadInput,
    DataUnavailable,
    Raised,
    UnknownName,
    choose,
    in_words,
    one_line,
)


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:
        return raised


@contextlib.contextmanager
def users_code():
    """Let this file be the user's script."""
    globals()["__name__"], name = "__main__", __name__
    try:
        yield
    finally:
        globals()["__name__"] = name


class TwoArguments(Exception):
    """Cannot be unpickled."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


class Unprintable(Exception):
    """Has no message."""

    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TwoArguments("negative weight", "row 3"), "TwoArguments: negative weight at row 3"),
        (ValueError("two\nlines."), "ValueError: two lines."),
        (ValueError(), "ValueError"),
        (SystemExit(0), "SystemExit: 0"),
        (Unprintable(), "Unprintable: (a message that cannot be printed)"),
        (BadInput("c is 9; it must be smaller."), "c is 9; it must be smaller."),
        (ValueError("x" * 10**6), "ValueError: " + "x" * 1000),
    ],
)
def test_an_error_in_words(error, words):
    assert in_words(caught(error)) == words
    with users_code():
        placed = in_words(caught(error))
    assert placed.startswith(words.rstrip("."))  # no full stop before the place
    assert placed.endswith(f" ({__file__}, line {caught.__code__.co_firstlineno + 2})")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataUnavailable("no data"), DataUnavailable),
        (BadInput("bad"), BadInput),
        (UnknownName("unknown"), BadInput),
        (type("Own", (BadInput,), {})("mine"), BadInput),
    ],
)
def test_what_the_user_can_mend_is_raised_again_on_the_other_side(error, kind):
    sent = pickle.loads(pickle.dumps(Raised.of(caught(error))))
    with pytest.raises(kind, match=str(error)) as raised:
        sent.raise_if_mendable()
    assert type(raised.value) is kind
    assert not sent.once_more


@pytest.mark.parametrize("error", [TwoArguments("a", "b"), SystemExit(1), Unprintable()])
def test_any_other_error_can_be_sent_and_is_not_tried_again(error):
    sent = pickle.loads(pickle.dumps(Raised.of(caught(error))))
    sent.raise_if_mendable()
    assert not sent.once_more
    assert "Traceback" in sent.details
    assert type(error).__name__ in sent.details


def test_what_no_text_can_hold_is_written_out():
    """As Python names a file whose name is not UTF-8."""
    raised = Raised.of(caught(ValueError("cannot read caf\udce9.txt")))
    for text in (raised.message, raised.details):
        assert r"caf\udce9.txt" in text.encode("utf-8").decode()


@pytest.mark.parametrize("error", [MemoryError("the GPU's"), OSError("disk")])
def test_what_the_surroundings_lacked_is_tried_again_unless_the_users_code_asked(error):
    assert Raised.of(caught(error)).once_more
    with users_code():
        assert not Raised.of(caught(error)).once_more


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("krumm", " Did you mean 'krum'?"), ("KRUM", " Did you mean 'krum'?"), ("xyz", ""), (3, "")],
)
def test_a_wrong_name_is_told_those_there_are_and_the_nearest(typed, hint):
    assert choose(typed, ("krum", "Bulyan")) == f"choose one of krum, Bulyan.{hint}"
    assert choose("bulyan", {"Bulyan": 1}).endswith("mean 'Bulyan'?")


def test_of_many_names_only_the_near_ones_are_told_where_there_are_any():
    many = [f"table{k}{part}" for k in range(20) for part in "ab"]
    near = choose("tabel2a", many)
    assert near.startswith("choose one of the 40 there are. Did you mean 'table2a', 'table")
    assert near.count("table") == 3
    assert choose("xyz", many) == f"choose one of {', '.join(many)}."


def test_control_characters_are_written_and_all_others_stay():
    assert one_line("two\nlines\t\x1b[31m\u2028\u202e") == r"two\nlines\t\x1b[31m\u2028\u202e"
    assert one_line("\u00b1 \u03b2 \u4e2d $x^{ |") == "\u00b1 \u03b2 \u4e2d $x^{ |"
