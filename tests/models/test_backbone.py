import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lspt_serve.errors import BackboneError
from lspt_serve.models import EMBEDDED, Backbone, create_prompted_vit, load_backbone
from lspt_serve.models.backbone import sha256_of_tensors
from lspt_serve.preprocess import NORMALISATIONS, Normalisation, Preprocess, normalise

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
# Heads are 64 wide, as those of every ViT that is loaded without a description.
PLAIN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}
REFERENCE_IMAGES = [
    "clothing10/test/00000.jpg",
    "grocery81/test/00000.jpg",
    "cifar100/test/00000.png",
    "signdigits10/test/00000.jpg",
]


def create_vit(**architecture: Any) -> VisionTransformer:
    vit = VisionTransformer(**{**PLAIN, **architecture}).eval().requires_grad_(False)
    for parameter in vit.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return vit


def tiny_tensors(backbone: Backbone) -> dict[str, Tensor]:
    return dict(backbone.vit.state_dict())


def write(path: Path, tensors: dict[str, Tensor], **metadata: str) -> str:
    save_file(tensors, path, metadata=metadata or None)
    return str(path)


@pytest.fixture(scope="module")
def vit_ti16(shared_data: Path) -> Backbone:
    return load_backbone(str(shared_data / "vit_ti16_augreg.pth"))


@pytest.mark.parametrize("file", REFERENCE_IMAGES)
def test_real_weights_reproduce_reference_features(
    vit_ti16: Backbone, shared_data: Path, file: str
) -> None:
    # The figures are rounded to 5 decimals and come from another release of torch: atol 2e-3.
    reference = json.loads((shared_data / "reference_outputs.json").read_text())[file]
    task, member = file.split("/", 1)
    with tarfile.open(shared_data / "tasks" / f"{task}.tar") as tar:
        data = tar.extractfile(member)
        assert data is not None
        with Image.open(io.BytesIO(data.read())) as image:
            pixels = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    images = torch.from_numpy(normalise(np.asarray(pixels), vit_ti16.preprocess))[None]
    model = create_prompted_vit(vit_ti16, "linear", num_classes=2, pool="cls+patch_mean")
    cls, patch_mean = model.forward_features(images)[0].chunk(2)
    assert cls[:8].tolist() == pytest.approx(reference["cls_norm_first8"], abs=2e-3)
    assert patch_mean[:4].tolist() == pytest.approx(reference["patch_mean_first4"], abs=2e-3)
    assert cls.norm().item() == pytest.approx(reference["cls_l2"], abs=2e-3)


def test_real_weights_are_sized_by_their_tensors(vit_ti16: Backbone) -> None:
    vit: Any = vit_ti16.vit
    assert (vit.embed_dim, len(vit.blocks), vit.blocks[0].attn.num_heads) == (192, 12, 3)
    assert vit_ti16.preprocess == Preprocess(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert vit_ti16.pool == "cls"


def test_sha256_is_that_of_the_tensors_whichever_file_holds_them(
    vit_ti16: Backbone, tmp_path: Path
) -> None:
    source = write(tmp_path / "other.safetensors", tiny_tensors(vit_ti16), note="the same tensors")
    assert load_backbone(source).sha256 == vit_ti16.sha256


def test_sha256_is_over_name_dtype_shape_and_bytes_in_order_of_names() -> None:
    layer = torch.nn.Linear(2, 1)
    layer.load_state_dict({"weight": torch.tensor([[1.0, -2.0]]), "bias": torch.tensor([0.5])})
    spelled = b"bias torch.float32 [1]\n" + struct.pack("<f", 0.5)
    spelled += b"weight torch.float32 [1, 2]\n" + struct.pack("<2f", 1.0, -2.0)
    assert sha256_of_tensors(layer) == hashlib.sha256(spelled).hexdigest()


def test_sha256_changes_with_one_weight(tiny_backbone: Backbone, tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in tiny_tensors(tiny_backbone).items()}
    tensors["norm.bias"][0] += 1e-3
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2)
    vit.reset_classifier(0)
    vit.load_state_dict(tiny_tensors(tiny_backbone))
    assert sha256_of_tensors(vit) == tiny_backbone.sha256
    vit.load_state_dict(tensors)
    assert sha256_of_tensors(vit) != tiny_backbone.sha256


def test_a_backbone_is_frozen_and_in_eval_mode(tiny_backbone: Backbone) -> None:
    assert not tiny_backbone.vit.training
    assert not any(parameter.requires_grad for parameter in tiny_backbone.vit.parameters())


@pytest.mark.parametrize("name", EMBEDDED)
def test_backbones_that_ship_with_the_package_load_by_name(name: str) -> None:
    backbone = load_backbone(name)
    size = backbone.preprocess.img_size
    features = create_prompted_vit(backbone, "linear", num_classes=2).forward_features(
        torch.randn(1, 3, size, size)
    )
    assert backbone.source == name
    assert backbone.notes == ()
    assert features.isfinite().all()


def test_a_file_says_how_its_images_are_prepared_and_pooled(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    architecture = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    source = write(
        tmp_path / "vit.safetensors",
        tiny_tensors(tiny_backbone),
        architecture=json.dumps(architecture),
        mean="[0.1, 0.2, 0.3]",
        std="[0.4, 0.5, 0.6]",
        pool="patch_mean",
    )
    backbone = load_backbone(source)
    assert backbone.preprocess == Preprocess(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert backbone.pool == "patch_mean"


@pytest.mark.parametrize(
    ("said", "normalisation", "assumed"),
    [
        (
            {},
            None,
            "normalisation half (see --normalisation), 2 heads (a .safetensors file can say them)",
        ),
        ({}, "half", "2 heads (a .safetensors file can say them)"),
        ({"mean": "[0, 0, 0]"}, "imagenet", "2 heads (a .safetensors file can say them)"),
        ({"architecture": json.dumps(PLAIN)}, None, "normalisation half (see --normalisation)"),
        ({"architecture": json.dumps(PLAIN)}, "half", None),
        (
            {"architecture": json.dumps(PLAIN), "mean": "[0, 0, 0]", "std": "[1, 1, 1]"},
            None,
            None,
        ),
    ],
)
def test_what_a_file_does_not_say_is_noted(
    tmp_path: Path, said: dict[str, str], normalisation: Normalisation | None, assumed: str | None
) -> None:
    source = write(tmp_path / "vit.safetensors", create_vit(num_classes=0).state_dict(), **said)
    notes = load_backbone(source, normalisation=normalisation).notes
    assert notes == ((f"assumed of {source}, which does not say: {assumed}",) if assumed else ())


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True},
        {"no_embed_class": True},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
        {"pre_norm": True},
        {"init_values": 0.5},
        {"qkv_bias": False},
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False},
        {"embed_dim": 64, "num_heads": 1, "mlp_ratio": 3.0, "depth": 1},
        {"img_size": 48, "patch_size": 16},
    ],
    ids=lambda architecture: " ".join(architecture) or "plain",
)
def test_an_architecture_is_recovered_from_its_tensors(
    tmp_path: Path, architecture: dict[str, Any]
) -> None:
    vit = create_vit(**architecture)
    path = tmp_path / "vit.pth"
    torch.save(vit.state_dict(), path)
    size = architecture.get("img_size", 32)
    images = torch.randn(2, 3, size, size)
    rebuilt = load_backbone(str(path)).vit
    got, wanted = rebuilt.forward_features(images), vit.forward_features(images)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(rebuilt.fc_norm(got), vit.fc_norm(wanted), atol=1e-6, rtol=0)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save(create_vit().half().state_dict(), path)
    vit = load_backbone(str(path)).vit
    assert {tensor.dtype for tensor in vit.state_dict().values()} == {torch.float32}


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(
        BackboneError, match=r"'vit_tny_patch16_224'.*nearest: vit_tiny_patch16_224"
    ):
        load_backbone("vit_tny_patch16_224")


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.pth", "gone.pt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BackboneError, match=f"{name}: no such file"):
        load_backbone(str(tmp_path / name))


def test_a_name_that_no_bundle_holds_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "caf\udce9.safetensors", create_vit().state_dict())

    with pytest.raises(BackboneError, match=r"caf\\udce9\.safetensors: a name that is no UTF-8"):
        load_backbone(path)


def test_a_folder_is_no_backbone(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"is a folder; give the \.safetensors or"):
        load_backbone(str(tmp_path))


@pytest.mark.usefixtures("timm_without_network")
def test_a_folder_does_not_hide_timms_model_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vit_tiny_patch16_224").mkdir()
    monkeypatch.chdir(tmp_path)

    assert load_backbone("vit_tiny_patch16_224").vit.embed_dim == 192


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_a_truncated_safetensors_file_is_refused(
    tiny_backbone: Backbone, tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "vit.safetensors"
    write(path, tiny_tensors(tiny_backbone))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BackboneError, match=r"vit\.safetensors: cannot be read as safetensors"):
        load_backbone(str(path))


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_a_truncated_state_dict_is_refused(
    tiny_backbone: Backbone, tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "vit.pth"
    torch.save(tiny_tensors(tiny_backbone), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BackboneError, match=r"vit\.pth: no state dict of plain tensors"):
        load_backbone(str(path))


class _MakesFolder:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_a_pickle_with_code_is_refused_and_the_code_not_run(
    tmp_path: Path, save: Callable[[object, Path], object]
) -> None:
    path, mark = tmp_path / "vit.pth", tmp_path / "mark"
    save({"pos_embed": _MakesFolder(mark)}, path)
    with pytest.raises(BackboneError, match=r"vit\.pth: no state dict of plain tensors") as caught:
        load_backbone(str(path))
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_message_about_a_state_dict_does_not_speak_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save({"epoch": 7}, path)
    with pytest.raises(BackboneError, match="wanted a state dict") as caught:
        load_backbone(str(path))
    assert "cannot be read as safetensors" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    tiny_backbone: Backbone, tmp_path: Path, value: float
) -> None:
    tensors = tiny_tensors(tiny_backbone) | {"blocks.1.norm2.bias": torch.full((24,), value)}
    with pytest.raises(BackboneError, match=r"safetensors: blocks\.1\.norm2\.bias is not finite"):
        load_backbone(write(tmp_path / "vit.safetensors", tensors))


def test_a_lost_block_and_a_lost_final_norm_are_missed(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    lost = ("blocks.1.", "norm.")
    tensors = {k: v for k, v in tiny_tensors(tiny_backbone).items() if not k.startswith(lost)}
    wanted = r"14 missing \(blocks\.1\.norm1\.weight, .* and 9 more\)$"
    with pytest.raises(BackboneError, match=wanted):
        load_backbone(write(tmp_path / "vit.safetensors", tensors))


def test_a_file_may_say_that_there_is_no_final_norm(tmp_path: Path) -> None:
    vit, said = create_vit(final_norm=False, num_classes=0), PLAIN | {"final_norm": False}
    path = tmp_path / "vit.safetensors"
    source = write(path, vit.state_dict(), architecture=json.dumps(said))
    got, wanted = load_backbone(source).vit.forward_features(IMAGES), vit.forward_features(IMAGES)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_missing_and_unexpected_tensors_are_named(tiny_backbone: Backbone, tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_backbone)
    del tensors["norm.bias"]
    tensors["decoder.weight"] = torch.zeros(2)
    source = write(tmp_path / "vit.safetensors", tensors)
    wanted = r"do not make a ViT: 1 missing \(norm\.bias\); 1 unexpected \(decoder\.weight\)$"
    with pytest.raises(BackboneError, match=wanted):
        load_backbone(source)


def test_a_misshapen_tensor_is_named(tiny_backbone: Backbone, tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_backbone) | {"norm.bias": torch.zeros(7)}
    with pytest.raises(BackboneError, match=r"1 misshapen \(norm\.bias is \[7\], wanted \[24\]\)$"):
        load_backbone(write(tmp_path / "vit.safetensors", tensors))


def test_tensors_under_other_names_are_no_vit(tmp_path: Path) -> None:
    source = write(tmp_path / "vit.safetensors", {"conv1.weight": torch.zeros(2, 2)})
    with pytest.raises(BackboneError, match=r"no ViT .*lacks patch_embed\.proj\.weight, pos_embed"):
        load_backbone(source)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("patch_embed.proj.weight", torch.zeros(3, 4)),
        ("pos_embed", torch.zeros(3)),
        ("blocks.0.mlp.fc1.weight", torch.zeros(())),
        ("reg_token", torch.zeros(3)),
    ],
)
def test_tensors_that_size_the_vit_but_are_misshapen_are_refused(
    tiny_backbone: Backbone, tmp_path: Path, name: str, tensor: Tensor
) -> None:
    source = write(tmp_path / "vit.safetensors", tiny_tensors(tiny_backbone) | {name: tensor})
    with pytest.raises(BackboneError):
        load_backbone(source)


@pytest.mark.parametrize(
    "change",
    [
        {"patch_size": 0},
        {"num_heads": 0},
        {"num_heads": 5},
        {"embed_dim": -24},
        {"img_size": "large"},
        {"norm_layer": "bogus"},
        {"act_layer": "bogus"},
        {"bogus": 1},
    ],
    ids=str,
)
def test_an_architecture_that_cannot_be_built_is_refused(
    tiny_backbone: Backbone, tmp_path: Path, change: dict[str, Any]
) -> None:
    architecture = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    source = write(
        tmp_path / "vit.safetensors",
        tiny_tensors(tiny_backbone),
        architecture=json.dumps(architecture | change),
    )
    with pytest.raises(BackboneError, match=r"vit\.safetensors"):
        load_backbone(source)


@pytest.mark.parametrize(
    "metadata",
    [
        {"architecture": "{"},
        {"architecture": "[1]"},
        {"architecture": "[" * 100_000},
        {"mean": "[0.5]"},
        {"mean": "5"},
        {"mean": '["x", 0.5, 0.5]'},
        {"mean": "[NaN, 0.5, 0.5]"},
        {"std": "[0, 1, 1]"},
    ],
    ids=lambda metadata: str(metadata)[:30],
)
def test_metadata_that_makes_no_sense_is_refused(
    tiny_backbone: Backbone, tmp_path: Path, metadata: dict[str, str]
) -> None:
    architecture = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    given = {"architecture": json.dumps(architecture)} | metadata
    source = write(tmp_path / "vit.safetensors", tiny_tensors(tiny_backbone), **given)
    with pytest.raises(BackboneError, match=r"vit\.safetensors"):
        load_backbone(source)


@pytest.mark.parametrize("told", [True, False], ids=["told", "inferred"])
@pytest.mark.parametrize("channels", [1, 4])
def test_images_must_be_red_green_and_blue(tmp_path: Path, channels: int, *, told: bool) -> None:
    architecture = PLAIN | {"num_classes": 0, "in_chans": channels}
    metadata = {"architecture": json.dumps(architecture)} if told else {}
    path = write(tmp_path / "x.safetensors", create_vit(**architecture).state_dict(), **metadata)

    wanted = rf"x\.safetensors: takes images of {channels} channel\(s\); wanted 3, red, green"
    with pytest.raises(BackboneError, match=wanted):
        load_backbone(path)


def test_images_must_be_square(tmp_path: Path) -> None:
    architecture = PLAIN | {"img_size": [16, 32], "num_classes": 0}
    vit = VisionTransformer(**architecture)
    source = write(
        tmp_path / "vit.safetensors", vit.state_dict(), architecture=json.dumps(architecture)
    )
    with pytest.raises(BackboneError, match="takes 16 x 32 images; wanted a square"):
        load_backbone(source)


@pytest.fixture
def timm_without_network(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """timm.create_model gives random weights for downloaded ones; what it was asked for."""
    create_model = timm.create_model
    asked: list[tuple[str, bool]] = []

    def create(name: str, *, pretrained: bool, **options: Any) -> torch.nn.Module:
        asked.append((name, pretrained))
        model: torch.nn.Module = create_model(name, pretrained=False, **options)
        return model

    monkeypatch.setattr(timm, "create_model", create)
    return asked


@pytest.mark.parametrize("prefix", ["", "timm/", "hf-hub:timm/"])
def test_a_timm_model_comes_with_its_preprocessing(
    timm_without_network: list[tuple[str, bool]], prefix: str
) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    backbone = load_backbone(prefix + name)
    assert timm_without_network[-1] == (name, True)
    assert (backbone.source, backbone.notes) == (prefix + name, ())
    assert backbone.preprocess == Preprocess(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert not any(parameter.requires_grad for parameter in backbone.vit.parameters())


@pytest.mark.usefixtures("timm_without_network")
def test_a_timm_model_of_mae_is_pooled_as_maes_own_file() -> None:
    backbone = load_backbone("vit_base_patch16_224.mae", img_size=32)
    assert backbone.preprocess == Preprocess(32, *NORMALISATIONS["imagenet"])
    assert backbone.pool == "patch_mean"


@pytest.mark.parametrize(
    ("name", "kind"), [("resnet10t", "ResNet"), ("vit_relpos_small_patch16_224", "VisionTransform")]
)
def test_a_timm_model_that_is_no_vision_transformer_is_refused_before_its_download(
    timm_without_network: list[tuple[str, bool]], name: str, kind: str
) -> None:
    with pytest.raises(BackboneError, match=f"{name} is a {kind}.*; wanted a VisionTransformer"):
        load_backbone(name)
    assert timm_without_network == [(name, False)]


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError(), ConnectionError()])
def test_no_network_is_told_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def create(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(BackboneError, match=r"cannot be had .*; give a local file instead"):
        load_backbone("vit_tiny_patch16_224")


def save_as_timms_hub(folder: Path) -> Any:
    """A ViT of 2 heads, 32 wide, whose activation no tensor tells, and pixels of its own."""
    vit: Any = timm.create_model("test_vit", act_layer="quick_gelu").eval()
    vit.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    save_for_hf(vit, str(folder), safe_serialization=True)
    return vit


def test_a_config_of_timms_hub_beside_the_weights_says_what_they_do_not(tmp_path: Path) -> None:
    vit = save_as_timms_hub(tmp_path)
    backbone = load_backbone(str(tmp_path / "model.safetensors"))
    assert backbone.preprocess == Preprocess(160, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert backbone.notes == ()
    images = torch.randn(2, 3, 160, 160)
    got, wanted = backbone.vit.forward_features(images), vit.forward_features(images)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_another_config_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    save_as_timms_hub(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    assert load_backbone(str(tmp_path / "model.safetensors")).notes


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("{", "no ViT can be made of it"),
        ('{"architecture": "bogus", "pretrained_cfg": {}}', "no ViT can be made of it: Unknown"),
        ('{"architecture": "resnet10t", "pretrained_cfg": {}}', "is a ResNet; wanted"),
    ],
)
def test_a_config_that_makes_no_vit_is_refused(tmp_path: Path, content: str, wanted: str) -> None:
    save_as_timms_hub(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BackboneError, match=rf"config\.json:? {wanted}"):
        load_backbone(str(tmp_path / "model.safetensors"))
