"""How fast an engine is on this machine, and how large batches are worth their while."""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lspt_serve.runtime.engine import Engine

__all__ = ["Pace", "grow_while_it_pays", "measure_pace"]

# From one batch to the next in a busy server: gathering, heads, answers. When it was set,
# prove_load.py had batches of 4 in 37 ms, one every 41; now it has batches of 8 in 65 ms, one
# every 71.
BETWEEN_S = 0.003
WORTH_IT = 1.05  # how much faster, per image, the best size must be than a smaller one
# No larger size is measured than one whose images take so many times as long as the best one's, or
# whose batch takes so long: everybody in it waits for it.
GIVE_UP = 1.25
LONG_S = 1.0
REPEATS = 3
logger = logging.getLogger(__name__)


class Pace(NamedTuple):
    """`batch_size`: up to which batches pay; `images_per_s`: in batches of that size."""

    batch_size: int
    images_per_s: float


def measure_pace(engine: Engine, *, limit: int) -> Pace:
    """Of an engine that does nothing else; a batch of every size that pays has run then.

    Where larger batches are no faster (a CPU has its caches full early) they would only make
    everybody wait for everybody.
    """
    graph, usual = engine.graph, engine.num_prompts

    def seconds(batch_size: int, *, repeats: int = REPEATS, num_prompts: int = usual) -> float:
        task = {
            name: np.zeros([num_prompts if isinstance(n, str) else n for n in shape], np.float32)
            for name, shape in graph.inputs.items()
        }
        images = np.zeros((batch_size, 3, *[graph.preprocess.img_size] * 2), np.float32)
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            engine.features(images, [task] * batch_size)
            times.append(time.perf_counter() - started)
        return min(times)

    best = grow_while_it_pays(lambda size: BETWEEN_S + seconds(size), limit=limit)
    for batch_size in range(1, best):
        seconds(batch_size, repeats=1)  # engines prepare for the size of a batch when it comes
    for batch_size in {1, best}:
        seconds(batch_size, repeats=1, num_prompts=usual + 1)  # and for other numbers of prompts
    pace = Pace(best, best / seconds(best))
    logger.info("batches of up to %d images pay here; %.1f images/s", *pace)
    return pace


def grow_while_it_pays(seconds: Callable[[int], float], *, limit: int) -> int:
    """The smallest power of 2 that takes at most 5 % longer for an image than the best one.

    Args:
        seconds: that a batch of a size takes.
    """
    of_an_image: dict[int, float] = {}
    size = 1
    while size <= limit:
        taken = seconds(size)
        of_an_image[size] = taken / size
        if taken > LONG_S or of_an_image[size] > GIVE_UP * min(of_an_image.values()):
            break
        size *= 2
    best = min(of_an_image.values())
    return next(size for size, each in of_an_image.items() if each <= WORTH_IT * best)
