"""Fourier prompts and their folding."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lspt_serve.models import METHODS, Backbone, create_prompted_vit
from lspt_serve.models.methods import Shape, create_method
from lspt_serve.models.methods.vfpt import VFPTSettings, fourier_prompts

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_fourier_prompts_on_numbers_worked_by_hand() -> None:
    prompts = torch.tensor([[1.0, 2.0], [3.0, 4.0], [7.0, 9.0]])
    wanted = torch.tensor([[10.0, -2.0], [-4.0, 0.0], [7.0, 9.0]])  # of two points: +, -
    assert torch.equal(fourier_prompts(prompts, 2), wanted)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fourier_prompts_are_numpys_for_each_block(count: int) -> None:
    prompts = torch.randn(3, 5, 24)  # L x P x D
    got = fourier_prompts(prompts, count)
    for block, transformed in zip(prompts, got, strict=True):
        wanted = np.fft.fft2(block[:count].numpy()).real
        torch.testing.assert_close(
            transformed[:count], torch.from_numpy(wanted).float(), atol=1e-4, rtol=1e-5
        )
        assert torch.equal(transformed[count:], block[count:])


def test_no_fourier_prompts_is_the_prompts_themselves() -> None:
    prompts = torch.randn(3, 5, 24)
    assert fourier_prompts(prompts, 0) is prompts


@pytest.mark.parametrize(
    ("share", "num_prompts", "count"),
    [(0, 8, 0), (1, 8, 8), (0.5, 8, 4), (0.5, 5, 2), (0.29, 100, 29), (0.05, 8, 0)],
)
def test_the_share_is_rounded_down(share: float, num_prompts: int, count: int) -> None:
    settings = VFPTSettings(num_prompts=num_prompts, fourier_share=share)
    assert settings.num_fourier_prompts == count


def test_without_a_share_vfpt_is_vpt_deep_bit_for_bit(tiny_backbone: Backbone) -> None:
    plain = {"fourier_share": 0}
    vfpt = create_prompted_vit(tiny_backbone, "vfpt", num_classes=3, options=plain).eval()
    deep = create_prompted_vit(tiny_backbone, "vpt-deep", num_classes=3).eval()
    deep.load_task_tensors(vfpt.task_tensors())
    assert torch.equal(vfpt(IMAGES), deep(IMAGES))


@pytest.mark.parametrize("architecture", [{}, {"reg_tokens": 2}, {"depth": 1}])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_folded_model_answers_what_it_answered_before(
    make_backbone: Callable[..., Backbone], architecture: dict[str, int], share: float
) -> None:
    options = {"num_prompts": 5, "fourier_share": share}
    model = create_prompted_vit(
        make_backbone(**architecture), "vfpt", num_classes=3, options=options
    ).eval()
    folded = model.fold()
    assert folded.method.name == "vpt-deep"
    assert not folded.method.training
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), atol=1e-6, rtol=1e-6)


def test_folding_leaves_the_model_alone_and_shares_no_prompts_with_it() -> None:
    method = create_method("vfpt", Shape(24, 3, 8), fourier_share=0, prompt_dropout=0.1)
    before = method.get_parameter("prompts").detach().clone()
    folded = method.fold()
    folded.get_parameter("prompts").detach().zero_()
    assert torch.equal(method.get_parameter("prompts"), before)
    settings = METHODS["vpt-deep"].settings_type(prompt_dropout=0.1)
    assert folded.settings == settings


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"vfpt"}))
def test_other_methods_serve_as_they_are(tiny_backbone: Backbone, name: str) -> None:
    model = create_prompted_vit(tiny_backbone, name, num_classes=3)
    assert model.fold() is model
