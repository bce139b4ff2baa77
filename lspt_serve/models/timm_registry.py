"""ViTs that timm can make: by their name, or as the config.json beside a file of its hub says."""

import json
import re
from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lspt_serve.errors import BackboneError, first_line

__all__ = ["create_as_configured", "create_pretrained", "find_registered"]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def find_registered(source: str) -> str | None:
    """The name that timm knows a model by, without the hub's `timm/` or `hf-hub:timm/`."""
    name = re.sub(r"^(hf-hub:)?timm/", "", source)
    return name if timm.is_model(name) else None


def create_pretrained(name: str) -> VisionTransformer:
    """Download a model that timm knows; what is no VisionTransformer is refused before that."""
    try:
        with torch.device("meta"):
            _check(timm.create_model(name, pretrained=False, num_classes=0), name)
        return _check(timm.create_model(name, pretrained=True, num_classes=0), name)
    except (OSError, RuntimeError) as error:
        raise BackboneError(
            f"{name}: pretrained weights cannot be had ({first_line(error)}); "
            "give a local file instead"
        ) from error


def create_as_configured(path: Path) -> VisionTransformer | None:
    """An untrained ViT as timm's config.json beside the weights says; None without such a file."""
    config = path.with_name("config.json")
    if path.name not in HUB_FILES or not config.is_file():
        return None
    try:
        said = json.loads(config.read_bytes())
        if not isinstance(said, dict) or "architecture" not in said:  # another library's
            return None
        vit = timm.create_model(f"local-dir:{path.parent}", pretrained=False, num_classes=0)
    except Exception as error:  # timm checks what it reads by running into it
        raise BackboneError(f"{config}: no ViT can be made of it: {first_line(error)}") from error
    return _check(vit, str(config))


def _check(model: nn.Module, name: str) -> VisionTransformer:
    if not isinstance(model, VisionTransformer):
        raise BackboneError(f"{name} is a {type(model).__name__}; wanted a VisionTransformer")
    return model
