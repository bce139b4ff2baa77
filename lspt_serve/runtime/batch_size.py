"""How fast an engine is on this machine, and how large batches are worth their while."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from lspt_serve.runtime.company import seconds_in_company
from lspt_serve.runtime.engine import Engine

__all__ = ["LONG_S", "Pace", "grow_while_it_pays", "measure_pace"]

# From one batch to the next in a busy server: gathering, heads, answers. When it was set,
# prove_load.py had batches of 4 in 37 ms, one every 41.
BETWEEN_S = 0.003
WORTH_IT = 1.05  # how much faster, per image, the best size must be than a smaller one
ENOUGH = 2  # sizes that are not worth it, one after the other: no larger one is measured
LONG_S = 0.25  # nor one after a batch that took so long: everybody in it waits for it
logger = logging.getLogger(__name__)


class Pace(NamedTuple):
    """`batch_size`: up to which batches pay; `images_per_s`: in batches of that size."""

    batch_size: int
    images_per_s: float


def measure_pace(engine: Engine, *, limit: int) -> Pace:
    """Of an engine that does nothing else; a batch of every size that pays has run then.

    As many run at a time as the engine runs beside one another. Where larger ones are no faster (a
    CPU has its caches full early) they would only make everybody wait for everybody.
    """
    graph, usual, number = engine.graph, engine.num_prompts, engine.num_beside

    def batch(size: int, num_prompts: int = usual) -> Callable[[], object]:
        task = {
            name: np.zeros([num_prompts if isinstance(n, str) else n for n in shape], np.float32)
            for name, shape in graph.inputs.items()
        }
        images = np.zeros((size, 3, *[graph.preprocess.img_size] * 2), np.float32)
        return partial(engine.features, images, [task] * size)

    def seconds(size: int) -> float:
        return BETWEEN_S + seconds_in_company(batch(size), number)

    best, taken = grow_while_it_pays(seconds, limit=limit)
    sizes = [batch(size) for size in range(1, best + 1)]
    other_prompts = [batch(size, usual + 1) for size in {1, best}]
    with ThreadPoolExecutor(number) as pool:  # engines prepare for what comes when it first comes
        for run in (*sizes, *other_prompts):
            for ran in [pool.submit(run) for _ in range(number)]:
                ran.result()
    pace = Pace(best, number * best / taken)
    logger.info("batches of up to %d images pay here; %.1f images/s", *pace)
    return pace


def grow_while_it_pays(seconds: Callable[[int], float], *, limit: int) -> tuple[int, float]:
    """The smallest power of 2 that takes at most 5 % longer for an image than the best one.

    Args:
        seconds: that a batch of a size takes.

    Returns:
        It, and the seconds that a batch of it took.
    """
    of_an_image: dict[int, float] = {}
    size, taken = 1, 0.0
    while size <= limit and taken <= LONG_S and not _is_enough([*of_an_image.values()]):
        taken = seconds(size)
        of_an_image[size] = taken / size
        size *= 2
    for size, before in of_an_image.items():  # by now each of them has run once
        of_an_image[size] = min(before, seconds(size) / size)
    worth_it = WORTH_IT * min(of_an_image.values())
    best = next(size for size, each in of_an_image.items() if each <= worth_it)
    return best, best * of_an_image[best]


def _is_enough(of_an_image: Sequence[float]) -> bool:
    """Whether the last sizes were not worth it."""
    before, last = of_an_image[:-ENOUGH], of_an_image[-ENOUGH:]
    return bool(before) and min(last) * WORTH_IT > min(before)
