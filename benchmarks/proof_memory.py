"""What a server's workers hold in memory while it is busy, and whether that grows."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from proof_server import Server

__all__ = ["Memory", "growth"]


@dataclass
class Memory:
    """Samples of all workers together, taken in a thread: seconds, bytes."""

    server: Server
    samples: list[tuple[float, int]] = field(default_factory=list)

    @contextmanager
    def sampled(self, every_s: float) -> Iterator[None]:
        stop, started = threading.Event(), time.monotonic()

        def sample() -> None:
            while not stop.wait(every_s):
                self.samples.append((time.monotonic() - started, self.server.memory()))

        thread = threading.Thread(target=sample, name="memory")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def growth(samples: Sequence[tuple[float, int]]) -> float:
    """Of the last half, by the line that fits it best, as a share of where it begins."""
    late = samples[len(samples) // 2 :]
    seconds, held = np.array(late, float).T
    slope, at_zero = np.polyfit(seconds, held, 1)
    return float(slope * (seconds[-1] - seconds[0]) / (at_zero + slope * seconds[0]))
