"""Full fine-tuning against timm's own model, and what it must leave alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from lspt_serve.errors import MethodError
from lspt_serve.models import (
    BASELINES,
    METHODS,
    Backbone,
    PromptedViT,
    check_bundled,
    create_prompted_vit,
    load_backbone,
)
from lspt_serve.models.backbone import sha256_of_tensors
from lspt_serve.models.timm_file import describe_in_timm, save_in_timm

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
ARCHITECTURES = [
    pytest.param({}, "cls", id="cls"),
    pytest.param({}, "patch_mean", id="patch-mean"),
    pytest.param({"reg_tokens": 4, "no_embed_class": True}, "patch_mean", id="registers"),
    pytest.param({"class_token": False, "global_pool": "avg"}, "patch_mean", id="no-cls"),
    pytest.param({"global_pool": "avg", "fc_norm": True}, "patch_mean", id="fc-norm"),
    pytest.param({"pre_norm": True, "init_values": 0.5}, "cls", id="pre-norm-layer-scale"),
]


def create(backbone: Backbone, pool: str | None = None) -> PromptedViT:
    """A model of which the head is off its initial value too."""
    torch.manual_seed(0)
    model = create_prompted_vit(backbone, "full", num_classes=3, pool=pool)
    model.load_task_tensors({k: v + 0.1 for k, v in model.task_tensors().items()})
    return model


def written(model: PromptedViT, backbone: Backbone, path: Path) -> Path:
    architecture = describe_in_timm(model)
    assert architecture is not None
    save_in_timm(model, path, backbone.preprocess, architecture)
    return path


def test_every_tensor_is_the_tasks_and_the_backbone_a_copy(tiny_backbone: Backbone) -> None:
    model = create_prompted_vit(tiny_backbone, "full", num_classes=3)

    names = {f"backbone.{name}" for name in tiny_backbone.vit.state_dict()}
    assert model.task_tensors().keys() == names | {"head.weight", "head.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    shared = {tensor.data_ptr() for tensor in tiny_backbone.vit.state_dict().values()}
    assert shared.isdisjoint(tensor.data_ptr() for tensor in model.state_dict().values())
    assert not any(parameter.requires_grad for parameter in tiny_backbone.vit.parameters())
    for name, tensor in tiny_backbone.vit.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_methods_share_the_backbone_and_keep_no_gradients(
    tiny_backbone: Backbone, method: str
) -> None:
    create_prompted_vit(tiny_backbone, "full", num_classes=3)
    model = create_prompted_vit(tiny_backbone, method, num_classes=3)
    model(IMAGES).sum().backward()

    assert model.backbone is tiny_backbone.vit
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_starts_as_a_linear_probe_does(tiny_backbone: Backbone) -> None:
    models = []
    for method in ("linear", "full"):
        torch.manual_seed(0)
        models.append(create_prompted_vit(tiny_backbone, method, num_classes=3).eval())

    assert torch.equal(models[0](IMAGES), models[1](IMAGES))


def test_drop_path_is_on_in_train_mode_only(tiny_backbone: Backbone, tmp_path: Path) -> None:
    path = written(create(tiny_backbone), tiny_backbone, tmp_path / "vit.safetensors")
    backbone = load_backbone(str(path))
    model = create_prompted_vit(backbone, "full", num_classes=3)
    model.backbone.blocks[1].attn.proj_drop.p = 0.5

    assert torch.equal(model.eval()(IMAGES), model(IMAGES))
    model.train()
    assert model.backbone.training
    assert not torch.equal(model(IMAGES), model(IMAGES))


@pytest.mark.parametrize(("architecture", "pool"), ARCHITECTURES)
def test_file_answers_in_timm_as_the_model_does(
    make_backbone: Callable[..., Backbone], tmp_path: Path, architecture: dict[str, Any], pool: str
) -> None:
    backbone = make_backbone(**architecture)
    model = create(backbone, pool)
    path = written(model, backbone, tmp_path / "model.safetensors")

    with safe_open(path, framework="pt") as file:
        kwargs = json.loads(file.metadata()["architecture"])
    vit = VisionTransformer(**kwargs).eval()
    vit.load_state_dict(load_file(path))
    torch.testing.assert_close(vit(IMAGES), model.eval()(IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("architecture", "pool"), ARCHITECTURES)
def test_file_is_a_backbone(
    make_backbone: Callable[..., Backbone], tmp_path: Path, architecture: dict[str, Any], pool: str
) -> None:
    backbone = make_backbone(**architecture)
    model = create(backbone, pool)
    loaded = load_backbone(str(written(model, backbone, tmp_path / "model.safetensors")))

    assert loaded.sha256 == sha256_of_tensors(model.backbone) != backbone.sha256
    assert (loaded.preprocess, loaded.pool) == (backbone.preprocess, pool)
    probe = create_prompted_vit(loaded, "linear", num_classes=3)
    wanted = model.eval().forward_features(IMAGES)
    torch.testing.assert_close(probe.forward_features(IMAGES), wanted, rtol=1e-5, atol=1e-5)


def test_timm_fills_a_model_of_its_own_from_the_file(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    model = create(tiny_backbone)
    path = written(model, tiny_backbone, tmp_path / "model.safetensors")

    vit = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=3,
        checkpoint_path=str(path),
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=2,
    )

    torch.testing.assert_close(vit.eval()(IMAGES), model.eval()(IMAGES), rtol=1e-5, atol=1e-5)


def test_another_size_of_images_is_written_too(tiny_backbone: Backbone, tmp_path: Path) -> None:
    resized = load_backbone(tiny_backbone.source, img_size=48)
    model = create(resized)

    loaded = load_backbone(str(written(model, resized, tmp_path / "model.safetensors")))

    assert loaded.preprocess.img_size == 48
    assert loaded.sha256 == sha256_of_tensors(model.backbone)


def test_what_timm_has_no_model_for_is_not_described(tiny_backbone: Backbone) -> None:
    assert describe_in_timm(create(tiny_backbone, "cls+patch_mean")) is None
    other = create(tiny_backbone)
    other.backbone.blocks[1].mlp.act = torch.nn.ReLU()  # the tensors do not tell
    assert describe_in_timm(other) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pool": "prompt_mean"}, "pool 'prompt_mean' needs prompts, and method 'full' has none"),
        ({"options": {"num_prompts": 3}}, "unknown option 'num_prompts'; wanted one of: none"),
    ],
)
def test_it_has_no_prompts(tiny_backbone: Backbone, given: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        create_prompted_vit(tiny_backbone, "full", num_classes=3, **given)


def test_only_a_baseline_cannot_be_bundled() -> None:
    assert BASELINES.keys().isdisjoint(METHODS)
    assert not any(method.trains_backbone for method in METHODS.values())
    for name in METHODS:
        check_bundled(name)
    with pytest.raises(MethodError, match="method 'full' is a baseline: it trains the backbone"):
        check_bundled("full")
