"""The frozen ViT that all tasks share: a timm VisionTransformer, its source and its proof."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import TypeAdapter, ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lspt_serve.errors import BackboneError, name_some, nearest, printable
from lspt_serve.models.checkpoint import load_checkpoint
from lspt_serve.models.timm_registry import (
    create_as_configured,
    create_pretrained,
    find_registered,
)
from lspt_serve.preprocess import NORMALISATIONS, Normalisation, Preprocess

__all__ = ["EMBEDDED", "Backbone", "load_backbone", "sha256_of_tensors"]

WEIGHTS = Path(__file__).parent / "weights"
EMBEDDED = tuple(sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))
SUFFIXES = {".safetensors", ".pth", ".pt"}


@dataclass(frozen=True)
class Backbone:
    """A frozen ViT in eval mode, without a head.

    `source` is what `load_backbone` was given, `sha256` is over the tensors that the source gave,
    before position embeddings were resampled: the same weights have the same sha256 whichever file
    or hub they came from and whatever `preprocess.img_size` is. `notes` are what a person should
    know: what was assumed because the source does not tell.
    """

    vit: VisionTransformer
    source: str
    sha256: str
    preprocess: Preprocess
    pool: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Loaded:
    """A ViT as its source gives it, and what of it was assumed."""

    vit: VisionTransformer
    mean: Any
    std: Any
    pool: str | None = None
    assumed_normalisation: Normalisation | None = None
    assumes_heads: bool = False


def load_backbone(
    source: str, *, img_size: int | None = None, normalisation: Normalisation | None = None
) -> Backbone:
    """Load a backbone by the name of one that ships with the package, a file, or a timm model name.

    Args:
        img_size: resample the position embeddings for images of this side; None is the source's.
        normalisation: `imagenet` or `half`; None is what the source says or its format implies.

    Raises:
        BackboneError: unknown name (the nearest are named), unreadable file, missing, unexpected or
            misshapen tensors (all are counted), weights that are not finite, a timm model that is
            no VisionTransformer, no network, images of other channels than red, green and blue, an
            image size that is no multiple of the patch size.
    """
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise BackboneError(
            f"{printable(source)}: a name that is no UTF-8, which a bundle cannot hold; rename it"
        ) from error
    path = WEIGHTS / f"{source}.safetensors" if source in EMBEDDED else Path(source)
    is_file = path.suffix in SUFFIXES or (path.exists() and not find_registered(source))
    loaded = _from_file(path) if is_file else _from_timm(source)
    _check_finite(loaded.vit, source)
    _check_channels(loaded.vit, source)
    sha256 = sha256_of_tensors(loaded.vit)
    _resize(loaded.vit, source, img_size)
    preprocess = _create_preprocess(loaded, source, normalisation)
    vit = loaded.vit.eval().requires_grad_(False)
    mean_pooled = vit.cls_token is None or vit.global_pool == "avg"
    pool = loaded.pool or ("patch_mean" if mean_pooled else "cls")
    notes = _note_assumptions(loaded, source, normalisation)
    return Backbone(vit, source, sha256, preprocess, pool, notes)


def sha256_of_tensors(vit: torch.nn.Module) -> str:
    """sha256 over the sorted tensors: name, dtype, shape and little-endian bytes of each."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vit.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _from_file(path: Path) -> _Loaded:
    if path.is_dir():
        raise BackboneError(f"{path} is a folder; give the .safetensors or .pth file in it")
    if not path.is_file():
        raise BackboneError(f"{path}: no such file; give a .safetensors or .pth file of a ViT")
    checkpoint = load_checkpoint(path)
    if "architecture" not in checkpoint.metadata and (hub := create_as_configured(path)):
        _fill(hub, checkpoint.weights.tensors, path)
        return _as_timm_says(hub)
    try:
        vit = VisionTransformer(**checkpoint.architecture | {"num_classes": 0})
    except BackboneError as error:
        raise BackboneError(f"{path}: {error}") from error
    except Exception as error:  # timm checks its arguments by running into them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BackboneError(f"{path}: no ViT can be made of it: {reason}") from error
    _fill(vit, checkpoint.weights.tensors, path)
    return _Loaded(
        vit,
        checkpoint.mean,
        checkpoint.std,
        checkpoint.pool,
        checkpoint.assumed_normalisation,
        checkpoint.assumes_heads,
    )


def _fill(vit: VisionTransformer, tensors: Mapping[str, Tensor], path: Path) -> None:
    own = vit.state_dict()
    problems = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "misshapen": [
            f"{name} is {list(tensor.shape)}, wanted {list(own[name].shape)}"
            for name, tensor in tensors.items()
            if name in own and tensor.shape != own[name].shape
        ],
    }
    if any(problems.values()):
        named = (f"{len(n)} {kind} ({name_some(n)})" for kind, n in problems.items() if n)
        raise BackboneError(f"{path}: tensors do not make a ViT: {'; '.join(named)}")
    vit.load_state_dict(dict(tensors))


def _from_timm(source: str) -> _Loaded:
    if (name := find_registered(source)) is None:
        known = [*EMBEDDED, *timm.list_models()]
        raise BackboneError(
            f"unknown backbone {source!r}: no file, no timm model{nearest(source, known)}"
        )
    return _as_timm_says(create_pretrained(name))


def _as_timm_says(vit: VisionTransformer) -> _Loaded:
    config: Any = vit.pretrained_cfg
    pool = "patch_mean" if config.get("tag") == "mae" else None  # as from MAE's own files
    return _Loaded(vit, config["mean"], config["std"], pool)


def _check_finite(vit: VisionTransformer, source: str) -> None:
    for name, tensor in vit.state_dict().items():
        if not tensor.isfinite().all():
            raise BackboneError(f"{source}: {name} is not finite; the weights are broken")


def _check_channels(vit: VisionTransformer, source: str) -> None:
    channels = vit.patch_embed.proj.weight.shape[1]
    if channels != 3:
        raise BackboneError(
            f"{source}: takes images of {channels} channel(s); wanted 3, red, green and blue"
        )


def _resize(vit: VisionTransformer, source: str, img_size: int | None) -> None:
    """Check that images are square and set their side, resampling position embeddings."""
    height, width = vit.patch_embed.img_size
    if height != width:
        raise BackboneError(f"{source}: takes {height} x {width} images; wanted a square")
    if img_size is None or img_size == height:
        return
    patch_size = vit.patch_embed.patch_size[0]
    if img_size < patch_size or img_size % patch_size:
        lower = max(1, img_size // patch_size) * patch_size
        raise BackboneError(
            f"{source}: img_size {img_size} is no multiple of the patch size {patch_size}; "
            f"nearest: {lower}, {lower + patch_size}"
        )
    vit.set_input_size(img_size=(img_size, img_size))


def _create_preprocess(
    loaded: _Loaded, source: str, normalisation: Normalisation | None
) -> Preprocess:
    mean, std = loaded.mean, loaded.std
    if normalisation is not None:
        if normalisation not in NORMALISATIONS:
            wanted = " or ".join(NORMALISATIONS)
            raise BackboneError(f"unknown normalisation {normalisation!r}; wanted {wanted}")
        mean, std = NORMALISATIONS[normalisation]
    try:
        return TypeAdapter(Preprocess).validate_python(
            {"img_size": loaded.vit.patch_embed.img_size[0], "mean": mean, "std": std}
        )
    except ValidationError as error:
        raise BackboneError(f"{source}: bad mean or std: {error.errors()[0]['msg']}") from error


def _note_assumptions(
    loaded: _Loaded, source: str, normalisation: Normalisation | None
) -> tuple[str, ...]:
    assumed = []
    if loaded.assumed_normalisation and normalisation is None:
        assumed.append(f"normalisation {loaded.assumed_normalisation} (see --normalisation)")
    if loaded.assumes_heads:
        block: Any = loaded.vit.blocks[0]
        assumed.append(f"{block.attn.num_heads} heads (a .safetensors file can say them)")
    return (f"assumed of {source}, which does not say: {', '.join(assumed)}",) if assumed else ()
