"""Hypothesis profiles, one thread, and the device that stands in for a GPU."""

import os

from fltrust_repro.backend import WORKER_ENVIRONMENT

# Before most libraries load: pytest-xdist runs as many processes as there are cores.
for _name, _value in WORKER_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import pytest  # noqa: E402
from data_files import alone, sixteen, tiny  # noqa: E402, F401  (fixtures)
from emulated import launcher  # noqa: E402
from hypothesis import settings  # noqa: E402
from stub_driver import driver  # noqa: E402, F401  (a fixture)
from threadpoolctl import threadpool_limits  # noqa: E402

from fltrust_repro import backend, gpu_gradients  # noqa: E402
from fltrust_repro.backend import mx  # noqa: E402

threadpool_limits(1)  # numpy came before

settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def emulated_kernels(tmp_path_factory):
    return launcher(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, monkeypatch, emulated_kernels):
    """The context of a GPU; without one a second CPU context, which is taken for a GPU's."""
    if request.param == "gpu":
        if not backend.gpu_count():
            pytest.skip("MXNet sees no GPU on this machine")
        return mx.gpu()
    ctx = mx.cpu(1)
    monkeypatch.setattr(backend, "is_gpu", lambda where: where == ctx)
    monkeypatch.setattr(backend, "workspace", lambda where: 2**30)
    monkeypatch.setattr(backend, "pinned", lambda *shape: backend.nd.empty(shape))
    monkeypatch.setattr(gpu_gradients, "kernels_of", lambda where: emulated_kernels)
    return ctx
