"""The numbers behind the pictures: what `report.json` holds.

N images of test, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lspt_serve.training.calibration import confidence_bins
from lspt_serve.training.data import Split

__all__ = [
    "Answer",
    "Bin",
    "ClassRow",
    "Pair",
    "class_rows",
    "confused_pairs",
    "confusion_matrix",
    "list_answers",
    "list_bins",
    "pick_examples",
]


@dataclass(frozen=True)
class ClassRow:
    """How many of a label's images in test were right; `accuracy` is None where there are none."""

    label: str
    images: int
    right: int
    accuracy: float | None


@dataclass(frozen=True)
class Pair:
    """`count` images of `true` were taken for `predicted`: a share in [0, 1] of those of `true`."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Answer:
    """What the model says of image `index` of test; scores are in [0, 1] and calibrated."""

    index: int
    name: str
    true: str
    predicted: str
    score: float  # of the predicted label
    true_score: float

    @property
    def right(self) -> bool:
        return self.true == self.predicted


@dataclass(frozen=True)
class Bin:
    """Images whose confidence is in (low, high]: what they say, and how often they are right."""

    low: float
    high: float
    images: int
    confidence: float | None  # mean; None in a bin without images
    accuracy: float | None


def confusion_matrix(
    predicted: NDArray[np.int64], targets: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Counts, K x K: rows true, columns predicted."""
    cells = np.bincount(targets * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def class_rows(confusion: NDArray[np.int64], labels: Sequence[str]) -> list[ClassRow]:
    """Worst accuracy first, of equal ones the label with more images; those without come last."""
    rows = [
        ClassRow(label, images, right, right / images if images else None)
        for label, images, right in zip(
            labels, confusion.sum(axis=1).tolist(), confusion.diagonal().tolist(), strict=True
        )
    ]
    return sorted(
        rows, key=lambda row: (2.0 if row.accuracy is None else row.accuracy, -row.images)
    )


def confused_pairs(
    confusion: NDArray[np.int64], labels: Sequence[str], *, limit: int
) -> list[Pair]:
    """The pairs with the most images, of equal ones that with the larger share first."""
    true, predicted = np.nonzero(confusion)
    wrong = true != predicted
    true, predicted = true[wrong], predicted[wrong]
    counts = confusion[true, predicted]
    shares = counts / confusion.sum(axis=1)[true]
    order = np.lexsort((-shares, -counts))[:limit]
    return [
        Pair(labels[true[i]], labels[predicted[i]], int(counts[i]), float(shares[i])) for i in order
    ]


def list_answers(scores: NDArray[np.float32], test: Split, labels: Sequence[str]) -> list[Answer]:
    """The model's answers to all of test, surest first; scores are N x K."""
    targets, names = test.targets, test.names_of(range(len(test)))
    predicted = scores.argmax(axis=1)
    best = scores.max(axis=1)
    return [
        Answer(
            int(i),
            name=names[i],
            true=labels[targets[i]],
            predicted=labels[predicted[i]],
            score=float(best[i]),
            true_score=float(scores[i, targets[i]]),
        )
        for i in np.argsort(-best, kind="stable")
    ]


def pick_examples(answers: Sequence[Answer], *, wrong: int, right: int) -> list[Answer]:
    """The surest of each, wrong ones first, right ones of different labels while there are some.

    Where there are too few wrong ones, right ones fill their place, and the other way round.
    """
    errors = [answer for answer in answers if not answer.right]
    correct = [answer for answer in answers if answer.right]
    surest = {answer.true: answer.index for answer in reversed(correct)}  # of each label
    correct.sort(key=lambda answer: surest[answer.true] != answer.index)
    wanted = wrong + right
    taken = errors[: max(wrong, wanted - len(correct))]
    return taken + correct[: wanted - len(taken)]


def list_bins(logits: Tensor, targets: Tensor) -> list[Bin]:
    """The bins that the expected calibration error is over; logits N x K, targets N."""
    sums = confidence_bins(logits, targets)
    edges = torch.linspace(0, 1, len(sums) + 1, dtype=torch.float64).tolist()
    return [
        Bin(low, high, int(images), confidence / images, right / images)
        if images
        else Bin(low, high, 0, None, None)
        for low, high, (images, confidence, right) in zip(
            edges[:-1], edges[1:], sums.tolist(), strict=True
        )
    ]
