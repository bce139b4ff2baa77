"""Published accuracies of prompt methods, to stand beside ours: of other backbones and tasks."""

from typing import Literal

__all__ = ["PUBLISHED", "PUBLISHED_COLUMNS", "Pretraining", "published_note"]

Pretraining = Literal["mae", "mocov3"]
PUBLISHED_COLUMNS = ("Natural", "Specialised", "Structured", "FGVC")
NAMES: dict[Pretraining, str] = {"mae": "MAE", "mocov3": "MoCo v3"}

# Mean top-1 test accuracies in % by method: three groups of VTAB-1K and the five tasks of FGVC.
PUBLISHED: dict[Pretraining, dict[str, tuple[float, float, float, float]]] = {
    "mae": {
        "vpt-shallow": (39.96, 69.65, 27.50, 57.84),
        "vpt-deep": (36.02, 60.61, 26.57, 72.02),
        "gated": (47.61, 76.86, 36.80, 73.39),
        "full": (59.31, 79.68, 53.82, 82.80),
    },
    "mocov3": {
        "vpt-shallow": (67.34, 82.26, 37.55, 79.26),
        "vpt-deep": (70.27, 83.04, 42.38, 83.12),
        "gated": (74.84, 83.38, 49.10, 83.00),
        "full": (71.95, 84.72, 51.98, 84.25),
    },
}


def published_note(pretraining: Pretraining) -> str:
    """What the published figures are of."""
    return (
        f"published, not ours: ViT-B/16 pretrained by {NAMES[pretraining]}, 224 px, mean test "
        "accuracy in % over the tasks of VTAB-1K (Natural, Specialised, Structured) and FGVC, as "
        "listed by Yoo et al. 2023 (arXiv 2306.05067); of another backbone and other tasks, not to "
        "be compared with ours"
    )
