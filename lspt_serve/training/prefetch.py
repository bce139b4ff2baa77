"""Inputs that nothing waits for: made ahead by threads, and sent to a GPU behind its back."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["made_ahead", "one_ahead", "send"]

Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(
    pool: Executor, make: Callable[[Item], Made], items: Iterable[Item], *, ahead: int
) -> Iterator[Made]:
    """make(item) of each in turn; the pool makes `ahead` more meanwhile, and none beyond these."""
    pending: deque[Future[Made]] = deque()
    for item in items:
        pending.append(pool.submit(make, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    for last in pending:
        yield last.result()


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """make(item) of each in turn; a thread makes the next while the caller is busy with this one.

    numpy and torch release the interpreter while they read and copy.
    """
    with ThreadPoolExecutor(1) as thread:
        yield from made_ahead(thread, make, items, ahead=1)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; to a GPU from pinned memory, in its stream, so that nobody waits."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
