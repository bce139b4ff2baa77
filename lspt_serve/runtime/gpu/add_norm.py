"""Residual addition and LayerNorm in one pass over the tokens, by Triton.

B batch, T tokens, D embed_dim.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

__all__ = ["add_norm"]


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(x, y, out, weight, bias, eps, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """A program for each token; everything between load and store is in fp32."""
    column = tl.arange(0, block)
    there = column < width
    at = tl.program_id(0).to(tl.int64) * width + column
    token = tl.load(x + at, mask=there, other=0.0) + tl.load(y + at, mask=there, other=0.0).to(
        tl.float32
    )
    tl.store(x + at, token, mask=there)
    centred = tl.where(there, token - tl.sum(token) / width, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / width + eps)
    normed = centred * scale * tl.load(weight + column, mask=there, other=0.0)
    normed += tl.load(bias + column, mask=there, other=0.0)
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=there)


def add_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm) -> Tensor:
    """x += y, and what `norm` makes of the sum, in y's dtype.

    Args:
        x: B x T x D in fp32, contiguous, changed in place.
        y: B x T x D, contiguous.
        norm: over D, its weights in fp32.
    """
    out = torch.empty_like(y)
    width = x.shape[-1]
    _add_norm[(x.numel() // width,)](
        x, y, out, norm.weight, norm.bias, norm.eps, width, triton.next_power_of_2(width)
    )
    return out
