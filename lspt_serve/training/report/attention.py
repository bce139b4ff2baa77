"""Where CLS and the prompts of a tuned model look, block by block.

B images, N patches of side x side, P prompts, D embed_dim, L blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lspt_serve.models import PromptedViT
from lspt_serve.models.attention import attention_weights
from lspt_serve.models.rows import OneTask

__all__ = ["Gaze", "find_gazes", "shown_blocks"]


@dataclass(frozen=True)
class Gaze:
    """What CLS, or the mean prompt, of one block attends to; mean over heads.

    `patches` and `rest` sum to 1 for an image: `rest` is CLS and registers, and the prompts.
    """

    who: str  # CLS or prompts
    block: int  # 1..L
    patches: Tensor  # B x N
    to_prefix: Tensor  # B
    to_prompts: Tensor  # B

    def numbers(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "who": self.who,
            "block": self.block,
            "to_prefix": _rounded(self.to_prefix),
            "to_prompts": _rounded(self.to_prompts),
            "patches": _rounded(self.patches),
        }


def shown_blocks(depth: int) -> list[int]:
    """Blocks a third of the way, two thirds and at the end, from 1; fewer where there are fewer."""
    return sorted({max(1, round(depth * third / 3)) for third in (1, 2, 3)})


@torch.no_grad()
def find_gazes(model: PromptedViT, images: Tensor) -> list[Gaze]:
    """CLS's attention in the shown blocks, then the prompts', for B x 3 x H x W images.

    What a model does not have is left out: CLS of a backbone without class token, prompts of a
    linear probe.

    Raises:
        BackboneError: blocks that are not timm's plain ones.
    """
    vit, blocks = model.backbone, shown_blocks(len(model.backbone.blocks))
    watched = [vit.blocks[number - 1] for number in blocks]
    with _watch([getattr(block, "norm1", block) for block in watched]) as entering:
        model.eval()(images)
    found = []
    for number, block, x in zip(blocks, watched, entering, strict=True):
        weights = attention_weights(block, x, model.method.temperature(number, OneTask(len(x))))
        found.append((number, weights.mean(dim=1).float().cpu()))  # B x tokens x tokens
    num_prefix, num_patches = vit.num_prefix_tokens, vit.patch_embed.num_patches
    num_prompts = found[0][1].shape[-1] - num_prefix - num_patches
    queries = {}
    if vit.cls_token is not None:
        queries["CLS"] = slice(0, 1)
    if num_prompts:
        queries["prompts"] = slice(num_prefix, num_prefix + num_prompts)
    sizes = [num_prefix, num_prompts, num_patches]
    return [
        _read(who, number, weights[:, rows].mean(dim=1), sizes)
        for who, rows in queries.items()
        for number, weights in found
    ]


def _read(who: str, block: int, attention: Tensor, sizes: list[int]) -> Gaze:
    prefix, prompts, patches = attention.split(sizes, dim=1)
    return Gaze(who, block, patches, prefix.sum(dim=1), prompts.sum(dim=1))


def _rounded(values: Tensor) -> Any:
    return values.double().mul(1e5).round().div(1e5).tolist()


@contextmanager
def _watch(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what enters the modules, in the order that they run in.

    A block with a temperature is not called as a module, but its first norm is, always.
    """
    seen: list[Tensor] = []
    hooks = [m.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for m in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
