"""What docs/benchmarks.md and docs/reliability.md are made of: tables, pictures, and reasons."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lspt_serve.files import atomic_file
from lspt_serve.pictures import BLUE, GREY, INK, PALE, RED, drawing, save_figure
from lspt_serve.results.table import Grid, Text

__all__ = [
    "COLOURS",
    "draw_panels",
    "load_limits",
    "to_measured",
    "to_ratio",
    "to_spread",
    "to_table",
]

COLOURS = (BLUE, RED, INK, PALE, GREY)
PANEL = (3.6, 3.4)  # inches


def to_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, the first column to the left, the others to the right."""
    return Grid(caption, [*header], [[*map(Text, row)] for row in rows]).to_markdown()


def to_spread(figures: Mapping[str, float] | None, digits: int = 1) -> str:
    """Median, least and most."""
    if figures is None:
        return "-"
    middle, least, most = (f"{figures[key]:,.{digits}f}" for key in ("median", "least", "most"))
    return f"{middle} ({least}-{most})"


def to_ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def to_measured(record: Mapping[str, Any], digits: int) -> str:
    """What was measured for a target, with more digits where a miss would look like the target."""
    measured, target = record["measured"], record["target"]
    shown = f"{measured:.{digits}g}"
    while not record["reached"] and float(shown) == target:
        digits += 1
        shown = f"{measured:.{digits}g}"
    return shown


def draw_panels(path: Path, titles: Sequence[str], draw: Callable[[Any, int], object]) -> None:
    """A PNG with a panel for each title; `draw` gets its axes and its number."""
    from matplotlib.figure import Figure

    with atomic_file(path) as temporary, drawing():
        width, height = PANEL
        figure = Figure(figsize=(width * len(titles), height), layout="constrained")
        for number, (title, axes) in enumerate(
            zip(titles, figure.subplots(1, len(titles), squeeze=False)[0], strict=True)
        ):
            draw(axes, number)
            axes.set_title(title)
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=7)
        save_figure(figure, temporary)


def load_limits(path: Path, known: Mapping[str, Any]) -> dict[str, str]:
    """Target -> what limits it; a heading that names no target ends the script."""
    if not path.exists():
        return {}
    _, *parts = re.split(r"^## (.+)$", path.read_text("utf-8"), flags=re.M)
    limits = {
        name.strip(): text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)
    }
    if unknown := limits.keys() - known.keys():
        raise SystemExit(f"{path}: no such target: {', '.join(sorted(unknown))}")
    return {name: text for name, text in limits.items() if text}
