"""Bad input as a new user types it: one sentence with the value and what to do, exit code 2."""

from __future__ import annotations

import gzip
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fltrust_repro import backend, downloads, experiments, processes, sweep, training
from fltrust_repro.__main__ import commands
from fltrust_repro.errors import BadInput
from fltrust_repro.files import check_name

DIGITS = "run --dataset digits --iterations 2 --device cpu "

# command, and what its sentence has to say
COMMANDS = {
    "runn": ["runn", "run"],
    "run --datset digits": ["--datset", "--dataset"],
    DIGITS + "surplus": ["surplus", "run --help"],
    DIGITS + "--trials three": ["'--trials'", "'three'", "integer", "run --help"],
    DIGITS + "--b much": ["'--b'", "'much'", "run --help"],
    DIGITS + "--store": ["'--store'", "requires"],
    "run --device=": ["device is ''"],
    "--nothing": ["'--nothing'", "--help"],
    "data fetsh": ["'fetsh'", "data --help"],
    # sweeps
    "sweep": ["--vary"],
    "sweep --vary d": ["vary is 'd'", "m, c, p, beta"],
    "sweep --vary c --values 5,x": ["'5,x'", "5,10,20"],
    "sweep --vary c --values 50": ["compromised is 50"],
    "sweep --vary c --rule krumm": ["krumm"],
    "sweep --vary c --attack krumm": ["krumm"],
    "sweep --vary c --attack krum --knowledge all": ["knowledge is 'all'", "full, partial"],
    "sweep --vary beta --rule trimmed-mean --values 50": ["beta is 50"],
    "sweep --vary m --values 4": ["compromised is 0", "of the 4 workers"],
    "sweep --vary learning-rate": ["no values of learning-rate", "--values"],
    "sweep --vary krum:q --values 1": ["krum has no parameter 'q'", "choose one of power"],
    "sweep --vary median:q --values 1": ["vary is 'median:q'", "multi-krum:q"],
    "sweep --vary multi-krum:q --values 9": ["no rule or attack of the sweep", "--rule"],
    "sweep --vary c --vary p --vary beta": ["--vary is given 3 times", "one parameter, or two"],
    "sweep --vary c --vary m": ["--vary c and --vary m decide the same"],
    "sweep --vary krum:power --vary krum:power": ["decide the same"],
    "sweep --vary c --values 1 --values 2": ["--values is given 2 times, --vary 1"],
    # ranges
    "sweep --vary c --values 5-30": ["'5-30'", "Did you mean 5..30?"],
    "sweep --vary c --values 5:30": ["'5:30'", "Did you mean 5..30?"],
    "sweep --vary c --values 30..5": ["30..5, which does not go up", "smaller end first"],
    "sweep --vary c --values 5..30:0": ["5..30:0, whose step is 0", "above 0"],
    "sweep --vary p --values 0..1:0.0001": ["more than 1,000 values"],
    "sweep --vary c --values 5..": ["'5..'", "5..30"],
    "sweep --vary learning-rate --values 10%": ["10%", "100% of learning-rate"],
    "sweep --vary c --values 5% --workers 30": ["5%, which is 1.5 of 30 workers", "whole number"],
    "sweep --vary workers --vary c --values 50 --values 10%": ["100% of c"],
    # defenses and variants
    DIGITS + "--defense er": ["er", "err, lfr, union"],
    DIGITS + "--rule bulyan --defense err": ["after defense 'err'", "m - 4c"],
    DIGITS + "--rule bulyan --compromised 25": ["m - 4c >= 1", "it is 0"],
    DIGITS + "--selected 0": ["selected is 0", "[1, m]"],
    DIGITS + "--selected 101": ["selected is 101", "[1, m]"],
    DIGITS + "--poisoned-fraction 1.5": ["poisoned_fraction is 1.5", "[0, 1]"],
    DIGITS + "--attack krum --goal deviation --knowledge partial": ["Appendix B"],
    DIGITS + "--goal far": ["goal is 'far'", "deviation"],
    DIGITS + "--reading dealing=never": ["dealing is 'never'", "once"],
    # unknown names
    "run --dataset mnsit": ["mnsit", "Did you mean 'mnist'"],
    DIGITS + "--model svm": ["svm", "lr, cnn, resnet20"],
    DIGITS + "--rule trimed-mean": ["trimed-mean", "Did you mean 'trimmed-mean'"],
    DIGITS + "--attack krumm": ["krumm", "Did you mean 'krum'?"],
    DIGITS + "--attack xyzzy": ["xyzzy", "gaussian"],
    DIGITS + "--attack krum --knowledge both": ["both", "full, partial"],
    DIGITS + "--knowledge both": ["both", "full, partial"],
    DIGITS + "--reading direction=up": ["up", "mean, rule"],
    DIGITS + "--reading direction": ["'direction', without a value; give direction=mean or rule"],
    DIGITS + "--reading worker_ordre=grouped": ["'worker_ordre=g", "Did you mean 'worker_order'"],
    DIGITS + "--reading =": ["'='", "choose one of direction"],
    DIGITS + "--reading base=here --reading base=received": ["base is 'here'"],
    DIGITS + "--reading worker-order=sorted": ["sorted", "shuffled, grouped"],
    DIGITS + "--reading attacker_assumes=one": ["one", "zero, added, c"],
    DIGITS + "--reading base=here": ["here", "received, before-attack"],
    DIGITS + "--reading interval_space=pixel": ["pixel", "update, model"],
    DIGITS + "--device foo": ["foo", "cpu, gpu or auto"],
    "reproduce table9z": ["table9z", "Did you mean 'table"],
    "reproduce": ["EXPERIMENT"],
    "reproduce nowhere.toml": ["nowhere.toml", ".toml"],
    "data verify mnits": ["mnits", "mnist"],
    # no numbers
    DIGITS + "--workers ten": ["ten", "--workers"],
    DIGITS + "--workers 10.5": ["10.5", "--workers"],
    DIGITS + "--non-iid half": ["half", "--non-iid"],
    DIGITS + "--seed x": ["x", "--seed"],
    DIGITS + "--epsilon nan": ["nan", "at least 0"],
    DIGITS + "--epsilon inf": ["inf", "finite"],
    DIGITS + "--b nan": ["nan", "above 1"],
    DIGITS + "--learning-rate inf": ["inf", "finite"],
    DIGITS + "--non-iid nan": ["nan", "(0, 1]"],
    # out of range
    DIGITS + "--workers 0": ["workers is 0", "at least 1"],
    DIGITS + "--workers -5": ["workers is -5", "at least 1"],
    DIGITS + "--compromised 50": ["compromised is 50", "less than half of the 100"],
    DIGITS + "--compromised -1": ["compromised is -1", "at least 0"],
    DIGITS + "--compromised 0 --attack krum": ["compromised is 0", "at least 1"],
    DIGITS + "--non-iid 0": ["is 0", "(0, 1]"],
    DIGITS + "--non-iid 1.5": ["1.5", "(0, 1]"],
    DIGITS + "--beta 50 --rule trimmed-mean": ["beta is 50", "100"],
    DIGITS + "--beta -1": ["beta is -1"],
    DIGITS + "--epsilon -1": ["epsilon is -1", "at least 0"],
    DIGITS + "--b 1": ["b is 1", "above 1"],
    DIGITS + "--learning-rate 0": ["is 0", "above 0"],
    DIGITS + "--iterations 0": ["iterations is 0", "at least 1"],
    DIGITS + "--batch-size 0": ["is 0", "at least 1"],
    DIGITS + "--rounds 0": ["rounds is 0", "at least 1"],
    DIGITS + "--seed -1": ["--seed is -1", "at least 0"],
    DIGITS + "--seed 99999999999999999999": ["--seed", "99999999999999999999"],
    DIGITS + "--seed 9223372036854775807 --trials 2": ["--seed"],
    DIGITS + "--workers 99999999999999999999": ["workers is 99999999999999999999"],
    DIGITS + "--trials 0": ["--trials is 0", "at least 1"],
    DIGITS + "--jobs -1": ["--jobs is -1", "at least 0"],
    DIGITS + "--checkpoint-minutes -1": ["--checkpoint-minutes is -1", "at least 0"],
    DIGITS + "--checkpoint-minutes nan": ["--checkpoint-minutes is nan", "at most 1,000,000"],
    "reproduce table2e --trials 0": ["--trials is 0", "at least 1"],
    "reproduce table2e --seed -3": ["--seed is -3", "at least 0"],
    # numbers without end
    DIGITS + "--jobs 99999999999": ["--jobs is 99999999999", "at most 1,000"],
    DIGITS + "--trials 2000000000": ["--trials is 2000000000", "at most 10,000"],
    DIGITS + f"--seed {'9' * 300}": ["--seed", "at most 2,147,483,647"],
    DIGITS + f"--workers {'9' * 300}": ["workers is", "at most 1,000,000"],
    DIGITS + f"--beta {'9' * 300}": ["beta is"],
    DIGITS + "--batch-size 1000000 --rounds 1000000": ["batch_size", "100,000,000 examples"],
    "status --trials 2000000000": ["--trials is 2000000000"],
    "show tiny.toml few plain --seed 99999999999": ["--seed is 99999999999"],
    "poison --seed 99999999999": ["--seed is 99999999999"],
    f"sweep --vary c --values {'9' * 300}": ["compromised is 9"],
    f"sweep --vary p --values {'9' * 400}": ["each finite"],
    "sweep --vary c --values 5,nan": ["values are [5, nan]", "each finite"],
    "sweep --vary p --values inf": ["values are [inf]", "each finite"],
    "sweep --vary p --values 0.1,0.10": ["none twice"],
    # what a name may be
    "sweep --vary c --name ../outside": ["--name is '../outside'", "letters, digits"],
    "sweep --vary c --name table2a": ["--name is 'table2a'", "another"],
    "sweep --vary c --name Table2A": ["--name is 'Table2A'", "another"],
    "sweep --vary c --name fidelity": ["--name is 'fidelity'", "another"],
    "sweep --vary c --name table2a.trials": ["--name is 'table2a.trials'", ".trials"],
    f"sweep --vary c --name {'x' * 300}": ["--name is 'xxx", "at most 100"],
    "sweep --vary c --name .hidden": ["'.hidden'", "first"],
    "reproduce sub/tiny.trials.toml": ["tiny.trials", "letters, digits"],
    "reproduce tiny.toml sub/tiny.toml": ["'tiny'", "rename your file"],
    # options of which one would be ignored
    "run --rule krum --rule median": ["--rule is given 2 times (krum, median)", "once"],
    "show --rule krum --attack krum --attack none": ["--attack is given 2 times (krum, none)"],
    "sweep --vary c --dataset digits --dataset har": ["--dataset is given 2 times (digits, har)"],
    "run --reading base=received --reading search=exact --reading base=before-attack": [
        "--reading base is given 2 times (received, before-attack)",
    ],
    "arena --knowledge full --knowledge partial": ["--knowledge is given 2 times (full, partial)"],
    "arena --protocol P5 --rule median --attack fltrust-adaptive": [
        "in P5 none of these rules can meet",
        "asks for root",
        "choose others.",
    ],
    # sweeps that would ignore an option
    "sweep --vary c --knowledge nonsense": ["knowledge is 'nonsense'", "full, partial"],
    "sweep --vary c --attack gaussian --knowledge none": ["knowledge is 'none'"],
    "sweep --vary c --compromised 5": ["--compromised", "--vary c decides it"],
    "sweep --vary m --workers 50": ["--workers", "--vary m decides it"],
    "sweep --vary m --compromised 5": ["--compromised", "--vary m decides it"],
    "sweep --vary compromised --compromised 5": ["--compromised", "--vary c decides it"],
    "sweep --vary p --vary c --compromised 5": ["--compromised", "--vary c decides it"],
    "sweep --vary workers --values 50 --workers 20": ["--workers", "--vary workers decides it"],
    "sweep --vary selected --selected 20": ["--selected", "--vary selected decides it"],
    "sweep --vary momentum --values 0.5 --momentum 0.9": ["--momentum", "--vary momentum decides"],
    "sweep --vary multi-krum:q --values 9 --rule multi-krum:q=5": [
        "--rule",
        "decides it; write multi-krum without q.",
    ],
    "sweep --vary clip:radius --values 1 --pre nnm+clip:radius=2": ["--pre", "decides it"],
    # limits of rules and attacks
    DIGITS + "--rule trimmed-mean --beta 19": ["beta is 19", "c = 20", "c <= beta < m/2"],
    "sweep --vary c --values 10,20 --rule trimmed-mean --beta 5": [
        "beta is 5",
        "c = 10",
        "no point",
    ],
    DIGITS + "--rule krum --workers 3 --compromised 1": ["'krum'", "m - c - 2", "m = 3"],
    DIGITS + "--attack krum --workers 5 --compromised 2": ["'krum'", "m - 2c - 1", "c = 2"],
    # places
    DIGITS + "--data-dir nowhere": ["nowhere", "not a directory"],
    DIGITS + "--data-dir a-file": ["a-file", "not a directory"],
    "data status --data-dir nowhere": ["nowhere", "not a directory"],
    "data status --data-dir ~nosuchuser/x": ["~nosuchuser/x", "no user"],
    DIGITS + "--data-dir ~nosuchuser/x": ["~nosuchuser/x", "no user"],
    DIGITS + f"--data-dir {'x' * 300}": ["--data-dir", "too long"],
    DIGITS + "--store .": ["--store", "is a folder"],
    DIGITS + "--store new/folder/": ["--store", "is a folder"],
    "status --store a-folder": ["--store", "is a folder"],
    f"reproduce {'x' * 300}.toml": ["too long"],
    "show tiny.toml few plain --picture p.xyz": ["'p.xyz'", ".png nor .svg"],
    "show tiny.toml few plain --picture a-file/p.png": ["a-file", "--picture"],
    "poison --dataset digits --picture p.xyz": ["'p.xyz'", ".png nor .svg"],
    "poison --dataset digits --picture p": ["'p'", ".png nor .svg"],
    "poison --dataset digits --picture a-folder": ["--picture", "is a folder"],
    "poison --dataset digits --picture a-file/p.png": ["a-file", "--picture"],
    # schedulers
    DIGITS + "--scheduler foo": ["scheduler 'foo' is not an address", "tcp://host:8786"],
    DIGITS + "--scheduler http://host:8786": ["http://host:8786", "tcp://host:8786"],
    DIGITS + "--scheduler tcp://host": ["tcp://host", "8786"],
    DIGITS + "--store a-folder": ["a-folder", "--store"],
    DIGITS + "--store a-file": ["a-file", "--store"],
    DIGITS + "--store a-file/trials.sqlite": ["a-file", "--store"],
    DIGITS + "--store other.sqlite": ["other.sqlite", "columns", "--store"],
    "reproduce tiny.toml --out a-file": ["a-file", "--out"],
    "reproduce tiny.toml --out damaged": ["damaged", "line 2", "does not name protocol"],
    "status --store .": ["'.'", "--store"],
    "status --store nowhere/": ["'nowhere/'", "--store"],
    "export t.csv --store a-file": ["a-file", "--store"],
    "import a-file": ["a-file", "not a store of trials"],
    # plug-ins
    DIGITS + "--plugin nowhere.py": ["nowhere.py", "path of a Python file"],
    DIGITS + "--plugin a-folder": ["a-folder", "path of a Python file"],
    DIGITS + "--plugin a-file": ["a-file", ".py"],
    DIGITS + "--plugin broken.py": ["broken.py", "no_such_module"],
    DIGITS + "--plugin wrong_syntax.py": ["wrong_syntax.py", "line 1"],
    DIGITS + "--plugin clash.py": ["clash.py", "'krum' exists already"],
    DIGITS + "--plugin parameters.py": ["parameters.py", "a rule may take c, beta, rng"],
    "list --plugin nowhere.py": ["nowhere.py"],
    # files of experiments
    "reproduce field.toml": ["field.toml", "unknown setting datasett"],
    "reproduce syntax.toml": ["syntax.toml", "TOML"],
    "reproduce untitled.toml": ["untitled.toml", "title"],
    "reproduce number.toml": ["number.toml", "row", "few"],
    "reproduce empty.toml": ["empty.toml", "rows"],
    "reproduce paper.toml": ["paper.toml", "few"],
    "reproduce bytes.toml": ["bytes.toml", "UTF-8"],
    "reproduce utf-16.toml": ["utf-16.toml", "UTF-8"],
    "reproduce deep.toml": ["deep.toml", "TOML"],
    "reproduce deep-field.toml": ["deep-field.toml", "model is {'a'", "name in quotes"],
    "reproduce list.toml": ["list.toml", "dataset is ['digits']", "name in quotes"],
    "reproduce table.toml": ["table.toml", "model is {'a'", "name in quotes"],
    "reproduce huge.toml": ["huge.toml", "1,000,000 bytes"],
    "reproduce many.toml": ["many.toml", "10,000"],
    "reproduce digits.toml": ["digits.toml", "iterations is"],
    "reproduce hexadecimal.toml": ["hexadecimal.toml", "iterations is", "thousands of digits"],
    "reproduce endless.toml": ["endless.toml", "TOML"],
    "reproduce seconds.toml": ["seconds.toml", "seconds is"],
    "reproduce rate.toml": ["rate.toml", "numbers from 0 to 1"],
    "reproduce lines.toml": ["lines.toml", "one line"],
    "reproduce row.toml": ["row.toml", "a name in [rows]", "one line"],
}

TINY = """title = "x"
[setting]
dataset = "digits"
workers = 10
compromised = 2
iterations = 2
[rows]
few = { rule = "median" }
[columns]
plain = { attack = "none" }
"""
FILES = {
    "a-file": "my thesis\n" * 500,
    "broken.py": "import no_such_module\n",
    "wrong_syntax.py": "def f(:\n",
    "clash.py": "from fltrust_repro.aggregation import rule\n"
    '@rule("krum")\ndef mine(updates):\n    return updates[0]\n',
    "parameters.py": "from fltrust_repro.aggregation import rule\n"
    '@rule("mine")\ndef mine(updates, m):\n    return updates[0]\n',
    "tiny.toml": TINY,
    "damaged/tiny.trials.csv": "key,seed\n1,2\n",
    "field.toml": TINY.replace("dataset", "datasett"),
    "syntax.toml": TINY.replace('"x"', '"x'),
    "untitled.toml": TINY.replace('title = "x"', ""),
    "number.toml": TINY.replace('{ rule = "median" }', "3"),
    "empty.toml": TINY.replace('few = { rule = "median" }', ""),
    "paper.toml": TINY + "[paper]\nfew = 0.1\n",
    "sub/tiny.toml": TINY,
    "sub/tiny.trials.toml": TINY,
    "deep.toml": TINY + "x = " + "[" * 5000 + "]" * 5000,
    "deep-field.toml": TINY.replace("[rows]", f"model{'.a' * 900} = 1\n[rows]"),
    "list.toml": TINY.replace('"digits"', '["digits"]'),
    "table.toml": TINY.replace("[rows]", "model = { a = 1 }\n[rows]"),
    "huge.toml": TINY + "#" * 1_000_000,
    "many.toml": TINY + "".join(f"c{i} = {{}}\n" for i in range(10_001)),
    "digits.toml": TINY.replace("= 2\n[rows]", f"= {'9' * 300}\n[rows]"),
    "hexadecimal.toml": TINY.replace("= 2\n[rows]", f"= 0x{'f' * 5000}\n[rows]"),
    "endless.toml": TINY.replace("= 2\n[rows]", f"= {'9' * 5000}\n[rows]"),
    "seconds.toml": f"seconds = {'9' * 400}\n" + TINY,
    "rate.toml": TINY + f"[paper]\nfew = [{'9' * 400}]\n",
    "lines.toml": TINY.replace('"x"', '"x\\ny"'),
    "row.toml": TINY.replace("few =", '"\\u001b[31m" ='),
}


@pytest.fixture(autouse=True)
def folder(alone, tmp_path):
    """A folder with all the wrong files, and no data set of this machine."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "bytes.toml").write_bytes(b'title = "\xff"\n')
    (tmp_path / "utf-16.toml").write_text(TINY, encoding="utf-16")
    (tmp_path / "a-folder").mkdir()
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("CREATE TABLE trials (mine)")
    connection.close()
    return tmp_path


@pytest.fixture
def refused(capsys):
    """Run a command that has to be refused, and give its sentence."""

    def run(command: str) -> str:
        with pytest.raises(SystemExit) as stop:
            commands.main(command.split(), prog_name="python -m fltrust_repro")
        out, err = capsys.readouterr()
        assert stop.value.code == 2, err
        return sentence(out, err)

    return run


def sentence(out: str, err: str) -> str:
    """The one line, which says what was wrong."""
    assert out == ""
    assert "Traceback" not in err
    [text] = [line for line in err.splitlines() if line]
    assert text.startswith("Error: "), err
    assert "object" not in text, "speaks of Python, not of the user's input"
    assert "BadInput" not in text
    assert "[Errno" not in text
    return text


@pytest.fixture
def no_processes(monkeypatch):
    """Nothing may be trained before the input is known to be good."""

    def refuse(*_, **__):
        raise AssertionError("a worker process was started")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", refuse)


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("command", COMMANDS)
def test_bad_input_is_refused_in_one_sentence_before_any_training(command, refused):
    text = refused(command)
    for words in COMMANDS[command]:
        assert words in text


ODD_NUMBERS = ["9" * 300, "9" * 5000, "-1", "0", "99999999999", "nan", "inf", "1e400", "", "0x1"]
ODD_WORDS = [
    "",
    " ",
    "x" * 300,
    "../x",
    "~nosuchuser",
    "a\nb",
    "a\0b",
    "\udcff",
    "$\\frac$",
    "é",
    ".",
]
ODD_WORDS += ["a/b/", "/dev/null/x", "[red]", "-", "{}", "1,nan"]
USUAL = {
    "run": DIGITS.split()[1:],
    "sweep": ["--vary", "c", "--values", "1", "--dataset", "digits", "--iterations", "2"],
    "reproduce": ["tiny.toml"],
    "arena": ["--protocol", "P5", "--rule", "mean", "--draw"],
    "show": ["tiny.toml", "few", "plain"],
    "status": ["tiny.toml"],
    "export": ["a.csv"],
    "import": ["a-file"],
}


def all_commands(group=commands, words=()):
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, click.Group):
            yield from all_commands(command, (*words, name))
        elif name not in ("doctor", "fetch", "verify", "report"):  # they work for seconds
            yield (*words, name)


def odd_calls(words):
    """Every option and argument of a command, each with every odd value of its kind."""
    command = commands
    for word in words:
        command = command.get_command(None, word)
    usual = USUAL.get(words[0], [])
    for parameter in command.params:
        number = parameter.type.name in ("integer", "float")
        for value in ODD_NUMBERS if number else ODD_WORDS:
            if isinstance(parameter, click.Argument):
                yield [*words, "--", value]
            elif not parameter.is_flag:
                yield [*words, *usual, parameter.opts[0], value]


class Started(Exception):
    """The input was taken."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        # The arena arranges thousands of settings each time, whatever it is given.
        pytest.param(words, marks=[pytest.mark.long] * (words == ("arena",)))
        for words in all_commands()
    ],
    ids=" ".join,
)
def test_whatever_an_option_is_given_is_taken_or_refused_in_a_sentence(
    words, capsys, monkeypatch, tmp_path
):
    def start(*_, **__):
        raise Started

    monkeypatch.setattr(experiments, "published", lambda: tmp_path)  # which takes long to read
    monkeypatch.setattr(processes, "ProcessPoolExecutor", start)
    monkeypatch.setattr(sweep.Run, "to_the_end", start)
    monkeypatch.setattr(training, "poisoned_examples", start)
    for call in odd_calls(words):
        with pytest.raises((SystemExit, Started)) as stop:
            commands.main(call, prog_name="python -m fltrust_repro")
        out, err = capsys.readouterr()
        if isinstance(stop.value, SystemExit) and stop.value.code != 0:
            assert stop.value.code == 2, (call, err)
            sentence(out, err)


@pytest.mark.slow
@given(st.text() | st.from_regex(r"[\w./ -]{1,120}", fullmatch=True))
@example("..")
@example("table2a.trials")
@example("é" * 51)
@example("a\n")
def test_a_name_that_is_taken_makes_a_file_in_the_folder_meant(name):
    try:
        check_name("--name", name)
    except BadInput as error:
        assert "\n" not in str(error)
        return
    file = Path("results") / f"{name}.trials.csv"
    assert file.parent == Path("results")
    assert file.name == f"{name}.trials.csv"
    assert len(os.fsencode(file.name)) < 200  # leaves room for the name of its unfinished copy
    assert not file.name.startswith(".")
    assert not f"{name}.csv".endswith(".trials.csv")
    assert name.isprintable()


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("variable", ["~nosuchuser/x", "x" * 300, "nowhere"])
def test_a_variable_that_names_no_folder_is_named(variable, refused, monkeypatch):
    monkeypatch.setenv("FLTRUST_DATA", variable)
    assert "$FLTRUST_DATA" in refused("data status")


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("command", ["run --dataset digits", "reproduce tiny.toml"])
def test_a_gpu_where_there_is_none_is_refused(command, refused, monkeypatch):
    monkeypatch.setattr(backend, "gpu_count", lambda: 0)
    text = refused(f"{command} --device gpu")
    assert "no NVIDIA GPU" in text
    assert "--device cpu" in text


@pytest.mark.usefixtures("no_processes")
def test_what_answers_but_is_no_scheduler_is_refused_soon(refused, monkeypatch):
    pytest.importorskip("distributed")
    from fltrust_repro import cluster

    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        text = refused(DIGITS + f"--scheduler {address}")
    assert time.monotonic() - started < 5
    assert "nothing that Dask understands" in text
    assert "dask scheduler" in text


@pytest.mark.slow
def test_a_model_that_cannot_take_the_data_is_refused(refused_by_command):
    text = refused_by_command(DIGITS + "--model cnn")
    assert "8 x 8" in text
    assert "--model lr or resnet20" in text


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08", gzip.compress(b"no IDX file", mtime=0)])
def test_a_damaged_data_file_is_named_with_the_remedy(folder, refused, content):
    (folder / "data" / "mnist").mkdir(parents=True)
    for name in downloads.IDX_FILES:
        (folder / "data" / "mnist" / f"{name}.gz").write_bytes(content)
    text = refused("run --dataset mnist")
    assert "train-images-idx3-ubyte.gz" in text
    assert "data fetch mnist" in text


@pytest.mark.usefixtures("no_processes")
def test_real_mnist_with_one_byte_changed_or_cut_is_refused(folder, refused, request):
    real = request.getfixturevalue("real_mnist")
    target = folder / "data" / "mnist"
    target.mkdir(parents=True)
    for name in downloads.IDX_FILES:
        (target / f"{name}.gz").symlink_to(real / f"{name}.gz")
    labels = target / "t10k-labels-idx1-ubyte.gz"
    content = labels.read_bytes()
    labels.unlink()
    labels.write_bytes(content[: len(content) // 2])
    assert "cut short" in refused("run --dataset mnist")
    values = bytearray(gzip.decompress(content))
    values[1000] ^= 1
    labels.write_bytes(gzip.compress(bytes(values)))
    text = refused("run --dataset mnist")
    assert "checksum" in text
    assert "t10k-labels-idx1-ubyte.gz" in text


REAL_DATA = os.environ.get("FLTRUST_DATA")  # before `folder` takes it away


@pytest.fixture
def real_mnist() -> Path:
    files = downloads.locate("mnist", (Path(REAL_DATA),)) if REAL_DATA else None
    if files is None or files[0].suffix != ".gz":
        pytest.skip("mnist is not in $FLTRUST_DATA")
    return files[0].parent


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "ch-mnist", "ch-mnist-8"])
def test_data_that_cannot_be_had_says_what_to_put_where(capsys, name):
    with pytest.raises(SystemExit) as stop:
        commands.main(["run", "--dataset", name], prog_name="fltrust_repro")
    _, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert last.startswith("Error: ")
    assert "Traceback" not in err
    assert f"{os.sep}{downloads.SOURCES[name].folder}'" in last
    assert "--data-dir" in last


@pytest.mark.usefixtures("no_processes")
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_store_in_a_folder_without_rights_is_refused(folder, refused):
    (folder / "a-folder").chmod(stat.S_IRUSR | stat.S_IXUSR)
    text = refused(DIGITS + "--store a-folder/trials.sqlite")
    assert "a-folder" in text


@pytest.fixture
def refused_by_command(folder):
    """As `refused`, in a process of its own, exactly as a user runs it."""

    def run(command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "fltrust_repro", *command.split()],
            capture_output=True, text=True, timeout=120, check=False, cwd=folder,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        return sentence(done.stdout, done.stderr)

    return run


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (DIGITS + "--compromised 50", "compromised is 50"),
        (DIGITS + "--store a-file", "a-file"),
        ("reproduce table9z", "table9z"),
    ],
)
def test_the_program_itself_exits_with_two_and_no_traceback(command, words, refused_by_command):
    assert words in refused_by_command(command)


def test_a_refused_command_leaves_nothing_behind(folder, refused):
    before = sorted(path for path in folder.rglob("*"))
    refused(DIGITS + "--compromised 50")
    refused("reproduce table9z")
    assert sorted(path for path in folder.rglob("*")) == before
