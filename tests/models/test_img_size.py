"""Backbones at other image sizes than their own; normalisation hints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from lspt_serve.errors import BackboneError
from lspt_serve.models import EMBEDDED, create_prompted_vit, load_backbone
from lspt_serve.preprocess import NORMALISATIONS

SIZES: dict[str, Any] = {"patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}


def save_vit(path: Path, **architecture: Any) -> tuple[str, VisionTransformer]:
    vit = VisionTransformer(**{**SIZES, "img_size": 32, "num_classes": 0, **architecture}).eval()
    for parameter in vit.requires_grad_(False).parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    torch.save(vit.state_dict(), path)
    return str(path), vit


@pytest.mark.parametrize("img_size", [8, 24, 32, 56])
@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 4, "no_embed_class": True},
        {"reg_tokens": 3},
    ],
    ids=lambda architecture: " ".join(architecture) or "plain",
)
def test_resampling_is_that_of_timm(
    tmp_path: Path, architecture: dict[str, Any], img_size: int
) -> None:
    source, vit = save_vit(tmp_path / "vit.pth", **architecture)
    other = VisionTransformer(
        **{**SIZES, "img_size": img_size, "num_classes": 0, **architecture}
    ).eval()
    other.load_state_dict(checkpoint_filter_fn(dict(vit.state_dict()), other))
    images = torch.randn(2, 3, img_size, img_size)

    backbone = load_backbone(source, img_size=img_size)

    assert backbone.preprocess.img_size == img_size
    got, wanted = backbone.vit.forward_features(images), other.forward_features(images)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    assert not any(parameter.requires_grad for parameter in backbone.vit.parameters())


def test_prefix_tokens_keep_their_position_embedding(tmp_path: Path) -> None:
    source, vit = save_vit(tmp_path / "vit.pth")
    own = vit.state_dict()["pos_embed"]
    got = load_backbone(source, img_size=56).vit.state_dict()["pos_embed"]
    wanted = resample_abs_pos_embed(own, new_size=[7, 7], old_size=[4, 4])
    torch.testing.assert_close(got, wanted, atol=0, rtol=0)
    torch.testing.assert_close(got[:, 0], own[:, 0], atol=0, rtol=0)


def test_the_same_size_changes_no_bit(tmp_path: Path) -> None:
    source, vit = save_vit(tmp_path / "vit.pth")
    loaded = load_backbone(source, img_size=32).vit.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in vit.state_dict().items())


def test_the_size_does_not_change_who_a_backbone_is(tmp_path: Path) -> None:
    source, _ = save_vit(tmp_path / "vit.pth")
    own, larger = load_backbone(source), load_backbone(source, img_size=48)
    assert own.sha256 == larger.sha256
    assert (own.preprocess.img_size, larger.preprocess.img_size) == (32, 48)


@pytest.mark.parametrize("method", ["linear", "vpt-deep", "lspt"])
def test_a_resampled_backbone_is_prompted_like_any_other(method: str) -> None:
    backbone = load_backbone(EMBEDDED[0], img_size=48)
    model = create_prompted_vit(backbone, method, num_classes=3)
    assert model(torch.randn(2, 3, 48, 48)).shape == (2, 3)


@pytest.mark.parametrize(
    ("img_size", "nearest"), [(30, "24, 32"), (33, "32, 40"), (3, "8, 16"), (0, "8, 16"), (-8, "8")]
)
def test_a_size_that_patches_do_not_fill_is_refused(
    tmp_path: Path, img_size: int, nearest: str
) -> None:
    source, _ = save_vit(tmp_path / "vit.pth")
    wanted = f"img_size {img_size} is no multiple of the patch size 8; nearest: {nearest}"
    with pytest.raises(BackboneError, match=wanted):
        load_backbone(source, img_size=img_size)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_hint_says_how_pixels_are_normalised(normalisation: Any) -> None:
    preprocess = load_backbone(EMBEDDED[0], normalisation=normalisation).preprocess
    assert (preprocess.mean, preprocess.std) == NORMALISATIONS[normalisation]


def test_an_unknown_hint_is_told_the_known_ones() -> None:
    hint: Any = "clip"
    with pytest.raises(BackboneError, match="'clip'; wanted imagenet or half"):
        load_backbone(EMBEDDED[0], normalisation=hint)
