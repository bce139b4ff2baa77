import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lspt_serve.models import Backbone, PromptedViT, create_prompted_vit
from lspt_serve.training import Epoch, Split, TrainSettings
from lspt_serve.training.batches import Batches
from lspt_serve.training.progress import Progress
from lspt_serve.training.settings import Keep
from lspt_serve.training.steps import Steps

EPOCHS = [
    Epoch(1, 1.0, 0.9, 0.5),
    Epoch(2, 0.8, 0.5, 0.75, 0.1, 0.2, 3e-3),
    Epoch(3, 0.1, 0.7, 0.6),
]


def fresh(
    backbone: Backbone, seed: int, keep: Keep = "best", early_stop: int | None = None
) -> Progress:
    """After no epoch; two seeds have two models, two orders and two chances."""
    torch.manual_seed(seed)
    settings = TrainSettings(epochs=3, keep=keep, seed=seed, early_stop=early_stop)
    model = create_prompted_vit(backbone, "lspt", num_classes=3)
    images = Split(np.zeros((3, 32, 32, 3), np.uint8), np.arange(3))
    train = Batches(images, backbone.preprocess, model)
    return Progress(model, Steps(train, settings, torch.float32), settings)


def step(progress: Progress) -> None:
    """Move every tensor of the task, by chance."""
    for parameter in progress.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    progress.steps.optimizer.step()


def saved(progress: Progress) -> Any:
    file = io.BytesIO()
    torch.save(progress.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def tensors(model: PromptedViT) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.task_tensors().items()}


def check_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_loaded_progress_goes_on_as_the_saved_one(tiny_backbone: Backbone) -> None:
    first, second = fresh(tiny_backbone, 0), fresh(tiny_backbone, 1)
    for epoch in EPOCHS:
        step(first)
        first.add(epoch)
    state = saved(first)

    step(first)
    expected = tensors(first.model), torch.rand(5), torch.rand(5, generator=first.steps.generator)
    second.load_state_dict(state)
    step(second)

    check_equal(tensors(second.model), expected[0])
    assert torch.equal(torch.rand(5), expected[1])
    assert torch.equal(torch.rand(5, generator=second.steps.generator), expected[2])
    assert second.epochs == EPOCHS


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 3)])
def test_the_epoch_to_keep_stays_the_same_when_loaded(
    tiny_backbone: Backbone, keep: Keep, kept: int
) -> None:
    first, second = fresh(tiny_backbone, 0, keep), fresh(tiny_backbone, 1, keep)
    after = []
    for epoch in EPOCHS:
        step(first)
        first.add(epoch)
        after.append(tensors(first.model))

    second.load_state_dict(saved(first))

    for progress in (first, second):
        assert progress.kept == EPOCHS[kept - 1]
        check_equal(progress.kept_tensors, after[kept - 1])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_loaded_progress_is_done_as_early_as_the_saved_one(
    tiny_backbone: Backbone, keep: Keep
) -> None:
    first, second = fresh(tiny_backbone, 0, keep, 1), fresh(tiny_backbone, 1, keep, 1)
    done = []
    for epoch in [*EPOCHS[:2], Epoch(3, 0.1, 0.4, 0.75), Epoch(4, 0.1, 0.4, 0.75)]:
        first.settings = second.settings = replace(first.settings, epochs=9)
        first.add(epoch)
        second.load_state_dict(saved(first))
        assert second.done == first.done
        done.append(first.done)

    assert done == [False, False, False, True]  # the second of two equals is no better


def test_no_epoch_is_kept_while_all_diverge(tiny_backbone: Backbone) -> None:
    first, second = fresh(tiny_backbone, 0), fresh(tiny_backbone, 1)
    first.add(Epoch(1, 1.0, float("nan"), 0.5))

    second.load_state_dict(saved(first))

    assert first.kept is None
    assert second.kept is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_chance_on_a_gpu_goes_on_too(make_backbone: Callable[..., Backbone]) -> None:
    first = fresh(make_backbone(), 0)
    first.model.to("cuda")
    state = saved(first)
    expected = torch.rand(5, device="cuda")
    torch.rand(7, device="cuda")

    first.load_state_dict(state)

    assert torch.equal(torch.rand(5, device="cuda"), expected)
