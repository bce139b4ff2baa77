"""The training loop: AdamW, cosine with warm-up, the best epoch chosen on val."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lspt_serve.errors import DataError
from lspt_serve.models import PromptedViT
from lspt_serve.preprocess import Preprocess
from lspt_serve.training.batches import Batches
from lspt_serve.training.data import Dataset, Split
from lspt_serve.training.distributed import copy_from_first
from lspt_serve.training.memory import enough_memory
from lspt_serve.training.progress import Epoch, Progress
from lspt_serve.training.run import Run
from lspt_serve.training.settings import TrainSettings, pick_precision
from lspt_serve.training.steps import Steps, compile_forward

__all__ = ["Epoch", "accuracy", "fit", "predict"]


def fit(
    model: PromptedViT,
    dataset: Dataset,
    preprocess: Preprocess,
    settings: TrainSettings,
    *,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    run: Run | None = None,
) -> Epoch:
    """Train the task's tensors in place; they end as they were after the epoch to keep.

    On a CPU the same seed, settings and thread count give the same tensors, bit for bit, in one go
    or interrupted. Processes that torchrun started train together, see distributed.py; all end with
    the same tensors.

    Args:
        run: keeps the state after every epoch, and has that of an unfinished run to go on from.

    Returns:
        The epoch that was kept: the best on val, or the last that did not diverge.

    Raises:
        DataError: a loss of training that is not finite, or no epoch with a finite loss on val.
    """
    device, embed_dim = next(model.parameters()).device, model.backbone.embed_dim
    dtype = pick_precision(settings.precision, device, embed_dim)
    forward = compile_forward(model) if settings.compile else None
    varied = settings.augment != "none" or settings.mixup > 0
    copy_from_first(model.task_tensors().values())
    train = Batches(dataset.train, preprocess, model, varied=varied, forward=forward)
    val = Batches(dataset.val, preprocess, model, forward=forward)
    steps = Steps(train, settings, dtype)
    progress = Progress(model, steps, settings)
    if run is not None:
        run.restore(progress)
    while not progress.done:
        number = len(progress.epochs) + 1
        started, data_s = time.perf_counter(), -train.data_s
        loss = steps.run_epoch(number)
        data_s += train.data_s
        step_s = time.perf_counter() - started - data_s
        measured = _measure(val, settings.batch_size, dtype)
        epoch = Epoch(number, loss, *measured, data_s=data_s, step_s=step_s, lr=steps.lr)
        progress.add(epoch)
        if run is not None:
            run.save(progress)
        on_epoch(epoch)
    if progress.kept is None:
        raise DataError(
            f"training diverged: no epoch has a finite loss on val; lower lr {settings.lr}"
        )
    model.load_task_tensors(progress.kept_tensors)
    return progress.kept


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Top-1 accuracy in [0, 1]; N x K, N."""
    return (logits.argmax(dim=-1) == targets).float().mean().item()


@enough_memory()
def predict(model: PromptedViT, split: Split, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Logits (N x K) and targets (N) of a split, in fp32; raises OutOfMemoryError."""
    batches = Batches(split, preprocess, model, once=True)
    return _predict(batches, 64, torch.float32), batches.targets.to(batches.device)


def _measure(split: Batches, batch_size: int, dtype: torch.dtype) -> tuple[float, float]:
    """Mean loss and top-1 accuracy; those of process 0, that all decide alike."""
    logits = _predict(split, batch_size, dtype)
    targets = split.targets.to(logits.device)
    loss = cross_entropy(logits, targets)
    measured = torch.stack([loss, loss.new_tensor(accuracy(logits, targets))])
    copy_from_first([measured])
    val_loss, val_accuracy = measured.tolist()
    return val_loss, val_accuracy


def _predict(split: Batches, batch_size: int, dtype: torch.dtype) -> Tensor:
    """Logits of all images, N x K fp32."""
    split.model.eval()
    with torch.autocast(split.device.type, dtype, enabled=dtype != torch.float32):
        return split.all_logits(batch_size)
