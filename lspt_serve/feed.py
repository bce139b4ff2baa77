"""What a graph is fed of the tasks in a batch. Needs numpy alone.

B rows, S tasks in the batch, R rows of the task that has the most, P prompts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lspt_serve.graph import BACK, NUM_PROMPTS, PLACE, Dim

__all__ = ["Feed", "TaskTensors", "create_feed", "prompts_axes", "row_inputs"]

TaskTensors = Mapping[str, NDArray[np.float32]]  # of one task, as its bundle has them
Feed = dict[str, NDArray[np.float32] | NDArray[np.int64]]


def create_feed(inputs: Mapping[str, list[Dim]], tasks: Sequence[TaskTensors]) -> Feed:
    """What a graph takes beside the images; nothing for a linear probe's.

    The tensors of the tasks in the batch side by side, S x the shape that they have in a bundle,
    with zeros after the prompts of a task that has fewer than another. Of a single task they are
    views: nothing is copied.

    Args:
        inputs: of a GraphSpec, task tensor -> shape.
        tasks: of each row, B; rows are of one task if they have the same object.
    """
    if not inputs:
        return {}
    numbers = {key: number for number, key in enumerate(dict.fromkeys(map(id, tasks)))}
    present = list({id(task): task for task in tasks}.values())
    axes = prompts_axes(inputs)
    tensors = {name: _pack([task[name] for task in present], axes.get(name)) for name in inputs}
    rows = row_inputs(np.array([numbers[id(task)] for task in tasks], np.int64))
    return {**tensors, **rows, NUM_PROMPTS: _count_prompts(present, axes)}


def _pack(arrays: Sequence[NDArray[np.float32]], prompts_axis: int | None) -> NDArray[np.float32]:
    if len(arrays) == 1:
        return arrays[0][None]
    if prompts_axis is None:
        return np.stack(arrays)
    shape = list(arrays[0].shape)
    shape[prompts_axis] = max(array.shape[prompts_axis] for array in arrays)
    packed = np.zeros((len(arrays), *shape), np.float32)
    for row, array in zip(packed, arrays, strict=True):
        row[(slice(None),) * prompts_axis + (slice(array.shape[prompts_axis]),)] = array
    return packed


def _count_prompts(tasks: Sequence[TaskTensors], axes: Mapping[str, int]) -> NDArray[np.int64]:
    """S; all tensors of a task agree."""
    name, axis = next(iter(axes.items()))
    return np.array([task[name].shape[axis] for task in tasks], np.int64)


def prompts_axes(inputs: Mapping[str, list[Dim]]) -> dict[str, int]:
    """The axis of prompts in a bundle, of the tensors that have one."""
    return {
        name: shape.index(NUM_PROMPTS) for name, shape in inputs.items() if NUM_PROMPTS in shape
    }


def row_inputs(tasks: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """What tells a graph whose row is whose.

    Args:
        tasks: of each row, B, from 0 to S - 1, all of which there are.

    Returns:
        `place`: S x R, the rows of each; a task that has fewer repeats row 0. `back`: B, where a
        row stands in `place`, flattened.
    """
    counts = np.bincount(tasks)
    order = np.argsort(tasks, kind="stable")
    nth = np.arange(len(tasks)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = np.zeros((len(counts), counts.max()), np.int64)
    place[tasks[order], nth] = order
    back = np.empty(len(tasks), np.int64)
    back[order] = tasks[order] * place.shape[1] + nth
    return {PLACE: place, BACK: back}
