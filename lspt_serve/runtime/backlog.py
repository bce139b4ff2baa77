"""How many images may wait: as many as the engine runs in 10 seconds, as fast as it is of late."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

__all__ = ["Backlog"]

MAX_WAIT_S = 10.0  # for the engine: who would wait longer is better told so at once
OF_LATE_S = 10.0  # in which what a batch says is worth a third of what it was
MEASURED_S = 1.0  # that what was measured at the start is worth


class Backlog:
    """What was measured at the start may be of a machine that had much else to do; this goes on.

    Args:
        images_per_s: as it was measured.
        least: images that may wait, however slow it is.
        most: however fast.
    """

    def __init__(self, images_per_s: float, *, least: int, most: int) -> None:
        self._least, self._most = least, most
        self._images, self._busy_s = images_per_s * MEASURED_S, MEASURED_S  # of late
        self._running, self._since = 0, 0.0
        self._lock = Lock()

    @property
    def capacity(self) -> int:
        """Images that may wait."""
        return min(self._most, max(self._least, int(MAX_WAIT_S * self._images / self._busy_s)))

    @contextmanager
    def running(self, num_images: int) -> Iterator[None]:
        """While a batch runs that others wait behind, maybe beside more; one that fails ran none.

        Of any other batch nobody knows how many images the engine would have run.
        """
        self._pass(begun=1)
        ran = 0
        try:
            yield
            ran = num_images
        finally:
            self._pass(begun=-1, ran=ran)

    def _pass(self, *, begun: int, ran: int = 0) -> None:
        """Time in which no such batch runs does not count."""
        with self._lock:
            now = time.monotonic()
            if self._running:
                elapsed = now - self._since
                fades = math.exp(-elapsed / OF_LATE_S)
                self._images *= fades
                self._busy_s = self._busy_s * fades + elapsed
            self._images += ran
            self._running += begun
            self._since = now
