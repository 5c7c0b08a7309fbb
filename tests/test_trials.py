"""What a row must hold to be believed, whether it lies in a store or in a file of trials."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sqlite3
from dataclasses import fields, replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_store import RESULT, SETTING, assert_same, trial

from fltrust_repro import settings
from fltrust_repro.aggregation import rules
from fltrust_repro.archive import Archive
from fltrust_repro.errors import BadInput, LeftOut
from fltrust_repro.settings import Readings, Setting
from fltrust_repro.store import Store
from fltrust_repro.trial_files import add_to_csv, read_csv, write_csv
from fltrust_repro.trials import COLUMNS

DEEP = "[" * 100_000
TOLD = trial().row()


def told(**changes) -> str:
    """The setting's text with some fields changed."""
    return json.dumps({**SETTING.as_dict(), **changes})


# column, and values that no finished trial has there
WRONG = {
    "seed": [-5, 2**63, "five", "1.5"],
    "error_rate": ["7.5", "-1", "inf", "nan", "high", "1e999"],
    "lowest_error_rate": ["1.01", "nan"],
    "iterations": [-1, 10**7, "20.5"],
    "diverged": [2, "maybe"],
    "seconds": ["-1", "inf", "nan"],
    "empty_workers": [-1, "none"],
    "notes": ["[]", "no JSON", '{"a": "b"}', '{"a": [1]}', DEEP],
    "curve": ["{}", "[]", "7", '["a", "b"]', '[["10", 0.5, 1]]', '[["10", "0.5", "1"]]',
              "[[10, 7.5, 1]]", "[[10, NaN, 1]]", "[[10, 0.5]]", "[[-10, 0.5, 1]]",
              '[[10, 0.5, "1"]]', f"[[10, 0.5, {10**400}]]", "[[true, 0.5, 1]]", DEEP],
    "setting": ["[]", "no JSON", "7", DEEP, told(workers=10**400), told(rule=["krum"]),
                told(rule={"a": 1}), told(rule="median"), told(epsilon=0.2), told(newer=1),
                told(workers="20"), told(dataset=None), '{"workers": ' + "9" * 5000 + "}"],
    "key": ["0123456789abcdef"],
    "protocol": [""],
    "device": [""],
}  # fmt: skip
CASES = [(column, value) for column, values in WRONG.items() for value in values]


def as_file(path, *rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return path


def as_store(path, *rows, kinds: bool = False):
    """A store that somebody else wrote, whose table enforces nothing."""
    columns = ", ".join(f"{name} {column.sql if kinds else ''}" for name, column in COLUMNS.items())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE trials ({columns})")
        for row in rows:
            values = [row[name] for name in COLUMNS]
            connection.execute(
                f"INSERT INTO trials VALUES ({','.join('?' * len(COLUMNS))})", values
            )
        connection.commit()
    return path


@pytest.mark.parametrize(("column", "value"), CASES)
def test_what_no_trial_has_is_left_out_of_a_file_and_named_by_its_line(tmp_path, column, value):
    rows = [TOLD, {**trial(1).row(), column: value}, trial(2).row()]
    left_out = LeftOut()
    found = read_csv(as_file(tmp_path / "t.csv", *rows), left_out)
    assert [one.seed for one in found] == [0, 2]
    assert len(left_out) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [*((c, v) for c, v in CASES if v != 2**63),
     *((column, value) for column in COLUMNS for value in (None, b"\xff\x00")),
     *((column, 2**63 - 1) for column in COLUMNS if column != "seconds"), ("error_rate", 7.5),
     ("error_rate", float("inf")), ("seed", 1.0)],
)  # fmt: skip
def test_what_no_trial_has_is_left_out_of_a_store_and_named_by_its_row(
    tmp_path, capsys, column, value
):
    rows = [TOLD, {**trial(1).row(), column: value}, trial(2).row()]
    with Archive(as_store(tmp_path / "s.sqlite", *rows)) as store:
        assert [one.seed for one in store.everything()] == [0, 2]
        assert [one.seed for one in store.find(SETTING)] == [0, 2]
        store.left_out.tell()
        store.left_out.tell()
    (line,) = capsys.readouterr().err.splitlines()
    assert "s.sqlite: 1 entry not understood" in line
    assert "row 2" in line
    assert len(line) < 600


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(DEEP)
)
VALUES = (
    SCALARS
    | st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3)).map(json.dumps)
    | st.dictionaries(st.sampled_from(["rule", "workers", "b"]), SCALARS).map(json.dumps)
    | st.integers(0, 30).map(str)
)


@pytest.mark.slow
@given(changes=st.dictionaries(st.sampled_from(list(COLUMNS)), VALUES, min_size=1, max_size=3))
def test_whatever_a_line_holds_it_is_a_trial_or_left_out(tmp_path_factory, changes):
    row = {name: str(value).replace("\ud800", "") for name, value in {**TOLD, **changes}.items()}
    text = io.StringIO()
    csv.writer(text).writerow(row.values())
    content = ",".join(COLUMNS).encode() + b"\n" + text.getvalue().encode("utf-8", "replace")
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    left_out = LeftOut()
    for found in read_csv(path, left_out):
        assert 0 <= found.result.error_rate <= 1
        assert 0 <= found.seed < 2**31
        assert found.result.curve
    left_out.tell()


def test_every_field_survives_a_csv_file(tmp_path):
    written = [trial(seed) for seed in (3, 1)]
    write_csv(tmp_path / "new" / "trials.csv", written)
    for found, expected in zip(read_csv(tmp_path / "new" / "trials.csv"), written):
        assert_same(found, expected)


def test_a_trial_that_went_through_csv_and_store_gives_the_same_csv(tmp_path):
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    write_csv(first, [trial()])
    with Store(tmp_path / "s.sqlite") as store:
        store.add(read_csv(first)[0])
        write_csv(second, store.find(SETTING))
    assert first.read_bytes() == second.read_bytes()


def test_a_csv_file_cut_in_the_middle_gives_its_whole_lines(tmp_path):
    path = tmp_path / "trials.csv"
    write_csv(path, [trial(), trial(1)])
    path.write_text(path.read_text()[:-40])
    left_out = LeftOut()
    assert [found.seed for found in read_csv(path, left_out)] == [0]
    assert len(left_out) == 1


def test_trials_are_added_behind_what_a_file_holds_byte_for_byte(tmp_path):
    path = tmp_path / "trials.csv"
    add_to_csv(path, [trial(0)])
    add_to_csv(path, [])
    odd = path.read_bytes() + b"a line of a newer version, \xff\n\n" + path.read_bytes()[-300:-1]
    path.write_bytes(odd)
    add_to_csv(path, [])
    assert path.read_bytes() == odd
    add_to_csv(path, [trial(1), trial(2)])
    assert path.read_bytes().startswith(odd + b"\n")
    assert [found.seed for found in read_csv(path)] == [0, 1, 2]


def test_a_compressed_file_holds_the_same(tmp_path):
    plain, packed = tmp_path / "trials.csv", tmp_path / "trials.csv.gz"
    for path in (plain, packed):
        add_to_csv(path, [trial(0)])
        add_to_csv(path, [trial(1)])
    assert read_csv(packed) == read_csv(plain)
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(packed), pd.read_csv(plain))
    before = packed.read_bytes()
    write_csv(packed, read_csv(packed))
    assert packed.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"key,seed\n", gzip.compress(b"key,seed\n" * 99, mtime=0)[:-9], b"\x1f"]
)
def test_a_damaged_compressed_file_is_named(tmp_path, content):
    path = tmp_path / "trials.csv.gz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"trials\.csv\.gz is no file of trials"):
        read_csv(path)
    with pytest.raises(BadInput, match=r"trials\.csv\.gz is no file of trials"):
        add_to_csv(path, [trial(0)])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_of_other_columns_stay_as_they_are_when_trials_are_added(tmp_path, end):
    path = tmp_path / "trials.csv"
    write_csv(path, [trial(0)])
    older = pd.read_csv(path).drop(columns="notes").assign(newer="=7")
    older.to_csv(path, index=False, lineterminator=end)
    line = path.read_bytes().split(b"\n")[1]
    add_to_csv(path, [trial(1)])
    assert path.read_bytes().split(b"\n")[1] == line
    assert [found.result.notes for found in read_csv(path)] == [{}, RESULT.notes]
    assert list(pd.read_csv(path)["newer"].fillna("none")) == ["=7", "none"]


def test_the_key_of_a_setting_is_the_same_whatever_is_spelled_out_and_in_what_order():
    fields = SETTING.as_dict()
    assert Setting.from_dict(dict(reversed(fields.items()))).key() == SETTING.key()


def test_the_late_error_rate_is_the_mean_of_the_curves_last_fifth():
    curve = [(10 * k, k / 100, 1.0) for k in range(1, 11)]  # 100 iterations
    result = replace(RESULT, iterations=100, error_rate=0.10, curve=curve)
    late = replace(trial(), result=result)
    assert late.error("late_error_rate") == pytest.approx((0.08 + 0.09 + 0.10) / 3)
    assert late.error("error_rate") == 0.10
    broken = replace(result, iterations=3, error_rate=0.7, curve=[(3, 0.7, 1.0)])
    assert replace(late, result=broken).error("late_error_rate") == 0.7


@pytest.mark.slow
def test_a_trial_of_the_most_iterations_is_read_back(tmp_path):
    setting = replace(SETTING, iterations=1_000_000)
    curve = [(i, 1 / 3, 0.12345) for i in range(10, 1_000_001, 10)]
    long = trial(setting=setting, result=replace(RESULT, iterations=1_000_000, curve=curve))
    before = csv.field_size_limit()
    write_csv(tmp_path / "t.csv", [long])
    (found,) = read_csv(tmp_path / "t.csv")
    assert found == long
    assert csv.field_size_limit() == before


def test_lines_of_trials_that_are_not_wanted_are_not_looked_at(tmp_path):
    path = tmp_path / "t.csv"
    write_csv(path, [trial(seed) for seed in range(3)])
    lines = path.read_bytes().splitlines(keepends=True)
    broken = [lines[1].replace(b",cpu,", b',"cp"u,'), b"garbage\n", b"a,b,c,d\n"]
    path.write_bytes(b"".join([lines[0], *broken, *lines[2:]]))
    for wanted, found, left in ((1, [1], 2), (0, [], 3), (7, [], 2)):
        left_out = LeftOut()
        some = read_csv(path, left_out, lambda name, wanted=wanted: name.seed == wanted)
        assert ([one.seed for one in some], len(left_out)) == (found, left)
    # Another program may put names into quotes, all of them or those that are texts.
    table = pd.read_csv(path, skiprows=[1, 2, 3])
    for quoting in (csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
        table.to_csv(tmp_path / "q.csv", index=False, quoting=quoting)
        key = table["key"][0]
        found = read_csv(tmp_path / "q.csv", wanted=lambda name, key=key: name.key == key)
        assert [one.seed for one in found] == [1, 2]
    # Another order of columns is read as well.
    table[table.columns[::-1]].to_csv(path, index=False)
    assert [one.seed for one in read_csv(path, wanted=lambda name: name.seed == 2)] == [2]


def test_lines_left_out_are_counted_a_few_are_named_and_the_file_is_told_once(tmp_path, capsys):
    rows = [TOLD, *({**trial(seed).row(), "error_rate": "7.5"} for seed in range(1, 10))]
    path = as_file(tmp_path / "t.csv", *rows)
    left_out = LeftOut()
    for _ in range(2):
        read_csv(path, left_out)
        left_out.tell()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: 9 entries not understood" in line
    assert "line 3: error_rate is '7.5'; it must be a number from 0 to 1" in line
    assert "and 6 more" in line


def test_a_line_with_a_quote_too_few_takes_no_other_line_with_it(tmp_path):
    path = as_file(tmp_path / "t.csv", *(trial(seed).row() for seed in range(4)))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"{', b"{", 1)
    lines[3] = lines[3][:200] + b"\n"
    path.write_bytes(b"".join(lines))
    left_out = LeftOut()
    assert [found.seed for found in read_csv(path, left_out)] == [0, 3]
    assert len(left_out) == 2


def test_a_line_that_is_not_utf_8_takes_no_other_line_with_it(tmp_path):
    path = as_file(tmp_path / "t.csv", *(trial(seed).row() for seed in range(3)))
    path.write_bytes(path.read_bytes().replace(b"2020-01-01", b"2020-01-\xff1", 1))
    assert [found.seed for found in read_csv(path)] == [1, 2]


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read(tmp_path):
    path = as_file(tmp_path / "t.csv", TOLD, trial(1).row())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    left_out = LeftOut()
    assert [found.seed for found in read_csv(path, left_out)] == [0, 1]
    assert len(left_out) == 0


@pytest.mark.parametrize("kind", ["utf-16", "store", "thesis", "export"])
def test_a_file_that_is_none_of_trials_is_refused_in_one_sentence(tmp_path, kind):
    path = as_file(tmp_path / "t.csv", TOLD)
    if kind == "utf-16":
        path.write_bytes(path.read_text().encode("utf-16"))
    elif kind == "store":
        path.unlink()
        Store(path).close()
    else:
        path.write_text("my thesis\n" if kind == "thesis" else "key,seed,protocol\n1,2,3\n")
    with pytest.raises(BadInput, match=r"t\.csv is no file of trials"):
        read_csv(path)


# ---- a name is not an identity ------------------------------------------------------------------


def test_a_store_does_not_answer_with_trials_of_another_setting_under_its_key(tmp_path):
    path = as_store(tmp_path / "s.sqlite", {**TOLD, "setting": told(rule="median")}, kinds=True)
    with Store(path) as store:
        assert store.find(SETTING) == store.find(replace(SETTING, rule="median")) == []
        assert not store.has(trial().name)
        assert list(store.everything()) == []
        assert store.add(trial()) == {trial().name}  # what it had stands in no one's way
        assert [found.seed for found in store.find(SETTING)] == [0]
        rows = store._connection.execute("SELECT setting FROM trials").fetchall()
    assert {json.loads(text)["rule"] for (text,) in rows} == {"krum", "median"}


@pytest.fixture
def changed_default(monkeypatch):
    """Change a reading's default, as a later version of the program would."""

    def change(name: str, value: object) -> None:
        places = {field.name: i for i, field in enumerate(fields(Readings))}
        defaults = list(Readings.__init__.__defaults__)
        defaults[places[name]] = value
        monkeypatch.setattr(Readings.__init__, "__defaults__", tuple(defaults))
        monkeypatch.setattr(fields(Readings)[places[name]], "default", value)
        settings._key_of.cache_clear()

    yield change
    settings._key_of.cache_clear()


def test_a_changed_default_is_not_answered_with_trials_of_the_old_one(tmp_path, changed_default):
    file, table = tmp_path / "s.sqlite", tmp_path / "t.csv"
    asked = {"dataset": "digits", "rule": "krum", "attack": "krum", "iterations": 20}
    before = Setting(**asked)
    with Store(file) as store:
        store.add(trial(setting=before))
    write_csv(table, [trial(setting=before)])
    changed_default("initial", "xavier-1")
    after = Setting(**asked)
    assert after.key() != replace(before).key()
    with Store(file) as store:
        assert store.find(after) == []
        assert read_csv(table) == []
        assert store.add(trial(setting=after))
        assert [found.setting for found in store.find(after)] == [after]


def test_a_field_added_later_takes_todays_default_where_a_trial_does_not_tell_it(tmp_path):
    text = json.dumps({k: v for k, v in SETTING.as_dict().items() if k != "initial"})
    with Archive(as_store(tmp_path / "s.sqlite", {**TOLD, "setting": text})) as store:
        assert [found.setting for found in store.find(SETTING)] == [SETTING]


def test_trials_of_plugins_that_are_not_loaded_are_counted_with_their_names(
    tmp_path, capsys, monkeypatch
):
    with monkeypatch.context() as loaded:
        loaded.setattr(rules, "_entries", {**rules, "theirs": rules["mean"]})
        rows = [trial(s, replace(SETTING, rule="theirs", attack="none")).row() for s in range(2)]
    left_out = LeftOut()
    assert read_csv(as_file(tmp_path / "t.csv", *rows), left_out) == []
    left_out.tell()
    (line,) = capsys.readouterr().err.splitlines()
    assert "t.csv: 2 trials left out, of plug-ins that are not loaded" in line
    assert "'theirs'" in line
    assert "--plugin" in line


def test_a_column_that_is_named_twice_is_refused(tmp_path):
    file = tmp_path / "a.trials.csv"
    file.write_text(",".join([*COLUMNS, "error_rate"]) + "\n")
    with pytest.raises(BadInput, match="names error_rate twice in its first line"):
        read_csv(file, LeftOut())
