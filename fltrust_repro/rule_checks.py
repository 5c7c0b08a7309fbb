"""What a rule or a pre-aggregation breaks and keeps, on small updates of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fltrust_repro.aggregation import Rule, rules
from fltrust_repro.doors import as_numbers, lent
from fltrust_repro.preaggregations import PreAggregation, behind
from fltrust_repro.probes import (
    FAILS,
    FAR,
    HUGE,
    LARGE,
    NOTE,
    OK,
    SAME,
    C,
    D,
    Entry,
    Finding,
    Findings,
    M,
    Tried,
    apart,
    few,
    normal,
    nothing,
    repeated,
    seconds,
    server_of,
    time_told,
    tried,
    up_to,
    within,
)
from fltrust_repro.words import counted


@dataclass(frozen=True)
class Subject:
    """A rule, or a pre-aggregation with the median behind it, as it is asked."""

    entry: Entry  # what the user wrote, with its `parameters`
    rule: Callable[[], Rule]

    def ask(self, rows: np.ndarray, c: int, root: np.ndarray | None = None) -> Tried:
        """Ask once, with nothing remembered."""
        return tried(self.rule(), rows, c=c, state=server_of(rows, root))

    def trial(self, rows: list[np.ndarray], c: int) -> list[Tried]:
        """Ask as in a trial: what is remembered goes from one call to the next."""
        rule, state = self.rule(), server_of(rows[0])
        return [
            tried(rule, now, c=c, state=replace(state, w_re=server_of(now).w_re)) for now in rows
        ]

    def within(self, m: int) -> list[int]:
        """Return each c below m/2 that the limit allows."""
        return within(self.rule().limit, m)

    @property
    def draws(self) -> bool:
        """Whether it asks for the trial's generator."""
        return "rng" in self.rule().parameters


def check_rule(entry: Entry) -> Findings:
    """Yield what was found of a rule."""
    yield from _checked(Subject(entry, entry), _breakdown)


def check_preaggregation(entry: Entry) -> Findings:
    """Yield what was found of a pre-aggregation, by the median behind it."""
    subject = Subject(entry, lambda: behind(entry.name, rules["median"]))
    yield from _checked(subject, _rows_left)


def _checked(subject: Subject, own: Callable[[Subject], Findings]) -> Findings:
    allowed = tried(subject.within, M)
    if why := nothing(allowed, M):
        yield Finding(FAILS, why)
        return
    c = up_to(C, allowed.answer)
    first = subject.ask(normal(M, D), c)
    if first.fault:
        yield Finding(FAILS, f"{M} random updates of {D} numbers, c = {c}: {first.fault}")
        return
    yield Finding(OK, f"{M} random updates of {D} numbers, c = {c}: as many finite numbers")
    rows = [normal(M, D, seed) for seed in range(3)]
    trial, ask = (lambda: subject.trial(rows, c)), (lambda: subject.ask(rows[0], c).answer)
    twice = [*repeated(subject.entry, trial, ask)]
    yield from twice
    yield from _input(subject, c)
    repeats = all(finding.level == OK for finding in twice)
    if repeats:  # else two results tell nothing of what they are compared for
        yield from _symmetries(subject, c, first.answer)
    yield from _sizes(subject)
    if repeats:
        yield from _alike(subject, c)
    yield from _broken(subject, c)
    yield from own(subject)
    if subject.rule().leave_one_out is not None:
        yield from _left_out(subject, c)
    yield from _time(subject)


def _direct(subject: Subject, rows: np.ndarray, c: int) -> tuple[np.ndarray, Tried]:
    """What it was given, after the call, and what came of it, no door between."""
    one: Rule | PreAggregation = subject.entry()
    asked = tuple(name for name in one.parameters if name not in ("c", "beta"))
    known = {"c": c, "beta": c, **server_of(rows).told(asked, rows, one.name)}
    given = lent(rows.copy(), one.function)

    def ask() -> np.ndarray:
        made = one.function(given, **{name: known[name] for name in one.parameters})
        shape = rows.shape[1:] if isinstance(one, Rule) else (None, rows.shape[1])
        return as_numbers(made, shape, one.name, "its result")

    return given, tried(ask)


def _input(subject: Subject, c: int) -> Findings:
    rows = normal(M, D)
    given, _ = _direct(subject, rows, c)
    if np.array_equal(given, rows):
        yield Finding(OK, "leaves the updates that it is given as they are")
    else:
        yield Finding(NOTE, "changes the updates that it is given; no harm, they are a copy")


def _symmetries(subject: Subject, c: int, result: np.ndarray) -> Findings:
    rows, v, root = normal(M, D), normal(1, D, 5)[0], normal(1, D, 7)[0]
    order = np.random.default_rng(3).permutation(M)
    turned = subject.ask(rows[order], c)
    gap = np.inf if turned.fault else apart(turned.answer, result, rows)
    if gap <= SAME:
        yield Finding(OK, "the order of workers makes no difference")
    elif subject.draws:
        yield Finding(NOTE, "the order of workers makes a difference, as it draws among them")
    else:
        far = f"permuting them moves the result by {few(gap)} of an update's length"
        yield Finding(FAILS, f"treats workers by their place: {far}")
    moved, scaled = subject.ask(rows + v, c, root + v), subject.ask(10 * rows, c, 10 * root)
    for found, expected, kept, lost in (
        (moved, result + v, "all moved by v: so is the result",
         "all moved by v: the result is not, as where it counts from the received model"),
        (scaled, 10 * result, "ten times as long: so is the result",
         "ten times as long: the result is not"),
    ):  # fmt: skip
        close = not found.fault and apart(found.answer, expected, rows) <= 10 * SAME
        yield Finding(OK, f"updates {kept}") if close else Finding(NOTE, f"updates {lost}")


def _sizes(subject: Subject) -> Findings:
    """Few workers, one parameter, and each c that its limit allows."""
    allowed = {m: tried(subject.within, m) for m in (1, 2, 3, M)}
    for m, its in allowed.items():
        if its.problem:
            yield Finding(FAILS, f"{counted(m, 'worker')}: {its.problem}")
            return
    tries = [(m, d, c) for m in (1, 2, 3) for d in (1, D) for c in allowed[m].answer]
    tries += [(M, D, c) for c in allowed[M].answer]
    faults = {one: subject.ask(normal(*one[:2]), one[2]) for one in tries}
    wrong = [(_level(one[0], found), *one) for one, found in faults.items() if found.fault]
    for level, m, d, c in sorted(wrong, key=lambda one: one[0] != FAILS)[:1]:
        found = faults[m, d, c]
        place = f"{counted(m, 'worker')}, d = {d}, c = {c}: "
        limit = " (give it a limit, looked at before a trial begins)" * found.mendable
        yield Finding(level, f"{place}{found.fault}{limit}")
    if not wrong:
        fewest = min([m for m in (1, 2, 3) if allowed[m].answer], default=M)
        few_workers = f"from {counted(fewest, 'worker')} on"
        yield Finding(OK, f"{few_workers}, d = 1, c up to {allowed[M].answer[-1]} of {M}")


def _level(m: int, found: Tried) -> str:
    """How bad it is for a rule to fail with m workers; one or two are no federation."""
    return FAILS if m > 2 and not found.mendable else NOTE


def _alike(subject: Subject, c: int) -> Findings:
    """All updates zero, all the same."""
    zeros, same = np.zeros((M, D), np.float32), np.tile(normal(1, D), (M, 1))
    wrong = []
    for what, rows in (("all zero", zeros), ("all equal", same)):
        found = subject.ask(rows, c)
        if found.problem:
            yield Finding(FAILS, f"updates that are {what}: {found.problem}")
            return
        if found.fault:
            wrong.append(f"updates that are {what}: {found.fault}, which ends a trial")
        elif apart(found.answer, rows[0], same) > SAME:
            wrong.append(f"updates that are {what}: the result is another one")
    yield (
        Finding(NOTE, wrong[0])
        if wrong
        else Finding(OK, "updates all zero, all equal: so is the result")
    )


def _broken(subject: Subject, c: int) -> Findings:
    """Values that are not finite, or hardly, from c workers and from all."""
    reaching = []
    for what, value in (("NaN", np.nan), ("infinity", np.inf), ("1e30", 1e30)):
        for count in sorted({c, M}):
            rows = normal(M, D)
            rows[:count] = value
            found = subject.ask(rows, c)
            if found.problem:
                yield Finding(FAILS, f"{what} from {count} of {M} workers: {found.problem}")
                return
            if found.fault and 0 < count == c:
                reaching.append(what)
    if c == 0:
        return  # nobody else may send such values
    if reaching:
        what = ", ".join(reaching)
        yield Finding(NOTE, f"{what} from {c} of {M} workers: the result is not finite")
    else:
        yield Finding(OK, f"NaN, infinity, 1e30 from {c} of {M} workers: the result is finite")


def _breakdown(subject: Subject) -> Findings:
    """Huge updates of as many workers as c says."""
    allowed = [c for c in subject.within(M) if c > 0]
    for c in allowed:
        rows = normal(M, D)
        honest = rows[c:].copy()
        rows[:c] = -HUGE * honest.mean(axis=0)
        place = f"huge updates of {c} of {M} workers, c = {c}: "
        found, mean = subject.ask(rows, c), honest.mean(axis=0)
        if found.problem:
            continue  # as with any updates, and so told
        if found.fault:
            yield Finding(NOTE, place + found.fault)
            return
        far = np.linalg.norm(found.answer - mean) / np.linalg.norm(honest - mean, axis=1).max()
        if far > FAR:
            drag = f"the result goes {few(far)} times as far as any honest one lies"
            yield Finding(NOTE, place + drag)
            return
    if allowed:
        yield Finding(OK, "huge updates of c workers: the result stays among the honest ones")


def _left_out(subject: Subject, c: int) -> Findings:
    """Whether its fast way without each worker gives what it gives without each worker."""
    rows = normal(M, D)
    rule = subject.rule().seen_at(server_of(rows))
    slow, fast = (
        tried(one.without_each, rows, c=c) for one in (replace(rule, leave_one_out=None), rule)
    )
    if fast.problem:
        yield Finding(FAILS, f"leave_one_out: {fast.problem}")
    elif not slow.problem:
        one, other = (found.answer.aggregates[found.answer.which] for found in (slow, fast))
        gap = apart(one, other, rows)
        same = "leave_one_out: what the rule gives without each worker"
        yield (
            Finding(OK, same)
            if gap <= SAME
            else Finding(FAILS, f"{same} is another, by {few(gap)} of an update's length")
        )


def _rows_left(subject: Subject) -> Findings:
    """As many rows as it says that it leaves."""
    step: PreAggregation = subject.entry()
    for m in (3, 7, M):
        allowed = tried(subject.within, m)
        if not allowed.answer:
            continue  # as `_sizes` tells of few workers
        _, found = _direct(subject, normal(m, D), allowed.answer[-1])
        told, problem, *_ = tried(step.rows, m)
        if problem:
            yield Finding(FAILS, f"rows, asked about {m} updates: {problem}")
            return
        if not found.problem and len(found.answer) != told:
            rows = f"rows says that it leaves {told} of {m} updates, but it returns"
            yield Finding(FAILS, f"{rows} {len(found.answer)}; the rule's limit is checked by it")
            return
    yield Finding(OK, "leaves as many updates as its rows says")


def _time(subject: Subject) -> Findings:
    rows, krum, m = normal(*LARGE), rules["krum"], LARGE[0]

    def ask(rule: Rule, c: int) -> Tried:
        return tried(rule, rows, c=c, state=server_of(rows))

    allowed = tried(subject.within, m)
    if why := nothing(allowed, m):
        yield Finding(FAILS if allowed.problem else NOTE, f"{why}: time is not taken")
        return
    for c in dict.fromkeys(up_to(most, allowed.answer) for most in (20, C)):
        problem = ask(subject.rule(), c).problem  # of many it may take too long
        if not problem:
            break
    else:
        yield Finding(FAILS, f"{m} x {LARGE[1]:,} updates, c = {c}: {problem}")
        return
    ask(krum, c)
    own, other = seconds(lambda: ask(subject.rule(), c)), seconds(lambda: ask(krum, c))
    by = "Krum's" if subject.rule is subject.entry else "Krum's, with the median behind it"
    yield time_told(own, other, by)
