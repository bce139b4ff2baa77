"""Batches beside one another on a CPU, and one that is alone.

Threads that share a batch wait at every layer for the slowest of them, which is one whose core has
something else to do. Batches that have a core each are faster together than one after another on
all cores; but one that is alone is not.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import TypeVar

__all__ = ["Company", "one_of", "seconds_in_company"]

T = TypeVar("T")

LEAST = 2  # batches of each thread
LEAST_S = 0.1  # and so long, where there are several: the first of them is alone at first


class Company:
    """Counts the batches that run."""

    def __init__(self) -> None:
        self._lock, self._running = Lock(), 0

    @contextmanager
    def join(self) -> Iterator[bool]:
        """Whether the batch that is run in the block is alone when it comes."""
        with self._lock:
            alone = self._running == 0
            self._running += 1
        try:
            yield alone
        finally:
            with self._lock:
                self._running -= 1


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
