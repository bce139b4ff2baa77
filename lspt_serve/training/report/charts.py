"""The pictures of numbers: curves, confusion matrix, calibration.

K classes, E epochs.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspt_serve.pictures import (
    BLUE,
    GREY,
    GRID,
    INK,
    PALE,
    RED,
    save_figure,
    short,
)
from lspt_serve.training.report.numbers import Bin
from lspt_serve.training.trainer import Epoch

__all__ = [
    "FEW",
    "MAX_TICKS",
    "cell_labels",
    "draw_calibration",
    "draw_confusion",
    "draw_curves",
    "pool_cells",
]

MAX_TICKS = 30  # classes that the confusion matrix names
MAX_CELLS = 15  # ... and writes the shares of
MAX_SIDE = 120  # cells of a row, above which a cell stands for several labels
FEW = 5  # images of a bin that is drawn pale: its accuracy says little
DASHES = (0, (4, 3))


def draw_curves(path: Path, history: Sequence[Epoch], kept: int) -> None:
    """Losses, accuracy on val and learning rate over epochs, the kept one marked."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(height=5.8)
    panels: Any = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.6])
    losses, accuracy, rate = panels
    epochs = [epoch.number for epoch in history]
    how: dict[str, Any] = {"marker": "o" if len(history) <= 40 else None, "markersize": 4}
    losses.plot(epochs, _finite([e.loss for e in history]), color=GREY, label="train", **how)
    losses.plot(epochs, _finite([e.val_loss for e in history]), color=BLUE, label="val", **how)
    losses.set_title("Loss")
    losses.legend(loc="lower right", bbox_to_anchor=(1.01, 0.97), ncols=2)
    accuracy.plot(epochs, [e.val_accuracy for e in history], color=BLUE, **how)
    best = next(epoch for epoch in history if epoch.number == kept)
    accuracy.plot(kept, best.val_accuracy, "o", color=RED, markersize=7, clip_on=False)
    accuracy.set_title("Accuracy on val")
    kept_title = accuracy.set_title(f"kept: epoch {kept}, {best.val_accuracy:.1%}", loc="right")
    kept_title.set(color=RED, fontweight="normal", fontsize=10)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    rate.plot(epochs, [e.lr for e in history], color=GREY, clip_on=False, **how)
    rate.set_title("Learning rate")
    rate.set_ylim(0, 1.1 * max(e.lr for e in history) or None)
    rate.yaxis.set_major_locator(MaxNLocator(2))
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for panel in panels:
        panel.axvline(kept, color=RED, linewidth=1, linestyle=DASHES, zorder=1)
    save_figure(figure, path)


def draw_confusion(path: Path, confusion: NDArray[np.int64], labels: Sequence[str]) -> None:
    """Shares of the row, rows true; few classes are named, fewer have their shares in figures."""
    from matplotlib.colors import PowerNorm

    count = len(labels)
    shares = pool_cells(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))
    right = np.eye(len(shares), dtype=bool)
    figure = _figure(height=5.6)
    axes: Any = figure.subplots()
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color=GRID)
    # squeezed upwards, so that a few wrong ones of many images can be seen
    for mask, name, colour, start in ((~right, "right", BLUE, 0.54), (right, "wrong", RED, 0.0)):
        cells = np.ma.masked_array(shares, mask)
        image = axes.imshow(cells, cmap=_fade_to(colour), norm=PowerNorm(0.6, 0, 1))
        bar = figure.colorbar(image, cax=axes.inset_axes((1.03, start, 0.025, 0.44)))
        bar.set_ticks([0, 0.1, 0.5, 1], labels=["0", "10%", "50%", "100%"], fontsize=8)
        bar.ax.set_title(name, fontsize=9, fontweight="normal")
        bar.outline.set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= MAX_TICKS:
        names = [short(label, limit=14) for label in labels]
        size = 9 if count <= MAX_CELLS else 7
        axes.set_xticks(range(count), names, rotation=90 if count > 4 else 0, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
        axes.tick_params(length=0)
    else:
        axes.set(xticks=[], yticks=[])
    if count <= MAX_CELLS:
        _write_cells(axes, shares)
    save_figure(figure, path)


def pool_cells(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """K x K to at most MAX_SIDE x MAX_SIDE, so that a cell can be seen.

    A cell of the diagonal is then the mean of its labels' accuracies, another the largest share of
    those that it stands for.
    """
    step = cell_labels(len(shares))
    starts = np.arange(0, len(shares), step)
    accuracies = np.diagonal(shares)
    sizes = np.diff(np.append(starts, len(shares)))
    pooled = np.maximum.reduceat(np.maximum.reduceat(shares, starts, axis=0), starts, axis=1)
    np.fill_diagonal(pooled, np.add.reduceat(accuracies, starts) / sizes)
    return pooled


def cell_labels(num_classes: int) -> int:
    """How many labels a row of the drawn matrix stands for."""
    return math.ceil(num_classes / MAX_SIDE)


def _write_cells(axes: Any, shares: NDArray[np.float64]) -> None:
    """Percents, but where they round to 0."""
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            axes.text(
                column,
                row,
                f"{100 * share:.0f}",
                color="white" if share > 0.35 else INK,
                ha="center",
                va="center",
                fontsize=10 if len(shares) <= 10 else 8,
            )


def draw_calibration(path: Path, bins: Mapping[str, Sequence[Bin]]) -> None:
    """Accuracy over confidence, title by title; under it, where the images are."""
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    figure = _figure(height=5.2)
    panels: Any = figure.subplots(2, len(bins), sharex=True, sharey="row", height_ratios=[3, 1])
    for (upper, lower), (title, own) in zip(panels.T, bins.items(), strict=True):
        lows, width = [each.low for each in own], own[0].high
        colours = [PALE if each.images < FEW else BLUE for each in own]
        accuracies = [each.accuracy or 0.0 for each in own]
        upper.bar(lows, accuracies, width, align="edge", color=colours, edgecolor="white")
        upper.plot([0, 1], [0, 1], color=RED, linewidth=1.2, linestyle=DASHES)
        upper.set_title(title)
        upper.set(xlim=(0, 1), ylim=(0, 1))
        lower.bar(lows, [each.images for each in own], width, align="edge", color=colours)
        lower.set_xlabel("score of the answer")
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_major_locator(MultipleLocator(0.25))
        axis.set_major_formatter(PercentFormatter(1))
    lower.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    panels[0, 0].set_ylabel("answers that are right")
    panels[1, 0].set_ylabel("images")
    save_figure(figure, path)


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    margins = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04)
    return Figure(figsize=(6.4, height), layout=margins)


def _fade_to(colour: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("share", ["white", colour])


def _finite(values: Sequence[float]) -> list[float]:
    """Gaps in the curve where training diverged."""
    return [value if math.isfinite(value) else math.nan for value in values]
