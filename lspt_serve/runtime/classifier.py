"""An engine and a prompt store: images in, labels out.

B batch, K classes, F pooled features.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.runtime.allowed import AllowedTasks, Tasks
from lspt_serve.runtime.batch_size import measure_batch_size
from lspt_serve.runtime.batcher import Batcher
from lspt_serve.runtime.engine import Engine
from lspt_serve.runtime.store import PromptStore
from lspt_serve.sizes import MAX_BATCH_SIZE

__all__ = ["Classifier", "Prediction", "softmax", "top_labels"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """A label, its probability in [0, 1] and its place in the bundle's list of labels."""

    label: str
    score: float
    index: int


class Classifier:
    """Answers for every task in the store, with an engine of its own whose batches mix tasks.

    Args:
        max_batch_size: None: as much as pays on this machine, up to 32; measured here.
        max_delay_s: see Batcher.
        capacity: images that may wait for the engine.
    """

    def __init__(
        self,
        engine: Engine,
        store: PromptStore,
        *,
        max_batch_size: int | None = None,
        max_delay_s: float = 0.0,
        capacity: int = 256,
    ) -> None:
        self.engine = engine
        self.store = store
        self.tasks: Tasks = store  # what callers see of it
        if max_batch_size is None:
            max_batch_size = measure_batch_size(engine, limit=MAX_BATCH_SIZE)
        self.max_batch_size = max_batch_size
        self._batcher = Batcher(
            self._run,
            max_batch_size=self.max_batch_size,
            max_delay_s=max_delay_s,
            capacity=capacity,
        )

    def only(self, may_use: Callable[[str], bool]) -> Self:
        """The same classifier for somebody who may not use every task, see AllowedTasks."""
        limited = copy.copy(self)
        limited.tasks = AllowedTasks(self.store, may_use)
        return limited

    def find(self, reference: str) -> Bundle:
        """The task, if an image of it may be submitted now; the engine fetches its tensors.

        Reads from disk, perhaps: for threads that may wait.

        Raises:
            UnknownTaskError: there is no such task.
            OverloadedError: an image of it would be refused now.
        """
        bundle = self.tasks[reference]
        self._batcher.check_room(bundle.name)
        self.engine.prefetch([bundle.method_tensors])
        return bundle

    def submit(
        self, image: Array, bundle: Bundle, *, deadline: float | None = None
    ) -> Future[Array]:
        """Probabilities (K) of a normalised image (3 x H x W), from a batch shared with others.

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
            answer = softmax(weight @ features + bias)
            finite = np.isfinite(answer).all()
            answers.append(answer if finite else ArithmeticError(f"{bundle.name}: not finite"))
        return answers


def top_labels(probabilities: Array, bundle: Bundle, k: int) -> list[Prediction]:
    """The k most probable labels, best first; all if there are fewer, equal ones in order."""
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [Prediction(bundle.labels[i], float(probabilities[i]), int(i)) for i in best]


def softmax(logits: Array) -> Array:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]
