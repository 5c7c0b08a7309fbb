"""Machine code is never stale, and what happens to its files costs no more than a compilation."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import pytest

from fltrust_repro import compiled as module

PACKAGE = Path(module.__file__).parent
NEW, KEPT = (21.0, 0), (21.0, 1)
KEPT_IN_MEMORY = (module._sources, module.version, module.folder)

# --- what machine code is known by, in processes of its own

# A compiled function that calls one of another file, which reads a number from a third.
MODULES = {
    "third": "FACTOR = 2.0",
    "callee": "\n".join(
        [
            "from fltrust_repro.compiled import compiled",
            "from fltrust_repro.third import FACTOR",
            "@compiled",
            "def scaled(x):",
            "    return FACTOR * x",
        ]
    ),
    "caller": "\n".join(
        [
            "from fltrust_repro import callee",
            "from fltrust_repro.compiled import compiled",
            "@compiled",
            "def result(x):",
            "    return callee.scaled(x) + 1.0",
        ]
    ),
}
SHOW = "print(result(10.0), sum(result.dispatcher.stats.cache_hits.values()))"


class Copy:
    """What the decorator needs of the package, with the modules above, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.package = folder / "fltrust_repro"
        self.package.mkdir()
        for name in ("__init__", "compiled", "errors", "files", "imports", "registry"):
            shutil.copy(PACKAGE / f"{name}.py", self.package)
        for name, text in MODULES.items():
            (self.package / f"{name}.py").write_text(text)

    def run(self, first="", show=SHOW):
        """Value and hits of a new process that runs `first`, imports the function and calls it."""
        done = subprocess.run(
            [sys.executable, "-c", f"{first}\nfrom fltrust_repro.caller import result\n{show}"],
            capture_output=True, text=True, cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "NUMBA_CACHE_DIR": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        value, hits = done.stdout.split()
        return float(value), int(hits)

    def edit(self, name, old, new):
        """Change a module's text."""
        path = self.package / f"{name}.py"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


@pytest.mark.slow
def test_an_edit_of_any_file_that_counts_is_seen(copy):
    assert copy.run() == NEW
    copy.edit("third", "2.0", "3.0")
    assert copy.run() == (31.0, 0)
    copy.edit("callee", "FACTOR * x", "FACTOR * x * x")
    assert copy.run() == (301.0, 0)
    copy.edit("callee", "FACTOR * x * x", "FACTOR * x")
    copy.edit("third", "3.0", "2.0")
    assert copy.run() == KEPT


@pytest.mark.slow
def test_an_edit_while_a_process_runs_belongs_to_the_next(copy):
    edit = "from pathlib import Path; p = Path('fltrust_repro/callee.py')"
    edit += "; p.write_text(p.read_text().replace('FACTOR * x', 'FACTOR * x * x'))\n"
    assert copy.run(show=edit + SHOW) == NEW
    assert copy.run() == (201.0, 0)


def test_the_users_numba_stays_as_it_is(copy):
    (copy.folder / "own.py").write_text(
        "from numba import njit\n\n@njit(cache=True)\ndef own(x):\n    return x\n"
    )
    settings = "({k: repr(v) for k, v in vars(numba.config).items()}, dict(os.environ))"
    first = f"import numba, os; before = {settings}"
    after = f"assert before == {settings}\nfrom own import own; own(1)\n"
    assert copy.run(first, after + SHOW) == NEW
    assert list((copy.folder / "__pycache__").glob("own.own-*.nbi"))


def test_every_compiled_function_of_the_package_goes_this_way():
    for path in PACKAGE.glob("*.py"):
        if path.name != "compiled.py":
            assert not re.search(r"\bn?jit\b", path.read_text()), path.name


# --- where it is kept


class Package:
    """A package with one compiled function, which each call imports anew as a new process would."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.file = folder / "package" / "alone.py"
        self.beside = folder / "package" / "__pycache__"
        self.temporary = folder / "temporary"
        self.private = self.temporary / f"package-{os.getuid()}"
        self.file.parent.mkdir()
        self.temporary.mkdir()
        self.file.write_text("@compiled\ndef result(x):\n    return 2.0 * x + 1.0\n")
        monkeypatch.setattr(module, "_PACKAGE", self.file.parent)
        monkeypatch.setattr(module, "__file__", str(self.file))
        monkeypatch.setattr(tempfile, "tempdir", str(self.temporary))
        monkeypatch.setattr(numba.config, "CACHE_DIR", "")
        monkeypatch.setenv("HOME", str(folder / "home"))
        monkeypatch.delenv("XDG_CACHE_HOME")
        self._monkeypatch = monkeypatch

    def run(self):
        """Value, and how often machine code was found."""
        for kept in KEPT_IN_MEMORY:
            kept.cache_clear()
        names = {"compiled": module.compiled, "__name__": "alone"}
        exec(compile(self.file.read_text(), str(self.file), "exec"), names)
        return names["result"](10.0), sum(names["result"].dispatcher.stats.cache_hits.values())

    def close(self):
        """Leave no folder that can be written but the temporary one."""
        self.beside.write_text("a file, into which nobody can write")
        self._monkeypatch.setenv("HOME", "/proc/none")

    def files(self):
        """All that is kept, anywhere."""
        return [path for path in self.folder.rglob("machine-code/*/*") if path.is_file()]


@pytest.fixture
def package(tmp_path, monkeypatch):
    yield Package(tmp_path, monkeypatch)
    for kept in KEPT_IN_MEMORY:
        kept.cache_clear()


def test_machine_code_lies_beside_the_byte_code(package):
    assert package.run() == NEW
    assert package.run() == KEPT
    [file] = package.files()
    assert package.beside in file.parents


def test_of_a_package_that_cannot_be_written_it_lies_in_the_home(package):
    package.beside.write_text("a file, into which nobody can write")
    assert package.run() == NEW
    assert package.run() == KEPT
    [file] = package.files()
    assert package.folder / "home" in file.parents


def test_without_a_home_too_it_lies_in_a_private_temporary_folder(package):
    package.close()
    assert package.run() == NEW
    assert package.run() == KEPT
    [file] = package.files()
    assert package.private in file.parents
    assert package.private.stat().st_mode & 0o777 == 0o700


def test_a_temporary_folder_that_others_could_write_is_not_trusted(package):
    package.close()
    package.private.mkdir()
    package.private.chmod(0o777)
    assert package.run() == package.run() == NEW
    package.private.rmdir()
    elsewhere = package.folder / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    package.private.symlink_to(elsewhere)
    assert package.run() == package.run() == NEW
    package.private.unlink()
    package.private.write_text("")
    assert package.run() == package.run() == NEW
    assert not package.files()


def test_where_no_folder_can_be_written(package, monkeypatch):
    package.close()
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    assert package.run() == package.run() == NEW


def test_a_user_unknown_to_the_system_gets_no_folder_of_that_name(package, monkeypatch):
    package.close()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(package.folder)
    assert package.run() == NEW
    assert not [path for path in package.folder.rglob("*") if path.name.startswith("~")]


@pytest.mark.parametrize("usable", [True, False])
def test_numbas_own_variable_chooses_the_folder(package, monkeypatch, usable):
    chosen = package.folder / "chosen"
    if not usable:
        chosen.write_text("a file, into which nobody can write")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(chosen))
    assert package.run() == NEW
    assert package.run() == KEPT
    [file] = package.files()
    assert (chosen if usable else package.beside) in file.parents


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:16],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: bytes(len(content)),
        lambda content: content[:-1000] + bytes(1000),
    ],
    ids=["empty", "a few bytes", "half", "all but one byte", "zeros", "zeros at the end"],
)
def test_a_damaged_file_mends_itself(package, damage):
    assert package.run() == NEW
    [file] = package.files()
    file.write_bytes(damage(file.read_bytes()))
    assert package.run() == NEW
    assert package.run() == KEPT


def test_a_folder_in_a_files_place_costs_a_compilation(package):
    assert package.run() == NEW
    [file] = package.files()
    file.unlink()
    file.mkdir()
    assert package.run() == package.run() == NEW


def test_a_full_disk_costs_a_compilation(package):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        full = package.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full == NEW
    assert not package.files()
    assert package.run() == NEW
    assert package.run() == KEPT


def test_old_versions_make_room(package):
    folders = [package.beside / "machine-code" / f"alone-{k:016x}" for k in range(9)]
    for k, folder in enumerate(folders):
        folder.mkdir(parents=True)
        os.utime(folder, (k, k))
    others = folder.with_name("alone-too-0123456789abcdef"), folder.with_name("alone-notes")
    for other in others:
        other.mkdir()
    assert package.run() == NEW
    [file] = package.files()
    left = set(file.parents[1].iterdir())
    assert left == {file.parent, *folders[-3:], *others}


def test_a_users_function_is_compiled_and_not_kept(package):
    here = module.compiled(lambda x: 2.0 * x, fastmath=True)
    assert here(3.0) == 6.0
    assert here.dispatcher.targetoptions["fastmath"]
    assert not package.files()


def test_aligned_arrays_begin_with_a_line_of_the_cache():
    kept = [module.aligned(rows, 3) for rows in range(1, 40)]
    assert {array.ctypes.data % 64 for array in kept} == {0}
    assert [array.shape for array in kept] == [(rows, 3) for rows in range(1, 40)]


def test_a_package_without_sources_is_compiled(package, monkeypatch):
    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(module.Path, "read_bytes", absent)
    assert package.run() == package.run() == NEW


@pytest.mark.long
def test_a_trial_runs_where_nothing_can_be_written(tmp_path):
    folder = tmp_path / "fltrust_repro"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "__pycache__").write_text("a file, into which nobody can write")
    closed = {"HOME": "/proc/none", "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["--dataset", "digits", "--rule", "mean", "--workers", "5", "--compromised", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "fltrust_repro", "run", *options, "--iterations", "2"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **closed},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
