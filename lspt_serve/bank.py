"""The tensors of tasks in slots, and what a graph is fed of them. Needs numpy alone.

S tasks in a batch of B rows, R rows of the task that has the most, P prompts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lspt_serve.graph import BACK, NUM_PROMPTS, PLACE, SLOTS, Dim

__all__ = ["Bank", "prompts_axes", "row_inputs"]

Feed = dict[str, NDArray[np.float32] | NDArray[np.int64]]


class Bank:
    """One array for each input of a graph that is a task's tensor, with an axis of slots.

    The system gives memory to a slot when it is first written. Tasks may have different numbers of
    prompts: that axis is the first of an array, so that a batch takes of it no more than its tasks
    need without a copy. For one thread.

    Args:
        inputs: of a GraphSpec, task tensor -> shape.
    """

    def __init__(self, inputs: Mapping[str, list[Dim]], num_slots: int) -> None:
        self.num_slots = num_slots
        self._prompts_axis = prompts_axes(inputs)
        self._arrays = {name: self._create(name, shape) for name, shape in inputs.items()}
        self._num_prompts = np.zeros(num_slots, np.int64)

    def put(self, slot: int, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Copy a task's tensors, of the graph's shapes, into a slot that no run is using."""
        for name, array in self._arrays.items():
            axis = self._prompts_axis.get(name)
            if axis is None:
                array[slot] = tensors[name]
            else:
                self._put_prompts(slot, name, np.moveaxis(tensors[name], axis, 0))

    def feed(self, slots: Sequence[int], *, copy: bool = False) -> Feed:
        """What a graph is fed beside the images; nothing for a linear probe's.

        Args:
            slots: of each row's task.
            copy: feed the tensors of the batch's tasks alone, where a graph that takes all slots
                would have to move them; else all slots, uncopied.
        """
        if not self._arrays:
            return {}
        rows = row_inputs(np.asarray(slots, np.int64))
        present = rows[SLOTS]
        num_prompts = self._num_prompts[present]
        most = num_prompts.max()
        arrays = {
            name: array[:most] if name in self._prompts_axis else array
            for name, array in self._arrays.items()
        }
        if copy:
            arrays = {
                name: array.take(present, axis=1 if name in self._prompts_axis else 0)
                for name, array in arrays.items()
            }
            rows[SLOTS] = np.arange(len(present))
        return {**arrays, **rows, NUM_PROMPTS: num_prompts}

    def _put_prompts(self, slot: int, name: str, prompts: NDArray[np.float32]) -> None:
        """Where a task has more prompts than there was room for, into a new, larger array."""
        count, array = len(prompts), self._arrays[name]
        if count > len(array):
            used = np.flatnonzero(self._num_prompts)
            self._arrays[name] = np.zeros((count, *array.shape[1:]), np.float32)
            self._arrays[name][: len(array), used] = array[:, used]
        self._arrays[name][:count, slot] = prompts
        self._arrays[name][count:, slot] = 0
        self._num_prompts[slot] = count

    def _create(self, name: str, shape: list[Dim]) -> NDArray[np.float32]:
        sizes = [size for size in shape if isinstance(size, int)]
        first = [1, self.num_slots] if name in self._prompts_axis else [self.num_slots]
        return np.zeros((*first, *sizes), np.float32)


def prompts_axes(inputs: Mapping[str, list[Dim]]) -> dict[str, int]:
    """The axis of prompts in a bundle, of the tensors that have one; in a bank it is the first."""
    return {
        name: shape.index(NUM_PROMPTS) for name, shape in inputs.items() if NUM_PROMPTS in shape
    }


def row_inputs(slots: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """What tells a graph whose row is whose.

    Args:
        slots: of each row's task, B.

    Returns:
        `slots`: S, those there are. `place`: S x R, the rows of each; a task that has fewer
        repeats row 0. `back`: B, where a row stands in `place`, flattened.
    """
    present, task, counts = np.unique(slots, return_inverse=True, return_counts=True)
    order = np.argsort(task, kind="stable")
    nth = np.arange(len(slots)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = np.zeros((len(present), counts.max()), np.int64)
    place[task[order], nth] = order
    back = np.empty(len(slots), np.int64)
    back[order] = task[order] * place.shape[1] + nth
    return {SLOTS: present, PLACE: place, BACK: back}
