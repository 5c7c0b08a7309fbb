"""Slow, obviously right versions of rules since 2017, written from their formulas.

As in `reference.py`, all is float64, with loops, and shares no code with the package. Updates are
finite; `rng` draws what the rule draws, in its order.
"""

import contextlib
import math
import warnings

import numpy as np
from sklearn.cluster import KMeans, MeanShift


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


class OnTheEdgeError(Exception):
    """Features that are hardly others make another group: rounding decides."""


def width_of(features, seed):
    """As `estimate_bandwidth`, whose products put equal distances apart, of 50 drawn ones."""
    some = features[np.random.RandomState(seed).permutation(len(features))[:50]]
    farthest = max(len(some) // 2, 1) - 1
    return np.mean([sorted(math.dist(a, b) for b in some)[farthest] for a in some])


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
    width = width_of(features, int(rng.integers(2**31)))
    largest = largest_group(features, width)
    for seed in range(8):
        moved = features + 1e-9 * np.random.default_rng(seed).standard_normal(features.shape)
        if [*largest_group(moved, width)] != [*largest]:
            raise OnTheEdgeError
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


# --- judged


def zeno(updates, b, w, loss, rho):
    """`loss` takes one model."""
    rows, w = as_rows(updates), np.asarray(w, dtype=np.float64)
    before = loss(w)
    lowered = [before - loss(w + row) for row in rows]
    long = [length(row) for row in rows]
    change, unit = np.median(np.abs(lowered)), np.median(long)
    scores = [
        gain - rho * change * (n / unit) ** 2 if unit > 0 else gain
        for gain, n in zip(lowered, long)
    ]
    kept = sorted(range(len(rows)), key=lambda i: -scores[i])[: len(rows) - b]
    return sum(rows[i] for i in kept) / len(kept)


def fedgreed(updates, w, loss):
    rows, w = as_rows(updates), np.asarray(w, dtype=np.float64)
    rows = sorted(rows, key=lambda row: loss(w + row))
    best, least, last = None, math.inf, math.inf
    for k in range(1, len(rows) + 1):
        average = sum(rows[:k]) / k
        now = loss(w + average)
        if now > last:
            break
        if now < least:
            best, least = average, now
        last = now
    return best


# --- by layer


def within(values, radius):
    median, deviation = float(np.median(values)), float(np.std(values))
    return [abs(v - median) <= radius * deviation for v in values]


def lasa(updates, layers, sparsity, norm_radius, sign_radius):
    rows = as_rows(updates)
    d, long = len(rows[0]), [length(row) for row in rows]
    median = float(np.median(long))
    clipped = [row * min(1.0, median / n) if n > 0 else row for row, n in zip(rows, long)]
    sparse = []
    for row in clipped:
        least = sorted(abs(v) for v in row)[::-1][max(round((1 - sparsity) * d), 1) - 1]
        sparse.append(np.array([v if abs(v) >= least else 0.0 for v in row]))
    out = np.zeros(d)
    for layer in layers:
        norms = [length(row[layer]) for row in sparse]
        purity = []
        for row in sparse:
            signs = np.sign(row[layer])
            share = signs.sum() / np.abs(signs).sum() if np.abs(signs).sum() > 0 else 0.0
            purity.append(0.5 * (1 + share))
        both = zip(within(norms, norm_radius), within(purity, sign_radius))
        kept = [row for row, (a, b) in zip(clipped, both) if a and b] or clipped
        out[layer] = sum(kept)[layer] / len(kept)
    return out


# --- FLDetector


def bfgs(steps, changes):
    """The Hessian estimate as a matrix: by the update formula, pair after pair."""
    s, y = as_rows(steps), as_rows(changes)
    matrix = (y[-1] @ s[-1]) / (s[-1] @ s[-1]) * np.eye(len(s[0]))
    for a, b in zip(s, y):
        moved = matrix @ a
        matrix = matrix - np.outer(moved, moved) / (a @ moved) + np.outer(b, b) / (b @ a)
    return matrix


def squares_within(values, k):
    """Sum of squares around the centres that k-means finds."""
    found = KMeans(k, n_init=20, random_state=0).fit(np.reshape(values, (-1, 1)))
    return found.inertia_, found.labels_


def suspects(scores, rng):
    """Who is in the group of higher scores, if there is more than one."""
    scores = np.asarray(scores, dtype=np.float64)
    drawn = rng.random((10, len(scores)))
    if scores.max() == scores.min():
        return []
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    gaps, deviations = [], []
    for k in (1, 2):
        own, labels = squares_within(scores, k)
        others = [squares_within(row, k)[0] for row in drawn]
        gaps.append(math.log(np.mean(others)) - math.log(own))
        deviations.append(float(np.std(np.log(others))) * math.sqrt(1.1))
    if gaps[0] >= gaps[1] - deviations[1]:
        return []
    high = int(scores[labels == 1].mean() > scores[labels == 0].mean())
    return [i for i in range(len(scores)) if labels[i] == high]


def fldetector(rounds, rng, base, window, start):
    """Aggregate and those left out of each of the rounds (updates, w); all workers take part."""
    aggregates, models, left_out, told, before = [], [], [], [], None
    distances = [[] for _ in rounds[0][0]]
    for t, (updates, w) in enumerate(rounds):
        rows, w = as_rows(updates), np.asarray(w, dtype=np.float64)
        models.append(w)
        inside = [i for i in range(len(rows)) if i not in left_out]
        if t > start:
            pairs = range(max(1, t - window), t)
            steps = [models[k] - models[k - 1] for k in pairs]
            changes = [aggregates[k] - aggregates[k - 1] for k in pairs]
            turn = bfgs(steps, changes) @ (w - models[-2])
            away = [length(rows[i] - before[i] - turn) for i in inside]
            for i, gap in zip(inside, away):
                distances[i].append(gap / np.mean(away))
            if len(distances[inside[0]]) >= window:
                found = suspects([np.mean(distances[i][-window:]) for i in inside], rng)
                if found and 2 * (len(found) + len(left_out)) < len(rows):
                    left_out += [inside[i] for i in found]
                    distances = [[] for _ in rows]
        kept = np.array([row for i, row in enumerate(rows) if i not in left_out])
        aggregates.append(base(kept))
        told.append(sorted(left_out))
        before = rows
    return aggregates, told


# --- before a rule


def foundation(updates, copies):
    rows = as_rows(updates)
    highest, lowest = np.max(rows, axis=0), np.min(rows, axis=0)
    scores = [min(length(row - highest), length(row - lowest)) for row in rows]
    return [*rows, *[rows[scores.index(max(scores))]] * copies]


def leverage(rounds, c, decay=0.985, near=4, selected=None):
    """`rounds` are lists of updates (m, d), of the `selected`; the result of the last one."""

    def shortened(row, most):
        return row * min(1.0, most / _length(row)) if row.any() else row

    said, last, answers, doubts, places = {}, {}, {}, {}, [np.zeros(len(rounds[0][0]))]
    for t, rows in enumerate(rounds):
        rows = np.asarray(rows, float)
        workers = list(range(len(rows))) if selected is None else list(selected[t])
        last.update({i: _length(row) for i, row in zip(workers, rows)})
        now = {i: shortened(row, np.median(list(last.values()))) for i, row in zip(workers, rows)}
        usual = _fading(places[:-1], decay) if t else places[0]
        for i, row in now.items():
            past = sum(decay**k for k in range(1, len(said.get(i, [])) + 1))
            added = 0.0
            if past:
                apart = row - _fading(said[i], decay)
                added = past / (past + 1) * apart @ (places[-1] - usual)
            answers[i] = decay * answers.get(i, 0.0) + added
            doubts[i] = decay**2 * doubts.get(i, 0.0) + added**2
            said.setdefault(i, []).append(row)
        known = sorted(said)
        means = [_fading(said[i], decay) for i in known]
        middle = np.median([_length(mean) for mean in means])
        points = np.array([shortened(mean, middle) for mean in means])
        several = np.array([len(said[i]) > 1 for i in known])
        answered = _answering(
            *(np.array([of[i] for i in known]) for of in (answers, doubts)), several
        )
        weights = dict(zip(known, _heard(points, c * len(known) // len(rows), near) * answered))
        total = sum(weights[i] for i in workers)
        places.append(places[-1] + sum(weights[i] * now[i] for i in workers) / total)
    return places[-1] - places[-2]


def _length(row):
    return np.sqrt((row**2).sum())


def _fading(rows, decay):
    """The mean of rows whose weights fade."""
    shares = [decay**k for k in range(len(rows))][::-1]
    return sum(share * row for share, row in zip(shares, rows)) / sum(shares)


def _heard(said, c, near):
    m = len(said)
    centred = said - said.mean(axis=0)
    gram = centred @ centred.T
    rho = 100 * max(np.sort(np.linalg.eigvalsh(gram))[c], 1e-5 * np.trace(gram) / m)
    held = np.diag(gram @ np.linalg.inv(gram + rho * np.eye(m)))
    weights = np.minimum(held / np.median(held), 1) ** 2
    apart = []
    for i in range(m):
        by_distance = sorted((j for j in range(m) if j != i),
                             key=lambda j: ((said[i] - said[j]) ** 2).sum())  # fmt: skip
        apart.append(said[i] - said[by_distance[:near]].mean(axis=0))
    return weights * _priced_filter(np.array(apart), max(m - 2 * c, -(-m // 2)))


def _answering(answers, doubts, several):
    """Weights by the covariance of what workers sent with where the model was."""
    if not several.any():
        return np.ones(len(answers))
    middle = np.median(answers[several])
    if not middle < -2 * np.median(np.sqrt(doubts[several])):
        return np.ones(len(answers))
    return np.where(several, np.clip(2 * (answers - 3 * np.sqrt(doubts)) / middle, 0, 1), 1.0)


def _priced_filter(points, enough):
    """CAF's weights of least variance, a share of weight left dividing it."""
    m = len(points)
    q, best, least = np.ones(m), np.ones(m), np.inf
    while q.sum() > enough:
        share = q / q.sum()
        mean = share @ points
        covariance = (points - mean).T @ ((points - mean) * share[:, None])
        values, vectors = np.linalg.eigh(covariance)
        price = values[-1] / (q.sum() / m)
        if price < least:
            least, best = price, q
        tau = ((points - mean) @ vectors[:, -1]) ** 2
        if max(tau[q > 0]) == 0:
            break
        q = q * np.maximum(1 - tau / max(tau[q > 0]), 0)
    return best
