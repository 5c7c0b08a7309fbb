"""What one sees while trials run: a table of means so far and a bar, or plain lines in a log."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from fltrust_repro.errors import one_line
from fltrust_repro.experiments import Cell
from fltrust_repro.settings import Setting
from fltrust_repro.trials import Trial

_LINE_SECONDS = 30  # between the lines of a log
_REMEMBERED_SECONDS = 300  # the rate is that of the last minutes; trials differ


def table_of(settings: Sequence[Setting]) -> list[Cell]:
    """Return a row for each setting, named by the fields in which it differs from the others."""
    told = [setting.as_dict() for setting in settings]
    varied = [name for name in told[0] if len({fields[name] for fields in told}) > 1] or ["rule"]
    names = [", ".join(f"{name} {fields[name]}" for name in varied) for fields in told]
    return [Cell(name, "", setting, None) for name, setting in zip(names, settings)]


class Watch:
    """Shows trials done, failed and running, the rate, the time left, and the means of `cells`.

    `known` are the values of `measure` of trials finished before, `trials` how many are to be run.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        known: Mapping[Setting, Iterable[float]],
        trials: int,
        iterations: int,
        console: Console | None = None,
        measure: str = "error_rate",
    ) -> None:
        self._cells, self._measure = cells, measure
        self._errors = defaultdict(list, {one: [*errors] for one, errors in known.items()})
        self._trials, self._done, self._failed, self._running = trials, 0, 0, 0
        self._changed: list[Setting] = []
        self._iterations, self._said = iterations, ""
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=_REMEMBERED_SECONDS,
        )
        self._task = self._bar.add_task(self._counts(), total=iterations, rate="")
        self._last_line = time.monotonic()
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            refresh_per_second=2,
            transient=True,
        )

    def __enter__(self) -> Watch:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self._changed = []  # the table itself comes next
        self._print_line()

    def done(self, trial: Trial) -> None:
        """Count a finished trial."""
        self._done += 1
        self._errors[trial.setting].append(trial.error(self._measure))
        self._changed.append(trial.setting)

    def failed(self) -> None:
        """Count a trial that failed for good."""
        self._failed += 1

    def left_to_others(self, setting: Setting) -> None:
        """Count a trial that another command has finished meanwhile."""
        self._trials -= 1
        self.spared(setting.iterations)

    def spared(self, iterations: int) -> None:
        """Count iterations that were done before."""
        self._iterations -= iterations
        self._bar.update(self._task, total=self._iterations)

    def say(self, line: str) -> None:
        """Print a line above the table; one that was said last is not repeated."""
        if line != self._said:
            self._console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._said = line

    def update(self, running: int, iterations: int) -> None:
        """Say how many trials run now, and how many iterations are done."""
        self._running = running
        speed, done = self._bar.tasks[0].speed, min(iterations, self._iterations)
        rate = f"{speed:.1f} it/s" if speed else ""
        self._bar.update(self._task, completed=done, description=self._counts(), rate=rate)
        due = time.monotonic() - self._last_line >= _LINE_SECONDS
        if due and not self._console.is_terminal:
            self._print_line()

    def _counts(self) -> str:
        done = f"{self._done}/{self._trials} trials done"
        return f"{done}, {self._failed} failed, {self._running} running"

    def _picture(self) -> Group:
        title = f"mean {self._measure.replace('_', ' ')} so far (trials)"
        columns = list(dict.fromkeys(cell.column for cell in self._cells))
        headers = (Column(_literally(column)) for column in columns)
        table = Table("", *headers, title=title, title_justify="left")
        for row in dict.fromkeys(cell.row for cell in self._cells):
            settings = {cell.column: cell.setting for cell in self._cells if cell.row == row}
            table.add_row(_literally(row), *(self._mean(settings.get(each)) for each in columns))
        return Group(table, self._bar)

    def _mean(self, setting: Setting | None) -> str:
        errors = self._errors.get(setting) if setting else None
        return f"{fmean(errors):.3f} ({len(errors)})" if errors else ""

    def _print_line(self) -> None:
        task, changed = self._bar.tasks[0], set(self._changed)
        words = [self._counts()]
        words += [f"{task.speed:.1f} it/s"] if task.speed else []
        if task.time_remaining is not None:
            words.append(f"{timedelta(seconds=round(task.time_remaining))} left")
        news = [
            f"{one_line(f'{cell.row} {cell.column}'.strip())} {self._mean(cell.setting)}"
            for cell in self._cells
            if cell.setting in changed
        ]
        self._console.print(Text("; ".join([", ".join(words), *news])), soft_wrap=True)
        self._changed, self._last_line = [], time.monotonic()


def _literally(name: str) -> Text:
    """A name as it is: a string would be read as rich's markup."""
    return Text(one_line(name))
