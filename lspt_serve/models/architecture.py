"""Infer the architecture of a ViT from the names and shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from typing import Any

from timm.layers import SwiGLUPacked
from torch import Tensor, nn

from lspt_serve.errors import BackboneError, name_some

__all__ = ["infer_architecture"]

HEAD_DIM = 64  # of every ViT from Ti to L; a state dict does not tell
NUM_HEADS = {
    1152: 16,  # So400m
    1280: 16,  # H
    1408: 16,  # g
    1536: 24,  # g of DINOv2
    1664: 16,  # G
}
NDIMS = {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2}
OPTIONAL_NDIMS = {"reg_token": 3, "blocks.0.mlp.fc2.weight": 2}


def infer_architecture(
    tensors: Mapping[str, Tensor], *, num_heads: Mapping[int, int] | None = None
) -> dict[str, Any]:
    """Keyword arguments of timm's VisionTransformer for tensors under timm's names.

    Heads are 64 wide unless NUM_HEADS or `num_heads` (embed_dim -> heads) says otherwise.

    Raises:
        BackboneError: no ViT under timm's names, or a width whose number of heads nobody tells.
    """
    _check_names(tensors)
    embed_dim, in_chans, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    blocks = [int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))]
    class_token = "cls_token" in tensors
    reg_tokens = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    length, num_prefix_tokens = tensors["pos_embed"].shape[1], class_token + reg_tokens
    no_embed_class = num_prefix_tokens > 0 and math.isqrt(length) ** 2 == length
    num_patches = length if no_embed_class else length - num_prefix_tokens
    fc_norm = "fc_norm.weight" in tensors  # a norm after pooling; there is then none before
    return {
        "img_size": math.isqrt(num_patches) * patch_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depth": max(blocks) + 1,
        "num_heads": _count_heads(embed_dim, num_heads or {}),
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "class_token": class_token,
        "reg_tokens": reg_tokens,
        "no_embed_class": no_embed_class,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
        "pre_norm": "norm_pre.weight" in tensors,
        "final_norm": True,  # a file that lacks it has lost it
        "fc_norm": fc_norm,
        "global_pool": "token" if class_token and not fc_norm else "avg",
        **_infer_mlp(tensors, embed_dim),
    }


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    if missing := [name for name in NDIMS if name not in tensors]:
        raise BackboneError(
            f"no ViT under timm's names: lacks {', '.join(missing)}; "
            f"has {len(tensors)} tensors: {name_some(tensors, limit=3)}"
        )
    for name, ndim in (NDIMS | OPTIONAL_NDIMS).items():
        if name in tensors and tensors[name].ndim != ndim:
            shape = list(tensors[name].shape)
            raise BackboneError(f"no ViT under timm's names: {name} is {shape}, wanted {ndim} axes")


def _count_heads(embed_dim: int, known: Mapping[int, int]) -> int:
    num_heads = (NUM_HEADS | dict(known)).get(embed_dim) or max(1, embed_dim // HEAD_DIM)
    if embed_dim % num_heads:
        raise BackboneError(
            f"{embed_dim} wide: how many heads is not in the tensors; "
            "say it in the architecture metadata of a .safetensors file"
        )
    return num_heads


def _infer_mlp(tensors: Mapping[str, Tensor], embed_dim: int) -> dict[str, Any]:
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    ratio = hidden / embed_dim
    if int(embed_dim * ratio) < hidden:  # which is how timm comes by the hidden width
        ratio = math.nextafter(ratio, math.inf)
    fc2 = tensors.get("blocks.0.mlp.fc2.weight")
    if fc2 is not None and 2 * fc2.shape[1] == hidden:  # half of fc1 gates the other: DINOv2's g
        return {"mlp_ratio": ratio, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    return {"mlp_ratio": ratio}
