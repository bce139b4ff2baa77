"""What a trial is and what a final run is: who sees which split, and when.

vtab, as VTAB-1K is measured: search on train and val, then train anew on both with what was
chosen, for every seed, and look at test once. Nothing is held out then to choose an epoch by, so
the last one is kept, in the search too (ours). plain: the same without val in train, and each
training keeps the epoch that is best on val, unless `keep` says otherwise.
"""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from lspt_serve import __version__
from lspt_serve.errors import DataError, MethodError
from lspt_serve.models import Backbone
from lspt_serve.results import Run
from lspt_serve.training.data import Dataset
from lspt_serve.training.settings import TrainSettings, pick_device
from lspt_serve.training.sweep.config import Protocol
from lspt_serve.training.sweep.plan import Params, Plan, split_params, train_settings
from lspt_serve.training.task import Tuned, tune
from lspt_serve.training.trainer import Epoch, accuracy, predict

__all__ = ["Job", "OnEpoch", "Trial", "fingerprint", "run_final", "run_trial"]

OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: an entry on a task, with hyperparameters that a search proposes or chose.

    What the plan itself sets goes before `params`: those may be of the entry that it copies.
    """

    task: str
    plan: Plan
    params: Params
    protocol: Protocol
    seed: int

    @property
    def train(self) -> dict[str, Any]:
        searched, _ = split_params(self.params)
        keep = {"keep": "last"} if self.protocol == "vtab" else {}
        return searched | self.plan.train | keep

    @property
    def settings(self) -> TrainSettings:
        """Raises DataError for values that do not go together."""
        return train_settings(self.train, seed=self.seed)

    @property
    def options(self) -> dict[str, Any]:
        _, options = split_params(self.params)
        return options | self.plan.options


@dataclass(frozen=True)
class Trial:
    """What a trial gave on val; `error` where it diverged or its values do not go together."""

    val: float | None = None
    val_loss: float | None = None
    error: str | None = None


def run_trial(job: Job, backbone: Backbone, dataset: Dataset, on_epoch: OnEpoch) -> Trial:
    """Train on train, measure on val; test is not looked at."""
    try:
        tuned = _tune(job, backbone, dataset, on_epoch)
    except (DataError, MethodError) as error:
        return Trial(error=str(error))
    logits, targets = predict(tuned.model.fold(), dataset.val, tuned.preprocess)
    return Trial(accuracy(logits, targets), cross_entropy(logits, targets).item())


def run_final(
    job: Job,
    backbone: Backbone,
    dataset: Dataset,
    on_epoch: OnEpoch,
    *,
    val: float | None,
    trials: int | None,
    error: str | None,
) -> Run:
    """Train with what was chosen, and look at test once; the model is folded first, as it serves.

    Args:
        val, trials: of the search, for the record.
        error: why the search has chosen nothing; then nothing is trained.
    """
    tuned = None
    if error is None:
        try:
            whole = dataset.merged() if job.protocol == "vtab" else dataset
            tuned = _tune(job, backbone, whole, on_epoch)
        except (DataError, MethodError) as mistake:
            error = str(mistake)
    measured = _measure(job, tuned, dataset) if tuned else {"train": job.train}
    return Run(
        task=job.task,
        name=job.plan.name,
        method=job.plan.method,
        options=job.options,
        pool=job.plan.pool,
        init=tuned.init if tuned else job.plan.init,
        image_size=backbone.preprocess.img_size,
        crop_pct=dataset.crop_pct,
        mean=backbone.preprocess.mean,
        std=backbone.preprocess.std,
        protocol=job.protocol,
        trials=trials,
        seed=job.seed,
        val=val,
        error=error,
        backbone=backbone.sha256[:12],
        lspt_serve=__version__,
        torch=torch.__version__,
        **measured,
    )


def _tune(job: Job, backbone: Backbone, dataset: Dataset, on_epoch: OnEpoch) -> Tuned:
    return tune(
        backbone,
        dataset,
        method=job.plan.method,
        options=job.options,
        pool=job.plan.pool,
        init=job.plan.init,
        settings=job.settings,
        on_epoch=on_epoch,
    )


def _measure(job: Job, tuned: Tuned, dataset: Dataset) -> dict[str, Any]:
    served = tuned.model.fold()
    return {
        "train": {name: value for name, value in asdict(tuned.settings).items() if name != "seed"},
        "test": accuracy(*predict(served, dataset.test, tuned.preprocess)),
        "task_bytes": sum(4 * tensor.numel() for tensor in served.task_tensors().values()),
        "train_s": round(tuned.train_s, 2),
        "machine": _machine(job.settings),
    }


def _machine(settings: TrainSettings) -> str:
    device = pick_device(settings.device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} thread(s)"


def _cpu_name() -> str:
    """As Linux calls it; elsewhere Python's word for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(models), platform.processor() or platform.machine())


def fingerprint(dataset: Dataset) -> str:
    """12 digits that other images, labels or splits change."""
    digest = hashlib.sha256("\n".join(dataset.labels).encode("utf-8", "surrogatepass"))
    for split in (dataset.train, dataset.val, dataset.test):
        digest.update(np.ascontiguousarray(split.targets).data)
        digest.update(np.ascontiguousarray(split.images).data)
    return digest.hexdigest()[:12]
