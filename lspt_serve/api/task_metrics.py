"""What GET /metrics says of every task and version."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary

from lspt_serve.manifest import Manifest
from lspt_serve.runtime import Events

__all__ = ["TASK", "TaskMetrics", "labels_of"]

TASK = ("task", "version")


class TaskMetrics(Events):
    """Sums and counts; histograms of every task would be ten times as many series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def summary(name: str, what: str) -> Summary:
            return Summary(f"lspt_task_{name}", what, TASK, registry=registry)

        self._queue = summary("queue_seconds", "An image waited for the engine")
        self._engine = summary("engine_seconds", "The batch of an image was in the engine")
        self._batch_size = summary("batch_size", "Images of the batch of an image")
        self._load = summary("load_seconds", "It was read from disk")
        self._held = Gauge(
            "lspt_task_in_memory",
            "Workers that have it in memory",
            TASK,
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._evictions = Counter(
            "lspt_task_evictions", "It left memory for want of room", TASK, registry=registry
        )

    def waited(self, task: Manifest, seconds: float) -> None:
        self._queue.labels(*labels_of(task)).observe(seconds)

    def ran(self, tasks: Sequence[Manifest], seconds: float) -> None:
        for labels in map(labels_of, tasks):
            self._batch_size.labels(*labels).observe(len(tasks))
            self._engine.labels(*labels).observe(seconds)

    def loaded(self, task: Manifest, seconds: float) -> None:
        self._load.labels(*labels_of(task)).observe(seconds)

    def came(self, task: Manifest) -> None:
        self._held.labels(*labels_of(task)).inc()

    def went(self, task: Manifest, *, evicted: bool) -> None:
        self._held.labels(*labels_of(task)).dec()
        if evicted:
            self._evictions.labels(*labels_of(task)).inc()


def labels_of(task: Manifest) -> tuple[str, str]:
    """Values of TASK."""
    return task.name, str(task.version)
