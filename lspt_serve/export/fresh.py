"""Tasks to export with: fresh ones, and which sizes of a task's tensors are free in a graph."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lspt_serve.bounds import MAX_PROMPTS
from lspt_serve.graph import NUM_PROMPTS, Dim
from lspt_serve.models import Backbone, PromptedViT, create_prompted_vit

__all__ = ["Inputs", "free_shapes", "fresh_task", "method_tensors", "with_other_prompts"]

NOISE = 0.1
NUM_CLASSES = 10
Inputs = dict[str, list[Dim]]


def fresh_task(
    backbone: Backbone,
    method: str,
    *,
    pool: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> PromptedViT:
    """A task as it is before training, without zeros, which would hide what comes before them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_prompted_vit(
            backbone, method, num_classes=NUM_CLASSES, pool=pool, options=options
        )
        for tensor in model.method.parameters():
            if not tensor.any():
                torch.nn.init.trunc_normal_(tensor, std=NOISE)
    return model


def with_other_prompts(backbone: Backbone, model: PromptedViT) -> PromptedViT:
    """A fresh task of the same method and options, but the number of prompts where it has any."""
    options = asdict(model.method.settings)
    if NUM_PROMPTS in options:
        options[NUM_PROMPTS] += 1 if options[NUM_PROMPTS] < MAX_PROMPTS else -1
    return fresh_task(backbone, model.method.name, pool=model.pool, options=options)


def method_tensors(model: PromptedViT) -> dict[str, Tensor]:
    """The tensors of the prompt method, as a bundle names them, in order."""
    return {
        f"method.{name}": tensor.detach()
        for name, tensor in sorted(model.method.named_parameters())
    }


def free_shapes(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Inputs:
    """The shape of every tensor; where a task of other prompts differs the size is a name."""
    return {
        name: [
            size if size == other else NUM_PROMPTS
            for size, other in zip(tensor.shape, others[name].shape, strict=True)
        ]
        for name, tensor in tensors.items()
    }
