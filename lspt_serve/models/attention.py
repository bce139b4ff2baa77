"""A timm block whose attention has a temperature, is quick to train on a CPU and can be looked at.

B batch, D embed_dim, h heads, d = D / h.
"""

from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lspt_serve.errors import BackboneError

__all__ = ["attention_weights", "run_block"]


def run_block(
    block: Block, x: Tensor, temperature: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """timm's pre-norm block over tokens x (B x tokens x D).

    With a temperature tau the attention is softmax(q k^T / sqrt(d) / tau) v (gated prompt tuning);
    1 / tau is folded into q, so that any fused attention kernel serves.

    Args:
        temperature: of each row, B, or one for all.
        mask: B x tokens, added to the logits: 0, or -inf for tokens that are not there; None: 0.

    Raises:
        BackboneError: a temperature asked of a block that is not timm's plain one.
    """
    if temperature is None and not (_is_plain(block) and _fused_is_slow(x)):
        own = {} if mask is None else {"attn_mask": mask[:, None, None]}  # B x 1 x 1 x tokens
        return block(x, **own)  # type: ignore[no-any-return]
    if not _is_plain(block):
        raise BackboneError(
            f"an attention temperature needs timm's plain Block without gates, got "
            f"{type(block).__name__}; use another prompt method with this backbone"
        )
    attn: Any = block.attn
    x = x + block.ls1(_attend(attn, block.norm1(x), temperature, mask))
    return x + block.ls2(block.mlp(block.norm2(x)))  # type: ignore[no-any-return]


def attention_weights(block: Block, x: Tensor, temperature: Tensor | None = None) -> Tensor:
    """What `run_block` weighs the values by, which a fused kernel does not show.

    softmax(q k^T / sqrt(d) / tau) for tokens x (B x tokens x D) that enter the block: B x h x
    tokens x tokens, queries before keys, so that the last axis sums to 1.

    Raises:
        BackboneError: a block that is not timm's plain one.
    """
    if not _is_plain(block):
        raise BackboneError(
            f"attention weights need timm's plain Block without gates, got {type(block).__name__}"
        )
    attn: Any = block.attn
    q, k, _ = _project(attn, block.norm1(x), temperature)
    return _weigh(attn, q, k)


def _is_plain(block: Block) -> bool:
    return type(block) is Block and type(block.attn) is Attention and block.attn.gate is None


def _attend(attn: Attention, x: Tensor, temperature: Tensor | None, mask: Tensor | None) -> Tensor:
    """timm's Attention.forward in eval mode, q divided by the temperature."""
    q, k, v = _project(attn, x, temperature)
    if mask is not None:
        heads = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    elif _fused_is_slow(x):
        heads = _weigh(attn, q, k) @ v
    else:
        heads = scaled_dot_product_attention(q, k, v)
    x = attn.norm(heads.transpose(1, 2).flatten(start_dim=2))  # B x tokens x D
    return attn.proj(x)  # type: ignore[no-any-return]


def _project(
    attn: Attention, x: Tensor, temperature: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """q (divided by the temperature), k and v of normed tokens, each B x h x tokens x d."""
    b, n, _ = x.shape
    qkv = attn.qkv(x).reshape(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    return (q if temperature is None else q / temperature.reshape(-1, 1, 1, 1)), k, v


def _weigh(attn: Attention, q: Tensor, k: Tensor) -> Tensor:
    logits: Tensor = q * attn.scale @ k.transpose(-2, -1)
    return logits.softmax(dim=-1)


def _fused_is_slow(x: Tensor) -> bool:
    """In bf16 on a CPU the gradient of the fused kernel takes longer than the plain products."""
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
