"""How long a server reads a folder of many bundles, and looks at it again; see bench_tasks.py."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import spread
from tasks_arms import Setup
from vits import task_name

from lspt_serve.bundle import MANIFEST, TENSORS
from lspt_serve.graph import load_graph_spec
from lspt_serve.runtime import PromptStore

__all__ = ["measure_folders"]

ROUNDS = 3


def measure_folders(setup: Setup, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Of a store with the memory that a server gives it, files in the page cache.

    Bundles beyond those of the set-up have a manifest of their own, and the tensors of others.
    """
    return [{"tasks": count, **measure_folder(setup, count)} for count in counts]


def measure_folder(setup: Setup, num_tasks: int) -> dict[str, Any]:
    folder = create_folder(setup, num_tasks)
    spec = load_graph_spec(setup.graph)

    def read() -> PromptStore:
        return PromptStore(folder, spec)

    read()  # from the disk
    started = [timed(read) for _ in range(ROUNDS)]
    store = read()
    store.refresh()
    looks = [timed(store.refresh) for _ in range(ROUNDS)]
    assert len(store) == num_tasks
    return {"start_s": spread(started), "look_ms": spread([1000 * look for look in looks])}


def create_folder(setup: Setup, num_tasks: int) -> Path:
    known = sorted(setup.bundles.iterdir())
    folder = setup.bundles.with_name(f"all-{num_tasks}")
    for number in range(num_tasks):
        like, own = known[number % len(known)], folder / task_name(number)
        own.mkdir(parents=True)
        manifest = json.loads((like / MANIFEST).read_text("utf-8"))
        (own / MANIFEST).write_text(json.dumps({**manifest, "name": task_name(number)}), "utf-8")
        os.link(like / TENSORS, own / TENSORS)
    return folder


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
