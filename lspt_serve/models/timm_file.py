"""A fully fine-tuned ViT as a file that timm and load_backbone read."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lspt_serve.models.architecture import infer_architecture
from lspt_serve.models.prompted_vit import PromptedViT
from lspt_serve.preprocess import Preprocess

__all__ = ["describe_in_timm", "save_in_timm"]

GLOBAL_POOLS = {"cls": "token", "patch_mean": "avg"}
MAX_ERROR = 1e-5  # relative to the largest logit; the operations are the same


@torch.no_grad()
def describe_in_timm(model: PromptedViT) -> dict[str, Any] | None:
    """Keyword arguments of the VisionTransformer that answers as `model` does, head and all.

    None where there is none: a pool of two parts, or a backbone with what its tensors do not tell,
    such as another activation. The answers of both on noise decide.
    """
    vit = model.backbone
    tensors = _timm_tensors(model)
    try:
        num_heads = {vit.embed_dim: vit.blocks[0].attn.num_heads}
        architecture = infer_architecture(tensors, num_heads=num_heads) | {
            "num_classes": model.head.out_features,
            "global_pool": GLOBAL_POOLS[model.pool],
        }
        json.dumps(architecture)
        twin = VisionTransformer(**architecture)
        twin.load_state_dict(tensors)
    except Exception:  # timm checks its arguments by running into them
        return None
    size, device = architecture["img_size"], next(model.parameters()).device
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    wanted, got = model.eval()(noise), twin.eval().to(device)(noise)
    agrees = (got - wanted).abs().max() <= MAX_ERROR * wanted.abs().max()
    return architecture if agrees else None


def save_in_timm(
    model: PromptedViT, path: Path, preprocess: Preprocess, architecture: dict[str, Any]
) -> None:
    """Write a .safetensors file under timm's names; its header says all that load_backbone asks."""
    metadata = {
        "architecture": json.dumps(architecture),
        "mean": json.dumps(preprocess.mean),
        "std": json.dumps(preprocess.std),
    }
    path.write_bytes(save(_timm_tensors(model), metadata))


def _timm_tensors(model: PromptedViT) -> dict[str, Tensor]:
    return {
        name.removeprefix("backbone."): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
