"""What one sees while trials run: a bar and a table of means so far, or plain lines in a log.

The bar, how many trials are done and the time left always show; of a table that is larger than the
window those rows and columns do in which trials run, or ended last.
"""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fltrust_repro.errors import one_line
from fltrust_repro.experiments import Cell
from fltrust_repro.settings import Setting
from fltrust_repro.trials import Trial
from fltrust_repro.words import counted, cut, lasting, spanning

_LINE_SECONDS = 30  # between the lines of a log
_LOG_WIDTH = 120  # letters of one
_REMEMBERED_SECONDS = 300  # the rate is that of the last minutes; trials differ
_AROUND = (
    6  # lines of the window that hold no row: bar, title, header, rule, what is left out, cursor
)
_GAP = 2  # between columns
_ENDS = (", ", ": ")  # of a part of a row's name
_WORD = 12  # letters of a line of a column's name
_OF_NAMES = (0.8, 0.5)  # of the width, beside one column or several


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal what is waited for."""
    with Console(stderr=True).status(f"{what} ..."):
        yield


@contextlib.contextmanager
def steps(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar, where there are steps; gives what counts one."""
    with Progress(console=Console(stderr=True), disable=not total) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


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
        self._cells, self._measure = cells, measure.replace("_", " ")
        self._field = measure
        self._errors = defaultdict(list, {one: [*errors] for one, errors in known.items()})
        self._trials, self._done, self._failed, self._running = trials, 0, 0, 0
        self._changed: list[Setting] = []
        self._touched: dict[Setting, None] = {}  # in the order in which a trial began or ended
        self._iterations, self._said = iterations, ""
        self._console = console or Console(stderr=True)
        self._bar = Progress(console=self._console, speed_estimate_period=_REMEMBERED_SECONDS)
        self._task = self._bar.add_task("", total=iterations)
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

    def begun(self, setting: Setting) -> None:
        """Take note of a trial that starts."""
        self._touched.pop(setting, None)
        self._touched[setting] = None

    def done(self, trial: Trial) -> None:
        """Count a finished trial."""
        self._done += 1
        self._errors[trial.setting].append(trial.error(self._field))
        self._changed.append(trial.setting)
        self.begun(trial.setting)

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
        self._bar.update(self._task, completed=min(iterations, self._iterations))
        due = time.monotonic() - self._last_line >= _LINE_SECONDS
        if due and not self._console.is_terminal:
            self._print_line()

    def _counts(self) -> str:
        failed = f", {self._failed} failed" * bool(self._failed)
        running = f", {self._running} running" * bool(self._running)
        return f"{self._done:,}/{self._trials:,} trials done{failed}{running}"

    def _pace(self, rate: bool) -> list[str]:
        """What is known of the rate and of the time left."""
        task = self._bar.tasks[0]
        told = [f"{task.speed:.1f} it/s"] if task.speed and rate else []
        left = task.time_remaining
        return [*told, f"{lasting(left)} left"] if left else told

    def _picture(self) -> Group:
        width, height = self._console.size
        task = self._bar.tasks[0]
        told = ", ".join([self._counts(), *self._pace(rate=width >= 100)])
        bar = ProgressBar(
            max(task.total or 0, 1), task.completed, width=max(width - len(told) - 2, 4)
        )
        line = Table.grid(padding=(0, _GAP))
        line.add_row(bar, Text(told, no_wrap=True, overflow="ellipsis"))
        if height <= _AROUND:
            return Group(line)
        found = Means(self._cells, self._errors, [*reversed(self._touched)])
        return Group(line, *found.shown(f"mean {self._measure} so far", width, height - _AROUND))

    def _print_line(self) -> None:
        changed = set(self._changed)
        news = [
            f"{one_line(f'{cell.row} {cell.column}'.strip())} {fmean(errors):.3f} ({len(errors)})"
            for cell in self._cells
            if cell.setting in changed and (errors := self._errors[cell.setting])
        ]
        line = ", ".join([self._counts(), *self._pace(rate=True)])
        for place, one in enumerate(news):
            more = f"; {counted(len(news) - place, 'more cell')}"
            if len(line) + len(one) + 2 > _LOG_WIDTH - len(more) * (place < len(news) - 1):
                line += more
                break
            line += f"; {one}"
        self._console.print(Text(line), soft_wrap=True)
        self._changed, self._last_line = [], time.monotonic()


class Means:
    """The means of a table's cells, as far as a window has room for them."""

    def __init__(
        self,
        cells: Sequence[Cell],
        errors: Mapping[Setting, Sequence[float]],
        touched: Sequence[Setting],
    ) -> None:
        self._errors = errors
        self._settings = {(cell.row, cell.column): cell.setting for cell in cells}
        order = {setting: place for place, setting in enumerate(touched)}
        newest = sorted(cells, key=lambda cell: order.get(cell.setting, len(order)))
        self._rows = list(dict.fromkeys(cell.row for cell in cells))
        self._columns = list(dict.fromkeys(cell.column for cell in cells))
        self._newest_rows = list(dict.fromkeys(cell.row for cell in newest))
        self._newest_columns = list(dict.fromkeys(cell.column for cell in newest))

    def shown(self, title: str, width: int, height: int) -> Iterator[Table | Text]:
        """Yield a title, the table of what fits, and how much does not."""
        height -= max(len(_header(column)) for column in self._columns) - 1
        rows = self._newest_rows[: max(height, 1)]
        rows = [row for row in self._rows if row in rows]
        shared, names = without_shared(list(map(one_line, rows)))
        most = int(width * _OF_NAMES[len(self._columns) > 1])
        names = [cut(name, most) for name in names]
        room = width - max(map(len, names))
        counts = {len(some) for some in map(self._of, self._settings) if some}
        each = len(counts) > 1 and self._fitting(room, True) == self._columns
        columns = self._fitting(room, each)
        told = [title, shared] if shared else [title]
        if counts and not each:
            told.append(f"{spanning(counts, 'trial')} each")
        yield Text(", ".join(told) + " (trials)" * each, no_wrap=True, overflow="ellipsis")
        table = Table(
            box=box.SIMPLE_HEAD, padding=(0, _GAP, 0, 0), show_header=any(columns),
            show_edge=False, pad_edge=False,
        )  # fmt: skip
        table.add_column("", no_wrap=True)
        for column in columns:
            table.add_column(Text("\n".join(_header(column))), justify="right", no_wrap=True)
        for row, name in zip(rows, names):
            cells = (self._told((row, column), each) for column in columns)
            table.add_row(Text(name), *cells)
        yield table
        hidden = [len(self._rows) - len(rows), len(self._columns) - len(columns)]
        if any(hidden):
            more = (counted(n, what) for n, what in zip(hidden, ("row", "column")) if n)
            yield Text(f"... and {' and '.join(more)} more")

    def _of(self, place: tuple[str, str]) -> Sequence[float]:
        setting = self._settings.get(place)
        return self._errors.get(setting, ()) if setting else ()

    def _told(self, place: tuple[str, str], each: bool) -> str:
        some = self._of(place)
        return f"{fmean(some):.3f}" + f" ({len(some)})" * each if some else ""

    def _fitting(self, room: int, each: bool) -> list[str]:
        """The columns for which there is room, at least one, in the table's order."""
        chosen: set[str] = set()
        for column in self._newest_columns:
            cells = (self._told((row, column), each) for row in self._rows)
            room -= _GAP + max(map(len, [*_header(column), *cells]))
            if room < 0 and chosen:
                break
            chosen.add(column)
        return [column for column in self._columns if column in chosen]


def _header(column: str) -> list[str]:
    """The lines of a column's name."""
    return textwrap.wrap(one_line(column), _WORD) or [""]


def without_shared(names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the parts, up to a comma or colon, that all names begin with, and what is left.

    >>> from fltrust_repro.progress import without_shared
    >>> without_shared(["rule krum, c 5", "rule krum, c 10"])
    ('rule krum', ['c 5', 'c 10'])
    """
    first = names[0]
    ends = [place for place in range(len(first), 0, -1) if first[place - 1 : place + 1] in _ENDS]
    for end in ends if len(names) > 1 else ():
        if all(name.startswith(first[: end + 1]) for name in names):
            return first[: end - 1], [name[end + 1 :] for name in names]
    return "", [*names]
