"""What one sees while trials run, on a terminal and in a log; and how trials share GPUs."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
from rich.console import Console

from fltrust_repro import processes, progress
from fltrust_repro.experiments import Cell, figure_of
from fltrust_repro.processes import LocalProcesses, Machine
from fltrust_repro.progress import Watch
from fltrust_repro.settings import Setting
from fltrust_repro.training import TrialResult
from fltrust_repro.trials import Trial

PLAIN = Setting(dataset="digits", iterations=10)
ATTACKED = Setting(dataset="digits", iterations=10, attack="krum")
CELLS = [Cell("krum", "no attack", PLAIN, None), Cell("krum", "full", ATTACKED, None)]


@pytest.fixture(autouse=True)
def _a_terminal_that_can_redraw(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # and not "dumb", as that of who runs the tests may be


def trial(setting: Setting, error_rate: float) -> Trial:
    result = TrialResult(error_rate, error_rate, 10, False, 1.0, [(10, error_rate, 1.0)], 0)
    return Trial(setting, 0, result, "cpu", "", "", "1")


def shown(terminal: bool, act, cells=CELLS, **options) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, color_system=None)
    with Watch(cells, {PLAIN: [0.2]}, 3, 30, console, **options) as watch:
        act(watch)
    return text.getvalue()


def test_a_terminal_shows_the_table_of_means_and_a_bar():
    def act(watch: Watch) -> None:
        watch.done(trial(PLAIN, 0.1))
        watch.failed()
        watch.update(2, 15)
        watch._live.refresh()

    text = shown(True, act)
    assert "1/3 trials done, 1 failed, 2 running" in text
    assert "mean error rate so far, 2 trials each" in text  # once, and not in every cell
    assert "0.150" in text
    assert "no attack" in text


def test_a_log_gets_plain_lines_with_what_changed(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0)

    def act(watch: Watch) -> None:
        watch.update(2, 0)
        watch.done(trial(ATTACKED, 0.5))
        watch.update(2, 15)
        watch.update(1, 20)

    lines = shown(False, act).splitlines()
    assert lines[0].startswith("0/3 trials done, 2 running")
    assert lines[1].endswith("; krum full 0.500 (1)")
    assert "krum" not in lines[2]
    assert all("\x1b" not in line for line in lines)


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", ":warning:", "[link=x]y", "\\[b]"])
def test_names_are_no_markup(name):
    cells = [Cell(f"row {name}", name, PLAIN, None)]

    def act(watch: Watch) -> None:
        watch.done(trial(PLAIN, 0.1))
        watch._live.refresh()

    assert f"row {name}" in shown(True, act, cells)
    assert f"; row {name} {name} 0.150 (2)" in shown(False, act, cells)


def test_names_do_not_command_the_terminal(monkeypatch):
    cells = [Cell("two\nlines\x1b[2J", "x", PLAIN, None)]
    for terminal in (True, False):
        text = shown(terminal, lambda watch: watch.done(trial(PLAIN, 0.1)), cells)
        assert "\x1b[2J" not in text
    assert r"two\nlines\x1b[2J x 0.150 (2)" in text


def test_a_table_of_lowest_error_rates_shows_those_meanwhile_too():
    ended = trial(PLAIN, 0.9)
    ended = replace(ended, result=replace(ended.result, lowest_error_rate=0.1))

    def act(watch: Watch) -> None:
        watch.done(ended)
        watch._live.refresh()

    text = shown(True, act, measure="lowest_error_rate")
    assert "mean lowest error rate so far, 2 trials each" in text
    assert "0.150" in text
    assert "0.150 (2)" in shown(False, act, measure="lowest_error_rate")
    assert "0.550 (2)" in shown(False, act)


FIGURE = figure_of(
    "f", "sweep", "t", {"dataset": "digits", "workers": 30, "iterations": 10},
    {rule: {"rule": rule} for rule in ("krum", "trimmed-mean", "median", "mean", "bulyan")},
    {f"{attack}, {k}": {"attack": attack, "knowledge": k}
     for attack in ("krum", "trimmed-mean") for k in ("partial", "full")},
    "c", [1, 2, 3, 4, 5, 6],
).cells  # fmt: skip


def picture(cells, width: int, height: int, ended: int, running: int = 2) -> list[str]:
    """The lines of a window in which some trials have ended, at a known pace."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    watch = Watch(cells, {}, 3 * len(cells), 30 * len(cells), console)
    now = [0.0]
    watch._bar.get_time = lambda: now[0]
    for count, cell in enumerate(cells[: ended + running]):
        watch.begun(cell.setting)
        if count < ended:
            watch.done(trial(cell.setting, 0.25))
            now[0] += 60
            watch.update(running, 10 * (count + 1))
    with (seen := Console(width=width, height=height, color_system=None)).capture() as text:
        seen.print(watch._picture())
    return text.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 12), (20, 5)])
@pytest.mark.parametrize("ended", [2, 60, 110])
def test_bar_count_and_time_left_are_seen_in_any_window(width, height, ended):
    lines = picture(FIGURE, width, height, ended)
    assert len(lines) < height  # with the line of the cursor
    assert max(map(len, lines)) <= width
    assert f"{ended}/360 trials" in lines[0] or width < 60
    assert lines[0].endswith("left") or width < 60


def test_a_window_that_is_too_small_shows_the_rows_and_columns_in_which_trials_run():
    lines = picture(FIGURE, 80, 24, 110)
    assert lines[-1] == "... and 2 rows more"
    assert lines[-2].startswith("bulyan: trimmed-mean, partial ")  # where two run
    assert not any(line.startswith("krum: krum, partial") for line in lines)
    wide = [Cell("one row", f"long name of col {k}", cell.setting, None)
            for k, cell in enumerate(FIGURE[:40])]  # fmt: skip
    lines = picture(wide, 80, 24, 30)
    assert lines[-1] == "... and 35 columns more"
    assert {"27", "28", "29", "30", "31"} <= {*" ".join(lines).split()}  # the last two run


def test_names_are_told_apart_though_they_are_cut():
    rows = [line.split("  ")[0] for line in picture(FIGURE, 40, 40, 110)[4:-1]]
    assert len(set(rows)) == len(rows) == 20
    one_rule = [c for c in FIGURE if c.row.startswith("trimmed-mean")]
    lines = picture(one_rule, 80, 24, 3)
    assert lines[1] == "mean error rate so far, trimmed-mean, 1 trial each"
    assert lines[4].startswith("krum, partial ")


def test_counts_that_differ_are_told_in_the_cells_where_there_is_room():
    cells = [replace(cell, row=cell.row[:12]) for cell in CELLS]
    text = shown(True, lambda watch: (watch.done(trial(ATTACKED, 0.1)),
                                      watch.done(trial(ATTACKED, 0.3)), watch._live.refresh()),
                 cells)  # fmt: skip
    assert "0.200 (1)" in text
    assert "0.200 (2)" in text
    lines = picture([*FIGURE, FIGURE[0]], 80, 24, 121)
    assert lines[1].endswith(", 1 to 2 trials each")


def test_a_line_of_a_log_is_short_however_much_has_changed(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0)

    def act(watch: Watch) -> None:
        for cell in FIGURE:
            watch.done(trial(cell.setting, 0.5))
        watch.update(2, 15)

    line = shown(False, act, FIGURE).splitlines()[0]
    assert 80 < len(line) <= 120
    assert "; krum: krum, partial c = 1 0.500 (1); " in line
    assert line.endswith("more cells")


def test_the_time_left_is_told_in_words():
    assert picture(FIGURE, 80, 24, 2)[0].endswith(", 5 h 58 min left")


def test_a_log_is_quiet_between_its_lines():
    def act(watch: Watch) -> None:
        for _ in range(100):
            watch.update(2, 1)

    assert len(shown(False, act).splitlines()) == 1  # the last one


def test_a_trial_that_another_command_finished_is_no_longer_to_be_done():
    def act(watch: Watch) -> None:
        watch.left_to_others(PLAIN)
        watch.update(0, 20)

    assert "0/2 trials done" in shown(False, act)


def test_iterations_done_before_are_not_to_be_done_and_make_no_rate():
    def act(watch: Watch) -> None:
        watch.spared(10)
        watch.update(1, 0)
        assert watch._bar.tasks[0].total == 20
        watch.update(1, 20)
        assert watch._bar.tasks[0].finished

    assert "it/s" not in shown(False, act).splitlines()[0]


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs and eight cores, as far as the scheduling of trials goes."""
    monkeypatch.setattr(processes, "resolve_device", lambda name: "gpu")
    monkeypatch.setattr(processes, "gpu_count", lambda: 2)
    monkeypatch.setattr(processes, "usable_cores", lambda: 8)


@pytest.mark.parametrize(
    ("jobs", "memory", "slots"),
    [
        (None, 0.2, 8),  # four on each
        (None, 0.4, 4),
        (None, 0.5, 2),  # two halves leave nothing for the rest of the GPU's users
        (None, 0.01, 8),  # no more than there are cores
        (None, 0.0, 2),  # not known
        (3, 0.01, 3),
    ],
)
def test_as_many_trials_share_a_gpu_as_its_memory_holds(gpus, jobs, memory, slots):
    executor = LocalProcesses(Machine(device="gpu", jobs=jobs))
    executor.share_gpus(memory)
    assert executor.slots() == slots
    assert {executor.gpu_of(slot) for slot in range(slots)} == {0, 1}
    executor.close()


def test_trials_on_the_cpu_take_a_core_each(monkeypatch):
    monkeypatch.setattr(processes, "usable_cores", lambda: 8)
    executor = LocalProcesses(Machine(device="cpu"))
    executor.share_gpus(0.0)
    assert executor.slots() == 8
    executor.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_process_starts_leaves_none_behind(monkeypatch, capfd, number):
    """It would be told but a part of what it needs, or be unknown to who ends them all."""

    class Interrupted(ProcessPoolExecutor):
        def submit(self, *args):
            call = super().submit(*args)
            os.kill(os.getpid(), number)
            return call

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Interrupted)
    others, before = {*multiprocessing.active_children()}, signal.signal(number, stop)
    executor = LocalProcesses(Machine(device="cpu", jobs=1))
    try:
        with pytest.raises(KeyboardInterrupt):
            executor.submit(time.sleep, 1000)
    finally:
        signal.signal(number, before)
        executor.stop()
    patience = time.monotonic() + 20  # the pool's own thread may be the one that hears of its end
    while (left := {*multiprocessing.active_children()} - others) and time.monotonic() < patience:
        time.sleep(0.01)
    for process in left:
        process.kill()
    assert not left
    assert "Traceback" not in capfd.readouterr().err
