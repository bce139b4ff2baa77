"""Read the weights of a ViT from a local file and infer its architecture.

Two containers: .safetensors, whose header may say the architecture and preprocessing outright, and
.pth / .pt state dicts, read without unpickling code and sized by their tensors' shapes.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lspt_serve.errors import BackboneError, first_line

__all__ = ["Checkpoint", "infer_architecture", "load_checkpoint"]

JSON_METADATA = {"architecture", "mean", "std"}
HEAD_DIM = 64  # every ViT from Ti to L has heads this wide; a state dict does not tell


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under timm's names, the head left out, with what the file says about itself."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> dict[str, Any]:
        """Keyword arguments of timm's VisionTransformer."""
        return self.metadata.get("architecture") or infer_architecture(self.tensors)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a .safetensors or .pth / .pt file.

    Raises:
        BackboneError: not such a file, truncated, or a pickle that wants to run code.
    """
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    else:
        tensors, metadata = _read_state_dict(path), {}
    return Checkpoint({k: v for k, v in tensors.items() if not k.startswith("head.")}, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {
            name: json.loads(value) if name in JSON_METADATA else value
            for name, value in header.items()
        }
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path}: cannot be read as safetensors: {error}") from error
    return tensors, metadata


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler and zip reader do
        reason = first_line(error)
        raise BackboneError(f"{path}: no state dict of plain tensors: {reason}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]  # the wrapping that MAE and DeiT checkpoints have
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise BackboneError(f"{path}: wanted a state dict (name -> tensor)")
    return loaded


def infer_architecture(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Size a plain timm VisionTransformer by its tensors' shapes; heads are taken as 64 wide."""
    wanted = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    if missing := [name for name in wanted if name not in tensors]:
        raise BackboneError(f"no ViT under timm's names: lacks {', '.join(missing)}")
    ndims = {"patch_embed.proj.weight": 4, "pos_embed": 3, "reg_token": 3}
    ndims["blocks.0.mlp.fc1.weight"] = 2
    for name, ndim in ndims.items():
        if name in tensors and tensors[name].ndim != ndim:
            shape = list(tensors[name].shape)
            raise BackboneError(f"no ViT under timm's names: {name} is {shape}, wanted {ndim} axes")
    embed_dim, in_chans, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    blocks = [int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))]
    class_token = "cls_token" in tensors
    reg_tokens = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    length, num_prefix_tokens = tensors["pos_embed"].shape[1], class_token + reg_tokens
    no_embed_class = num_prefix_tokens > 0 and math.isqrt(length) ** 2 == length
    num_patches = length if no_embed_class else length - num_prefix_tokens
    return {
        "img_size": math.isqrt(num_patches) * patch_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depth": max(blocks) + 1,
        "num_heads": max(1, embed_dim // HEAD_DIM),
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "class_token": class_token,
        "reg_tokens": reg_tokens,
        "no_embed_class": no_embed_class,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
        "pre_norm": "norm_pre.weight" in tensors,
        "final_norm": "norm.weight" in tensors or "fc_norm.weight" in tensors,
        "fc_norm": "fc_norm.weight" in tensors,
        "global_pool": "token" if class_token else "avg",
    }
