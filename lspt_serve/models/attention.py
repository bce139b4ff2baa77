"""A timm block whose attention has a temperature."""

from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lspt_serve.errors import BackboneError

__all__ = ["run_block"]


def run_block(block: Block, x: Tensor, temperature: Tensor | None = None) -> Tensor:
    """timm's pre-norm block over tokens x (B x tokens x D).

    With a temperature tau the attention is softmax(q k^T / sqrt(d) / tau) v (gated prompt tuning);
    1 / tau is folded into q, so that any fused attention kernel serves.

    Raises:
        BackboneError: a temperature asked of a block that is not timm's plain one.
    """
    if temperature is None:
        return block(x)  # type: ignore[no-any-return]
    if type(block) is not Block or type(block.attn) is not Attention:
        raise BackboneError(
            f"attention temperature needs timm's plain Block, got {type(block).__name__}; "
            "use another prompt method with this backbone"
        )
    x = x + block.ls1(_attend(block.attn, block.norm1(x), temperature))
    return x + block.ls2(block.mlp(block.norm2(x)))  # type: ignore[no-any-return]


def _attend(attn: Attention, x: Tensor, temperature: Tensor) -> Tensor:
    """timm's Attention.forward in eval mode, q divided by the temperature."""
    b, n, _ = x.shape
    qkv = attn.qkv(x).reshape(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = attn.q_norm(q) / temperature, attn.k_norm(k)
    x = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, attn.attn_dim)
    x = attn.norm(x)
    if attn.gate is not None:
        raise BackboneError("attention temperature is not available for gated attention")
    return attn.proj(x)  # type: ignore[no-any-return]
