"""What every prompt method is: settings, prompts that enter block 1, what happens between blocks.

To add a method, write one file with a subclass of `Settings` and one of `PromptMethod`, and list it
in METHODS (methods/__init__.py). Trainer, bundle, export and command line pick it up from there.

B batch, N patches, P prompts, D embed_dim, L blocks.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from lspt_serve.errors import MethodError, first_mistake, nearest
from lspt_serve.models.rows import Rows

__all__ = ["PromptMethod", "Settings", "Shape", "State", "uniform_prompts"]

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Shape:
    """The measures of a backbone that a method's tensors depend on."""

    embed_dim: int
    depth: int
    patch_size: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of a method: they go into the bundle, and from the command line's --option."""

    # Options that training alone needs: two bundles that differ in these share one graph.
    training_only: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """Raises MethodError for an unknown option or a bad value."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise MethodError(
                    f"unknown option {name!r}; wanted one of: {', '.join(known) or 'none'}"
                    f"{nearest(name, known)}"
                )
        try:
            return TypeAdapter(cls).validate_python(options)
        except ValidationError as error:
            raise MethodError(first_mistake(error)) from error

    def graph_options(self) -> dict[str, Any]:
        """The options that shape the computation; the number of prompts is free in a graph."""
        free = self.training_only | {"num_prompts"}
        return {name: value for name, value in asdict(self).items() if name not in free}


class PromptMethod(nn.Module, ABC):
    """Prompts on their way through the depth of a ViT.

    A method is called once before block 1 (`start`) and once between every two blocks (`advance`).
    What it must remember along the depth travels in `state`; its parameters are the task's tensors.
    Training adds its `regularisation` to the loss and hands on what `fold` gives.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[Settings]]
    trains_backbone: ClassVar[bool] = False  # a baseline, see BASELINES

    num_image_prompts = 0  # made of the image; they stand before the learned ones
    default_init = "uniform"  # where prompts start best, see docs/results.md

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    @abstractmethod
    def start(self, patches: Tensor, rows: Rows) -> tuple[Tensor, State]:
        """Embedded patches (B x N x D) to the prompts that enter block 1 (B x P x D) and state."""

    def advance(
        self, block: int, entered: Tensor, left: Tensor, patches: Tensor, state: State, rows: Rows
    ) -> tuple[Tensor, State]:
        """The prompts that enter block `block` + 1; here, as in VPT-shallow, those that left.

        Args:
            block: 1 for the first block, at most L - 1.
            entered: prompts that entered this block, B x P x D.
            left: prompts that left it, B x P x D.
            patches: patch tokens that left it, B x N x D.
            rows: whose row is whose.
        """
        return left, state

    def temperature(self, block: int, rows: Rows) -> Tensor | None:
        """What divides the attention logits of block `block` (1..L), for each row (B); None: 1."""
        return None

    def regularisation(self) -> Tensor | None:
        """What training adds to the loss of the batch that was run last; None for nothing."""
        return None

    def fold(self) -> "PromptMethod":
        """The method that serves what this one has learned: here itself.

        A method whose prompts do not depend on the image computes them once, here, and hands on the
        plainer method that holds the result: bundles and graphs know that one alone.
        """
        return self


def uniform_prompts(shape: tuple[int, ...], vit: Shape) -> nn.Parameter:
    """VPT's initialisation: uniform(-v, v), v = sqrt(6 / (3 patch_size^2 + D))."""
    bound = math.sqrt(6 / (3 * vit.patch_size**2 + vit.embed_dim))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
