"""Aggregation rules at growing m and d, against other libraries' in the same run.

Each library has a process of its own, in which one updates matrix after the other is made; freed
memory is given back before each rule, so that a peak is the rule's own. With two workers that
send NaN and infinity, only our rules are measured: the others promise nothing there. The distances
that Krum and Bulyan begin with stand apart, beside numpy's Gram matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from machine import Machine, Work
from measure import MIB, Row, free_memory, fresh_process, peak, timed
from peers import DISTANCES, LIBRARIES, OURS, Prepare

from fltrust_repro.kernels import selection_network, sorting_network

RULES = ("mean", "trimmed-mean", "median", "krum", "bulyan")
SECTION = "rules"
_COMPARED = 10_000  # parameters of a result that are held against another library's
_SMALL = 1000  # parameters of the updates on which code is compiled and buffers are made


class Sizes(NamedTuple):
    """What is measured: every m with every d."""

    workers: tuple[int, ...]
    parameters: tuple[int, ...]

    def all(self) -> list[tuple[int, int]]:
        """Return (m, d) from small to large, so that the small ones tell what large ones take."""
        return sorted(
            ((m, d) for m in self.workers for d in self.parameters), key=lambda s: s[0] * s[1]
        )


def work(rule: str, m: int, d: int) -> Work:
    """What a rule has to do at least: read the updates once, write d numbers, and its formula."""
    c = m // 5
    distances = m * (m + 1.0) * d  # of the symmetric product, one half
    flops = {"mean": m * d, "krum": distances, "bulyan": distances, DISTANCES: distances}
    networks = {
        "trimmed-mean": selection_network(m, c, m - c),
        "median": selection_network(m, (m - 1) // 2, m // 2 + 1),
        "bulyan": sorting_network(m - 2 * c),
    }
    comparators = len(networks.get(rule, ())) * d
    reads = 2 if rule == "bulyan" else 1  # for the distances, then for the columns
    return Work(4.0 * d * (reads * m + 1), flops.get(rule, 0), comparators)


# --- in the library's process


class _Process:
    """What the process holds between two calls."""

    prepared: dict[str, Prepare]
    updates: np.ndarray


def _load(library: str) -> list[str]:
    _Process.prepared = LIBRARIES[library].load()
    return list(_Process.prepared)


def _make_updates(m: int, d: int, non_finite: bool) -> np.ndarray:
    updates = np.empty((m, d), dtype=np.float32)
    rng = np.random.default_rng(0)
    for row in updates:  # in place, without a second copy at any time
        rng.standard_normal(out=row, dtype=np.float32)
    if non_finite:
        updates[0, 0], updates[1] = np.nan, np.inf
    return updates


def _hold_updates(m: int, d: int, non_finite: bool) -> None:
    _Process.updates = np.empty(0)  # freed before the next ones are made
    _Process.updates = _make_updates(m, d, non_finite)


def _measure(rule: str, budget: float) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of one rule on the updates at hand, and a sample of its result."""
    updates = _Process.updates
    m, d = updates.shape
    prepare = _Process.prepared[rule]
    prepare(_make_updates(m, _SMALL, False), m // 5)()
    aggregate = prepare(updates, m // 5)
    results = []

    def once() -> None:
        results.clear()  # a result is freed before the next one is made, as in training
        results.append(aggregate())

    with peak() as most:
        figures = timed(once, budget)
    return {**figures, "memory": most.memory}, np.array(results[0][:: max(1, d // _COMPARED)])


# --- in the suite's process


@dataclass
class Bench:
    """All cases of the rules, one library after the other, ours first."""

    machine: Machine
    sizes: Sizes
    patience: float  # seconds; a peer's case that would take longer is skipped
    budget: float = 1.5  # seconds for the repetitions of a case
    non_finite: bool = False
    say: Callable[[str], None] = print
    done: dict[tuple[str, str, int, int], Row] = field(default_factory=dict)
    results: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict)

    def rows(self, libraries: list[str]) -> Iterator[Row]:
        """Measure every rule of these libraries at every size, and distances beside numpy's."""
        cases = (*RULES, DISTANCES) if "numpy" in libraries else RULES
        for name in libraries:
            missing = LIBRARIES[name].missing
            if missing:
                yield Row(SECTION, "every rule", name, note=f"skipped: {missing} is not installed")
            else:
                yield from self._library(name, cases)

    def _library(self, name: str, cases: tuple[str, ...]) -> Iterator[Row]:
        process = fresh_process()
        try:
            known = process.submit(_load, name).result()
        except Exception as error:  # whatever a damaged or mismatched installation raises
            yield Row(SECTION, "every rule", name, note=f"failed: it does not load ({error})")
            return
        for m, d in self.sizes.all():
            held = False
            for rule in (rule for rule in cases if rule in known):
                section = SECTION if rule in RULES else DISTANCES
                row = Row(section, rule, name, m, d, **self.machine.limit(work(rule, m, d)))
                reason = self._reason_to_skip(row)
                if reason:
                    yield replace(row, note=f"skipped: {reason}")
                    continue
                try:
                    if not held:
                        self.say(f"rules: {name}, m = {m}, d = {d:,}")
                        process.submit(_hold_updates, m, d, self.non_finite).result()
                        held = True
                    figures, sample = process.submit(_measure, rule, self.budget).result()
                except BrokenProcessPool:
                    yield replace(row, note="failed: its process died, as for want of memory")
                    process, held = fresh_process(), False
                    process.submit(_load, name).result()
                    continue
                except Exception as error:  # whatever another library raises
                    yield replace(row, note=f"failed: {str(error).splitlines()[0]}")
                    continue
                row = replace(row, note=self._agreement(row, sample), **figures)
                self.done[name, rule, m, d] = row
                yield row
        process.shutdown()

    def _reason_to_skip(self, row: Row) -> str:
        """Tell from smaller cases why a case will not be measured; empty if it will."""
        last, times = self._nearest(row)
        if last is None and row.d > min(self.sizes.parameters):
            return f"no number at a smaller d that tells what m = {row.m} takes"
        if last and row.who != OURS and last.median * times > self.patience:
            return f"would take about {last.median * times:,.0f} s"
        needed = 4 * row.m * row.d + ((last.memory or 0) * MIB * times if last else 0)
        free = free_memory()
        if free is not None and needed > 0.9 * free:
            return f"would take {needed / MIB:,.0f} MiB, {free / MIB:,.0f} are free"
        return ""

    def _nearest(self, row: Row) -> tuple[Row | None, float]:
        """The measured case that tells most of this one, and how many times as much this takes.

        In d that is their ratio; in m their ratio to the power seen so far, or cubed.
        """
        known = [
            done for done in self.done.values() if (done.who, done.case) == (row.who, row.case)
        ]
        same_m = [done for done in known if done.m == row.m and done.d < row.d]
        if same_m:
            last = max(same_m, key=lambda done: done.d)
            return last, row.d / last.d
        same_d = [done for done in known if done.d == row.d and done.m < row.m]
        if not same_d:
            return None, 1
        *_, last = same_d = sorted(same_d, key=lambda done: done.m)
        power = 3.0
        if len(same_d) > 1:
            before = same_d[-2]
            power = np.log(last.median / before.median) / np.log(last.m / before.m)
        return last, (row.m / last.m) ** power

    def _agreement(self, row: Row, sample: np.ndarray) -> str:
        """Whether a peer's result is ours, in words."""
        key = row.case, row.m, row.d
        if row.case == DISTANCES:
            return ""
        if row.who == OURS:
            self.results[key] = sample
            return "two workers non-finite" if self.non_finite else ""
        if key not in self.results:
            return "not compared"
        wrong = ~np.isclose(sample, self.results[key], rtol=1e-4, atol=1e-5)
        if not wrong.any():
            return "same result"
        return "another row" if row.case == "krum" else f"{100 * wrong.mean():.2g}% differ"


def growth(rows: list[Row]) -> dict[str, dict[str, tuple[float, float]]]:
    """Exponents of time in m and in d by rule and library: least squares over the logarithms."""
    fitted: dict[str, dict[str, tuple[float, float]]] = {}
    for case, who in dict.fromkeys((row.case, row.who) for row in rows if row.median):
        known = [row for row in rows if (row.case, row.who) == (case, who) and row.median]
        logs = np.log([(row.m, row.d, row.median) for row in known])
        columns = np.column_stack([np.ones(len(logs)), logs[:, :2]])
        if np.linalg.matrix_rank(columns) == 3:
            _, in_m, in_d = np.linalg.lstsq(columns, logs[:, 2], rcond=None)[0]
            fitted.setdefault(case, {})[who] = (float(in_m), float(in_d))
    return fitted
