"""The package as a whole: its own names, and what `pip install` makes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fltrust_repro as fl

ROOT = Path(__file__).parent.parent
HEAVY = {"numpy", "mxnet", "pandas", "numba", "scipy", "rich", "click", "matplotlib", "sklearn"}


def python(program: str, *words: str, folder: Path | None = None, **variables: str) -> str:
    """What a program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300,
        cwd=folder, env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_name_of_the_package_is_there_and_loads_late():
    for name in fl.__all__:
        assert getattr(fl, name) is not None
        assert name in dir(fl)
    loaded = python("import sys, fltrust_repro; print(*sys.modules)").split()
    assert HEAVY.isdisjoint(loaded)
    assert {name for name in loaded if name.startswith("fltrust_repro.")} == {
        "fltrust_repro.errors",
        "fltrust_repro.registry",
        "fltrust_repro.words",
    }
    with pytest.raises(AttributeError, match="no attribute 'krumm'"):
        _ = fl.krumm


ORDERS = (
    "import fltrust_repro as fl; found = fl.NAME; import fltrust_repro.NAME as module",
    "import fltrust_repro.NAME as module; import fltrust_repro as fl; found = fl.NAME",
    "from fltrust_repro import NAME as module; import fltrust_repro as fl; found = fl.NAME",
    "from fltrust_repro.NAME import NAME as found; from fltrust_repro import NAME as module",
)
LOOK = """
from collections.abc import Mapping
from types import ModuleType
assert isinstance(module, ModuleType) and module.__name__ == "fltrust_repro.NAME"
assert isinstance(module, Mapping) and isinstance(found, Mapping)
registry = module.NAME
assert type(registry).__name__ == "Registry"
assert list(found) == list(module) == list(registry) and len(found) == len(registry) > 1
name = list(registry)[0]
assert found[name] is module[name] is registry[name] and name in found
assert found.get("no such name") is None
assert module == module and module in {module} and module != dict(registry)
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["attacks", "datasets", "defenses", "models"])
def test_a_room_named_as_its_registry_is_both_in_any_order(order, name):
    python((order + LOOK).replace("NAME", name))


def test_a_registry_says_what_there_is():
    with pytest.raises(fl.BadInput, match=r"unknown attack 'krumm'.* Did you mean 'krum'"):
        fl.attacks["krumm"]
    assert fl.attacks["krum"] is fl.krum_attack


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel holds."""
    folder = tmp_path_factory.mktemp("installed")
    build = ("build", "--build-base", str(folder / "build"), "--build-lib", str(folder / "lib"))
    about = ("install_egg_info", "--install-dir", str(folder / "lib"))
    base = ("egg_info", "--egg-base", str(folder))
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *base, *build, *about],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "lib"


COMMAND = """
import sys
from importlib.metadata import distribution
import fltrust_repro
assert fltrust_repro.__file__.startswith(sys.argv.pop(1)), fltrust_repro.__file__
[command] = [one for one in distribution("fltrust_repro").entry_points
             if one.group == "console_scripts"]
assert command.name == "fltrust-repro"
sys.argv[0] = command.name
command.load()()
"""


def test_what_is_installed_is_the_package_with_the_papers_experiments(installed):
    package = installed / "fltrust_repro"
    modules = {file.name for file in (ROOT / "fltrust_repro").glob("*.*")}
    assert {file.name for file in package.glob("*.*")} == modules
    for pattern, folder in (("*.toml", "."), ("*.trials.csv*", "results")):
        ours = {file.name for file in (ROOT / "experiments" / folder).glob(pattern)}
        assert {file.name for file in (package / "paper" / folder).iterdir()} - {"results"} == ours
        assert ours


@pytest.mark.slow
def test_an_installed_program_works_in_any_folder(installed, tmp_path):
    def command(*words: str) -> str:
        path = {"PYTHONPATH": str(installed)}
        return python(COMMAND, str(installed), *words, folder=tmp_path, **path)

    assert command("--version") == f"fltrust-repro, version {fl.__version__}\n"
    assert re.search(r"^  table2a +Table 2 \(a\)", command("list"), re.MULTILINE)
    results = str(installed / "fltrust_repro" / "paper" / "results")
    table = command("reproduce", "table2a", "--seed", "10", "--out", results)
    assert re.search(r"^krum +.*0\.\d", table, re.MULTILINE)
    assert list(tmp_path.iterdir()) != []  # the store


def test_completion_of_the_shell_is_clicks_own(installed, tmp_path):
    typed = {"COMP_WORDS": "fltrust-repro repr", "COMP_CWORD": "1", "PYTHONPATH": str(installed)}
    asked = {"_FLTRUST_REPRO_COMPLETE": "bash_complete", **typed}
    assert python(COMMAND, str(installed), folder=tmp_path, **asked) == "plain,reproduce\n"


def test_a_type_checker_knows_the_names(tmp_path):
    """With the cache of `mypy` in the repository, or else it checks the package once more."""
    root = Path(fl.__file__).parents[1]
    cached = [f"--config-file={root / 'pyproject.toml'}", f"--cache-dir={root / '.mypy_cache'}"]
    names = ("run", "run_trial", "Setting", "Readings", "rules", "krum_attack", "load_experiment")
    script = tmp_path / "uses.py"
    lines = ["import fltrust_repro as fl", *(f"reveal_type(fl.{name})" for name in names)]
    script.write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *cached, "uses.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "MYPYPATH": str(root)},
    )  # fmt: skip
    told = done.stdout
    revealed = [line.partition("Revealed type is ")[2] for line in told.splitlines()[:-1]]
    assert len(revealed) == len(names), told
    assert '"Any"' not in revealed
