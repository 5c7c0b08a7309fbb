"""What a user's entries are tried on, and how what they make of it is judged.

A finding is `FAILS` for what a trial would stumble over or could not repeat, `NOTE` for what good
entries may well do, and `OK`.
"""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fltrust_repro.doors import Limit
from fltrust_repro.errors import BadInput, DataUnavailable, WrongNumbers, in_words
from fltrust_repro.plugins import Plugin
from fltrust_repro.registry import Registry
from fltrust_repro.server import ServerState
from fltrust_repro.trial_process import afresh

OK, NOTE, FAILS = "ok", "note", "fails"
M, D, C = 20, 50, 4  # workers, parameters and compromised ones of most tries
LARGE = 100, 7_850  # updates of the paper's LR on MNIST, on which time is taken
SAME = 1e-3  # of an update's length: two results that are no further apart are the same
FAR = 3.0  # times as far as any honest update: what is dragged farther is no longer among them
HUGE = 1e6

Answer = TypeVar("Answer")


class Finding(NamedTuple):
    """One line of what was found."""

    level: str
    text: str


Findings = Iterator[Finding]


@dataclass(frozen=True)
class Entry:
    """An entry of a registry by its name, the plug-ins that a trial would execute, and its data."""

    registry: Registry[Any]
    name: str
    plugins: tuple[Plugin, ...] = ()
    data_dir: Path | None = None

    def __call__(self) -> Any:
        """Return the entry as it is registered now."""
        return self.registry[self.name]

    def trial(self, run: Callable[[], Answer]) -> Answer:
        """Run something as a trial of its own: nothing is left of what plug-ins kept."""
        with afresh(0, self.plugins):
            return run()


class Tried(NamedTuple):
    """What came of a call: an answer, or in words what it raised."""

    answer: Any
    problem: str = ""
    mendable: bool = False  # it was refused in a sentence for the user
    missing: bool = False  # data that are not at hand

    @property
    def fault(self) -> str:
        """What is wrong with a result that should be finite numbers; empty where it is right."""
        finite = self.problem or np.isfinite(self.answer).all()
        return self.problem or ("" if finite else "the result is not finite")


def tried(call: Callable[..., Any], *given: Any, **named: Any) -> Tried:
    """Call a user's code, whatever it raises; what it prints goes to stderr."""
    try:
        silent: Any = np.errstate(all="ignore")
        with silent, warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            return Tried(call(*given, **named))
    except (Exception, SystemExit) as error:
        # That what the user's code returns is no array of its size is not for others to mend.
        mendable = isinstance(error, BadInput) and not isinstance(error, WrongNumbers)
        return Tried(None, in_words(error), mendable, isinstance(error, DataUnavailable))


def within(limit: Limit | None, m: int, least: int = 0) -> list[int]:
    """Return each c from `least` to below m/2 that a limit allows, with beta the same."""
    return [c for c in range(least, (m + 1) // 2) if limit is None or limit.allows(m, c, c)]


def nothing(allowed: Tried, m: int) -> str:
    """Why nothing can be tried of m workers, by what `within` gave; empty where something can."""
    none = "" if allowed.answer else f"its limit allows no c at all of {m} workers"
    return allowed.problem or none


def up_to(most: int, allowed: Sequence[int]) -> int:
    """Return the largest c of those that is at most `most`, or the smallest where none is."""
    return max((c for c in allowed if c <= most), default=min(allowed))


def normal(m: int, d: int, seed: int = 0) -> np.ndarray:
    """Updates (m, d) of workers who go one way, each with as much noise of its own."""
    way = np.random.default_rng(1).standard_normal(d)
    noise = np.random.default_rng([2, seed]).standard_normal((m, d))
    return (0.1 * (way + noise)).astype(np.float32)


def server_of(rows: np.ndarray, root: np.ndarray | None = None) -> ServerState:
    """What the master device holds beside updates (m, d), for who asks for it."""
    d = rows.shape[1]
    own = normal(1, d, 7)[0] if root is None else root
    layers = (slice(0, d - d // 3), slice(d - d // 3, d))[: min(d // 3, 1) + 1]
    workers, w_re = np.arange(len(rows)), np.zeros(d, dtype=np.float32)
    return ServerState(
        np.random.default_rng(0), w_re=w_re, workers=workers, layers=layers, root=own,
        judge=judge,
    )  # fmt: skip


def judge(models: Any) -> tuple[np.ndarray, np.ndarray]:
    """Error rates and losses of models (k, d), the less the nearer to where workers go."""
    models = np.asarray(models, dtype=np.float64)
    with np.errstate(all="ignore"):
        losses = np.square(models - 10 * normal(1, models.shape[1])[0]).mean(axis=1)
        return np.nan_to_num(losses / (1 + losses), nan=1.0), losses


def seed_shared() -> None:
    """Set the generators that a process shares, as before each trial."""
    random.seed(0)
    np.random.seed(0)


def apart(one: Any, other: Any, rows: np.ndarray) -> float:
    """How far two results are apart, over the median length of updates (m, d)."""
    unit = float(np.median(np.linalg.norm(rows.astype(np.float64), axis=1)))
    gap = np.linalg.norm(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64))
    return float(gap / unit) if np.isfinite(gap) else np.inf


def same_bits(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether two rows of results are equal, NaN to NaN."""
    pairs = zip(one, other)
    return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in pairs)


def seconds(call: Callable[[], Any]) -> float:
    """Of a call that was made before: the shortest of three, of a slow one the only."""
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < 1:
        started = perf_counter()
        call()
        taken.append(perf_counter() - started)
    return min(taken)


def time_told(own: float, other: float, beside: str) -> Finding:
    """The line about time."""
    ratio = own / max(other, 1e-9)
    times = f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"
    size = f"{LARGE[0]} x {LARGE[1]:,}"
    return Finding(OK, f"time: {1000 * own:,.1f} ms for {size} updates, {times} times {beside}")


def few(number: float) -> str:
    """Return a number as a line tells it."""
    if number < 100:
        return f"{number:.2g}"
    return f"{number:,.0f}" if number < 1e6 else f"{number:.0e}"


def repeated(entry: Entry, trial: Callable[[], list[Tried]], ask: Callable[[], Any]) -> Findings:
    """Whether the same trial twice, and the same question twice, is answered with the same bits.

    `trial` asks three times as a trial does; `ask` answers one question from a new start.
    """
    first, second = (entry.trial(trial) for _ in range(2))
    for iteration, found in enumerate(first, 1):
        if found.problem:
            yield Finding(FAILS, f"iteration {iteration} of a trial: {found.problem}")
            return
    if not same_bits(*([one.answer for one in some] for some in (first, second))):
        yield Finding(
            FAILS,
            "the same trial twice gives different results: it draws from a generator without the "
            "trial's seed, or keeps something outside of its file; ask for rng and memory",
        )
        return

    def questions() -> list[Any]:
        found = []
        for shared in (True, True, False):
            if shared:
                seed_shared()
            found.append(ask())
        return found

    one, again, drawn = entry.trial(questions)
    if not same_bits([one], [again]):
        yield Finding(
            NOTE,
            "remembers calls in variables of its own, which attackers' questions move too; "
            "ask for memory",
        )
    elif not same_bits([again], [drawn]):
        yield Finding(
            NOTE, "draws from a generator that all code shares, which questions move; ask for rng"
        )
    else:
        yield Finding(OK, "the same trial twice, and the same question twice: the same result")
