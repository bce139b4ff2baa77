"""The workers of one server, which share its cores: what each of them runs, the others see.

A connection stays with the worker that took it, so that one may have all the requests and another
none: whoever had only a share of the cores would leave the rest idle.
"""

import fcntl
import logging
import mmap
import os
import struct
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["NEIGHBOURS", "Neighbours", "create_neighbours", "find_neighbours"]

NEIGHBOURS = "LSPT_NEIGHBOURS"  # the file, which the supervisor sets for its workers
WIDTH = 4  # bytes of a number
FLOCK = "@hhqqi0q"  # Linux's struct flock: type, whence, start, length, process
logger = logging.getLogger(__name__)


class Neighbours:
    """One worker and the others, in a file that all of them map into memory; one for a process.

    A number for each. A worker has its place by a lock, which the system lets go of when it dies,
    however it does: its number counts no longer then.

    Args:
        path: what `create_neighbours` filled.

    Raises:
        OSError: there is no such file, or more workers than places.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR)  # for good: who closes it has no place any longer
        try:
            self._running = memoryview(mmap.mmap(self._file, 0)).cast("I")
            self._place = self._take_place(path)
        except BaseException:
            os.close(self._file)
            raise
        self._lock = threading.Lock()
        self._running[self._place] = 0

    @property
    def num_workers(self) -> int:
        return len(self._running)

    def tell(self, change: int) -> None:
        """That this worker runs so many batches more, or less."""
        with self._lock:
            self._running[self._place] += change

    def others(self) -> int:
        """Batches that the others run now, who live."""
        numbers = enumerate(self._running.tolist())
        return sum(
            number
            for place, number in numbers
            if number and place != self._place and self._is_taken(place)
        )

    def _is_taken(self, place: int) -> bool:
        """By another process."""
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, WIDTH * place, WIDTH, 0)
        kind, *_ = struct.unpack(FLOCK, fcntl.fcntl(self._file, fcntl.F_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)

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

    One that cannot know of the others has its share of the cores, and serves.
    """
    if not (path := os.environ.get(NEIGHBOURS)):
        return None
    try:
        return Neighbours(Path(path))
    except OSError as error:
        logger.warning("this worker uses no more than its share of the cores: %s", error)
        return None
