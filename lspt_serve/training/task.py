"""From a task's images to a bundle: the whole of `lspt train`."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from lspt_serve.bundle import BackboneRef, Bundle, MethodRef, Metrics
from lspt_serve.models import Backbone, PromptedViT, create_prompted_vit
from lspt_serve.training.calibration import calibration_error, fit_temperature, scale_head
from lspt_serve.training.data import Dataset
from lspt_serve.training.init import Init, initialise_prompts
from lspt_serve.training.settings import TrainSettings, pick_device
from lspt_serve.training.trainer import Epoch, accuracy, fit, predict

__all__ = ["create_bundle", "train_task"]


def train_task(
    backbone: Backbone,
    dataset: Dataset,
    *,
    name: str,
    method: str = "lspt",
    options: dict[str, Any] | None = None,
    pool: str | None = None,
    init: Init = "uniform",
    settings: TrainSettings = TrainSettings(),  # noqa: B008  frozen
    version: int = 1,
    license: str | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Bundle:
    """Tune a task on a frozen backbone; test is looked at once, at the end.

    The model is folded before it is measured: what is measured is what is served. A temperature
    fitted on val is folded into the head, so that scores are as often right as they say.

    Args:
        init: where the learned prompts start, see lspt_serve/training/init.py.

    Raises:
        MethodError: unknown method, option, pool or init, or an init without prompts.
        BundleError: a name that a bundle may not have.
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
    served = model.fold()
    val, val_targets = predict(served, dataset.val, preprocess)
    test, test_targets = predict(served, dataset.test, preprocess)
    temperature = fit_temperature(val, val_targets)
    scale_head(served.head, temperature)
    metrics = Metrics(
        val_accuracy=accuracy(val, val_targets),
        test_accuracy=accuracy(test, test_targets),
        temperature=temperature,
        test_ece=calibration_error(test / temperature, test_targets),
        test_ece_uncalibrated=calibration_error(test, test_targets),
        best_epoch=best.number,
        seed=settings.seed,
        split=dataset.sizes,
        train_s=round(time.perf_counter() - started, 2),
    )
    return create_bundle(
        served,
        backbone,
        trained_as=_method_ref(model) if served is not model else None,
        preprocess=preprocess,
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
