"""What CLS and prompts look at, against the walk through the model by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor

from lspt_serve.errors import BackboneError
from lspt_serve.models import METHODS, Backbone, PromptedViT, create_prompted_vit
from lspt_serve.models.attention import attention_weights, run_block
from lspt_serve.models.methods import create_method
from lspt_serve.models.methods.base import Shape
from lspt_serve.models.rows import OneTask
from lspt_serve.training.report.attention import find_gazes, shown_blocks

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def moved(backbone: Backbone, method: str, **options: Any) -> PromptedViT:
    """A folded model whose tensors are off their initial values."""
    model = create_prompted_vit(backbone, method, num_classes=3, options=options)
    tensors = model.task_tensors()
    model.load_task_tensors({k: v + 0.3 * torch.rand_like(v) for k, v in tensors.items()})
    return model.eval().fold()


@torch.no_grad()
def weights_by_hand(model: PromptedViT) -> list[Tensor]:
    """Of every block, mean over heads: B x tokens x tokens."""
    vit, found, rows = model.backbone, [], OneTask(len(IMAGES))
    prefix, patches = model.embed(IMAGES)
    prompts, state = model.method.start(patches, rows)
    for number, block in enumerate(vit.blocks, start=1):
        x = torch.cat([prefix, prompts, patches], dim=1)
        temperature = model.method.temperature(number, rows)
        found.append(attention_weights(block, x, temperature).mean(dim=1))
        x = run_block(block, x, temperature)
        prefix, left, patches = x.split([len(t[0]) for t in (prefix, prompts, patches)], dim=1)
        if number < len(vit.blocks):
            prompts, state = model.method.advance(number, prompts, left, patches, state, rows)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_gazes_are_the_models_own_attention(tiny_backbone: Backbone, method: str) -> None:
    model = moved(tiny_backbone, method)
    by_hand = weights_by_hand(model)
    num_prompts = by_hand[0].shape[-1] - 1 - 16

    gazes = find_gazes(model, IMAGES)

    who = ["CLS", "prompts"] if method != "linear" else ["CLS"]
    assert [(g.who, g.block) for g in gazes] == [(w, block) for w in who for block in (1, 2, 3)]
    for gaze in gazes:
        weights = by_hand[gaze.block - 1]
        rows = weights[:, 1 : 1 + num_prompts].mean(dim=1) if gaze.who != "CLS" else weights[:, 0]
        torch.testing.assert_close(gaze.patches, rows[:, 1 + num_prompts :], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(gaze.to_prefix, rows[:, 0], atol=1e-6, rtol=1e-5)
        prompts = rows[:, 1 : 1 + num_prompts].sum(dim=1)
        torch.testing.assert_close(gaze.to_prompts, prompts, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "method", "who"),
    [
        ({"class_token": False, "global_pool": "avg"}, "lspt", ["prompts"]),
        ({"class_token": False, "global_pool": "avg"}, "linear", []),
        ({"reg_tokens": 4}, "lspt", ["CLS", "prompts"]),
        ({"reg_tokens": 4}, "linear", ["CLS"]),
    ],
)
def test_what_a_model_does_not_have_is_left_out(
    make_backbone: Callable[..., Backbone],
    architecture: dict[str, Any],
    method: str,
    who: list[str],
) -> None:
    gazes = find_gazes(moved(make_backbone(**architecture), method), IMAGES)

    assert [gaze.who for gaze in gazes[::3]] == who
    for gaze in gazes:
        assert gaze.patches.shape == (2, 16)
        whole = gaze.patches.sum(dim=1) + gaze.to_prefix + gaze.to_prompts
        torch.testing.assert_close(whole, torch.ones(2))


def test_looking_leaves_no_hook_behind(tiny_backbone: Backbone) -> None:
    find_gazes(moved(tiny_backbone, "lspt"), IMAGES)
    assert not any(module._forward_pre_hooks for module in tiny_backbone.vit.modules())


def test_blocks_that_are_not_timms_plain_ones_are_named() -> None:
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, block_fn=ParallelScalingBlock
    )
    method = create_method("lspt", Shape(24, 2, 8), num_prompts=2)
    model = PromptedViT(vit, method, torch.nn.Linear(24, 2), pool="cls")
    with pytest.raises(BackboneError, match="got ParallelScalingBlock"):
        find_gazes(model, IMAGES)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 3, 4]), (12, [4, 8, 12])]
)
def test_blocks_are_shown_a_third_of_the_way_two_thirds_and_at_the_end(
    depth: int, blocks: list[int]
) -> None:
    assert shown_blocks(depth) == blocks
