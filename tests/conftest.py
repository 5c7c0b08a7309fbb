"""Hypothesis profiles, and the device that stands in for a GPU."""

import os

from fltrust_repro.backend import WORKER_ENVIRONMENT

# Before the libraries load: pytest-xdist runs as many processes as there are cores.
for _name, _value in WORKER_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from fltrust_repro import backend  # noqa: E402
from fltrust_repro.backend import mx, nd  # noqa: E402

settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


class Device:
    """Makes arrays on the device whose code path is tested."""

    def __init__(self, ctx):
        self.ctx = ctx

    def array(self, values):
        """Float32 NDArray on the device."""
        return nd.array(np.asarray(values, dtype=np.float32), ctx=self.ctx)


def _only_on(ctx, create):
    def checked(*args, **kwargs):
        out = create(*args, **kwargs)
        assert out.ctx == ctx, f"mx.np.{create.__name__} made an array on {out.ctx}"
        return out

    return checked


@pytest.fixture(params=["operators", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """A device on which the package uses MXNet's array operators, as it does on a GPU.

    Without a GPU a second CPU context stands in. MXNet does not mind mixing two CPU contexts, as
    it does mixing CPU and GPU; so an array made outside the device is an error here.
    """
    if request.param == "gpu":
        if not backend.gpu_count():
            pytest.skip("MXNet sees no GPU on this machine")
        return Device(mx.gpu())
    ctx = mx.cpu(1)
    monkeypatch.setattr(backend, "is_gpu", lambda where: where == ctx)
    monkeypatch.setattr(backend, "workspace", lambda where: 2**30)
    for name in ("array", "zeros", "ones", "full", "arange", "eye"):
        monkeypatch.setattr(mx.np, name, _only_on(ctx, getattr(mx.np, name)))
    return Device(ctx)


@pytest.fixture
def host_randomness(monkeypatch):
    """Draw on the host for every device, so that two devices can be compared number by number."""

    def drawn_by(name):
        def draw(rng, shape, like):
            values = getattr(rng, name)(shape, dtype=np.float32)
            if not backend.on_gpu(like):
                return values
            return nd.array(values, ctx=like.ctx).as_np_ndarray()

        return draw

    monkeypatch.setattr(backend, "uniform", drawn_by("random"))
    monkeypatch.setattr(backend, "normal", drawn_by("standard_normal"))
