"""All that a GPU has to show, in one command that can be stopped and started again.

    python experiments/gpu/measure.py [--minutes 25] [--out gpu-results] [--data-dir DIR]

Writes one small file per part to the folder; a part whose file is there is not run again, and one
that fails leaves its error in NAME.failed.txt and stops no other. The last part runs trials of the
experiments for as long as the minutes last, and keeps every one that ended.
"""

from __future__ import annotations

import csv
import io
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fltrust_repro.backend import WORKER_ENVIRONMENT  # noqa: E402

os.environ.update(WORKER_ENVIRONMENT)  # before MXNet loads: what is timed runs as in trials

EXPERIMENTS = ("table2b", "table2c")
MNIST = {"dataset": "mnist", "learning_rate": 0.01, "model": "cnn"}
ATTACKED = {"rule": "trimmed-mean", "attack": "trimmed-mean"}
AT_A_TIME = (1, 4, 10, 16)
WORKERS, BATCH = 100, 32


@dataclass(frozen=True)
class Plan:
    """What the command was asked for."""

    out: Path
    ends: float  # time.monotonic()
    data_dir: Path | None
    experiments: tuple[str, ...]
    trials: int
    seed: int
    jobs: int
    torch_python: str

    def left(self) -> float:
        """Seconds until the minutes are over."""
        return max(0.0, self.ends - time.monotonic())


def command(plan: Plan, *arguments: str, limit: float | None = None) -> str:
    """Run a Python command of the repository's; return what it prints, stop it at the limit."""
    seconds = min(limit or plan.left(), plan.left())
    data = {"FLTRUST_DATA": str(plan.data_dir)} if plan.data_dir else {}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, **data, "PYTHONPATH": path},
    )  # fmt: skip
    try:
        told, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # a sweep keeps what has ended
        told, _ = process.communicate()
        told += f"\nStopped after {seconds:.0f} s."
    return f"$ python {' '.join(arguments)}\n{told}\nexit code {process.returncode}\n"


def table(rows: list[dict]) -> str:
    """Rows as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def milliseconds(call: Callable[[], object], budget: float = 3.0) -> tuple[float, int]:
    """Median time of a call, after two that may compile, and how often it was measured."""
    call(), call()
    times: list[float] = []
    while len(times) < 5 or (sum(times) < budget and len(times) < 50):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times), 3), len(times)


# ---- the parts


def doctor(plan: Plan) -> str:
    """What the program says of the machine."""
    return command(plan, "-m", "fltrust_repro", "doctor", limit=120)


def tests(plan: Plan) -> str:
    """The tests that a GPU is for."""
    return command(plan, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests",
                   limit=240)  # fmt: skip


def golden(plan: Plan) -> str:
    """Golden trials on the GPU beside the CPU: how far apart error rates and losses get."""
    import json

    from golden import TRIALS

    from fltrust_repro import trial_process
    from fltrust_repro.training import PROTOCOL
    from fltrust_repro.trials import Trial

    rows = []
    for name, setting in TRIALS.items():
        curves = []
        for device in ("cpu", "gpu"):
            told = trial_process.run(setting, 0, str(PROTOCOL), device, None)
            if not isinstance(told, Trial):
                rows.append({"trial": name, "error rates": "", "losses": told.message})
                break
            curves.append(np.array(json.loads(told.row()["curve"]), dtype=float))
        else:
            apart = np.nanmax(np.abs(curves[0] - curves[1]), axis=0)
            rows.append({"trial": name, "error rates": apart[1], "losses": apart[2]})
    return table(rows)


def stages(plan: Plan) -> str:
    """Updates and evaluation on the card, on one core, and by PyTorch on the same card."""
    rows = []
    for model in ("lr", "cnn"):
        for who, device in (("GPU", "gpu"), ("one core", "cpu")):
            rows += _own(model, who, device, plan)
    return table(rows + _rules() + _iteration(plan) + _in_torch(plan))


def _own(model: str, who: str, device: str, plan: Plan) -> list[dict]:
    from fltrust_repro import backend, datasets
    from fltrust_repro.models import models
    from fltrust_repro.partition import partition, sample_batches
    from fltrust_repro.training import generator
    from fltrust_repro.workers import Learner

    data = datasets.load("mnist", generator(0, "split"), plan.data_dir)
    shards = partition(data.train_y, 10, WORKERS, 0.5, generator(0, "partition"))
    shape, ctx = data.train_x.shape[1:], backend.context(device)
    learner = Learner(models[model], 10, shape, ctx, 0)
    x, test_x = learner.resident(data.train_x), learner.resident(data.test_x)
    batches = sample_batches(shards, data.train_y, BATCH, 1, generator(0, "batches"))
    w = learner.initial

    def updates() -> None:
        learner.updates(w, x, batches, 0.01)[0].wait_to_read()

    with backend.one_thread():
        calls = {
            f"{model}: updates of {WORKERS} workers, on the host": updates,
            f"{model}: evaluation": partial(learner.error_rate, w, test_x, data.test_y),
        }
        return [_row(case, who, call) for case, call in calls.items()]


def _row(case: str, who: str, call: Callable[[], object]) -> dict:
    median, repeats = milliseconds(call)
    return {"case": case, "who": who, "median_ms": median, "repeats": repeats}


def _rules() -> list[dict]:
    """Rules and the attack on them: of updates in any memory, and in that which the GPU fills."""
    from fltrust_repro import backend
    from fltrust_repro.aggregation import rules
    from fltrust_repro.attacks import attacks

    updates = np.random.default_rng(0).standard_normal((WORKERS, 266_060), dtype=np.float32)
    pinned = backend.host_view(backend.pinned(updates.shape, 0))
    pinned[:] = updates
    rows = []
    with backend.one_thread():
        for who, where in (("one core", updates), ("GPU", pinned)):
            calls = {
                f"rule {name}": partial(rules[name], where, c=20)
                for name in ("trimmed-mean", "median", "krum")
            }
            calls["attack trimmed-mean"] = partial(attacks["trimmed-mean"], where, c=20)
            rows += [_row(case, who, call) for case, call in calls.items()]
    return rows


def _iteration(plan: Plan) -> list[dict]:
    """A whole iteration of the CNN, and the updates within."""
    from fltrust_repro import backend
    from fltrust_repro.settings import Setting
    from fltrust_repro.training import Federation

    setting = Setting(**MNIST, **ATTACKED)
    with backend.one_thread(), np.errstate(invalid="ignore", over="ignore"):
        there = Federation(setting, 0, backend.context("gpu"), plan.data_dir)
        w = there.learner.initial
        case = "cnn: an iteration, trimmed mean under its full knowledge attack"
        return [_row(case, "GPU", lambda: there.iterate(w, 1))]


def _in_torch(plan: Plan) -> list[dict]:
    """The same on the same card by PyTorch, which may be installed for another Python."""
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [plan.torch_python, str(ROOT / "experiments/gpu/beside.py")], env=without, text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1]
        return [{"case": "PyTorch", "who": why, "median_ms": "", "repeats": 0}]
    return list(csv.DictReader(io.StringIO("case,who,median_ms,repeats\n" + done.stdout)))


def at_a_time(plan: Plan) -> str:
    """Iterations a second of attacked CNN trials, alone and several at a time on one card."""
    from fltrust_repro import sweep
    from fltrust_repro.settings import Setting

    rows, setting = [], Setting(**MNIST, **ATTACKED, iterations=60)
    for jobs in (n for n in AT_A_TIME if n <= (os.cpu_count() or 1)):
        store = plan.out / f"at-a-time-{jobs}.sqlite"
        where = {"store": store, "device": "gpu", "data_dir": plan.data_dir}
        found = sweep.run([setting], jobs, seed=0, jobs=jobs, **where)
        store.unlink()
        seconds = found["seconds"].mean()
        rows.append({"jobs": jobs, "seconds_of_one": seconds, "iterations_a_second_of_all":
                     60 * jobs / seconds})  # fmt: skip
    return table(rows)


def resnet20(plan: Plan) -> str:
    """50 iterations of ResNet20 on images, where MXNet has code for the card."""
    return command(
        plan, "-m", "fltrust_repro", "run", "--dataset", "digits", "--model", "resnet20",
        "--iterations", "50", "--rule", "krum", "--attack", "krum", "--device", "gpu", limit=180,
    )  # fmt: skip


def trials(plan: Plan) -> str:
    """As many trials of the experiments as the minutes give."""
    told = []
    for name in plan.experiments:
        if plan.left() > 30:
            told.append(command(
                plan, "-m", "fltrust_repro", "reproduce", name, "--trials", str(plan.trials),
                "--seed", str(plan.seed), "--jobs", str(plan.jobs), "--device", "gpu", "--store",
                str(plan.out / "trials.sqlite"), "--out", str(plan.out), limit=plan.left() - 15,
            )[-3000:])  # fmt: skip
    return "\n".join(told)


PARTS = {
    "doctor.txt": doctor, "tests.txt": tests, "golden.csv": golden, "stages.csv": stages,
    "at-a-time.csv": at_a_time, "resnet20.txt": resnet20, "trials.txt": trials,
}  # fmt: skip


_STEMS = [name.split(".")[0] for name in PARTS]
_path = click.Path(path_type=Path)


@click.command()
@click.option("--minutes", default=25.0, show_default=True, help="When to stop.")
@click.option("--out", default="gpu-results", show_default=True, type=_path, help="Folder.")
@click.option("--data-dir", type=_path, help="Looked in first.")
@click.option("--experiment", "experiments", multiple=True, default=EXPERIMENTS, show_default=True)
@click.option("--trials", "count", default=5, show_default=True, help="Of each cell.")
@click.option("--seed", default=10, show_default=True, help="Of the first trial.")
@click.option("--jobs", default=8, show_default=True, help="Trials at a time.")
@click.option("--torch-python", default=sys.executable, help="A Python that has PyTorch.")
@click.option("--part", "chosen", multiple=True, type=click.Choice(_STEMS), help="By default all.")
def main(minutes: float, out: Path, data_dir: Path | None, chosen: tuple[str, ...],
         experiments: tuple[str, ...], count: int, seed: int, jobs: int,
         torch_python: str) -> None:  # fmt: skip
    """Measure everything, part by part."""
    out.mkdir(parents=True, exist_ok=True)
    ends, folder = time.monotonic() + 60 * minutes, data_dir.resolve() if data_dir else None
    plan = Plan(out.resolve(), ends, folder, experiments, count, seed, jobs, torch_python)
    for stem, (name, part) in zip(_STEMS, PARTS.items()):
        file, started = plan.out / name, time.monotonic()
        if file.exists() or (chosen and stem not in chosen):
            continue
        try:
            text = part(plan)
        except Exception:
            file, text = plan.out / f"{stem}.failed.txt", traceback.format_exc()
        file.write_text(text, encoding="utf-8")
        seconds = time.monotonic() - started
        click.echo(f"==== {file.name}, {seconds:.0f} s\n{text[-2500:]}")


if __name__ == "__main__":
    main()
