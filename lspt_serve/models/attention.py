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

__all__ = ["attention_weights", "can_be_watched", "run_block", "run_watched"]


def run_block(
    block: Block,
    x: Tensor,
    temperature: Tensor | None = None,
    mask: Tensor | None = None,
    queries: slice | None = None,
) -> Tensor:
    """timm's pre-norm block over tokens x (B x tokens x D).

    With a temperature tau the attention is softmax(q k^T / sqrt(d) / tau) v (gated prompt tuning);
    1 / tau is folded into q, so that any fused attention kernel serves.

    Args:
        temperature: of each row, B, or one for all.
        mask: B x tokens, added to the logits: 0, or -inf for tokens that are not there; None: 0.
        queries: the tokens that are wanted of a block that `can_be_watched`; None is all.

    Raises:
        BackboneError: a temperature asked of a block that is not timm's plain one.
    """
    if queries is not None:
        return _run(block, x, _project(block, x, temperature), mask, queries)
    if temperature is None and not (can_be_watched(block) and _fused_is_slow(x)):
        own = {} if mask is None else {"attn_mask": mask[:, None, None]}  # B x 1 x 1 x tokens
        return block(x, **own)  # type: ignore[no-any-return]
    if not can_be_watched(block):
        raise BackboneError(
            f"an attention temperature needs timm's plain Block without gates, got "
            f"{type(block).__name__}; use another prompt method with this backbone"
        )
    return _run(block, x, _project(block, x, temperature), mask, slice(None))


def run_watched(
    block: Block, x: Tensor, temperature: Tensor | None, mask: Tensor | None, queries: slice
) -> tuple[Tensor, Tensor]:
    """`run_block`, and what its tokens weigh all by: B x queries x tokens, the mean over heads.

    For blocks that `can_be_watched`.
    """
    q, k, v = _project(block, x, temperature)
    weights = _weigh(block, q[:, :, queries], k, mask).mean(dim=1)
    return _run(block, x, (q, k, v), mask, queries), weights


def can_be_watched(block: Block) -> bool:
    """Whether it is timm's plain block, whose attention is known here."""
    return type(block) is Block and type(block.attn) is Attention and block.attn.gate is None


def attention_weights(block: Block, x: Tensor, temperature: Tensor | None = None) -> Tensor:
    """What `run_block` weighs the values by, which a fused kernel does not show.

    softmax(q k^T / sqrt(d) / tau) for tokens x (B x tokens x D) that enter the block: B x h x
    tokens x tokens, queries before keys, so that the last axis sums to 1.

    Raises:
        BackboneError: a block that is not timm's plain one.
    """
    if not can_be_watched(block):
        raise BackboneError(
            f"attention weights need timm's plain Block without gates, got {type(block).__name__}"
        )
    q, k, _ = _project(block, x, temperature)
    return _weigh(block, q, k, None)


def _run(
    block: Block,
    x: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    queries: slice,
) -> Tensor:
    """The block from its q, k and v on, as timm's forward in eval mode, of some tokens."""
    attn: Any = block.attn
    q, k, v = qkv[0][:, :, queries], *qkv[1:]
    if mask is not None:
        heads = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    elif _fused_is_slow(x):
        heads = _weigh(block, q, k, None) @ v
    else:
        heads = scaled_dot_product_attention(q, k, v)
    attended = attn.norm(heads.transpose(1, 2).flatten(start_dim=2))  # B x queries x D
    x = x[:, queries] + block.ls1(attn.proj(attended))
    return x + block.ls2(block.mlp(block.norm2(x)))  # type: ignore[no-any-return]


def _project(block: Block, x: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """q (divided by the temperature), k and v, B x h x tokens x d, of tokens (B x tokens x D)."""
    attn: Any = block.attn
    b, n, _ = x.shape
    qkv = (
        attn.qkv(block.norm1(x))
        .reshape(b, n, 3, attn.num_heads, attn.head_dim)
        .permute(2, 0, 3, 1, 4)
    )
    q, k, v = qkv.unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    return (q if temperature is None else q / temperature.reshape(-1, 1, 1, 1)), k, v


def _weigh(block: Block, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    attn: Any = block.attn
    logits: Tensor = q * attn.scale @ k.transpose(-2, -1)  # B x h x queries x tokens
    if mask is not None:
        logits = logits + mask[:, None, None]
    return logits.softmax(dim=-1)


def _fused_is_slow(x: Tensor) -> bool:
    """In bf16 on a CPU the gradient of the fused kernel takes longer than the plain products."""
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
