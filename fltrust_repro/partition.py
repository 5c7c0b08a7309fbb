"""Training examples -> workers, with a degree p of non-IID (Section 4.1), and their batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fltrust_repro.compiled import Array, compiled
from fltrust_repro.errors import BadInput


@dataclass(frozen=True)
class Shards:
    """Who holds which training examples: worker i holds `examples[starts[i]:starts[i + 1]]`."""

    examples: np.ndarray  # int64 (n,)
    starts: np.ndarray  # int64 (m + 1,)

    @classmethod
    def of(cls, parts: list[np.ndarray]) -> Shards:
        """Build from one index array per worker."""
        starts = np.cumsum([0, *(len(part) for part in parts)])
        return cls(np.concatenate(parts).astype(np.int64), starts.astype(np.int64))

    @classmethod
    def by(cls, worker: np.ndarray, workers: int) -> Shards:
        """Build from whose each example is, int (n,)."""
        counts = np.bincount(worker, minlength=workers)
        return cls(np.argsort(worker, kind="stable"), np.concatenate([[0], np.cumsum(counts)]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, worker: int) -> np.ndarray:
        return self.examples[self.starts[worker] : self.starts[worker + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """How many examples each worker holds, shape (m,); 0 is possible."""
        return np.diff(self.starts)

    def shuffled(self, rng: np.random.Generator) -> Shards:
        """Number the workers at random, so that the first c are c random ones."""
        return Shards.of([self[i] for i in rng.permutation(len(self))])

    def without(self, examples: np.ndarray) -> Shards:
        """Take examples (k,) away from whoever holds them."""
        if not len(examples):
            return self
        kept = ~np.isin(self.examples, examples)
        return Shards(self.examples[kept], np.concatenate([[0], np.cumsum(kept)])[self.starts])

    def with_examples(self, holders: np.ndarray, first: int) -> Shards:
        """Give worker `holders[j]` the example first + j, beside its own."""
        if not len(holders):
            return self
        given = Shards.by(holders, len(self))
        return Shards.of([np.append(self[i], first + given[i]) for i in range(len(self))])


class Batches(NamedTuple):
    """One batch per local round and worker; of worker i, only `[:, i, :counts[i]]` is real."""

    rows: np.ndarray  # int64 (rounds, m, batch size): which training examples
    labels: np.ndarray  # int (rounds, m, batch size): what the worker takes for their labels
    counts: np.ndarray  # int64 (m,)

    def and_of(self, others: Batches) -> Batches:
        """Return these and those of further workers, behind them."""
        axes = (1, 1, 0)
        return Batches(*(np.concatenate(pair, axis=a) for *pair, a in zip(self, others, axes)))


def root_examples(
    labels: np.ndarray, classes: int, size: int, bias: float | None, rng: np.random.Generator
) -> np.ndarray:
    """Draw the server's own examples, `size` of the training examples: int64 (size,).

    Uniformly at random (FLTrust's Case I), or with a bias probability (Case II): that share is of
    class 1, and the other classes have the same number each, but for what does not divide. Raises
    `BadInput` where there are too few.
    """
    if size >= len(labels):
        raise BadInput(f"root_size is {size}; it must be less than all {len(labels)} examples.")
    if bias is None:
        return np.sort(rng.choice(len(labels), size, replace=False))
    biased, quotas = 1 % classes, np.zeros(classes, dtype=np.int64)
    quotas[biased] = round(bias * size) if classes > 1 else size
    each, more = divmod(size - quotas[biased], max(classes - 1, 1))
    others = rng.permutation(np.delete(np.arange(classes), biased))
    quotas[others] = each
    quotas[others[:more]] += 1
    drawn = []
    for label, quota in enumerate(quotas):
        held = np.flatnonzero(labels == label)
        if quota > len(held):
            raise BadInput(
                f"root_size {size} with root_bias {bias:g} takes {quota} examples of class {label},"
                f" of which there are {len(held)}; use a smaller size or another bias."
            )
        drawn.append(rng.choice(held, quota, replace=False))
    return np.sort(np.concatenate(drawn))


def deal(
    dealing: str | None,
    labels: np.ndarray,
    classes: int,
    users: np.ndarray | None,
    workers: int,
    compromised: int,
    non_iid: float,
    rng: np.random.Generator,
) -> Shards:
    """Deal the training examples as a reading of `dealing` says; raises as `of_users` does."""
    if dealing == "sorted":
        return sorted_parts(labels, workers, compromised)
    if dealing == "natural":
        return of_users(users, workers)
    by_group = share_groups if dealing == "shared" else partition
    return by_group(labels, classes, workers, non_iid, rng)


def partition(
    labels: np.ndarray, classes: int, workers: int, non_iid: float, rng: np.random.Generator
) -> Shards:
    """Deal the training examples to the workers (Section 4.1).

    An example with label l goes to group l with probability p = `non_iid` in (0, 1], else to one
    of the other groups uniformly, and within its group to a worker uniformly and independently;
    p = 1 / L deals independently of the label. Where m is no multiple of L, neighbouring groups
    share a worker: the L groups cut the interval [0, m) into equal lengths, and an example falls on
    a point of its group's length. Workers come in the groups' order; one may hold nothing.
    """
    group = _groups(labels, classes, non_iid, rng)
    point = (group + rng.random(len(labels))) * workers / classes
    return Shards.by(np.minimum(point.astype(np.int64), workers - 1), workers)


def share_groups(
    labels: np.ndarray, classes: int, workers: int, non_iid: float, rng: np.random.Generator
) -> Shards:
    """Give every worker all examples of its group, for data sets too small to be dealt.

    As in `partition`; a worker belongs to the group that holds the middle of its stretch of [0, m).
    """
    groups = Shards.by(_groups(labels, classes, non_iid, rng), classes)
    own = ((np.arange(workers) + 0.5) * classes / workers).astype(np.int64)
    return Shards.of([groups[g] for g in own])


def sorted_parts(labels: np.ndarray, workers: int, compromised: int) -> Shards:
    """Cut the examples in the order of their labels into equal parts, one per benign worker.

    The first `compromised` workers hold all examples each. So Karimireddy et al. (ICLR 2022), whose
    compromised workers draw from other examples of the whole data set in each epoch.
    """
    order = np.argsort(labels, kind="stable")
    parts = np.array_split(order, workers - compromised)
    return Shards.of([order] * compromised + parts)


def of_users(users: np.ndarray | None, workers: int) -> Shards:
    """Give each worker the examples of one user; `users` (n,) says whose an example is.

    Raises `BadInput` where the data set has no users, or another number of them.
    """
    if users is None:
        problem = "the data set does not say whose its examples are; use --reading dealing=once"
        raise BadInput(f"dealing is 'natural', but {problem}.")
    names, worker = np.unique(users, return_inverse=True)
    if len(names) != workers:
        take = f"use --workers {len(names)}, or --reading dealing=once"
        raise BadInput(f"the data set has {len(names)} users for {workers} workers; {take}.")
    return Shards.by(worker, workers)


def _groups(
    labels: np.ndarray, classes: int, non_iid: float, rng: np.random.Generator
) -> np.ndarray:
    n = len(labels)
    elsewhere = rng.integers(1, classes, n) if classes > 1 else np.zeros(n, dtype=np.int64)
    stays = rng.random(n) < non_iid
    return np.where(stays, labels, (labels + elsewhere) % classes)


@compiled
def _draw(examples: Array, starts: Array, uniforms: Array, rows: Array) -> None:
    # Floyd's algorithm: k different places out of n from k uniform numbers.
    rounds, workers, batch = uniforms.shape
    for r in range(rounds):
        for i in range(workers):
            start, n = starts[i], starts[i + 1] - starts[i]
            taken = rows[r, i]
            k = min(batch, n)
            for t in range(k):
                place = int(uniforms[r, i, t] * (n - k + t + 1))
                for earlier in range(t):
                    if taken[earlier] == place:
                        place = n - k + t
                        break
                taken[t] = place
            for t in range(k):
                taken[t] = examples[start + taken[t]]


def sample_batches(
    shards: Shards,
    labels: np.ndarray,
    batch_size: int,
    rounds: int,
    rng: np.random.Generator,
    with_replacement: bool = False,
) -> Batches:
    """Draw min(batch_size, examples held) of each worker's examples in each round, none twice.

    With replacement, batch_size of them from every worker that holds any.
    """
    uniforms = rng.random((rounds, len(shards), batch_size))
    if with_replacement:
        counts = np.where(shards.sizes > 0, batch_size, 0)
        places = shards.starts[:-1, None] + (uniforms * shards.sizes[:, None]).astype(np.int64)
        # Where a worker holds nothing, its place may be the end; all of them may hold nothing.
        held = shards.examples if len(shards.examples) else np.zeros(1, dtype=np.int64)
        rows = held[np.minimum(places, len(held) - 1)]
        return Batches(rows, labels[rows], counts)
    counts = np.minimum(shards.sizes, batch_size)
    rows = np.zeros(uniforms.shape, dtype=np.int64)
    _draw(shards.examples, shards.starts, uniforms, rows)
    return Batches(rows, labels[rows], counts)
