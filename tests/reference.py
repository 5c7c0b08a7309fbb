"""Slow, obviously right versions of the paper's mathematics, written from its text.

Everything here works on local models in float64, one Python loop per sum of the paper, and shares
no code with the package: `models` is an array (m, d) of local models, `received` the global model
(d,) that the workers got, `s` the changing directions (d,).
"""

import itertools
import math

import numpy as np

# --- aggregation rules (2.2)


def mean(models):
    m = len(models)
    return np.array([sum(float(w[j]) for w in models) / m for j in range(models.shape[1])])


def squared_distance(a, b):
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b))


def krum_index(models, c):
    """Which model Krum selects: among equal sums the first."""
    models = [np.asarray(w, dtype=np.float64) for w in models]
    neighbours = max(len(models) - c - 2, 1)
    best, best_sum = None, math.inf
    for i, w_i in enumerate(models):
        distances = []
        for k, w_k in enumerate(models):
            if k != i:
                distances.append(((w_i - w_k) ** 2).sum())
        total = sum(sorted(distances)[:neighbours])
        if total < best_sum:
            best, best_sum = i, total
    return best


def krum(models, c):
    return models[krum_index(models, c)]


def trimmed_mean(models, beta):
    m, d = models.shape
    out = []
    for j in range(d):
        kept = sorted(float(w[j]) for w in models)[beta : m - beta]
        out.append(sum(kept) / (m - 2 * beta))
    return np.array(out)


def median(models):
    m, d = models.shape
    out = []
    for j in range(d):
        values = sorted(float(w[j]) for w in models)
        if m % 2 == 1:
            out.append(values[m // 2])
        else:
            out.append((values[m // 2 - 1] + values[m // 2]) / 2)
    return np.array(out)


def bulyan(models, c):
    """Krum theta = m - 2c times, then per parameter the mean of the gamma closest to the median."""
    left = [np.asarray(w, dtype=np.float64) for w in models]
    selected = []
    for _ in range(len(models) - 2 * c):
        selected.append(left.pop(krum_index(left, c)))
    gamma = len(selected) - 2 * c
    out = []
    for j in range(len(selected[0])):
        values = sorted(w[j] for w in selected)
        n = len(values)
        middle = (values[(n - 1) // 2] + values[n // 2]) / 2
        closest = sorted(values, key=lambda v: (abs(v - middle), v))[:gamma]
        out.append(sum(closest) / gamma)
    return np.array(out)


# --- the kernels, on any float32 values


def exact_sum(values):
    """Sum rounded once; NaN for infinities of both signs."""
    try:
        return math.fsum(values)
    except ValueError:
        return math.nan


def ranked(values):
    """A column's values in order, NaN by its sign beyond the infinities."""
    return sorted(
        (float(v) for v in values),
        key=lambda v: (math.copysign(1, v), 0) if math.isnan(v) else (0, v),
    )


def ranks_kept(matrix, first, stop):
    """The order statistics first..stop-1 of each column, a list per column."""
    return [ranked(column)[first:stop] for column in matrix.T]


def middle_mean(matrix, first, stop):
    return np.array([exact_sum(k) / (stop - first) for k in ranks_kept(matrix, first, stop)])


def around_median(matrix, keep):
    """Mean of the `keep` values of each column closest to its median, the smaller one of two."""
    out = []
    for column in matrix.T:
        values = ranked(column)
        n = len(values)
        middle = (values[(n - 1) // 2] + values[n // 2]) / 2
        away = [math.inf if math.isnan(v) else abs(v - middle) for v in values]
        closest = sorted(range(n), key=lambda i: (away[i], i))[:keep]
        out.append(exact_sum(values[i] for i in closest) / keep)
    return np.array(out)


def squared_distances(matrix):
    """Squared distances, infinite from a row with a non-finite value to any other."""
    m = len(matrix)
    out = np.zeros((m, m))
    for i, k in itertools.permutations(range(m), 2):
        out[i, k] = math.inf
        if np.isfinite(matrix[[i, k]]).all():
            away = matrix[i].astype(np.float64) - matrix[k].astype(np.float64)
            out[i, k] = math.fsum(away**2)
    return out


# --- the attacks


def flip(label, classes):
    """Label flipping (4.1)."""
    return classes - label - 1


def changing_direction(before, received):
    """+1 where the mean of the models is larger than the received one, otherwise -1 (3.2)."""
    return np.array([1 if w > r else -1 for w, r in zip(mean(before), received)])


def theorem_1(benign, received, c):
    """Right-hand side of Equation 3: m - c benign models, c compromised ones."""
    m, d = len(benign) + c, len(received)
    sums = []
    for i, w_i in enumerate(benign):
        others = [squared_distance(w_i, w) for k, w in enumerate(benign) if k != i]
        sums.append(sum(sorted(others)[: m - c - 2]))
    farthest = max(math.sqrt(squared_distance(w, received)) for w in benign)
    return math.sqrt(min(sums) / ((m - 2 * c - 1) * d)) + farthest / math.sqrt(d)


def krum_picks_crafted(others, received, s, scale, copies, assumed):
    """Whether Krum picks w_re - lambda s among `copies` of it and the other models."""
    crafted = received - scale * s
    return krum_index([crafted] * copies + list(others), assumed) < copies


def halve(others, received, s, start, copies, assumed):
    """Lambda and whether Krum picked w'_1, halving until it does or lambda < 1e-5 (3.2)."""
    scale = start
    while scale >= 1e-5:
        if krum_picks_crafted(others, received, s, scale, copies, assumed):
            return scale, True
        scale /= 2
    return scale, False


def krum_attack_full(models, received, s, c):
    """Equation 2 by trying."""
    benign = models[c:]
    return halve(benign, received, s, theorem_1(benign, received, c), c, c)


def krum_attack_partial(own, received, s, assumes):
    """Equation 4 by trying, adding crafted models one at a time.

    `assumes` is how many compromised models the attacker's own Krum assumes. The start is
    Theorem 1's for one crafted model, whose neighbours are all before-attack models.
    """
    c, d = own.shape
    for copies in range(1, c + 1):
        assumed = {"zero": 0, "added": copies, "c": c}[assumes]
        if copies == 1:
            neighbours = max(c + 1 - assumed - 2, 1)
            sums = []
            for i, w_i in enumerate(own):
                others = [squared_distance(w_i, w) for k, w in enumerate(own) if k != i]
                sums.append(sum(sorted(others)[:neighbours]))
            farthest = max(math.sqrt(squared_distance(w, received)) for w in own)
            start = math.sqrt(min(sums) / (neighbours * d)) + farthest / math.sqrt(d)
        scale, found = halve(own, received, s, start, copies, assumed)
        if found:
            return scale, copies, True
    return scale, copies, False


def trimmed_mean_interval(benign, s, b):
    """Lower and upper end of the interval of each parameter, the four cases of 3.3."""
    low, high = [], []
    for j in range(benign.shape[1]):
        w_max = max(float(w[j]) for w in benign)
        w_min = min(float(w[j]) for w in benign)
        if s[j] == -1 and w_max > 0:
            ends = w_max, b * w_max
        elif s[j] == -1:
            ends = w_max, w_max / b
        elif w_min > 0:
            ends = w_min / b, w_min
        else:
            ends = b * w_min, w_min
        low.append(ends[0])
        high.append(ends[1])
    return np.array(low), np.array(high)


def estimated_interval(own, s):
    """Lower and upper end of the interval of each parameter with partial knowledge (3.3)."""
    low, high = [], []
    for j in range(own.shape[1]):
        values = [float(w[j]) for w in own]
        mu = sum(values) / len(values)
        sigma = math.sqrt(sum((v - mu) ** 2 for v in values) / len(values))
        ends = (mu + 3 * sigma, mu + 4 * sigma) if s[j] == -1 else (mu - 4 * sigma, mu - 3 * sigma)
        low.append(ends[0])
        high.append(ends[1])
    return np.array(low), np.array(high)


# --- a worker's gradient


def softmax_regression(w, x, labels, classes):
    """Loss and gradient of the batch-mean cross-entropy; w is weight (L, features), then bias."""
    n, features = x.shape
    weight, bias = w[: classes * features].reshape(classes, features), w[classes * features :]
    loss, d_weight, d_bias = 0.0, np.zeros_like(weight), np.zeros_like(bias)
    for example, label in zip(x, labels):
        scores = [float(weight[k] @ example + bias[k]) for k in range(classes)]
        total = sum(math.exp(score) for score in scores)
        loss += (math.log(total) - scores[label]) / n
        for k in range(classes):
            residual = math.exp(scores[k]) / total - (1 if k == label else 0)
            d_weight[k] += residual * example / n
            d_bias[k] += residual / n
    return loss, np.concatenate([d_weight.ravel(), d_bias])


# --- the 0-1 principle


def zero_one_inputs(n):
    """All 2^n inputs of zeros and ones, shape (2^n, n): a network that sorts them sorts all."""
    return np.array(list(itertools.product((0, 1), repeat=n)), dtype=np.int64).reshape(2**n, n)


# --- defenses (5)


def impacts(updates, received, rule, c, judge):
    """E_A - E_B and L_A - L_B of every worker, each with two aggregations of its own."""
    models = np.asarray(updates, dtype=np.float64) + received
    aggregate = {
        "mean": mean,
        "krum": lambda w: krum(w, c),
        "trimmed-mean": lambda w: trimmed_mean(w, c),
        "median": median,
        "bulyan": lambda w: bulyan(w, c),
    }[rule]
    errors, losses = [], []
    for i in range(len(models)):
        included, excluded = aggregate(models), aggregate(np.delete(models, i, axis=0))
        error, loss = judge(np.stack([included, excluded]))
        errors.append(error[0] - error[1])
        losses.append(loss[0] - loss[1])
    return np.array(errors), np.array(losses)


# --- robust means of other papers, on updates


def length(x):
    return math.sqrt(math.fsum(float(v) ** 2 for v in x))


def krum_order(models, c):
    """All models from the smallest sum of squared distances on, the first of equal ones first."""
    squared = squared_distances(np.asarray(models))
    m = len(models)
    sums = [sum(sorted(squared[i, k] for k in range(m) if k != i)[: m - c - 2]) for i in range(m)]
    return sorted(range(m), key=lambda i: (sums[i], i))


def multi_krum(models, c, q):
    return mean(np.asarray(models)[krum_order(models, c)[:q]])


def geometric_median(models, steps=20_000):
    """Weiszfeld's iteration over d from the coordinate-wise median."""
    models = np.asarray(models, dtype=np.float64)
    z = np.median(models, axis=0)
    for _ in range(steps):
        nearness = [1 / max(length(x - z), 1e-9) for x in models]
        before, z = z, sum(b * x for b, x in zip(nearness, models)) / sum(nearness)
        if length(z - before) == 0:
            break
    return z


def shortened(x, most):
    return x * min(1.0, most / length(x)) if length(x) > 0 else x


def norm_clipping(updates, radius):
    updates = np.asarray(updates, dtype=np.float64)
    most = radius * float(np.median([length(x) for x in updates]))
    return mean(np.array([shortened(x, most) for x in updates]))


def centered_clipping(rounds, radius, iterations):
    """The result of the last of several rounds of updates."""
    v = np.zeros(len(rounds[0][0]))
    for updates in rounds:
        tau = radius * float(np.median([length(x - v) for x in updates]))
        for _ in range(iterations):
            v = v + mean(np.array([shortened(x - v, tau) for x in updates]))
    return v


def closest_to(centres, updates, keep):
    """Per parameter the mean of the values closest to a centre, of equally far ones the smaller."""
    out = []
    for centre, column in zip(centres, np.asarray(updates, dtype=np.float64).T):
        out.append(sum(sorted(column, key=lambda v: (abs(v - centre), v))[:keep]) / keep)
    return np.array(out)


def meamed(updates, c):
    return closest_to(median(updates), updates, len(updates) - c)


def phocas(updates, beta):
    return closest_to(trimmed_mean(updates, beta), updates, len(updates) - beta)


def smallest_diameter(squared, c):
    """Of all selections of m - c, in order, the first with the least largest distance."""
    selections = itertools.combinations(range(len(squared)), len(squared) - c)
    return min(selections, key=lambda some: max(squared[i][k] for i in some for k in some))


def mda(updates, c):
    updates = np.asarray(updates)
    away = [sum(row) for row in squared_distances(updates)]
    middle_first = updates[sorted(range(len(updates)), key=away.__getitem__)]
    kept = smallest_diameter(squared_distances(middle_first), c)
    return mean(middle_first[list(kept)])


def sign(x):
    return (x > 0) - (x < 0)


def sign_vote(updates, step):
    votes = [sign(sum(sign(float(v)) for v in column)) for column in updates.T]
    longest = step * float(np.median([length(x) for x in updates]))
    return np.array([longest * vote / math.sqrt(sum(map(abs, votes)) or 1) for vote in votes])


def rlr(updates, theta):
    m = len(updates)
    votes = [abs(sum(sign(float(v)) for v in column)) for column in updates.T]
    return np.array([x if vote / m >= theta else -x for x, vote in zip(mean(updates), votes)])


def clusters_by_cosine(updates):
    """Two clusters, from single updates on: the two with the least mean distance are joined."""
    unit = [np.asarray(x, dtype=np.float64) / length(x) for x in updates]
    clusters = [[i] for i in range(len(updates))]
    while len(clusters) > 2:
        pairs = itertools.combinations(range(len(clusters)), 2)

        def apart(pair):
            one, other = (clusters[k] for k in pair)
            return sum(1 - unit[i] @ unit[k] for i in one for k in other) / len(one) / len(other)

        one, other = min(pairs, key=apart)
        clusters[one] += clusters.pop(other)
    return clusters


def clipped_clustering(rounds):
    """The result of the last of several rounds of updates."""
    most = float(np.median([length(x) for updates in rounds for x in updates]))
    larger = max(clusters_by_cosine(rounds[-1]), key=len)
    return mean(np.array([shortened(np.float64(rounds[-1][i]), most) for i in larger]))
