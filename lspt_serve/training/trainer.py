"""The training loop: AdamW, cosine with warm-up, the best epoch chosen on val."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lspt_serve.errors import DataError
from lspt_serve.models import PromptedViT
from lspt_serve.preprocess import Preprocess
from lspt_serve.training.batches import Batches
from lspt_serve.training.data import Dataset, Split
from lspt_serve.training.settings import TrainSettings, learning_rate, pick_precision

__all__ = ["Epoch", "accuracy", "evaluate", "fit", "predict"]


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave; `number` starts at 1, accuracies are in [0, 1].

    Of the time on train, `data_s` went into inputs, `step_s` into all else.
    """

    number: int
    loss: float
    val_loss: float
    val_accuracy: float
    data_s: float = 0.0
    step_s: float = 0.0

    def better_than(self, other: "Epoch | None") -> bool:
        """Higher accuracy on val, of two equal ones the lower loss; never one that diverged."""
        if not math.isfinite(self.val_loss):
            return False
        return other is None or (self.val_accuracy, -self.val_loss) > (
            other.val_accuracy,
            -other.val_loss,
        )


def fit(
    model: PromptedViT,
    dataset: Dataset,
    preprocess: Preprocess,
    settings: TrainSettings,
    *,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Epoch:
    """Train the task's tensors in place; they end as they were after the epoch to keep.

    On a CPU the same seed, settings and thread count give the same tensors, bit for bit.

    Returns:
        The epoch that was kept: the best on val, or the last that did not diverge.

    Raises:
        DataError: no epoch had a finite loss on val.
    """
    draws = torch.Generator().manual_seed(settings.seed)  # order and augmentation
    train = Batches(dataset.train, preprocess, model, augment=settings.augment, generator=draws)
    val = Batches(dataset.val, preprocess, model)
    dtype = pick_precision(settings.precision, train.targets.device, model.backbone.embed_dim)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    steps = math.ceil(len(train) / settings.batch_size)
    total, warmup = steps * settings.epochs, round(steps * settings.warmup_epochs)
    schedule = [
        learning_rate(step, total=total, warmup=warmup, base=settings.lr) for step in range(total)
    ]
    best: Epoch | None = None
    best_tensors = model.task_tensors()
    for number in range(1, settings.epochs + 1):
        order = torch.randperm(len(train), generator=draws)
        rates = schedule[(number - 1) * steps : number * steps]
        started, data_s = time.perf_counter(), -train.data_s
        loss = _train_epoch(train, order.tensor_split(steps), rates, optimizer, dtype)
        data_s += train.data_s
        step_s = time.perf_counter() - started - data_s
        measured = _measure(val, settings.batch_size, dtype)
        epoch = Epoch(number, loss, *measured, data_s=data_s, step_s=step_s)
        if epoch.better_than(None if settings.keep == "last" else best):
            best = epoch
            best_tensors = {name: t.clone() for name, t in model.task_tensors().items()}
        on_epoch(epoch)
    if best is None:
        raise DataError(
            f"training diverged: no epoch has a finite loss on val; lower lr {settings.lr}"
        )
    model.load_task_tensors(best_tensors)
    return best


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Top-1 accuracy in [0, 1]; N x K, N."""
    return (logits.argmax(dim=-1) == targets).float().mean().item()


def predict(model: PromptedViT, split: Split, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Logits (N x K) and targets (N) of a split, in fp32."""
    batches = Batches(split, preprocess, model)
    return _predict(batches, 64, torch.float32), batches.targets


def evaluate(model: PromptedViT, split: Split, preprocess: Preprocess) -> float:
    """Top-1 accuracy in [0, 1], in fp32."""
    return accuracy(*predict(model, split, preprocess))


def _train_epoch(
    train: Batches,
    batches: tuple[torch.Tensor, ...],
    rates: list[float],
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
) -> float:
    """One pass over the batches; returns the mean loss per image."""
    train.model.train()
    summed = 0.0
    for rows, rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(train.targets.device.type, dtype, enabled=dtype != torch.float32):
            logits = train.logits(rows)
        loss = cross_entropy(logits.float(), train.targets[rows])
        if (extra := train.model.method.regularisation()) is not None:
            loss = loss + extra
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        summed += loss.item() * len(rows)
    return summed / len(train)


def _measure(split: Batches, batch_size: int, dtype: torch.dtype) -> tuple[float, float]:
    """Mean loss and top-1 accuracy."""
    logits = _predict(split, batch_size, dtype)
    return cross_entropy(logits, split.targets).item(), accuracy(logits, split.targets)


@torch.no_grad()
def _predict(split: Batches, batch_size: int, dtype: torch.dtype) -> Tensor:
    """Logits of all images, N x K fp32."""
    split.model.eval()
    with torch.autocast(split.targets.device.type, dtype, enabled=dtype != torch.float32):
        logits = [split.logits(rows) for rows in torch.arange(len(split)).split(batch_size)]
    return torch.cat(logits).float()
