"""Rows of many callers in the batches of one engine.

B batch.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lspt_serve.errors import DeadlineError, OverloadedError, UnavailableError
from lspt_serve.manifest import Manifest
from lspt_serve.runtime.backlog import Backlog
from lspt_serve.runtime.events import SILENT, Events
from lspt_serve.runtime.fair_queue import FairQueue

__all__ = ["Batcher", "Job", "Run"]

Array = NDArray[np.float32]
logger = logging.getLogger(__name__)


class Job(Protocol):
    """What is to be done with an image; jobs of one name take turns with those of others."""

    @property
    def name(self) -> str: ...
    @property
    def manifest(self) -> Manifest: ...


J = TypeVar("J", bound=Job)
Run = Callable[[Array, Sequence[J]], Sequence[Array | Exception]]


@dataclass
class _Row(Generic[J]):
    image: Array  # 3 x H x W
    job: J
    deadline: float | None  # of time.monotonic, as is
    arrived: float
    answer: Future[Array] = field(default_factory=Future)

    def is_wanted(self) -> bool:
        """Whether its caller still waits, and in time; who waits in vain is told."""
        if not self.answer.set_running_or_notify_cancel():
            return False
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.answer.set_exception(DeadlineError("the deadline passed before it was its turn"))
            return False
        return True


class Batcher(Generic[J]):
    """Runs batches in threads of its own; while as many run as may, the next one gathers.

    Args:
        run: images (B x 3 x H x W) and the job of each to an answer or error of each.
        max_batch_size: rows.
        num_batches: that run at a time at most.
        num_wanted: says how many of these are to be run now; None: all. Looked at when a row comes
            and when a batch ends.
        max_delay_s: how long a row may wait for others to share its batch. Under load the next
            batch gathers while others run: even 0 gives full ones.
        capacity: rows that may wait; more are refused, those of the name first that has the most.
        backlog: is told of batches that left rows waiting, and says in place of `capacity` how many
            may wait.
    """

    def __init__(
        self,
        run: Run[J],
        *,
        max_batch_size: int,
        num_batches: int = 1,
        num_wanted: Callable[[], int] | None = None,
        max_delay_s: float = 0.0,
        capacity: int = 256,
        backlog: Backlog | None = None,
        events: Events = SILENT,
    ) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, got {max_batch_size}")
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_delay_s = max_delay_s
        self._events = events
        self._backlog = backlog
        self._queue: FairQueue[_Row[J]] = FairQueue(backlog.capacity if backlog else capacity)
        self._num_wanted = num_wanted or (lambda: num_batches)
        self._num_running = 0
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name="batcher", daemon=True)
            for _ in range(num_batches)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def capacity(self) -> int:
        """Rows that may wait now."""
        return self._queue.capacity

    def submit(self, image: Array, job: J, *, deadline: float | None = None) -> Future[Array]:
        """Queue a row; a cancelled future leaves the queue unrun.

        Args:
            deadline: of time.monotonic(); a row that has not been run by then fails with
                DeadlineError.

        Raises:
            OverloadedError: the queue is full; a row that waits may fail with it too.
        """
        row = _Row(image, job, deadline, time.monotonic())
        with self._changed:
            self._check_open()
            refused = self._queue.put(job.name, row)
            self._events.waiting(len(self._queue))
            if self._max_delay_s:
                self._changed.notify_all()  # who waits for a full batch looks whether it is one
            else:
                self._changed.notify()
        if refused is row:
            raise self._overloaded()
        row.answer.add_done_callback(partial(self._forget, job.name))  # not the row: no circle
        if refused and refused.answer.set_running_or_notify_cancel():
            refused.answer.set_exception(self._overloaded())
        return row.answer

    @contextmanager
    def place(self, name: str) -> Iterator[None]:
        """Room for a job of the name, whose image is made and submitted in the block.

        Raises OverloadedError, as `check_room`.
        """
        with self._changed:
            self.check_room(name)
            self._queue.come(name)
        try:
            yield
        finally:
            with self._changed:
                self._queue.leave(name)

    def check_room(self, name: str) -> None:
        """Raises OverloadedError if a job of the name had better not be made ready now."""
        with self._changed:
            self._check_open()
            if not self._queue.has_room(name):
                raise self._overloaded()

    def close(self) -> None:
        """Answer what waits, take no more, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _check_open(self) -> None:
        if self._closed:
            raise OverloadedError("the server is stopping")

    def _forget(self, name: str, answer: Future[Array]) -> None:
        """Whoever cancels makes room for others."""
        if answer.cancelled():
            with self._changed:
                self._queue.discard(name, lambda row: row.answer is answer)
                self._events.waiting(len(self._queue))

    def _overloaded(self) -> OverloadedError:
        return OverloadedError(f"{self._queue.capacity} images wait already; try again later")

    def _work(self) -> None:
        while self._wait_for_turn():
            try:
                self._take_turn()
            finally:
                with self._changed:
                    self._num_running -= 1

    def _wait_for_turn(self) -> bool:
        """To run one batch more, which is counted from here on; False when there will be none."""
        with self._changed:
            while not self._closed and (left := self._seconds_left()) != 0:
                self._changed.wait(left)
            if self._closed and not len(self._queue):
                return False
            self._num_running += 1
            return True

    def _seconds_left(self) -> float | None:
        """Until a batch is to be run; None: until a row comes, or a batch ends."""
        if not len(self._queue) or self._num_running >= self._num_wanted():
            return None
        return 0 if self._is_full() else max(0, self._delay_left())

    def _take_turn(self) -> None:
        rows, rows_left = self._take()
        try:
            self._events.waiting(rows_left)
            now = time.monotonic()
            for row in rows:
                self._events.waited(row.job.manifest, now - row.arrived)
            if rows:
                self._answer(rows, rows_left=rows_left)
        except Exception as error:  # of who counts: nobody is to wait for ever, nor a thread to end
            logger.error("a batch of %d failed", len(rows), exc_info=error)
            for row in rows:
                if not row.answer.done():
                    row.answer.set_exception(error)

    def _delay_left(self) -> float:
        """Of the row that has waited longest, whichever thread took those before."""
        longest = min(row.arrived for row in self._queue.oldest())
        return self._max_delay_s - (time.monotonic() - longest)

    def _is_full(self) -> bool:
        return len(self._queue) >= self._max_batch_size or self._closed

    def _take(self) -> tuple[list[_Row[J]], int]:
        """A batch, and how many rows wait still."""
        rows: list[_Row[J]] = []
        with self._changed:
            while len(self._queue) and len(rows) < self._max_batch_size:
                row = self._queue.take()
                if row.is_wanted():
                    rows.append(row)
            if waiting := len(self._queue):
                self._changed.notify()  # one more may be wanted
        return rows, waiting

    def _run_timed(
        self, images: Array, jobs: Sequence[J], rows_left: int
    ) -> Sequence[Array | Exception]:
        started = time.monotonic()
        try:
            with self._following(len(jobs)) if rows_left else nullcontext():
                return self._run(images, jobs)
        finally:
            self._events.ran([job.manifest for job in jobs], time.monotonic() - started)

    @contextmanager
    def _following(self, num_rows: int) -> Iterator[None]:
        """The queue becomes as long as the backlog says after the batch of the block."""
        if self._backlog is None:
            yield
            return
        with self._backlog.running(num_rows):
            yield
        with self._changed:
            self._queue.capacity = self._backlog.capacity

    def _answer(self, rows: Sequence[_Row[J]], *, rows_left: int) -> None:
        """A batch that fails is run again in halves, so that no row fails for another's sake.

        Not one whose engine waits for a server in vain: every half would wait as long again.
        """
        try:
            images = np.stack([row.image for row in rows])
            answers = self._run_timed(images, [row.job for row in rows], rows_left)
            answered = list(zip(rows, answers, strict=True))
        except (DeadlineError, UnavailableError) as error:
            logger.warning("a batch of %d failed: %s", len(rows), error)
            answered = [(row, error) for row in rows]
        except Exception as error:
            if len(rows) == 1:
                rows[0].answer.set_exception(error)
                return
            logger.warning("a batch of %d failed, its halves are run", len(rows), exc_info=error)
            middle = len(rows) // 2
            self._answer(rows[:middle], rows_left=rows_left)
            self._answer(rows[middle:], rows_left=rows_left)
            return
        for row, answer in answered:
            if isinstance(answer, Exception):
                row.answer.set_exception(answer)
            else:
                row.answer.set_result(answer)
