"""Hypothesis profiles, one thread, and the device that stands in for a GPU."""

import os
import sys

from fltrust_repro.backend import WORKER_ENVIRONMENT

# Before most libraries load: pytest-xdist runs as many processes as there are cores.
for _name, _value in WORKER_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import pytest  # noqa: E402
from browsing import browser, chromium  # noqa: E402, F401  (fixtures)
from data_files import alone, sixteen, tiny  # noqa: E402, F401  (fixtures)
from emulated import launcher  # noqa: E402
from hypothesis import settings  # noqa: E402
from stub_driver import driver  # noqa: E402, F401  (a fixture)
from threadpoolctl import threadpool_limits  # noqa: E402

from fltrust_repro import backend, gpu_gradients, gpu_order, plugins  # noqa: E402
from fltrust_repro.backend import mx  # noqa: E402

threadpool_limits(1)  # numpy came before

settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """No test keeps anything in the user's own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _plugins(monkeypatch):
    """What a test's plug-ins register, and where they make Python look, is that test's alone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    if plugins._loaded:
        plugins.run_afresh([])


@pytest.fixture(scope="session")
def emulated_kernels(tmp_path_factory):
    """What compiles a file of kernels, in the place of `cuda_source.kernels_of`."""
    folder, files = tmp_path_factory.mktemp("kernels"), (gpu_gradients.SOURCE, gpu_order.SOURCE)
    compiled = {file: launcher(folder, file) for file in files}
    return lambda file, ctx: compiled[file]


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, monkeypatch, emulated_kernels):
    """The context of a GPU; without one a second CPU context, which is taken for a GPU's."""
    if request.param == "gpu":
        if not backend.gpu_count():
            pytest.skip("MXNet sees no GPU on this machine")
        return mx.gpu()
    ctx = mx.cpu(1)
    stand_in = gpu_order.Passes(ctx, emulated_kernels(gpu_order.SOURCE, ctx))
    monkeypatch.setattr(backend, "is_gpu", lambda where: where == ctx)
    monkeypatch.setattr(backend, "workspace", lambda where: 2**30)
    monkeypatch.setattr(gpu_gradients, "kernels_of", emulated_kernels)
    monkeypatch.setattr(gpu_order, "_passes", lambda index: stand_in)
    return ctx
