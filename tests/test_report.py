"""Tables next to the paper's: what counts as agreement, and how it is shown."""

from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy import stats

from fltrust_repro import report
from fltrust_repro.errors import one_line
from fltrust_repro.experiments import Cell, Experiment, load_experiment
from fltrust_repro.report import Measured, markdown, markdown_code, verdict
from fltrust_repro.settings import Setting
from fltrust_repro.training import TrialResult
from fltrust_repro.trials import Trial


def measured(errors, paper, attack="none", diverged=0) -> Measured:
    setting = Setting(dataset="digits", rule="trimmed-mean", attack=attack)
    return Measured(Cell("trimmed-mean", attack, setting, paper), tuple(errors), diverged)


def around(mean: float, spread: float = 0.01, n: int = 10) -> list[float]:
    """N error rates with exactly this mean."""
    return [mean + spread * (1 if i % 2 else -1) for i in range(n)]


PLAIN = measured(around(0.13), 0.12)


def test_where_a_paper_prints_less_under_attack_the_tolerance_is_no_wider():
    plain = measured(around(0.12), 0.12)
    assert verdict(measured(around(0.105), 0.07, "trimmed-mean"), plain) == "outside"
    assert verdict(measured(around(0.095), 0.07, "trimmed-mean"), plain) == "inside"


@pytest.mark.parametrize(
    ("mean", "expected"),
    [(0.12, "inside"), (0.15, "inside"), (0.09, "inside"), (0.151, "outside"), (0.089, "outside")],
)
@pytest.mark.parametrize("attack", ["none", "gaussian", "label-flip"])
def test_without_a_crafted_attack_a_cell_agrees_within_three_hundredths(attack, mean, expected):
    assert verdict(measured(around(mean), 0.12, attack), PLAIN) == expected


@pytest.mark.parametrize(
    ("mean", "expected"),
    [(0.52, "inside"), (0.411, "inside"), (0.629, "inside"), (0.40, "outside"), (0.64, "outside")],
)
def test_under_attack_a_fifth_of_the_papers_increase_is_added(mean, expected):
    assert verdict(measured(around(mean), 0.52, "trimmed-mean"), PLAIN) == expected


def test_an_attack_that_does_nothing_does_not_pass_however_near_its_number_is():
    plain, idle = measured(around(0.14), 0.12), measured(around(0.14), 0.17, "trimmed-mean")
    assert abs(idle.difference) < 0.03 + 0.2 * 0.05
    assert verdict(idle, plain) == "outside"
    assert verdict(measured(around(0.15), 0.17, "trimmed-mean"), PLAIN) == "inside"


def test_an_increase_within_the_noise_of_the_trials_does_not_pass():
    noisy = measured(around(0.16, spread=0.1), 0.17, "trimmed-mean")
    assert verdict(noisy, PLAIN) == "outside"


def test_an_increase_that_the_paper_hardly_has_need_not_be_significant():
    assert verdict(measured(around(0.13), 0.16, "trimmed-mean"), PLAIN) == "inside"


def test_one_trial_is_too_few_to_say_whether_an_attack_works():
    one = measured([0.5], 0.52, "trimmed-mean")
    assert verdict(one, PLAIN) == "too few trials"
    assert verdict(measured(around(0.5), 0.52, "trimmed-mean"), measured([0.13], 0.12)) == (
        "too few trials"
    )


@pytest.mark.parametrize("mean", [0.13, 0.9])
@pytest.mark.parametrize("attack", ["none", "gaussian", "trimmed-mean"])
def test_no_cell_is_judged_by_fewer_than_three_trials(attack, mean):
    for n in (1, 2):
        assert verdict(measured([mean] * n, 0.12, attack), PLAIN) == "too few trials"
    assert verdict(measured([mean] * 3, 0.12, attack), PLAIN) in ("inside", "outside")
    attacked = measured([0.5] * 3, 0.52, "trimmed-mean")
    assert verdict(attacked, measured([0.13] * 2, 0.12)) == "too few trials"
    assert verdict(attacked, measured([0.13] * 3, 0.12)) == "inside"


def test_a_cell_without_trials_or_without_a_printed_value_is_not_judged():
    assert verdict(measured([], 0.12), PLAIN) == "missing"
    assert verdict(measured([0.1], None), PLAIN) == "not in the paper"


def test_the_interval_is_students():
    cell = measured([0.1, 0.2, 0.3], 0.2)
    assert cell.mean == pytest.approx(0.2)
    assert cell.std == pytest.approx(0.1)
    assert cell.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    # Two trials would give an interval of 1.06 on error rates of 0.1 and 0.27.
    assert math.isnan(measured([0.1, 0.27], 0.2).half_width)
    assert math.isnan(measured([0.1], 0.2).half_width)
    assert measured([0.1], 0.2).difference == pytest.approx(-0.1)


def test_significance_is_one_sided_and_holds_for_equal_trials():
    assert report.significantly_above([0.3, 0.31, 0.32], [0.1, 0.11, 0.12])
    assert not report.significantly_above([0.1, 0.11, 0.12], [0.3, 0.31, 0.32])
    assert report.significantly_above([0.2, 0.2], [0.1, 0.1])
    assert not report.significantly_above([0.2, 0.2], [0.2, 0.2])


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "Mine"\n[setting]\ndataset = "digits"\n'
        '[rows]\nmedian = { rule = "median" }\nmean = { rule = "mean" }\n'
        '[columns]\nno-attack = { attack = "none" }\nfull = { attack = "trimmed-mean" }\n'
        "[paper]\nmedian = [0.12, 0.52]\n"
    )
    return load_experiment(str(path))


def trials(cell: Cell, errors) -> list[Trial]:
    return [
        Trial(cell.setting, seed, TrialResult(error, error, 500, seed == 1, 3600.0, [], 0),
              "cpu", "python 3.11", "2020-01-01", "1")
        for seed, error in enumerate(errors)
    ]  # fmt: skip


ODD = ["a|b `c` *d*", "two\nlines \x1b[31m", r"x^{ $\frac$ 100% #1 & y_z", "1e3"]


@pytest.fixture
def odd():
    """A table whose rows and columns have names that something might interpret."""
    cells = tuple(Cell(r, c, Setting(dataset="digits"), 0.1) for r in ODD for c in ODD)
    return Experiment("odd (1)", "reproduce `odd`", ODD[0], tuple(ODD), tuple(ODD), cells)


def test_names_in_a_table_are_literal_in_markdown_and_on_a_terminal(odd):
    cells = [report.measure(cell, trials(cell, [0.1, 0.2])) for cell in odd.cells]
    page = report.page(odd, cells, [])
    rendered = MarkdownIt().enable("table").render(page)
    table = ElementTree.fromstring(f"<p>{rendered}</p>")
    shown = [one_line(name) for name in ODD]
    assert [head.text for head in table.iter("th")][1:] == shown
    assert [row.find("td").text for row in table.find("table/tbody")] == shown
    assert table.find("h1").text == one_line(odd.title)
    lines = report.table(odd, cells, "simple").splitlines()
    assert len(lines) == 2 + len(ODD)
    assert all(line.startswith(name) for line, name in zip(lines[2:], shown))
    assert "\x1b" not in "".join(lines)


def test_names_in_latex_are_escaped(odd):
    cells = [report.measure(cell, trials(cell, [0.1, 0.2])) for cell in odd.cells]
    rows = report.table(odd, cells, "latex_booktabs").splitlines()[4:8]
    assert rows[2].split(" & ")[0].strip() == (
        r"x\^{}\{ \$\textbackslash{}frac\$ 100\% \#1 \& y\_z"
    )
    assert rows[3].split(" & ")[0].strip() == "1e3"
    assert {row.count(" & ") for row in rows} == {len(ODD)}


def test_the_heading_says_which_error_rate_is_shown(experiment, cells):
    assert report.heading(experiment, cells).startswith("Testing error rate ±")
    lowest = replace(experiment, measure="lowest_error_rate")
    assert report.heading(lowest, cells).startswith("Lowest testing error rate ±")
    assert "Lowest testing error rate" in report.page(lowest, cells, [])


@pytest.fixture
def finished(experiment):
    rates = [[0.12, 0.14, 0.13], [0.5, 0.6, 0.55], [0.1, 0.1], []]
    return [trials(cell, errors) for cell, errors in zip(experiment.cells, rates)]


@pytest.fixture
def cells(experiment, finished):
    return [report.measure(*pair) for pair in zip(experiment.cells, finished)]


def test_the_table_shows_ours_the_papers_and_the_difference(experiment, cells):
    lines = report.table(experiment, cells, "simple").splitlines()
    assert lines[0].split() == ["no-attack", "full"]
    assert lines[2].split(None, 1)[0] == "median"
    assert "0.13 ±0.02 (0.12, +0.01)" in lines[2]
    assert "0.55 ±0.12 (0.52, +0.03)" in lines[2]
    assert lines[3].split() == ["mean", "0.10", "missing"]


def test_the_table_marks_cells_outside_and_cells_with_too_few_trials(experiment):
    outside, few = [[0.3, 0.31, 0.3], [0.5, 0.5]]
    cells = [
        report.measure(cell, trials(cell, errors))
        for cell, errors in zip(experiment.cells, [outside, few, [], []])
    ]
    text = report.table(experiment, cells, "github")
    assert r"0.30 ±0.01 (0.12, +0.18) \*" in text
    assert "0.50 (0.52, -0.02) ?" in text
    assert report.summary_line(cells) == "1 outside, 1 too few trials"


def test_columns_stand_in_their_order_whichever_cells_are_left_out(experiment, cells):
    """The first row has but the second column, the second but the first."""
    text = report.table(experiment, [cells[1], cells[2]], "simple").splitlines()
    assert text[0].split() == ["no-attack", "full"]
    assert text[2].split()[:2] == ["median", "-"]
    assert text[3].split() == ["mean", "0.10", "-"]
    [first, _] = experiment.columns
    assert report.table(experiment, [cells[2]], "simple").split()[0] == first


def test_the_csv_has_one_line_per_cell(experiment, cells):
    frame = report.as_frame(experiment, cells)
    assert list(frame.columns) == [
        "experiment", "row", "column", "paper", "mean", "std", "ci95", "trials", "diverged",
        "difference", "verdict",
    ]  # fmt: skip
    first = frame.iloc[0]
    assert (first["experiment"], first["row"], first["column"]) == ("mine", "median", "no-attack")
    assert (first["paper"], first["mean"], first["trials"], first["diverged"]) == (0.12, 0.13, 3, 1)
    assert list(frame["verdict"])[2:] == ["not in the paper", "missing"]
    assert math.isnan(frame.iloc[3]["mean"])


def test_the_page_says_the_command_the_seeds_the_time_and_the_versions(experiment, cells, finished):
    page = report.page(experiment, cells, [t for part in finished for t in part])
    assert page.startswith("# Mine\n")
    assert f"python -m fltrust_repro {experiment.command} --trials 3 --seed 0`" in page
    assert experiment.command.startswith("reproduce ")
    assert experiment.command.endswith("mine.toml")
    assert "8 in all, seeds 0 to 2" in page
    assert "Training time: 8.00 hours" in page
    assert "python 3.11, cpu" in page
    assert "| median" in page


RATES = st.lists(st.integers(0, 1000).map(lambda k: k / 1000), min_size=3, max_size=10)


@given(RATES, RATES)
def test_significance_and_interval_are_those_of_scipys_statistics(errors, others):
    assume(len(set(errors)) > 1 and len(set(others)) > 1)
    test = stats.ttest_ind(errors, others, equal_var=False, alternative="greater")
    assume(abs(test.pvalue - 0.05) > 1e-9)
    assert report.significantly_above(errors, others) == (test.pvalue < 0.05)
    half = stats.sem(errors) * stats.t.ppf(0.975, len(errors) - 1)
    measured = report.Measured(None, tuple(errors), 0)
    assert measured.half_width == pytest.approx(half, abs=1e-12)


# Leading and trailing space says nothing in a table or a span of code.
TEXT = st.text(st.sampled_from("ab_ *`|\\[]()<>&~$!#-1.\n\t\x1b\u2028") | st.characters()).filter(
    lambda text: text.strip() and text == text.strip()
)
RENDERER = MarkdownIt().enable("table")


@given(TEXT)
def test_a_cell_of_a_markdown_table_shows_the_text(text):
    tokens = RENDERER.parse(f"| a | b |\n|---|---|\n| {markdown(text)} | 1 |")
    shown = [token.children for token in tokens if token.type == "inline"]
    assert len(shown) == 4
    assert "".join(child.content for child in shown[2]) == one_line(text)
    assert {child.type for child in shown[2]} <= {"text", "text_special"}


@given(TEXT)
def test_markdown_code_shows_the_text(text):
    [_, inline, _] = RENDERER.parse(f"Command: {markdown_code(text)}")
    *_, code = inline.children
    assert (code.type, code.content) == ("code_inline", one_line(text))


@pytest.mark.parametrize("name", ["no-attack", "trimmed-mean", "my_rule", "m = 50", "p = 0.5"])
def test_common_names_are_left_as_they_are(name):
    assert markdown(name) == name
