"""What the metrics of a bundle are measured on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from toys import COLOURS, coloured_dataset

from lspt_serve.bundle import Bundle
from lspt_serve.errors import BundleError, OutOfMemoryError
from lspt_serve.export import create_model
from lspt_serve.manifest import Metrics
from lspt_serve.models import Backbone, create_prompted_vit
from lspt_serve.preprocess import normalise
from lspt_serve.training import (
    Dataset,
    Split,
    TrainSettings,
    calibration,
    create_bundle,
    fit,
    train_task,
)

LABELS = list(COLOURS)
SHORT = TrainSettings(epochs=1, batch_size=8, warmup_epochs=0, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def colours() -> Dataset:
    return coloured_dataset(4, 5, 7)


def metrics_of(bundle: Bundle) -> Metrics:
    assert bundle.manifest.metrics is not None
    return bundle.manifest.metrics


def logits_by_hand(backbone: Backbone, bundle: Bundle, split: Split) -> Tensor:
    images = torch.from_numpy(normalise(split.images, backbone.preprocess))
    with torch.inference_mode():
        return torch.as_tensor(create_model(backbone, bundle)(images))


def coarse(tensors: Mapping[str, NDArray[np.float32]], dtype: str) -> dict[str, Any]:
    """Whole numbers, which float16 knows: a rounding that changes many answers."""
    assert dtype == "float16"
    return {name: np.round(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("method", ["linear", "lspt", "vfpt"])
def test_what_is_measured_is_what_float16_left(
    tiny_backbone: Backbone, colours: Dataset, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    settings = replace(SHORT, epochs=4, lr=0.02)
    given: Any = {"name": "colour", "method": method, "pool": "patch_mean", "settings": settings}
    exact = train_task(tiny_backbone, colours, **given)
    monkeypatch.setattr("lspt_serve.training.task.round_tensors", coarse)
    rounded = train_task(tiny_backbone, colours, dtype="float16", **given)

    targets = torch.from_numpy(colours.test.targets)
    before = logits_by_hand(tiny_backbone, exact, colours.test)
    after = logits_by_hand(tiny_backbone, rounded, colours.test)
    right = [(logits.argmax(dim=-1) == targets).sum().item() for logits in (before, after)]
    metrics = metrics_of(rounded)
    assert metrics.rounding is not None
    assert metrics.rounding.answers_changed > 0
    assert metrics.rounding.answers_changed == (before.argmax(-1) != after.argmax(-1)).sum()
    assert metrics.rounding.points_lost == pytest.approx(100 * (right[0] - right[1]) / 21, abs=1e-3)
    assert metrics.test_accuracy == pytest.approx(right[1] / 21)
    assert metrics.test_ece == pytest.approx(
        calibration.calibration_error(after, targets), abs=1e-5
    )
    val = logits_by_hand(tiny_backbone, rounded, colours.val).argmax(-1).numpy()
    assert metrics.val_accuracy == pytest.approx((val == colours.val.targets).mean())
    assert metrics.temperature == metrics_of(exact).temperature


def test_float16_is_the_float32_bundle_rounded(tiny_backbone: Backbone, colours: Dataset) -> None:
    exact = train_task(tiny_backbone, colours, name="colour", settings=SHORT)
    rounded = train_task(tiny_backbone, colours, name="colour", settings=SHORT, dtype="float16")

    assert (exact.manifest.dtype, rounded.manifest.dtype) == ("float32", "float16")
    assert metrics_of(exact).rounding is None
    for name, tensor in exact.tensors.items():
        assert torch.equal(
            torch.from_numpy(rounded.tensors[name]), torch.from_numpy(tensor).half().float()
        )


@pytest.mark.parametrize(
    "where",
    [
        "models.PromptedViT.to",
        "training.task.initialise_prompts",
        "training.task.fit",
        "training.trainer._predict",
    ],
)
def test_too_little_gpu_memory_says_what_to_change(
    tiny_backbone: Backbone, colours: Dataset, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore lines")

    monkeypatch.setattr("lspt_serve.training.trainer._measure", lambda *given: (1.0, 0.5))
    monkeypatch.setattr(f"lspt_serve.{where}", fails)

    message = (
        r"^the GPU has too little memory \(CUDA out of memory\. Tried to allocate 20 GiB\.\); end "
        "what else runs on it, lower batch_size, raise accumulate, or keep the images on disk with "
        "cache$"
    )
    with pytest.raises(OutOfMemoryError, match=message):
        train_task(tiny_backbone, colours, name="colour", settings=SHORT)


def test_bundle_stays_as_it_is_while_its_model_is_trained_on(
    tiny_backbone: Backbone, colours: Dataset
) -> None:
    model = create_prompted_vit(tiny_backbone, "lspt", num_classes=len(LABELS))
    bundle = create_bundle(model, tiny_backbone, name="colour", labels=LABELS)
    before = {name: tensor.copy() for name, tensor in bundle.tensors.items()}

    fit(model, colours, tiny_backbone.preprocess, SHORT)

    after = create_bundle(model, tiny_backbone, name="colour", labels=LABELS).tensors
    assert [name for name in before if np.array_equal(after[name], before[name])] == []
    for name, tensor in bundle.tensors.items():
        assert np.array_equal(tensor, before[name]), name


def test_a_tensor_too_large_for_float16_is_named(
    tiny_backbone: Backbone, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fold_too_much(head: torch.nn.Linear, temperature: float) -> None:
        head.weight.data.mul_(1e8)

    monkeypatch.setattr("lspt_serve.training.task.scale_head", fold_too_much)

    with pytest.raises(BundleError, match=r"head\.weight reaches .*beyond 65504.*; use float32"):
        train_task(tiny_backbone, colours, name="colour", settings=SHORT, dtype="float16")
