"""Who works at what: locks on the bytes of one file, which the system frees when a process ends.

However it ends. So a killed process's work is free at once, and that of a process which is only
slow never is: no heartbeat to wait for or to miss.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lspt_serve.errors import OutputError

__all__ = ["Locks"]

CRITICAL = 0  # the byte that is held while work is chosen


class Locks:
    """Places are positive numbers; processes on one machine that open the same file share them."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error

    def claim(self, place: int) -> bool:
        """Whether this process has the place now, until it gives it back or ends."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):  # POSIX allows both
            return False
        return True

    def release(self, place: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """One process at a time, the others wait."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, CRITICAL)
        try:
            yield
        finally:
            self.release(CRITICAL)

    def close(self) -> None:
        """Gives back all places that this process has."""
        os.close(self._file)
