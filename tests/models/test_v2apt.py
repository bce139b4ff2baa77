"""The variational prompts: KL term, sampling, evaluation."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lspt_serve.models import METHODS, Backbone, create_prompted_vit
from lspt_serve.models.methods import Shape, create_method
from lspt_serve.models.methods.v2apt import kl_to_standard_normal, sample_latent
from lspt_serve.models.rows import OneTask

VIT = Shape(embed_dim=24, depth=3, patch_size=8)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
ROWS = OneTask(2)
PATCHES = torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(2))


def test_kl_is_that_of_torchs_distributions() -> None:
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    posterior = Normal(mean, (log_variance / 2).exp())
    wanted = kl_divergence(posterior, Normal(0.0, 1.0)).sum(dim=1).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), wanted)


def test_kl_on_numbers_worked_by_hand() -> None:
    zeros = torch.zeros(2, 3)
    assert kl_to_standard_normal(zeros, zeros).item() == 0
    mean = torch.tensor([[1.0, 2.0], [0.0, 3.0]])  # squares: 5 and 9, half their mean: 3.5
    assert kl_to_standard_normal(mean, torch.zeros(2, 2)).item() == pytest.approx(3.5)


def test_kl_is_computed_in_fp32() -> None:
    mean = torch.full((1, 2), 0.1, dtype=torch.bfloat16)
    assert kl_to_standard_normal(mean, mean).dtype == torch.float32


def test_a_sampled_latent_has_the_mean_and_the_deviation_asked_for() -> None:
    mean, log_variance = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.0, -2.0]])
    draws = sample_latent(mean.expand(20_000, -1), log_variance.expand(20_000, -1))
    torch.testing.assert_close(draws.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(draws.std(0), (log_variance / 2).exp()[0], atol=0.03, rtol=0)


def test_latent_is_sampled_in_training_and_its_mean_otherwise(tiny_backbone: Backbone) -> None:
    model = create_prompted_vit(tiny_backbone, "v2apt", num_classes=3).eval()
    assert torch.equal(model(IMAGES), model(IMAGES))
    model.train()
    assert not torch.equal(model(IMAGES), model(IMAGES))


def test_prompts_of_the_image_come_first_and_are_its_own() -> None:
    method = create_method("v2apt", VIT, num_prompts=5, num_vae_prompts=3).eval()
    first, state = method.start(PATCHES, ROWS)
    second, _ = method.advance(1, first, torch.zeros_like(first), PATCHES, state, ROWS)
    own = method.get_parameter("prompts")  # L x P x D
    assert first.shape == second.shape == (2, 5 + 3, 24)
    for block, prompts in enumerate((first, second)):
        assert torch.equal(prompts[:, 3:], torch.stack([own[block], own[block]]))
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.allclose(first[0, :3], first[1, :3])


def test_regularisation_is_the_weighted_kl_of_the_last_batch() -> None:
    method = create_method("v2apt", VIT, latent_dim=6, kl_weight=0.25).train()
    assert method.regularisation() is None
    vae = method.get_submodule("vae")
    hidden = torch.nn.functional.gelu(vae.get_submodule("patch_encoder")(PATCHES)).mean(dim=1)
    mean, log_variance = vae.get_submodule("encoder")(hidden).split(6, dim=1)
    posterior = Normal(mean, (log_variance / 2).exp())
    method.start(PATCHES, ROWS)
    term = method.regularisation()
    assert term is not None
    wanted = 0.25 * kl_divergence(posterior, Normal(0.0, 1.0)).sum(dim=1).mean()
    torch.testing.assert_close(term, wanted)


def test_regularisation_alone_reaches_the_whole_encoder() -> None:
    method = create_method("v2apt", VIT).train()
    method.start(PATCHES, ROWS)
    term = method.regularisation()
    assert term is not None
    term.backward()
    for name, tensor in method.named_parameters():
        assert (tensor.grad is not None) == ("encoder" in name), name


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"v2apt"}))
def test_other_methods_add_nothing_to_the_loss(name: str) -> None:
    method = create_method(name, VIT).train()
    method.start(PATCHES, ROWS)
    assert method.regularisation() is None
