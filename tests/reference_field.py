"""Slow, obviously right versions of rules since 2017, written from their formulas.

As in `reference.py`, all is float64, with loops, and shares no code with the package. Updates are
finite; `rng` draws what the rule draws, in its order.
"""

import contextlib
import math
import warnings

import numpy as np
from sklearn.cluster import MeanShift, estimate_bandwidth


def as_rows(updates):
    return [np.asarray(row, dtype=np.float64) for row in updates]


def weighted_mean(rows, weights):
    return sum(q * x for q, x in zip(weights, rows)) / sum(weights)


# --- spectral


def caf(updates, c):
    """The weights go down along the leading eigenvector of a covariance of d times d numbers."""
    rows = as_rows(updates)
    m, weights = len(rows), [1.0] * len(rows)
    least, best = math.inf, weighted_mean(rows, weights)
    while sum(weights) > m - 2 * c:
        mu = weighted_mean(rows, weights)
        covariance = sum(q * np.outer(x - mu, x - mu) for q, x in zip(weights, rows)) / sum(weights)
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] < least:
            least, best = values[-1], mu
        tau = [float((x - mu) @ vectors[:, -1]) ** 2 for x in rows]
        farthest = max(t for t, q in zip(tau, weights) if q > 0)
        if farthest == 0:
            break
        weights = [q * (1 - t / farthest) if q > 0 else 0.0 for t, q in zip(tau, weights)]
    return best


def dnc(updates, c, rng, iterations, fraction, b):
    rows = as_rows(updates)
    m, d = len(rows), len(rows[0])
    times = [0] * m
    for _ in range(iterations):
        columns = range(d) if b >= d else rng.choice(d, b, replace=False)
        part = np.array([[row[j] for j in columns] for row in rows])
        centred = part - part.mean(axis=0)
        right = np.linalg.svd(centred)[2][0]
        scores = [float(row @ right) ** 2 for row in centred]
        for i in sorted(range(m), key=lambda i: scores[i])[: m - round(fraction * c)]:
            times[i] += 1
    kept = [row for row, n in zip(rows, times) if n == max(times)]
    return sum(kept) / len(kept)


# --- similarity


def length(x):
    return math.sqrt(sum(float(v) ** 2 for v in x))


def cosine(a, b):
    scale = length(a) * length(b)
    return float(a @ b) / scale if scale > 0 else 0.0


def foolsgold_weights(history):
    history = as_rows(history)
    n = len(history)
    cs = [[0.0 if i == j else cosine(history[i], history[j]) for j in range(n)] for i in range(n)]
    most = [max(line) for line in cs]
    for i in range(n):
        for j in range(n):
            if most[i] < most[j]:
                cs[i][j] *= most[i] / most[j]
    trust = [min(max(1 - max(line), 0.0), 1.0) for line in cs]
    top = max(trust)
    out = []
    for a in trust:
        a = a / top if top > 0 else 0.0
        a = 0.99 if a == 1 else a
        out.append(0.0 if a == 0 else min(max(math.log(a / (1 - a)) + 0.5, 0.0), 1.0))
    return out


def foolsgold(rounds):
    """Of all rounds of updates, the aggregate of the last."""
    rounds = [as_rows(one) for one in rounds]
    history = [sum(one[i] for one in rounds) for i in range(len(rounds[0]))]
    weights = foolsgold_weights(history)
    total = sum(weights) or 1.0
    return sum(a * x for a, x in zip(weights, rounds[-1])) / total


def sign_features(rows, columns):
    m, n = len(rows), len(columns)
    shares = [
        [sum(test(row[j]) for j in columns) / n for row in rows]
        for test in (lambda v: v > 0, lambda v: v == 0, lambda v: v < 0)
    ]
    return [[s[i] / max(s) if max(s) > 0 else 0.0 for s in shares] for i in range(m)]


def similarity_feature(rows, last):
    if last is None and len(rows) == 1:
        cosines = [0.0]
    elif last is None:
        m = len(rows)
        cosines = [
            float(np.median([cosine(rows[i], rows[j]) for j in range(m) if j != i]))
            for i in range(m)
        ]
    else:
        cosines = [cosine(row, np.asarray(last, dtype=np.float64)) for row in rows]
    med = float(np.median(cosines))
    return [min(max(s, 0.0), med) / (5 * med) if med > 0 else 0.0 for s in cosines]


def largest_group(features, width):
    """Of the groups by mean shift the largest; all where it finds none."""
    labels = [-1]
    with warnings.catch_warnings(), contextlib.suppress(ValueError):
        warnings.simplefilter("ignore")  # that no two features share a bin
        shift = MeanShift(bandwidth=width, bin_seeding=True, cluster_all=False)
        labels = list(shift.fit_predict(features))
    sizes = [labels.count(label) for label in range(max(labels) + 1)]
    if not sizes:
        return range(len(features))
    return [i for i, label in enumerate(labels) if label == sizes.index(max(sizes))]


def signguard(updates, rng, share=0.1, lower=0.1, upper=3.0, similarity=False, last=None):
    rows = as_rows(updates)
    m, d = len(rows), len(rows[0])
    long = [length(row) for row in rows]
    median = float(np.median(long))
    features = sign_features(rows, rng.choice(d, max(round(share * d), 1), replace=False))
    if similarity:
        extra = similarity_feature(rows, last)
        features = [[*f, s] for f, s in zip(features, extra)]
    features = np.array(features)
    seed = int(rng.integers(2**31))
    width = estimate_bandwidth(features, quantile=0.5, n_samples=50, random_state=seed)
    largest = largest_group(features, width)
    trusted = [i for i in range(m) if lower * median < long[i] < upper * median]
    kept = [i for i in trusted if i in largest] or trusted
    return sum(rows[i] * min(1.0, median / long[i]) for i in kept) / len(kept)


def majority(apart):
    """The first group of more than half of the points, as the closest groups join one by one."""
    n = len(apart)
    groups = [{i} for i in range(n)]
    pairs = sorted((apart[i][j], i, j) for i in range(n) for j in range(i))
    for _, i, j in pairs:
        a, b = (next(g for g in groups if k in g) for k in (i, j))
        if a is not b:
            groups.remove(b)
            a |= b
        if len(a) > n // 2:
            return sorted(a)
    return list(range(n))


def flame_kept(updates, w_re):
    models = [np.asarray(w_re, dtype=np.float64) + row for row in as_rows(updates)]
    return majority([[1 - cosine(a, b) for b in models] for a in models])


def flame(updates, w_re):
    """Without the noise."""
    rows, kept = as_rows(updates), flame_kept(updates, w_re)
    scale = float(np.median([length(row) for row in rows]))
    return sum(rows[i] * min(1.0, scale / length(rows[i])) for i in kept) / len(kept)


def gas(updates, c, rng, base, p):
    """`base` takes an array of updates and c."""
    rows = np.array(as_rows(updates))
    m, d = rows.shape
    scores = [0.0] * m
    for group in np.array_split(rng.permutation(d), min(p, d)):
        robust = base(rows[:, group], c)
        for i in range(m):
            scores[i] += length(rows[i, group] - robust)
    return sum(rows[i] for i in sorted(range(m), key=lambda i: scores[i])[: m - c]) / (m - c)
