"""The frozen ViT that all tasks share: a timm VisionTransformer, its source and its proof."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import TypeAdapter, ValidationError
from timm.models.vision_transformer import VisionTransformer

from lspt_serve.errors import BackboneError, first_line, name_some, nearest
from lspt_serve.models.checkpoint import load_checkpoint
from lspt_serve.preprocess import Preprocess

__all__ = ["EMBEDDED", "Backbone", "load_backbone", "sha256_of_tensors"]

WEIGHTS = Path(__file__).parent / "weights"
EMBEDDED = tuple(sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))
SUFFIXES = {".safetensors", ".pth", ".pt"}


@dataclass(frozen=True)
class Backbone:
    """A frozen ViT in eval mode, without a head.

    `source` is what `load_backbone` was given, `sha256` is over the tensors alone: the same
    weights have the same sha256 whichever file or hub they came from.
    """

    vit: VisionTransformer
    source: str
    sha256: str
    preprocess: Preprocess
    pool: str


def load_backbone(source: str) -> Backbone:
    """Load a backbone by the name of one that ships with the package, a file, or a timm model name.

    Raises:
        BackboneError: unknown name (the nearest are named), unreadable file, missing or unexpected
            tensors (all are named), a timm model that is no VisionTransformer, no network.
    """
    path = WEIGHTS / f"{source}.safetensors" if source in EMBEDDED else Path(source)
    if path.suffix in SUFFIXES or path.exists():
        return _from_file(path, source)
    return _from_timm(source)


def sha256_of_tensors(vit: torch.nn.Module) -> str:
    """sha256 over the sorted tensors: name, dtype, shape and little-endian bytes of each."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vit.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _from_file(path: Path, source: str) -> Backbone:
    if not path.is_file():
        raise BackboneError(f"{path}: no such file; give a .safetensors or .pth file of a ViT")
    checkpoint = load_checkpoint(path)
    try:
        vit = VisionTransformer(**checkpoint.architecture | {"num_classes": 0})
        missing, unexpected = vit.load_state_dict(checkpoint.tensors, strict=False)
    except Exception as error:  # timm checks its arguments by running into them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BackboneError(f"{path}: no ViT can be made of it: {reason}") from error
    if missing or unexpected:
        raise BackboneError(
            f"{path}: missing tensors: {name_some(missing) or 'none'}; "
            f"unexpected tensors: {name_some(unexpected) or 'none'}"
        )
    metadata = checkpoint.metadata
    mean, std = metadata.get("mean", (0.5, 0.5, 0.5)), metadata.get("std", (0.5, 0.5, 0.5))
    return _freeze(vit, source, mean=mean, std=std, pool=metadata.get("pool"))


def _from_timm(name: str) -> Backbone:
    if not timm.is_model(name):
        known = [*EMBEDDED, *timm.list_models()]
        raise BackboneError(
            f"unknown backbone {name!r}: no file, no timm model{nearest(name, known)}"
        )
    try:
        vit = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise BackboneError(
            f"{name}: pretrained weights cannot be had ({first_line(error)}); "
            "give a local file instead"
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise BackboneError(f"{name} is a {type(vit).__name__}; wanted a VisionTransformer")
    config: Any = vit.pretrained_cfg
    return _freeze(vit, name, mean=config["mean"], std=config["std"], pool=None)


def _freeze(
    vit: VisionTransformer,
    source: str,
    *,
    mean: Any,
    std: Any,
    pool: str | None,
) -> Backbone:
    height, width = vit.patch_embed.img_size
    if height != width:
        raise BackboneError(f"{source}: takes {height} x {width} images; wanted a square")
    try:
        preprocess = TypeAdapter(Preprocess).validate_python(
            {"img_size": height, "mean": mean, "std": std}
        )
    except ValidationError as error:
        raise BackboneError(f"{source}: bad mean or std: {error.errors()[0]['msg']}") from error
    default_pool = "cls" if vit.cls_token is not None else "patch_mean"
    vit = vit.eval().requires_grad_(False)
    return Backbone(vit, source, sha256_of_tensors(vit), preprocess, pool or default_pool)
