"""Logits to scores, and scores to the best labels.

K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lspt_serve.schemas import Activation

__all__ = ["Prediction", "activate", "top_labels"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """A label, its score (see `activate`) and its place in the bundle's list of labels."""

    label: str
    score: float
    index: int


def activate(logits: Array, activation: Activation = "softmax") -> Array:
    """Logits (K) to scores (K).

    softmax: probabilities of labels that exclude one another, which sum to 1; sigmoid: of labels
    that do not, each in [0, 1]; none: the logits.
    """
    if activation == "softmax":
        exponentials = np.exp(logits - logits.max())
        return exponentials / exponentials.sum()  # type: ignore[no-any-return]
    if activation == "sigmoid":
        return np.float32(0.5) * (1 + np.tanh(logits / 2))
    return logits


def top_labels(
    scores: Array, labels: Sequence[str], k: int, *, threshold: float | None = None
) -> list[Prediction]:
    """The k best labels, best first; all if there are fewer, equal ones in order.

    Args:
        threshold: without those that score less.
    """
    best = np.argsort(-scores, kind="stable")[:k]
    if threshold is not None:
        best = best[scores[best] >= threshold]
    return [Prediction(labels[i], float(scores[i]), int(i)) for i in best]
