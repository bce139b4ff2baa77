"""The pictures of images: the worst errors, and what CLS and prompts attend to.

Both lie on a dark ground, in a light page too: images look their best there.

B images, C channels, H = W side of the images, N patches.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lspt_serve.pictures import DPI, save_figure, short
from lspt_serve.training.report.attention import Gaze
from lspt_serve.training.report.numbers import Answer

__all__ = ["draw_attention", "draw_errors", "heat_over"]

Pixels = NDArray[np.uint8]
GAP, LINE = 16, 24  # pixels: between tiles, height of a line of text
ERROR_COLUMNS, ERROR_SIDE = 5, 158
GAZE_SIDE = 112
FONT_SIZE = 8.5
GROUND, TEXT, FAINT = "#15181d", "#eef1f5", "#98a2b0"
WRONG, RIGHT = "#ff8077", "#6fd3a2"


class _Sheet:
    """Tiles and lines of text at pixels from the top left corner, in columns."""

    def __init__(self, columns: int, side: int, height: int) -> None:
        from matplotlib.colors import to_rgb
        from matplotlib.figure import Figure

        self.side = side
        self.lefts = [GAP + column * (side + GAP) for column in range(columns)]
        width = self.lefts[-1] + side + GAP
        ground = (255 * np.array(to_rgb(GROUND))).round().astype(np.uint8)
        self.canvas = np.tile(ground, (height, width, 1))
        self.figure: Any = Figure(figsize=(width / DPI, height / DPI))

    def paste(self, tile: Pixels, column: int, top: int) -> None:
        left = self.lefts[column]
        self.canvas[top : top + self.side, left : left + self.side] = tile

    def write(self, text: str, column: int, top: int, colour: str = TEXT) -> None:
        """A line of height LINE from `top` on."""
        height, width, _ = self.canvas.shape
        x, y = self.lefts[column] / width, 1 - (top + LINE / 2) / height
        self.figure.text(x, y, text, color=colour, fontsize=FONT_SIZE, va="center_baseline")

    def fit(self, label: str, after: str, room: int, *, before: str = "") -> str:
        """A label between other words, shortened until all is at most `room` pixels wide."""
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.font_manager import FontProperties

        agg: Any = RendererAgg  # untyped
        renderer, font = agg(1, 1, DPI), FontProperties(size=FONT_SIZE)
        for limit in range(30, 1, -1):
            text = f"{before}{short(label, limit=limit)}{after}"
            if renderer.get_text_width_height_descent(text, font, ismath=False)[0] <= room:
                break
        return text

    def save(self, path: Path) -> None:
        self.figure.figimage(self.canvas, origin="upper")
        save_figure(self.figure, path)


def draw_errors(path: Path, images: Pixels, errors: Sequence[Answer]) -> None:
    """One tile each, B x H x W x C, with what it was taken for and what it is."""
    rows = math.ceil(len(errors) / ERROR_COLUMNS)
    height = ERROR_SIDE + 2 * LINE + GAP
    sheet = _Sheet(ERROR_COLUMNS, ERROR_SIDE, GAP + rows * height)
    for place, (pixels, error) in enumerate(zip(images, errors, strict=True)):
        row, column = divmod(place, ERROR_COLUMNS)
        top = GAP + row * height
        below = top + ERROR_SIDE + LINE // 4
        sheet.paste(_resize(pixels, ERROR_SIDE), column, top)
        answer = sheet.fit(error.predicted, f" ({error.score:.0%})", ERROR_SIDE)
        true = sheet.fit(error.true, f" ({error.true_score:.0%})", ERROR_SIDE, before="is ")
        sheet.write(answer, column, below, WRONG)
        sheet.write(true, column, below + LINE, FAINT)
    sheet.save(path)


def draw_attention(
    path: Path, images: Pixels, answers: Sequence[Answer], gazes: Sequence[Gaze]
) -> None:
    """A row for each image (B x H x W x C): the image, then the heat of every gaze over it."""
    head, height = GAP // 2 + 3 * LINE, LINE + GAZE_SIDE + GAP
    sheet = _Sheet(len(gazes) + 1, GAZE_SIDE, head + GAP // 2 + len(images) * height)
    sheet.write("attention of", 0, GAP // 2, FAINT)
    for column, gaze in enumerate(gazes, start=1):
        if gaze.who not in [other.who for other in gazes[: column - 1]]:
            sheet.write(gaze.who, column, GAP // 2)
        sheet.write(f"block {gaze.block}", column, GAP // 2 + LINE)
        share = gaze.patches.sum(dim=1).mean().item()
        sheet.write(f"patches {share:.0%}", column, GAP // 2 + 2 * LINE, FAINT)
    for row, (pixels, answer) in enumerate(zip(images, answers, strict=True)):
        top = head + GAP // 2 + row * height
        room = (sheet.lefts[-1] + GAZE_SIDE) // 2
        caption = sheet.fit(answer.predicted, f" ({answer.score:.0%})", room)
        if not answer.right:
            caption += sheet.fit(answer.true, "", room, before=", is ")
        sheet.write(caption, 0, top, RIGHT if answer.right else WRONG)
        tile = _resize(pixels, GAZE_SIDE)
        sheet.paste(tile, 0, top + LINE)
        for column, gaze in enumerate(gazes, start=1):
            heat = heat_over(tile, gaze.patches[row].numpy())
            sheet.paste(heat, column, top + LINE)
    sheet.save(path)


def heat_over(pixels: Pixels, attention: NDArray[np.float32]) -> Pixels:
    """An image (H x W x C) in grey under its attention (N, a square of patches).

    From no attention to the largest of this map; where it is even the whole image glows.
    """
    from matplotlib import colormaps

    grid = math.isqrt(len(attention))
    heat = (attention / max(attention.max(), 1e-12)).reshape(grid, grid)
    size = (pixels.shape[1], pixels.shape[0])
    smooth = np.asarray(
        Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    )
    glow = colormaps["inferno"](smooth.clip(0, 1))[..., :3]  # H x W x 3, in [0, 1]
    grey = pixels.mean(axis=2, keepdims=True) / 255
    blended: Pixels = (255 * (0.35 * grey + 0.65 * glow)).round().astype(np.uint8)
    return blended


def _resize(pixels: Pixels, side: int) -> Pixels:
    """Small images keep their pixels visible: that is what the model sees."""
    few = 2 * pixels.shape[0] <= side
    how = Image.Resampling.NEAREST if few else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((side, side), how))
