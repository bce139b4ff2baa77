"""Whose row is whose: how the rows of a batch meet the tensors of one task, or of several.

B rows, S tasks in the batch, R rows of the task that has the most, P tokens, D width.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["Affine", "InOrder", "ManyTasks", "OneTask", "Rows", "affine"]


class Rows(ABC):
    """What a prompt method needs to know of a batch to use tensors that are tasks' own."""

    @abstractmethod
    def spread(self, tensor: Tensor) -> Tensor:
        """To every row what is its task's: B x ... of a tensor of the task."""

    @abstractmethod
    def gather(self, x: Tensor) -> Tensor:
        """Tokens of rows (B x P x D) as `affine` takes them, so that a task's are together."""

    @abstractmethod
    def scatter(self, x: Tensor, num_tokens: int) -> Tensor:
        """Back from `gather`, to B x P x D."""

    @abstractmethod
    def pad_mask(self, num_prompts: int) -> Tensor | None:
        """B x P, True where a row's task has a prompt; None where all have all."""


class OneTask(Rows):
    """All rows are of one task, whose tensors are plain."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def spread(self, tensor: Tensor) -> Tensor:
        return tensor.expand(self.batch_size, *tensor.shape)

    def gather(self, x: Tensor) -> Tensor:
        return x

    def scatter(self, x: Tensor, num_tokens: int) -> Tensor:
        return x

    def pad_mask(self, num_prompts: int) -> None:
        return None


class ManyTasks(Rows):
    """Rows of S tasks in any order; every tensor has a leading axis of S.

    Args:
        place: S x R, the rows of each task; those that have fewer than R repeat any row.
        back: B, where each row stands in `place`, flattened.
        num_prompts: S; None where all tasks have as many as the tensors hold.
    """

    def __init__(self, place: Tensor, back: Tensor, num_prompts: Tensor | None = None) -> None:
        self.place = place
        self.back = back
        self.num_prompts = num_prompts
        self.task = back // place.shape[1]  # B, in 0..S-1

    def spread(self, tensor: Tensor) -> Tensor:
        return tensor.index_select(0, self.task)

    def gather(self, x: Tensor) -> Tensor:
        s, r = self.place.shape
        _, p, d = x.shape
        return x.index_select(0, self.place.flatten()).reshape(s, r * p, d)

    def scatter(self, x: Tensor, num_tokens: int) -> Tensor:
        return x.reshape(-1, num_tokens, x.shape[-1]).index_select(0, self.back)

    def pad_mask(self, num_prompts: int) -> Tensor | None:
        return _pad_mask(self, self.num_prompts, num_prompts)


class InOrder(Rows):
    """All rows are of one task, or each has one to itself; nothing has to be moved.

    Args:
        num_tasks: S, the leading axis of every tensor: 1 or B.
        num_prompts: S; None where all tasks have as many as the tensors hold.
    """

    def __init__(self, batch_size: int, num_tasks: int, num_prompts: Tensor | None = None) -> None:
        self.batch_size = batch_size
        self.num_tasks = num_tasks
        self.num_prompts = num_prompts

    def spread(self, tensor: Tensor) -> Tensor:
        return tensor.expand(self.batch_size, *tensor.shape[1:])

    def gather(self, x: Tensor) -> Tensor:
        return x.reshape(self.num_tasks, -1, x.shape[-1])

    def scatter(self, x: Tensor, num_tokens: int) -> Tensor:
        return x.reshape(self.batch_size, num_tokens, x.shape[-1])

    def pad_mask(self, num_prompts: int) -> Tensor | None:
        return _pad_mask(self, self.num_prompts, num_prompts)


def _pad_mask(rows: Rows, counts: Tensor | None, num_prompts: int) -> Tensor | None:
    if counts is None:
        return None
    positions = torch.arange(num_prompts, device=counts.device)
    return positions < rows.spread(counts).unsqueeze(1)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b; W is F x D of one task or, with x as `Rows.gather` gives it, S x F x D of S."""
    if weight.ndim == 2:
        return nn.functional.linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


class Affine(nn.Linear):
    """nn.Linear whose weights may be those of several tasks."""

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight, self.bias)
