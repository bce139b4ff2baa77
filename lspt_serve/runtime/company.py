"""Batches beside one another on a CPU, and few of them.

Threads that share a batch wait at every layer for the slowest of them, which is one whose core has
something else to do. Batches that have a core each are faster together than one after another on
all cores; but few would leave the other cores idle, and one that is alone all but its own.

One that begins alone does not stay so where others come soon: if those before it found company, it
has a core as they had.

Of several workers each may run as many as one that is alone, as long as the others leave them idle.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Condition
from typing import TypeVar

from lspt_serve.neighbours import Neighbours

__all__ = ["Company", "one_of", "seconds_in_company"]

T = TypeVar("T")

OF_LATE = 1 / 16  # what the last batch says of it
FORGOTTEN_S = 10.0  # of rest, in which it becomes a third
LEAST = 2  # batches of each thread
LEAST_S = 0.1  # and so long, where there are several: the first of them is alone at first


class Company:
    """Batches that run, at most `num_beside` beside one another, in the order in which they come.

    Args:
        neighbours: other workers, each of which runs its share whatever the others do.

    Attributes:
        num_batches: to be given at a time at most: where several run, one more is made ready.
    """

    def __init__(self, num_beside: int, neighbours: Neighbours | None = None) -> None:
        self.num_beside = num_beside
        self.num_batches = num_beside + 1 if num_beside > 1 else 1
        self._neighbours = neighbours
        self._share = max(1, num_beside // neighbours.num_workers) if neighbours else num_beside
        self._changed, self._running, self._ended = Condition(), 0, time.monotonic()
        self._turns: deque[object] = deque()  # of those that wait
        self._found = 0.0  # running when a batch came, of late

    @contextmanager
    def join(self) -> Iterator[bool]:
        """Whether few run, with that of the block: it alone, or half of those that can.

        As many count as those of late found, if fewer run now. Waits while as many run as may: its
        share, or more on cores that others leave idle.
        """
        with self._changed:
            self._look()
            self._wait_for_turn()
            self._count(1)
            running = max(self._running + self._of_others(), 1 + round(self._found))
        try:
            yield running == 1 or 2 * running <= self.num_beside
        finally:
            with self._changed:
                self._count(-1)
                self._ended = time.monotonic()
                self._changed.notify_all()

    def num_wanted(self) -> int:
        """Of `num_batches`, to be given now."""
        return min(self.num_batches, self._room() + 1)

    def _room(self) -> int:
        """For batches: this worker's share, or more on cores that others leave idle.

        Others that end tell nobody; but a worker with its share does not wait for long.
        """
        return max(self._share, self.num_beside - self._of_others())

    def _look(self) -> None:
        if not self._running:
            self._found *= math.exp((self._ended - time.monotonic()) / FORGOTTEN_S)
        self._found += OF_LATE * (self._running + self._of_others() - self._found)

    def _wait_for_turn(self) -> None:
        """In order: who ends a batch and comes with the next one is here before those it woke.

        Whoever comes sees whether others have ended, and that there is room for who waits.
        """
        turn = object()
        self._turns.append(turn)
        self._changed.notify_all()
        try:
            self._changed.wait_for(lambda: self._turns[0] is turn and self._running < self._room())
        finally:
            self._turns.remove(turn)
            self._changed.notify_all()

    def _of_others(self) -> int:
        return self._neighbours.others() if self._neighbours else 0

    def _count(self, change: int) -> None:
        self._running += change
        if self._neighbours:
            self._neighbours.tell(change)


@contextmanager
def one_of(idle: SimpleQueue[T]) -> Iterator[T]:
    """Of those that are idle; waits until one is."""
    taken = idle.get()
    try:
        yield taken
    finally:
        idle.put(taken)


def seconds_in_company(run: Callable[[], object], num_threads: int) -> float:
    """Of a thread that runs a batch, while the others do."""
    started = time.perf_counter()
    until = started + (LEAST_S if num_threads > 1 else 0)

    def go_on(_: int) -> int:
        count = 0
        while count < LEAST or time.perf_counter() < until:
            run()
            count += 1
        return count

    with ThreadPoolExecutor(num_threads) as pool:
        count = sum(pool.map(go_on, range(num_threads)))
    return (time.perf_counter() - started) * num_threads / count
