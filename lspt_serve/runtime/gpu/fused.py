"""PromptedViT's features on a GPU in bf16, with fewer passes over memory; the answers stay.

Matrix products take most of the time, and what lies between them costs a pass over all tokens for
every step. So a residual addition and the norm after it are one pass, a GELU is done by the product
before it, prompts are written over those of the block before in place of joining all tokens anew,
and patches are embedded by a matrix product in place of a convolution.

B batch, N patches, P prompts, T all tokens, D embed_dim, h heads, d = D / h.
"""

from itertools import pairwise
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from lspt_serve.models.attention import can_be_watched
from lspt_serve.models.prompted_vit import PromptedViT
from lspt_serve.models.rows import Rows
from lspt_serve.runtime.gpu.add_norm import add_norm

__all__ = ["FusedFeatures", "can_be_fused", "embed_by_product"]


def can_be_fused(vit: Any) -> bool:
    """Whether its blocks are timm's plain ones, and nothing is between what is done in one pass."""
    return all(
        can_be_watched(block)
        and type(block.mlp) is Mlp
        and type(block.mlp.act) is nn.GELU
        and isinstance(block.norm1, nn.LayerNorm)
        and isinstance(block.norm2, nn.LayerNorm)
        and all(type(each) is nn.Identity for each in (block.attn.norm, block.mlp.norm))
        and block.mlp.fc1.bias is not None
        for block in vit.blocks
    )


class FusedFeatures(nn.Module):
    """As `PromptedViT.forward_features`, of a model that `can_be_fused`.

    Its matrix products are in one dtype, its norms in fp32.
    """

    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, rows: Rows) -> Tensor:
        model, blocks = self.model, self.model.backbone.blocks
        prefix, patches = model.embed(images)
        prompts, state = model.method.start(patches, rows)
        mask = model.mask(rows, prefix, prompts, patches)
        sizes = [prefix.shape[1], prompts.shape[1], patches.shape[1]]
        own = slice(sizes[0], sizes[0] + sizes[1])
        x = torch.cat([prefix, prompts, patches], dim=1).float()  # B x T x D, changed in place
        y = _norm(x, blocks[0].norm1).to(blocks[0].attn.qkv.weight.dtype)  # what products take
        for number, (block, following) in enumerate(pairwise(blocks), start=1):
            temperature = model.method.temperature(number, rows)
            y = add_norm(x, _attend(block, y, temperature, mask), block.norm2)
            y = add_norm(x, _feed_forward(block, y), following.norm1)
            _, left, patches = x.split(sizes, dim=1)
            prompts, state = model.method.advance(number, prompts, left, patches, state, rows)
            if _share_memory(prompts, x):
                prompts = prompts.clone()
            x[:, own], y[:, own] = prompts, _norm(prompts, following.norm1)
        last, queries = blocks[-1], model.queries or slice(None)
        temperature = model.method.temperature(len(blocks), rows)
        x = x[:, queries].contiguous()
        y = add_norm(x, _attend(last, y, temperature, mask, queries), last.norm2)
        x += _feed_forward(last, y)
        return model.read(x, sizes, mask)


def _norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _attend(
    block: Any,
    y: Tensor,
    temperature: Tensor | None,
    mask: Tensor | None,
    queries: slice = slice(None),
) -> Tensor:
    attn = block.attn
    b, t, _ = y.shape
    qkv = attn.qkv(y).reshape(b, t, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)  # B x h x T x d
    q, k = attn.q_norm(q[:, :, queries]).to(v.dtype), attn.k_norm(k).to(v.dtype)
    if temperature is not None:
        q = (q / temperature.reshape(-1, 1, 1, 1)).to(v.dtype)
    if mask is not None:
        mask = mask[:, None, None].to(v.dtype)
    heads = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    attended: Tensor = block.ls1(attn.proj(heads.transpose(1, 2).flatten(start_dim=2)))
    return attended.to(y.dtype)


def _feed_forward(block: Any, y: Tensor) -> Tensor:
    """The tanh form of the GELU, which is as close to the other as bf16 can tell."""
    fc1 = block.mlp.fc1
    hidden = torch._addmm_activation(fc1.bias, y.flatten(end_dim=1), fc1.weight.mT, use_gelu=True)
    fed: Tensor = block.ls2(block.mlp.fc2(hidden)).reshape(y.shape)
    return fed.to(y.dtype)


class _PatchProduct(nn.Module):
    """A convolution whose patches do not overlap: B x C x H x W to B x D x H / p x W / p."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.size = conv.kernel_size
        self.weight = nn.Parameter(conv.weight.flatten(start_dim=1), requires_grad=False)
        self.bias = conv.bias

    def forward(self, images: Tensor) -> Tensor:
        b, c, height, width = images.shape
        p, q = self.size
        patches = images.reshape(b, c, height // p, p, width // q, q).permute(0, 2, 4, 1, 3, 5)
        embedded = linear(patches.flatten(start_dim=3), self.weight, self.bias)
        return embedded.permute(0, 3, 1, 2)


def embed_by_product(vit: Any) -> None:
    """Change the ViT's patch embedding, where its patches do not overlap."""
    conv = vit.patch_embed.proj
    plain = isinstance(conv, nn.Conv2d) and (conv.groups, conv.padding, conv.dilation) == (
        1,
        (0, 0),
        (1, 1),
    )
    if plain and conv.kernel_size == conv.stride:
        vit.patch_embed.proj = _PatchProduct(conv)
