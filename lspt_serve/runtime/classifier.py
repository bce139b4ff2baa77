"""An engine and a prompt store: images in, labels out.

B batch, K classes, F pooled features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.runtime.engine import Engine
from lspt_serve.runtime.slots import Slots
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
        self._slots = Slots(engine)

    def classify(
        self, images: NDArray[np.float32], bundles: Sequence[Bundle], *, top_k: int
    ) -> list[list[Prediction]]:
        """The `top_k` most probable labels of each image, best first; all if there are fewer.

        Args:
            images: B x 3 x H x W, normalised.
            bundles: of each image's task, B, in any order.
        """
        answers = []
        for features, bundle in zip(self._features(images, bundles), bundles, strict=True):
            weight, bias = bundle.head
            answers.append(_top(softmax(weight @ features + bias), bundle, top_k))
        return answers

    def warm_up(self) -> None:
        """Run once, so that the first caller does not pay for lazy allocations."""
        size = self.engine.graph.preprocess.img_size
        for bundle in self.store:
            self.classify(np.zeros((1, 3, size, size), np.float32), [bundle], top_k=1)
            break

    def _features(
        self, images: NDArray[np.float32], bundles: Sequence[Bundle]
    ) -> Iterator[NDArray[np.float32]]:
        """Row by row, from batches of no more rows than there are slots."""
        size = self.engine.num_slots
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            with self._slots.hold(bundles[part]) as slots:
                features = self.engine.features(images[part], slots)
            yield from features


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def _top(probabilities: NDArray[np.float32], bundle: Bundle, k: int) -> list[Prediction]:
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [Prediction(bundle.labels[i], float(probabilities[i]), int(i)) for i in best]
