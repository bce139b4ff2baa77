"""Where the time of a server's workers goes, by the system and by its own metrics."""

import time
from typing import NamedTuple, Self
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from proof_server import Server

__all__ = ["Spent", "Totals"]

SUMS = {"images": "lspt_batch_size_sum", "batches": "lspt_batch_size_count"}
ENGINE = "lspt_engine_seconds_sum"


class Spent(NamedTuple):
    """Between two looks.

    Attributes:
        loops: cores that the workers' event loops, which parse and refuse, kept busy.
        workers: cores that the workers kept busy, their event loops among them.
        rows: images of a batch, on average.
        batch_ms: that a batch was in the engine, on average.
    """

    loops: float
    workers: float
    rows: float
    batch_ms: float

    def __str__(self) -> str:
        batches = f"batches of {self.rows:.1f} in {self.batch_ms:.0f} ms"
        return f"{batches}, event loops {self.loops:.2f} of {self.workers:.2f} cores"


class Totals(NamedTuple):
    """Since a server started, in seconds; images and batches of the engine."""

    at: float
    loops: float
    workers: float
    engine: float
    images: float
    batches: float

    @classmethod
    def of(cls, server: Server) -> Self:
        workers = server.workers()
        threads = [(each.pid, thread) for each in workers for thread in each.threads()]
        loops = sum(own.user_time + own.system_time for pid, own in threads if own.id == pid)
        busy = sum(sum(each.cpu_times()[:2]) for each in workers)
        with urlopen(server.url + "/metrics", timeout=30) as answer:
            samples = [
                sample
                for family in text_string_to_metric_families(answer.read().decode())
                for sample in family.samples
            ]

        def total(name: str) -> float:
            return sum(sample.value for sample in samples if sample.name == name)

        counts = {name: total(series) for name, series in SUMS.items()}
        return cls(time.monotonic(), loops, busy, total(ENGINE), **counts)

    def until(self, later: Self) -> Spent:
        """Of what was spent from this look to a later one."""
        seconds, batches = later.at - self.at, max(1.0, later.batches - self.batches)
        return Spent(
            loops=(later.loops - self.loops) / seconds,
            workers=(later.workers - self.workers) / seconds,
            rows=(later.images - self.images) / batches,
            batch_ms=1000 * (later.engine - self.engine) / batches,
        )
