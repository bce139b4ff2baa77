"""How the pictures look, and how a figure becomes a file.

matplotlib is imported where it is used: it takes half a second. Its global state is left alone, but
for the time that a picture is drawn.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["BLUE", "DPI", "GREY", "GRID", "INK", "PALE", "RED", "drawing", "save_figure", "short"]

INK, GREY, GRID = "#1f2a37", "#6b7785", "#e3e7ec"
BLUE, PALE, RED = "#2563ae", "#a9c3e3", "#cc3d33"
DPI = 144
FALLBACK = "Noto Sans CJK JP"  # where it is installed: signs that DejaVu does not have
STYLE = {
    "text.parse_math": False,  # a label may hold a $
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "image.interpolation": "nearest",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Everything drawn and saved in here has the report's style, whatever the user's own is."""
    from matplotlib import font_manager, style

    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = {"font.family": ["DejaVu Sans", *({FALLBACK} & installed)]}
    with warnings.catch_warnings(), style.context(["default", STYLE | fonts]):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the page has the text
        yield


def save_figure(figure: Any, path: Path) -> None:
    """A PNG of the same bytes for the same figure, without the alpha that matplotlib would add."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # H x W x 3
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, dpi=(DPI, DPI))


def short(label: str, *, limit: int) -> str:
    """A label as it fits into a picture: one line, printable, at most `limit` signs."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in label).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
