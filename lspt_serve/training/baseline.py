"""Full fine-tuning as a baseline: what prompts are compared with, and no bundle.

A folder of `baseline.json`, which says what was trained and how well it does, and
`model.safetensors`, the weights as timm keeps them; `--backbone` reads that file.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lspt_serve.baseline import BaselineRecord
from lspt_serve.bundle import BASELINE
from lspt_serve.errors import MethodError
from lspt_serve.files import atomic_folder
from lspt_serve.manifest import BackboneRef, MethodRef
from lspt_serve.models import Backbone, PromptedViT, create_prompted_vit
from lspt_serve.models.timm_file import describe_in_timm, save_in_timm
from lspt_serve.training.data import Dataset
from lspt_serve.training.settings import TrainSettings
from lspt_serve.training.task import leave_report, measure, tune

__all__ = ["Baseline", "check_baseline", "save_baseline", "train_baseline"]

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Baseline:
    """A fully fine-tuned model; `architecture` is timm's, see describe_in_timm."""

    record: BaselineRecord
    model: PromptedViT
    architecture: dict[str, Any]


def check_baseline(model: PromptedViT) -> dict[str, Any]:
    """What its weights will be kept as, trained or not yet: timm's keyword arguments.

    Raises:
        MethodError: they could not be kept.
    """
    if architecture := describe_in_timm(model):
        return architecture
    raise MethodError(
        f"the weights could not be kept: with pool {model.pool!r} no VisionTransformer of timm "
        "answers as this backbone does; give pool cls or patch_mean, or another backbone"
    )


def train_baseline(
    backbone: Backbone,
    dataset: Dataset,
    *,
    name: str,
    settings: TrainSettings = TrainSettings(),  # noqa: B008  frozen
    run: Path | None = None,
    on_baseline: Callable[[Baseline], None] = lambda baseline: None,
    **tuning: Any,
) -> Baseline:
    """Train a copy of the backbone and a head; measured and calibrated as a bundle is.

    Args:
        run: as in `tune`, and a report is left in it, as by `train_task`.
        on_baseline: called with the baseline before the report is begun, to save it.
        tuning: the other arguments of `tune`, and its errors.

    Raises:
        MethodError: see `check_baseline`.
    """
    classes, pool = len(dataset.labels), tuning.get("pool")
    architecture = check_baseline(
        create_prompted_vit(backbone, "full", num_classes=classes, pool=pool)
    )
    tuned = tune(backbone, dataset, method="full", settings=settings, run=run, **tuning)
    model = tuned.model
    metrics, test = measure(model, tuned, dataset, seed=settings.seed)
    record = BaselineRecord(
        name=name,
        labels=dataset.labels,
        method=MethodRef(name=model.method.name, options=asdict(model.method.settings)),
        backbone=BackboneRef(source=backbone.source, sha256=backbone.sha256),
        preprocess=tuned.preprocess,
        pool=model.pool,
        num_bytes=sum(tensor.nbytes for tensor in model.task_tensors().values()),
        weights=WEIGHTS,
        metrics=metrics,
    )
    baseline = Baseline(record, model, architecture)
    on_baseline(baseline)
    leave_report(run, model, record, dataset, tuned.epochs, logits=test)
    return baseline


def save_baseline(baseline: Baseline, folder: Path) -> None:
    """Write a baseline whole or not at all; an existing folder is replaced.

    Raises:
        OutputError: the folder cannot be written, for example a full disk.
    """
    record = baseline.record
    with atomic_folder(folder) as temporary:
        path = temporary / WEIGHTS
        save_in_timm(baseline.model, path, record.preprocess, baseline.architecture)
        (temporary / BASELINE).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
