"""Runs side by side: rows of entries, columns of tasks, for a terminal, Markdown or JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import NamedTuple, TypeVar

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from lspt_serve.errors import SweepError, printable
from lspt_serve.preprocess import NORMALISATIONS
from lspt_serve.results.published import (
    PUBLISHED,
    PUBLISHED_COLUMNS,
    Pretraining,
    published_note,
)
from lspt_serve.results.runs import Run, Triple
from lspt_serve.results.statistics import Figure, mean_over_tasks, paired_difference, summarise

__all__ = ["Comparison", "Grid", "Row", "Text", "compare", "comparison_grid"]

T = TypeVar("T")
Tests = dict[str, dict[int, float]]  # task -> seed -> test accuracy
TO_BEST = (
    "to the best: mean over tasks minus that of the best entry, seed by seed, ± standard deviation"
)
APART = "compare them one file or folder at a time, or name their entries differently"


@dataclass(frozen=True)
class Row:
    """An entry: test accuracies in [0, 1] by task; a task whose every run failed is missing."""

    name: str
    method: str
    tasks: dict[str, Figure]
    mean: Figure | None  # over tasks; None unless all tasks of the comparison are there
    task_bytes: float | None  # mean over tasks
    train_s: float | None  # mean over runs
    to_best: Figure | None = None  # mean minus the best row's, by seed; None: the best, or unpaired


@dataclass(frozen=True)
class Comparison:
    """Runs that may stand in one table: of one backbone, protocol and preprocessing."""

    caption: str
    tasks: list[str]
    rows: list[Row]
    failures: list[str]  # a line each


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Group runs by their circumstances; rows and tasks stay in the order that they come in.

    Raises:
        SweepError: two different runs of one entry, task and seed; or runs of one entry and task
            that were trained otherwise.
    """
    grouped: dict[tuple[object, ...], dict[tuple[str, str, int], Run]] = {}
    for run in runs:
        group = grouped.setdefault(run.circumstances, {})
        known = group.setdefault((run.name, run.task, run.seed), run)
        if known != run:
            raise SweepError(
                f"two different runs of {run.name!r} on task {run.task!r} with seed {run.seed}; "
                f"{APART}"
            )
    comparable = [list(group.values()) for group in grouped.values()]
    for own in comparable:
        _check_alike(own)
    return [_compare(own) for own in comparable]


def _check_alike(runs: list[Run]) -> None:
    """Raises SweepError where runs are no seeds of the same."""
    firsts: dict[tuple[str, str], Run] = {}
    for run in runs:
        if run.error is not None:
            continue
        first = firsts.setdefault((run.name, run.task), run)
        if first is not run and (name := first.differs_in(run)):
            differ = "differ" if run.train else "may differ"
            raise SweepError(
                f"runs of {run.name!r} on task {run.task!r} {differ} in {name}; {APART}"
            )


def _compare(runs: list[Run]) -> Comparison:
    tasks = _unique(run.task for run in runs)
    names = _unique(run.name for run in runs)
    tests = {name: _tests(run for run in runs if run.name == name) for name in names}
    rows = [
        _row(name, [run for run in runs if run.name == name], tasks, tests[name]) for name in names
    ]
    failures = _unique(
        f"{run.name} on {run.task}, seed {run.seed}: {run.error}" for run in runs if run.error
    )
    return Comparison(_caption(runs), tasks, _beside_best(rows, tests), failures)


def _tests(runs: Iterable[Run]) -> Tests:
    tests: Tests = {}
    for run in runs:
        if run.test is not None:
            tests.setdefault(run.task, {})[run.seed] = run.test
    return tests


def _row(name: str, runs: list[Run], tasks: list[str], tests: Tests) -> Row:
    sizes = {run.task: run.task_bytes for run in runs if run.task_bytes is not None}
    times = [run.train_s for run in runs if run.train_s is not None]
    return Row(
        name,
        runs[0].method,
        {task: summarise(list(tests[task].values())) for task in tasks if task in tests},
        mean_over_tasks(list(tests.values())) if tests.keys() == set(tasks) else None,
        fmean(sizes.values()) if sizes else None,
        fmean(times) if times else None,
    )


def _beside_best(rows: list[Row], tests: dict[str, Tests]) -> list[Row]:
    """The rows with what lies between each and that of the highest mean."""
    means = {row.name: row.mean.mean for row in rows if row.mean}
    best = max(means, key=means.__getitem__, default=None)
    return [
        replace(row, to_best=paired_difference(tests[row.name], tests[best]))
        if best is not None and row.name != best
        else row
        for row in rows
    ]


def _caption(runs: list[Run]) -> str:
    first = runs[0]
    seeds = _span(len({r.seed for r in runs if (r.name, r.task) == key}) for key in _keys(runs))
    crop = f", crop_pct {first.crop_pct}" if first.crop_pct != 1 else ""
    if (first.mean, first.std) != NORMALISATIONS["half"]:
        crop += f", mean {_triple(first.mean)}, std {_triple(first.std)}"
    parts = [
        f"Test accuracy in %, mean ± standard deviation of {seeds} seed(s)",
        f"protocol {first.protocol}, {first.image_size} px{crop}, backbone {first.backbone}",
    ]
    if trials := [run.trials for run in runs if run.trials and run.val is not None]:
        own = "" if len(trials) == len(runs) else " with a search of its own"
        parts.append(f"{_span(trials)} trial(s) of each entry{own} on each task")
    parts += [" and ".join(_unique(f"lspt-serve {run.lspt_serve}" for run in runs))]
    parts += [" and ".join(_unique(f"torch {run.torch}" for run in runs if run.torch))]
    parts += [" and ".join(_unique(run.machine for run in runs if run.machine))]
    return "; ".join(part for part in parts if part) + "."


def _triple(values: Triple) -> str:
    return " ".join(f"{value:g}" for value in values)


def _keys(runs: list[Run]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run.name, run.task) for run in runs))


def _span(counts: Iterable[int]) -> str:
    different = sorted(set(counts))
    return "-".join(str(count) for count in _unique([different[0], different[-1]]))


def _unique(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))


class Text(NamedTuple):
    """What stands in a cell of a table."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn; of `rows`, the first cell is a name, the others are figures."""

    caption: str
    header: list[str]
    rows: list[list[Text]]
    notes: list[str] = field(default_factory=list)

    def to_rich(self) -> Group:
        table = Table(box=None)
        for number, name in enumerate(self.header):
            table.add_column(escape(name), justify="right" if number else "left")
        for row in self.rows:
            cells = [(escape(cell.text), cell.bold) for cell in row]
            table.add_row(*(f"[bold]{text}[/]" if bold else text for text, bold in cells))
        return Group(escape(self.caption), table, *map(escape, self.notes))

    def to_markdown(self) -> str:
        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        lines = [
            self.caption,
            "",
            line(self.header),
            "|---" + "|--:" * (len(self.header) - 1) + "|",
        ]
        lines += [line(f"**{c.text}**" if c.bold else c.text for c in row) for row in self.rows]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)


def comparison_grid(comparison: Comparison, published: Pretraining | None = None) -> Grid:
    """Accuracies in percent, the best of each column bold; the mean where there are more tasks.

    What runs name does nothing to a terminal: bundles may be a stranger's.

    Args:
        published: also columns of published figures of the methods, marked so.
    """
    tasks, rows = comparison.tasks, comparison.rows
    columns = [[row.tasks.get(task) for row in rows] for task in tasks]
    header = ["entry", *map(printable, tasks)]
    if len(tasks) > 1:
        columns.append([row.mean for row in rows])
        header.append("mean")
    cells = [_column(column) for column in columns]
    notes = [printable(f"failed: {failure}") for failure in comparison.failures]
    if any(row.to_best for row in rows):
        cells.append([_cell(row.to_best) for row in rows])
        header.append("to the best")
        notes.append(TO_BEST)
    sizes = [Text("-" if row.task_bytes is None else f"{row.task_bytes:,.0f}") for row in rows]
    times = [Text("-" if row.train_s is None else f"{row.train_s:.1f}") for row in rows]
    header += ["bytes a task", "train s"]
    if published:
        header += [f"published: {column}" for column in PUBLISHED_COLUMNS]
        notes.append(published_note(published))
    return Grid(
        printable(comparison.caption),
        header,
        [
            [
                Text(printable(row.name)),
                *figures,
                *(_published(row.method, published) if published else []),
            ]
            for row, *figures in zip(rows, *cells, sizes, times, strict=True)
        ],
        notes,
    )


def _published(method: str, pretraining: Pretraining) -> list[Text]:
    figures = PUBLISHED[pretraining].get(method)
    if figures is None:
        return [Text("-")] * len(PUBLISHED_COLUMNS)
    return [Text(f"{figure:.2f}") for figure in figures]


def _column(figures: Sequence[Figure | None]) -> list[Text]:
    """Equal as printed is equally good; fewer seeds than another cell has are said."""
    there = [figure for figure in figures if figure]
    best = max((_percent(figure.mean) for figure in there), key=float, default="")
    seeds = max((figure.n for figure in there), default=0)
    return [_cell(figure, best, seeds) for figure in figures]


def _cell(figure: Figure | None, best: str = "", seeds: int = 0) -> Text:
    if figure is None:
        return Text("-")
    std = "" if figure.std is None else f" ± {_percent(figure.std)}"
    fewer = f" (n = {figure.n})" if figure.n < seeds else ""
    mean = _percent(figure.mean)
    return Text(f"{mean}{std}{fewer}", bold=mean == best)


def _percent(share: float) -> str:
    return f"{100 * share:z.1f}"
