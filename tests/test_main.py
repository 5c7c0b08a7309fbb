"""The commands as a user types them: what they print, what they write, what they exit with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from invoked import ended
from PIL import Image

from fltrust_repro import (
    downloads,
    experiments,
    fidelity,
    processes,
    reproduction,
    trial_process,
)
from fltrust_repro.__main__ import commands
from fltrust_repro.command_help import EXAMPLES
from fltrust_repro.settings import FIELDS, Readings
from fltrust_repro.shades import as_text

TINY = """
title = "A tiny table"
[setting]
dataset = "digits"
workers = 10
compromised = 2
iterations = 12
[rows]
median = { rule = "median" }
[columns]
no-attack = { attack = "none" }
full = { attack = "trimmed-mean" }
[paper]
median = [0.30, 0.60]
"""


@pytest.fixture(autouse=True)
def _own_folder(alone, tmp_path, monkeypatch):
    """An empty current folder, no data of this machine, none published, no mirror that answers."""
    monkeypatch.setattr(experiments, "published", lambda: tmp_path / "published")


@pytest.fixture
def call(capsys):
    """Run a command in this process."""
    return partial(ended, capsys)


def shell(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fltrust_repro", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ},
    )  # fmt: skip


@pytest.fixture
def no_trials(monkeypatch):
    """A trial, or a worker process, fails the test."""

    def refuse(*_, **__):
        raise AssertionError("a trial was run")

    def forbid():
        monkeypatch.setattr(processes, "ProcessPoolExecutor", refuse)
        monkeypatch.setattr(trial_process, "run", refuse)

    return forbid


RUN = [
    "run",
    "--dataset",
    "digits",
    "--workers",
    "10",
    "--compromised",
    "2",
    "--iterations",
    "12",
    "--device",
    "cpu",
    "--jobs",
    "0",
]


@pytest.mark.slow
def test_run_with_json_prints_one_object_and_nothing_else_on_stdout(tmp_path):
    done = shell(*RUN, "--attack", "krum", "--trials", "2", "--seed", "4", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer) == ["setting", "trials", "mean_error_rate", "std_error_rate"]
    assert list(answer["setting"]) == list(FIELDS)
    assert answer["setting"]["iterations"] == 12
    assert answer["setting"]["learning_rate"] > 0
    assert [list(trial) for trial in answer["trials"]] == 2 * [
        ["seed", "error_rate", "lowest_error_rate", "seconds", "iterations", "diverged"]
    ]
    assert [trial["seed"] for trial in answer["trials"]] == [4, 5]
    first, second = (trial["error_rate"] for trial in answer["trials"])
    assert answer["mean_error_rate"] == pytest.approx((first + second) / 2)
    assert answer["std_error_rate"] == pytest.approx(abs(first - second) / 2**0.5)
    assert "2/2 trials" in done.stderr
    assert (tmp_path / "trials.sqlite").is_file()


@pytest.mark.parametrize("jobs", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_what_a_plugin_prints_is_not_amid_the_json(tmp_path, jobs):
    (tmp_path / "loud.py").write_text(
        "import fltrust_repro as fl\nprint('loaded')\n\n\n@fl.rule('loud')\n"
        "def loud(updates):\n    print('asked')\n    return updates.mean(axis=0)\n"
    )
    words = [*RUN[: RUN.index("--jobs")], "--jobs", jobs]
    done = shell(*words, "--plugin", "loud.py", "--rule", "loud", "--seed", "5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["setting"]["rule"] == "loud"
    assert "loaded" in done.stderr
    assert "asked" in done.stderr


def test_run_prints_a_line_per_trial_and_does_not_repeat_finished_ones(call, no_trials):
    code, out, _ = call(*RUN, "--trials", 2)
    assert code == 0
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["seed 0", "seed 1"]
    assert lines[2].startswith("mean error rate 0.")
    no_trials()
    assert call(*RUN, "--trials", 2)[:2] == (0, out)
    one = call(*RUN, "--seed", 1)[1].splitlines()
    assert one[0] == lines[1]
    assert one[1].endswith("over 1 trial")
    answer = json.loads(call(*RUN, "--seed", 1, "--json")[1])
    assert answer["std_error_rate"] is None  # one trial has none, and not one of 0
    assert answer["mean_error_rate"] == answer["trials"][0]["error_rate"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_diverged_run_says_so(call):
    code, out, err = call(*RUN, "--rule", "mean", "--learning-rate", "1e38", "--json", "--seed", 3)
    assert code == 0
    assert json.loads(out)["trials"][0]["diverged"] is True
    assert "diverged with seed 3;" in err


def test_workers_without_examples_are_mentioned(call):
    many = [
        "run",
        "--dataset",
        "breast-cancer",
        "--reading",
        "dealing=once",
        "--iterations",
        "1",
        "--device",
        "cpu",
        "--jobs",
        "0",
    ]
    code, _, err = call(*many)
    assert code == 0
    assert "hold no training example" in err


def test_reproduce_prints_the_table_and_writes_three_files(call, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    code, out, err = call("reproduce", "tiny.toml", "--trials", 2, "--jobs", 0, "--out", "results")
    assert code == 0, err
    assert "A tiny table" in out
    assert "2 trials, seeds 10 to 11" in out
    assert "(0.30, " in out
    assert "(0.60, " in out
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {f"tiny.{end}" for end in ("csv", "json", "md", "trials.csv", "png", "svg")}
    assert list(pd.read_csv("results/tiny.csv")["trials"]) == [2, 2]
    assert len(pd.read_csv("results/tiny.trials.csv")) == 4
    assert out.splitlines()[-1] == "Wrote results/tiny.md, .csv, .json, .png, .svg, .trials.csv"
    assert "# A tiny table" in (tmp_path / "results" / "tiny.md").read_text()


def test_a_table_is_drawn_beside_its_page_with_its_numbers_and_in_grey_for_print(call, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    command = ("reproduce", "tiny.toml", "--trials", 1, "--jobs", 0, "--out", "results")
    for options in ((), ("--grey",)):
        code, _, err = call(*command, *options)
        assert code == 0, err
        folder = tmp_path / "results"
        drawn = (folder / "tiny.svg").read_text(encoding="utf-8")
        for mean in pd.read_csv(folder / "tiny.csv")["mean"]:
            assert f"<!-- {as_text(mean)}? -->" in drawn
        assert "<!-- A tiny table -->" in drawn
        with Image.open(folder / "tiny.png") as picture:
            extremes = picture.convert("HSV").getextrema()
        assert (extremes[1][1] > 100) == (not options)  # saturation
    assert "![A tiny table](tiny.png)" in (folder / "tiny.md").read_text()


def test_reproduce_can_run_some_cells_and_shows_the_others_as_missing(call, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    row = ("reproduce", "tiny.toml", "--jobs", 0, "--out", "results", "--row")
    code, out, err = call(*row, "median", "--column", "no-attack", "--trials", 1)
    assert code == 0, err
    assert "missing" in out
    assert sorted(pd.read_csv("results/tiny.csv")["trials"]) == [0, 1]
    code, _, err = call(*row, "mode")
    assert code == 2
    assert "tiny has no row 'mode'; choose one of median." in err


def test_what_is_finished_is_not_run_again_from_the_store_or_the_results(call, tmp_path, no_trials):
    (tmp_path / "tiny.toml").write_text(TINY)
    command = ("reproduce", "tiny.toml", "--trials", 2, "--jobs", 0, "--out", "results")
    _, table, _ = call(*command)
    written = {path: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    no_trials()
    code, again, _ = call(*command)
    assert code == 0
    assert table.splitlines()[:5] == again.splitlines()[:5]
    code, fresh, err = call(*command, "--store", "fresh.sqlite")
    assert code == 0
    assert table.splitlines()[:5] == fresh.splitlines()[:5]
    assert "tiny: 4 trials at hand, 0 to run" in err
    assert {path: path.read_bytes() for path in (tmp_path / "results").iterdir()} == written


def test_a_trial_that_two_tables_share_is_in_the_file_of_the_first(call, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    wider = TINY.replace("[rows]", '[rows]\nmean = { rule = "mean" }')
    (tmp_path / "other.toml").write_text(wider.replace("[paper]", "[paper]\nmean = [0.3, 0.6]"))
    both = ("reproduce", "tiny.toml", "other.toml", "--trials", 1, "--jobs", 0, "--out", "results")
    code, _, err = call(*both)
    assert code == 0, err
    files = [pd.read_csv(f"results/{name}.trials.csv") for name in ("tiny", "other")]
    assert [len(file) for file in files] == [2, 2]
    assert list(pd.read_csv("results/other.csv")["trials"]) == [1, 1, 1, 1]
    assert pd.concat(files).drop_duplicates(["key", "seed"]).shape[0] == 4


def test_trials_that_chose_the_readings_are_no_results_of_a_table(call, tmp_path):
    (tmp_path / "readings.toml").write_text(TINY)
    (tmp_path / "tiny.toml").write_text(TINY)
    options = ("--trials", 1, "--jobs", 0)
    assert call("reproduce", "readings.toml", "--seed", 0, *options)[0] == 0
    code, out, err = call("reproduce", "tiny.toml", *options)
    assert code == 0
    assert "tiny: 0 trials at hand, 2 to run" in err
    assert "1 trial, seed 10." in out
    assert "2/2 trials" in err


def test_more_trials_build_on_the_finished_ones(call, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    command = ("reproduce", "tiny.toml", "--jobs", 0, "--out", "results")
    _, out, _ = call(*command, "--trials", 1)
    assert "1 trial, seed 10." in out
    code, out, err = call(*command, "--trials", 2)
    assert code == 0
    assert "2/2 trials" in err
    assert "2 trials, seeds 10 to 11" in out


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_one_data_set_that_fails_does_not_stop_the_other_tables(call, tmp_path, damage):
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "first.toml").write_text(TINY.replace("digits", "mnist"))
    if damage == "cut short":
        (tmp_path / "data" / "mnist").mkdir(parents=True)
        for name in downloads.IDX_FILES:
            (tmp_path / "data" / "mnist" / f"{name}.gz").write_bytes(b"\x1f\x8b\x08")
    code, out, err = call(
        "reproduce", "first.toml", "tiny.toml", "--trials", 1, "--jobs", 0, "--out", "results"
    )
    assert code == 1
    assert "A tiny table" in out
    assert (tmp_path / "results" / "tiny.csv").is_file()
    assert not (tmp_path / "results" / "first.csv").exists()
    assert "mnist" in err
    assert "first" in err.strip().splitlines()[-1]
    assert "tiny" not in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_list_names_everything_with_one_line_each(call):
    code, out, _ = call("list")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    names = [line.split()[0] for line in lines]
    for name in [
        "krum",
        "trimmed-mean",
        "median",
        "mean",
        "none",
        "gaussian",
        "label-flip",
        "lr",
        "cnn",
        "resnet20",
        "mnist",
        "fashion-mnist",
        "ch-mnist",
        "breast-cancer",
        "table2a",
        "table2b",
        "table2c",
        "table2d",
        "table2e",
    ]:
        assert name in names
    assert all(len(line.split()) > 1 for line in lines)
    told = [line.split(maxsplit=1)[1] for line in lines]
    assert len({*told}) == len(told), "two are told apart by nothing but their names"


def test_data_status_says_what_is_at_hand(call):
    code, out, _ = call("data", "status")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert "not at hand" in lines["mnist"]
    assert "scikit-learn" in lines["breast-cancer"]


def test_data_verify_exits_with_one_when_a_data_set_is_missing(call):
    assert call("data", "verify", "breast-cancer", "digits") == (
        0, "breast-cancer: verified\ndigits: verified\n", ""
    )  # fmt: skip
    code, out, err = call("data", "verify", "mnist", "digits")
    assert (code, out) == (1, "digits: verified\n")
    assert "mnist is not at hand" in err
    assert "data fetch mnist" in err


def test_list_tells_parameters_limits_and_how_long_experiments_take(call):
    lines = [" ".join(line.split()) for line in call("list")[1].splitlines()]

    def below(name: str) -> str:
        return lines[next(k for k, line in enumerate(lines) if line.startswith(name)) + 1]

    assert below("multi-krum ") == "parameters q=...; needs m - c - 2 >= 1"
    assert below("bulyan ") == "needs m - 4c >= 1"
    assert below("gas ") == "parameters base=median, p=1000; needs m - c >= 1"
    assert below("ipm ") == "parameters epsilon=0.1"
    assert below("table2a ") == "15 settings; 50 trials of each take a core about 1 h 3 min"


def test_help_names_every_field_of_a_setting_with_its_values_and_default(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    every = call("run", "--help-all")[1]
    code, out, _ = call("run", "--help")
    assert code == 0
    assert "direction=" not in out
    for text in (out, every):
        assert max(map(len, text.split("Examples:")[0].splitlines())) < 80
    words = " ".join(every.split())
    for name, field in FIELDS.items():
        assert f" --{name.replace('_', '-')} " in words or f" {name}=" in words
        if name in vars(Readings()):
            assert "|".join(field.metadata["choices"]) in words, name
        elif choices := field.metadata["choices"]:
            assert ", ".join([f"{choices[0]} (default)", *choices[1:]]) in words, name
        elif field.default not in (None, ""):
            assert f"[default: {field.default}]" in words, name
    for name in ("breast-cancer", "resnet20", "trimmed-mean", "back-gradient", "union", "nnm"):
        assert f" {name}" in " ".join(out.split()), name


def test_options_stand_in_groups_before_examples_that_the_program_understands(call):
    out = call("run", "--help")[1]
    titles = [line.rstrip(":") for line in out.splitlines() if line[:1].strip()][1:]
    assert titles == ["What is trained", "Attack", "Training", "Readings of the paper",
                      "Run and files", "Examples"]  # fmt: skip
    for name, examples in EXAMPLES.items():
        told = call(name, "--help")[1]
        for example in examples:
            assert f"fltrust_repro {example}\n" in told or (name == "data" and example in told)
            words = example.split()
            command = commands.get_command(None, words[0])
            if name not in ("data", "doctor"):
                known = {text for option in command.params for text in option.opts}
                assert {word for word in words if word.startswith("--")} <= known, example


@pytest.mark.slow
@pytest.mark.parametrize("name", commands.list_commands(None))
def test_a_commands_help_comes_without_what_only_its_work_needs(name):
    code = (
        "import sys; from fltrust_repro.__main__ import commands\n"
        f"try: commands([{name!r}, '--help'])\n"
        "finally: print(sorted({'numba', 'pandas', 'mxnet', 'matplotlib', 'scipy', 'rich', "
        "'sklearn', 'tabulate'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_mistyped_command_is_told_the_nearest(call):
    code, _, err = call("swep")
    assert code == 2
    assert "unknown command 'swep'" in err
    assert "Did you mean 'sweep'?" in err


def test_pre_is_repeated_or_joined_and_kept_with_its_trials(call):
    told = ("--pre", "nnm", "--pre", "clip:radius=2", "--rule", "median")
    code, out, err = call(*RUN, *told, "--json")
    assert code == 0, err
    assert json.loads(out)["setting"]["pre"] == "nnm+clip:radius=2"
    code, out, err = call(*RUN, "--pre", "nnm+clip:radius=2", "--rule", "median", "--json")
    assert "1/1" not in err  # at hand
    assert code == 0
    code, _, err = call(*RUN, "--pre", "nmm")
    assert code == 2
    assert "Did you mean 'nnm'?" in err


def test_readings_are_told_to_run_and_kept_with_its_trials(call):
    told = ("--reading", "worker-order=grouped", "--reading", "initial=xavier-1")
    code, out, err = call(*RUN, *told, "--json")
    assert code == 0, err
    setting = json.loads(out)["setting"]
    assert (setting["worker_order"], setting["initial"]) == ("grouped", "xavier-1")
    assert call("show", *RUN[1:9], *told)[0] == 0
    assert call("show", *RUN[1:9])[0] == 2  # another setting's


PLUGIN = '''
import numpy as np
from mxnet.gluon import nn

from fltrust_repro.aggregation import rule
from fltrust_repro.attacks import attack
from fltrust_repro.models import model


@rule("middle-of-three")
def middle_of_three(updates):
    """Median of the last three workers' updates."""
    return np.sort(updates[-3:], axis=0)[1]


@attack("shout")
def shout(step):
    """Ten times the own update."""
    return step.known[: step.c] * 10


@model("two-layers")
def two_layers(classes, shape):
    """One hidden layer."""
    block = nn.HybridSequential()
    block.add(nn.Dense(16, activation="relu", in_units=int(np.prod(shape))))
    block.add(nn.Dense(classes, in_units=16))
    return block
'''


@pytest.mark.slow
def test_a_plugins_rule_attack_and_model_run_in_every_process(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    own = [
        "--plugin",
        "mine.py",
        "--rule",
        "middle-of-three",
        "--attack",
        "shout",
        "--model",
        "two-layers",
    ]
    done = shell(*RUN, *own, "--trials", 3, "--jobs", 2, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["trials"]) == 3
    assert answer["setting"]["rule"] == "middle-of-three"
    listed = shell("list", "--plugin", "mine.py").stdout
    assert "Median of the last three workers' updates." in listed
    assert "One hidden layer." in listed


def piped(script: str) -> subprocess.CompletedProcess:
    """Run a line of bash, where $P is the program."""
    program = f"{sys.executable} -m fltrust_repro"
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "P": program},
    )  # fmt: skip


def test_a_reader_that_stops_early_is_no_error():
    done = piped("$P list | head -1; exit ${PIPESTATUS[0]}")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.slow
def test_results_are_written_though_nobody_reads_the_table(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "other.toml").write_text(TINY)
    options = "--trials 1 --jobs 1 --device cpu --out results"
    done = piped(f"$P reproduce tiny.toml other.toml {options} | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(pd.read_csv("results/tiny.trials.csv")) == 2
    for name in ("tiny", "other"):  # the second, too, whose table nobody could be shown
        assert list(pd.read_csv(f"results/{name}.csv")["trials"]) == [1, 1]


@pytest.mark.parametrize("command", ["list", "data status"])
def test_output_that_cannot_be_written_is_told_and_no_success(command):
    done = piped(f"$P {command} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "Error: standard output could not be written (No space left on device)."
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_closed_streams_neither_lose_results_nor_end_in_success_unseen():
    closed = piped("$P list >&-")
    assert (closed.returncode, closed.stdout) == (2, "")
    assert closed.stderr == (
        "Error: standard output is closed; send it to a file, or to /dev/null.\n"
    )
    told = piped("$P list").stdout
    for stream in ("2>/dev/full", "<&- 2>&-"):
        done = piped(f"$P list {stream}")
        assert (done.returncode, done.stdout) == (0, told), stream
    assert piped("$P liste 2>/dev/full").returncode == 2


def test_help_comes_without_the_libraries_that_commands_need():
    code = (
        "import sys; from fltrust_repro.__main__ import commands\n"
        "try: commands(['--help'])\n"
        "finally: print(sorted({'numpy', 'pandas', 'numba', 'mxnet', 'rich'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Run trials of one setting." in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_list_of_commands_says_what_each_command_says_of_itself(call):
    told = call("--help")[1].split("Commands:\n")[1]
    for name in commands.list_commands(None):
        whole = commands.get_command(None, name).help
        line = next(line for line in told.splitlines() if line.split()[0] == name)
        assert whole.startswith(line.split(None, 1)[1].rstrip(".")), name


STOPPED = "\nStopped. Finished trials are kept: the same command goes on.\n"


def started(*arguments: str) -> subprocess.Popen:
    """A program that has begun: Python itself would not catch SIGTERM."""
    command = subprocess.Popen(
        [sys.executable, "-m", "fltrust_repro", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    status, terminate = Path(f"/proc/{command.pid}/status"), 1 << (signal.SIGTERM - 1)
    while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) & terminate:
        time.sleep(0.001)
    return command


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait", [0, 0.2, 0.5])
def test_an_interrupt_while_modules_load_is_quiet(number, wait):
    command = started("list")
    time.sleep(wait)
    command.send_signal(number)
    out, err = command.communicate(timeout=60)
    if command.returncode == 0:  # was quicker than we
        assert out
    else:
        assert command.returncode == 130
        assert err in ("", "\nStopped.\n")


INTERRUPTED = """
import os, signal
signal.signal(signal.{number}, signal.SIG_DFL)  # whatever the tests' own parent ignores
from fltrust_repro import __main__ as program
{name} = program._Commands.{name}
def interrupted(*told):
    {lines}
program._Commands.{name} = interrupted
program.main()
"""


@pytest.mark.parametrize(
    ("name", "lines", "code"),
    [
        ("parse_args", "os.kill(os.getpid(), signal.{}); return parse_args(*told)", 130),
        ("invoke", "invoke(*told); os.kill(os.getpid(), signal.{})", 0),
    ],
)
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_before_or_behind_the_command_is_quiet(name, lines, code, number):
    program = INTERRUPTED.format(name=name, lines=lines.format(number), number=number)
    done = subprocess.run([sys.executable, "-c", program, "list"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    assert bool(done.stdout) == (code == 0)


IN_A_FINALIZER = """
import os, signal
import fltrust_repro as fl

class HalfMade:
    def __del__(self):
        self.never_made

class Interrupted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        [None for _ in range(100)]  # in which Python looks for signals

@fl.rule("interrupted")
def interrupted(updates):
    Interrupted()
    HalfMade()
    return updates.mean(axis=0)
"""


def test_an_interrupt_in_a_finalizer_stops_as_any_other(tmp_path):
    """Python drops the exception there; arrays of MXNet have one each."""
    (tmp_path / "mine.py").write_text(IN_A_FINALIZER)
    words = ("run", "--plugin", "mine.py", "--rule", "interrupted", "--dataset", "digits")
    more = ("--attack", "none", "--workers", "10", "--compromised", "2", "--iterations", "5000")
    done = subprocess.run(
        [sys.executable, "-m", "fltrust_repro", *words, *more, "--trials", "1", "--jobs", "0"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith(STOPPED)
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


def test_a_second_signal_does_not_disturb_the_end(tmp_path):
    command = started(*RUN, "--jobs", "1", "--iterations", "100000")
    while not (tmp_path / "trials.sqlite").is_file():
        time.sleep(0.02)
    time.sleep(1)
    for _ in range(5):
        command.terminate()
        time.sleep(0.01)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert STOPPED in err  # Python's own watch over semaphores may warn behind it
    assert "Traceback" not in err


def test_python_that_drops_docstrings_is_named_as_the_cause():
    code = "from fltrust_repro import experiments, backend; backend.mx"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert "BadInput: MXNet reads docstrings" in done.stderr.strip().splitlines()[-1]
    assert "PYTHONOPTIMIZE" in done.stderr


BIG = """
from mxnet.gluon import nn
from fltrust_repro.models import model

@model("big")
def big(classes, shape):
    block = nn.HybridSequential()
    block.add(nn.Dense(100_000, in_units=64), nn.Dense(classes, in_units=100_000))
    return block
"""


@pytest.mark.long
def test_more_numbers_than_an_array_holds_are_refused_before_training(tmp_path):
    (tmp_path / "big.py").write_text(BIG)
    options = "--workers 300 --rule median --model big --plugin big.py --dataset digits"
    done = piped(f"$P run {options} --device cpu --jobs 1")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: m = 300 workers and a model of d = 7,500,010 parameters")


def test_an_own_experiment_does_not_take_a_published_tables_place(call, tmp_path, no_trials):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table7b.toml").write_text(TINY)
    no_trials()
    code, out, err = call("reproduce", "mine/table7b.toml", "--out", "published")
    assert (code, out) == (2, "")
    assert "rename your file" in err
    assert not (tmp_path / "published").exists()
    with pytest.raises(AssertionError, match="a trial was run"):
        call("reproduce", "mine/table7b.toml")


def test_an_edited_experiment_takes_its_own_earlier_ones_place_only(call, tmp_path):
    """However few its trials: more of another table are not better ones."""
    file, out = tmp_path / "tiny.toml", tmp_path / "results"
    file.write_text(TINY)
    options = ("--trials", 3, "--jobs", 0)
    assert call("reproduce", file, *options)[0] == 0
    assert call("reproduce", file, "--trials", 1, "--jobs", 0)[1].count("stays as it is") == 1
    edited = TINY.replace("iterations = ", "learning_rate = 0.05\niterations = ")
    assert edited != TINY
    file.write_text(edited)
    code, text, _ = call("reproduce", file, "--trials", 1, "--jobs", 0)
    assert code == 0
    assert "stays as it is" not in text
    told = json.loads((out / "tiny.json").read_text())
    assert told["setting"]["learning_rate"] == 0.05
    assert set(pd.read_csv(out / "tiny.csv")["trials"]) == {1}


def test_results_of_one_name_are_of_one_owner(call, tmp_path):
    file, out = tmp_path / "table7b.toml", tmp_path / "results"
    file.write_text(TINY)
    options = ("--trials", 1, "--jobs", 0)
    assert call("reproduce", file, *options)[0] == 0
    before = (out / "table7b.md").read_bytes()
    code, _, err = call("reproduce", "table7b", "--draw")
    assert code == 2
    assert "another experiment is called 'table7b' too" in err
    assert (out / "table7b.md").read_bytes() == before
    for title in ("Another", "A tiny table"):  # the latter was copied, or typed from elsewhere
        other = tmp_path / title / "table7b.toml"
        other.parent.mkdir()
        other.write_text(TINY.replace("A tiny table", title))
        refused = title == "Another"
        code, _, err = call("reproduce", other, *options)
        assert code == (2 if refused else 0)
        assert ("rename your file, or give --out another folder" in err) == refused
    assert call("reproduce", file, *options)[0] == 0
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "table7b.csv").touch()  # as the program's experiment leaves it
    assert call("reproduce", file, *options, "--out", "theirs")[0] == 2
    for name in ("fidelity", "arena-p5"):
        other = tmp_path / f"{name}.toml"
        other.write_text(TINY)
        code, _, err = call("reproduce", other, *options)
        assert code == 2
        assert "rename your file" in err


def test_a_file_of_ones_own_is_known_by_where_it_lies(call, tmp_path, monkeypatch):
    out, options = tmp_path / "results", ("--trials", 1, "--jobs", 0)
    for title in ("A", "B"):
        (tmp_path / title).mkdir()
        (tmp_path / title / "mine.toml").write_text(TINY.replace("A tiny table", title))
    monkeypatch.chdir(tmp_path / "A")
    assert call("reproduce", "mine.toml", *options, "--out", out)[0] == 0
    before = (out / "mine.md").read_bytes()
    (tmp_path / "A" / "mine.toml").write_text(TINY.replace("A tiny table", "Edited"))
    monkeypatch.chdir(tmp_path)
    assert call("reproduce", "A/mine.toml", *options, "--out", out)[0] == 0
    assert (out / "mine.md").read_bytes() != before
    monkeypatch.chdir(tmp_path / "B")
    code, _, err = call("reproduce", "mine.toml", *options, "--out", out)
    assert code == 2
    assert "another experiment is called 'mine' too" in err
    sweep = ("sweep", "--vary", "c", "--values", 1, "--rule", "krum", *RUN[1:5], *options)
    code, _, err = call(*sweep, "--name", "mine", "--out", out)
    assert code == 2
    assert "give another --name, or give --out another folder" in err
    for more in ((), ("--iterations", 3)):  # what a sweep of a name is, is its owner's wish
        assert call(*sweep, *more, "--iterations", 2, "--name", "other", "--out", out)[0] == 0
    (tmp_path / "other.toml").write_text(TINY)
    assert call("reproduce", tmp_path / "other.toml", *options, "--out", out)[0] == 2


def test_a_sweep_over_one_knowledge_leaves_the_other_out(call, no_trials, monkeypatch):
    seen = []
    monkeypatch.setattr(
        reproduction, "reproduce", lambda orders, *_: seen.extend(orders) or ([], [])
    )
    options = ("--vary", "c", "--values", 1, "--rule", "krum", *RUN[1:5], "--knowledge", "full")
    assert call("sweep", *options)[0] == 0
    assert seen[0].rows == ("no attack", "gaussian", "label-flip", "full")


def test_readings_are_told_to_sweep_and_stand_in_the_command_that_repeats_it(call, monkeypatch):
    seen = []
    monkeypatch.setattr(
        reproduction, "reproduce", lambda orders, *_: seen.extend(orders) or ([], [])
    )
    told = ("--reading", "initial=xavier-1", "--reading", "base=before-attack")
    assert call("sweep", "--vary", "c", "--values", 1, "--rule", "krum", *RUN[1:5], *told)[0] == 0
    assert seen[0].command.endswith("--reading initial=xavier-1 --reading base=before-attack")
    readings = seen[0].settings[-1].readings
    assert (readings.initial, readings.base) == ("xavier-1", "before-attack")


def test_sweep_runs_a_figure_and_says_the_command_that_repeats_it(call, tmp_path):
    command = [
        "sweep", "--vary", "c", "--values", "1,3", "--rule", "krum", "--rule", "median",
        "--attack", "none", "--attack", "trimmed-mean", "--knowledge", "full",
        *RUN[1:5], "--iterations", "6", "--trials", 2, "--jobs", 0, "--out", "results",
        "--checkpoint-minutes", "7", "--grey",
    ]  # fmt: skip
    code, out, err = call(*command)
    assert code == 0, err
    assert "krum: trimmed-mean, full" in out
    assert "8/8" not in err
    assert "16/16 trials" in err
    folder = tmp_path / "results"
    (file,) = folder.glob("*.md")
    assert file.stem.startswith("sweep-c-digits-lr-")
    names = {f"{file.stem}.{end}" for end in ("csv", "json", "md", "trials.csv", "png", "svg")}
    assert {path.name for path in folder.iterdir()} == names
    page = file.read_text()
    assert f"![lr on digits, c varied; workers 10, iterations 6]({file.stem}.png)" in page
    assert "<!-- lr on digits, m = 10, c = 1 to 3, p = 0.5; 2 trials per point" in (
        folder / f"{file.stem}.svg"
    ).read_text(encoding="utf-8")
    repeated = "sweep --vary c --values 1,3 --rule krum --rule median --attack none"
    assert repeated in page
    assert "--jobs" not in page
    assert "--grey" not in page
    assert "--checkpoint-minutes" not in page
    assert "--iterations 6 --trials 2 --seed 10" in page


def test_sweep_takes_the_papers_attacks_where_none_is_named(call):
    code, out, _ = call(
        "sweep", "--vary", "epsilon", "--values", "0.5", "--rule", "krum", *RUN[1:7],
        "--iterations", 3, "--trials", 1, "--jobs", 0, "--out", "results", "--name", "mine",
    )  # fmt: skip
    assert code == 0
    lines = [line.split()[0] for line in out.splitlines() if "epsilon" not in line and line]
    assert [word for word in lines if word in ("gaussian", "label-flip", "partial", "full")] == [
        "gaussian", "label-flip", "partial", "full",
    ]  # fmt: skip


def test_the_means_of_a_running_table_are_those_of_the_table_it_ends_with(call, tmp_path):
    # At this learning rate the error rate goes up and down: the last one is not the lowest.
    (tmp_path / "t.toml").write_text(
        'measure = "lowest_error_rate"\n'
        + TINY.replace("iterations = 12", "iterations = 12\nlearning_rate = 8.0")
    )
    options = ["t.toml", "--jobs", 0, "--store", "t.sqlite", "--out", "results"]
    assert call("reproduce", *options, "--trials", 1)[0] == 0  # known before the next
    code, out, err = call("reproduce", *options, "--trials", 3)
    assert code == 0, err
    lowest = pd.read_csv(tmp_path / "results" / "t.csv")["mean"]
    last = pd.read_csv(tmp_path / "results" / "t.trials.csv")["error_rate"]
    assert lowest.min() < last.mean() - 0.01
    for column, mean in zip(("no-attack", "full"), lowest):
        assert f"; median {column} {mean:.3f} (3)" in err
    assert "Lowest testing error rate" in out
    assert "Lowest testing error rate" in (tmp_path / "results" / "t.md").read_text()
    assert "mean lowest error rate" in call("status", *options[:1], *options[3:])[1]


def test_report_reads_what_is_there_and_runs_nothing(call, tmp_path, no_trials):
    no_trials()
    code, out, err = call("report", "--out", "results", "--latex", "--store", "none.sqlite")
    assert code == 0, err
    assert out.startswith("0 of the ")
    page = (tmp_path / "results" / "fidelity.md").read_text()
    assert page.startswith("# Fidelity report")
    assert out.splitlines()[-1].startswith("Wrote results/fidelity.md, .csv; results/")
    assert "not measured" in page
    assert (tmp_path / "results" / "table2a.tex").is_file()
    papers = fidelity.by_paper(fidelity.all_experiments())
    printed = [c.paper is not None for e in papers[fidelity.PAPER] for c in e.cells]
    assert len(pd.read_csv(tmp_path / "results" / "fidelity.csv")) == sum(printed) > 140


MAKE = ["make", "-n", "-C", str(Path(__file__).parent.parent), "PYTHON=python3", "EXTRA=cpu"]


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_make_hands_its_options_to_the_program():
    options = ["TRIALS=3", "SEED=70", "JOBS=2", "FRESH=1", "DEVICE=cpu"]
    for goal in ("table2", "paper"):
        done = subprocess.run([*MAKE, goal, *options], capture_output=True, text=True, check=True)
        lines = done.stdout.replace("\\\n", " ").splitlines()
        (call,) = (line for line in lines if "fltrust_repro reproduce" in line)
        for option in ("--trials '3'", "--seed '70'", "--jobs '2'", "--fresh", "--device"):
            assert option in call
    plain = subprocess.run([*MAKE, "table2"], capture_output=True, text=True)
    assert "--fresh" not in plain.stdout
    assert "--seed" not in plain.stdout  # the program's own is the reported one
    assert "panels=abcde; else panels=ae" in plain.stdout


def test_the_last_seed_there_is_can_be_the_last_of_the_trials():
    for seed, trials, code in ((2**31 - 1, 1, 0), (2**31 - 1, 2, 2), (2**31 - 2, 2, 0)):
        typed = ["--seed", str(seed), "--trials", str(trials), "--store", "none.sqlite"]
        ended = CliRunner().invoke(commands, ["status", *typed])
        assert ended.exit_code == code, ended.output
        assert ("the last seed must be at most" in ended.output) == (code == 2)
