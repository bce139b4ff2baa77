"""Tensors of tasks that stay on the device from batch to batch.

S tasks in a batch, P prompts.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lspt_serve.feed import TaskTensors, prompts_axes
from lspt_serve.graph import Dim
from lspt_serve.runtime.gpu.copies import upload_numbers

__all__ = ["DeviceBank", "Gathered"]

EXPECTED_S = 1.0  # a batch that comes later than this after its tasks may have to bring them again


@dataclass(frozen=True, eq=False)
class Gathered:
    """Tensors of some tasks side by side, with a prompts axis as long as the longest needs.

    They are copies: what becomes of the tasks' slots does not touch them.
    """

    tasks: list[TaskTensors]  # S
    tensors: dict[str, Tensor]  # S x the shape in a bundle
    num_prompts: Tensor | None  # S; None where all have as many


@dataclass(frozen=True, eq=False)
class _Held:
    task: TaskTensors  # as long as it is held, its id is no other object's
    slot: int
    num_prompts: int


class _Copies:
    """A GPU's stream for copies into the slots; what reads these runs on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._read = torch.cuda.Event()
        self.mark_read()

    def mark_read(self) -> None:
        """What the current stream was given so far has to be done before the next copy."""
        self._read.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """The current stream goes on when all copies are there."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    @contextmanager
    def after_reads(self) -> Iterator[None]:
        """Within, torch's work goes to this stream."""
        self._stream.wait_event(self._read)
        with torch.cuda.stream(self._stream):
            yield


class _FairLock:
    """One that who waits gets before who just let go of it and wants it again."""

    def __init__(self) -> None:
        self._next, self._own = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:  # held by who waits
            self._own.acquire()

    def __exit__(self, *error: object) -> None:
        self._own.release()


class DeviceBank:
    """Tasks in slots; the one that was used longest ago makes room for the next.

    A task is an object: equal tensors in another one are another task. Safe to use from several
    threads. On a CUDA GPU tensors come from pinned memory on a stream of their own, beside the
    batch that runs.

    Args:
        inputs: of a GraphSpec, task tensor -> shape; there are some.
        dtypes: of the tensors that are not kept in float32.
    """

    def __init__(
        self,
        inputs: Mapping[str, list[Dim]],
        *,
        num_slots: int,
        device: torch.device,
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}")
        self.num_slots = num_slots
        self.num_uploads = 0  # how often a task was not there when it was wanted
        self._device = device
        self._axes = prompts_axes(inputs)
        self._tensors = {  # slots x the shape in a bundle, without prompts until some come
            name: torch.empty(
                num_slots,
                *[size if isinstance(size, int) else 0 for size in shape],
                dtype=dtypes.get(name, torch.float32),
                device=device,
            )
            for name, shape in inputs.items()
        }
        self._held: OrderedDict[int, _Held] = OrderedDict()  # id of a task; last used is last
        self._expected: dict[
            int, float
        ] = {}  # of these, those that a batch will have, and until when
        self._free = list(reversed(range(num_slots)))
        self._lock = _FairLock()
        self._copies = _Copies(device) if device.type == "cuda" else None

    def __contains__(self, task: TaskTensors) -> bool:
        with self._lock:
            return id(task) in self._held

    def gather(self, tasks: Sequence[TaskTensors]) -> Gathered:
        """The tensors of a batch's tasks, of as many of the first ones as there are slots for.

        Args:
            tasks: of each row or each task, in any order.
        """
        with self._lock:
            fitting = self._fitting(tasks)
            self._expect(fitting)
            for task in fitting:
                self._bring(task)
            for task in fitting:
                del self._expected[id(task)]
            return self._select([self._held[id(task)] for task in fitting])

    def prefetch(self, tasks: Sequence[TaskTensors]) -> None:
        """Bring tasks that a batch will have, where that costs none that another still waits for.

        Many more tasks may be waited for than there are slots: they would drive one another out,
        each before its batch comes. No batch may ever have them, if their image does not decode,
        say: what is waited for in vain is held for a second.
        """
        with self._lock:
            fitting = self._fitting(tasks)
            self._expect(fitting)
        for task in fitting:
            with self._lock:  # one by one: a batch waits for one copy at most
                if (
                    id(task) in self._held
                    or self._free
                    or self._expected.keys() < self._held.keys()
                ):
                    self._bring(task)

    def _fitting(self, tasks: Sequence[TaskTensors]) -> list[TaskTensors]:
        """The first ones, each once, that can be here together."""
        return list({id(task): task for task in tasks}.values())[: self.num_slots]

    def _expect(self, tasks: Sequence[TaskTensors]) -> None:
        """Before others are brought: none of these makes room for another of them."""
        now = time.monotonic()
        self._expected = {key: until for key, until in self._expected.items() if now < until}
        for task in tasks:
            if id(task) in self._held:
                self._held.move_to_end(id(task))
                self._expected[id(task)] = now + EXPECTED_S

    def _bring(self, task: TaskTensors) -> None:
        if id(task) in self._held:
            return
        if not self._free:
            self._make_room()
        slot, num_prompts = self._free[-1], self._count_prompts(task)
        with self._copies.after_reads() if self._copies else nullcontext():
            self._widen(num_prompts)
            for name, tensor in self._tensors.items():
                self._copy(task, name, tensor[slot])
        self._free.pop()  # only now: a copy that failed leaves the slot free
        self._held[id(task)] = _Held(task, slot, num_prompts)
        self._expected[id(task)] = time.monotonic() + EXPECTED_S
        self.num_uploads += 1

    def _make_room(self) -> None:
        """What was used longest ago goes, of what no batch is waiting for if there is any."""
        oldest = next(iter(self._held))
        oldest = next((key for key in self._held if key not in self._expected), oldest)
        self._free.append(self._held.pop(oldest).slot)
        self._expected.pop(oldest, None)

    def _count_prompts(self, task: TaskTensors) -> int:
        name, axis = next(iter(self._axes.items()))  # all tensors of a task agree
        return int(task[name].shape[axis])

    def _widen(self, num_prompts: int) -> None:
        """Make room for a task that has more prompts than any before."""
        for name, axis in self._axes.items():
            old = self._tensors[name]
            had = old.shape[axis + 1]
            if num_prompts <= had:
                continue
            shape = [*old.shape]
            shape[axis + 1] = num_prompts
            self._tensors[name] = old.new_zeros(shape)  # what is held is filled up with zeros
            self._tensors[name].narrow(axis + 1, 0, had).copy_(old)

    def _copy(self, task: TaskTensors, name: str, slot: Tensor) -> None:
        """A task's tensor into its slot, with zeros after its prompts."""
        own = torch.from_numpy(task[name])
        if self._copies is not None:
            own = own.to(slot.dtype).pin_memory()
        if (axis := self._axes.get(name)) is not None:
            count, room = own.shape[axis], slot.shape[axis]
            slot.narrow(axis, count, room - count).zero_()
            slot = slot.narrow(axis, 0, count)
        slot.copy_(own, non_blocking=True)

    def _select(self, held: Sequence[_Held]) -> Gathered:
        counts = [each.num_prompts for each in held]
        differ = min(counts) < max(counts)
        num_prompts = upload_numbers(np.array(counts), self._device) if differ else None
        slots = upload_numbers(np.array([each.slot for each in held]), self._device)
        if self._copies is not None:
            self._copies.wait()
        tensors = {}
        for name, tensor in self._tensors.items():
            if (axis := self._axes.get(name)) is not None:
                tensor = tensor.narrow(axis + 1, 0, max(counts))
            tensors[name] = tensor.index_select(0, slots)
        if self._copies is not None:
            self._copies.mark_read()
        return Gathered([each.task for each in held], tensors, num_prompts)
