"""From a task's images to a bundle: the whole of `lspt train`."""

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lspt_serve.bundle import Bundle
from lspt_serve.errors import first_line
from lspt_serve.manifest import BackboneRef, MethodRef, Metrics, Rounding
from lspt_serve.models import Backbone, PromptedViT, check_bundled, create_prompted_vit
from lspt_serve.preprocess import Preprocess
from lspt_serve.rounding import Dtype, round_tensors
from lspt_serve.training.calibration import calibration_error, fit_temperature, scale_head
from lspt_serve.training.data import Dataset
from lspt_serve.training.distributed import rank
from lspt_serve.training.init import LR_SCALES, Init, initialise_prompts, pick_init
from lspt_serve.training.memory import enough_memory
from lspt_serve.training.report import Record, write_report
from lspt_serve.training.run import Run, describe_run, open_run
from lspt_serve.training.settings import TrainSettings, pick_device
from lspt_serve.training.trainer import Epoch, accuracy, fit, predict

__all__ = ["Tuned", "create_bundle", "leave_report", "measure", "train_task", "tune"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """A model after training; `train_s` is what that took, interruptions left out.

    `init` and `settings` are what they were, where they were left to us.
    """

    model: PromptedViT
    preprocess: Preprocess
    best: Epoch  # whose tensors the model holds
    epochs: list[Epoch]
    train_s: float
    init: Init
    settings: TrainSettings


@enough_memory()
def tune(
    backbone: Backbone,
    dataset: Dataset,
    *,
    method: str = "lspt",
    options: dict[str, Any] | None = None,
    pool: str | None = None,
    init: Init = "auto",
    settings: TrainSettings = TrainSettings(),  # noqa: B008  frozen
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    run: Path | None = None,
    restart: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> Tuned:
    """Train the tensors of a task on a frozen backbone; test is not looked at.

    The method `full` trains a copy of the backbone; use a lower lr for it, 1e-5 to 1e-4.

    Args:
        init: where the learned prompts start, see lspt_serve/training/init.py.
        run: a folder for state and logs; called again, an interrupted run goes on from there. The
            state stays until `finish_run`, for when the result is in place. None writes nothing.
        restart: begin anew even so.
        on_note: called with what a person should know of the run.

    Raises:
        MethodError: unknown method, option, pool or init, or an init without prompts.
        DataError: a setting out of range, or training that diverged.
        OutOfMemoryError: too little GPU memory.
        OutputError, RunError: see `open_run`.
    """
    started = time.perf_counter()
    torch.manual_seed(settings.seed)  # prompts, coder, head and prompt dropout
    model = create_prompted_vit(
        backbone, method, num_classes=len(dataset.labels), pool=pool, options=options
    )
    model.to(pick_device(settings.device))
    preprocess = replace(backbone.preprocess, crop_pct=dataset.crop_pct)
    init = pick_init(model.method, init)
    if settings.prompt_lr_scale is None:
        settings = replace(settings, prompt_lr_scale=LR_SCALES[init])
    if settings.warmup_epochs >= settings.epochs and not rank():
        on_note(
            f"all {settings.epochs} epoch(s) are within the warm-up of {settings.warmup_epochs:g}: "
            "the learning rate never falls from its peak; lower warmup_epochs"
        )
    opened: AbstractContextManager[Run | None] = nullcontext()
    if run is not None:
        config = describe_run(model, backbone, dataset, preprocess, init=init, settings=settings)
        opened = open_run(run, config, restart=restart, on_note=on_note)
    epochs: list[Epoch] = []

    def keep_epoch(epoch: Epoch) -> None:
        epochs.append(epoch)
        on_epoch(epoch)

    with opened as folder:
        initialise_prompts(model, dataset.train, preprocess, init, seed=settings.seed)
        if rank():
            torch.manual_seed(settings.seed + rank())  # processes drop prompts each in its own way
        best = fit(model, dataset, preprocess, settings, on_epoch=keep_epoch, run=folder)
    train_s = time.perf_counter() - started
    if folder is not None:
        epochs, train_s = folder.earlier + epochs, folder.earlier_s + train_s
    return Tuned(model, preprocess, best, epochs, train_s, init, settings)


def train_task(
    backbone: Backbone,
    dataset: Dataset,
    *,
    name: str,
    settings: TrainSettings = TrainSettings(),  # noqa: B008  frozen
    dtype: Dtype = "float32",
    version: int = 1,
    license: str | None = None,
    run: Path | None = None,
    on_bundle: Callable[[Bundle], None] = lambda bundle: None,
    **tuning: Any,
) -> Bundle:
    """Tune a task and make its bundle; test is looked at once, at the end.

    The model is folded before it is measured: what is measured is what is served.

    Args:
        dtype: what the bundle's tensors are stored in.
        run: as in `tune`, and a report is left in it. A report that cannot be made is a warning in
            the log.
        on_bundle: called with the bundle before the report is begun, to save it.
        tuning: the other arguments of `tune`, and its errors.

    Raises:
        MethodError: the method `full`, of which no bundle can be made.
        BundleError: a name that a bundle may not have, or tensors that `dtype` does not hold.
    """
    check_bundled(tuning.get("method", ""))
    tuned = tune(backbone, dataset, settings=settings, run=run, **tuning)
    served = tuned.model.fold()
    metrics, test = measure(served, tuned, dataset, seed=settings.seed, dtype=dtype)
    bundle = create_bundle(
        served,
        backbone,
        trained_as=_method_ref(tuned.model) if served is not tuned.model else None,
        preprocess=tuned.preprocess,
        dtype=dtype,
        name=name,
        version=version,
        labels=dataset.labels,
        metrics=metrics,
        license=license,
    )
    on_bundle(bundle)
    leave_report(run, served, bundle.manifest, dataset, tuned.epochs, logits=test)
    return bundle


def leave_report(
    run: Path | None,
    model: PromptedViT,
    record: Record,
    dataset: Dataset,
    history: list[Epoch],
    *,
    logits: Tensor,
) -> None:
    """`write_report` into a run's folder, if there is one; a failure is a warning in the log."""
    if run is None or rank():
        return
    report = run / "report"
    try:
        write_report(report, model, record, dataset, history, logits=logits)
    except (Exception, KeyboardInterrupt) as error:  # what was trained is in place whatever comes
        shutil.rmtree(report, ignore_errors=True)  # an earlier run's
        logger.warning("%s: no report was written: %s", run, first_line(error))


def measure(
    model: PromptedViT, tuned: Tuned, dataset: Dataset, *, seed: int, dtype: Dtype = "float32"
) -> tuple[Metrics, Tensor]:
    """Calibrate a model, round its tensors to `dtype`, both in place, and measure what results.

    A temperature fitted on val is folded into the head, so that scores are as often right as they
    say. It is computed in fp32 whatever `dtype` is.

    Args:
        model: that of `tuned`, folded.

    Returns:
        The metrics, and the logits of test as the model now gives them, N x K.

    Raises:
        BundleError: tensors that `dtype` does not hold.
    """
    val, val_targets = predict(model, dataset.val, tuned.preprocess)
    temperature = fit_temperature(val, val_targets)
    scale_head(model.head, temperature)
    test, test_targets = predict(model, dataset.test, tuned.preprocess)
    rounding = None
    if dtype != "float32":
        exact = test
        rounded = round_tensors(_arrays(model), dtype)
        model.load_task_tensors({name: torch.from_numpy(t) for name, t in rounded.items()})
        val, _ = predict(model, dataset.val, tuned.preprocess)
        test, _ = predict(model, dataset.test, tuned.preprocess)
        lost = accuracy(exact, test_targets) - accuracy(test, test_targets)
        changed = (exact.argmax(dim=-1) != test.argmax(dim=-1)).sum()
        rounding = Rounding(points_lost=round(100 * lost, 4), answers_changed=int(changed))
    metrics = Metrics(
        val_accuracy=accuracy(val, val_targets),
        test_accuracy=accuracy(test, test_targets),
        temperature=temperature,
        test_ece=calibration_error(test, test_targets),
        test_ece_uncalibrated=calibration_error(test * temperature, test_targets),
        rounding=rounding,
        best_epoch=tuned.best.number,
        seed=seed,
        split=dataset.sizes,
        train_s=round(tuned.train_s, 2),
    )
    return metrics, test


def create_bundle(model: PromptedViT, backbone: Backbone, **fields: Any) -> Bundle:
    """The bundle of a model's task; `fields` are those of a Manifest that the model does not know.

    Raises:
        MethodError: the method `full`, of which no bundle can be made.
        BundleError: a field that the format does not allow; it is named.
    """
    check_bundled(model.method.name)
    known: dict[str, Any] = {
        "method": _method_ref(model),
        "backbone": BackboneRef(source=backbone.source, sha256=backbone.sha256),
        "preprocess": backbone.preprocess,
        "pool": model.pool,
    }
    return Bundle.create(_arrays(model), **known | fields)


def _arrays(model: PromptedViT) -> dict[str, NDArray[np.float32]]:
    """Copies: the model's own memory would change as it is trained on."""
    tensors = model.task_tensors()
    return {name: t.detach().float().cpu().numpy().copy() for name, t in tensors.items()}


def _method_ref(model: PromptedViT) -> MethodRef:
    return MethodRef(name=model.method.name, options=asdict(model.method.settings))
