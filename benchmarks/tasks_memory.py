"""What tasks take of memory, and what it costs when one is not there; see bench_tasks.py."""

import ctypes
import gc
import mmap
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import Arm, Seconds, max_difference, paired_ratio, percentile, spread, take_turns
from numpy.typing import NDArray
from onnx import ModelProto
from tasks_arms import Setup, bake, create_classifier, mixed, open_store, swapped
from traffic import cyclic
from vits import task_name

from lspt_serve.bundle import MANIFEST, TENSORS
from lspt_serve.graph import GraphSpec, load_graph_spec
from lspt_serve.runtime import Classifier, PromptStore

__all__ = [
    "create_sessions",
    "drop_from_cache",
    "is_cached",
    "measure_capacity",
    "measure_memory",
    "measure_miss",
    "resident_bytes",
]

LEFT_BYTES = 2 * 10**9  # that must stay available on the machine
WARM, MISS, DISK = "in memory", "in the page cache", "on disk"
Array = NDArray[np.float32]


def resident_bytes() -> int:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def available_bytes() -> int:
    """Of the machine."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def measure_memory(setup: Setup, num_tasks: int) -> dict[str, float]:
    """Resident bytes that a store of so many tasks adds for each, in a process of its own."""
    open_store(setup, num_tasks)  # makes the folder
    folder = setup.bundles.with_name(f"first-{num_tasks}")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        added = pool.submit(_grow, folder, load_graph_spec(setup.graph)).result()
    return {"resident_bytes": added / num_tasks, "tensor_bytes": setup.task_bytes}


def _grow(folder: Path, spec: GraphSpec) -> int:
    """A first store has the allocator and the imports warm; both stay to the end."""
    first = PromptStore(folder, spec, host_bytes=0)
    gc.collect()
    before = resident_bytes()
    second = PromptStore(folder, spec, host_bytes=2**40)
    gc.collect()
    added = resident_bytes() - before
    del first, second
    return added


def create_sessions(
    graph: ModelProto, store: PromptStore, most: int
) -> tuple[dict[int, Any], dict[str, float]]:
    """Baked sessions of the first tasks, until there are `most` or memory ends."""
    sessions: dict[int, Any] = {}
    before = resident_bytes()
    for task in range(min(most, len(store))):
        if available_bytes() < LEFT_BYTES:
            break
        sessions[task] = bake(graph, store[task_name(task)])
    added = resident_bytes() - before
    return sessions, {"sessions": len(sessions), "resident_bytes": added / max(1, len(sessions))}


def measure_capacity(
    setup: Setup, images: Array, capacity: int, **turns: Any
) -> tuple[dict[str, Any], float]:
    """As many tasks as stay in memory, and one more, each after the other: the worst for an LRU.

    Returns:
        The figures, and the largest difference of answers from torch's.
    """
    classifiers = {
        tasks: create_classifier(
            setup, open_store(setup, tasks, host_bytes=capacity * setup.task_bytes), len(images)
        )
        for tasks in (capacity, capacity + 1)
    }
    traffic = {tasks: cyclic(tasks, len(images)) for tasks in classifiers}
    error = _check(setup, classifiers[capacity + 1], images, range(len(images)))
    misses = {
        tasks: _count_misses(classifier.store, tasks, len(images))
        for tasks, classifier in classifiers.items()
    }
    arms = {
        str(tasks): _next(mixed(classifier, images), traffic[tasks])
        for tasks, classifier in classifiers.items()
    }
    seconds = take_turns(arms, **turns)
    for classifier in classifiers.values():
        classifier.close()
    within, over = (percentile(seconds[str(tasks)], 0.99) for tasks in classifiers)
    return {
        "capacity": capacity,
        "p99_ratio": over / within,
        "ratio": paired_ratio(seconds[str(capacity + 1)], seconds[str(capacity)]),
        "misses_of_a_batch": {str(tasks): count for tasks, count in misses.items()},
        "ms": {tasks: to_ms(taken) for tasks, taken in seconds.items()},
        "seconds": seconds,
    }, error


def _check(setup: Setup, classifier: Classifier, images: Array, rows: range) -> float:
    """The largest difference of a classifier's answers from torch's."""
    tasks = [row % len(classifier.store) for row in rows]
    wanted = swapped(setup, classifier.store, images)(tasks)
    return max_difference(mixed(classifier, images)(tasks), wanted)


def _next(answer: Callable[[list[int]], object], traffic: Iterator[list[int]]) -> Any:
    return lambda number: answer(next(traffic))


def _count_misses(store: PromptStore, num_tasks: int, batch_size: int) -> float:
    """Of a batch, on average, in the second of two rounds: what is read again is another object."""
    names = [task_name(task) for task in range(num_tasks)]
    first = [store[name] for name in names]
    again = [store[name] for name in names]
    read = sum(one is not other for one, other in zip(first, again, strict=True))
    return batch_size * read / num_tasks


def measure_miss(setup: Setup, image: Array, **turns: Any) -> tuple[dict[str, Any], float]:
    """An image of a task in memory, and of one whose files are in the page cache, or on disk only.

    A miss counts whole, from the lookup to the answer: find the task, read and check its files
    (sha256 too), put it into the batch, run. One task stays in memory; another is asked for before.

    Returns:
        The figures, and the largest difference of answers from torch's.
    """
    store = open_store(setup, 2, host_bytes=setup.task_bytes)
    classifier = create_classifier(setup, store, 1)
    folder = store.folder / task_name(0)
    answer = mixed(classifier, image[None])
    error = _check(setup, classifier, image[None], range(1))
    droppable = drop_from_cache(folder)
    kinds = [WARM, MISS, *([DISK] if droppable else [])]

    def prepare(name: str, number: int) -> None:
        kind = name.removeprefix("find ")
        store[task_name(0 if kind == WARM else 1)]
        if kind == DISK and not drop_from_cache(folder):
            raise SystemExit(f"{folder}: is in the page cache again; nothing is measured")

    arms: dict[str, Arm] = {kind: lambda number: answer([0]) for kind in kinds}
    arms |= {f"find {kind}": lambda number: store[task_name(0)] for kind in kinds}
    seconds = take_turns(arms, prepare=prepare, **turns)
    classifier.close()
    return {
        "droppable": droppable,
        "ms": {name: to_ms(taken) for name, taken in seconds.items()},
        "added_ms": {kind: _added(seconds, kind) for kind in kinds if kind != WARM},
        "seconds": seconds,
    }, error


def _added(seconds: Seconds, kind: str) -> dict[str, float]:
    pairs = zip(seconds[kind], seconds[WARM], strict=True)
    return spread([1000 * (missed - warm) for missed, warm in pairs])


def to_ms(seconds: list[float]) -> dict[str, float]:
    ms = [1000 * each for each in seconds]
    return {**spread(ms), "p99": percentile(ms, 0.99)}


def drop_from_cache(folder: Path) -> bool:
    """Have the kernel forget a bundle's files; whether it did."""
    paths = [folder / name for name in (MANIFEST, TENSORS)]
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # what is not written yet cannot be forgotten
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return not any(map(is_cached, paths))


def is_cached(path: Path) -> bool:
    """Whether a page of a file is in memory; to look brings none there, as to read would."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        length = ctypes.c_size_t(len(mapped))
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), length, pages)
        del start  # or the file cannot be unmapped
    return bool(failed) or any(page & 1 for page in pages)
