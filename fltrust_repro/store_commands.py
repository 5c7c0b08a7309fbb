"""`show`, `export`, `import` and `report`: what there is, with no training."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fltrust_repro import (
    arena_page,
    captions,
    definitions,
    fidelity,
    fidelity_page,
    finding,
    labels,
    options,
    report,
    reproduction,
)
from fltrust_repro.archive import Archive
from fltrust_repro.drawing import check_picture
from fltrust_repro.errors import BadInput, one_line
from fltrust_repro.experiments import Experiment, load_experiment
from fltrust_repro.files import check_writable, is_file, write_bytes, write_text
from fltrust_repro.filters import Wanted, filter_options
from fltrust_repro.settings import FIELDS, Setting
from fltrust_repro.store import Store
from fltrust_repro.trial_files import ENDING, is_csv, read_csv
from fltrust_repro.trial_pictures import draw_trial
from fltrust_repro.trials import COLUMNS, Trial, TrialName, Trials
from fltrust_repro.words import counted

if TYPE_CHECKING:
    import pandas as pd

Papers = Mapping[str, Sequence[Experiment]]  # by who published them


@click.command()
@click.argument("place", nargs=-1, metavar="[EXPERIMENT ROW COLUMN]")
@options.setting_options()
@options.seed_option(0, "Which trial.")
@click.option("--picture", type=options.FILE, help="Draw the curve, as PNG or SVG.")
@options.grey_option
@options.store_option
@options.out_option
@options.finished_options()
@click.pass_context
def show(
    context: click.Context,
    place: tuple[str, ...],
    first_seed: int,
    picture: Path | None,
    grey: bool,
    store_path: Path,
    out: Path,
    **fields: Any,
) -> None:
    """Print one trial's error curve: of a cell of an experiment, or of a setting as for `run`.

    The picture has the loss beside it, thin the setting's other seeds, and where there is such a
    trial the same seed without attack.
    """
    if picture is not None:
        check_picture(picture)
        check_writable(picture.parent, "--picture")
    if len(place) not in (0, 3):
        do = "give EXPERIMENT ROW COLUMN, as `show table2a krum full --seed 10`"
        wrong = f"{' '.join(place)!r} is no place of a table"
        raise BadInput(f"{wrong}; {do}, or the setting by options.")
    if place:
        own = {*fields, "readings"}
        if given := [option for name, option in options.typed(context) if name in own]:
            raise BadInput(f"{given[0]} is given, but {' '.join(place)} decides it; leave it out.")
        setting = load_experiment(place[0]).choose(place[1:2], place[2:])[0].setting
    else:
        setting = Setting.from_dict(fields)
    known, plain = _trials_of(setting, first_seed, store_path, out)
    trial = known.pop(first_seed)
    result = trial.result
    click.echo(one_line(captions.of_setting(setting)))
    click.echo(f"seed {trial.seed}, error rate {result.error_rate:.4f}, {result.seconds:.1f} s")
    click.echo(f"{trial.versions}, {trial.device}, {trial.finished}")
    click.echo(json.dumps(result.notes))
    columns = ("iteration", "error rate", "training loss")
    curve = [dict(zip(columns, point)) for point in result.curve]
    click.echo(report.rendered(curve, "simple", ".4f"))
    if picture is not None:
        others = [other for other in known.values() if other.result.curve]
        draw_trial(trial, picture, plain, others, grey)
        click.echo(reproduction.wrote([picture]), err=True)


def _trials_of(
    setting: Setting, seed: int, store_path: Path, out: Path
) -> tuple[dict[int, Trial], Trial | None]:
    """A setting's trials by seed, that seed among them, and the same seed without attack."""
    bare = setting.without_attack()
    with Archive(store_path) as store:
        reproduction.read_back(store, out, [setting, bare])
        known = {trial.seed: trial for trial in store.find(setting)}
        alike = store.find(bare, range(seed, seed + 1)) if bare != setting else []
        failure = store.failures().get(TrialName.of(setting, seed))
        store.left_out.tell()
    if seed in known:
        return known, next((trial for trial in alike if trial.result.curve), None)
    if failure is not None:
        click.echo(failure.details)
        raise BadInput(f"the trial with seed {seed} failed: {failure.message}.")
    rest = {n: v for n, v in labels.told(setting).items() if n not in captions.TOLD}
    more = f" ({labels.in_words(rest)})" if rest else ""
    what = captions.of_setting(setting) + more
    there = f"there are {report.seeds_told(known)}" if known else "there is none"
    do = "`trials` lists what there is"
    raise BadInput(
        f"no finished trial of {one_line(what)} has seed {seed}; of seeds {there}; {do}."
    )


@click.command("export")
@click.argument("file", type=options.FILE)
@filter_options
@options.store_option
@options.finished_options()
def export_command(file: Path, wanted: Wanted, store_path: Path) -> None:
    """Write finished trials as one table, a column per setting field: FILE.csv or .parquet.

    All of the store's, or those that options of a setting choose, as for `trials`.
    """
    if file.suffix not in (".csv", ".parquet"):
        raise BadInput(f"{str(file)!r} is neither .csv nor .parquet; name the file so.")
    if file.name.endswith(ENDING):
        wrong = f"{str(file)!r} has the name of files that are read back as results"
        raise BadInput(f"{wrong}, which an export is not; name it otherwise, as NAME.csv.")
    if not is_file(store_path):
        raise BadInput(f"store {str(store_path)!r} does not exist; give --store one that does.")
    if is_file(file) and file.samefile(store_path):
        raise BadInput(f"{str(file)!r} is the store itself; name another file.")
    check_writable(file.parent, "FILE")
    with Archive(store_path) as store:
        found = [finding.Found(trial, store_path) for trial in store.everything()]
        store.left_out.tell()
    trials = (one.trial for one in finding.chosen(found, wanted))
    lines = [
        {"iterations_done": trial.result.iterations, **trial.row(), **trial.setting.as_dict()}
        for trial in trials
    ]
    first = dict.fromkeys([*TrialName._fields, *FIELDS])
    others = [name for name in COLUMNS if name not in {*first, "setting"}] + ["iterations_done"]
    from pandas import DataFrame  # which takes a while to load

    frame = DataFrame(lines, columns=[*first, *others])
    content = io.BytesIO()
    if file.suffix == ".csv":
        frame.apply(lambda column: column.map(_no_formula)).to_csv(content, index=False)
    else:
        try:
            frame.to_parquet(content, index=False)
        except ImportError as error:
            need = 'Parquet needs a package; run `pip install "pyarrow<22"`, or export a .csv.'
            raise BadInput(need) from error
    write_bytes(file, content.getvalue())
    click.echo(f"{counted(len(frame), 'trial')}. {reproduction.wrote([file])}")


def _no_formula(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula, behind an apostrophe."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=options.PATH, metavar="FILE...")
@options.store_option
@options.finished_options()
def import_command(files: tuple[Path, ...], store_path: Path) -> None:
    """Take over the finished trials of other stores, or of .trials.csv files.

    A trial that is there already stays as it is; what is no trial is named and left out.
    """
    for file in files:
        if not file.is_file():
            raise BadInput(f"{str(file)!r} is not a file; give a store or a .trials.csv file.")
    with Store(store_path) as store:
        for file in files:
            if is_csv(file):
                trials = read_csv(file, store.left_out)
                found, added = len(trials), len(store.add(*trials))
            else:
                found, added = store.merge(file)
            click.echo(f"{file}: {counted(found, 'trial')}, {added:,} new")
            store.left_out.tell()
    click.echo(reproduction.wrote([store_path]))


@click.command("report")
@options.store_option
@options.out_option
@options.finished_options()
@click.option("--latex", "as_latex", is_flag=True, help="Write every table as OUT/NAME.tex too.")
@click.option("--html", "as_html", is_flag=True,
              help="Write pages of HTML too: OUT/fidelity.html, with your own sweeps and "
              "experiments in OUT, each table as CSV beside it, and the arena's.")  # fmt: skip
@click.option("--pictures", is_flag=True,
              help="Draw tables and figures as OUT/fidelity-NAME.png and .svg too.")  # fmt: skip
@options.grey_option
def report_command(
    store_path: Path, out: Path, as_latex: bool, as_html: bool, pictures: bool, grey: bool
) -> None:
    """Set every number that the paper prints beside ours, and check its claims in words.

    Another paper's numbers have a page of their own, as fidelity-karimireddy-et-al-iclr-2022. Reads
    the trials in the store, in OUT and those published with the program; runs none. Those with
    seeds 0 to 9, which chose the readings, are left out.
    """
    check_writable(out)
    experiments = fidelity.all_experiments()
    with Archive(store_path) as store:
        own = definitions.kept(out, store.left_out) if as_html else []
        # The arena's breakdowns have settings that no experiment names.
        finished = (
            reproduction.everything(store, out)
            if as_html
            else reproduction.finished(store, out, experiments)
        )
    trials = reproduction.reported(finished)
    papers = fidelity.by_paper(experiments)
    frames = {paper: fidelity.as_frame(some, trials) for paper, some in papers.items()}
    files = _write(_texts(papers, trials, frames, as_latex), out)
    if as_html:
        files += _write_html(papers, trials, frames, own, finished, out, grey)
    if pictures:
        files += fidelity.draw(experiments, trials, out, grey)
    for paper, frame in frames.items():
        of = "" if paper == fidelity.PAPER else f"{one_line(paper)}: "
        click.echo(f"{of}{fidelity.summary(frame)} {fidelity.SEEDS_TOLD}")
        for line in fidelity.outside(frame):
            click.echo(line)
    click.echo(reproduction.wrote(files))


def _texts(
    papers: Papers, trials: Trials, frames: Mapping[str, pd.DataFrame], as_latex: bool
) -> dict[str, str]:
    """The report on each paper, and its tables as LaTeX if asked for, by the names of files."""
    texts: dict[str, str] = {}
    for paper, some in papers.items():
        name = fidelity.page_name(paper)
        texts[f"{name}.md"] = fidelity.markdown(some, trials, frames[paper])
        texts[f"{name}.csv"] = frames[paper].to_csv(index=False)
        if as_latex:
            tables = (one for one in some if one.figure is None)
            texts.update({f"{table.name}.tex": fidelity.latex(table, trials) for table in tables})
    return texts


def _write_html(
    papers: Papers, trials: Trials, frames: Mapping[str, pd.DataFrame],
    own: Sequence[Experiment], finished: Trials, out: Path, grey: bool,
) -> list[Path]:  # fmt: skip
    """Write a page for each paper, the arena's, and the tables that they lead to; return pages."""
    rankings, curves = arena_page.at_hand(finished)
    beside, best = {file.name for file in out.iterdir()}, next(iter(rankings), None)
    pages = {}
    for paper, some in papers.items():
        arena, mine = (best, own) if paper == fidelity.PAPER else (None, [])
        told = some, trials, frames[paper], arena, mine, finished, beside
        pages[f"{fidelity.page_name(paper)}.html"] = fidelity_page.page(*told)
        _write(fidelity_page.tables(some, trials), out)
    _write(fidelity_page.tables(own, finished), out)
    return [*_write(pages, out), *arena_page.write(rankings, curves, out, grey)]


def _write(texts: dict[str, str], out: Path) -> list[Path]:
    """Write each text as the file of its name in a folder; return the files."""
    files = [out / name for name in texts]
    for file, text in zip(files, texts.values()):
        write_text(file, text)
    return files
