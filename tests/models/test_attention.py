import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block, ParallelScalingBlock, VisionTransformer
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from lspt_serve.errors import BackboneError
from lspt_serve.models import Backbone, create_prompted_vit
from lspt_serve.models.attention import attention_weights, run_block, run_watched
from lspt_serve.models.methods import Shape, create_method
from lspt_serve.models.rows import OneTask


def attend_by_hand(block: Block, x: Tensor, temperature: float) -> Tensor:
    """softmax(q k^T / sqrt(d) / tau) v of a block's heads, projected; float64."""
    attn: Any = block.attn
    heads = [weights @ v for weights, v in weigh_by_hand(block, x, temperature)]
    return linear(torch.cat(heads, dim=-1), attn.proj.weight.double(), attn.proj.bias.double())


def weigh_by_hand(block: Block, x: Tensor, temperature: float) -> list[tuple[Tensor, Tensor]]:
    """softmax(q k^T / sqrt(d) / tau) and v of each head; float64."""
    attn: Any = block.attn
    norm: Any = block.norm1
    w_qkv, b_qkv = attn.qkv.weight.double(), attn.qkv.bias.double()
    normed = layer_norm(x.double(), x.shape[-1:], norm.weight.double(), norm.bias.double(), 1e-6)
    q, k, v = linear(normed, w_qkv, b_qkv).chunk(3, dim=-1)
    heads = []
    for columns in torch.arange(x.shape[-1]).chunk(attn.num_heads):
        q_h, k_h, v_h = q[..., columns], k[..., columns], v[..., columns]
        logits = q_h @ k_h.transpose(1, 2) / math.sqrt(len(columns)) / temperature
        weights = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
        heads.append((weights, v_h))
    return heads


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0, 3.0, 10.0])
def test_temperature_divides_the_attention_logits(
    tiny_backbone: Backbone, temperature: float
) -> None:
    block: Any = tiny_backbone.vit.blocks[1]
    x = torch.randn(2, 7, 24)
    attended = x.double() + attend_by_hand(block, x, temperature)
    wanted = attended.float() + block.mlp(block.norm2(attended.float()))
    got = run_block(block, x, torch.tensor(temperature))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("queries", [slice(1), slice(2, 5), slice(None)], ids=str)
@pytest.mark.parametrize("tau", [None, 0.5])
def test_watched_block_gives_the_mean_weights_of_its_heads_and_the_same_tokens(
    tiny_backbone: Backbone, tau: float | None, queries: slice
) -> None:
    block: Any = tiny_backbone.vit.blocks[1]
    x, temperature = torch.randn(2, 7, 24), None if tau is None else torch.tensor(tau)

    tokens, weights = run_watched(block, x, temperature, None, queries)

    whole = run_block(block, x, torch.tensor(tau or 1.0))
    torch.testing.assert_close(tokens, whole[:, queries], atol=1e-5, rtol=1e-5)
    by_head = torch.stack([head for head, _ in weigh_by_hand(block, x, tau or 1.0)])
    wanted = by_head.mean(dim=0)[:, queries]
    torch.testing.assert_close(weights.double(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("queries", [slice(1), slice(2, 5), slice(None)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_block_gives_the_tokens_that_are_wanted_as_timm_does(
    tiny_backbone: Backbone, queries: slice, masked: bool
) -> None:
    block: Any = tiny_backbone.vit.blocks[1]
    x, mask = torch.randn(2, 7, 24), torch.zeros(2, 7)
    mask[1, 3:5] = -torch.inf

    tokens = run_block(block, x, None, mask if masked else None, queries)

    wanted = block(x, attn_mask=mask[:, None, None]) if masked else block(x)
    torch.testing.assert_close(tokens, wanted[:, queries], atol=1e-5, rtol=1e-5)


def test_watched_block_gives_nothing_to_tokens_that_are_not_there(tiny_backbone: Backbone) -> None:
    block: Any = tiny_backbone.vit.blocks[1]
    x, mask = torch.randn(2, 7, 24), torch.zeros(2, 7)
    mask[1, 3:5] = -torch.inf

    tokens, weights = run_watched(block, x, None, mask, slice(None))

    torch.testing.assert_close(tokens, run_block(block, x, mask=mask), atol=1e-6, rtol=0)
    first, second = (weights_of[None] for weights_of in weights)
    _, whole = run_watched(block, x[:1], None, None, slice(None))
    _, shorter = run_watched(block, x[1:, [0, 1, 2, 5, 6]], None, None, slice(None))
    torch.testing.assert_close(first, whole)
    assert not second[..., 3:5].any()
    there = second[:, [0, 1, 2, 5, 6]][..., [0, 1, 2, 5, 6]]
    torch.testing.assert_close(there, shorter)


def test_temperature_changes_the_output(tiny_backbone: Backbone) -> None:
    block: Any = tiny_backbone.vit.blocks[0]
    x = torch.randn(2, 7, 24)
    sharp, flat = (run_block(block, x, torch.tensor(t)) for t in (0.1, 10.0))
    assert (sharp - flat).abs().max() > 0.1


@pytest.mark.parametrize(
    "architecture", [{}, {"init_values": 0.5}, {"qk_norm": True}, {"scale_attn_norm": True}]
)
def test_temperature_1_is_timms_own_block(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any]
) -> None:
    block: Any = make_backbone(**architecture).vit.blocks[0]
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(run_block(block, x, torch.tensor(1.0)), block(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("tau", "kept"), [(-1.0, 0.01), (0.0, 0.01), (0.5, 0.5), (99.0, 10.0)])
def test_gated_keeps_the_temperature_in_its_range(tau: float, kept: float) -> None:
    method = create_method("gated", Shape(embed_dim=24, depth=3, patch_size=8))
    torch.nn.init.constant_(method.get_parameter("tau"), tau)
    temperatures = [method.temperature(block, OneTask(1)) for block in (1, 2, 3)]
    assert [t.item() for t in temperatures if t is not None] == pytest.approx([kept] * 3)


def test_clamping_leaves_the_stored_temperature_alone(tiny_backbone: Backbone) -> None:
    model = create_prompted_vit(tiny_backbone, "gated", num_classes=2).eval()
    torch.nn.init.constant_(model.method.get_parameter("tau"), 99.0)
    model(torch.randn(1, 3, 32, 32))
    assert model.task_tensors()["method.tau"].tolist() == [99.0] * 3


def test_a_block_that_is_not_timms_plain_one_takes_no_temperature() -> None:
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, block_fn=ParallelScalingBlock
    )
    block: Any = vit.blocks[0]
    with pytest.raises(BackboneError, match="ParallelScalingBlock; use another prompt method"):
        run_block(block, torch.randn(1, 4, 24), torch.tensor(1.0))
    assert run_block(block, torch.randn(1, 4, 24)).shape == (1, 4, 24)


@pytest.mark.parametrize("tau", [None, 0.5])
def test_bf16_training_on_a_cpu_has_the_values_and_gradients_of_fp32(
    tiny_backbone: Backbone, tau: float | None
) -> None:
    block: Any = tiny_backbone.vit.blocks[1]
    temperature = None if tau is None else torch.tensor(tau)
    x = torch.randn(2, 7, 24, requires_grad=True)
    upstream = torch.randn(2, 7, 24)

    def run() -> tuple[Tensor, Tensor]:
        out = run_block(block, x, temperature).float()
        return out, torch.autograd.grad(out, x, upstream)[0]

    wanted = run()
    with torch.autocast("cpu", torch.bfloat16):
        got = run()

    for got_one, wanted_one in zip(got, wanted, strict=True):
        scale = wanted_one.abs().max().item()
        torch.testing.assert_close(got_one, wanted_one, atol=0.02 * scale, rtol=0)


def test_bf16_training_on_a_cpu_does_without_the_fused_kernel_that_is_slow_there(
    tiny_backbone: Backbone,
) -> None:
    block: Any = tiny_backbone.vit.blocks[0]
    x = torch.randn(2, 7, 24, requires_grad=True)

    def kernels() -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run_block(block, x)
        return {event.key for event in profile.key_averages()}

    fused = "aten::scaled_dot_product_attention"
    assert fused in kernels()
    with torch.autocast("cpu", torch.bfloat16):
        assert fused not in kernels()
        with torch.no_grad():
            assert fused in kernels()


@pytest.mark.parametrize("temperature", [None, torch.tensor(1.0)], ids=["plain", "tempered"])
def test_gated_attention_runs_but_takes_no_temperature(temperature: Tensor | None) -> None:
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2)
    block: Any = vit.blocks[0]
    block.attn.gate = torch.nn.Linear(24, 24)
    x = torch.randn(1, 4, 24)
    if temperature is None:
        with torch.autocast("cpu", torch.bfloat16):
            assert run_block(block, x).shape == (1, 4, 24)
    else:
        with pytest.raises(BackboneError, match="without gates"):
            run_block(block, x, temperature)


@pytest.mark.parametrize("temperature", [None, 0.3, 4.0])
@pytest.mark.parametrize(
    "architecture", [{}, {"init_values": 0.5}, {"qk_norm": True}, {"scale_attn_norm": True}]
)
def test_values_weighed_by_the_attention_weights_are_the_blocks_output(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any], temperature: float | None
) -> None:
    block: Any = make_backbone(**architecture).vit.blocks[1]
    attn, x = block.attn, torch.randn(2, 7, 24)
    tau = None if temperature is None else torch.tensor(temperature)

    weights = attention_weights(block, x, tau)

    assert weights.shape == (2, 2, 7, 7)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 7))
    v = attn.qkv(block.norm1(x))[..., 48:]  # B x tokens x D, head by head
    heads = [weights[:, h] @ v[..., 12 * h : 12 * (h + 1)] for h in range(2)]
    attended = x + block.ls1(attn.proj(attn.norm(torch.cat(heads, dim=-1))))
    wanted = attended + block.ls2(block.mlp(block.norm2(attended)))
    torch.testing.assert_close(run_block(block, x, tau), wanted, atol=1e-5, rtol=1e-5)


def test_a_block_that_is_not_timms_plain_one_shows_no_weights() -> None:
    block: Any = ParallelScalingBlock(24, num_heads=2)
    with pytest.raises(BackboneError, match="plain Block without gates, got ParallelScalingBlock"):
        attention_weights(block, torch.randn(1, 4, 24))
