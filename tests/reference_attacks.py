"""Slow, obviously right versions of the attacks since 2017, written from their formulas.

In float64 with a Python loop per sum, and no code of the package: `benign` is an array (n, d) of
the updates that the attacker knows to be benign.
"""

import math

import numpy as np


def mean_and_deviation(benign):
    n, d = benign.shape
    mu = [math.fsum(float(x[j]) for x in benign) / n for j in range(d)]
    sigma = [math.sqrt(math.fsum((float(x[j]) - mu[j]) ** 2 for x in benign) / n) for j in range(d)]
    return np.array(mu), np.array(sigma)


def normal_share(z):
    """Share of a normal distribution below z standard deviations."""
    return (1 + math.erf(z / math.sqrt(2))) / 2


def z_max(m, c):
    """Largest z > 0 with Phi(z) < (m - c - s) / (m - c), by bisection, s supporters needed."""
    supporters = math.floor(m / 2 + 1) - c
    share = (m - c - supporters) / (m - c)
    low, high = 0.0, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if normal_share(middle) < share else (low, middle)
    return low


def towards(side, mu, sigma):
    out = []
    for j in range(len(mu)):
        grows = mu[j] > 0
        minus = side == "below" or (side == "against" and grows)
        out.append(-sigma[j] if minus else sigma[j])
    return np.array(out)


def alie(benign, z, side):
    mu, sigma = mean_and_deviation(benign)
    return mu + z * towards(side, mu, sigma)


def byzmean(benign, m, c, z, side):
    """Both groups as the paper has them, the second from the sum of the benign updates."""
    first = c // 2
    x = alie(benign, z, side)
    total = sum(np.asarray(b, dtype=np.float64) for b in benign)
    other = ((m - first) * x - total) / (c - first)
    return np.array([x] * first + [other] * (c - first))


def squared(x, y):
    return math.fsum((float(a) - float(b)) ** 2 for a, b in zip(x, y))


def within_min_max(x, benign):
    """Whether no benign update is farther from x than two are from each other."""
    apart = max(squared(a, b) for a in benign for b in benign)
    return max(squared(x, b) for b in benign) <= apart


def within_min_sum(x, benign, bound):
    """Whether the squared distances from x add up to no more than those from a benign update."""
    sums = [math.fsum(squared(a, b) for b in benign) for a in benign]
    limit = max(sums) if bound == "max" else min(sums)
    return math.fsum(squared(x, b) for b in benign) <= limit


def perturbation(vector, mu, sigma):
    """The vector p, of length 1."""
    p = {
        "unit": lambda: [-v for v in mu],
        "sign": lambda: [-math.copysign(1, v) if v != 0 else 0.0 for v in mu],
        "std": lambda: towards("below", mu, sigma),
        "std-above": lambda: towards("above", mu, sigma),
        "std-against": lambda: towards("against", mu, sigma),
    }[vector]()
    return np.array(p) / math.sqrt(sum(v * v for v in p))


def largest_gamma(benign, vector, within):
    """Largest gamma for which `within(mu + gamma p)` holds, by doubling and bisection."""
    mu, sigma = mean_and_deviation(benign)
    p = perturbation(vector, mu, sigma)
    low, high = 0.0, math.sqrt(max(squared(a, b) for a in benign for b in benign))
    while within(mu + high * p):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(mu + middle * p) else (low, middle)
    return low, mu + low * p


def rop(benign, v, z, angle, relocation, reference):
    """`v` is None in the first iteration."""
    mu, _ = mean_and_deviation(benign)
    u = mu if v is None else reference * v + (1 - reference) * mu
    v = np.zeros_like(mu) if v is None else v
    ones = np.ones_like(mu)
    p = ones - (ones @ u) / (u @ u) * u
    p = p / math.sqrt(p @ p)
    lengths = sorted(math.sqrt(squared(x, np.zeros_like(x))) for x in benign)
    n = len(lengths)
    median = (lengths[(n - 1) // 2] + lengths[n // 2]) / 2
    turned = math.sin(math.radians(angle)) * p + math.cos(math.radians(angle)) * u / math.sqrt(
        u @ u
    )
    return relocation * v + (1 - relocation) * mu + z * median * turned


class Mimic:
    """Oja's rule over the iterations, from a first z."""

    def __init__(self, z, warmup):
        self.z, self.warmup, self.t, self.mu, self.row = z, warmup, 0, None, None

    def choose(self, benign):
        """Which benign worker is copied in the next iteration."""
        t = self.t
        if t < self.warmup:
            average, _ = mean_and_deviation(benign)
            self.mu = average if t == 0 else t / (1 + t) * self.mu + average / (1 + t)
            total = np.zeros_like(average)
            for x in benign.astype(np.float64):
                total += ((x - self.mu) @ self.z) * (x - self.mu)
            total /= math.sqrt(total @ total)
            self.z = total if t == 0 else t / (1 + t) * self.z + total / (1 + t)
            self.z = self.z / math.sqrt(self.z @ self.z)
            self.row = max(range(len(benign)), key=lambda i: float(benign[i] @ self.z))
        self.t += 1
        return self.row


class PoisonedFL:
    """Multi-round consistency, parameter by parameter, from signs s."""

    def __init__(self, signs, scale):
        self.s, self.scale, self.t = [float(x) for x in signs], scale, 0
        self.w = self.start = None
        self.k = [0.0] * len(self.s)

    def update(self, w):
        """What all send who receive model w."""
        w = [float(x) for x in w]
        d = len(w)
        if self.t == 0:
            self.start = self.w = w
        if self.t > 0 and self.t % 50 == 0:
            aligned = 0
            for s, now, then in zip(self.s, w, self.start):
                moved = now - then if now != then else now
                aligned += moved * s > 0
            if aligned < d / 2 + 2.3263478740408408 * math.sqrt(d) / 2 and 0.7 * self.scale >= 0.5:
                self.scale *= 0.7
            self.start = w
        h = [now - then for now, then in zip(w, self.w)]
        long = math.sqrt(math.fsum(x * x for x in h))
        sent = math.sqrt(math.fsum(x * x for x in self.k))
        v = [abs(x - (y * long / sent if sent else 0)) for x, y in zip(h, self.k)]
        length = math.sqrt(math.fsum(x * x for x in v))
        self.k = [self.scale * long * s * x / length if length else 0.0 for s, x in zip(self.s, v)]
        self.w, self.t = w, self.t + 1
        return np.array(self.k)


def fltrust(updates, root):
    """FLTrust's result in units of the root's length, and the sum of the trust scores."""
    total, trusted = np.zeros(len(root)), 0.0
    for x in updates:
        length = math.sqrt(x @ x) * math.sqrt(root @ root)
        score = max(0.0, (x @ root) / length) if length else 0.0
        total += score / (math.sqrt(x @ x) or 1.0) * x
        trusted += score
    return (total / trusted if trusted else total), trusted


def fltrust_gain(vectors, updates, root):
    """h: how far c unit vectors move FLTrust's result against the signs of what it was."""
    before, _ = fltrust(updates, root)
    after, _ = fltrust(np.concatenate([vectors, updates[len(vectors) :]]), root)
    return float(np.sign(before) @ (before - after))


def fltrust_search(start, updates, root, draws):
    """Zeroth-order ascent of h, V = Q = 10; `draws` gives each u ~ N(0, I / 2)."""
    vectors = start.copy()
    for _ in range(10):
        for j in range(len(vectors)):
            for _ in range(10):
                u, beyond = next(draws), vectors.copy()
                beyond[j] = vectors[j] + 0.005 * u
                gain = unscaled_gain(beyond, updates, root) - unscaled_gain(vectors, updates, root)
                vectors[j] += 0.01 * gain / 0.005 * u
                vectors[j] /= math.sqrt(vectors[j] @ vectors[j])
    return vectors


def unscaled_gain(vectors, updates, root):
    """The same of vectors as they are: e . x_0/|x_0| weighs e, whatever its length."""
    before, _ = fltrust(updates, root)
    benign, trusted = fltrust(updates[len(vectors) :], root)
    total, weight = trusted * benign, trusted
    for e in vectors:
        score = max(0.0, (e @ root) / math.sqrt(root @ root))
        total, weight = total + score * e, weight + score
    return float(np.sign(before) @ (before - total / weight))
