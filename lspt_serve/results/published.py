"""Published accuracies of prompt methods, to stand beside ours: of other backbones and tasks."""

from typing import Literal

from lspt_serve.results.table import Grid, Text

__all__ = ["PUBLISHED", "Pretraining", "published_grid"]

Pretraining = Literal["mae", "mocov3"]
COLUMNS = ("Natural", "Specialised", "Structured", "FGVC")
NAMES: dict[Pretraining, str] = {"mae": "MAE", "mocov3": "MoCo v3"}

# Mean top-1 test accuracies in %: three groups of VTAB-1K and the five tasks of FGVC.
PUBLISHED: dict[Pretraining, dict[str, tuple[float, float, float, float]]] = {
    "mae": {
        "VPT-shallow": (39.96, 69.65, 27.50, 57.84),
        "VPT-deep": (36.02, 60.61, 26.57, 72.02),
        "gated": (47.61, 76.86, 36.80, 73.39),
        "full": (59.31, 79.68, 53.82, 82.80),
    },
    "mocov3": {
        "VPT-shallow": (67.34, 82.26, 37.55, 79.26),
        "VPT-deep": (70.27, 83.04, 42.38, 83.12),
        "gated": (74.84, 83.38, 49.10, 83.00),
        "full": (71.95, 84.72, 51.98, 84.25),
    },
}


def published_grid(pretraining: Pretraining) -> Grid:
    """The published accuracies as a table of their own."""
    rows = PUBLISHED[pretraining]
    best = [max(column) for column in zip(*rows.values(), strict=True)]
    return Grid(
        caption=f"Published, not ours: ViT-B/16 pretrained by {NAMES[pretraining]}, 224 px, mean "
        "test accuracy in % over the tasks of VTAB-1K (Natural, Specialised, Structured) and FGVC, "
        "as listed by Yoo et al. 2023 (arXiv 2306.05067). Other backbone, other tasks: not to be "
        "compared with the figures above.",
        header=["published", *COLUMNS],
        rows=[
            [Text(name), *(Text(f"{v:.2f}", v == b) for v, b in zip(row, best, strict=True))]
            for name, row in rows.items()
        ],
    )
