"""A comparison as a picture: a panel for each task, a row for each entry."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lspt_serve.files import atomic_file
from lspt_serve.pictures import BLUE, GREY, INK, drawing, save_figure, short
from lspt_serve.results.statistics import Figure
from lspt_serve.results.table import Comparison

__all__ = ["draw_comparison"]

PANEL_WIDTH, ROW_HEIGHT = 1.9, 0.28  # inches
NAME_WIDTH = 24  # signs
AROUND = 0.15  # of a panel's range, left free on both sides


def draw_comparison(path: Path, comparison: Comparison) -> None:
    """A PNG of test accuracies in percent: means, and bars of one standard deviation each way.

    The best of each panel is filled; a panel's range is its own. Needs matplotlib, of the extra
    `train`.

    Raises:
        OutputError: the file cannot be written.
    """
    rows, tasks = comparison.rows, comparison.tasks
    panels = {task: [row.tasks.get(task) for row in rows] for task in tasks}
    if len(tasks) > 1:
        panels["mean"] = [row.mean for row in rows]
    names = [short(row.name, limit=NAME_WIDTH) for row in rows]
    with atomic_file(path) as temporary, drawing():
        save_figure(_figure(panels, names), temporary)


def _figure(panels: dict[str, list[Figure | None]], names: list[str]) -> Any:
    from matplotlib.figure import Figure as Canvas

    size = (2 + PANEL_WIDTH * len(panels), 0.9 + ROW_HEIGHT * len(names))
    canvas = Canvas(figsize=size, layout="constrained")
    axes = canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, figures) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, figures)
        axis.set_title(short(title, limit=NAME_WIDTH))
        axis.set_xlabel("%")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()  # rows in the order of the table
    return canvas


def _draw_panel(axis: Any, figures: Sequence[Figure | None]) -> None:
    there = [(row, figure) for row, figure in enumerate(figures) if figure]
    best = max((round(100 * figure.mean, 1) for _, figure in there), default=0.0)
    for row, figure in there:
        mean, spread = 100 * figure.mean, 100 * (figure.std or 0)
        is_best = round(mean, 1) == best
        colour = BLUE if is_best else GREY
        axis.errorbar(
            mean, row, xerr=spread, fmt="o", color=colour, markersize=6,
            markerfacecolor=colour if is_best else "white", elinewidth=1.2,
        )  # fmt: skip
        axis.annotate(
            f"{mean:.1f}", (mean, row), (0, 5), textcoords="offset points", ha="center",
            fontsize=7, color=INK,
        )  # fmt: skip
    axis.margins(x=AROUND, y=0.06)
    axis.grid(visible=False, axis="x")
