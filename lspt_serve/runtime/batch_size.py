"""How large batches are worth their while on this machine."""

import time
from collections.abc import Callable

import numpy as np

from lspt_serve.runtime.engine import Engine

__all__ = ["grow_while_it_pays", "measure_batch_size"]

WORTH_IT = 1.05  # how much faster, per image, a batch of twice the size must be
NUM_PROMPTS, REPEATS = 10, 2


def measure_batch_size(engine: Engine, *, limit: int) -> int:
    """The size up to which batches pay; warms the engine up. Before a task is in its slots.

    Where larger batches are no faster (a CPU has its caches full early) they would only make
    everybody wait for everybody.
    """
    graph = engine.graph
    blank = {
        name: np.zeros([NUM_PROMPTS if isinstance(n, str) else n for n in shape], np.float32)
        for name, shape in graph.inputs.items()
    }
    engine.put(0, blank)

    def seconds(batch_size: int) -> float:
        images = np.zeros((batch_size, 3, *[graph.preprocess.img_size] * 2), np.float32)
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            engine.features(images, [0] * batch_size)
            times.append(time.perf_counter() - started)
        return min(times)

    return grow_while_it_pays(seconds, limit=limit)


def grow_while_it_pays(seconds: Callable[[int], float], *, limit: int) -> int:
    """Doubled while images/s grow by 5 %.

    Args:
        seconds: that a batch of a size takes.
    """
    size, rate = 1, 1 / seconds(1)
    while 2 * size <= limit:
        doubled = 2 * size / seconds(2 * size)
        if doubled < WORTH_IT * rate:
            break
        size, rate = 2 * size, doubled
    return size
