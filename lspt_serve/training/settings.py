"""How to train: the settings, and what `auto` means on this machine."""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from lspt_serve.errors import DataError
from lspt_serve.training.distributed import own_device

__all__ = [
    "Augment",
    "Keep",
    "Precision",
    "Sampling",
    "TrainSettings",
    "learning_rate",
    "pick_device",
    "pick_precision",
]

Augment = Literal["none", "flip", "crop", "crop+flip"]
Keep = Literal["best", "last"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Sampling = Literal["all", "balanced"]
CHOICES = {
    "augment": get_args(Augment),
    "keep": get_args(Keep),
    "precision": get_args(Precision),
    "sampling": get_args(Sampling),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# On a CPU with bf16 instructions bf16 pays from here on: benchmarks/bench_precision.py
MIN_BF16_EMBED_DIM = 192


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train; nothing of it is needed to serve.

    Args:
        batch_size: images in a step, of all processes and micro-batches together.
        lr: at its peak, of the head and what else is no prompt.
        prompt_lr_scale: the learning rate of the learned prompts, in multiples of lr. None: what
            suits where they start, see lspt_serve/training/init.py.
        label_smoothing: share of every target that goes to all classes alike, in [0, 1).
        mixup: alpha of its Beta distribution; 0: images are not mixed.
        sampling: what an epoch of N images is: every image once, or N draws with replacement in
            which every class is equally likely.
        accumulate: micro-batches that a step is cut into, to save memory; their gradients are
            summed.
        keep: the epoch whose tensors are kept: the one best on val, or the last.
        early_stop: end after so many epochs without one that is better on val; the schedule of the
            learning rate stays that of all epochs. None: never.
        compile: run the model through torch.compile.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 3e-3
    prompt_lr_scale: float | None = None
    weight_decay: float = 0.01
    warmup_epochs: float = 3.0
    augment: Augment = "none"
    mixup: float = 0.0
    label_smoothing: float = 0.0
    sampling: Sampling = "all"
    accumulate: int = 1
    keep: Keep = "best"
    early_stop: int | None = None
    seed: int = 0
    precision: Precision = "auto"
    device: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise DataError(f"{name} must be finite, got {value}")
        for name in ("epochs", "batch_size", "lr", "prompt_lr_scale"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise DataError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_epochs", "mixup"):
            if not getattr(self, name) >= 0:
                raise DataError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise DataError(
                f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}"
            )
        if not 1 <= self.accumulate <= self.batch_size:
            raise DataError(
                f"accumulate must be 1 to batch_size {self.batch_size}, got {self.accumulate}"
            )
        if self.early_stop is not None and self.early_stop < 1:
            raise DataError(f"early_stop must be at least 1 or None, got {self.early_stop}")
        if not 0 <= self.seed < 2**63:
            raise DataError(f"seed must be at least 0 and below 2^63, got {self.seed}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise DataError(f"{name} must be {known}, got {getattr(self, name)!r}")


def learning_rate(step: int, *, total: int, warmup: int, base: float) -> float:
    """Cosine with linear warm-up, for step 0, 1, ..., total - 1; never 0."""
    if step < warmup:
        return base * (step + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one, under torchrun that of this process.

    Raises:
        DataError: a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9]\d{0,2}))?", device):
        raise DataError(f"unknown device {device!r}; wanted auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DataError(f"device {device!r} was asked for, but torch sees no CUDA GPU; use cpu")
    _, _, index = device.partition(":")
    if index and int(index) >= (count := torch.cuda.device_count()):
        raise DataError(
            f"device {device!r} was asked for, and the last is cuda:{count - 1}; use it"
        )
    return own_device(torch.device(device))


def pick_precision(precision: Precision, device: torch.device, embed_dim: int) -> torch.dtype:
    """`auto` is bf16 where it is faster, by the hardware alone: a run must be repeatable."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        bf16_matmul = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
        faster = bf16_matmul and embed_dim >= MIN_BF16_EMBED_DIM
    return torch.bfloat16 if faster else torch.float32
