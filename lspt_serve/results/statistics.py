"""Means and standard deviations over seeds and tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

__all__ = ["Figure", "mean_over_tasks", "paired_difference", "summarise"]

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Figure:
    """A mean over `n` seeds; `std` is the sample's (n - 1), None for a single seed."""

    mean: float
    std: float | None
    n: int


def summarise(values: Sequence[float]) -> Figure:
    """Mean and sample standard deviation of at least one value."""
    return Figure(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def mean_over_tasks(by_task: Sequence[BySeed]) -> Figure:
    """The mean of the tasks' means, from seed -> value for each task.

    Its standard deviation is that of the mean over tasks from seed to seed, over the `n` seeds that
    all tasks have.
    """
    mean = fmean(fmean(values.values()) for values in by_task)
    seeds = sorted(set.intersection(*(set(values) for values in by_task)))
    of_seed = [fmean(values[seed] for values in by_task) for seed in seeds]
    return Figure(mean, stdev(of_seed) if len(seeds) > 1 else None, len(seeds))


def paired_difference(own: Mapping[str, BySeed], other: Mapping[str, BySeed]) -> Figure | None:
    """By how much the mean over tasks is above another's, seed by seed.

    From task -> seed -> value; None unless all tasks of both have the same seeds.
    """
    seeds = {frozenset(values) for values in (*own.values(), *other.values())}
    if own.keys() != other.keys() or len(seeds) != 1:
        return None
    (paired,) = seeds
    return summarise(
        [fmean(own[task][seed] - other[task][seed] for task in own) for seed in sorted(paired)]
    )
