"""`status`, `show`, `export` and `import` as a user types them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace

import house
import pandas as pd
import pytest
from invoked import ended
from PIL import Image

from fltrust_repro import experiments
from fltrust_repro.aggregation import rules
from fltrust_repro.archive import Failure
from fltrust_repro.arena_protocols import protocols, table_of
from fltrust_repro.experiments import load_experiment
from fltrust_repro.settings import Setting
from fltrust_repro.store import Store
from fltrust_repro.training import TrialResult
from fltrust_repro.trial_files import write_csv
from fltrust_repro.trials import Trial, TrialName, protocol_of

CELLS = {(cell.row, cell.column): cell for cell in load_experiment("table2a").cells}
FULL = CELLS["krum", "full"].setting
NONE = CELLS["krum", "no-attack"].setting


def trial(setting: Setting, seed: int, error_rate: float) -> Trial:
    curve = [(10, 0.9, 2.3), (500, error_rate, 0.25)]
    result = TrialResult(error_rate, error_rate, 500, False, 7.2, curve, 0, {"lambda not found": 2})
    now = "2020-01-01T00:00:00+00:00"
    return Trial(setting, seed, result, "cpu", "python 3.11", now, protocol_of(setting))


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    """Run a command on a store and a folder of results of the test's own; nothing is published."""
    monkeypatch.setattr(experiments, "published", lambda: tmp_path / "published")
    where = ["--store", str(tmp_path / "s.sqlite"), "--out", str(tmp_path / "out")]

    def run(*arguments: object, out: bool = True) -> tuple[int, str, str]:
        command, *others = arguments
        return ended(capsys, command, *(where if out else where[:2]), *others)

    return run


@pytest.fixture
def filled(tmp_path):
    """Two trials in the store, one of them and a third in the results, and a failed one."""
    with Store(tmp_path / "s.sqlite") as store:
        store.add(trial(FULL, 0, 0.8), trial(FULL, 1, 0.6))
        store.add_failure(Failure(TrialName.of(NONE, 4), "OSError: no", "Traceback: all of it"))
    write_csv(tmp_path / "out" / "table2a.trials.csv", [trial(FULL, 1, 0.6), trial(NONE, 0, 0.1)])


@pytest.mark.parametrize(
    "command", ["trials", "status", "export all.csv", "show table2a krum full --seed 0", "report"]
)
def test_what_reads_trials_does_not_need_the_folder_of_data(
    call, filled, command, tmp_path, monkeypatch
):
    monkeypatch.setenv("FLTRUST_DATA", "nowhere")
    monkeypatch.chdir(tmp_path)
    code, _, errors = call(*command.split(), out="export" not in command)
    assert (code, errors) == (0, "")


def line_of(text: str, word: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(word)).split()


def test_status_counts_the_trials_in_store_and_results_once_each(call, filled):
    code, text, _ = call("status", "--trials", "2", "--seed", "0")
    assert code == 0
    missing_hours = (2 * 15 - 3) * 7.2 / 3600
    assert line_of(text, "table2a") == ["table2a", "3", "30", "0", "1", f"{missing_hours:.1f}"]
    assert line_of(text, "table7b")[:3] == ["table7b", "0", "6"]
    assert "table2a krum no-attack" in text
    assert "seed 4: OSError: no" in text


def test_status_of_an_experiment_shows_its_cells(call, filled):
    code, text, _ = call("status", "table2a", "--seed", "0")
    assert code == 0
    assert line_of(text, "krum") == ["krum", "1,", "0.100", "0", "0", "0", "2,", "0.700"]


def test_status_counts_the_seeds_that_the_next_reproduce_would_use(call, tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.add(*(trial(FULL, seed, 0.8) for seed in (0, 9, 10, 11, 12, 60)))
    for words, done in (([], "3"), (["--trials", 2], "2"), (["--seed", 0, "--trials", 11], "3")):
        assert line_of(call("status", *words)[1], "table2a")[1] == done


def test_nothing_left_to_do_takes_no_time_though_it_is_not_known_how_long_a_trial_takes(
    call, tmp_path, monkeypatch
):
    experiment = replace(load_experiment("table7b"), seconds=None)
    monkeypatch.setattr("fltrust_repro.fidelity.all_experiments", lambda: [experiment])
    with Store(tmp_path / "s.sqlite") as store:
        store.add(*(trial(setting, 10, 0.2) for setting in experiment.settings))
    assert line_of(call("status", "--trials", 1)[1], "table7b")[-1] == "0.0"
    assert line_of(call("status", "--seed", 70)[1], "table7b")[-1] == "0.3"


def test_what_is_published_counts_in_status_and_report_and_can_be_shown(call, tmp_path):
    write_csv(tmp_path / "published" / "any.trials.csv", [trial(FULL, s, 0.8) for s in (10, 11)])
    assert line_of(call("status")[1], "table2a")[1] == "2"
    assert "error rate 0.8000" in call("show", "table2a", "krum", "full", "--seed", 10)[1]
    code, text, _ = call("report")
    assert code == 0
    assert text.startswith("2 of the ")  # Table 4 has that cell, too
    out = tmp_path / "out"
    assert text.splitlines()[-1].startswith(f"Wrote {out / 'fidelity.md'}, .csv; {out}")
    assert [path.name for path in (tmp_path / "published").iterdir()] == ["any.trials.csv"]


def test_status_makes_no_file_where_there_is_none(call, tmp_path):
    code, text, _ = call("status", "table7b", "table2a")
    assert code == 0
    assert "Table 7 (b)" in text
    assert list(tmp_path.iterdir()) == []


def test_show_prints_a_curve_by_place_or_by_setting(call, filled, tmp_path):
    code, text, _ = call("show", "table2a", "krum", "full", "--seed", 1)
    assert code == 0
    assert line_of(text, "seed 1")[:5] == ["seed", "1,", "error", "rate", "0.6000,"]
    assert "500        0.6000           0.2500" in text
    picture = tmp_path / "curve.png"
    by_setting = ["--rule", "krum", "--attack", "krum", "--seed", 1, "--picture", picture]
    assert call("show", *by_setting)[1] == text
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"


def test_a_shown_trial_is_drawn_beside_the_same_seed_without_attack_where_it_is_at_hand(
    call, filled, tmp_path
):
    before = (tmp_path / "s.sqlite").read_bytes()
    for seed, has_plain in ((0, True), (1, False)):
        picture = tmp_path / "curve.svg"
        assert call("show", "table2a", "krum", "full", "--seed", seed, "--picture", picture)[0] == 0
        drawn = picture.read_text(encoding="utf-8")
        assert (
            f"<!-- krum under krum (full), lr on mnist, m = 100, c = 20, p = 0.5; seed {seed}"
            in drawn
        )
        assert f"<!-- thin: seed {1 - seed} -->" in drawn
        assert drawn.count("<!-- without attack -->") == 2 * has_plain
    call("show", "table2a", "krum", "full", "--seed", 0, "--picture", picture, "--grey")
    assert "#d55e00" in drawn and "#d55e00" not in picture.read_text(encoding="utf-8")
    assert (tmp_path / "s.sqlite").read_bytes() == before  # nothing was run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table2a", "krum", "full", "--seed", 9], "of seeds there are 0 to 1"),
        (["table2a", "median", "full"], "of seeds there is none"),
        (["table2a", "krum"], "give EXPERIMENT ROW COLUMN"),
        (["table2a", "krum", "half"], "no column 'half'; choose one of no-attack, gaussian"),
        (["table2a", "krum", "no-attack", "--seed", 4], "seed 4 failed: OSError: no"),
        (["table2a", "krum", "full", "--picture", "curve.jpg"], "neither .png nor .svg"),
        (["table2a", "krum", "full", "--iterations", "5"], "--iterations is given, but table2a"),
    ],
)
def test_show_says_what_there_is_instead(call, filled, words, said):
    code, text, errors = call("show", *words)
    assert code == 2
    assert said in errors
    assert "Traceback" not in errors
    assert ("Traceback: all of it" in text) == ("failed" in said)


@pytest.mark.parametrize(("name", "read"), [("t.csv", pd.read_csv), ("t.parquet", pd.read_parquet)])
def test_export_writes_a_row_per_trial_and_a_column_per_field(call, filled, tmp_path, name, read):
    code, text, _ = call("export", tmp_path / name, out=False)
    assert code == 0
    assert text.startswith("2 trials")
    frame = read(tmp_path / name).sort_values("seed")
    assert list(frame["error_rate"]) == [0.8, 0.6]
    assert set(frame["knowledge"]) == {"full"}
    assert set(FULL.as_dict()) <= set(frame.columns)


def test_an_export_has_the_settings_iterations_and_those_done(call, tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        one = trial(FULL, 0, 0.9)
        store.add(replace(one, result=replace(one.result, iterations=7, diverged=True)))
    assert call("export", tmp_path / "t.csv", out=False)[0] == 0
    (row,) = pd.read_csv(tmp_path / "t.csv").to_dict("records")
    assert (row["iterations"], row["iterations_done"]) == (500, 7)


def test_an_export_that_cannot_be_written_names_the_file(call, filled, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = call("export", tmp_path / "file" / "t.csv", out=False)
    assert code == 2
    assert "give FILE a folder that you can write to" in errors
    assert "--out" not in errors


def test_export_refuses_another_kind_of_file(call, filled, tmp_path):
    code, _, errors = call("export", tmp_path / "t.xlsx", out=False)
    assert code == 2
    assert "neither .csv nor .parquet" in errors


def test_import_takes_stores_and_csv_files_and_keeps_what_was_there(call, filled, tmp_path):
    with Store(tmp_path / "other.sqlite") as other:
        other.add(trial(FULL, 0, 0.5), trial(FULL, 7, 0.4))
    files = [tmp_path / "other.sqlite", tmp_path / "out" / "table2a.trials.csv"]
    code, text, _ = call("import", *files, out=False)
    assert code == 0
    *lines, last = text.splitlines()
    assert lines == [f"{file}: 2 trials, 1 new" for file in files]
    assert last == f"Wrote {tmp_path / 's.sqlite'}"
    with Store(tmp_path / "s.sqlite") as store:
        found = [(t.seed, t.result.error_rate) for t in store.find(FULL)]
        assert found == [(0, 0.8), (1, 0.6), (7, 0.4)]
        assert len(store.find(NONE)) == 1


def test_import_refuses_what_is_no_file(call, tmp_path):
    code, _, errors = call("import", tmp_path / "nothing", out=False)
    assert code == 2
    assert "give a store or a .trials.csv file" in errors


# ---- what is left out is told -------------------------------------------------------------------


@pytest.fixture
def of_a_plugin(tmp_path, filled, monkeypatch):
    """A trial of a rule that is not loaded, in the store, in another and in a file."""
    with monkeypatch.context() as loaded:
        loaded.setattr(rules, "_entries", {**rules, "theirs": rules["mean"]})
        theirs = trial(replace(NONE, rule="theirs"), 0, 0.2)
        for name in ("s.sqlite", "other.sqlite"):
            with Store(tmp_path / name) as store:
                store.add(theirs)
        write_csv(tmp_path / "out" / "theirs.trials.csv", [theirs])


@pytest.mark.usefixtures("of_a_plugin")
@pytest.mark.parametrize(
    ("words", "file"),
    [(["export", "t.csv"], "s.sqlite"), (["import", "other.sqlite"], "other.sqlite"),
     (["import", "out/theirs.trials.csv"], "theirs.trials.csv"), (["status"], "s.sqlite"),
     (["report"], "theirs.trials.csv")],
)  # fmt: skip
def test_trials_of_plugins_that_are_not_loaded_are_told(call, tmp_path, monkeypatch, words, file):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*words, out=words[0] in ("status", "report"))
    assert code == 0
    assert (
        f"{file}: 1 trial left out, of plug-ins that are not loaded (unknown rule 'theirs')" in err
    )
    assert "--plugin" in err


@pytest.mark.parametrize("command", ["status", "report", "export", "import", "show"])
def test_what_is_no_trial_is_named_once_and_reaches_no_table(call, filled, tmp_path, command):
    path = tmp_path / "out" / "table2a.trials.csv"
    path.write_text(path.read_text().replace(",0.6,", ",7.531,", 1))
    bad = "UPDATE trials SET error_rate = 'high', curve = ? WHERE seed = 1"
    with contextlib.closing(sqlite3.connect(tmp_path / "s.sqlite")) as connection:
        connection.execute(bad, ("[" * 100_000,))
        connection.commit()
    words = {"export": [tmp_path / "t.csv"], "import": [path, tmp_path / "s.sqlite"],
             "show": ["table2a", "krum", "full"]}  # fmt: skip
    code, out, err = call(command, *words.get(command, []), out=command not in ("export", "import"))
    assert code == 0
    assert "7.531" not in out
    assert "high" not in out
    assert err.count("row 2: error_rate is 'high'; it must be a number from 0 to 1") == 1
    if command != "export":
        assert err.count("line 2: error_rate is '7.531'") == 1


def test_an_export_of_nothing_has_its_columns(call, tmp_path):
    Store(tmp_path / "s.sqlite").close()
    for name, read in (("t.csv", pd.read_csv), ("t.parquet", pd.read_parquet)):
        code, text, _ = call("export", tmp_path / name, out=False)
        assert code == 0
        assert text.startswith("0 trials")
        frame = read(tmp_path / name)
        assert len(frame) == 0
        assert {"key", "rule", "error_rate"} <= set(frame.columns)


@pytest.mark.parametrize(("name", "said"), [
    ("out/table2a.trials.csv", "has the name of files that are read back as results"),
    ("s.csv", "is the store itself"), ("all.csv", "does not exist; give --store one that does"),
])  # fmt: skip
def test_an_export_takes_the_place_of_no_trials(filled, capsys, tmp_path, name, said):
    file, store = tmp_path / name, tmp_path / "s.sqlite"
    if name == "s.csv":
        store = store.rename(file)
    elif name == "all.csv":
        file.write_text("mine")
        store = tmp_path / "another.sqlite"
    before = file.read_bytes()
    code, _, errors = ended(capsys, "export", file, "--store", store)
    assert code == 2
    assert said in errors
    assert file.read_bytes() == before


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t="])
def test_text_in_an_export_is_no_formula(call, tmp_path, begin):
    formula = begin.strip() + 'cmd("rm")'
    with Store(tmp_path / "s.sqlite") as store:
        one = replace(trial(FULL, 0, 0.8), device=begin + 'cmd("rm")')
        low = replace(one.result, curve=[(10, 0.9, -2.5)])
        store.add(replace(one, result=low))
    assert call("export", tmp_path / "t.csv", out=False)[0] == 0
    (row,) = pd.read_csv(tmp_path / "t.csv").to_dict("records")
    assert row["device"] == "'" + formula
    assert row["error_rate"] == 0.8
    assert row["rule"] == "krum"
    assert call("export", tmp_path / "t.parquet", out=False)[0] == 0
    assert list(pd.read_parquet(tmp_path / "t.parquet")["device"]) == [formula]


@pytest.mark.parametrize("command", ["status", "report", "show", "export", "import"])
def test_a_damaged_store_is_one_sentence(call, tmp_path, command):
    with Store(tmp_path / "s.sqlite") as store:
        store.add(*(trial(FULL, seed, 0.8) for seed in range(300)))
    content = bytearray((tmp_path / "s.sqlite").read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    (tmp_path / "damaged.sqlite").write_bytes(content)
    if command == "import":
        (tmp_path / "s.sqlite").unlink()
        code, out, err = call("import", tmp_path / "damaged.sqlite", out=False)
        assert code == 0
        assert " new\n" in out
        assert "malformed" in err
        return
    (tmp_path / "damaged.sqlite").replace(tmp_path / "s.sqlite")
    words = {"show": ["table2a", "krum", "full"], "export": [tmp_path / "t.csv"]}
    code, _, err = call(command, *words.get(command, []), out=command != "export")
    assert code == 2
    (line,) = err.splitlines()
    assert "s.sqlite' is damaged" in line
    assert "s.sqlite --store another.sqlite` saves the trials that can be read" in line


@pytest.mark.parametrize("command", ["status", "import"])
def test_a_store_in_memory_is_refused_since_its_trials_would_be_lost(
    call, filled, tmp_path, command
):
    words = [tmp_path / "out" / "table2a.trials.csv"] * (command == "import")
    code, text, errors = call(command, *words, "--store", ":memory:", out=command == "status")
    assert (code, text) == (2, "")
    assert errors == (
        "Error: --store is ':memory:', which is lost as the command ends; give it a file.\n"
    )


def test_looking_at_a_store_leaves_nothing_beside_it(call, filled, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    content = (tmp_path / "s.sqlite").read_bytes()
    assert call("status")[0] == 0
    assert call("show", "table2a", "krum", "full")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "s.sqlite").read_bytes() == content


def test_a_run_tells_of_a_trial_that_it_cannot_believe_and_runs_it_again(call, tmp_path):
    words = ["run", "--dataset", "digits", "--iterations", "2", "--jobs", "0"]
    assert call(*words, out=False)[0] == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "s.sqlite")) as connection:
        connection.execute("""UPDATE trials SET setting = replace(setting, '"krum"', '"median"')""")
        connection.commit()
    code, out, err = call(*words, out=False)
    assert code == 0
    assert "seed 0: error rate" in out
    assert "row 1: key is " in err
    assert "1/1 trials done" in err
    code, out, err = call(*words, out=False)
    assert "trials done" not in err


# ---- beyond the paper's experiments -------------------------------------------------------------


@pytest.mark.long
def test_status_of_all_tells_readings_the_arena_own_sweeps_and_what_else_there_is(call, tmp_path):
    reading = load_experiment("readings").settings[3]
    met = table_of(protocols()["P5"]).experiment.cells[0].setting
    other, another = (replace(NONE, non_iid=p) for p in (0.123, 0.456))
    with Store(tmp_path / "s.sqlite") as store:
        store.add(trial(FULL, 10, 0.8), *(trial(reading, seed, 0.2) for seed in (0, 1)))
        store.add(trial(met, 10, 0.1), *(trial(other, seed, 0.2) for seed in range(3)))
        store.add_failure(Failure(TrialName.of(other, 9), "OSError: no", ""))
    swept = [trial(another, seed, 0.1) for seed in (1, 2)]
    write_csv(tmp_path / "out" / "sweep-p.trials.csv", swept)
    code, text, errors = call("status", "--all")
    assert (code, errors) == (0, "")
    assert line_of(text, "table2a")[1:3] == ["1", "750"]
    assert line_of(text, "readings ")[1] == "3"  # which has that cell of table 2, too
    assert line_of(text, "arena-p5 ")[1] == "1"
    assert int(line_of(text, "arena-p5 ")[2]) > 1000
    assert line_of(text, "sweep-p") == ["sweep-p", "2", "0", "0"]
    assert "Other settings: 1, 3 trials; `trials` lists them." in text
    assert f"failed: setting {other.key()}, seed 9: OSError: no" in text


def test_a_failure_of_earlier_code_is_none_of_todays(call, filled, tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        old = TrialName.of(NONE, 5)._replace(protocol="0")
        store.add_failure(Failure(old, "ValueError: mended since", ""))
    for words in (("status",), ("status", "--all"), ("status", "table2a")):
        text = call(*words)[1]
        assert "seed 4: OSError: no" in text
        assert "mended since" not in text


def test_status_of_the_papers_experiments_leaves_the_others_out(call, filled):
    text = call("status")[1]
    assert "readings" not in text
    assert "Other settings" not in text
    code, _, errors = call("status", "table2a", "--all")
    assert code == 2
    assert "--all is given with table2a" in errors


# ---- a store that only may be read --------------------------------------------------------------

_RIGHTS = "-dac_override,-dac_read_search,-fowner"  # root's, to write where it may not
READER = ["setpriv", f"--inh-caps={_RIGHTS}", f"--bounding-set={_RIGHTS}"]
LOOK = """
import sys
from pathlib import Path
from fltrust_repro import experiments
from fltrust_repro.__main__ import commands
experiments.published = lambda: Path("nothing")
try:
    Path("new").touch()
except OSError:
    print("nothing can be written")
for line in sys.argv[1:]:
    try:
        commands.main(line.split())
    except SystemExit as stop:
        print("ended", line.split()[0], stop.code)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "beside",
    [[], *(pytest.param(ends, marks=pytest.mark.long) for ends in (["-wal"], ["-wal", "-shm"]))],
    ids="".join,
)
def test_commands_that_look_do_so_where_nothing_can_be_written(tmp_path, beside):
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and nothing here takes that right away")
    shared, out = tmp_path / "shared", tmp_path / "out"
    shared.mkdir()
    with Store(tmp_path / "s.sqlite") as store:
        store.add(*(trial(s, seed, 0.8) for s in (FULL, NONE) for seed in (10, 11, 12)))
        for end in beside:
            shutil.copy(f"{store.path}{end}", shared)
        if beside:
            shutil.copy(store.path, shared)
    if not beside:
        shutil.copy(tmp_path / "s.sqlite", shared)
    for path in (*shared.iterdir(), shared):
        path.chmod(0o555)
    where = f"--store s.sqlite --out {out}"
    lines = [
        f"status table2a {where}", f"show table2a krum full --seed 10 {where}", "trials s.sqlite",
        f"export {tmp_path}/t.csv --store s.sqlite", f"report {where}", "list",
        f"arena --draw --protocol P5 {where}",
        f"compare s.sqlite --attack krum --against attack=none --out {out}",
    ]  # fmt: skip
    done = subprocess.run(
        [*(READER if os.geteuid() == 0 else []), sys.executable, "-c", LOOK, *lines], cwd=shared,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(house.ROOT)},
    )  # fmt: skip
    shared.chmod(0o755)
    said = done.stdout.splitlines()
    assert said[0] == "nothing can be written", done.stderr
    ended = [line for line in said if line.startswith("ended")]
    assert ended == [f"ended {line.split()[0]} 0" for line in lines], done.stderr
    assert "2 settings, 6 trials, on cpu." in done.stdout
    assert sorted(path.name for path in shared.iterdir()) == sorted(
        f"s.sqlite{end}" for end in ("", *beside)
    )


def test_what_is_not_there_is_named_with_all_that_it_differs_by(call, filled):
    code, text, errors = call("show", "--dataset", "digits", "--iterations", "77")
    assert (code, text) == (2, "")
    assert "iterations 77" in errors
    assert "`trials` lists what there is" in errors
