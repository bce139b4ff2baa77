"""How to train: the settings, and what `auto` means on this machine."""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from lspt_serve.errors import DataError

__all__ = [
    "Augment",
    "Keep",
    "Precision",
    "TrainSettings",
    "learning_rate",
    "pick_device",
    "pick_precision",
]

Augment = Literal["none", "flip", "crop", "crop+flip"]
Keep = Literal["best", "last"]
Precision = Literal["auto", "fp32", "bf16"]
# On a CPU with bf16 instructions bf16 pays from here on: benchmarks/bench_precision.py
MIN_BF16_EMBED_DIM = 192


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train; nothing of it is needed to serve.

    Args:
        keep: the epoch whose tensors are kept: the one best on val, or the last.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.01
    warmup_epochs: float = 3.0
    augment: Augment = "none"
    keep: Keep = "best"
    seed: int = 0
    precision: Precision = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise DataError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_epochs"):
            if not getattr(self, name) >= 0:
                raise DataError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise DataError(f"seed must be at least 0 and below 2^63, got {self.seed}")
        if self.augment not in get_args(Augment):
            raise DataError(f"augment must be none, flip, crop or crop+flip, got {self.augment!r}")
        if self.keep not in get_args(Keep):
            raise DataError(f"keep must be best or last, got {self.keep!r}")
        if self.precision not in get_args(Precision):
            raise DataError(f"precision must be auto, fp32 or bf16, got {self.precision!r}")


def learning_rate(step: int, *, total: int, warmup: int, base: float) -> float:
    """Cosine with linear warm-up, for step 0, 1, ..., total - 1; never 0."""
    if step < warmup:
        return base * (step + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one; raises DataError for a device that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise DataError(f"unknown device {device!r}; wanted auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DataError(f"device {device!r} was asked for, but torch sees no CUDA GPU; use cpu")
    return torch.device(device)


def pick_precision(precision: Precision, device: torch.device, embed_dim: int) -> torch.dtype:
    """`auto` is bf16 where it is faster, by the hardware alone: a run must be repeatable."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        bf16_matmul = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
        faster = bf16_matmul and embed_dim >= MIN_BF16_EMBED_DIM
    return torch.bfloat16 if faster else torch.float32
