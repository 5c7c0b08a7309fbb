"""The doors to rules, attacks and defenses: arrays come in and go out, and are checked, here alone.

Inside, an array is a plain numpy array: float32, on the host, writable, row after row in memory. A
user gives numpy's arrays, MXNet's or lists, of any numbers; beyond float32's range they become
infinite. NaN and infinity are let in: to bear them is a rule's business. What comes back is of the
kind that was given. Nothing here loads MXNet for a user who does not.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, Union

import numpy as np

from fltrust_repro import backend
from fltrust_repro.errors import BadInput, BeyondLimit, WrongNumbers, shown
from fltrust_repro.registry import is_built_in, place_of

if TYPE_CHECKING:
    from mxnet.ndarray import NDArray

Numbers = Union["NDArray", np.ndarray]
"""An array of numbers, MXNet's or numpy's."""

Case = TypeVar("Case")

LAST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Limit:
    """A quantity of m, c and beta that has to be at least 1 for a rule or attack to make sense.

    Where something before a rule makes other rows of what m workers send, m stands for as many as
    `rows` tells.

    >>> import fltrust_repro as fl
    >>> half = fl.Limit("m - 2c", lambda m, c, beta: m - 2 * c)  # @fl.rule("my-rule", limit=half)
    >>> half.allows(m=10, c=4, beta=4), half.allows(m=10, c=5, beta=5)
    (True, False)
    """

    text: str
    value: Callable[[int, int, int], int]
    rows: Callable[[int], int] | None = None

    def allows(self, m: int, c: int, beta: int) -> bool:
        """Whether the quantity is at least 1; `BadInput` where it cannot be computed."""
        return self._quantity("a plug-in", m, c, beta)[1] >= 1

    def check(self, user: str, m: int, c: int, beta: int) -> None:
        """Raise `BeyondLimit` where the quantity is below 1."""
        left, value = self._quantity(user, m, c, beta)
        if value < 1:
            rows = f"{m} workers" if self.rows is None else f"{left} rows, of {m} workers"
            raise BeyondLimit(
                f"{user} needs {self.text} >= 1, but with m = {rows}, c = {c} compromised and "
                f"beta = {beta} it is {value}; use more workers, or a smaller c or beta."
            )

    def _quantity(self, user: str, m: int, c: int, beta: int) -> tuple[int, int]:
        """What m stands for, and the quantity."""
        try:
            left = m if self.rows is None else self.rows(m)
            return left, int(self.value(left, c, beta))
        except BadInput:  # of a parameter that it reads
            raise
        except (Exception, SystemExit) as error:  # a plug-in's limit may be anything
            problem = f"{type(error).__name__}: {error}"
            raise BadInput(f"the limit of {user} cannot be computed ({problem}).") from error


def check_limit(user: str, limit: object) -> None:
    """Raise `BadInput` unless what stands for a limit is one, or None."""
    if limit is not None and not isinstance(limit, Limit):
        example = 'fl.Limit("m - 2c", lambda m, c, beta: m - 2 * c)'
        raise BadInput(f"{user}: its limit is {shown(limit)}; give a Limit, as {example}.")


def whole_number(name: str, value: object, least: int, most: int) -> int:
    """Return what a user gave as a whole number within bounds, Python's or numpy's.

    Raises `BadInput` for anything else.
    """
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:  # type: ignore[operator]
        allowed = f"a whole number from {least} to {most:,}"
        raise BadInput(f"{name} is {shown(value)}; give {allowed}.")
    return int(value)  # type: ignore[call-overload]


def is_ndarray(values: object) -> bool:
    """Whether something is an array of MXNet's, without loading it."""
    return "mxnet" in sys.modules and isinstance(values, backend.NDArray)


def as_numbers(values: Any, shape: tuple[int | None, ...], user: str, what: str) -> np.ndarray:
    """Return what a user gave as a float32 array, sharing the memory of a float32 one on the host.

    In `shape` None stands for any length from 1 on, m or d. Raises `WrongNumbers`, in which `user`
    takes or gives `what`, for another shape or for what holds no real numbers.
    """
    array = _on_host(values)
    fits = array.ndim == len(shape) and all(
        have > 0 and wanted in (None, have) for have, wanted in zip(array.shape, shape)
    )
    if not fits or array.dtype.kind not in "fiu":
        letters = iter("md")
        lengths = [next(letters) if n is None else str(n) for n in shape]
        told = "(" + ", ".join(lengths) + ",)"[len(shape) > 1 :]
        given = "no array" if array.dtype.kind == "O" else f"{array.dtype} {array.shape}"
        raise WrongNumbers(f"{user}: {what} must be numbers of shape {told}, not {given}.")
    with np.errstate(over="ignore"):
        return np.require(array, np.float32, ["C", "A", "W", "E"])


def _on_host(values: Any) -> np.ndarray:
    if is_ndarray(values):
        shares = values.dtype == np.float32 and values.stype == "default"
        shares = shares and not backend.is_gpu(values.ctx)
        return backend.host_view(values) if shares else values.asnumpy()
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # a ragged list, a tensor of another device
        return np.asarray(None)


def as_updates(values: Any, user: str) -> np.ndarray:
    """Take a matrix of updates (m, d), m and d at least 1, as `as_numbers` does."""
    return as_numbers(values, (None, None), user, "updates")


def take_in(case: object, user: str, updates: str) -> None:
    """Make a case's updates (m, d), the field of that name, and its `w_re` (d,) checked arrays."""
    checked = as_updates(getattr(case, updates), user)
    w_re = as_numbers(vars(case)["w_re"], checked.shape[1:], user, "the received model")
    object.__setattr__(case, updates, checked)
    object.__setattr__(case, "w_re", w_re)


def as_given(result: np.ndarray, given: Any) -> Numbers:
    """Return a result as the kind of array that was given: an NDArray where that is one."""
    if not is_ndarray(given):
        return result
    return backend.to_ndarray(result).as_in_context(given.ctx)


class LentArray(np.ndarray):
    """A plug-in's own copy of an array, which answers `asnumpy` as MXNet's arrays do."""

    def asnumpy(self) -> np.ndarray:
        """Return a copy as a plain numpy array."""
        return np.array(self)

    # Numpy makes numbers of what is computed without a shape for its own class only.

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.item(), digits)

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.item())


def lent(array: np.ndarray, function: Callable) -> np.ndarray:
    """Return what a registered function is given: a plug-in gets a copy, which it may change."""
    return array if is_built_in(function) else array.copy().view(LentArray)


def lent_values(values: Mapping[str, Any], function: Callable) -> dict[str, Any]:
    """Return what a registered function is given by name, each array `lent`."""
    return {name: lent(value, function) if isinstance(value, np.ndarray) else value
            for name, value in values.items()}  # fmt: skip


def lent_parts(case: Case, function: Callable) -> Case:
    """Return the case that a registered function is given, each of its arrays `lent`."""
    given = copy.copy(case)
    for name, value in lent_values(vars(case), function).items():
        object.__setattr__(given, name, value)
    return given


def taken_back(
    values: Any, shape: tuple[int, ...], function: Callable, user: str, what: str
) -> np.ndarray:
    """Take what a registered function returns; of a plug-in a copy, as it may keep its own."""
    numbers = as_numbers(values, shape, user + place_of(function), what)
    return numbers if is_built_in(function) else numbers.copy()
