"""An engine and a prompt store: images in, labels out.

B batch, K classes, F pooled features, N patches.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.errors import UnknownTaskError
from lspt_serve.manifest import Manifest
from lspt_serve.preprocess import LIMITS, ImageLimits, preprocess_image
from lspt_serve.runtime.allowed import AllowedTasks, Tasks
from lspt_serve.runtime.backlog import Backlog
from lspt_serve.runtime.batch_size import measure_pace
from lspt_serve.runtime.batcher import Batcher
from lspt_serve.runtime.engine import Engine
from lspt_serve.runtime.events import SILENT, Events
from lspt_serve.runtime.store import PromptStore
from lspt_serve.sizes import MAX_BATCH_SIZE

__all__ = ["Classifier"]

MIN_BATCHES = 4  # may wait all the same
Array = NDArray[np.float32]


@dataclass(frozen=True)
class _Job:
    bundle: Bundle
    attention: bool = False  # in place of the logits

    @property
    def name(self) -> str:
        return self.bundle.name

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest


class Classifier:
    """Answers for every task in the store, with an engine of its own whose batches mix tasks.

    Args:
        max_batch_size: None: as much as pays on this machine, up to 32; measured here, and no more
            images may wait then than the engine runs in 10 seconds (see Backlog).
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
        events: Events = SILENT,
    ) -> None:
        self.engine = engine
        self.store = store
        self.tasks: Tasks = store  # what callers see of it
        self._events = events
        self.limits = limits
        backlog = None
        if max_batch_size is None:
            max_batch_size, images_per_s = measure_pace(engine, limit=MAX_BATCH_SIZE)
            least = MIN_BATCHES * max(MIN_BATCHES, max_batch_size)
            backlog = Backlog(images_per_s, least=min(least, capacity), most=capacity)
        self.max_batch_size = max_batch_size
        self._batcher = Batcher(
            self._run,
            max_batch_size=self.max_batch_size,
            num_batches=engine.num_batches,
            num_wanted=engine.num_wanted,
            max_delay_s=max_delay_s,
            capacity=capacity,
            backlog=backlog,
            events=events,
        )

    def only(self, may_use: Callable[[str], bool]) -> Self:
        """The same classifier for somebody who may not use every task, see AllowedTasks."""
        limited = copy.copy(self)
        limited.tasks = AllowedTasks(self.store, may_use)
        return limited

    def manifest(self, reference: str) -> Manifest:
        """Of the task; raises UnknownTaskError, and counts it."""
        try:
            return self.tasks.manifest(reference)
        except UnknownTaskError as error:
            self._events.answered(None, error)
            raise

    def held(self, reference: str) -> Bundle | None:
        """As `find`, of a task that is in memory: for threads that may not wait.

        Raises OverloadedError.
        """
        bundle = self.tasks.held(reference)
        if bundle:
            with self.telling(bundle.manifest):
                self._batcher.check_room(bundle.name)
        return bundle

    def find(self, reference: str) -> Bundle:
        """The task, if an image of it may be submitted now; the engine fetches its tensors.

        Reads from disk, perhaps: for threads that may wait.

        Raises:
            UnknownTaskError: there is no such task.
            OverloadedError: an image of it would be refused now.
            StorageError: its disk does not give it now.
        """
        manifest = self.manifest(reference)
        with self.telling(manifest):
            self._batcher.check_room(manifest.name)
            bundle = self.tasks[reference]
        self.engine.prefetch([bundle.method_tensors])
        return bundle

    @contextmanager
    def place(self, bundle: Bundle) -> Iterator[None]:
        """Room for an image of the task, which is decoded and submitted in the block.

        Raises OverloadedError.
        """
        with ExitStack() as stack:
            with self.telling(bundle.manifest):
                stack.enter_context(self._batcher.place(bundle.name))
            yield

    def decode(self, data: bytes, bundle: Bundle) -> Array:
        """The bytes of a file to the image (3 x H x W) that a task sees; raises ImageError.

        The engine fetches the task's tensors meanwhile.
        """
        self.engine.prefetch([bundle.method_tensors])
        return preprocess_image(data, bundle.manifest.preprocess, self.limits)

    def submit(
        self, image: Array, bundle: Bundle, *, deadline: float | None = None
    ) -> Future[Array]:
        """Logits (K) of a normalised image (3 x H x W), from a batch shared with others.

        Raises OverloadedError; the future may hold it too, or DeadlineError, or ArithmeticError for
        an answer that is not finite. See Batcher.submit.
        """
        with self.telling(bundle.manifest):
            answer = self._batcher.submit(image, _Job(bundle), deadline=deadline)
        answer.add_done_callback(
            lambda answer: self._events.answered(bundle.manifest, _error(answer))
        )
        return answer

    def attend(
        self, image: Array, bundle: Bundle, *, deadline: float | None = None
    ) -> Future[Array]:
        """As `submit`, but what of its patches the answer attends to (see Engine.attention): N."""
        job = _Job(bundle, attention=True)
        return self._batcher.submit(image, job, deadline=deadline)

    @property
    def window(self) -> int:
        """Images of one request that may wait at a time, so that others have room."""
        return max(1, self._batcher.capacity // 4)

    def close(self) -> None:
        """Answer what waits and stop."""
        self._batcher.close()
        self.engine.close()

    @contextmanager
    def telling(self, manifest: Manifest) -> Iterator[None]:
        """What fails in the block counts as an image of the task that was not answered."""
        try:
            yield
        except Exception as error:
            self._events.answered(manifest, error)
            raise

    def _run(self, images: Array, jobs: Sequence[_Job]) -> list[Array | Exception]:
        """Images (B x 3 x H x W), each with its own job (B)."""
        answers: dict[int, Array] = {}  # by row
        for attention, run in ((False, self._logits), (True, self._attention)):
            rows = [row for row, job in enumerate(jobs) if job.attention == attention]
            if rows:
                part = images if len(rows) == len(jobs) else images[rows]
                got = run(part, [jobs[row].bundle for row in rows])
                answers |= dict(zip(rows, got, strict=True))
        return [_check_finite(answers[row], job) for row, job in enumerate(jobs)]

    def _logits(self, images: Array, bundles: Sequence[Bundle]) -> list[Array]:
        features = self.engine.features(images, [bundle.method_tensors for bundle in bundles])
        rows: dict[int, list[int]] = {}  # of each bundle, whose head is read once for all of them
        for row, bundle in enumerate(bundles):
            rows.setdefault(id(bundle), []).append(row)
        logits: dict[int, Array] = {}
        for own in rows.values():
            weight, bias = bundles[own[0]].head
            logits |= dict(zip(own, features[own] @ weight.T + bias, strict=True))
        return [logits[row] for row in range(len(bundles))]

    def _attention(self, images: Array, bundles: Sequence[Bundle]) -> list[Array]:
        return [*self.engine.attention(images, [bundle.method_tensors for bundle in bundles])]


def _check_finite(answer: Array, job: _Job) -> Array | Exception:
    finite = np.isfinite(answer).all()
    return answer if finite else ArithmeticError(f"{job.name}: not finite")


def _error(answer: Future[Array]) -> BaseException | None:
    return CancelledError() if answer.cancelled() else answer.exception()
