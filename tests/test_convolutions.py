"""The CNN's two convolutions against sums written out, in maps of their own layout."""

import numpy as np
import pytest

from fltrust_repro import convolutions
from fltrust_repro.convolutions import LANES, RUN

# Channels, height, width, a kernel's and a window's height; edges that windows leave over.
CASES = [(1, 12, 13, 3, 2), (3, 11, 10, 3, 2), (2, 1, 17, 1, 1)]
N = 5  # one more than pass through the second convolution together


def plain(x, weight, bias, ph):
    """Convolution, relu and max pooling: the outputs, and each one's patch (..., c, i, j)."""
    kh = weight.shape[2]
    patches = np.lib.stride_tricks.sliding_window_view(x, (kh, 3), axis=(2, 3))
    z = np.einsum("ncabij,fcij->nfab", patches, weight) + bias[:, None, None]
    height, width = z.shape[2] // ph, z.shape[3] // 2
    windows = z[:, :, : height * ph, : width * 2].reshape(*z.shape[:2], height, ph, width, 2)
    windows = np.maximum(windows.transpose(0, 1, 2, 4, 3, 5), 0).reshape(*z.shape[:2], -1, 2 * ph)
    return windows.max(axis=3)


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """Images and their maps, with the weights laid out for both convolutions."""
    channels, height, width, kh, ph = request.param
    rng = np.random.default_rng(0)
    x = random(rng, N, channels, height, width)
    first = np.zeros((channels * kh * 3 + 1, LANES), dtype=np.float32)
    first[:, :30] = random(rng, len(first), 30)
    first[-1, 30] = 1
    maps, places = convolutions.first_convolution(first, x, ph)
    second = np.zeros((4, kh * 3, LANES), dtype=np.float32)
    second[:, :, :30], second[:, 0, 30] = random(rng, 4, kh * 3, 30), random(rng, 4)
    return x, first, maps, places, second.reshape(4, -1), ph


def as_images(maps):
    """(n, channels, height, width) of maps, the 30 that are channels."""
    return maps.reshape(*maps.shape[:2], -1, LANES).transpose(0, 3, 1, 2)[:, :30]


def patch(image, place, kh):
    """What a kernel sees of an image (channels, height, width) at a place."""
    a, b = divmod(place, image.shape[2])
    return image[:, a : a + kh, b : b + 3]


def test_first_convolution(case):
    x, first, maps, places, _, ph = case
    weight = first[:-1, :30].T.reshape(30, x.shape[1], -1, 3)
    expected = plain(x, weight, first[-1, :30], ph)
    found = as_images(maps).reshape(N, 30, -1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    lanes = maps.reshape(N, -1, LANES)
    assert (lanes[:, :, 30] == 1).all() and (lanes[:, :, 31] == 0).all()
    np.testing.assert_array_equal(places[:, :, :30] >= 0, found.transpose(0, 2, 1) > 0)
    for e, k, f in np.argwhere(places[:, :, :30] >= 0)[::7]:
        seen = patch(x[e], places[e, k, f], weight.shape[2])
        z = (seen * weight[f]).sum() + first[-1, f]
        assert found[e, f, k] == pytest.approx(z, abs=1e-5)


def test_second_convolution(case):
    *_, maps, _, second, ph = case
    weight = second.reshape(4, -1, 3, LANES)[..., :30].transpose(0, 3, 1, 2)
    flat, places = convolutions.second_convolution(second, maps, ph)
    expected = plain(as_images(maps), weight, second[:, 30], ph)
    np.testing.assert_allclose(flat.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(places >= 0, flat.reshape(places.shape) > 0)
    for e, f, k in np.argwhere(places >= 0):
        z = (patch(as_images(maps)[e], places[e, f, k], weight.shape[2]) * weight[f]).sum()
        assert expected[e, f, k] == pytest.approx(z + second[f, 30], rel=1e-4, abs=1e-4)


def test_gradients_are_sums_over_windows(case):
    x, first, maps, places1, second, ph = case
    rng, mine = np.random.default_rng(1), np.array([3, 0, 4])
    flat, places2 = convolutions.second_convolution(second, maps, ph)
    d_flat, d_maps = random(rng, *flat.shape), random(rng, *maps.shape)
    d_outputs = convolutions.let_through(places2, d_flat)
    found_second, found_maps = np.empty_like(second), np.empty_like(maps)
    convolutions.second_gradient(maps, d_outputs, mine, found_second)
    convolutions.maps_gradient(second, d_outputs, found_maps)
    found_first = np.empty(first.size, dtype=np.float32)
    convolutions.first_gradient(x, places1, d_maps, mine, ph, found_first)

    kh, width = second.shape[1] // RUN, maps.shape[2] // LANES
    lanes = maps.reshape(N, -1, width, LANES)
    second_expected, maps_expected = np.zeros_like(second), np.zeros_like(lanes)
    for e, f, k in np.argwhere(places2 >= 0):
        (a, b), d = divmod(places2[e, f, k], width), d_flat.reshape(places2.shape)[e, f, k]
        where = np.s_[e, a : a + kh, b : b + 3]
        second_expected[f] += d * lanes[where].ravel() * (e in mine)
        maps_expected[where] += d * second[f].reshape(kh, 3, LANES)
    first_expected = np.zeros_like(first)
    for e, k, f in np.argwhere(places1 >= 0):
        seen = patch(x[e], places1[e, k, f], kh).ravel()
        d = d_maps.reshape(places1.shape)[e, k, f] * (e in mine)
        first_expected[:, f] += d * np.append(seen, 1)
    np.testing.assert_allclose(found_second, second_expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found_maps, maps_expected.reshape(maps.shape), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        found_first.reshape(first.shape), first_expected, rtol=1e-3, atol=1e-4
    )
