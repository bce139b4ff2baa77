"""An engine and a prompt store: images in, labels out.

B batch, K classes, F pooled features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.runtime.engine import Engine
from lspt_serve.runtime.store import PromptStore

__all__ = ["Classifier", "Prediction", "softmax"]


@dataclass(frozen=True)
class Prediction:
    """A label, its probability in [0, 1] and its place in the bundle's list of labels."""

    label: str
    score: float
    index: int


class Classifier:
    """Answers for every task in the store, with one engine."""

    def __init__(self, engine: Engine, store: PromptStore) -> None:
        self.engine = engine
        self.store = store

    def classify(
        self, images: NDArray[np.float32], task: str, *, top_k: int
    ) -> list[list[Prediction]]:
        """The `top_k` most probable labels of each image, best first; all if there are fewer.

        Args:
            images: B x 3 x H x W, normalised.

        Raises:
            UnknownTaskError: the store does not hold the task.
        """
        bundle = self.store[task]
        features = self.engine.features(images, bundle.method_tensors)
        weight, bias = bundle.head
        probabilities = softmax(features @ weight.T + bias)  # B x K
        return [_top(row, bundle, top_k) for row in probabilities]

    def warm_up(self) -> None:
        """Run once, so that the first caller does not pay for lazy allocations."""
        size = self.engine.graph.preprocess.img_size
        for bundle in self.store:
            self.classify(np.zeros((1, 3, size, size), np.float32), bundle.name, top_k=1)
            break


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def _top(probabilities: NDArray[np.float32], bundle: Bundle, k: int) -> list[Prediction]:
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [Prediction(bundle.labels[i], float(probabilities[i]), int(i)) for i in best]
