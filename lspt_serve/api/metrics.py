"""What Prometheus reads at GET /metrics, of all processes of the service together.

BentoML has every worker write to files of its own, in the folder PROMETHEUS_MULTIPROC_DIR, and any
of them answers for all. BentoML's own metrics are off: they keep a series for every path that
anybody asks for, and there is no end of those. Here a label is a route, a code, or a task that the
folder of bundles has.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from fastapi import Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from lspt_serve.api.disconnect import CLIENT_GONE
from lspt_serve.api.failures import CODES, FAILURES
from lspt_serve.api.task_metrics import TASK, TaskMetrics, labels_of
from lspt_serve.manifest import Manifest
from lspt_serve.runtime import Events
from lspt_serve.sizes import MAX_BATCH_SIZE

__all__ = ["Metrics", "get_metrics"]

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = [2**power for power in range(MAX_BATCH_SIZE.bit_length())]
P = ParamSpec("P")
logger = logging.getLogger(__name__)


def _counting(count: Callable[P, None]) -> Callable[P, None]:
    """What cannot be counted is a line in the log, and fails nobody's request.

    A new label makes prometheus_client map a file anew, which takes a descriptor.
    """

    @wraps(count)
    def counted(*given: P.args, **named: P.kwargs) -> None:
        try:
            count(*given, **named)
        except OSError as error:
            logger.error("not counted: %s", error)

    return counted


class Metrics(Events):
    """Counts what the runtime tells and what the app answers.

    Attributes:
        tasks: counts by task and version, beside it; SILENT where there are too many of them.
    """

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()

        def seconds(name: str, what: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"lspt_{name}_seconds", what, labels, buckets=SECONDS, registry=own)

        def gauge(name: str, what: str, mode: str) -> Gauge:
            return Gauge(f"lspt_{name}", what, multiprocess_mode=mode, registry=own)  # type: ignore[arg-type]

        self._http = seconds("http", "From a request to its answer", ("route", "status"))
        self._errors = Counter("lspt_errors", "Requests refused, by code", ["code"], registry=own)
        self._requests = Counter(
            "lspt_requests",
            "Images asked of a task; code is ok or why there was no answer",
            [*TASK, "code"],
            registry=own,
        )
        self._waiting = gauge("images_waiting", "Images that wait for the engine", "livesum")
        self._queue = seconds("queue", "An image waited for the engine")
        self._engine = seconds("engine", "A batch was in the engine")
        self._batch_size = Histogram(
            "lspt_batch_size", "Images of a batch", buckets=SIZES, registry=own
        )
        self._load = seconds("bundle_load", "A bundle was read from disk")
        self._evictions = Counter(
            "lspt_evictions", "Bundles that left memory for want of room", registry=own
        )
        self.tasks: Events = TaskMetrics(own)
        # workers that lag behind the folder serve fewer tasks; each has a memory of its own
        self._served = gauge("tasks_served", "Tasks that every worker serves", "livemin")
        self._refused = gauge("bundles_refused", "Bundles that are not served", "livemax")
        self._held = gauge("bundles_in_memory", "Bundles in memory, of all workers", "livesum")
        self._bytes = gauge("bundles_in_memory_bytes", "Their tensors' bytes", "livesum")

    @_counting
    def responded(self, route: str, status: int, code: str | None, seconds: float) -> None:
        """The app answered a request; `route` is of the app, as written there."""
        self._http.labels(route, status).observe(seconds)
        if code is not None:
            self._errors.labels(code).inc()

    @_counting
    def answered(self, task: Manifest | None, error: BaseException | None) -> None:
        self._requests.labels(*(labels_of(task) if task else ("", "")), _code(error)).inc()

    @_counting
    def waiting(self, images: int) -> None:
        self._waiting.set(images)

    @_counting
    def waited(self, task: Manifest, seconds: float) -> None:
        self._queue.observe(seconds)
        self.tasks.waited(task, seconds)

    @_counting
    def ran(self, tasks: Sequence[Manifest], seconds: float) -> None:
        self._batch_size.observe(len(tasks))
        self._engine.observe(seconds)
        self.tasks.ran(tasks, seconds)

    @_counting
    def loaded(self, task: Manifest, seconds: float) -> None:
        self._load.observe(seconds)
        self.tasks.loaded(task, seconds)

    @_counting
    def came(self, task: Manifest) -> None:
        self.tasks.came(task)

    @_counting
    def went(self, task: Manifest, *, evicted: bool) -> None:
        if evicted:
            self._evictions.inc()
        self.tasks.went(task, evicted=evicted)

    @_counting
    def held(self, bundles: int, num_bytes: int) -> None:
        self._held.set(bundles)
        self._bytes.set(num_bytes)

    @_counting
    def served(self, tasks: int, refused: int) -> None:
        self._served.set(tasks)
        self._refused.set(refused)

    def render(self) -> bytes:
        """In Prometheus' text format."""
        if FOLDER not in os.environ:
            return generate_latest(self._registry)
        _forget_dead_workers()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def get_metrics(request: Request) -> Response:
    """What Prometheus reads; where there are keys, for who may use every task."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _code(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, CancelledError):
        return CODES[CLIENT_GONE]
    return next(
        (code for kind, (code, *_) in FAILURES.items() if isinstance(error, kind)), "internal"
    )


def _forget_dead_workers() -> None:
    """Gauges of a worker that was killed would be added up for ever."""
    for path in Path(os.environ[FOLDER]).glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except OSError:  # there is none, or it is another user's
            with suppress(FileNotFoundError):  # another worker forgets it, too
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
