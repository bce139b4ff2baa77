"""What changes from epoch to epoch: all that an interrupted run needs to go on exactly."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lspt_serve.models import PromptedViT
from lspt_serve.training.distributed import gather, rank
from lspt_serve.training.settings import TrainSettings
from lspt_serve.training.steps import Steps

__all__ = ["Epoch", "Progress"]


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave; `number` starts at 1, accuracies are in [0, 1].

    Of the time on train, `data_s` was spent waiting for inputs, `step_s` on all else.
    """

    number: int
    loss: float
    val_loss: float
    val_accuracy: float
    data_s: float = 0.0
    step_s: float = 0.0
    lr: float = 0.0  # of its last step

    def better_than(self, other: "Epoch | None") -> bool:
        """Higher accuracy on val, of two equal ones the lower loss; never one that diverged."""
        if not math.isfinite(self.val_loss):
            return False
        return other is None or (self.val_accuracy, -self.val_loss) > (
            other.val_accuracy,
            -other.val_loss,
        )


class Progress:
    """The epochs so far, the tensors of the one to keep, and where model, steps and chance stand.

    Chance are torch's own generators, from which prompts are dropped: those of every process.
    """

    def __init__(self, model: PromptedViT, steps: Steps, settings: TrainSettings) -> None:
        self.model = model
        self.steps = steps
        self.settings = settings
        self.epochs: list[Epoch] = []
        self.best: Epoch | None = None  # on val
        self.kept: Epoch | None = None
        self.kept_tensors = model.task_tensors()

    @property
    def done(self) -> bool:
        """All epochs, or as many without a better one as `early_stop` says."""
        number, early_stop = len(self.epochs), self.settings.early_stop
        waited = number - (self.best.number if self.best else 0)
        return number >= self.settings.epochs or (early_stop is not None and waited >= early_stop)

    def add(self, epoch: Epoch) -> None:
        """Count an epoch that has just ended; keep its tensors if it is the one to keep."""
        self.epochs.append(epoch)
        if epoch.better_than(self.best):
            self.best = epoch
        if epoch.better_than(None if self.settings.keep == "last" else self.kept):
            self.kept = epoch
            self.kept_tensors = {name: t.clone() for name, t in self.model.task_tensors().items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, for torch.save; not copies. Processes make it together."""
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": self.best and asdict(self.best),
            "kept": self.kept and asdict(self.kept),
            "kept_tensors": self.kept_tensors,
            "tensors": self.model.task_tensors(),
            "steps": self.steps.state_dict(),
            "chance": gather(self._chance()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state_dict` stood, of a model and steps made as those were."""
        self.model.load_task_tensors(state["tensors"])
        self.steps.load_state_dict(state["steps"])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.best = Epoch(**state["best"]) if state["best"] else None
        self.kept = Epoch(**state["kept"]) if state["kept"] else None
        self.kept_tensors = state["kept_tensors"]
        chance = state["chance"][rank()]
        torch.set_rng_state(chance["cpu"])
        if self._device.type == "cuda" and chance["cuda"] is not None:
            torch.cuda.set_rng_state(chance["cuda"], self._device)

    def _chance(self) -> dict[str, Any]:
        on_gpu = self._device.type == "cuda"
        cuda = torch.cuda.get_rng_state(self._device) if on_gpu else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device
