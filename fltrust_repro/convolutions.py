"""The CNN's two convolutions, each with its relu and max pooling, and their gradients, compiled.

What makes them quick: pooling lets one output of a window through, so that gradients are sums over
windows, not over outputs. And the maps between the two lie in memory as (height, width, channels),
their 30 channels in 32 lanes, whole vectors of a core: a kernel sees one run of numbers in each row
of a map. The 31st lane is 1 everywhere, and its weight the next bias, which so needs no code.

Kernels are 3 wide and 1 or 3 high, pooling windows 2 wide and `ph` = 1 or 2 high. Outputs that the
windows leave over at the right and lower edges are never computed.
"""

from __future__ import annotations

import numpy as np

from fltrust_repro.compiled import Array, aligned, compiled

LANES = 32
RUN = 3 * LANES  # what a kernel sees in a row of a map
_CHUNK = 4  # examples, whose patches stay in the core's cache
_NOWHERE = np.int32(-9)  # neither a place nor left of one


@compiled
def _larger(
    value: np.float32, k: int, best: np.float32, where: np.int32
) -> tuple[np.float32, np.int32]:
    return (value, np.int32(k)) if value > best else (best, where)


@compiled
def _relu_pool(z: Array, ph: int, width: int, values: Array, places: Array) -> None:
    """Max pooling of relu(z), z (height, width, filters), and where each maximum was seen.

    That is the place a * width + b of the corner of its patch in the convolution's input, so wide,
    or -1 for relu's 0. The first of equal values counts, as in Gluon's pooling.
    """
    windows = z.shape[1] // 2
    for k in range(len(values)):
        first, left = k // windows * ph, k % windows * 2
        last, right = first + ph - 1, left + 1
        a, b, c, d = z[first, left], z[first, right], z[last, left], z[last, right]
        upper, lower = first * width + left, last * width + left
        for f in range(z.shape[2]):
            best, where = _larger(a[f], upper, np.float32(0), np.int32(-1))
            best, where = _larger(b[f], upper + 1, best, where)
            best, where = _larger(c[f], lower, best, where)
            best, where = _larger(d[f], lower + 1, best, where)
            values[k, f] = best
            places[k, f] = where


@compiled
def _taps(image: Array, kh: int, out: Array) -> None:
    # What each weight of the first convolution sees, a row each, and the ones that its bias sees.
    _, height, width = out.shape
    for c in range(image.shape[0]):
        for i in range(kh):
            for j in range(3):
                target = out[(c * kh + i) * 3 + j]
                for a in range(height):
                    for b in range(width):
                        target[a, b] = image[c, a + i, b + j]
    out[-1] = 1


@compiled
def first_convolution(weight: Array, x: Array, ph: int) -> tuple[Array, Array]:
    """Maps (n, height, width * lanes) of examples x (n, channels, height, width).

    `weight` is (taps and bias, lanes), a tap for each channel, row and column of a kernel. Also
    returns the places that pooling let through, int32 (n, windows, lanes).
    """
    kh = len(weight) // (3 * x.shape[1])
    n, height, width = len(x), (x.shape[2] - kh + 1) // ph, (x.shape[3] - 2) // 2
    maps = aligned(n, height * width * LANES)
    places = np.empty((n, height * width, LANES), dtype=np.int32)
    seen = np.empty((len(weight), height * ph, width * 2), dtype=np.float32)
    z = aligned(height * ph * width * 2, LANES)
    for e in range(n):
        _taps(x[e], kh, seen)
        np.dot(seen.reshape(len(weight), -1).T, weight, z)
        outputs, values = z.reshape(height * ph, width * 2, LANES), maps[e].reshape(-1, LANES)
        _relu_pool(outputs, ph, x.shape[3], values, places[e])
    return maps.reshape(n, height, width * LANES), places


@compiled
def _patches(maps: Array, out: Array) -> None:
    # What the second convolution's filters see: a row for each output.
    n, height, width, length = out.shape
    for e in range(n):
        for a in range(height):
            for b in range(width):
                for i in range(length // RUN):
                    target, source = out[e, a, b, i * RUN :], maps[e, a + i, b * LANES :]
                    for j in range(RUN):
                        target[j] = source[j]


@compiled
def second_convolution(weight: Array, maps: Array, ph: int) -> tuple[Array, Array]:
    """What pooling let through, (n, filters * windows) as Gluon flattens it, and the places.

    `weight` is (filters, runs of a kernel); the places are int32 (n, filters, windows).
    """
    (filters, length), width = weight.shape, maps.shape[2] // LANES
    height, across = (maps.shape[1] - length // RUN + 1) // ph, (width - 2) // 2
    outputs, windows = height * ph * across * 2, height * across
    flat = np.empty((len(maps), filters * windows), dtype=np.float32)
    places = np.empty((len(maps), filters, windows), dtype=np.int32)
    patches, z = aligned(_CHUNK * outputs, length), aligned(_CHUNK * outputs, filters)
    values = np.empty((windows, filters), dtype=np.float32)
    where = np.empty(values.shape, dtype=np.int32)
    for start in range(0, len(maps), _CHUNK):
        some = maps[start : start + _CHUNK]
        rows = len(some) * outputs
        _patches(some, patches[:rows].reshape(len(some), height * ph, across * 2, length))
        np.dot(patches[:rows], weight.T, z[:rows])
        for k in range(len(some)):
            own = z[k * outputs : (k + 1) * outputs].reshape(height * ph, -1, filters)
            _relu_pool(own, ph, width, values, where)
            flat[start + k].reshape(filters, windows)[:] = values.T
            places[start + k] = where.T
    return flat, places


@compiled
def let_through(places: Array, d_flat: Array) -> tuple[Array, Array, Array]:
    """The second convolution's gradient, sparse: what its pooling let through.

    For each example and filter, (n, filters, ...), where in a map the patches of these windows
    begin, and d loss / d output there; then three that add nothing; and how many there are.
    """
    n, filters, windows = places.shape
    starts = np.empty((n, filters, windows + 3), dtype=np.int32)
    values = np.empty(starts.shape, dtype=np.float32)
    counts = np.empty((n, filters), dtype=np.int32)
    for e in range(n):
        for f in range(filters):
            at, by, count = starts[e, f], values[e, f], 0
            for k in range(windows):  # without a branch, which would be guessed wrong half the time
                at[count], by[count] = places[e, f, k] * LANES, d_flat[e, f * windows + k]
                count += places[e, f, k] >= 0
            for k in range(count, count + 3):
                at[k], by[k] = 0, 0
            counts[e, f] = count
    return starts, values, counts


@compiled(fastmath={"contract"})
def second_gradient(maps: Array, d_outputs: tuple, mine: Array, gradient: Array) -> None:
    """Gradient of the second convolution's weight, of examples `mine`, into `gradient`.

    Each window adds the patch that it let through, `let_through`. Four at a time, the last ones
    with those that add nothing, so that the sums are loaded and stored less often.
    """
    starts, values, counts = d_outputs
    length = maps.shape[2]
    gradient[:] = 0
    for e in mine:
        seen = maps[e].ravel()
        for f in range(len(gradient)):
            at, by = starts[e, f], values[e, f]
            for k in range(0, counts[e, f], 4):
                p, q, r, s = by[k], by[k + 1], by[k + 2], by[k + 3]
                for i in range(gradient.shape[1] // RUN):
                    target, row = gradient[f, i * RUN :], seen[i * length :]
                    one, two = row[at[k] :], row[at[k + 1] :]
                    three, four = row[at[k + 2] :], row[at[k + 3] :]
                    for j in range(RUN):
                        target[j] += p * one[j] + q * two[j] + r * three[j] + s * four[j]


@compiled(fastmath={"contract"})
def maps_gradient(weight: Array, d_outputs: tuple, gradient: Array) -> None:
    """Gradient of the maps: each window adds its filter to the patch that it let through."""
    starts, values, counts = d_outputs
    length = gradient.shape[2]
    gradient[:] = 0
    for e in range(len(gradient)):
        d_map = gradient[e].ravel()
        for f in range(len(weight)):
            for k in range(counts[e, f]):
                start, by = starts[e, f, k], values[e, f, k]
                for i in range(weight.shape[1] // RUN):
                    target, kernel = d_map[start + i * length :], weight[f, i * RUN :]
                    for j in range(RUN):
                        target[j] += by * kernel[j]


@compiled(fastmath={"contract"})
def first_gradient(
    x: Array, places: Array, d_maps: Array, mine: Array, ph: int, gradient: Array
) -> None:
    """Gradient of the first convolution's weight, of examples `mine`, into `gradient`, flat."""
    kh, windows, width = len(gradient) // (x.shape[1] * RUN), d_maps.shape[2] // LANES, x.shape[3]
    bias, parts = gradient[-LANES:], aligned(4, LANES).ravel()
    gradient[:] = 0
    for e in mine:
        image, d_values = x[e], d_maps[e].ravel()
        for k in range(places.shape[1]):
            a, b = k // windows * ph, k % windows * 2
            upper = np.int32(a * width + b)
            lower = np.int32(upper + width) if ph == 2 else _NOWHERE
            place, d = places[e, k], d_values[k * LANES :]
            for f in range(LANES):  # of the window's four outputs
                parts[f] = d[f] if place[f] == upper else np.float32(0)
                parts[LANES + f] = d[f] if place[f] == upper + np.int32(1) else np.float32(0)
                parts[2 * LANES + f] = d[f] if place[f] == lower else np.float32(0)
                parts[3 * LANES + f] = d[f] if place[f] == lower + np.int32(1) else np.float32(0)
                bias[f] += d[f] if place[f] >= 0 else np.float32(0)
            for c in range(image.shape[0]):
                for i in range(kh):
                    above, below = image[c, a + i, b:], image[c, a + ph - 1 + i, b:]
                    p, q, r, s = above[0], above[1], above[2], above[3]
                    t, u, v, y = below[0], below[1], below[2], below[3]
                    taps = gradient[(c * kh + i) * RUN :]
                    for f in range(LANES):
                        one, two = parts[f], parts[LANES + f]
                        three, four = parts[2 * LANES + f], parts[3 * LANES + f]
                        taps[f] += one * p + two * q + three * t + four * u
                        taps[LANES + f] += one * q + two * r + three * u + four * v
                        taps[2 * LANES + f] += one * r + two * s + three * v + four * y
