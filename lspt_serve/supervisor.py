"""What BentoML has no setting for, in the process that starts the workers and looks after them.

`bentoml serve` imports the service there too, before it starts any.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bentoml import serving
from bentoml._internal.utils import circus

from lspt_serve.cores import THREADS, usable_cores
from lspt_serve.neighbours import NEIGHBOURS, create_neighbours

__all__ = ["configure_supervisor"]

CHECK_S = 1.0  # from one look for dead workers to the next; BentoML's is 10
HEAPS = "MALLOC_ARENA_MAX"  # of glibc, which has one for each thread else: images that one thread
#                              decodes and another lets go of leave holes in all of them
MEMORY = Path("/dev/shm")  # a file system in memory, where there is one
_create_arbiter = circus.create_standalone_arbiter


def configure_supervisor() -> None:
    """A worker that died is back within seconds, several share the cores, a full disk ends none.

    A worker's engine may use the cores that others leave idle, so they are told of one another;
    whatever else makes threads has its share of the cores, unless OMP_NUM_THREADS says of both.

    Workers count for Prometheus in files that they map into memory: to write there ends the process
    where the disk is full. BentoML has the files in its home, and of two servers with one home the
    second deletes those of the first. Here each server has its own, in memory.
    """
    circus.create_standalone_arbiter = _create_attentive_arbiter
    serving.ensure_prometheus_dir = _create_metrics_folder  # type: ignore[assignment]


def _create_attentive_arbiter(watchers: Sequence[Any], **options: Any) -> Any:
    """One that looks often; workers have a heap and their share of the cores, unless told else."""
    for watcher in watchers:
        own = {HEAPS: "1"}
        if watcher.numprocesses > 1 and THREADS not in os.environ:
            own[THREADS] = str(max(1, usable_cores() // watcher.numprocesses))
            neighbours = _create_folder("neighbours") / "running"
            create_neighbours(neighbours, watcher.numprocesses)
            own[NEIGHBOURS] = str(neighbours)
        untold = {name: value for name, value in own.items() if name not in os.environ}
        watcher.env = {**(watcher.env or {}), **untold}
    return _create_arbiter(watchers, check_delay=CHECK_S, **options)  # type: ignore[arg-type]


def _create_metrics_folder() -> str:
    """BentoML asks for it when the server starts."""
    return str(_create_folder("metrics"))


def _create_folder(use: str) -> Path:
    """In memory, where there is one; it is gone when the server ends."""
    folder = tempfile.mkdtemp(prefix=f"lspt-{use}-", dir=MEMORY if MEMORY.is_dir() else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
