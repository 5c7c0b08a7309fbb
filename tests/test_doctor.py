"""`doctor` says what is wrong with a machine, whatever is wrong with it."""

from __future__ import annotations

import contextlib
import os
import site
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from stub_driver import ADA, AMPERE, HOPPER, Card, source
from test_store import trial

from fltrust_repro import compiled, downloads
from fltrust_repro import doctor as module
from fltrust_repro.errors import BadInput
from fltrust_repro.machine import Blas, Cpu
from fltrust_repro.nvidia import Driver
from fltrust_repro.rehearsal import IN_GLUON, Step
from fltrust_repro.store import Store

REPOSITORY = Path(__file__).parents[1]
CPU, CUDA = {"mxnet": "1.9.1"}, {"mxnet-cu112": "1.9.1"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """An empty current folder, and no data set of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLTRUST_DATA", raising=False)
    monkeypatch.setattr(downloads, "__file__", str(tmp_path / "package" / "downloads.py"))
    return tmp_path


@pytest.fixture
def machine(monkeypatch):
    """Pretend that the machine is such and such; by default one without a GPU that works."""

    def pretend(
        builds=CPU, driver=None, kernel_module=None, missing=(), device=("cpu", 0), fault=None,
        steps=None,
    ):  # fmt: skip
        def tried():
            if isinstance(device, Exception):
                raise device
            return device

        def step(name, device, index):
            found = (steps or {}).get(name, Step(2.0, 0.25, 1e-7))
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(module.machine, "installed_builds", lambda: builds)
        monkeypatch.setattr(module.nvidia, "sharing", lambda: None)
        monkeypatch.setattr(module.nvidia, "driver", lambda: driver)
        monkeypatch.setattr(module.nvidia, "driver_fault", lambda: fault)
        monkeypatch.setattr(module.nvidia, "kernel_module_version", lambda: kernel_module)
        monkeypatch.setattr(module.machine, "preload", lambda: list(missing))
        monkeypatch.setattr(module, "_try_device", tried)
        monkeypatch.setattr(module, "_step", step)
        monkeypatch.setattr(
            module, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count)
        )

    pretend()
    return pretend


@pytest.fixture
def report(capsys):
    """Run `doctor` in this process: exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            module.doctor.main(list(arguments))
        out, err = capsys.readouterr()
        assert err == ""
        return stop.value.code, out

    return run


def lines(text: str, topic: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"{topic} ")]


# --- MXNet, driver, CUDA


def test_without_a_driver_trials_run_on_the_cpu_and_one_line_says_so(machine, report):
    code, text = report()
    assert code == 0
    assert lines(text, "driver") == ["driver    no NVIDIA driver found; trials run on the CPU"]
    assert lines(text, "device") == [
        "device    the CPU: what --device auto takes here",
        "device    a step of lr on the CPU: 2.000 s at first, then 0.250 s",
        "device    a step of cnn on the CPU: 2.000 s at first, then 0.250 s",
        "device    a step of cnn in Gluon on the CPU: 2.000 s at first, then 0.250 s",
    ]
    assert text.endswith("Trials can run here.\n")


@pytest.fixture
def gpus(machine, driver):
    """Pretend that there are such GPUs, on which a step goes so."""

    def pretend(*cards: Card, **steps: Step | Exception):
        driver(source(cards))
        found = Driver("535.104.05", "12.2")
        machine(CUDA, driver=found, device=("gpu", len(cards)), steps=steps)

    return pretend


def test_with_gpus_everything_is_named(gpus, report, monkeypatch):
    for name in module.machine.cuda_environment():
        monkeypatch.delenv(name, raising=False)
    gpus(AMPERE, ADA, cnn=Step(3.0, 0.5, 2e-6))
    code, text = report()
    assert code == 0
    assert "NVIDIA 535.104.05, for CUDA up to 12.2" in text
    libraries, variables = lines(text, "cuda")
    assert "all 10 libraries" in libraries
    assert "NVIDIA_TF32_OVERRIDE=0, " in variables
    assert "(yours)" not in variables
    first, *of_0, second, of_1, _, _ = lines(text, "device")[1:]
    assert first == "device    GPU 0: NVIDIA A100-SXM4-80GB, compute capability 8.0, 80 GiB"
    assert [line.partition(" a step of ")[2] for line in of_0] == [
        "lr on GPU 0: 2.000 s at first, then 0.250 s, 1e-07 off the CPU's numbers",
        "cnn on GPU 0: 3.000 s at first, then 0.500 s, 2e-06 off the CPU's numbers",
        "cnn in Gluon on GPU 0: 2.000 s at first, then 0.250 s, 1e-07 off the CPU's numbers",
    ]
    assert second == "device    GPU 1: NVIDIA GeForce RTX 4090, compute capability 8.9, 24 GiB"
    assert of_1 == of_0[0].replace("GPU 0", "GPU 1")


def test_trials_that_need_not_take_turns_on_a_gpu_are_told_how(gpus, report, monkeypatch):
    gpus(AMPERE)
    monkeypatch.setattr(module.nvidia, "sharing", lambda: "trials take turns on a GPU")
    assert lines(report()[1], "device")[1] == "device    trials take turns on a GPU"


def test_without_a_gpu_nobody_takes_turns(machine, report, monkeypatch):
    machine()
    monkeypatch.setattr(module.nvidia, "sharing", lambda: "trials take turns on a GPU")
    assert "take turns" not in report()[1]


def test_on_a_gpu_without_code_what_trains_there_is_tried_and_the_rest_named(gpus, report):
    gpus(HOPPER, **{IN_GLUON: BadInput("has no code.")})
    code, text = report()
    assert code == 0
    _, card, no_code, lr, cnn = lines(text, "device")
    assert card.endswith("GPU 0: NVIDIA H200, compute capability 9.0, 140 GiB")
    assert "this one (NVIDIA H200) has 9.0: the models lr and cnn train on it, others" in no_code
    assert "a step of lr on GPU 0: 2.000 s" in lr
    assert "a step of cnn on GPU 0: 2.000 s" in cnn


@pytest.mark.parametrize("off", [2e-4, float("nan")])
def test_numbers_of_a_gpu_that_are_not_the_cpus_are_a_fault(gpus, report, monkeypatch, off):
    gpus(AMPERE, cnn=Step(2.0, 0.25, off))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    code, text = report()
    assert code == 1
    assert "NVIDIA_TF32_OVERRIDE=1 (yours), " in text
    assert f"device    a step of cnn on GPU 0 is {off:.0e} off the CPU's numbers, where" in text
    assert "unset NVIDIA_TF32_OVERRIDE." in text
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert "train with --device cpu." in report()[1]
    assert text.endswith("Trials cannot run here; see above: device.\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("no kernel\nimage"), "fails (RuntimeError: no kernel image)."),
        (BrokenProcessPool(), "ends the process."),
    ],
)
def test_a_step_that_goes_wrong_is_a_fault_told_in_one_line(gpus, report, error, words):
    gpus(AMPERE, cnn=error)
    code, text = report()
    assert code == 1
    *_, line = lines(text, "device")
    assert line == f"device    trials do not start: a step of cnn on GPU 0 {words}"
    assert lines(text, "blas")


def test_a_driver_that_does_not_start_is_not_taken_for_none(machine, report):
    fault = "cuInit fails with 803: restart the machine"
    machine(CUDA, driver=Driver("535.104.05", None), fault=fault)
    code, text = report()
    assert code == 0  # on the CPU
    assert lines(text, "driver")[1] == f"driver    it does not start: {fault}"
    assert f"device    MXNet sees no GPU: {fault}" in text


def test_a_driver_that_the_build_for_the_cpu_leaves_idle(machine, report):
    machine(CPU, driver=Driver(None, None))
    code, text = report()
    assert code == 0
    assert "pip uninstall -y mxnet && pip install -e '.[cuda]'" in text


def test_a_driver_whose_library_is_out_of_reach(machine, report):
    machine(CPU, kernel_module="535.104.05")
    _, text = report()
    assert "NVIDIA 535.104.05, but the loader does not find its libcuda.so.1" in text


def test_every_missing_library_is_named_with_its_pip_command(machine, report):
    machine(
        CUDA,
        missing=["libcudnn.so.8", "libnccl.so.2", "libcuda.so.1"],
        device=BadInput("MXNet does not load."),
    )
    code, text = report()
    assert code == 1
    cudnn, nccl, driver, _ = lines(text, "cuda")
    assert "libcudnn.so.8" in cudnn
    assert "pip install 'nvidia-cudnn-cu11<9,>=8." in cudnn
    assert "libnccl.so.2" in nccl
    assert "pip install 'nvidia-nccl-cu11<3,>=2.14'" in nccl
    assert "libcuda.so.1" in driver
    assert "pip uninstall -y mxnet-cu112 && pip install -e '.[cpu]'" in driver


def test_a_gpu_that_mxnet_does_not_see(machine, report):
    machine(CUDA, driver=Driver("450.51", "11.0"))
    code, text = report()
    assert code == 0
    assert "MXNet sees no GPU" in text


def test_an_error_of_any_kind_is_told_in_one_line(machine, report):
    machine(device=ModuleNotFoundError("No module named 'numba'"))
    code, text = report()
    assert code == 1
    assert "trials do not start: loading MXNet and other libraries fails (Module" in text
    assert "(ModuleNotFoundError: No module named 'numba')" in text


def test_a_check_that_fails_itself_does_not_end_the_report(machine, report, monkeypatch):
    def fails():
        raise RuntimeError("no such thing")

    monkeypatch.setattr(module.nvidia, "driver", fails)
    code, text = report()
    assert code == 0
    assert "driver    cannot be told (RuntimeError: no such thing)" in text


def test_packages_that_are_missing_or_do_not_fit(machine, report, monkeypatch):
    demanded = ["numpy<1,>=0.9", "no-such-package>=2", "other>=1; extra == 'dev'"]
    monkeypatch.setattr(module.importlib.metadata, "requires", lambda _: demanded)
    _, text = report()
    assert "does not fit: `pip install 'numpy<1,>=0.9'`" in text
    assert "no-such-package is not installed: `pip install 'no-such-package>=2'`" in text
    assert "other" not in text


def test_the_linear_algebra_is_named_and_advice_is_no_fault(machine, report, monkeypatch):
    monkeypatch.setattr(module.machine, "cpu", lambda: Cpu("Xeon (AVX-512)", "AVX-512"))
    libraries = (Blas("numpy", "OpenBLAS", "0.3.23", "Prescott"), Blas("scipy", "MKL", "24", None))
    monkeypatch.setattr(module.machine, "libraries", lambda: libraries)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    code, text = report()
    assert code == 0
    assert lines(text, "cpu") == ["cpu       Xeon (AVX-512)"]
    named, advice = lines(text, "blas")
    assert named == "blas      numpy: OpenBLAS 0.3.23 Prescott, scipy: MKL 24"
    assert "numpy's OpenBLAS 0.3.23 Prescott: kernels for SSE, far below" in advice
    assert text.endswith("Trials can run here.\n")


# --- places that a system may close


@pytest.mark.parametrize("there", [True, False])
def test_the_place_for_compiled_code_is_told_or_the_way_out(
    machine, report, monkeypatch, tmp_path, there
):
    monkeypatch.setattr(compiled, "_places", lambda: iter([tmp_path] if there else []))
    compiled.folder.cache_clear()
    _, text = report()
    compiled.folder.cache_clear()
    [line] = lines(text, "cache")
    if there:
        assert line == f"cache     compiled code is kept in {tmp_path}/machine-code"
    else:
        assert "set NUMBA_CACHE_DIR to a folder that can be" in line
    assert text.endswith("Trials can run here.\n")


def test_shared_memory_that_cannot_be_written_is_a_fault(machine, report, monkeypatch):
    def no_lock(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock._make_name", no_lock)
    code, text = report()
    assert code == 1
    [line] = lines(text, "processes")
    assert "/dev/shm cannot be written ([Errno 30] Read-only file system); " in line
    assert "--shm-size" in line


def test_shared_memory_too_small_for_a_process_per_core_is_a_fault(machine, report, monkeypatch):
    usage = type("usage", (), {"free": 64 * 1024})
    monkeypatch.setattr(module, "_SHARED", Path("/"))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(module, "usable_cores", lambda: 3)
    code, text = report()
    assert code == 1
    assert "/ has room for 64 KiB, and a process on each of 3 cores takes 96 KiB" in text
    assert "--shm-size" in text
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    assert report()[0] == 0


# --- data sets and store


def test_data_sets_and_where_they_are(machine, report, tmp_path):
    (tmp_path / "mine" / "ch-mnist").mkdir(parents=True)
    (tmp_path / "mine" / "ch-mnist" / "hmnist_8_8_L.csv").touch()
    _, text = report("--data-dir", "mine")
    assert f"ch-mnist-8     {tmp_path / 'mine' / 'ch-mnist'}" in text
    assert "`python -m fltrust_repro data fetch mnist`" in text


def test_a_data_folder_that_does_not_exist_is_a_fault(machine, report, monkeypatch):
    monkeypatch.setenv("FLTRUST_DATA", "nowhere")
    code, text = report()
    assert code == 1
    assert "$FLTRUST_DATA 'nowhere' is not a directory" in text


def test_the_first_trial_makes_the_store(machine, report, tmp_path):
    code, text = report("--store", "new/trials.sqlite")
    assert code == 0
    assert "new/trials.sqlite is not there yet" in text
    assert list(tmp_path.iterdir()) == []


def test_a_whole_store_is_counted(machine, report):
    with Store("mine.sqlite") as store:
        store.add(*(trial(seed) for seed in range(3)))
    code, text = report("--store", "mine.sqlite")
    assert code == 0
    assert "mine.sqlite: 3 finished trials of 1 setting, intact\n" in text
    with contextlib.closing(sqlite3.connect("mine.sqlite")) as opened, opened:
        opened.execute("UPDATE trials SET error_rate = 7 WHERE seed = 1")
    _, text = report("--store", "mine.sqlite")
    assert "2 finished trials of 1 setting, intact, 1 entry beside them not understood" in text
    with contextlib.closing(sqlite3.connect("mine.sqlite")) as opened, opened:
        told = "setting = json_set(setting, '$.rule', 'my-rule')"
        opened.execute(f"UPDATE trials SET {told} WHERE seed = 2")
    _, text = report("--store", "mine.sqlite")
    others = "and 1 of plug-ins that are not loaded, 1 entry beside them not understood"
    assert f"1 finished trial of 1 setting, intact, {others}" in text


def other_table(path):
    with contextlib.closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("CREATE TABLE trials (mine)")


def damaged(path):
    with contextlib.closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("CREATE TABLE trials (seed, key)")
        rows = [(seed, "x" * 500) for seed in range(1000)]
        opened.executemany("INSERT INTO trials VALUES (?, ?)", rows)
    content = bytearray(path.read_bytes())
    content[8192:40960] = b"\xff" * 32768
    path.write_bytes(content)


def store_with(change):
    def made(path):
        Store(path).close()
        with contextlib.closing(sqlite3.connect(path)) as opened, opened:
            opened.execute(change)

    return made


BAD_STORES = {
    "newer": store_with("PRAGMA user_version = 2"),
    "a column more": store_with("ALTER TABLE trials ADD COLUMN mine"),
    "a column more of failures": store_with("ALTER TABLE failures ADD COLUMN mine"),
    "a trigger": store_with("CREATE TRIGGER t AFTER INSERT ON trials BEGIN SELECT 1; END"),
    "text": lambda path: path.write_text("my thesis\n" * 500),
    "folder": lambda path: path.mkdir(),
    "other columns": other_table,
    "damaged": damaged,
    "below a file": lambda path: (path.parent.rmdir(), path.parent.write_text("")),
}


@pytest.mark.parametrize("kind", BAD_STORES)
def test_a_store_that_cannot_be_used_is_a_fault(machine, report, tmp_path, kind):
    (tmp_path / "kept").mkdir()
    path = tmp_path / "kept" / "trials.sqlite"
    BAD_STORES[kind](path)
    code, text = report("--store", str(path))
    assert code == 1
    (line,) = lines(text, "store")
    assert str(path) in line
    assert "give --store another file" in line
    assert text.endswith("Trials cannot run here; see above: store.\n")


# --- the program itself, on machines where MXNet is what is wrong


@pytest.fixture
def python(tmp_path):
    """Run this Python with the installed packages but some, and with others in their place."""

    def run(*arguments: str, without="mxnet", instead: str | None = None, builds=()):
        packages = tmp_path / "packages"
        packages.mkdir()
        for folder in map(Path, site.getsitepackages()):
            for entry in folder.iterdir() if folder.is_dir() else ():
                if entry.name.partition(".")[0].partition("-")[0] != without:
                    (packages / entry.name).symlink_to(entry)
        if instead is not None:
            (packages / without).mkdir()
            (packages / without / "__init__.py").write_text(instead)
        for name in builds:
            folder = packages / f"{name.replace('-', '_')}-1.9.1.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.9.1")
        return subprocess.run(
            [sys.executable, "-S", "-m", "fltrust_repro", *arguments],
            capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{REPOSITORY}"},
        )  # fmt: skip

    return run


# What its import does, which builds pip has installed, and what the report has to say.
BROKEN = {
    "not installed": (None, (), "MXNet is not installed; run `make setup`"),
    "both builds": ("", ("mxnet", "mxnet-cu112"), "mxnet and mxnet-cu112 are both installed"),
    "not the file": ("raise OSError('libgomp.so.1: cannot open')", ("mxnet",), "libgomp.so.1"),
    "other numpy": ("import numpy; numpy.PZERO_", ("mxnet",), "no attribute 'PZERO_'"),
    "crash": (
        "import os; os.abort()",
        ("mxnet",),
        "loading MXNet and other libraries ends the process",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
def test_the_program_says_what_is_wrong_with_mxnet(python, case):
    mxnet, builds, words = BROKEN[case]
    done = python("doctor", instead=mxnet, builds=builds)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = lines(done.stdout, "device")
    assert words in line
    assert len(lines(done.stdout, "data")) >= 7
    assert done.stdout.endswith("Trials cannot run here; see above: device.\n")


@pytest.mark.slow
@pytest.mark.parametrize("package", ["numba", "pandas"])
@pytest.mark.parametrize("instead", [None, "raise ImportError('built for another Python')"])
def test_the_program_says_which_other_package_does_not_load(python, package, instead):
    done = python("doctor", without=package, instead=instead)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{package} is not installed" in done.stdout
    (line,) = lines(done.stdout, "device")
    assert (f"No module named '{package}'" if instead is None else "another Python") in line
    assert len(lines(done.stdout, "data")) >= 7
    assert lines(done.stdout, "store")
    assert done.stdout.endswith("Trials cannot run here; see above: device.\n")


def test_each_line_is_printed_as_soon_as_it_is_known(machine, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(module, "_try_device", lambda: seen.append(capsys.readouterr().out))
    with pytest.raises(SystemExit):
        module.doctor.main([])
    assert lines(seen[0], "processes")


def test_other_commands_without_mxnet_end_in_one_sentence(python):
    done = python("run", "--dataset", "digits")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: MXNet is not installed; run `make setup`")
    assert len(done.stderr.splitlines()) == 1


def test_mxnet_that_does_not_load_ends_a_run_in_one_sentence(python):
    broken = "raise OSError('libgomp.so.1: cannot open')"
    done = python("run", "--dataset", "digits", "--jobs", "2", instead=broken, builds=("mxnet",))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "MXNet does not load (libgomp.so.1: cannot open)" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_this_machine_can_run_trials(own_folder):
    done = subprocess.run(
        [sys.executable, "-m", "fltrust_repro", "doctor"], capture_output=True, text=True,
        timeout=300, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
