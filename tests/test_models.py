"""The paper's classifiers: how many parameters, from which seed, for which inputs."""

import numpy as np
import pytest

from fltrust_repro.backend import mx, nd
from fltrust_repro.errors import BadInput
from fltrust_repro.models import Model, models
from fltrust_repro.workers import Learner


def learner(name, classes, shape, seed=0, initial="xavier-3"):
    return Learner(models[name], classes, shape, mx.cpu(), seed, initial)


@pytest.mark.parametrize(
    ("name", "classes", "shape", "d"),
    [
        ("lr", 10, (1, 28, 28), 7850),
        ("lr", 2, (1, 1, 30), 62),
        ("cnn", 10, (1, 28, 28), 266_060),
        ("cnn", 2, (1, 1, 30), 65_272),
        ("cnn", 3, (1, 10, 10), 24_653),
        ("bucketing-cnn", 10, (1, 28, 28), 1_199_882),
    ],
)
def test_number_of_parameters(name, classes, shape, d):
    assert learner(name, classes, shape).initial.shape == (d,)


def test_resnet20_has_twenty_weighted_layers():
    block = models["resnet20"].build(8, (1, 8, 8))
    block.initialize()
    block(nd.zeros((2, 1, 8, 8)))
    shapes = [p.shape for name, p in block.collect_params(".*weight").items()]
    main_path = [shape for shape in shapes if len(shape) == 2 or shape[2] == 3]
    assert len(main_path) == 20
    assert main_path[-1] == (8, 64)


@pytest.mark.parametrize(
    ("name", "shape"), [("lr", (1, 4, 4)), ("cnn", (1, 10, 10)), ("resnet20", (1, 8, 8))]
)
def test_the_seed_decides_the_initial_model(name, shape):
    first, again, other = (learner(name, 3, shape, seed).initial.asnumpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert np.isfinite(first).all()


def test_initial_weights_are_xavier_and_biases_zero():
    initial = learner("lr", 10, (1, 28, 28)).initial.asnumpy()
    bound = np.sqrt(6 / ((784 + 10) / 2) / 2)  # Gluon's Xavier: uniform, magnitude 3, average fan
    weights, biases = initial[:7840], initial[7840:]
    assert (biases == 0).all()
    assert np.abs(weights).max() <= bound
    assert np.abs(weights).max() > 0.99 * bound
    assert weights.std() == pytest.approx(bound / 3**0.5, rel=0.03)


@pytest.mark.parametrize(
    ("initial", "bound"),
    [
        ("xavier-2.24", (2.24 / ((784 + 10) / 2)) ** 0.5),
        ("xavier-1", (1 / ((784 + 10) / 2)) ** 0.5),
        ("uniform-0.07", 0.07),
    ],
)
def test_other_initial_models_have_the_magnitude_in_their_name(initial, bound):
    weights = learner("lr", 10, (1, 28, 28), initial=initial).initial.asnumpy()[:7840]
    assert 0.99 * bound < np.abs(weights).max() <= bound * (1 + 1e-6)


def test_the_bucketing_papers_cnn_begins_as_pytorchs_whatever_the_reading():
    first, again = (
        learner("bucketing-cnn", 10, (1, 28, 28), initial=initial).initial.asnumpy()
        for initial in ("xavier-3", "uniform-0.07")
    )
    np.testing.assert_array_equal(first, again)
    # Weights and biases of each layer are uniform within 1 / sqrt(inputs).
    ends = np.cumsum([0, 32 * 9 + 32, 64 * 32 * 9 + 64, 128 * 9216 + 128, 10 * 128 + 10])
    for start, end, inputs in zip(ends, ends[1:], (9, 32 * 9, 9216, 128)):
        part, bound = first[start:end], inputs**-0.5
        assert 0.98 * bound < np.abs(part).max() <= bound * (1 + 1e-6)
        assert part.std() == pytest.approx(bound / 3**0.5, rel=0.07)


def test_the_bucketing_papers_cnn_by_hand():
    trainee = learner("bucketing-cnn", 3, (1, 8, 8))
    w, x = trainee.initial.asnumpy(), np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    parts = np.split(w, np.cumsum([288, 32, 18432, 64, 32768, 128, 384]))
    kernels, windows = (parts[0].reshape(32, 1, 3, 3), parts[2].reshape(64, 32, 3, 3)), (3, 3)

    def convolved(images, kernel, bias):
        seen = np.lib.stride_tricks.sliding_window_view(images, windows, axis=(2, 3))
        return np.einsum("nchwij,kcij->nkhw", seen, kernel) + bias[:, None, None]

    maps = np.maximum(convolved((x - 0.1307) / 0.3081, kernels[0], parts[1]), 0)
    maps = convolved(maps, kernels[1], parts[3])  # no activation
    pooled = maps.reshape(2, 64, 2, 2, 2, 2).max(axis=(3, 5)).reshape(2, -1)
    units = np.maximum(pooled @ parts[4].reshape(128, -1).T + parts[5], 0)
    scores = units @ parts[6].reshape(3, -1).T + parts[7]
    found = trainee.scores(trainee.initial, trainee.resident(x))  # without dropout
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-5)


def test_the_bucketing_papers_cnn_refuses_images_that_are_too_small():
    with pytest.raises(BadInput, match="at least 6 x 6 pixels, these are 1 x 30"):
        models["bucketing-cnn"].build(2, (1, 1, 30))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 9, 28), (3, 28, 9), (1, 1, 9)])
def test_the_cnn_refuses_images_that_are_too_small(shape):
    with pytest.raises(BadInput, match=f"at least .* these are {shape[1]} x {shape[2]}"):
        models["cnn"].build(2, shape)


@pytest.mark.parametrize("shape", [(1, 10, 10), (3, 10, 11), (1, 1, 10)])
def test_the_smallest_images_the_cnn_takes(shape):
    net = models["cnn"].build(2, shape)
    net.initialize()
    assert net(nd.zeros((4, *shape))).shape == (4, 2)


def block(*layers):
    """A model of one's own."""

    def build(classes, shape):
        net = mx.gluon.nn.HybridSequential()
        net.add(*(layer() for layer in layers))
        return net

    return build


nn = mx.gluon.nn


def step(function):
    """A layer that computes a function of F and x."""
    return lambda: nn.HybridLambda(function)


OTHERS = {
    "too few": ([lambda: nn.Dense(7)], "gives 7 outputs, the data set has 10 classes"),
    "too many": ([lambda: nn.Dense(11)], "gives 11 outputs, the data set has 10 classes"),
    "not flat": ([lambda: nn.Dense(10, flatten=False)], r"gives shape \(2, 1, 8, 10\) for 2 exam"),
    "a number": ([step(lambda _, x: x.sum())], r"gives shape \(1,\) for 2 examples"),
    "all in one": (
        [step(lambda _, x: x.reshape((1, -1))), lambda: nn.Dense(10)],
        r"gives shape \(1, 10\) for 2 examples, not \(2, 10\)",
    ),
    "two outputs": ([step(lambda f, x: f.split(x, 2, axis=2))], "gives a list, not one NDArray"),
    "double": (
        [lambda: nn.Dense(10), step(lambda f, x: f.cast(x, "float64"))],
        "computes in float64, not float32",
    ),
}


@pytest.mark.parametrize("how", OTHERS)
def test_a_model_that_does_not_fit_the_data_set_is_named(how):
    layers, problem = OTHERS[how]
    with pytest.raises(BadInput, match=f"model 'own' {problem}"):
        Learner(Model("own", block(*layers), None), 10, (1, 8, 8), mx.cpu(), 0)


@pytest.mark.parametrize(("made", "kind"), [(None, "NoneType"), (mx.gluon.Block(), "Block")])
def test_a_model_that_is_no_hybrid_block_is_named(made, kind):
    with pytest.raises(BadInput, match=f"model 'own' is a {kind}; .* return a Gluon HybridBlock"):
        Learner(Model("own", lambda classes, shape: made, None), 10, (1, 8, 8), mx.cpu(), 0)


def test_a_model_of_ones_own_that_fits_is_taken():
    own = Model("own", block(lambda: nn.Dense(3), lambda: nn.Dense(10)), None)
    assert Learner(own, 10, (1, 8, 8), mx.cpu(), 0).initial.shape == (64 * 3 + 3 + 3 * 10 + 10,)
