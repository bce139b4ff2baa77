"""Calibration: scores that are as often right as they say (Guo et al. 2017, temperature scaling).

N images, K classes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = [
    "MAX_TEMPERATURE",
    "calibration_error",
    "confidence_bins",
    "fit_temperature",
    "scale_head",
]

MAX_TEMPERATURE = 20.0  # and its inverse is the least
GOLDEN = (math.sqrt(5) - 1) / 2


def fit_temperature(logits: Tensor, targets: Tensor, *, steps: int = 60) -> float:
    """The T in [1 / 20, 20] for which logits / T (N x K) have the least cross-entropy.

    Targets are smoothed by 1 / (N + 2), after Platt 1999 (ours): a small val without errors would
    ask for T = 0, for scores that are sure of everything. The cross-entropy is convex in 1 / T, so
    that a golden-section search finds its only minimum.
    """
    logits, smoothing = logits.double(), 1 / (len(targets) + 2)

    def loss(inverse: float) -> float:
        return cross_entropy(logits * inverse, targets, label_smoothing=smoothing).item()

    low, high = 1 / MAX_TEMPERATURE, MAX_TEMPERATURE
    for _ in range(steps):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return 2 / (low + high)


def calibration_error(logits: Tensor, targets: Tensor, *, num_bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: |accuracy - confidence| of equal bins of confidence.

    Bins are weighted by how many images they hold; logits are N x K, targets N.
    """
    _, confidence, right = confidence_bins(logits, targets, num_bins=num_bins).unbind(dim=1)
    return ((right - confidence).abs().sum() / len(targets)).item()


def confidence_bins(logits: Tensor, targets: Tensor, *, num_bins: int = 15) -> Tensor:
    """Images by how sure the model is of its answer, in equal bins of (0, 1].

    Returns:
        num_bins x 3, float64: how many images a bin holds, the sum of their confidences, and how
        many of them are right.
    """
    confidence, predicted = logits.double().softmax(dim=-1).max(dim=-1)  # N
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    right = (predicted == targets).to(confidence)
    each = torch.stack([torch.ones_like(right), confidence, right], dim=1)
    return each.new_zeros(num_bins, 3).index_add_(0, bins, each)


@torch.no_grad()
def scale_head(head: nn.Linear, temperature: float) -> None:
    """Fold a temperature into the head: its logits become logits / T, at no cost in serving."""
    head.weight.div_(temperature)
    head.bias.div_(temperature)
