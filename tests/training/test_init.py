"""Prompts that start from the patch tokens of the task's own images.

M tokens, N patches, P prompts, D embed_dim.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import COLOURS, coloured_dataset, coloured_split

from lspt_serve.errors import DataError, MethodError
from lspt_serve.models import METHODS, Backbone, PromptedViT, create_prompted_vit
from lspt_serve.preprocess import normalise
from lspt_serve.training import Dataset, Init, TrainSettings, init, train_task
from lspt_serve.training.init import (
    collect_tokens,
    initialise_prompts,
    kmeans,
    pick_init,
    random_tokens,
)
from lspt_serve.training.task import tune

PROMPTED = sorted(METHODS.keys() - {"linear"})
SHORT = TrainSettings(epochs=1, batch_size=8, warmup_epochs=0.5, precision="fp32", device="cpu")
N, D, DEPTH = 16, 24, 3


TRAIN = coloured_split(4, 0)  # 12 images


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def create(backbone: Backbone, method: str, **options: Any) -> PromptedViT:
    torch.manual_seed(0)
    return create_prompted_vit(backbone, method, num_classes=3, options=options)


def started(backbone: Backbone, method: str, how: Init, *, seed: int = 0) -> Tensor:
    """The prompts that the initialisation gives, blocks x P x D."""
    model = create(backbone, method, num_prompts=5)
    initialise_prompts(model, TRAIN, backbone.preprocess, how, seed=seed)
    return model.method.get_parameter("prompts").detach().view(-1, 5, D)


def real_tokens(backbone: Backbone) -> Tensor:
    """What timm's own forward feeds each block, without the class token; L x M x D."""
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda block, args: seen.append(args[0][:, 1:]))
        for block in backbone.vit.blocks
    ]
    backbone.vit.forward_features(torch.from_numpy(normalise(TRAIN.images, backbone.preprocess)))
    for hook in hooks:
        hook.remove()
    return torch.stack(seen).flatten(1, 2)


def error_of(tokens: Tensor, centres: Tensor) -> float:
    """Mean squared distance of a token to the nearest centre."""
    distances = torch.cdist(tokens, centres, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.amin(dim=1).square().mean().item()


def test_all_tokens_of_a_small_train_are_looked_at(tiny_backbone: Backbone) -> None:
    model = create(tiny_backbone, "vpt-deep")
    got = collect_tokens(model, TRAIN, tiny_backbone.preprocess, depth=DEPTH, generator=generator())
    wanted = real_tokens(tiny_backbone)
    assert got.shape == wanted.shape == (DEPTH, 12 * N, D)
    for mine, timms in zip(got, wanted, strict=True):
        assert error_of(timms, mine) < 1e-8
        torch.testing.assert_close(mine.mean(0), timms.mean(0), atol=1e-4, rtol=1e-4)


def test_of_a_large_train_a_bounded_number_of_tokens_is_looked_at(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MAX_IMAGES": 5, "MAX_TOKENS": 13, "BATCH_SIZE": 2}.items():
        monkeypatch.setattr(init, name, value)
    model = create(tiny_backbone, "vpt-deep")
    got = collect_tokens(model, TRAIN, tiny_backbone.preprocess, depth=DEPTH, generator=generator())
    assert got.shape == (DEPTH, 5 * 3, D)  # 3 of each image are the fewest that make 13
    assert len(got[0].unique(dim=0)) == 15
    for mine, timms in zip(got, real_tokens(tiny_backbone), strict=True):
        assert error_of(mine, timms) < 1e-8


@pytest.mark.parametrize("method", PROMPTED)
def test_tokens_are_rows_of_what_enters_the_block(tiny_backbone: Backbone, method: str) -> None:
    prompts = started(tiny_backbone, method, "tokens")
    for own, entering in zip(prompts, real_tokens(tiny_backbone), strict=False):
        assert error_of(own, entering) < 1e-8
        assert len(own.unique(dim=0)) == 5
    assert len(prompts) in (1, DEPTH)


@pytest.mark.parametrize("method", PROMPTED)
def test_kmeans_centres_lie_nearer_to_the_tokens_than_tokens_do(
    tiny_backbone: Backbone, method: str
) -> None:
    centres, tokens = (started(tiny_backbone, method, how) for how in ("kmeans", "tokens"))
    for block, entering in enumerate(real_tokens(tiny_backbone)[: len(centres)]):
        assert error_of(entering, centres[block]) < 0.95 * error_of(entering, tokens[block])


def test_images_with_a_margin_give_the_tokens_of_their_middle(tiny_backbone: Backbone) -> None:
    model, preprocess = create(tiny_backbone, "vpt-shallow"), tiny_backbone.preprocess
    wide = np.pad(TRAIN.images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    got, wanted = (
        collect_tokens(model, train, preprocess, depth=1, generator=generator())
        for train in (replace(TRAIN, images=wide), TRAIN)
    )
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("method", PROMPTED)
def test_uniform_leaves_the_prompts_as_they_were(tiny_backbone: Backbone, method: str) -> None:
    model = create(tiny_backbone, method, num_prompts=5)
    before = model.method.get_parameter("prompts").detach().clone().view(-1, 5, D)
    assert torch.equal(started(tiny_backbone, method, "uniform"), before)


@pytest.mark.parametrize("how", ["tokens", "kmeans"])
def test_the_seed_decides(tiny_backbone: Backbone, how: Init) -> None:
    first, again, other = (started(tiny_backbone, "vpt-deep", how, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("seed", range(6))
def test_kmeans_on_two_clusters_worked_by_hand(seed: int) -> None:
    tokens = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 1.0], [10.0, 5.0]])
    centres = kmeans(tokens, 2, generator(seed))
    wanted = torch.tensor([[0.0, 1.0], [10.0, 2.0]])
    torch.testing.assert_close(centres[centres[:, 0].argsort()], wanted)


def test_kmeans_never_gets_worse_with_a_step_and_stops() -> None:
    tokens = torch.randn(300, 4)
    errors = [error_of(tokens, kmeans(tokens, 7, generator(), max_steps=s)) for s in range(12)]
    assert all(later <= earlier + 1e-5 for earlier, later in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]
    settled = kmeans(tokens, 7, generator(), max_steps=200)
    assert torch.equal(settled, kmeans(tokens, 7, generator(), max_steps=201))


def test_kmeans_keeps_the_centre_of_an_empty_cluster() -> None:
    tokens = torch.full((6, 1), 3.0)  # all are nearest to the first of equal centres
    assert kmeans(tokens, 4, generator()).flatten().tolist() == [3.0] * 4


def test_random_tokens_are_different_rows() -> None:
    tokens = torch.arange(20.0).view(10, 2)
    assert sorted(random_tokens(tokens, 10, generator())[:, 0].tolist()) == tokens[:, 0].tolist()


def test_fewer_tokens_than_prompts_is_told() -> None:
    with pytest.raises(DataError, match="11 prompts cannot start from the 10 patch tokens"):
        random_tokens(torch.zeros(10, 2), 11, generator())


@pytest.mark.parametrize("how", ["tokens", "kmeans"])
def test_a_method_without_prompts_is_refused(tiny_backbone: Backbone, how: Init) -> None:
    with pytest.raises(MethodError, match=f"init '{how}' needs prompts, and method 'linear' has"):
        initialise_prompts(
            create(tiny_backbone, "linear"), TRAIN, tiny_backbone.preprocess, how, seed=0
        )


@pytest.mark.parametrize(
    ("method", "options", "wanted"),
    [
        ("lspt", {}, "tokens"),
        ("lspt", {"deep": False}, "uniform"),
        ("lspt", {"lpc": False}, "uniform"),
        ("vpt-deep", {}, "tokens"),
        ("v2apt", {}, "tokens"),
        ("vpt-shallow", {}, "uniform"),
        ("gated", {}, "uniform"),
        ("vfpt", {}, "uniform"),
        ("linear", {}, "uniform"),
    ],
)
def test_auto_is_what_did_best_for_the_method(
    tiny_backbone: Backbone, method: str, options: dict[str, Any], wanted: Init
) -> None:
    assert pick_init(create(tiny_backbone, method, **options).method, "auto") == wanted


@pytest.mark.parametrize(
    ("how", "scale", "wanted"),
    [
        ("auto", None, ("tokens", 10)),
        ("kmeans", None, ("kmeans", 10)),
        ("uniform", None, ("uniform", 1)),
        ("auto", 3.0, ("tokens", 3)),
    ],
)
def test_learning_rate_of_the_prompts_goes_by_where_they_start(
    tiny_backbone: Backbone,
    how: Init,
    scale: float | None,
    wanted: tuple[Init, float],
) -> None:
    settings, colours = replace(SHORT, prompt_lr_scale=scale), coloured_dataset(4, 2, 2)

    left, told = (
        tune(tiny_backbone, colours, init=init, settings=chosen)
        for init, chosen in (
            (how, settings),
            (wanted[0], replace(settings, prompt_lr_scale=wanted[1])),
        )
    )

    assert (left.init, left.settings.prompt_lr_scale) == wanted
    for name, tensor in told.model.task_tensors().items():
        torch.testing.assert_close(left.model.task_tensors()[name], tensor, rtol=0, atol=0)


def test_an_unknown_init_is_refused(tiny_backbone: Backbone) -> None:
    unknown: Any = "zeros"
    with pytest.raises(MethodError, match="unknown init 'zeros'; wanted one of: auto, uniform"):
        initialise_prompts(
            create(tiny_backbone, "lspt"), TRAIN, tiny_backbone.preprocess, unknown, seed=0
        )


@pytest.mark.parametrize("how", ["tokens", "kmeans"])
@pytest.mark.parametrize("method", PROMPTED)
def test_every_method_learns_from_them(tiny_backbone: Backbone, method: str, how: Init) -> None:
    dataset = Dataset(list(COLOURS), TRAIN, coloured_split(3, 1), coloured_split(3, 2), notes=[])
    bundle = train_task(
        tiny_backbone,
        dataset,
        name="colour",
        method=method,
        init=how,
        pool="patch_mean",
        settings=replace(SHORT, epochs=12, lr=0.02),
    )
    assert bundle.manifest.metrics is not None
    assert bundle.manifest.metrics.val_accuracy > 0.8
