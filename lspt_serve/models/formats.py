"""The layouts in which the field keeps ViTs: how each wraps and names its tensors.

    timm       tensors under timm's names, bare or as {"state_dict": ...}
    DeiT, MAE  {"model": ...}; MAE's pretraining adds decoder_* and mask_token
    MoCo v3    {"state_dict": ...} under module.base_encoder. and module.momentum_encoder.; linear
               probing and the conversion for DeiT keep timm's names
    DINO       {"teacher": ..., "student": ...} under backbone. or module.backbone.
    DINOv2     nearly timm's names, with mask_token; bare, or as DINO's teacher

What lies beside the weights (epoch, args, optimizer) and heads of every kind are dropped. MoCo v3
and MAE compute their position embeddings, each in its own way, and never train them: these tell an
encoder that stands under timm's names. A bare backbone of DINO has no mark and reads as timm's.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
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
    the format departs from the usual. Unless `is_certain`, nothing but a common wrapping tells the
    format: normalisation and heads are what is usual there.
    """

    tensors: Tensors
    normalisation: Normalisation = "imagenet"
    pool: str | None = None
    num_heads: Mapping[int, int] = field(default_factory=dict)
    is_certain: bool = True


def find_weights(loaded: Mapping[Any, Any]) -> Weights:
    """Recognise the format of what a file held; the tensors are empty if it held none."""
    wrapper = next((name for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
    inner = loaded[wrapper] if wrapper else loaded
    named = {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}
    if all(name.startswith("module.") for name in named):  # DistributedDataParallel's prefix
        named = _under("module.", named)
    found = next(found for read in FORMATS if (found := read(wrapper, named)))
    without_head = {k: v for k, v in found.tensors.items() if not k.startswith("head.")}
    return replace(found, tensors=without_head)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _has_computed_positions(tensors: Tensors, *, rows_first: bool) -> bool:
    """Whether pos_embed is of sines and cosines: half of D for the row, half for the column.

    MoCo v3 puts the row first, MAE the column; the class token has 0.
    """
    given = tensors.get("pos_embed")
    if given is None or given.ndim != 3:
        return False
    _, length, dim = given.shape  # 1 x (1 + N) x D
    side = math.isqrt(max(0, length - 1))
    if side < 2 or side**2 != length - 1 or dim % 4:
        return False
    angles = torch.outer(torch.arange(side), 10_000 ** -(torch.arange(dim // 4) / (dim // 4)))
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # side x D/2
    rows, columns = line.repeat_interleave(side, dim=0), line.repeat(side, 1)  # N x D/2
    patches = torch.cat((rows, columns) if rows_first else (columns, rows), dim=1)
    wanted = torch.cat([torch.zeros(1, dim), patches])
    return torch.allclose(given[0].float(), wanted, rtol=0, atol=5e-3)  # bfloat16's rounding


def _moco_v3(wrapper: str | None, tensors: Tensors) -> Weights | None:
    """The base encoder, the momentum encoder only where it is alone. ViT-S has 12 heads of 32."""
    encoder = _under("base_encoder.", tensors) or _under("momentum_encoder.", tensors)
    if not encoder and _has_computed_positions(tensors, rows_first=True):
        encoder = tensors
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
    computed = not has_head and _has_computed_positions(tensors, rows_first=False)
    is_certain = computed or "decoder_embed.weight" in tensors
    if not is_certain and (wrapper != "model" or has_head):
        return None
    dropped = ("decoder_", "mask_token")
    encoder = {k: v for k, v in tensors.items() if not k.startswith(dropped)}
    pool = None if "fc_norm.weight" in encoder else "patch_mean"
    return Weights(encoder, pool=pool, is_certain=is_certain)


def _deit(wrapper: str | None, tensors: Tensors) -> Weights | None:
    """DeiT and what MAE fine-tuned from it; an fc_norm says how it is pooled."""
    return Weights(tensors, is_certain=False) if wrapper == "model" else None


def _timm(wrapper: str | None, tensors: Tensors) -> Weights:
    # AugReg's normalisation: the bulk of timm's ViTs
    return Weights(tensors, normalisation="half", is_certain=False)


FORMATS: tuple[Callable[[str | None, Tensors], Weights | None], ...] = (
    _moco_v3,
    _dino,
    _dinov2,
    _mae,
    _deit,
    _timm,
)
