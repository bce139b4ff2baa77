from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from lspt_serve.errors import DataError
from lspt_serve.models import Backbone, PromptedViT, create_prompted_vit
from lspt_serve.preprocess import Preprocess, crop_middle, normalise
from lspt_serve.training import Split
from lspt_serve.training.augment import augment_batch, crop, draw_changes, flip
from lspt_serve.training.batches import Batches
from lspt_serve.training.picks import Picks
from lspt_serve.training.settings import Augment

HOWS = get_args(Augment)
IMAGE = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3)


def noise(count: int, side: int, seed: int = 0) -> Tensor:
    drawn = np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8)
    return torch.from_numpy(drawn)


def augmented(images: Tensor, img_size: int, how: Augment, seed: int = 0) -> Tensor:
    margin = images.shape[-1] - img_size
    generator = torch.Generator().manual_seed(seed)
    changes = draw_changes(len(images), margin, img_size, how, generator)
    return augment_batch(images, img_size, changes)


@pytest.mark.parametrize(
    ("top", "left", "wanted"),
    [
        (0, 0, [[0, 1], [3, 4]]),
        (1, 1, [[4, 5], [7, 8]]),
        (0, 1, [[1, 2], [4, 5]]),
        (-1, 0, [[0, 1], [0, 1]]),  # above: the first row again
        (2, -1, [[6, 6], [6, 6]]),
        (-2, 5, [[2, 2], [2, 2]]),
    ],
)
def test_crop_on_numbers_worked_by_hand(top: int, left: int, wanted: list[list[int]]) -> None:
    got = crop(IMAGE, torch.tensor([top]), torch.tensor([left]), 2)

    assert got.dtype == torch.uint8
    assert got[0, 0].tolist() == wanted


def test_crop_is_that_of_numpy_with_edge_padding() -> None:
    images, pad = noise(20, 9), 4
    starts = np.random.default_rng(1).integers(-pad, pad + 1, (2, 20))

    tops, lefts = torch.from_numpy(starts)
    got = crop(images, tops, lefts, 9)

    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="edge")
    for index, (top, left) in enumerate((starts + pad).T):
        assert np.array_equal(got[index], padded[index, :, top : top + 9, left : left + 9])


def test_flip_mirrors_those_that_are_named() -> None:
    images = torch.cat([IMAGE, IMAGE])

    first, second = flip(images, torch.tensor([True, False]))[:, 0].tolist()

    assert first == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]
    assert second == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("side", [16, 20])
def test_same_seed_gives_the_same_batch_and_another_another(how: Augment, side: int) -> None:
    images = noise(32, side)

    first, again, other = (augmented(images, 16, how, n) for n in (1, 1, 2))

    assert first.shape == (32, 3, 16, 16)
    assert torch.equal(first, again)
    assert torch.equal(first, other) is (how == "none")


def test_nothing_leaves_the_images_alone_and_draws_nothing() -> None:
    images, generator = noise(2, 8), torch.Generator()
    before = generator.get_state()

    changes = draw_changes(2, 0, 8, "none", generator)

    assert augment_batch(images, 8, changes) is images
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("side", [16, 20])
def test_some_of_the_changes_are_those_of_some_of_the_images(side: int) -> None:
    images, which = noise(9, side), torch.tensor([7, 0, 3])
    changes = draw_changes(9, side - 16, 16, "crop+flip", torch.Generator().manual_seed(0))

    got = augment_batch(images[which], 16, changes.take(which))

    assert torch.equal(got, augment_batch(images, 16, changes)[which])


@pytest.mark.parametrize(("side", "img_size"), [(8, 6), (9, 6), (11, 6), (32, 28)])
def test_without_augmentation_the_middle_is_that_of_serving(side: int, img_size: int) -> None:
    images = noise(3, side)

    got = augmented(images, img_size, "none")

    assert np.array_equal(got.movedim(1, -1), crop_middle(images.movedim(1, -1).numpy(), img_size))


def test_flips_are_half_of_the_images_and_nothing_else() -> None:
    images = noise(400, 4)

    got = augmented(images, 4, "flip")

    mirrored = [torch.equal(g, i.flip(-1)) for g, i in zip(got, images, strict=True)]
    kept = [torch.equal(g, i) for g, i in zip(got, images, strict=True)]
    assert [a != b for a, b in zip(mirrored, kept, strict=True)] == [True] * 400
    assert 160 < sum(mirrored) < 240


@pytest.mark.parametrize(
    ("side", "img_size", "low", "high"),
    [(16, 16, -2, 2), (20, 16, 0, 4)],  # 1/8 outside, or the margin
)
def test_crops_start_everywhere_that_they_may(
    side: int, img_size: int, low: int, high: int
) -> None:
    place = torch.arange(side, dtype=torch.uint8)
    rows, columns = place[:, None].expand(side, side), place.expand(side, side)
    images = torch.stack([rows, columns, rows]).expand(600, 3, side, side)

    got = augmented(images, img_size, "crop")

    middle = img_size // 2  # never outside
    starts = got[:, :2, middle, middle].long() - middle  # B x (top, left)
    seen = {tuple(start) for start in starts.tolist()}
    everywhere = range(low, high + 1)
    assert seen == {(top, left) for top in everywhere for left in everywhere}


def linear(backbone: Backbone) -> PromptedViT:
    return create_prompted_vit(backbone, "linear", num_classes=2)


def split_of(images: Tensor) -> Split:
    pixels = np.ascontiguousarray(images.movedim(1, -1))
    return Split(pixels, np.zeros(len(pixels), np.int64))


def test_linear_probe_whose_images_vary_keeps_no_features(tiny_backbone: Backbone) -> None:
    split, model = split_of(noise(6, 32)), linear(tiny_backbone)

    plain = Batches(split, tiny_backbone.preprocess, model)
    varied = Batches(split, tiny_backbone.preprocess, model, varied=True)

    assert plain.features is not None
    assert varied.features is None


def test_inputs_of_images_with_margin_are_what_serving_sees(tiny_backbone: Backbone) -> None:
    split = split_of(noise(5, 40))
    preprocess = replace(tiny_backbone.preprocess, crop_pct=0.8)

    got = Batches(split, preprocess, linear(tiny_backbone)).inputs(Picks(torch.tensor([4, 0])))

    wanted = normalise(crop_middle(split.images, 32), preprocess)[[4, 0]]
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize(("side", "crop_pct"), [(40, 1.0), (32, 0.8), (16, 1.0)])
def test_images_of_another_preprocessing_are_refused(
    tiny_backbone: Backbone, side: int, crop_pct: float
) -> None:
    with pytest.raises(DataError, match=rf"images are uint8 \[{side}, {side}, 3\], wanted"):
        Batches(split_of(noise(2, side)), Preprocess(32, crop_pct=crop_pct), linear(tiny_backbone))


def test_images_that_are_no_bytes_are_refused(tiny_backbone: Backbone) -> None:
    split = split_of(noise(2, 32))
    nan: Any = np.full(split.images.shape, np.nan, np.float32)
    with pytest.raises(DataError, match=r"images are float32 \[32, 32, 3\], wanted uint8"):
        Batches(replace(split, images=nan), tiny_backbone.preprocess, linear(tiny_backbone))


def test_images_that_are_read_once_stay_where_they_are(tiny_backbone: Backbone) -> None:
    split, model = split_of(noise(70, 32)), linear(tiny_backbone)

    kept, once = (Batches(split, tiny_backbone.preprocess, model, once=o) for o in (False, True))

    assert once.images is split.images
    assert torch.equal(once.all_logits(), kept.all_logits())
