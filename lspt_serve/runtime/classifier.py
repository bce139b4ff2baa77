"""An engine and a prompt store: images in, labels out.

B batch, K classes, F pooled features.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.preprocess import LIMITS, ImageLimits, preprocess_image
from lspt_serve.runtime.batch_size import measure_batch_size
from lspt_serve.runtime.batcher import Batcher
from lspt_serve.runtime.engine import Engine
from lspt_serve.runtime.store import PromptStore
from lspt_serve.sizes import MAX_BATCH_SIZE

__all__ = ["Activation", "Classifier", "Prediction", "activate", "top_labels"]

Activation = Literal["softmax", "sigmoid", "none"]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """A label, its score (see `activate`) and its place in the bundle's list of labels."""

    label: str
    score: float
    index: int


class Classifier:
    """Answers for every task in the store, with an engine of its own whose batches mix tasks.

    Args:
        max_batch_size: None: as much as pays on this machine, up to 32; measured here.
        max_delay_s: see Batcher.
        capacity: images that may wait for the engine.
        limits: to the files that are decoded.
    """

    def __init__(
        self,
        engine: Engine,
        store: PromptStore,
        *,
        max_batch_size: int | None = None,
        max_delay_s: float = 0.0,
        capacity: int = 256,
        limits: ImageLimits = LIMITS,
    ) -> None:
        self.engine = engine
        self.store = store
        self.limits = limits
        if max_batch_size is None:
            max_batch_size = measure_batch_size(engine, limit=MAX_BATCH_SIZE)
        self.max_batch_size = max_batch_size
        self._batcher = Batcher(
            self._run,
            max_batch_size=self.max_batch_size,
            max_delay_s=max_delay_s,
            capacity=capacity,
        )

    def find(self, reference: str) -> Bundle:
        """The task, if an image of it may be submitted now; the engine fetches its tensors.

        Reads from disk, perhaps: for threads that may wait.

        Raises:
            UnknownTaskError: there is no such task.
            OverloadedError: an image of it would be refused now.
        """
        self._batcher.check_room(self.store.manifest(reference).name)
        bundle = self.store[reference]
        self.engine.prefetch([bundle.method_tensors])
        return bundle

    def decode(self, data: bytes, bundle: Bundle) -> Array:
        """The bytes of a file to the image (3 x H x W) that a task sees; raises ImageError."""
        return preprocess_image(data, bundle.manifest.preprocess, self.limits)

    def submit(
        self, image: Array, bundle: Bundle, *, deadline: float | None = None
    ) -> Future[Array]:
        """Logits (K) of a normalised image (3 x H x W), from a batch shared with others.

        Raises OverloadedError; the future may hold it too, or DeadlineError, or ArithmeticError for
        an answer that is not finite. See Batcher.submit.
        """
        return self._batcher.submit(image, bundle, deadline=deadline)

    def close(self) -> None:
        """Answer what waits and stop."""
        self._batcher.close()
        self.engine.close()

    def _run(self, images: Array, bundles: Sequence[Bundle]) -> list[Array | Exception]:
        """Images (B x 3 x H x W), each by its own bundle (B)."""
        rows = self.engine.features(images, [bundle.method_tensors for bundle in bundles])
        answers: list[Array | Exception] = []
        for features, bundle in zip(rows, bundles, strict=True):
            weight, bias = bundle.head
            answer = weight @ features + bias
            finite = np.isfinite(answer).all()
            answers.append(answer if finite else ArithmeticError(f"{bundle.name}: not finite"))
        return answers


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
    scores: Array, bundle: Bundle, k: int, *, threshold: float | None = None
) -> list[Prediction]:
    """The k best labels, best first; all if there are fewer, equal ones in order.

    Args:
        threshold: without those that score less.
    """
    best = np.argsort(-scores, kind="stable")[:k]
    if threshold is not None:
        best = best[scores[best] >= threshold]
    return [Prediction(bundle.labels[i], float(scores[i]), int(i)) for i in best]
