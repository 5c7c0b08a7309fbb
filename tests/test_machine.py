"""The CPU and the linear algebra are named, alike on machines alike, and what is slow is told."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fltrust_repro import machine, trial_process
from fltrust_repro.machine import Blas, Cpu

XEON = """\
processor	: 0
vendor_id	: GenuineIntel
cpu family	: 6
model		: 207
model name	: Intel(R) Xeon(R) Platinum 8592+ CPU @ 1.90GHz
flags		: fpu sse2 avx avx2 avx512f avx512bw

processor	: 1
cpu family	: 6
model		: 207
model name	: another
"""
RYZEN = (
    "cpu family : 23\nmodel : 49\nmodel name : AMD EPYC 7502 32-Core Processor\nflags : sse2 avx2"
)
PHI = (
    "cpu family : 6\nmodel : 87\nmodel name : Intel(R) Xeon Phi(TM) CPU 7210\nflags : avx2 avx512f"
)
OLD = "cpu family : 6\nmodel : 42\nmodel name : Intel(R) Core(TM) i5-2400\nflags : fpu sse2 avx"
ARM = "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd40\nFeatures : asimd sve"


@pytest.mark.parametrize(
    ("text", "name", "vectors"),
    [
        (XEON, "Intel Xeon Platinum 8592+ (family 6, model 207, AVX-512)", "AVX-512"),
        (RYZEN, "AMD EPYC 7502 (family 23, model 49, AVX2)", "AVX2"),
        (PHI, "Intel Xeon Phi 7210 (family 6, model 87, AVX2)", "AVX2"),
        (OLD, "Intel Core i5-2400 (family 6, model 42, AVX)", "AVX"),
        (ARM, "aarch64 (implementer 0x41, part 0xd40)", None),
        ("", "aarch64", None),
        (None, "aarch64", None),
    ],
)
def test_the_name_of_a_cpu(text, name, vectors, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(machine, "_CPUINFO", file)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.cpu.__wrapped__() == Cpu(name, vectors)


def test_each_package_has_the_library_that_lies_in_its_folder(monkeypatch):
    def folder(owner):
        return Path(importlib.util.find_spec(owner).origin).resolve().parent

    numpy, scipy, mxnet = map(folder, ("numpy", "scipy", "mxnet"))
    for file, owner in {
        numpy.with_name("numpy.libs") / "libopenblas64_p-r0-0cf96a72.3.23.dev.so": "numpy",
        scipy.with_name("scipy.libs") / "libscipy_openblas-6cdc3b4a.so": "scipy",
        scipy / ".dylibs" / "libscipy_openblas.dylib": "scipy",
        mxnet / "libopenblas.so.0": "mxnet",
        Path("/usr/lib/mxnet/x86_64-linux-gnu/libopenblas.so.0"): "system",
        numpy.with_name("torch") / "lib" / "libmkl.so": "system",
    }.items():
        assert machine._owner(file) == owner


def told(path: str, version: str, kernel: str | None = None, api: str = "openblas") -> dict:
    kernels = {} if kernel is None else {"architecture": kernel}
    return {
        "user_api": "blas",
        "internal_api": api,
        "version": version,
        "filepath": path,
        **kernels,
    }


@pytest.fixture
def loaded(monkeypatch):
    """Pretend that such and such libraries are loaded."""
    monkeypatch.setattr(machine, "libraries", machine.libraries.__wrapped__)

    def pretend(*libraries: dict):
        openmp = {"user_api": "openmp", "internal_api": "openmp", "version": None, "filepath": "/x"}
        monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: [*libraries, openmp])

    return pretend


PACKAGES = Path(importlib.util.find_spec("numpy").origin).resolve().parents[1]
NUMPY = told(f"{PACKAGES}/numpy.libs/libopenblas64.so", "0.3.23.dev", "Prescott")
SCIPY = told(f"{PACKAGES}/scipy.libs/libscipy_openblas.so", "0.3.30", "SkylakeX")
MXNET = told(f"{PACKAGES}/mxnet/libopenblas.so.0", "0.3.13", "Prescott")
TORCH = told(f"{PACKAGES}/torch/lib/libmkl.so", "2024.1", api="mkl")
DEBIAN = told("/usr/lib/x86_64-linux-gnu/libopenblas.so.0", "0.3.21", "Haswell")


def test_libraries_are_named_in_one_order_whatever_else_the_process_loaded(loaded):
    loaded(MXNET, TORCH, SCIPY, NUMPY, DEBIAN)
    one = machine.kind()
    loaded(NUMPY, SCIPY, MXNET)
    assert machine.kind() == one
    assert one == (
        "numpy OpenBLAS 0.3.23.dev Prescott, scipy OpenBLAS 0.3.30 SkylakeX, "
        f"mxnet OpenBLAS 0.3.13 Prescott, {machine.cpu()}"
    )


def test_a_library_that_packages_share_is_named_once(loaded):
    loaded(MXNET, DEBIAN)
    assert [str(blas) for blas in machine.libraries()] == [
        "OpenBLAS 0.3.13 Prescott",
        "OpenBLAS 0.3.21 Haswell",
    ]
    assert "BLAS OpenBLAS 0.3.21 Haswell, " in trial_process.versions()


def test_versions_name_cpu_kernels_scipy_and_numba_in_one_short_line(loaded, monkeypatch):
    loaded(NUMPY, SCIPY, MXNET)
    longest = Cpu("Intel Xeon Platinum 8592+ CPU of some kind (family 6, model 207, AVX-512)", None)
    monkeypatch.setattr(machine, "cpu", lambda: longest)
    text = trial_process.versions()
    assert re.fullmatch(
        r"python 3\.\d+\.\d+, \w+, (fltrust_repro [\d.]+, )?mxnet(-cu112)? 1\.9\.1 \(OpenBLAS "
        r"0\.3\.13 Prescott\), numpy [\d.]+ \(OpenBLAS 0\.3\.23\.dev Prescott\), scipy [\d.]+ "
        r"\(OpenBLAS 0\.3\.30 SkylakeX\), numba [\d.]+, Intel Xeon Platinum .*AVX-512\)",
        text,
    )
    assert len(text) <= 260
    loaded({**NUMPY, "architecture": "Haswell"}, SCIPY, MXNET)
    assert trial_process.versions() != text


# --- advice

NEW, OLDER = Cpu("new", "AVX-512"), Cpu("older", "AVX2")


def blas(owner: str, kernel: str | None) -> Blas:
    return Blas(owner, "OpenBLAS", "0.3", kernel)


FITTING = [blas("numpy", "SkylakeX"), blas("scipy", "SkylakeX"), blas("mxnet", "Haswell")]


@pytest.mark.parametrize(
    ("cpu", "libraries", "coretype"),
    [
        (NEW, FITTING, None),
        (NEW, FITTING, "SkylakeX"),
        (NEW, [blas("numpy", "Zen5"), Blas("scipy", "MKL", None, None)], None),  # not known
        (OLDER, [blas("scipy", "Zen"), blas("mxnet", "Haswell")], "Haswell"),
        (Cpu("old", "AVX"), [blas("numpy", "Nehalem")], None),
        (Cpu("arm", None), [blas("numpy", "ARMV8")], None),
    ],
)
def test_no_advice_where_kernels_fit_or_are_not_known(cpu, libraries, coretype):
    assert machine.advice(cpu, libraries, coretype) is None


@pytest.mark.parametrize("kernel", ["Prescott", "Barcelona", "Nehalem", "Sandybridge", "Katmai"])
def test_kernels_far_below_the_cpu_are_told_with_what_to_set_and_what_they_cost(kernel):
    libraries = [blas("numpy", kernel), blas("scipy", "Haswell"), blas("mxnet", kernel)]
    for cpu, best in ((NEW, "SkylakeX"), (OLDER, "Haswell")):
        text = machine.advice(cpu, libraries, None)
        assert f"numpy's OpenBLAS 0.3 {kernel} and mxnet's OpenBLAS 0.3 {kernel}: " in text
        assert f"OPENBLAS_CORETYPE={best} mends it" in text
        assert "slower, not wrong, and a little only, since scipy's does the hot products" in text
        assert "error" not in text


def test_kernels_of_scipy_that_are_far_below_the_cpu_cost_more():
    text = machine.advice(NEW, [blas("scipy", "Nehalem")], None)
    assert "scipy's OpenBLAS 0.3 Nehalem: kernels for SSE" in text
    assert "a little" not in text


@pytest.mark.parametrize("coretype", ["Haswell", "Prescott"])
def test_a_variable_that_holds_the_hot_products_below_the_cpu_is_told(coretype):
    text = machine.advice(NEW, [blas(name, coretype) for name in ("numpy", "scipy")], coretype)
    assert text.startswith(f"OPENBLAS_CORETYPE={coretype} holds scipy's OpenBLAS 0.3 {coretype}")
    assert "slower, not wrong; unset it, or set SkylakeX" in text


def test_doctor_tells_it_and_trials_can_run_all_the_same(tmp_path):
    if machine.cpu().vectors not in ("AVX-512", "AVX2"):
        pytest.skip("no kernels are far below this CPU")
    done = subprocess.run(
        [sys.executable, "-m", "fltrust_repro", "doctor"], capture_output=True, text=True,
        timeout=300, check=False, cwd=tmp_path,
        env={**os.environ, "OPENBLAS_CORETYPE": "Prescott",
             "PYTHONPATH": str(Path(machine.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert f"cpu       {machine.cpu()}" in lines
    kernels, advice = (line for line in lines if line.startswith("blas "))
    assert re.search(r"numpy: \S+ \S+ Prescott, scipy: .*, mxnet: \S+ \S+ Prescott$", kernels)
    assert "OPENBLAS_CORETYPE=Prescott holds scipy's" in advice


# --- machines side by side


def test_the_machines_that_are_not_as_most_are_named():
    assert machine.odd_ones({"a": "x", "b": "x", "c": "x"}) == {}
    assert machine.odd_ones({"a": "x", "b": "y", "c": "x"}) == {"b": "y"}
    assert len(machine.odd_ones({"a": "x", "b": "y"})) == 1


@pytest.mark.slow
def test_workers_of_a_cluster_with_other_kernels_are_named_before_a_run(tmp_path, capsys):
    if machine.cpu().vectors not in ("AVX-512", "AVX2"):
        pytest.skip("this CPU has no other kernels")
    distributed = pytest.importorskip("distributed")
    from fltrust_repro.cluster import Cluster
    from fltrust_repro.processes import Machine

    def worker(coretype):
        options = {"nthreads": 1, "env": {"OPENBLAS_CORETYPE": coretype}, "local_directory": folder}
        return {"cls": distributed.Nanny, "options": options}

    folder, options = str(tmp_path), {"host": "127.0.0.1", "dashboard": False}
    scheduler = {"cls": distributed.Scheduler, "options": options}
    kernels = {"a": "Haswell", "odd": "Prescott", "b": "Haswell"}
    workers = {name: worker(kernel) for name, kernel in kernels.items()}
    with distributed.SpecCluster(scheduler=scheduler, workers=workers) as some:
        addresses = {info["name"]: a for a, info in some.scheduler_info["workers"].items()}
        cluster = Cluster(Machine(scheduler=some.scheduler_address))
        try:
            cluster.check_data(["digits"])
        finally:
            cluster.close()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Note: 1 of 3 workers")
    assert re.search(rf"{addresses['odd']}: numpy .*mxnet OpenBLAS \S+ Prescott", line)
    assert addresses["a"] not in line
