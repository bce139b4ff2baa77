"""Files in the very layouts of the reference repositories, against the ViT that they hold.

D embed_dim (128), N patches (16).
"""

import argparse
import os
from collections.abc import Callable
from math import cos, sin
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import silu

from lspt_serve.errors import BackboneError
from lspt_serve.models import Backbone, create_prompted_vit, load_backbone
from lspt_serve.preprocess import NORMALISATIONS

CLOSE = 1e-5  # of features of about 1: timm runs the last block for all tokens at once
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
ARGS = argparse.Namespace(lr=1e-3, epochs=100, device=torch.device("cpu"), milestones=[1, 2])
Tensors = dict[str, Tensor]


def create_vit(**architecture: Any) -> VisionTransformer:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    vit = VisionTransformer(**{**sizes, "num_classes": 5, **architecture}).eval()
    for parameter in vit.requires_grad_(False).parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return vit


def encoder_of(vit: VisionTransformer) -> Tensors:
    return {k: v for k, v in vit.state_dict().items() if not k.startswith("head.")}


def prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def noise(*names: str) -> Tensors:
    return {name: torch.randn(3, 3) for name in names}


def other_than(tensors: Tensors) -> Tensors:
    return {name: torch.randn_like(tensor) for name, tensor in tensors.items()}


def training_state(vit: VisionTransformer) -> dict[str, Any]:
    """What training scripts save beside the weights."""
    optimizer = torch.optim.AdamW(vit.parameters())
    return {
        "optimizer": optimizer.state_dict(),
        "epoch": 99,
        "args": ARGS,
        "scaler": {"scale": 2.0},
    }


def save(path: Path, content: object) -> Backbone:
    torch.save(content, path)
    return load_backbone(str(path))


def features(backbone: Backbone, pool: str | None = None) -> Tensor:
    """By way of our own model, without prompts."""
    model = create_prompted_vit(backbone, "linear", num_classes=2, pool=pool)
    with torch.inference_mode():
        return model.forward_features(IMAGES)


def check(
    backbone: Backbone, wanted: Tensor, *, normalisation: str, pool: str, assumed: bool = False
) -> None:
    assert backbone.pool == pool
    assert bool(backbone.notes) == assumed
    preprocess = backbone.preprocess
    assert {(preprocess.mean, preprocess.std)} == {
        pixels for name, pixels in NORMALISATIONS.items() if name == normalisation
    }
    torch.testing.assert_close(features(backbone), wanted, atol=CLOSE, rtol=0)


def cls_of(vit: VisionTransformer) -> Tensor:
    return vit.forward_features(IMAGES)[:, 0]


def compute_positions(vit: VisionTransformer, *, rows_first: bool) -> None:
    """As MoCo v3 (rows first) and MAE do, number by number."""
    width, side = vit.embed_dim // 4, vit.patch_embed.grid_size[0]
    table = [[0.0] * vit.embed_dim]
    for row in range(side):
        for column in range(side):
            places = (row, column) if rows_first else (column, row)
            angles = [[place / 10_000 ** (i / width) for i in range(width)] for place in places]
            table.append([wave(a) for half in angles for wave in (sin, cos) for a in half])
    vit.pos_embed = nn.Parameter(torch.tensor([table]), requires_grad=False)  # 1 x (1 + N) x D


def test_a_bare_state_dict_of_timm(tmp_path: Path) -> None:
    vit = create_vit()
    backbone = save(tmp_path / "vit.pth", vit.state_dict())
    check(backbone, cls_of(vit), normalisation="half", pool="cls", assumed=True)


@pytest.mark.parametrize("ddp", ["", "module."])
def test_a_checkpoint_of_timms_training_script(tmp_path: Path, ddp: str) -> None:
    vit = create_vit()
    state = {"arch": "vit_tiny", "state_dict": prefix(ddp, dict(vit.state_dict())), "version": 2}
    backbone = save(tmp_path / "model_best.pth.tar", state | training_state(vit) | {"metric": 71.2})
    check(backbone, cls_of(vit), normalisation="half", pool="cls", assumed=True)


def test_scalars_among_bare_tensors_are_passed_over(tmp_path: Path) -> None:
    vit = create_vit()
    backbone = save(tmp_path / "vit.pth", {"epoch": 3, **vit.state_dict(), "args": ARGS})
    check(backbone, cls_of(vit), normalisation="half", pool="cls", assumed=True)


def test_a_deit(tmp_path: Path) -> None:
    vit = create_vit()
    backbone = save(tmp_path / "deit.pth", {"model": vit.state_dict()})
    check(backbone, cls_of(vit), normalisation="imagenet", pool="cls", assumed=True)


def mean_of_patches(vit: VisionTransformer) -> Tensor:
    return vit.forward_features(IMAGES)[:, 1:].mean(dim=1)


@pytest.mark.parametrize("with_decoder", [True, False])
def test_mae_pretraining_is_pooled_through_its_own_norm(
    tmp_path: Path, *, with_decoder: bool
) -> None:
    # Both are published: with the decoder ("_full") and the encoder alone; pos_embed is in both.
    vit = create_vit()
    compute_positions(vit, rows_first=False)
    decoder = noise("mask_token", "decoder_embed.weight", "decoder_pos_embed", "decoder_norm.bias")
    decoder |= noise("decoder_blocks.0.attn.qkv.weight", "decoder_pred.weight")
    tensors = encoder_of(vit) | (decoder if with_decoder else {})
    backbone = save(tmp_path / "mae.pth", {"model": tensors} | training_state(vit))
    check(backbone, mean_of_patches(vit), normalisation="imagenet", pool="patch_mean")
    assert (type(backbone.vit.norm), type(backbone.vit.fc_norm)) == (type(vit.norm), nn.Identity)
    torch.testing.assert_close(features(backbone, "cls"), cls_of(vit), atol=CLOSE, rtol=0)


def test_a_bare_encoder_of_mae_is_told_by_its_positions(tmp_path: Path) -> None:
    vit = create_vit()
    compute_positions(vit, rows_first=False)
    backbone = save(tmp_path / "encoder.pth", encoder_of(vit))
    check(backbone, mean_of_patches(vit), normalisation="imagenet", pool="patch_mean")


def test_an_encoder_with_other_positions_is_taken_for_maes(tmp_path: Path) -> None:
    vit = create_vit()
    backbone = save(tmp_path / "encoder.pth", {"model": encoder_of(vit)})
    wanted = mean_of_patches(vit)
    check(backbone, wanted, normalisation="imagenet", pool="patch_mean", assumed=True)


def test_mae_fine_tuning_is_pooled_before_its_norm(tmp_path: Path) -> None:
    vit = create_vit(global_pool="avg")  # as in MAE: fc_norm, and no norm before it
    assert {"fc_norm.weight", "norm.weight"} & {*vit.state_dict()} == {"fc_norm.weight"}
    backbone = save(tmp_path / "mae.pth", {"model": vit.state_dict()} | training_state(vit))
    tokens = IMAGES
    for part in (vit.patch_embed, vit._pos_embed, vit.blocks):
        tokens = part(tokens)
    wanted = vit.fc_norm(tokens[:, 1:].mean(dim=1))
    check(backbone, wanted, normalisation="imagenet", pool="patch_mean", assumed=True)
    timms = vit.forward_head(vit.forward_features(IMAGES), pre_logits=True)
    torch.testing.assert_close(features(backbone), timms, atol=CLOSE, rtol=0)
    assert type(backbone.vit.norm) is nn.Identity


def test_mae_linear_probing_drops_its_batch_norm_head(tmp_path: Path) -> None:
    vit = create_vit()
    head = noise("head.0.running_mean", "head.0.num_batches_tracked", "head.1.weight")
    backbone = save(tmp_path / "mae.pth", {"model": encoder_of(vit) | head, "args": ARGS})
    check(backbone, cls_of(vit), normalisation="imagenet", pool="cls", assumed=True)


@pytest.mark.parametrize(("embed_dim", "num_heads"), [(128, 2), (384, 12)])
def test_moco_v3_gives_its_base_encoder(tmp_path: Path, embed_dim: int, num_heads: int) -> None:
    vit = create_vit(embed_dim=embed_dim, num_heads=num_heads)  # its ViT-S has 12 heads
    projector = noise("head.0.weight", "head.1.running_mean", "head.3.weight")
    encoder = encoder_of(vit) | projector
    tensors = prefix("module.base_encoder.", encoder)
    tensors |= prefix("module.momentum_encoder.", other_than(encoder))
    tensors |= noise("module.predictor.0.weight", "module.predictor.3.weight")
    state = {"arch": "vit_small", "state_dict": tensors}
    backbone = save(tmp_path / "vit-s-300ep.pth.tar", state | training_state(vit))
    check(backbone, cls_of(vit), normalisation="imagenet", pool="cls")


def test_a_momentum_encoder_of_moco_v3_that_is_alone(tmp_path: Path) -> None:
    vit = create_vit()
    encoder = encoder_of(vit) | noise("head.0.weight", "head.1.running_mean")
    state = {"state_dict": prefix("module.momentum_encoder.", encoder)}
    check(save(tmp_path / "vit.pth.tar", state), cls_of(vit), normalisation="imagenet", pool="cls")


def linear_probing(vit: VisionTransformer) -> dict[str, Any]:
    """What MoCo v3's main_lincls.py saves: a whole ViT with its head."""
    optimizer = torch.optim.SGD(vit.head.parameters(), lr=0.1, momentum=0.9)
    return {
        "epoch": 90,
        "arch": "vit_small",
        "state_dict": prefix("module.", dict(vit.state_dict())),
        "best_acc1": torch.tensor(73.2),
        "optimizer": optimizer.state_dict(),
    }


@pytest.mark.parametrize(("embed_dim", "num_heads"), [(128, 2), (384, 12)])
@pytest.mark.parametrize(
    "layout",
    [linear_probing, lambda vit: {"model": encoder_of(vit)}, encoder_of],
    ids=["linear probing", "converted for DeiT", "bare"],
)
def test_moco_v3_under_timms_names_is_told_by_its_positions(
    tmp_path: Path,
    layout: Callable[[VisionTransformer], dict[str, Any]],
    embed_dim: int,
    num_heads: int,
) -> None:
    vit = create_vit(embed_dim=embed_dim, num_heads=num_heads)
    compute_positions(vit, rows_first=True)
    backbone = save(tmp_path / "linear-vit-s-300ep.pth.tar", layout(vit))
    check(backbone, cls_of(vit), normalisation="imagenet", pool="cls")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_of_moco_v3_may_be_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    vit = create_vit()
    compute_positions(vit, rows_first=True)
    backbone = save(tmp_path / "vit.pth", linear_probing(vit.to(dtype)))
    assert backbone.preprocess.mean == NORMALISATIONS["imagenet"][0]


@pytest.mark.parametrize("ddp", ["", "module."])
def test_dino_gives_its_teacher(tmp_path: Path, ddp: str) -> None:
    vit = create_vit()
    head = noise("head.mlp.0.weight", "head.last_layer.weight_g")
    teacher = prefix("backbone.", encoder_of(vit)) | head
    state = {
        "student": prefix("module.", other_than(teacher)),
        "teacher": prefix(ddp, teacher),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }
    backbone = save(tmp_path / "checkpoint.pth", state | training_state(vit))
    check(backbone, cls_of(vit), normalisation="imagenet", pool="cls")


def test_a_student_of_dino_that_is_alone(tmp_path: Path) -> None:
    vit = create_vit()
    backbone = save(
        tmp_path / "student.pth", {"student": prefix("module.backbone.", encoder_of(vit))}
    )
    check(backbone, cls_of(vit), normalisation="imagenet", pool="cls")


def test_a_teacher_without_a_prefix(tmp_path: Path) -> None:
    vit = create_vit()
    backbone = save(tmp_path / "teacher.pth", {"teacher": encoder_of(vit)})
    check(backbone, cls_of(vit), normalisation="imagenet", pool="cls")


def test_a_bare_backbone_of_dino_reads_as_timms(tmp_path: Path) -> None:
    vit, path = create_vit(num_classes=0), tmp_path / "dino.pth"
    backbone = save(path, vit.state_dict())
    check(backbone, cls_of(vit), normalisation="half", pool="cls", assumed=True)
    hinted = load_backbone(str(path), normalisation="imagenet")
    check(hinted, cls_of(vit), normalisation="imagenet", pool="cls", assumed=True)
    assert hinted.sha256 == backbone.sha256


def dinov2_of(vit: VisionTransformer) -> Tensors:
    return {**encoder_of(vit), "mask_token": torch.randn(1, 128)}


def test_dinov2(tmp_path: Path) -> None:
    vit = create_vit(img_size=28 + 14, patch_size=14, init_values=0.5)
    backbone = save(tmp_path / "dinov2_vits14_pretrain.pth", dinov2_of(vit))
    images = torch.randn(2, 3, 42, 42)
    got, wanted = backbone.vit.forward_features(images), vit.forward_features(images)
    torch.testing.assert_close(got, wanted, atol=CLOSE, rtol=0)
    assert (backbone.preprocess.img_size, backbone.pool) == (42, "cls")
    assert backbone.preprocess.mean == NORMALISATIONS["imagenet"][0]


def test_dinov2_with_registers(tmp_path: Path) -> None:
    # Registers stand between class token and patches and get no position embedding.
    vit, registers = create_vit(init_values=0.5), torch.randn(1, 4, 128)
    tensors = dinov2_of(vit) | {"register_tokens": registers}
    assert tensors["pos_embed"].shape == (1, 1 + 16, 128)
    backbone = save(tmp_path / "dinov2_vits14_reg4_pretrain.pth", tensors)

    x = vit._pos_embed(vit.patch_embed(IMAGES))  # B x (1 + N) x D
    x = torch.cat([x[:, :1], registers.expand(2, -1, -1), x[:, 1:]], dim=1)
    wanted = vit.norm(vit.blocks(x))

    check(backbone, wanted[:, 0], normalisation="imagenet", pool="cls")
    patch_mean = features(backbone, "patch_mean")
    torch.testing.assert_close(patch_mean, wanted[:, 5:].mean(dim=1), atol=CLOSE, rtol=0)


def test_the_giant_of_dinov2_has_a_gated_mlp(tmp_path: Path) -> None:
    vit = create_vit(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=4.0, init_values=0.5)
    renamed = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor
        for name, tensor in dinov2_of(vit).items()
    }
    backbone = save(tmp_path / "dinov2_vitg14_pretrain.pth", renamed)
    check(backbone, cls_of(vit), normalisation="imagenet", pool="cls")

    x, (w12, b12, w3, b3) = torch.randn(2, 128), (v for k, v in renamed.items() if "0.mlp" in k)
    gate, value = (x @ w12.T + b12).chunk(2, dim=-1)
    mlp: Any = backbone.vit.blocks[0].mlp
    torch.testing.assert_close(mlp(x), (silu(gate) * value) @ w3.T + b3, atol=CLOSE, rtol=0)


def test_a_teacher_of_dinov2_keeps_its_blocks_in_chunks(tmp_path: Path) -> None:
    # The index in a chunk goes on counting: blocks.0.0, blocks.1.1.
    vit = create_vit(init_values=0.5)
    chunked = {
        name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): tensor
        for name, tensor in dinov2_of(vit).items()
    }
    heads = noise("dino_head.mlp.0.weight", "ibot_head.last_layer.weight_v")
    backbone = save(
        tmp_path / "teacher_checkpoint.pth", {"teacher": prefix("backbone.", chunked) | heads}
    )
    check(backbone, cls_of(vit), normalisation="imagenet", pool="cls")


@pytest.mark.parametrize(
    ("rename", "normalisation", "pool"),
    [
        (lambda tensors: tensors, "half", "cls"),
        (lambda tensors: prefix("module.base_encoder.", tensors), "imagenet", "cls"),
        (lambda tensors: tensors | noise("decoder_embed.weight"), "imagenet", "patch_mean"),
        (lambda tensors: tensors | noise("mask_token"), "imagenet", "cls"),
    ],
    ids=["timm", "moco v3", "mae", "dinov2"],
)
def test_safetensors_are_recognised_by_their_names(
    tmp_path: Path, rename: Callable[[Tensors], Tensors], normalisation: str, pool: str
) -> None:
    vit = create_vit()
    save_file(rename(encoder_of(vit)), tmp_path / "vit.safetensors")
    backbone = load_backbone(str(tmp_path / "vit.safetensors"))
    wanted = cls_of(vit) if pool == "cls" else mean_of_patches(vit)
    assumed = normalisation == "half"
    check(backbone, wanted, normalisation=normalisation, pool=pool, assumed=assumed)


def test_metadata_goes_before_what_a_format_implies(tmp_path: Path) -> None:
    tensors = encoder_of(create_vit()) | noise("decoder_embed.weight")
    metadata = {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]", "pool": "cls"}
    save_file(tensors, tmp_path / "vit.safetensors", metadata=metadata)
    backbone = load_backbone(str(tmp_path / "vit.safetensors"))
    assert (backbone.preprocess.mean, backbone.preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert backbone.pool == "cls"


def test_the_same_weights_have_the_same_sha256_in_every_format(tmp_path: Path) -> None:
    vit = create_vit()
    layouts: list[object] = [
        vit.state_dict(),
        {"model": encoder_of(vit)},
        {"state_dict": prefix("module.base_encoder.", encoder_of(vit))},
        {"teacher": prefix("backbone.", encoder_of(vit))},
        dinov2_of(vit),
    ]
    assert len({save(tmp_path / "vit.pth", layout).sha256 for layout in layouts}) == 1


@pytest.mark.parametrize(
    ("wanted", "removed", "added"),
    [
        ("1 missing (blocks.1.norm1.bias)", "blocks.1.norm1.bias", {}),
        ("1 unexpected (blocks.0.attn.table)", "", noise("blocks.0.attn.table")),
        ("1 misshapen (norm.bias is [64], wanted [128])", "", {"norm.bias": torch.zeros(64)}),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
@pytest.mark.parametrize(
    ("wrapper", "prefixed"),
    [("model", ""), ("state_dict", "module.base_encoder."), ("teacher", "backbone.")],
)
def test_culprits_are_named_in_every_format(
    tmp_path: Path, wrapper: str, prefixed: str, wanted: str, removed: str, added: Tensors
) -> None:
    tensors = encoder_of(create_vit()) | added
    tensors.pop(removed, None)
    path = tmp_path / "vit.pth"
    with pytest.raises(BackboneError) as caught:
        save(path, {wrapper: prefix(prefixed, tensors)})
    assert str(caught.value) == f"{path}: tensors do not make a ViT: {wanted}"


def test_many_culprits_are_counted(tmp_path: Path) -> None:
    tensors = {k: v for k, v in encoder_of(create_vit()).items() if "blocks.1.attn" not in k}
    tensors |= noise(*(f"extra.{n}" for n in range(9)))
    wanted = (
        r"4 missing \(blocks\.1\.attn\.qkv\.weight, .*\); 9 unexpected \(extra\.0, .* 4 more\)$"
    )
    with pytest.raises(BackboneError, match=wanted):
        save(tmp_path / "vit.pth", {"model": tensors})


def test_a_tensor_beside_the_prefixed_ones_is_not_dropped_in_silence(tmp_path: Path) -> None:
    tensors = prefix("module.", encoder_of(create_vit())) | noise("stray")
    with pytest.raises(BackboneError, match=r"lacks patch_embed\.proj\.weight"):
        save(tmp_path / "vit.pth", {"state_dict": tensors})


@pytest.mark.parametrize("content", [{}, [], {"model": {}}, {"model": {"epoch": 1}}, torch.ones(2)])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(BackboneError, match=r"vit\.pth: wanted a state dict"):
        save(tmp_path / "vit.pth", content)


class _RunsCode:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "teacher"])
def test_code_beside_the_weights_is_refused_and_named(tmp_path: Path, wrapper: str) -> None:
    content = {wrapper: create_vit().state_dict(), "args": _RunsCode()}
    wanted = r"vit\.pth: no state dict .*: it wants to run posix\.system; .* \.safetensors$"
    with pytest.raises(BackboneError, match=wanted):
        save(tmp_path / "vit.pth", content)
