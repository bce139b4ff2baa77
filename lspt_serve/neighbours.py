"""The workers of one server, which share its cores: what each of them runs, the others see.

A connection stays with the worker that took it, so that one may have all the requests and another
none: whoever had only a share of the cores would leave the rest idle.
"""

import fcntl
import mmap
import os
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["NEIGHBOURS", "Neighbours", "create_neighbours", "find_neighbours"]

NEIGHBOURS = "LSPT_NEIGHBOURS"  # the file, which the supervisor sets for its workers
WIDTH = 4  # bytes of a number


class Neighbours:
    """One worker and the others, in a file that all of them map into memory.

    A number for each. A worker has its place by a lock, which the system lets go of when it dies,
    however it does; its number stays until the next one has the place.

    Args:
        path: what `create_neighbours` filled.

    Raises:
        OSError: there is no such file, or more workers than places.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR)  # for good: who closes it has no place any longer
        self._running = memoryview(mmap.mmap(self._file, 0)).cast("I")
        self._lock = threading.Lock()
        self._place = self._take_place(path)
        self._running[self._place] = 0

    @property
    def num_workers(self) -> int:
        return len(self._running)

    def tell(self, change: int) -> None:
        """That this worker runs so many batches more, or less."""
        with self._lock:
            self._running[self._place] += change

    def others(self) -> int:
        """Batches that the others run now."""
        numbers = self._running.tolist()
        return sum(numbers) - numbers[self._place]

    def _take_place(self, path: Path) -> int:
        for place in range(self.num_workers):
            with suppress(BlockingIOError):
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, WIDTH, WIDTH * place)
                return place
        raise OSError(f"{path}: {self.num_workers} workers have a place there already")


def create_neighbours(path: Path, num_workers: int) -> None:
    """For Neighbours: none runs anything yet."""
    path.write_bytes(bytes(WIDTH * num_workers))


@cache
def find_neighbours() -> Neighbours | None:
    """Of this process, if it is one of several workers that share their cores.

    Raises OSError, as Neighbours.
    """
    path = os.environ.get(NEIGHBOURS)
    return Neighbours(Path(path)) if path else None
