"""From a task's images to a bundle: the whole of `lspt train`."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from lspt_serve.bundle import BackboneRef, Bundle, MethodRef, Metrics
from lspt_serve.models import Backbone, PromptedViT, create_prompted_vit
from lspt_serve.preprocess import Preprocess
from lspt_serve.training.calibration import calibration_error, fit_temperature, scale_head
from lspt_serve.training.data import Dataset
from lspt_serve.training.init import Init, initialise_prompts
from lspt_serve.training.settings import TrainSettings, pick_device
from lspt_serve.training.trainer import Epoch, accuracy, fit, predict

__all__ = ["Tuned", "create_bundle", "train_task", "tune"]


@dataclass(frozen=True)
class Tuned:
    """A model after training; `train_s` is what that took."""

    model: PromptedViT
    preprocess: Preprocess
    best: Epoch  # whose tensors the model holds
    train_s: float


def tune(
    backbone: Backbone,
    dataset: Dataset,
    *,
    method: str = "lspt",
    options: dict[str, Any] | None = None,
    pool: str | None = None,
    init: Init = "uniform",
    settings: TrainSettings = TrainSettings(),  # noqa: B008  frozen
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Tuned:
    """Train the tensors of a task on a frozen backbone; test is not looked at.

    Args:
        init: where the learned prompts start, see lspt_serve/training/init.py.

    Raises:
        MethodError: unknown method, option, pool or init, or an init without prompts.
        DataError: a setting out of range, or training that diverged.
    """
    started = time.perf_counter()
    torch.manual_seed(settings.seed)  # prompts, coder, head and prompt dropout
    model = create_prompted_vit(
        backbone, method, num_classes=len(dataset.labels), pool=pool, **(options or {})
    )
    model.to(pick_device(settings.device))
    preprocess = replace(backbone.preprocess, crop_pct=dataset.crop_pct)
    initialise_prompts(model, dataset.train, preprocess, init, seed=settings.seed)
    best = fit(model, dataset, preprocess, settings, on_epoch=on_epoch)
    return Tuned(model, preprocess, best, train_s=time.perf_counter() - started)


def train_task(
    backbone: Backbone,
    dataset: Dataset,
    *,
    name: str,
    settings: TrainSettings = TrainSettings(),  # noqa: B008  frozen
    version: int = 1,
    license: str | None = None,
    **tuning: Any,
) -> Bundle:
    """Tune a task and make its bundle; test is looked at once, at the end.

    The model is folded before it is measured: what is measured is what is served. A temperature
    fitted on val is folded into the head, so that scores are as often right as they say.

    Args:
        tuning: the other arguments of `tune`, and its errors.

    Raises:
        BundleError: a name that a bundle may not have.
    """
    tuned = tune(backbone, dataset, settings=settings, **tuning)
    served = tuned.model.fold()
    val, val_targets = predict(served, dataset.val, tuned.preprocess)
    test, test_targets = predict(served, dataset.test, tuned.preprocess)
    temperature = fit_temperature(val, val_targets)
    scale_head(served.head, temperature)
    metrics = Metrics(
        val_accuracy=accuracy(val, val_targets),
        test_accuracy=accuracy(test, test_targets),
        temperature=temperature,
        test_ece=calibration_error(test / temperature, test_targets),
        test_ece_uncalibrated=calibration_error(test, test_targets),
        best_epoch=tuned.best.number,
        seed=settings.seed,
        split=dataset.sizes,
        train_s=round(tuned.train_s, 2),
    )
    return create_bundle(
        served,
        backbone,
        trained_as=_method_ref(tuned.model) if served is not tuned.model else None,
        preprocess=tuned.preprocess,
        name=name,
        version=version,
        labels=dataset.labels,
        metrics=metrics,
        license=license,
    )


def create_bundle(model: PromptedViT, backbone: Backbone, **fields: Any) -> Bundle:
    """The bundle of a model's task; `fields` are those of a Manifest that the model does not know.

    Raises:
        BundleError: a field that the format does not allow; it is named.
    """
    tensors = {k: v.detach().float().cpu().numpy() for k, v in model.task_tensors().items()}
    known = {
        "method": _method_ref(model),
        "backbone": BackboneRef(source=backbone.source, sha256=backbone.sha256),
        "preprocess": backbone.preprocess,
        "pool": model.pool,
    }
    return Bundle.create(tensors, **known | fields)


def _method_ref(model: PromptedViT) -> MethodRef:
    return MethodRef(name=model.method.name, options=asdict(model.method.settings))
