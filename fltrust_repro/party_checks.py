"""What an attack or a defense breaks and keeps, on small updates of every kind."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fltrust_repro import poisoning
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks, undone
from fltrust_repro.defenses import Defense, Suspicion
from fltrust_repro.probes import (
    FAILS,
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
    judge,
    normal,
    nothing,
    repeated,
    same_bits,
    seconds,
    server_of,
    time_told,
    tried,
    up_to,
    within,
)
from fltrust_repro.server import ServerState
from fltrust_repro.threat import Attack, Master, Parameters, Round
from fltrust_repro.words import counted

ASKED_RULES = ("mean", "krum", "trimmed-mean", "median")


def _sizes(least: int) -> dict[str, tuple[np.ndarray, int]]:
    """Few workers, one parameter, each c from `least` to below m/2: by words, updates and c."""
    return {
        f"{m} workers, d = {d}, c = {c}": (normal(m, d), c)
        for m, d in ((3, 1), (3, D), (M, D))
        for c in range(least, (m + 1) // 2)
    }


# ---- attacks


def check_attack(entry: Entry) -> Findings:
    """Yield what was found of an attack on updates; one on data is looked at where it changes them.

    Its harm, in one iteration, is told and never judged.
    """
    one: Attack = entry()
    if one.poison is not None:
        yield from _labels(one)
    if one.craft is None:
        if one.inject is not None:
            yield Finding(NOTE, "injects examples, which is not tried here: run a trial")
        elif one.poison is None:
            yield Finding(OK, "changes nothing")
        return
    allowed = tried(within, one.limit, M, 1)
    if why := nothing(allowed, M):
        yield Finding(FAILS, why)
        return
    c = up_to(C, allowed.answer)
    first = _crafted(one, normal(M, D), c)
    if first.problem:
        yield Finding(FAILS, f"{M} random updates of {D} numbers, c = {c}: {first.problem}")
        return
    yield Finding(OK, f"{M} random updates of {D} numbers, c = {c}: {counted(c, 'update')}")
    if not np.isfinite(first.answer).all():
        yield Finding(NOTE, "sends values that are not finite, which most rules leave out")
    rows = [normal(M, D, seed) for seed in range(3)]
    yield from repeated(
        entry,
        lambda: _attacked_trial(entry(), rows, c),
        lambda: _crafted(entry(), rows[0], c).answer,
    )
    yield from _knowledge(one, c)
    yield from _attack_sizes(one, c)
    if one.backdoor is not None:
        yield from _trigger(one.backdoor)
    yield from _harm(one, c)
    yield from _attack_time(entry)


def _step(
    one: Attack, rows: np.ndarray, c: int, knowledge: str = "full", rule: str = "mean"
) -> Round:
    """What the attacker is given outside of a trial, as `Attack.__call__` gives it."""
    state = server_of(rows)
    master = Master(len(rows), c, c, rules[rule].seen_at(state))
    known = rows[:c] if knowledge == "partial" and one.has_knowledge else rows
    knowledge = knowledge if one.has_knowledge else "full"
    w_re, root = np.zeros(rows.shape[1], np.float32), state.root if one.asks else None
    rng = np.random.default_rng(0)
    return Round(known.copy(), c, w_re, knowledge, rng, master, Parameters(), root=root)


def _crafted(one: Attack, rows: np.ndarray, c: int, *how: str) -> Tried:
    """What c workers send, with nothing remembered; a limit that is not met counts as refused."""

    def craft() -> Any:
        if one.limit is not None:
            one.limit.check(f"attack {one.name!r}", len(rows), c, c)
        return one.crafted(_step(one, rows, c, *how))

    return tried(craft)


def _attacked_trial(one: Attack, rows: list[np.ndarray], c: int) -> list[Tried]:
    first = _step(one, rows[0], c)
    kept: Any = {"memory": first.memory, "rng": first.rng, "notes": first.notes}
    return [tried(one.crafted, replace(_step(one, now, c), **kept)) for now in rows]


def _knowledge(one: Attack, c: int) -> Findings:
    rows = normal(M, D)
    other = np.concatenate([rows[:c], normal(M - c, D, 9)])
    if one.has_knowledge:
        both = [_crafted(one, known, c, "partial") for known in (rows, other)]
        if problem := both[0].problem:
            yield Finding(FAILS, f"partial knowledge: {problem}")
        elif not same_bits([both[0].answer], [both[1].answer]):
            unknown = "depends on benign updates, which it should not know"
            yield Finding(FAILS, f"partial knowledge: what it sends {unknown}")
        else:
            yield Finding(OK, "partial knowledge: what it sends depends on its own updates only")
    order = np.arange(M)
    order[c:] = c + np.random.default_rng(3).permutation(M - c)
    sent = [_crafted(one, known, c) for known in (rows, rows[order])]
    if sent[1].problem or apart(sent[0].answer, sent[1].answer, rows) > SAME:
        yield Finding(NOTE, "the order of benign workers makes a difference to what it sends")


def _attack_sizes(one: Attack, c: int) -> Findings:
    """Few workers, one parameter, any c below m/2; and updates that are alike, of c workers."""
    cases = _sizes(least=1)
    cases["updates that are all zero"] = np.zeros((M, D), np.float32), c
    cases["updates that are all equal"] = np.tile(normal(1, D), (M, 1)), c
    for place, (rows, its) in cases.items():
        found = _crafted(one, rows, its)
        limited = one.limit and tried(one.limit.allows, len(rows), its, its).answer is False
        if found.problem and not limited:
            remedy = " (give it a limit, looked at before a trial begins)" * found.mendable
            yield Finding(NOTE if found.mendable else FAILS, f"{place}: {found.problem}{remedy}")
            return
    yield Finding(OK, f"3 workers, d = 1, each c it allows of {M}, updates all zero or equal")


def _trigger(backdoor: poisoning.Backdoor) -> Findings:
    """Whether it leaves images of both types what they are."""
    shape = (2, 1, 8, 8)
    for images in (np.zeros(shape, np.float32), np.zeros(shape, np.uint8)):
        if problem := tried(backdoor.triggered, images).problem:
            yield Finding(FAILS, problem)
            return
    yield Finding(OK, "its trigger leaves images of float32 and of uint8 what they are")


def _harm(one: Attack, c: int) -> Findings:
    """Of the step that a rule would have made, the share undone, beside the paper's attack."""
    rows, told, most = normal(M, D), [], 0.0
    for name in ASKED_RULES:
        paper = "krum" if name == "krum" else "trimmed-mean"
        shares = []
        for attack in (one, attacks[paper]):
            sent = _crafted(attack, rows, c, "full", name)
            if sent.problem:
                level = NOTE if sent.mendable else FAILS
                yield Finding(level, f"against {name}: {sent.problem}")
                return
            shares.append(_undone(name, rows, sent.answer))
        most = max(most, abs(shares[0]))
        told.append(f"{name} {_share(shares[0])} ({_share(shares[1])})")
    text = f"share of one step undone (by the paper's attack): {', '.join(told)}"
    yield Finding(OK if most > 0.01 else NOTE, text)


def _share(share: float) -> str:
    return f"{share:.2f}" if abs(share) < 100 else few(share)


def _undone(name: str, rows: np.ndarray, sent: np.ndarray) -> float:
    rule, attacked, c = rules[name], rows.copy(), len(sent)
    attacked[:c] = sent
    with np.errstate(all="ignore"):
        before, after = (np.asarray(rule(x, c=c)) for x in (rows, attacked))
        return undone(before, after)


def _attack_time(entry: Entry) -> Findings:
    rows, paper = normal(*LARGE), attacks["trimmed-mean"]
    allowed = tried(within, entry().limit, LARGE[0], 1)
    if why := nothing(allowed, LARGE[0]):
        yield Finding(FAILS if allowed.problem else NOTE, f"{why}: time is not taken")
        return
    c = up_to(20, allowed.answer)
    ask = partial(_crafted, rows=rows, c=c)
    if problem := ask(entry()).problem:
        yield Finding(FAILS, f"{LARGE[0]} x {LARGE[1]:,} updates, c = {c}: {problem}")
        return
    ask(paper)
    own, other = seconds(lambda: ask(entry())), seconds(lambda: ask(paper))
    yield time_told(own, other, "the trimmed mean attack's")


def _labels(one: Attack) -> Findings:
    """What it makes of the labels of batches, of a model whose scores are drawn."""
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=(2, C, 8)).astype(np.int32)

    def relabelled() -> np.ndarray:
        given = one.relabel(
            labels.copy(), 10, np.random.default_rng(0), lambda: rng.random((2, C, 8, 10))
        )
        return poisoning.checked_labels(one.name, given, labels.shape, 10)

    found = tried(relabelled)
    if found.problem:
        yield Finding(FAILS, f"labels of batches: {found.problem}")
        return
    share = float((found.answer != labels).mean())
    yield Finding(OK, f"changes {share:.0%} of the labels of the compromised workers' batches")


# ---- defenses


def check_defense(entry: Entry) -> Findings:
    """Yield what was found of a defense; whom it removes is not compared with who attacks."""
    one: Defense = entry()
    first = _removed(one, normal(M, D), C)
    if first.problem:
        yield Finding(FAILS, f"{M} random updates of {D} numbers, c = {C}: {first.problem}")
        return
    most = f"at most {one.most} times c"
    removed = f"removes {len(first.answer)} of {M} workers, {most}"
    yield Finding(OK, f"{M} random updates of {D} numbers, c = {C}: {removed}")
    rows = [normal(M, D, seed) for seed in range(3)]
    yield from repeated(
        entry,
        lambda: [_removed(entry(), now, C) for now in rows],
        lambda: _removed(entry(), rows[0], C).answer,
    )
    yield from _places(one, set(first.answer.tolist()))
    yield from _defense_sizes(one)
    large = normal(*LARGE)
    if problem := _removed(one, large, 20).problem:
        yield Finding(FAILS, f"{LARGE[0]} x {LARGE[1]:,} updates, c = 20: {problem}")
        return
    krum, state = rules["krum"], ServerState()
    krum(large, c=20, state=state)
    own, other = seconds(lambda: _removed(entry(), large, 20)), seconds(lambda: krum(large, c=20))
    yield time_told(own, other, "Krum's")


def _removed(
    one: Defense, rows: np.ndarray, c: int, rng: np.random.Generator | None = None
) -> Tried:
    rule, w_re = rules["median"].seen_at(server_of(rows)), np.zeros(rows.shape[1], np.float32)
    rng = np.random.default_rng(0) if rng is None else rng
    return tried(lambda: np.sort(one.removed(Suspicion(rows, w_re, rule, c, c, judge, rng))))


def _places(one: Defense, removed: set[int]) -> Findings:
    order = np.random.default_rng(3).permutation(M)
    untouched, rng = (np.random.default_rng(0) for _ in range(2))
    turned = _removed(one, normal(M, D)[order], C, rng)
    drawn = rng.bit_generator.state != untouched.bit_generator.state
    others = "of permuted workers it removes others"
    if not turned.problem and set(order[turned.answer].tolist()) == removed:
        yield Finding(OK, "the order of workers makes no difference")
    elif drawn and not turned.problem:
        yield Finding(NOTE, f"{others}; it draws, so that this need not be by their place")
    else:
        yield Finding(FAILS, f"treats workers by their place: {others}; draw by rng between equals")


def _defense_sizes(one: Defense) -> Findings:
    """Few workers, one parameter, any c; updates that are alike, or not finite."""
    cases = _sizes(least=0)
    cases["updates that are all zero"] = np.zeros((M, D), np.float32), C
    for what, value in (("NaN", np.nan), ("infinity", np.inf), ("1e30", 1e30)):
        broken = normal(M, D)
        broken[:C] = value
        cases[f"{what} from {C} of {M} workers"] = broken, C
    for place, (rows, c) in cases.items():
        if problem := _removed(one, rows, c).problem:
            yield Finding(FAILS, f"{place}: {problem}")
            return
    yield Finding(OK, f"3 workers, d = 1, each c of {M}, zeros, NaN, infinity, 1e30")
