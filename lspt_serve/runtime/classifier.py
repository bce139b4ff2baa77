"""An engine and a prompt store: images in, labels out.

B batch, K classes, F pooled features.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.errors import UnknownTaskError
from lspt_serve.preprocess import preprocess_image
from lspt_serve.runtime.batch_size import measure_batch_size
from lspt_serve.runtime.batcher import Batcher
from lspt_serve.runtime.engine import Engine
from lspt_serve.runtime.events import SILENT, Events
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
        events: Events = SILENT,
    ) -> None:
        self.engine = engine
        self.store = store
        self._events = events
        if max_batch_size is None:
            max_batch_size = measure_batch_size(engine, limit=MAX_BATCH_SIZE)
        self.max_batch_size = max_batch_size
        self._batcher = Batcher(
            self._run,
            max_batch_size=self.max_batch_size,
            max_delay_s=max_delay_s,
            capacity=capacity,
            events=events,
        )

    def find(self, reference: str) -> Bundle:
        """The task, if an image of it may be submitted now; the engine fetches its tensors.

        Reads from disk, perhaps: for threads that may wait.

        Raises:
            UnknownTaskError: there is no such task.
            OverloadedError: an image of it would be refused now.
        """
        try:
            bundle = self.store[reference]
        except UnknownTaskError as error:
            self._events.answered(None, error)
            raise
        with self._telling(bundle):
            self._batcher.check_room(bundle.name)
        self.engine.prefetch([bundle.method_tensors])
        return bundle

    def decode(self, data: bytes, bundle: Bundle) -> Array:
        """The bytes of a file to the image (3 x H x W) that a task sees; raises ImageError."""
        with self._telling(bundle):
            return preprocess_image(data, bundle.manifest.preprocess)

    def submit(
        self, image: Array, bundle: Bundle, *, deadline: float | None = None
    ) -> Future[Array]:
        """Probabilities (K) of a normalised image (3 x H x W), from a batch shared with others.

        Raises OverloadedError; the future may hold it too, or DeadlineError, or ArithmeticError for
        an answer that is not finite. See Batcher.submit.
        """
        with self._telling(bundle):
            answer = self._batcher.submit(image, bundle, deadline=deadline)
        answer.add_done_callback(lambda answer: self._events.answered(bundle, _error(answer)))
        return answer

    def close(self) -> None:
        """Answer what waits and stop."""
        self._batcher.close()
        self.engine.close()

    @contextmanager
    def _telling(self, bundle: Bundle) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._events.answered(bundle, error)
            raise

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


def _error(answer: Future[Array]) -> BaseException | None:
    return CancelledError() if answer.cancelled() else answer.exception()


def top_labels(probabilities: Array, bundle: Bundle, k: int) -> list[Prediction]:
    """The k most probable labels, best first; all if there are fewer, equal ones in order."""
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [Prediction(bundle.labels[i], float(probabilities[i]), int(i)) for i in best]


def softmax(logits: Array) -> Array:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]
