"""The steps of an epoch: what is drawn, the loss, the gradients of micro-batches and processes.

B images in a global batch, K classes.
"""

import math
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import get_total_norm

from lspt_serve.errors import CompileError, DataError, first_line, name_some
from lspt_serve.models import PromptedViT
from lspt_serve.training.augment import draw_changes
from lspt_serve.training.batches import Batches
from lspt_serve.training.distributed import add_up, rank, sum_gradients, world_size
from lspt_serve.training.picks import Picks, draw_order, mix
from lspt_serve.training.prefetch import send
from lspt_serve.training.settings import TrainSettings, learning_rate

__all__ = ["Steps", "compile_forward", "mixed_loss"]


class Steps:
    """AdamW over batches of train.

    Cut into micro-batches or over processes, a step has the gradients of the whole batch up to
    rounding, except for what is drawn inside the model: prompt dropout and the latents of v2apt.
    (Where a gradient is rounding alone, as that of some Fourier prompts, AdamW makes steps of it.)

    Args:
        dtype: of autocast; fp16 scales the loss, and leaves out steps whose gradients overflow.
    """

    def __init__(self, train: Batches, settings: TrainSettings, dtype: torch.dtype) -> None:
        self.train, self.settings, self.dtype = train, settings, dtype
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.parameters = [p for p in train.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            _param_groups(train.model, settings),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(train.device.type, enabled=dtype == torch.float16)
        self.per_epoch = math.ceil(len(train) / settings.batch_size)

    def run_epoch(self, number: int) -> float:
        """Epoch 1, 2, ...; returns the mean loss per image.

        Raises:
            DataError: a loss or gradient that is not finite; the step and its images are named.
        """
        self.train.model.train()
        order = draw_order(self.train.targets, self.settings.sampling, self.generator)
        batches = order.tensor_split(self.per_epoch)
        shares = [self._share(self._draw(rows)) for rows in batches]
        loaded = self.train.prefetch(chain.from_iterable(shares))
        first = (number - 1) * self.per_epoch
        done = [
            self._step(step, islice(loaded, len(share)), len(rows))
            for step, (share, rows) in enumerate(zip(shares, batches, strict=True), start=first)
        ]
        summed, largest = torch.stack(done, dim=1)  # each of all steps
        losses: list[float] = add_up(summed).tolist()  # the only wait for a GPU
        found = zip(losses, largest.tolist(), strict=True)
        for step, (loss, gradient) in enumerate(found, start=1):
            if not (math.isfinite(loss) and math.isfinite(gradient)):
                what = f"a gradient of {gradient}" if math.isfinite(loss) else f"loss {loss}"
                names = self.train.split.names_of(batches[step - 1].tolist())
                raise DataError(
                    f"training diverged: {what} in epoch {number}, step {step} of {len(batches)}; "
                    f"lower lr {self.settings.lr}, or look at the images of the step: "
                    f"{name_some(names, limit=64)}"
                )
        return sum(x * len(rows) for x, rows in zip(losses, batches, strict=True)) / len(order)

    @property
    def lr(self) -> float:
        """The learning rate of the last step, that of the head."""
        rate: float = self.optimizer.param_groups[-1]["lr"]
        return rate

    def state_dict(self) -> dict[str, Any]:
        """What a step changes outside of the model; not copies."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state_dict` stood, of the same model and settings."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])

    def _rate(self, step: int) -> float:
        total = self.per_epoch * self.settings.epochs
        warmup = round(self.per_epoch * self.settings.warmup_epochs)
        return learning_rate(step, total=total, warmup=warmup, base=self.settings.lr)

    def _draw(self, rows: Tensor) -> Picks:
        """Everything that is random in a batch."""
        changes = draw_changes(
            len(rows), self.train.margin, self.train.img_size, self.settings.augment, self.generator
        )
        picks = Picks(rows, changes)
        return mix(picks, self.settings.mixup, self.generator) if self.settings.mixup else picks

    def _share(self, batch: Picks) -> list[Picks]:
        """The micro-batches of this process, those that have images."""
        mine = batch.cut(world_size())[rank()]
        return [picks for picks in mine.cut(self.settings.accumulate) if len(picks)]

    def _step(self, step: int, share: Iterable[tuple[Picks, Tensor]], size: int) -> Tensor:
        """Step 0, 1, ... of all epochs, of `size` images in all processes.

        Returns:
            What this process's share, with its inputs, adds to the mean loss; and the largest
            gradient.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step) * group["lr_scale"]
        self.optimizer.zero_grad()
        summed = torch.zeros((), device=self.train.device)
        for picks, inputs in share:
            loss = self._loss(picks, inputs) * (len(picks) / size)
            self.scaler.scale(loss).backward()
            summed += loss.detach()
        sum_gradients(self.parameters)
        largest = self._largest_gradient()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack([summed, largest])

    def _largest_gradient(self) -> Tensor:
        """Its absolute value; 0 in fp16, where the scaler leaves out steps that overflow."""
        if self.scaler.is_enabled():
            return torch.zeros((), device=self.train.device)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return get_total_norm(gradients, math.inf)

    def _loss(self, picks: Picks, inputs: Tensor) -> Tensor:
        """Mean over the picks, with the method's own term."""
        low = self.dtype != torch.float32
        with torch.autocast(self.train.device.type, self.dtype, enabled=low):
            logits = self.train.logits(inputs)
        loss = mixed_loss(logits.float(), picks, self.train.targets, self.settings.label_smoothing)
        extra = self.train.model.method.regularisation()
        return loss if extra is None else loss + extra


def _param_groups(model: PromptedViT, settings: TrainSettings) -> list[dict[str, Any]]:
    """The prompts, where there are any, and all else that is trained."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    prompts = trained.pop("method.prompts", None)
    groups = [{"params": list(trained.values()), "lr_scale": 1.0}]
    if prompts is None:
        return groups
    return [{"params": [prompts], "lr_scale": settings.prompt_lr_scale or 1.0}, *groups]


def mixed_loss(logits: Tensor, picks: Picks, targets: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy (B x K) with the picks' own targets, and with their partners', weighed.

    Args:
        targets: of the whole split, on the CPU.
    """
    wanted = send(targets[picks.rows], logits.device)
    own = cross_entropy(logits, wanted, label_smoothing=label_smoothing)
    if picks.partners is None:
        return own
    other = mixed_loss(logits, picks.partners, targets, label_smoothing)
    return picks.weight * own + (1 - picks.weight) * other


def compile_forward(model: PromptedViT) -> Callable[[Tensor], Tensor]:
    """torch.compile for batches of any size: a graph for training, one for val.

    A batch of one image has another graph. What the model draws is drawn otherwise than without.
    Calls raise CompileError where compiling fails, for example without a C++ compiler.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

    compiled = torch.compile(model, dynamic=True)

    def forward(images: Tensor) -> Tensor:
        try:
            logits: Tensor = compiled(images)
        except TorchDynamoException as error:
            raise CompileError(
                f"torch.compile failed: {first_line(error)}; train without compile, or install "
                "what it needs"
            ) from error
        return logits

    return forward
