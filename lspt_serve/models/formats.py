"""The layouts in which the field keeps ViTs: how each wraps and names its tensors.

    timm       tensors under timm's names, bare or as {"state_dict": ...}
    DeiT, MAE  {"model": ...}; MAE's pretraining adds decoder_* and mask_token
    MoCo v3    {"state_dict": ...} under module.base_encoder. and module.momentum_encoder.
    DINO       {"teacher": ..., "student": ...} under backbone. or module.backbone.
    DINOv2     nearly timm's names, with mask_token; bare, or as DINO's teacher

What lies beside the weights (epoch, args, optimizer) and heads of every kind are dropped. A bare
backbone of DINO has no mark of its own and reads as timm's; a MoCo v3 encoder that its authors'
script rewrote for DeiT reads as MAE's pretraining.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.models.vision_transformer import _convert_dinov2
from torch import Tensor

from lspt_serve.preprocess import Normalisation

__all__ = ["Weights", "find_weights"]

Tensors = dict[str, Tensor]
WRAPPERS = ("model", "state_dict", "teacher", "student")


@dataclass(frozen=True)
class Weights:
    """Tensors under timm's names, with what their format says that they do not.

    `pool=None` is that of the architecture; `num_heads` (embed_dim -> heads) is for widths at which
    the format departs from the usual.
    """

    tensors: Tensors
    normalisation: Normalisation = "imagenet"
    pool: str | None = None
    num_heads: Mapping[int, int] = field(default_factory=dict)


def find_weights(loaded: Mapping[Any, Any]) -> Weights:
    """Recognise the format of what a file held; the tensors are empty if it held none."""
    wrapper = next((name for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
    inner = loaded[wrapper] if wrapper else loaded
    named = {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}
    if all(name.startswith("module.") for name in named):  # DistributedDataParallel's prefix
        named = _under("module.", named)
    found = next(found for read in FORMATS if (found := read(wrapper, named)))
    without_head = {k: v for k, v in found.tensors.items() if not k.startswith("head.")}
    return Weights(without_head, found.normalisation, found.pool, found.num_heads)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _moco_v3(wrapper: str | None, tensors: Tensors) -> Weights | None:
    """The base encoder; the momentum encoder only where it is alone. ViT-S has 12 heads, 32 wide."""
    encoder = _under("base_encoder.", tensors) or _under("momentum_encoder.", tensors)
    return Weights(encoder, num_heads={384: 12}) if encoder else None


def _dino(wrapper: str | None, tensors: Tensors) -> Weights | None:
    """The teacher, which is what DINO evaluates; the student only where it is alone."""
    if wrapper not in ("teacher", "student"):
        return None
    backbone = _under("backbone.", tensors) or tensors
    return _dinov2(None, backbone) or Weights(backbone)


def _dinov2(wrapper: str | None, tensors: Tensors) -> Weights | None:
    """Registers get no position embedding; training keeps blocks in chunks, blocks.CHUNK.INDEX."""
    if "mask_token" not in tensors or "decoder_embed.weight" in tensors:
        return None
    flat = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in tensors.items()}
    return Weights(_convert_dinov2(flat, model=None))  # type: ignore[arg-type]  # unused there


def _mae(wrapper: str | None, tensors: Tensors) -> Weights | None:
    """MAE's pretraining, which has no head: pooled by its own `norm` and the mean over patches."""
    has_head = any(name.startswith("head.") for name in tensors)
    if "decoder_embed.weight" not in tensors and (wrapper != "model" or has_head):
        return None
    dropped = ("decoder_", "mask_token")
    encoder = {k: v for k, v in tensors.items() if not k.startswith(dropped)}
    return Weights(encoder, pool=None if "fc_norm.weight" in encoder else "patch_mean")


def _deit(wrapper: str | None, tensors: Tensors) -> Weights | None:
    """DeiT and what MAE fine-tuned from it; an fc_norm says how it is pooled."""
    return Weights(tensors) if wrapper == "model" else None


def _timm(wrapper: str | None, tensors: Tensors) -> Weights:
    return Weights(tensors, normalisation="half")  # of AugReg, the bulk of timm's ViTs


FORMATS: tuple[Callable[[str | None, Tensors], Weights | None], ...] = (
    _moco_v3,
    _dino,
    _dinov2,
    _mae,
    _deit,
    _timm,
)
