"""Several processes as one run, started by torchrun: each takes a share of every global batch.

    torchrun --nproc-per-node 2 -m lspt_serve train --data photos --out bundles/flowers ...

The tensors of a task are few (0.01 to 5 M), so that the gradients of a step are summed as one flat
vector. All processes decode the images; with a cache one decodes and the others read (cache.py).
Outside of torchrun there is one process, and nothing here does anything.
"""

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lspt_serve.errors import DataError

__all__ = [
    "add_up",
    "copy_from_first",
    "gather",
    "join_processes",
    "leave_processes",
    "own_device",
    "rank",
    "share_from_first",
    "sum_gradients",
    "world_size",
]

TIMEOUT = timedelta(minutes=30)  # for a process that waits for the others


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def own_device(device: torch.device) -> torch.device:
    """Under torchrun `cuda` is the GPU of this process; else the device is as it was given.

    Raises:
        DataError: more processes than GPUs, or one GPU asked for by all.
    """
    if not is_launched() or device.type != "cuda":
        return device
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if device.index is not None:
        if here > 1:
            raise DataError(f"device {device} was asked for by {here} processes; give cuda, or cpu")
        return device
    if here > torch.cuda.device_count():
        raise DataError(
            f"{here} processes on {torch.cuda.device_count()} GPU(s); lower --nproc-per-node"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def join_processes(device: torch.device) -> None:
    """Under torchrun, meet the other processes once; NCCL between GPUs, gloo between CPUs."""
    if not is_launched() or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)


def leave_processes() -> None:
    """At the end of a run that went well; after an error torchrun ends the other processes."""
    if is_launched():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def add_up(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; the same bits in each."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum over all processes; of one without a gradient (no rows in this step) it is 0."""
    if world_size() == 1:
        return
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    add_up(flat)
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = grad.view_as(p)


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite with those of process 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def share_from_first(value: Any) -> Any:
    """The value that process 0 has, in every process; it is pickled on the way."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: Any) -> list[Any]:
    """The values of all processes, in each; they are pickled on the way."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values
