"""CPU, linear algebra, NVIDIA's side: named, alike on machines alike; what is slow is told."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import stub_driver as stub

from fltrust_repro import machine, nvidia
from fltrust_repro.machine import Blas, Cpu

REPOSITORY = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

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


@pytest.mark.parametrize(
    ("file", "owner"),
    [
        ("numpy.libs/libopenblas64_p-r0-0cf96a72.3.23.dev.so", "numpy"),
        ("scipy.libs/libscipy_openblas-6cdc3b4a.so", "scipy"),
        ("scipy/.dylibs/libscipy_openblas.dylib", "scipy"),
        ("mxnet/libopenblas.so.0", "mxnet"),
        ("/usr/lib/mxnet/x86_64-linux-gnu/libopenblas.so.0", "system"),
        ("torch/lib/libmkl.so", "system"),
    ],
)
def test_each_package_has_the_library_that_lies_in_its_folder(loaded, file, owner):
    loaded(told(str(PACKAGES / file), "1"))
    assert [blas.owner for blas in machine.libraries()] == [owner]


@pytest.mark.slow
def test_mxnets_library_is_named_without_importing_mxnet():
    program = (
        "import sys; from fltrust_repro import machine; one = machine.kind(); "
        "assert 'mxnet' not in sys.modules; machine.libraries.cache_clear(); "
        "from fltrust_repro.backend import mx; assert machine.kind() == one; print(one)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          check=False, env=ENVIRONMENT)  # fmt: skip
    assert re.search(r"^numpy \w+ .*, scipy \w+ .*, mxnet \w+ \S+", done.stdout), done.stderr


def test_a_library_that_packages_share_is_named_once(loaded):
    loaded(MXNET, DEBIAN)
    assert [str(blas) for blas in machine.libraries()] == [
        "OpenBLAS 0.3.13 Prescott",
        "OpenBLAS 0.3.21 Haswell",
    ]
    assert "BLAS OpenBLAS 0.3.21 Haswell, " in machine.versions()


def test_versions_name_cpu_kernels_scipy_and_numba_in_one_short_line(loaded, monkeypatch):
    loaded(NUMPY, SCIPY, MXNET)
    longest = Cpu("Intel Xeon Platinum 8592+ CPU of some kind (family 6, model 207, AVX-512)", None)
    monkeypatch.setattr(machine, "cpu", lambda: longest)
    text = machine.versions()
    assert re.fullmatch(
        r"python 3\.\d+\.\d+, \w+, (fltrust_repro [\d.]+, )?mxnet(-cu112)? 1\.9\.1 \(OpenBLAS "
        r"0\.3\.13 Prescott\), numpy [\d.]+ \(OpenBLAS 0\.3\.23\.dev Prescott\), scipy [\d.]+ "
        r"\(OpenBLAS 0\.3\.30 SkylakeX\), numba [\d.]+, Intel Xeon Platinum .*AVX-512\)",
        text,
    )
    assert len(text) <= 260
    loaded({**NUMPY, "architecture": "Haswell"}, SCIPY, MXNET)
    assert machine.versions() != text


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


@pytest.mark.long
def test_doctor_tells_it_and_trials_can_run_all_the_same(tmp_path):
    if machine.cpu().vectors not in ("AVX-512", "AVX2"):
        pytest.skip("no kernels are far below this CPU")
    done = subprocess.run(
        [sys.executable, "-m", "fltrust_repro", "doctor"], capture_output=True, text=True,
        timeout=300, check=False, cwd=tmp_path,
        env={**ENVIRONMENT, "OPENBLAS_CORETYPE": "Prescott"},
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


@pytest.mark.long
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
            cluster.check_data(["digits"], ())
        finally:
            cluster.close()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Note: 1 of 3 workers")
    assert re.search(rf"{addresses['odd']}: numpy .*mxnet OpenBLAS \S+ Prescott", line)
    assert addresses["a"] not in line


# --- CUDA's libraries


def test_setup_installs_the_package_of_every_library():
    setup = (REPOSITORY / "setup.py").read_text()
    for library, name in machine.CUDA_LIBRARIES.items():
        assert f'"nvidia-{name}-cu11>=' in setup
        assert re.search(f"pip install 'nvidia-{name}-cu11[<>]", machine.remedy([library]))


@pytest.fixture
def loads(monkeypatch):
    """What `preload` loads, nothing of it for real, each with the environment of that moment."""
    found: dict[str, dict[str, str]] = {}

    def load(path: str, mode: int) -> None:
        found[path] = dict(os.environ)

    names = [*machine.cuda_environment()]  # loads numba, which loads a library of its own
    monkeypatch.setattr(machine.ctypes, "CDLL", load)
    monkeypatch.setattr(os, "environ", {**os.environ})
    for name in names:
        os.environ.pop(name, None)
    return found


def test_a_library_that_pip_installed_goes_before_the_loaders_own(tmp_path, monkeypatch, loads):
    file = tmp_path / "nvidia" / "cudnn" / "lib" / "libcudnn.so.8"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert machine.preload() == []
    assert str(file) in loads
    assert "libcuda.so.1" in loads


CHOSEN = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "CUDA_MODULE_LOADING": "LAZY",
    "CUDA_CACHE_MAXSIZE": "4294967296",
}


def test_cuda_finds_its_variables_before_any_of_its_libraries_loads(loads, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "folder", lambda: tmp_path)
    machine.preload()
    wanted = {**CHOSEN, "CUDA_CACHE_PATH": f"{tmp_path}/cuda"}
    assert len(loads) == 11
    for environment in (*loads.values(), os.environ):  # and the process keeps them
        assert {name: environment.get(name) for name in wanted} == wanted
    assert (tmp_path / "cuda").is_dir()


@pytest.mark.parametrize("name", [*CHOSEN, "CUDA_CACHE_PATH"])
def test_a_variable_of_the_users_own_stays(loads, name):
    os.environ[name] = ""
    machine.preload()
    assert os.environ[name] == ""


def test_cuda_keeps_its_code_where_it_likes_if_no_folder_can_be_written(monkeypatch):
    def none():
        raise OSError

    monkeypatch.setattr(machine, "folder", none)
    assert machine.cuda_environment() == CHOSEN


def test_naming_the_libraries_of_the_build_for_cuda_loads_them_the_same_way(monkeypatch, loaded):
    calls = []
    monkeypatch.setattr(machine, "preload", lambda: calls.append("preload"))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda path: calls.append(Path(path).name))
    loaded(NUMPY, SCIPY, MXNET)
    for build, expected in (
        (machine.CUDA_BUILD, ["preload", "libmxnet.so"]),
        (machine.CPU_BUILD, ["libmxnet.so"]),
    ):
        monkeypatch.setattr(machine, "installed_builds", lambda build=build: {build: "1.9.1"})
        calls.clear()
        machine.libraries()
        assert calls == expected


def test_remedies():
    one = machine.remedy(["libcudnn.so.8"])
    assert re.fullmatch(r"`pip install 'nvidia-cudnn-cu11<9,>=8[.\d]+'`", one)
    assert machine.remedy(["libcudnn.so.8", "libnccl.so.2"]) == "`pip install -e '.[cuda]'`"
    assert "MXNet's CPU build" in machine.remedy(["libcudnn.so.8", "libcuda.so.1"])


# --- GPUs that MXNet's build for CUDA has code for


@pytest.mark.parametrize(
    ("capability", "has"),
    [
        ((3, 7), False), ((5, 0), True), ((5, 2), True), ((6, 1), True), ((7, 0), True),
        ((7, 5), True), ((8, 0), True), ((8, 6), True), ((8, 9), True), ((9, 0), False),
        ((10, 0), False), ((12, 0), False),
    ],
)  # fmt: skip
def test_code_runs_on_gpus_of_its_major_version_that_are_not_older(capability, has):
    assert machine.has_code_for(capability) is has


def test_a_gpu_without_code_is_named_with_what_trains_on_it(driver):
    driver(stub.source([stub.ADA, stub.HOPPER]))
    assert machine.no_code(0, ["lr", "cnn"]) is None
    assert machine.no_code(1, ["lr", "cnn"]) == (
        "MXNet's build for CUDA has code for cards of compute capability 5.0 to 8.9, this one "
        "(NVIDIA H200) has 9.0: the models lr and cnn train on it, others need --device cpu"
    )
    assert machine.no_code(2, ["lr", "cnn"]) is None  # not known


# --- the real build for CUDA on a machine without a GPU

PYTHON = os.environ.get("FLTRUST_CUDA_PYTHON", sys.executable)
"""A Python where `pip install -e '.[cuda]'` was run."""


@pytest.fixture(scope="module")
def driver_folder(tmp_path_factory):
    """Make a folder with a libcuda.so.1 that MXNet links to, whose start ends with such a code."""
    spec = "import importlib.util as u; print(u.find_spec('mxnet').submodule_search_locations[0])"
    found = subprocess.run([PYTHON, "-c", spec], capture_output=True, text=True, check=False)
    library = Path(found.stdout.strip(), "libmxnet.so")
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    symbols = ""
    if found.returncode == 0 and library.is_file():
        symbols = subprocess.run(
            ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
        ).stdout
    names = re.findall(r"\bU (cu[A-Z]\w*)$", symbols, re.MULTILINE)
    if not names:
        pytest.skip(f"mxnet-cu112 is not installed for {PYTHON}; FLTRUST_CUDA_PYTHON names another")

    def make(code: int) -> Path:
        folder, text = tmp_path_factory.mktemp("driver"), stub.source([stub.AMPERE], init=code)
        rest = [f"int {name}(void) {{ return {code}; }}\n" for name in names if name not in text]
        stub.build(folder / "libcuda.so.1", text + "".join(rest))
        return folder

    return make


@pytest.fixture(scope="module")
def no_gpu(driver_folder):
    """A folder with a driver that sees no GPU."""
    return driver_folder(100)


def with_cuda_build(
    folder: Path | None, *arguments: str, cwd: Path, **variables: str
) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("CU")}
    environment = {**kept, **variables}
    if folder is not None:
        environment["LD_LIBRARY_PATH"] = str(folder)
    return subprocess.run(
        [PYTHON, *arguments], capture_output=True, text=True, timeout=600, check=False,
        env=environment, cwd=cwd,
    )  # fmt: skip


RUN_ON_A_GPU = ["-m", "fltrust_repro", "run", "--dataset", "digits", "--device", "gpu"]


@pytest.mark.cuda_wheel
def test_the_build_for_cuda_loads_what_pip_installed(no_gpu, tmp_path):
    program = (
        "from fltrust_repro import backend as b; "
        "print(b.gpu_count(), b.resolve_device('auto'), b.nd.ones(3).sum().asscalar(), "
        "b.mx.runtime.Features().is_enabled('CUDA'))"
    )
    done = with_cuda_build(no_gpu, "-c", program, cwd=tmp_path)
    assert done.stdout.split() == ["0", "cpu", "3.0", "True"], done.stderr
    done = with_cuda_build(no_gpu, "-m", "fltrust_repro", "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "all 10 libraries and the driver's load" in done.stdout
    assert "cuda      NVIDIA_TF32_OVERRIDE=0, CUBLAS_WORKSPACE_CONFIG=:4096:8, " in done.stdout
    assert "MXNet sees no GPU: cuInit fails with 100: no GPU" in done.stdout
    assert "a step of lr on the CPU: " in done.stdout


@pytest.mark.cuda_wheel
def test_cudnn_loads_all_its_parts(no_gpu, tmp_path):
    # It loads them when first used, and ends the process where it cannot; an older one cannot.
    program = (
        "import ctypes; from fltrust_repro import machine; print(machine.preload()); "
        "cudnn = ctypes.CDLL('libcudnn.so.8'); print([cudnn[f'cudnn{part}VersionCheck']() for part "
        "in 'OpsInfer OpsTrain CnnInfer CnnTrain AdvInfer AdvTrain'.split()])"
    )
    done = with_cuda_build(no_gpu, "-c", program, cwd=tmp_path)
    assert done.stdout.splitlines() == ["[]", str([0] * 6)], done.stderr


@pytest.mark.cuda_wheel
def test_processes_that_train_keep_what_cuda_reads(no_gpu, tmp_path):
    program = (
        "import json, os; from fltrust_repro.processes import LocalProcesses, Machine; "
        f"names = {[*CHOSEN, 'CUDA_CACHE_PATH']}; some = LocalProcesses(Machine(jobs=1)); "
        "call = some.submit(os.getenv, 'HOME').result(); from fltrust_repro.backend import mx; "
        "print(json.dumps([{n: os.getenv(n) for n in names}, "
        "{n: some.submit(os.getenv, n).result() for n in names}])); some.close()"
    )
    own = {"CUDA_CACHE_PATH": str(tmp_path), "NVIDIA_TF32_OVERRIDE": "1"}
    done = with_cuda_build(no_gpu, "-c", program, cwd=tmp_path, **own)
    ours, its = json.loads(done.stdout)
    assert ours == its == {**CHOSEN, **own}


@pytest.mark.cuda_wheel
def test_the_build_for_cuda_refuses_a_gpu_that_is_not_there(no_gpu, tmp_path):
    done = with_cuda_build(no_gpu, *RUN_ON_A_GPU, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: device is 'gpu', but MXNet sees no NVIDIA GPU")


@pytest.mark.cuda_wheel
def test_a_driver_that_does_not_start_is_told_with_what_mends_it(driver_folder, tmp_path):
    broken = driver_folder(803)
    fault = "cuInit fails with 803: its library and its kernel module are of different versions"
    done = with_cuda_build(broken, *RUN_ON_A_GPU, cwd=tmp_path)
    assert done.returncode == 2
    assert f"mend the driver ({fault}" in done.stderr
    done = with_cuda_build(broken, "-m", "fltrust_repro", "doctor", cwd=tmp_path)
    assert f"driver    it does not start: {fault}" in done.stdout
    assert f"device    MXNet sees no GPU: {fault}" in done.stdout


@pytest.mark.cuda_wheel
def test_the_build_for_cuda_without_any_driver(driver_folder, tmp_path):
    if nvidia.driver() is not None:
        pytest.skip("this machine has NVIDIA's driver")
    done = with_cuda_build(None, "-m", "fltrust_repro", "run", "--dataset", "digits", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: MXNet does not load (libcuda.so.1 not found); install ")
    assert len(done.stderr.splitlines()) == 1
