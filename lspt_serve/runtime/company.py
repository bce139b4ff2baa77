"""Batches beside one another on a CPU, and few of them.

Threads that share a batch wait at every layer for the slowest of them, which is one whose core has
something else to do. Batches that have a core each are faster together than one after another on
all cores; but few would leave the other cores idle, and one that is alone all but its own.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import TypeVar

__all__ = ["Company", "one_of", "seconds_in_company", "with_one_ready"]

T = TypeVar("T")

LEAST = 2  # batches of each thread
LEAST_S = 0.1  # and so long, where there are several: the first of them is alone at first


class Company:
    """Counts the batches that run, of `num_beside` that can beside one another."""

    def __init__(self, num_beside: int) -> None:
        self.num_beside = num_beside
        self._lock, self._running = Lock(), 0

    @contextmanager
    def join(self) -> Iterator[bool]:
        """Whether few run, with that of the block: it alone, or half of those that can."""
        with self._lock:
            self._running += 1
            few = self._running == 1 or 2 * self._running <= self.num_beside
        try:
            yield few
        finally:
            with self._lock:
                self._running -= 1


def with_one_ready(num_beside: int) -> int:
    """Batches to be given at a time: where several run, one more is made ready meanwhile."""
    return num_beside + 1 if num_beside > 1 else 1


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
