"""`check`: each way in which a plug-in can be broken is found by its line, and by no other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_plugin_examples import EXAMPLES

import fltrust_repro as fl
from fltrust_repro import check_commands
from fltrust_repro.__main__ import commands
from fltrust_repro.aggregation import rules
from fltrust_repro.attacks import attacks
from fltrust_repro.checking import KINDS, check, checked
from fltrust_repro.defenses import defenses
from fltrust_repro.errors import BadInput
from fltrust_repro.models import models
from fltrust_repro.preaggregations import preaggregations
from fltrust_repro.probes import FAILS, NOTE, OK, time_told

HEAD = "import fltrust_repro as fl\nimport numpy as np\nCALLS = []\n"
README = Path(__file__).parent.parent / "README.md"


def found(tmp_path, text: str) -> list:
    """What `check` says of the only entry of a plug-in."""
    (tmp_path / "mine.py").write_text(HEAD + text, encoding="utf-8")
    [findings] = check(tmp_path / "mine.py").values()
    return findings


def body(decorator: str, arguments: str, *lines: str) -> str:
    indented = [f"    {line}" for line in lines]
    return "\n".join([f"@fl.{decorator}", f"def mine({arguments}):", *indented])


def rule(*lines: str, asks: str = "", decorator: str = "rule('mine')") -> str:
    return body(decorator, f"updates{asks}", "median = np.median(updates, axis=0)", *lines)


SAME_TRIAL = "the same trial twice gives different results"
RULES = {
    "one number": (rule("return updates.mean()"), FAILS, r"must be numbers of shape \(50,\), not"),
    "too short": (rule("return median[1:]"), FAILS, r"shape \(50,\), not float32 \(49,\)"),
    "text": (rule("return ['a'] * 50"), FAILS, "20 random updates .*must be numbers"),
    "nothing": (rule("pass"), FAILS, "must be numbers .*not no array"),
    "not finite": (rule("return median / 0"), FAILS, "20 random updates .*is not finite"),
    "leaves": (rule("raise SystemExit(3)"), FAILS, "20 random updates .*SystemExit: 3 .*mine.py"),
    "unseeded": (rule("return median + np.random.default_rng().normal()"), FAILS, SAME_TRIAL),
    "kept elsewhere": (
        rule("import json", "json.calls = getattr(json, 'calls', 0) + 1",
             "return median + json.calls"), FAILS, SAME_TRIAL),
    "shared draws": (rule("return median + np.random.normal()"), NOTE, "that all code shares"),
    "variables": (
        rule("CALLS.append(1)", "return median + len(CALLS)"), NOTE, "remembers calls in variables"
    ),
    "input": (rule("updates[:] = 7", "return median"), NOTE, "changes the updates"),
    "place": (rule("return np.median(updates[len(updates) // 4 :], axis=0)"), FAILS,
              "treats workers by their place"),
    "identity": (
        rule("return np.median(updates[workers >= 3] if len(updates) > 3 else updates, axis=0)",
             asks=", workers"), FAILS, "workers by their place"),
    "moved": (rule("return median * np.std(median) / np.abs(updates).max(initial=1e-9)"), NOTE,
              "all moved by v: the result is not"),
    "scaled": (rule("return np.clip(median, -0.01, 0.01)"), NOTE, "ten times as long: the result"),
    "c too big": (
        rule("if 2 * c > 10: raise IndexError('few')", "return median", asks=", c"), FAILS,
        "20 workers, d = 50, c = 6: IndexError: few .*mine.py, line 7"),
    "c too big, in words": (
        rule("if 2 * c > 10: raise fl.BadInput('c is too big.')", "return median", asks=", c"),
        NOTE, "c = 6: c is too big .*give it a limit"),
    "one worker": (rule("return median + 0 / (len(updates) - 1)"), NOTE, "1 worker, d = 1, c = 0"),
    "one parameter": (rule("return median + 0 * updates[0, 1]"), FAILS, "3 workers, d = 1, c = 0"),
    "zeros": (rule("return median * (np.abs(median).max() / np.abs(median).max())"), NOTE,
              "all zero: the result is not finite"),
    "equal": (rule("return median + 0.1 * (updates.std(axis=0).max() < 1e-6)"), NOTE,
              "all zero: the result is another"),
    "raises on equal": (
        rule("assert len(updates) == 1 or updates.std(axis=0).any()", "return median"), FAILS,
        "all zero: AssertionError"),
    "raises on NaN": (rule("assert not np.isnan(updates).any()", "return median"), FAILS,
                      "NaN from 4 of 20 workers: AssertionError"),
    "raises on all NaN": (rule("assert not np.isnan(updates).all()", "return median"), FAILS,
                          "NaN from 20 of 20 workers: AssertionError"),
    "in the second iteration": (
        rule("if memory: median += memory['lst']", "memory['last'] = 1", "return median",
             asks=", memory"), FAILS, "iteration 2 of a trial: KeyError: 'lst'"),
    "without each, their size": (
        rule("return median", decorator="rule('mine', leave_one_out=lambda rows: rows[:3])"),
        FAILS, r"leave_one_out: .*shape \(20, 50\), not float32 \(3, 50\)"),
    "without each, other ones": (
        rule("return median", decorator="rule('mine', leave_one_out=np.zeros_like)"), FAILS,
        "leave_one_out: what the rule gives without each worker is another"),
    "NaN": (rule("return median"), NOTE, "NaN from 4 of 20 workers: the result is not finite"),
    "huge": (rule("return np.nan_to_num(updates).mean(axis=0)"), NOTE, "of 1 of 20 workers, c = 1"),
}  # fmt: skip
# Findings that come with what a case is about.
WITH = {NOTE: "NaN|infinity|huge|moved by v|equal"}


@pytest.mark.parametrize("case", RULES)
def test_a_broken_rule_is_found_by_its_line(tmp_path, case):
    text, level, line = RULES[case]
    findings = found(tmp_path, text)
    mine = [one for one in findings if one.level == level and re.search(line, one.text)]
    assert len(mine) == 1, findings
    others = [one for one in findings if one.level != OK and one not in mine]
    assert all(one.level == NOTE and re.search(WITH[NOTE], one.text) for one in others), others


def test_what_a_good_rule_keeps_is_ok(tmp_path):
    lines = ("rows = updates[np.isfinite(updates).all(axis=1)]",
             "return np.median(rows, axis=0) if len(rows) else median")  # fmt: skip
    findings = found(tmp_path, rule(*lines))
    assert [one.level for one in findings] == [OK] * 11
    assert findings[-1].text.startswith("time: ")
    assert "from 1 worker on, d = 1, c up to 9 of 20" in [one.text for one in findings]


def test_a_limit_is_where_c_ends(tmp_path):
    decorator = "rule('mine', fl.aggregation.Limit('m - 4c', lambda m, c, beta: m - 4 * c))"
    strict = "if 4 * c >= len(updates): raise IndexError"
    findings = found(tmp_path, "import fltrust_repro.aggregation\n" + rule(
        strict, "return median", asks=", c", decorator=decorator))  # fmt: skip
    assert "from 1 worker on, d = 1, c up to 4 of 20" in [one.text for one in findings]
    assert FAILS not in [one.level for one in findings]


@pytest.mark.parametrize(
    "text",
    [
        rule("return median", asks=", c", decorator="rule('mine', fl.Limit('q', {limit}))"),
        body("attack('mine', limit=fl.Limit('q', {limit}))", "step", "return step.known[:step.c]"),
    ],
)
def test_a_limit_that_raises_fails(tmp_path, text):
    raising = "lambda m, c, beta: m // (c - 1) - 2"
    findings = found(tmp_path, text.replace("{limit}", raising))
    assert [one.level for one in findings if "cannot be computed (ZeroDivision" in one.text] == [
        FAILS
    ]


@pytest.mark.parametrize(
    "text",
    [
        rule("return median", asks=", c", decorator="rule('mine', fl.Limit('q', {limit}))"),
        body("attack('mine', limit=fl.Limit('q', {limit}))", "step", "return -step.known[:step.c]"),
    ],
)
@pytest.mark.parametrize("limit", ["m - 6 * c", "3 - c"])
def test_no_more_is_tried_than_a_limit_allows(tmp_path, text, limit):
    findings = found(tmp_path, text.replace("{limit}", f"lambda m, c, beta: {limit}"))
    assert FAILS not in [one.level for one in findings], findings
    assert findings[-1].text.startswith("time: ")


def test_of_a_rule_for_no_attacker_nothing_is_said_of_any(tmp_path):
    limit = "rule('mine', fl.Limit('q', lambda m, c, beta: 1 - c))"
    findings = found(tmp_path, rule("return median", asks=", c", decorator=limit))
    assert FAILS not in [one.level for one in findings], findings
    assert not [one for one in findings if "huge" in one.text or "infinity" in one.text]


def test_a_limit_that_raises_for_few_workers_fails_by_itself(tmp_path):
    limit = "rule('mine', fl.Limit('q', lambda m, c, beta: 40 // (m - 3)))"
    findings = found(tmp_path, rule("return median", asks=", c", decorator=limit))
    [fails] = [one.text for one in findings if one.level == FAILS]
    assert "3 workers: the limit of a plug-in cannot be computed" in fails


@pytest.mark.parametrize("m", [7, 100])
def test_a_limit_that_raises_elsewhere_ends_no_other_line(tmp_path, m):
    limit = f"fl.Limit('q', lambda m, c, beta: m // (m - {m}) - c + 99)"
    texts = {
        "rule": rule("return median", asks=", c", decorator=f"rule('mine', {limit})"),
        "attack": body(f"attack('mine', limit={limit})", "step", "return -step.known[:step.c]"),
    }
    for kind, text in texts.items():
        told = [one.text for one in found(tmp_path, text) if one.level == FAILS]
        assert len(told) == (m == 100), (kind, told)
        assert all("cannot be computed (ZeroDivision" in one for one in told)


def test_what_a_plugin_prints_is_not_amid_the_findings(tmp_path, capsys):
    findings = found(tmp_path, "print('loaded')\n" + rule("print('asked')", "return median"))
    assert FAILS not in [one.level for one in findings]
    out, err = capsys.readouterr()
    assert out == ""
    assert {"loaded", "asked"} <= {*err.splitlines()}


def test_rows_that_raise_fail(tmp_path):
    text = body("preaggregation('mine', rows=lambda m: m // (m - 3))", "updates", "return updates")
    [fails] = [one for one in found(tmp_path, text) if one.level == FAILS]
    assert re.search("rows, asked about 3 updates: ZeroDivisionError", fails.text)


def test_a_rule_may_ask_for_all_that_there_is(tmp_path):
    asks = ", c, beta, rng, memory, notes, w_re, workers, layers, root, judge"
    lines = (
        "errors, losses = judge(w_re + updates)",
        "assert errors.shape == losses.shape == (len(updates),)",
        "assert [*workers] == [*range(len(updates))] and layers[-1].stop == len(root) == len(w_re)",
        "memory['v'] = memory.get('v', 0) + rng.permutation(len(updates))[0]",
        "notes['asked'] += 1",
        "return median + 1e-9 * memory['v']",
    )
    findings = found(tmp_path, rule(*lines, asks=asks))
    assert FAILS not in [one.level for one in findings], findings
    assert findings[1].level == OK


def test_what_draws_among_workers_may_treat_them_by_their_place(tmp_path):
    draws = "return np.median(updates[rng.permutation(len(updates))[:2]], axis=0)"
    levels = {one.level: one.text for one in found(tmp_path, rule(draws, asks=", rng"))}
    assert FAILS not in levels


def test_time_is_told_beside_krums(tmp_path):
    findings = found(tmp_path, rule("import time", "time.sleep(0.1 * (len(updates) > 99))",
                                    "return median"))  # fmt: skip
    told = re.fullmatch(r"time: ([\d.,]+) ms for 100 x 7,850 updates, ([\d.,]+) times Krum's",
                        findings[-1].text)  # fmt: skip
    milliseconds, times = (float(number.replace(",", "")) for number in told.groups())
    assert milliseconds >= 100
    assert times >= 3
    assert time_told(0.02, 0.01, "x").text == "time: 20.0 ms for 100 x 7,850 updates, 2.0 times x"


def craft(*lines: str, decorator: str = "attack('mine')") -> str:
    return body(decorator, "step", "mean = step.known.mean(axis=0)", *lines)


PEEKS = (
    "import sys", "frame, rows = sys._getframe(), step.known",
    "while frame := frame.f_back:", "    rows = frame.f_locals.get('rows', rows)",
    "    if len(rows) > step.c: break", "return np.tile(-rows.mean(axis=0), (step.c, 1))",
)  # fmt: skip
SENT = "return np.tile(-mean, (step.c, 1))"
OTHERS = {
    "an attack's shape": (craft("return -mean"), FAILS, r"shape \(4, 50\), not float32 \(50,\)"),
    "unseeded": (craft("mean += np.random.default_rng().normal()", SENT), FAILS, SAME_TRIAL),
    "knows too much": (craft(*PEEKS), FAILS, "depends on benign updates"),
    "order of others": (craft("return -step.known[-step.c:]", decorator="attack('mine', False)"),
                        NOTE, "the order of benign workers"),
    "an attack's shape for one": (craft("return np.squeeze(-step.known[: step.c])"), FAILS,
                                  r"3 workers, d = 1, c = 1: .*shape \(1, 1\), not float32 \(\)"),
    "in the second iteration": (
        craft("if step.memory: raise KeyError('a')", "step.memory['a'] = 1", SENT), FAILS,
        "iteration 2 of a trial: KeyError: 'a'"),
    "against a rule": (craft("if step.master.rule.name == 'krum': raise KeyError('k')", SENT),
                       FAILS, "against krum: KeyError: 'k'"),
    "a trigger": (
        "from fltrust_repro.poisoning import Backdoor\n"
        + craft(SENT, decorator="attack('mine', False, backdoor=Backdoor(lambda x: x[:1]))"),
        FAILS, r"a backdoor's trigger makes float32 \(1, 1, 8, 8\)"),
    "a defense in the second iteration": (
        body("defense('mine')", "case", "CALLS.append(1)",
             "if len(CALLS) == 2: raise KeyError('d')", "return []"), FAILS, "KeyError: 'd'"),
    "a step that gives nothing": (
        body("preaggregation('mine')", "updates", "return updates if len(updates) > 3 else None"),
        FAILS, "3 workers, d = 1, c = 0: .*must be numbers"),
    "few attackers": (craft("assert step.c > 1", SENT), FAILS, "3 workers, d = 1, c = 1: Assert"),
    "NaN sent": (craft("return np.full((step.c, len(mean)), np.nan)"), NOTE, "not finite, which"),
    "no harm": (craft("return step.known[: step.c]"), NOTE, "one step undone .*mean 0.00"),
    "labels": ("from fltrust_repro.threat import Attack\nimport fltrust_repro.attacks as a\n"
               "a.attacks.add('mine', Attack('mine', poison=lambda labels, classes: labels + 9))",
               FAILS, "labels of batches: attack 'mine' gives labels"),
    "removes too many": (body("defense('mine')", "case", "return np.arange(case.c + 1)"), FAILS,
                         "may remove 4 of them"),
    "removes by place": (body("defense('mine')", "case", "return np.arange(case.c)"), FAILS,
                         "of permuted workers it removes others"),
    "a defense's NaN": (
        body("defense('mine')", "case", "long = np.linalg.norm(case.updates, axis=1)",
             "assert not np.isnan(long).any()", "return np.argsort(long)[: case.c]"), FAILS,
        "NaN from 4 of 20 workers: AssertionError"),
    "rows": (body("preaggregation('mine')", "updates", "return updates[:-1]"), FAILS,
             "it leaves 3 of 3 updates, but it returns 2"),
    "a step's shape": (body("preaggregation('mine')", "updates", "return updates[0]"), FAILS,
                       r"pre-aggregation 'mine' \(mine.py, line 4\): its result must be"),
}  # fmt: skip


SEVERAL = ("rows", "unseeded", "a defense in the second iteration")  # lines that fail


@pytest.mark.parametrize("case", OTHERS)
def test_what_else_is_broken_is_found_by_its_line(tmp_path, case):
    text, level, line = OTHERS[case]
    findings = found(tmp_path, text)
    assert [one for one in findings if one.level == level and re.search(line, one.text)], findings
    fails = [one for one in findings if one.level == FAILS]
    assert len(fails) == (level == FAILS) or case in SEVERAL, fails


BLOCK = (
    "from mxnet.gluon import nn\n"
    "@fl.model('mine')\n"
    "def mine(classes, shape):\n"
    "    block = nn.HybridSequential()\n"
    "    block.add(nn.Dense(classes{more}), nn.HybridLambda(lambda F, x: x * {times}))\n"
    "    return block\n"
)


def test_a_model_must_give_a_score_for_each_class(tmp_path):
    findings = found(tmp_path, BLOCK.format(more=" + 1", times=1))
    assert [one.level for one in findings] == [FAILS]
    assert "gives 11 outputs, the data set has 10 classes" in findings[0].text


def test_a_model_that_learns_nothing_is_noted(tmp_path):
    findings = found(tmp_path, BLOCK.format(more="", times=0))
    assert [one.level for one in findings] == [OK, NOTE]
    assert "learns hardly anything" in findings[1].text


DATA = (
    "@fl.dataset('mine')\n"
    "def mine(directories, rng):\n"
    "    x = np.random.default_rng(1).normal(size=(90, 1, 1, 3)).astype(np.float32)\n"
    "    y = (np.arange(90) % 3).astype(np.int32)\n"
    "    x[:, 0, 0, 0] += 9 * y\n"
    "    order = {order}.permutation(90)\n"
    "    x, y = x[order], y[order]\n"
    "    {more}\n"
    "    return fl.Dataset(x[:60], y[:60], x[60:], y[60:], classes={classes})\n"
)
DATA_SETS = {
    "good": ("rng", "pass", 3, None, ""),
    "type": ("rng", "x = x.astype(float)", 3, FAILS, "training examples must be float32"),
    "split": ("np.random.default_rng()", "pass", 3, FAILS, "the same seed gives another split"),
    "fixed": ("np.random.default_rng(0)", "pass", 3, NOTE, "each seed gives the same split"),
    "nan": ("rng", "x[0] = np.nan", 3, FAILS, "training examples hold NaN or infinity"),
    "class": ("rng", "pass", 4, NOTE, "no training example is of class 3"),
    "raises": ("rng", "open('missing')", 3, FAILS, "does not load: FileNotFoundError"),
}


def test_a_data_set_that_loads_once_fails(tmp_path):
    text = "ONCE = iter([0])\n" + DATA.format(order="rng", more="next(ONCE)", classes=3)
    [finding] = found(tmp_path, text)
    assert finding.level == FAILS
    assert "does not load: StopIteration" in finding.text


@pytest.mark.parametrize(("users", "level"), [("y", OK), ("np.random.random(90) // 0.1", FAILS)])
def test_who_holds_an_example_is_part_of_the_split(tmp_path, users, level):
    text = DATA.replace("@fl.dataset('mine')", "@fl.dataset('mine', dealing='natural')")
    text = text.replace("{classes})", f"{{classes}}, users=({users})[:60].astype(int))")
    findings = found(tmp_path, text.format(order="rng", more="pass", classes=3))
    assert findings[1].level == level
    assert level == FAILS or {one.level for one in findings} == {OK}


@pytest.mark.parametrize("case", DATA_SETS)
def test_a_data_sets_contract(tmp_path, case):
    order, more, classes, level, line = DATA_SETS[case]
    findings = found(tmp_path, DATA.format(order=order, more=more, classes=classes))
    wrong = [one for one in findings if one.level != OK and "learns hardly" not in one.text]
    assert bool(wrong) == (level is not None), findings
    if wrong:
        assert wrong[0].level == level
        assert re.search(line, wrong[0].text)


# ---- as a user calls it


def run(*words: str):
    return CliRunner().invoke(commands, ["check", *words])


def test_the_examples_of_the_documentation_go_through(tmp_path, monkeypatch):
    monkeypatch.setenv("FLTRUST_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300).astype(np.int32)
    x = (y[:, None] == np.arange(3)) + 0.1 * rng.standard_normal((300, 3))
    np.savez(tmp_path / "my-data.npz", x=x.astype(np.float32).reshape(-1, 1, 1, 3), y=y)
    readme = re.search(r"```python\n(.{,60}?@fl\.rule.+?)```", README.read_text("utf-8"), re.DOTALL)
    for name, text in {**EXAMPLES, "my_rule.py": readme[1]}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = run(*(str(tmp_path / name) for name in [*EXAMPLES, "my_rule.py"]))
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "rule 'middle-half'"
    assert {line.split()[0] for line in lines if line.startswith(" ")} == {OK, NOTE}
    heads = [line for line in lines if not line.startswith(" ")]
    assert len(heads) == len(EXAMPLES) + 2
    assert re.fullmatch(r"Nothing fails; \d+ notes, \d+ ok\.", heads[-1])


def test_a_data_set_is_looked_for_where_the_user_says(tmp_path):
    more = "(directories[0] / 'mine.txt').read_text()"
    text = HEAD + DATA.format(order="rng", more=more, classes=3)
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("", encoding="utf-8")
    words = str(tmp_path / "mine.py"), "--data-dir"
    assert run(*words, str(tmp_path / "here")).exit_code == 0
    done = run(*words, str(tmp_path))
    assert done.exit_code == 1
    assert "--data-dir or $FLTRUST_DATA names the folder" in done.output


def test_what_fails_is_exit_code_1_and_counted(tmp_path):
    (tmp_path / "mine.py").write_text(HEAD + RULES["place"][0], encoding="utf-8")
    done = run(str(tmp_path / "mine.py"))
    assert done.exit_code == 1
    assert "  fails  treats workers by their place" in done.output
    assert done.output.splitlines()[-1].startswith("1 of 11 lines fail; ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "there is nothing to check; give your plug-in's file, or --rule NAME"),
        (("--rule", "krum", "--rule", "krun"), "Did you mean 'krum'?"),
        (("missing.py",), "missing.py"),
        (("empty.py",), "registers nothing; decorate a function of it"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    done = run(*words)
    assert done.exit_code == 2
    assert told in done.output
    assert len(done.output.splitlines()) == 1


def test_what_a_test_of_ones_own_registers_can_be_checked():
    @fl.rule("own-median")
    def own(updates):
        return np.median(updates, axis=0)

    try:
        assert FAILS not in {level for level, _ in checked("rule", "own-median")}
    finally:
        rules.remove("own-median")
    with pytest.raises(BadInput, match="unknown rule 'own-median'"):
        checked("rule", "own-median")


# ---- what is built in

ROBUST = {"bulyan", "caf", "dnc", "fltrust", "geometric-median", "krum", "median", "multi-krum",
          "phocas", "signguard", "trimmed-mean"}  # fmt: skip


def levels_of(kind: str, name: str) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {OK: [], NOTE: [], FAILS: []}
    for level, text in checked(kind, name):
        told[level].append(text)
    return told


@pytest.mark.parametrize("name", ["krum", "trimmed-mean", "median"])
def test_the_papers_rules_keep_all(name):
    told = levels_of("rule", name)
    assert not told[FAILS] + told[NOTE]


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(rules))
def test_built_in_rules_hold(name):
    told = levels_of("rule", name)
    assert told[FAILS] == []
    if name in ROBUST:
        assert not [text for text in told[NOTE] if "finite" in text or "huge" in text]


OTHER_KINDS = {"pre-aggregation": preaggregations, "attack": attacks, "defense": defenses,
               "model": models}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in OTHER_KINDS for name in sorted(OTHER_KINDS[kind])]
)
def test_built_in_attacks_defenses_and_models_hold(kind, name):
    told = levels_of(kind, name)
    assert not told[FAILS]
    assert told[OK] + told[NOTE]


@pytest.mark.parametrize("name", ["digits", "breast-cancer"])
def test_built_in_data_sets_hold(name):
    assert not levels_of("data set", name)[FAILS]


def test_every_kind_of_entry_is_looked_at():
    assert set(check_commands._KINDS.values()) == set(KINDS)
    assert {registry.kind for registry, _ in KINDS.values()} == set(KINDS)


def test_a_defense_that_draws_is_not_said_to_treat_workers_by_their_place(tmp_path):
    draws = body("defense('mine')", "case",
                 "return case.rng.choice(len(case.updates), case.c, replace=False)")  # fmt: skip
    findings = found(tmp_path, draws)
    assert [one for one in findings if one.level == FAILS] == []
    assert any(one.level == NOTE and "removes others; it draws" in one.text for one in findings)
