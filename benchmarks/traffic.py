"""Whose image comes next: the tasks of the rows of a batch."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["PATTERNS", "Traffic", "cyclic", "draw_batches", "zipf_shares"]

Batch = list[int]  # the task of each row
Traffic = list[Batch]
Draw = Callable[[np.random.Generator, int, int], NDArray[np.int64]]  # tasks, rows of a batch


def zipf_shares(num_tasks: int) -> NDArray[np.float64]:
    """Of the images, by task: that of the k-th is in proportion to 1 / k."""
    weights = 1 / np.arange(1, num_tasks + 1)
    return np.asarray(weights / weights.sum())


PATTERNS: dict[str, Draw] = {
    "identical": lambda rng, tasks, rows: np.repeat(rng.integers(tasks), rows),
    "uniform": lambda rng, tasks, rows: rng.integers(tasks, size=rows),
    "zipf": lambda rng, tasks, rows: rng.choice(tasks, size=rows, p=zipf_shares(tasks)),
    "distinct": lambda rng, tasks, rows: rng.choice(tasks, size=rows, replace=False),
}


def draw_batches(pattern: str, num_tasks: int, batch_size: int, count: int) -> Traffic:
    """The same every time.

    - identical: all rows of a batch are of one task, another one for each batch;
    - uniform: each row is of any task;
    - zipf: few tasks have most of the rows, see `zipf_shares`;
    - distinct: no two rows of a batch are of one task.
    """
    rng = np.random.default_rng(0)
    draw = PATTERNS[pattern]
    return [[int(task) for task in draw(rng, num_tasks, batch_size)] for _ in range(count)]


def cyclic(num_tasks: int, batch_size: int) -> Iterator[Batch]:
    """Every task after the other, for ever: the worst that can come to an LRU memory.

    Of n + 1 tasks, one that holds n has never the one that comes.
    """
    following = 0
    while True:
        yield [(following + row) % num_tasks for row in range(batch_size)]
        following += batch_size
