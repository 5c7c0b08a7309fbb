"""Registries and plug-ins: how a user's own rule, attack or model gets its name, and its digest."""

import importlib
import json
import linecache
import os
import pickle
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from fltrust_repro import aggregation, attacks, defenses, models
from fltrust_repro import datasets as data_sets
from fltrust_repro.backend import nd
from fltrust_repro.datasets import datasets
from fltrust_repro.errors import BadInput
from fltrust_repro.plugins import (
    PLUGIN_PREFIX,
    load_installed,
    load_plugin,
    plugins_for,
    run_afresh,
)
from fltrust_repro.registry import Registry, registering, summary
from fltrust_repro.settings import Setting

RULE = '''
from fltrust_repro.aggregation import rule


@rule("first")
def first(updates):
    """The first update."""
    return updates[0]
'''


def loaded(*files):
    """What other processes get of plug-ins."""
    for file in files:
        load_plugin(file)
    return plugins_for(())


@pytest.fixture
def plugin(tmp_path):
    def write(source, name="mine.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
        return file

    return write


def test_a_registry_is_a_mapping_in_order_of_registration():
    registry = Registry("rule")
    registry.add("b", 1)
    registry.add("a", 2)
    assert list(registry) == ["b", "a"]
    assert len(registry) == 2
    assert registry["a"] == 2
    assert "c" not in registry


class Anybody:
    """Code that is not of the script or notebook that runs."""

    digest = "of anybody"

    def __init__(self):
        self.entries = []


def test_a_name_is_registered_once():
    registry = Registry("rule")
    with registering(Anybody()):
        registry.add("mean", 1)
    with pytest.raises(BadInput, match="rule 'mean' exists already"):
        registry.add("mean", 2)
    assert registry["mean"] == 1


def test_an_unknown_name_is_a_key_that_is_missing():
    assert aggregation.rules.get("no such rule", 3) == 3
    with pytest.raises(KeyError) as error:
        attacks.attacks["no such attack"]
    assert str(error.value).startswith("unknown attack 'no such attack'; choose one of none, ")


def test_an_unknown_name_lists_the_names_and_suggests_a_near_one():
    with pytest.raises(BadInput) as error:
        aggregation.rules["trimmed_mean"]
    message = str(error.value)
    assert "unknown rule 'trimmed_mean'" in message
    assert f"choose one of the {len(aggregation.rules)} there are. " in message
    assert message.endswith("Did you mean 'trimmed-mean'?")
    assert "Did you mean 'trimmed-mean'?" in message


def test_a_name_like_no_other_gets_no_suggestion():
    with pytest.raises(BadInput) as error:
        aggregation.rules["xyzzy"]
    assert "Did you mean" not in str(error.value)


def test_summary_is_the_first_line_of_a_docstring():
    assert summary(aggregation.mean) == "Mean of each parameter (not robust)."
    assert summary(lambda: None) == "(no description)"


def test_a_plugin_adds_a_rule_by_name(plugin):
    load_plugin(plugin(RULE))
    out = aggregation.rules["first"](nd.array([[1, 2], [3, 4]]), c=0, beta=0)
    np.testing.assert_array_equal(out.asnumpy(), [1, 2])
    assert Setting(rule="first").rule == "first"


def test_a_plugin_adds_an_attack_and_a_model(plugin):
    load_plugin(
        plugin(
            "from fltrust_repro.attacks import attack\n"
            "from fltrust_repro.backend import mx\n"
            "from fltrust_repro.models import model\n"
            "@attack('negate', has_knowledge=False)\n"
            "def negate(step):\n"
            "    return -step.known[:step.c]\n"
            "@model('wide')\n"
            "def wide(classes, shape):\n"
            "    return mx.gluon.nn.Dense(classes)\n"
        )
    )
    setting = Setting(attack="negate", model="wide")
    assert setting.knowledge is None
    assert setting.iterations == 2000


def test_loading_a_plugin_twice_is_harmless(plugin):
    file = plugin(RULE)
    assert load_plugin(file) is load_plugin(str(file))


def test_an_edited_plugin_takes_the_place_of_its_older_text(plugin):
    load_plugin(plugin(RULE + "\nrule('gone')(first)\n"))
    load_plugin(plugin(RULE.replace("updates[0]", "updates[1]")))
    out = aggregation.rules["first"](nd.array([[1, 2], [3, 4]]), c=0, beta=0)
    np.testing.assert_array_equal(out.asnumpy(), [3, 4])
    assert "gone" not in aggregation.rules


def test_a_plugin_cannot_replace_a_rule(plugin):
    with pytest.raises(BadInput, match="rule 'krum' exists already"):
        load_plugin(plugin(RULE.replace('"first"', '"krum"')))


def test_a_missing_plugin_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"plug-in '.*nowhere\.py' does not exist"):
        load_plugin(tmp_path / "nowhere.py")


def test_a_plugin_must_be_a_python_file(plugin):
    with pytest.raises(BadInput, match=r"mine\.txt' is not a Python file"):
        load_plugin(plugin(RULE, "mine.txt"))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def (:", r"SyntaxError: .*line 10\)"),
        ("import no_such_module_at_all", "ModuleNotFoundError.*no_such_module_at_all"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(.*mine\.py, line 10\)\.$"),
        ("import sys; sys.exit(0)", r"SystemExit: 0 \(.*mine\.py, line 10\)"),
        ("exit()", "SystemExit"),
        ("class Stop(BaseException): pass\nraise Stop('enough')", "Stop: enough"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "E: .*cannot be printed"),
        ("import broken_helper", r"KeyError: 'x' \(.*broken_helper\.py, line 1\)"),
        ("rule(3)(abs)", "a rule has the name 3"),
        ("rule('')(abs)", "a rule has the name ''"),
    ],
)
def test_a_broken_plugin_says_what_is_broken_and_leaves_nothing(plugin, source, problem):
    plugin("{}['x']", "broken_helper.py")
    file = plugin(RULE + "\n" + source)
    before, finders = set(sys.modules), list(sys.meta_path)
    with pytest.raises(BadInput, match=rf"mine\.py' does not load: {problem}"):
        load_plugin(file)
    assert not [name for name in set(sys.modules) - before if name.startswith(PLUGIN_PREFIX)]
    assert sys.meta_path == finders
    assert "first" not in aggregation.rules
    file.write_text(RULE, encoding="utf-8")
    load_plugin(file)
    assert "first" in aggregation.rules


def test_ctrl_c_while_a_plugin_loads_is_not_its_fault(plugin):
    with pytest.raises(KeyboardInterrupt):
        load_plugin(plugin(RULE + "raise KeyboardInterrupt"))
    assert "first" not in aggregation.rules


# ---- the digest: all that decides a number ------------------------------------------------------


def test_built_in_entries_have_no_digest():
    assert aggregation.rules.digest("krum") is None
    assert Setting(rule="krum").plugin_key() == ""


def test_the_digest_changes_with_the_source_and_not_with_the_place(plugin):
    load_plugin(plugin(RULE))
    load_plugin(plugin(RULE.replace('"first"', '"second"'), "other.py"))
    mine, other = (aggregation.rules.digest(name) for name in ("first", "second"))
    assert mine != other
    assert Setting(rule="first").plugin_key() == mine
    run_afresh([])
    load_plugin(plugin(RULE, "elsewhere/third.py"))
    assert aggregation.rules.digest("first") == mine


def test_the_digest_is_of_the_source_that_runs(plugin):
    # A file edited while a sweep runs must not lend its new name to the old code's results.
    file = plugin(RULE)
    load_plugin(file)
    before = aggregation.rules.digest("first")
    file.write_text(RULE.replace("updates[0]", "updates[1]"), encoding="utf-8")
    assert aggregation.rules.digest("first") == before


USES = RULE.replace("updates[0]", "updates[0] * HELP")
ELSEWHERE = "import sys\nsys.path.insert(0, {folder!r})\n"
IMPORTS = {
    "beside": ("import helper\nHELP = helper.X\n", "helper.py"),
    "by name": ("from helper import X as HELP\n", "helper.py"),
    "star": ("from helper import *\nHELP = X\n", "helper.py"),
    "transitive": ("import middle\nHELP = middle.X\n", "helper.py"),
    "package": ("import parts.helper\nHELP = parts.helper.X\n", "parts/helper.py"),
    "package itself": ("import whole\nHELP = whole.X\n", "whole/__init__.py"),
    "relative": ("from parts import relative\nHELP = relative.X\n", "parts/helper.py"),
    "no __init__": ("from bare import helper\nHELP = helper.X\n", "bare/helper.py"),
    "elsewhere": (ELSEWHERE + "import helper\nHELP = helper.X\n", "lib/helper.py"),
    "by text": ("import importlib\nHELP = importlib.import_module('helper').X\n", "helper.py"),
    "later": ("HELP = 1\ndef later():\n    import helper\n", "helper.py"),
    "later, part": ("HELP = 1\ndef later():\n    from parts import helper\n", "parts/helper.py"),
    "later, transitive": ("HELP = 1\ndef later():\n    import middle\n", "helper.py"),
    "later, elsewhere": (
        ELSEWHERE + "HELP = 1\ndef later():\n    import helper\n",
        "lib/helper.py",
    ),
}


@pytest.mark.parametrize("how", IMPORTS)
def test_every_module_that_a_plugin_imports_counts(plugin, tmp_path, how):
    text, helper = IMPORTS[how]
    plugin("from helper import X\n", "middle.py")
    plugin("from .helper import X\n", "parts/relative.py")
    plugin("", "parts/__init__.py")
    digests = []
    for value in (1, 2, 1):
        plugin(f"X = {value}\n", helper)
        plugin(f"X = {len(digests)}\n", "unrelated.py")
        load_plugin(plugin(text.format(folder=str(tmp_path / "lib")) + USES))
        digests.append(Setting(rule="first").plugin_key())
    assert digests[0] == digests[2] != digests[1]


def test_a_warning_of_python_about_a_plugin_comes_once(plugin):
    with pytest.warns() as warned:
        load_plugin(plugin("def odd(x):\n    return x is 1\n" + RULE))
    assert [one.category for one in warned] == [SyntaxWarning]


def test_installed_packages_and_the_standard_library_do_not_count(plugin):
    file = plugin("import json, numpy.linalg, scipy.stats, fltrust_repro.models\n" + RULE)
    [mine] = loaded(file)
    assert [source.path for source in mine.sources] == [str(file)]


def test_a_file_beside_the_plugin_takes_no_installed_packages_place(plugin):
    for name in ("random", "numpy", "sys"):
        plugin("raise ZeroDivisionError", f"{name}.py")
    module = load_plugin(plugin("import numpy, random, sys\n" + RULE))
    assert (module.numpy, module.random, module.sys) == (np, random, sys)


LIBRARY = """
import functools

class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, updates):
        return updates[0] * self.factor

def first(updates):
    return updates[0]

def second(updates):
    return updates[1]

def wrapped(function):
    @functools.wraps(function)
    def call(updates):
        return function(updates)
    return call
"""
HEAD = """
import functools
from fltrust_repro import datasets
from fltrust_repro.aggregation import mean, rule, rules
from fltrust_repro.attacks import Attack, attacks
from fltrust_repro.defenses import Defense, defenses
from fltrust_repro.models import Model, logistic_regression, models
"""
ANOTHER = ("lib.first", "lib.second")
REGISTERED = [
    ("rule('x')(lib.first)", ANOTHER, "rule"),
    ("rule('x')(lib.Scaled(1))", ("(1)", "(2)"), "rule"),
    ("rule('x')(functools.partial(lib.Scaled.__call__, lib.Scaled(1)))", ("(1)", "(2)"), "rule"),
    ("rule('x')(lib.wrapped(lib.first))", ANOTHER, "rule"),
    ("rule('x')(lambda updates: updates[0])", ("[0]", "[1]"), "rule"),
    ("rule('x', leave_one_out=lib.first)(mean)", ANOTHER, "rule"),
    ("rule('x')(mean)", ("mean)", "rules['krum'].function)"), "rule"),
    ("attacks.add('x', Attack('x', craft=lib.first))", ANOTHER, "attack"),
    ("attacks.add('x', Attack('x', poison=lib.first))", ANOTHER, "attack"),
    ("attacks.add('x', Attack('x', inject=lib.first))", ANOTHER, "attack"),
    ("defenses.add('x', Defense('x', lib.first, 1))", ANOTHER, "defense"),
    ("models.add('x', Model('x', logistic_regression, lib.first))", ANOTHER, "model"),
    ("models.add('x', Model('x', lib.first, None))", ANOTHER, "model"),
]


@pytest.mark.parametrize(("registers", "edit", "kind"), REGISTERED)
def test_whatever_a_plugin_registers_counts_by_the_plugin(plugin, registers, edit, kind):
    plugin(LIBRARY, "lib.py")
    keys = []
    for text in (registers, registers.replace(*edit), registers):
        load_plugin(plugin(f"import lib\n{HEAD}{text}\n"))
        keys.append(Setting(**{kind: "x"}).plugin_key())
    assert keys[0] == keys[2] != keys[1]
    assert "" not in keys


DATA = '''
from pathlib import Path
import numpy as np
from fltrust_repro.datasets import Dataset, dataset

@dataset("mine")
def mine(directories, rng):
    """From a file beside this one."""
    x = np.loadtxt(Path(__file__).with_name("x.csv"), dtype=np.float32).reshape(4, 1, 1, 2)
    y = np.array([0, 1, 0, 1], dtype=np.int32)
    return Dataset(x, y, x, y, classes=2)
'''


def test_the_examples_of_a_plugins_data_set_count_whatever_file_they_come_from(plugin, monkeypatch):
    def key(values: str, source: str = DATA) -> str:
        monkeypatch.setattr(data_sets, "_digests", {})  # as in another process
        plugin(values, "x.csv")
        load_plugin(plugin(source))
        return Setting(dataset="mine").plugin_key()

    first = key("1 2 3 4 5 6 7 8")
    assert key("1 2 3 4 5 6 7 9") != first
    assert key("1 2 3 4 5 6 7 8") == first
    assert key("1 2 3 4 5 6 7 8", DATA + "# edited\n") != first
    with pytest.raises(BadInput, match=r"data set 'mine' does not load: .*mine\.py, line 9"):
        key("1 2 three")
    with pytest.raises(BadInput, match=r"does not load: SystemExit: 0 \(.*mine\.py, line 9\)"):
        key("", DATA.replace("    x = ", "    raise SystemExit(0)\n    x = "))


# ---- a fresh start for every trial --------------------------------------------------------------

STATEFUL = """
import helper
from fltrust_repro.aggregation import rule

calls = 0

@rule("count")
def count(updates):
    global calls
    calls += 1
    helper.calls.append(calls)
    return updates[0] * 0 + calls + 10 * len(helper.calls)

def later():
    import helped_later
    return helped_later.X
"""


def aggregated() -> float:
    return aggregation.rules["count"](nd.ones((2, 1)), c=0, beta=0).asscalar()


def test_what_a_plugin_and_its_helpers_keep_does_not_outlive_a_fresh_start(plugin):
    plugin("calls = []\n", "helper.py")
    plugins = loaded(plugin(STATEFUL))
    assert [aggregated(), aggregated()] == [11, 22]
    run_afresh(plugins)
    assert [aggregated(), aggregated()] == [11, 22]


def test_a_fresh_start_runs_the_code_that_was_loaded_whatever_the_files_say_now(plugin):
    helper, lazy = plugin("calls = []\n", "helper.py"), plugin("X = 5\n", "helped_later.py")
    file = plugin(STATEFUL)
    sent = pickle.loads(pickle.dumps(loaded(file)))
    digest = aggregation.rules.digest("count")
    lazy.write_text("X = 6\n")
    file.unlink()
    helper.unlink()
    run_afresh(sent)
    assert aggregated() == 11
    assert sys.modules[aggregation.rules["count"].function.__module__].later() == 5
    assert aggregation.rules.digest("count") == digest


def test_a_fresh_start_forgets_other_plugins(plugin):
    [mine] = loaded(plugin(RULE))
    load_plugin(plugin(RULE.replace('"first"', '"other"'), "theirs/mine.py"))
    run_afresh([mine])
    assert "first" in aggregation.rules
    assert "other" not in aggregation.rules


def test_a_folder_that_a_plugin_adds_to_pythons_path_is_there_once(plugin, tmp_path):
    plugins = loaded(plugin(ELSEWHERE.format(folder=str(tmp_path)) + RULE))
    for _ in range(3):
        run_afresh(plugins)
    assert sys.path.count(str(tmp_path)) == 1


# ---- several plug-ins ---------------------------------------------------------------------------


def test_plugins_with_one_file_name_are_two(plugin):
    files = [plugin(RULE.replace('"first"', f'"{name}"'), f"{name}/rule.py") for name in "ac"]
    assert len(loaded(*files, files[0])) == 2
    assert {"a", "c"} <= set(aggregation.rules)


def test_two_modules_of_one_name_are_refused_and_copies_are_not(plugin):
    for folder, value in (("a", 1), ("b", 1), ("c", 2)):
        plugin(f"X = {value}\n", f"{folder}/utils.py")
        text = f"import utils\n{RULE}".replace('"first"', f'"{folder}"')
        file = plugin(text, f"{folder}/rule.py")
        if folder != "c":
            load_plugin(file)
    with pytest.raises(BadInput, match=r"c/utils\.py.*a/utils\.py.*rename one"):
        load_plugin(file)
    assert {"a", "b", "c"} & set(aggregation.rules) == {"a", "b"}


def test_what_a_plugin_imports_of_ours_first_stays_ours(plugin):
    file = plugin(RULE + "\nfrom fltrust_repro.oblivious_attacks import by_all\n")
    code = (
        "import fltrust_repro as fl; from fltrust_repro.plugins import run_afresh\n"
        f"fl.load_plugin({str(file)!r})\n"
        "print(fl.Setting(rule='krum', attack='alie').plugin_key() == '')\n"
        "print(fl.Setting(rule='first').plugin_key() == '')\n"
        "run_afresh([]); print('alie' in fl.attacks, 'first' in fl.rules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True", "False"]


def test_a_plugin_of_every_kind_is_forgotten_in_every_registry(plugin):
    load_plugin(
        plugin(
            HEAD + "rule('x')(mean)\nattacks.add('x', Attack('x'))\n"
            "models.add('x', Model('x', abs, None))\ndefenses.add('x', Defense('x', None, 0))\n"
            "datasets.dataset('x')(abs)\n"
        )
    )
    every = (aggregation.rules, attacks.attacks, models.models, defenses.defenses, datasets)
    assert all("x" in kind for kind in every)
    run_afresh([])
    assert not any("x" in kind for kind in every)
    assert loaded() == ()


# ---- plug-ins that pip packages bring -----------------------------------------------------------

PACKAGE = {
    "geo/__init__.py": "WEIGHT = 1\n",
    "geo/memory.py": "calls = []\n",
    "geo/rules.py": """
from fltrust_repro.aggregation import rule
from geo import WEIGHT, memory

@rule("geo")
def geo(updates):
    '''Geometric median, nearly.'''
    memory.calls.append(1)
    return updates[0] * 0 + WEIGHT * len(memory.calls)
""",
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts a distribution where Python finds it, as pip does."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(name="geo-rules", version="1.0", module="geo.rules", **texts):
        for file, text in {**PACKAGE, **texts}.items():
            (site / file).parent.mkdir(exist_ok=True)
            (site / file).write_text(text, encoding="utf-8")
        info = site / f"{name.replace('-', '_')}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[fltrust_repro.plugins]\nof-{name} = {module}\n")
        run_afresh([])  # as in a new process
        return site

    yield install
    run_afresh([])


def test_a_name_of_an_installed_package_is_found_when_it_is_asked_for(installed):
    installed()
    assert "geo" not in sys.modules
    assert Setting(rule="geo").rule == "geo"
    assert aggregation.rules["geo"](np.ones((3, 2)), c=0).tolist() == [1, 1]
    run_afresh([])
    assert "geo" in list(aggregation.rules)
    with pytest.raises(BadInput, match=r"choose one of mean, .*, geo\.$"):
        aggregation.rules["xyzzy"]


def test_an_installed_plugin_counts_by_name_version_and_text(installed):
    def key(**changed):
        installed(**changed)
        return Setting(rule="geo").plugin_key()

    first = key()
    assert first
    others = {
        key(version="1.1"),
        key(**{"geo/__init__.py": "WEIGHT = 2\n"}),
        key(**{"geo/memory.py": "calls = [1]\n"}),
        key(**{"geo/rules.py": PACKAGE["geo/rules.py"] + "# edited\n"}),
    }
    assert len(others | {first}) == 5
    assert key() == first


def test_an_installed_plugin_starts_afresh_and_travels_where_it_is_used(installed):
    site = installed()
    used = {aggregation.rules.owner("geo"), aggregation.rules.owner("krum")}
    assert aggregation.rules.owner("geo") is None
    assert "geo" in aggregation.rules
    used = {aggregation.rules.owner("geo")}
    assert plugins_for(()) == ()
    [sent] = pickle.loads(pickle.dumps(plugins_for(used)))
    digest = aggregation.rules.digest("geo")
    for file in PACKAGE:  # another machine may not have it
        (site / file).unlink()
    for _ in range(2):
        run_afresh([sent])
        assert aggregation.rules["geo"](np.ones((3, 1)), c=0).tolist() == [1]
        assert aggregation.rules["geo"](np.ones((3, 1)), c=0).tolist() == [2]
    assert aggregation.rules.digest("geo") == digest


def test_a_package_that_a_script_imported_by_itself_is_the_installed_one(installed):
    installed()
    own = importlib.import_module("geo.rules")
    assert aggregation.rules["geo"].function is own.geo.__wrapped__
    first = Setting(rule="geo").plugin_key()
    installed(version="2")
    assert Setting(rule="geo").plugin_key() not in ("", first)
    installed()
    assert Setting(rule="geo").plugin_key() == first
    assert len(plugins_for({aggregation.rules.owner("geo")})) == 1


@pytest.mark.parametrize(
    ("texts", "module", "problem"),
    [
        ({"bad.py": "1 / 0"}, "bad", r"ZeroDivisionError: .*bad\.py, line 1\)"),
        ({"bad.py": "import sys; sys.exit()"}, "bad", "SystemExit"),
        ({"bad.py": "def ("}, "bad:rules", "SyntaxError"),
        ({"bad.py": PACKAGE["geo/rules.py"].replace('"geo"', '"krum"')}, "bad", "'krum' exists"),
        ({}, "not_there.rules", "there is no module 'not_there.rules'"),
        ({}, "", "there is no module ''"),
    ],
)
def test_a_broken_package_is_named_and_stops_nobody_else(installed, texts, module, problem):
    installed("bad-rules", "0.1", module, **texts)
    installed()
    assert Setting(rule="geo").rule == "geo"
    [said] = load_installed()
    assert re.match(rf"plug-in 'of-bad-rules' of bad-rules 0\.1 does not load: .*{problem}", said)
    with pytest.raises(BadInput, match=r"unknown rule 'xyzzy'.*bad-rules 0\.1 does not load"):
        aggregation.rules["xyzzy"]


@pytest.mark.slow
def test_commands_take_what_packages_bring_and_say_which_are_broken(installed, tmp_path):
    installed("bad-rules", "0.1", "bad", **{"bad.py": "1 / 0"})
    path = os.pathsep.join([str(installed()), *filter(None, sys.path)])

    def command(*words):
        return subprocess.run(
            [sys.executable, "-m", "fltrust_repro", *words],
            env={**os.environ, "PYTHONPATH": path}, text=True, capture_output=True, check=True,
        )  # fmt: skip

    listed = command("list")
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines()]
    assert ["geo", "Geometric median, nearly."] in lines
    assert listed.stderr.count("bad-rules 0.1 does not load: ZeroDivisionError") == 1
    options = "--dataset digits --rule geo --workers 4 --compromised 1 --iterations 3 --trials 3"
    where = ("--store", str(tmp_path / "trials.sqlite"), "--json")
    found = [
        json.loads(command("run", *options.split(), "--jobs", str(jobs), *where).stdout)["trials"]
        for jobs in (1, 0)
    ]
    assert found[0] == found[1]
    assert [trial["seed"] for trial in found[0]] == [0, 1, 2]


# ---- what a script or notebook registers itself -------------------------------------------------

CELL = """
from fltrust_repro.aggregation import rule

FACTOR = 0.5

def scaled(row):
    return row * FACTOR

@rule("mine")
def mine(updates):
    return scaled(updates.mean(axis=0))
"""


@pytest.fixture
def cell(tmp_path):
    """Runs cells as a notebook does: each is a text of its own, all share one module."""
    notebook = {"__name__": "__main__"}

    def run(text):
        name = f"<cell {len(linecache.cache)}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), notebook)
        return Setting(rule="mine").plugin_key()

    yield run
    aggregation.rules.remove("mine")


def test_a_cell_may_be_run_again_and_counts_by_what_it_says(cell):
    first = cell(CELL)
    assert first
    assert cell(CELL) == first
    assert cell("# another cell\n") == first
    edits = [
        CELL.replace("mean(", "max("),
        CELL.replace("row * FACTOR", "row * FACTOR + 1"),
        CELL.replace("0.5", "0.25"),
        CELL + "rule('mine')(lambda u: u[0])\n",
        CELL + "rule('mine')(lambda u: u[1])\n",
        CELL + "import functools\nrule('mine')(functools.partial(lambda k, u: u[k], 1))\n",
        CELL + "import functools\nrule('mine')(functools.partial(lambda k, u: u[k], 2))\n",
    ]
    keys = [cell(edited) for edited in edits]
    assert len({first, *keys}) == len(edits) + 1
    assert [cell(edited) for edited in edits] == keys
    assert aggregation.rules["mine"]([[1], [3], [5]], c=0).tolist() == [5]
    assert cell(CELL) == first
    assert aggregation.rules["mine"]([[1], [3]], c=0).tolist() == [1]


MORE = """
import dataclasses
import numpy as np
from fltrust_repro.aggregation import rule

class Base:
    scale = 1

@dataclasses.dataclass
class Scaled(Base):
    factor: float = 2.0
    weights = np.ones(3)

    def __call__(self, updates):
        return updates[0] * self.factor * self.scale * self.weights[0]

rule("mine")(Scaled())
"""


@pytest.mark.parametrize(
    "edit",
    [
        ("scale = 1", "scale = 2"),
        ("= 2.0", "= 3.0"),
        ("ones", "zeros"),
        ("updates[0]", "updates[1]"),
    ],
)
def test_an_object_counts_by_its_class_and_its_values(cell, edit):
    first = cell(MORE)
    assert cell(MORE.replace(*edit)) not in ("", first)
    assert cell(MORE) == first


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("range(1)", "range(9)"), ("slice(1)", "slice(2)"), ("bytearray(b'a')", "bytearray(b'b')"),
        ("fractions.Fraction(1, 2)", "fractions.Fraction(1, 3)"), ("[[1], 2]", "[[1, 2]]"),
        ("decimal.Decimal('0.1')", "decimal.Decimal('0.2')"), ("[A, A]", "[A]"),
        ("pathlib.Path('a')", "pathlib.Path('b')"), ("re.compile('a')", "re.compile('a', re.I)"),
        ("collections.deque([1])", "collections.deque([2])"), ("Slots(1)", "Slots(2)"),
        ("types.MappingProxyType({'a': 1})", "types.MappingProxyType({'a': 2})"),
        ("operator.itemgetter(0)", "operator.itemgetter(1)"), ("np.float32", "np.float64"),
    ],
)  # fmt: skip
def test_a_value_of_any_plain_kind_counts(cell, one, other):
    text = "import collections, decimal, fractions, operator, pathlib, re, types\n"
    text += "import numpy as np\nA = [1]\nclass Slots:\n    __slots__ = ('held',)\n"
    text += "    def __init__(self, held):\n        self.held = held\n"
    text += f"VALUE = {one}\n" + CELL.replace("row * FACTOR", "(row, VALUE)[0]")
    first = cell(text)
    assert cell(text.replace(f"VALUE = {one}", f"VALUE = {other}")) not in ("", first)
    assert cell(text) == first


def test_a_global_that_a_class_inside_a_function_reads_counts(cell):
    inner = "class Of:\n        held = FACTOR\n    return row * Of.held"
    text = CELL.replace("return row * FACTOR", inner)
    first = cell(text)
    assert cell(text.replace("0.5", "0.25")) not in ("", first)


def test_settings_in_a_namespace_count(cell):
    text = "from types import SimpleNamespace\nof = SimpleNamespace(scale=1.0)\n"
    text += CELL.replace("* FACTOR", "* of.scale")
    first = cell(text)
    assert cell(text.replace("1.0", "0.5")) not in ("", first)
    assert cell(text) == first


@pytest.mark.parametrize("line", ["import deep_one", "from deep_one import halved"])
def test_a_module_counts_with_those_of_the_users_that_it_imports(cell, tmp_path, monkeypatch, line):
    monkeypatch.syspath_prepend(tmp_path)
    call = "deep_one.halved" if line.startswith("import") else "halved"
    (tmp_path / "helps_one.py").write_text(f"{line}\ndef f(row):\n    return {call}(row)\n")
    (tmp_path / "deep_one.py").write_text("def halved(row):\n    return row / 2\n")
    text = "import helps_one\n" + CELL.replace("row * FACTOR", "helps_one.f(row)")
    try:
        first = cell(text)
        (tmp_path / "deep_one.py").write_text("def halved(row):\n    return row / 4\n")
        aggregation.rules.owner("mine").refresh()
        assert Setting(rule="mine").plugin_key() not in ("", first)
    finally:
        for name in ("helps_one", "deep_one"):
            sys.modules.pop(name, None)


def test_values_are_looked_at_when_a_run_begins_and_not_meanwhile(cell):
    first = cell(CELL)
    assert cell("FACTOR = 0.25\n") == first
    aggregation.rules.owner("mine").refresh()
    assert Setting(rule="mine").plugin_key() != first


def test_what_has_no_text_is_refused_where_a_trial_would_be_named(cell):
    exec(CELL.replace("mean", "min"), {"__name__": "__main__"})
    assert aggregation.rules["mine"]([[2], [6]], c=0).tolist() == [1]
    with pytest.raises(BadInput, match=r"rule 'mine' has no text .* put it into a file"):
        Setting(rule="mine").plugin_key()


def test_a_script_replaces_nothing_but_its_own(cell, plugin):
    with pytest.raises(BadInput, match="'krum' exists already"):
        cell(CELL.replace('"mine"', '"krum"'))
    load_plugin(plugin(RULE))
    with pytest.raises(BadInput, match="'first' exists already"):
        cell(CELL.replace('"mine"', '"first"'))
    assert aggregation.rules.digest("krum") is None


def test_a_module_that_a_plugin_loads_by_its_path_counts(plugin):
    text = """
import importlib.util, pathlib, sys
path = pathlib.Path(__file__).with_name("by_path.py")
spec = importlib.util.spec_from_file_location("by_path", path)
HELP = sys.modules["by_path"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(HELP)
HELP = HELP.X
"""
    keys = []
    for value in (1, 2, 1):
        plugin(f"X = {value}\n", "by_path.py")
        load_plugin(plugin(text + USES))
        keys.append(Setting(rule="first").plugin_key())
    assert keys[0] == keys[2] != keys[1]
