from typing import Any

import pytest
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lspt_serve.errors import BackboneError
from lspt_serve.models.architecture import infer_architecture


def tensors_of(**architecture: Any) -> dict[str, Tensor]:
    """Names and shapes of a ViT; on the meta device nothing of it is in memory."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    wanted = sizes | {"num_classes": 0} | architecture
    return dict(VisionTransformer(**wanted, device="meta").state_dict())


def test_infer_architecture_leaves_no_room_for_defaults() -> None:
    vit = tensors_of(reg_tokens=4, no_embed_class=True, init_values=0.5, mlp_ratio=2.0)
    assert infer_architecture(vit) == {
        "img_size": 32,
        "patch_size": 8,
        "in_chans": 3,
        "embed_dim": 128,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "qkv_bias": True,
        "class_token": True,
        "reg_tokens": 4,
        "no_embed_class": True,
        "init_values": 1e-5,
        "pre_norm": False,
        "final_norm": True,
        "fc_norm": False,
        "global_pool": "token",
    }


@pytest.mark.parametrize(
    ("embed_dim", "num_heads"),
    [
        (192, 3),
        (384, 6),
        (768, 12),
        (1024, 16),
        (1152, 16),
        (1280, 16),
        (1408, 16),
        (1536, 24),
        (1664, 16),
    ],
)
def test_the_number_of_heads_is_that_of_the_published_vits(embed_dim: int, num_heads: int) -> None:
    tensors = tensors_of(embed_dim=embed_dim, num_heads=num_heads)
    assert infer_architecture(tensors)["num_heads"] == num_heads


def test_a_format_may_know_better_how_many_heads() -> None:
    tensors = tensors_of(embed_dim=384, num_heads=12)
    assert infer_architecture(tensors, num_heads={384: 12})["num_heads"] == 12


def test_a_width_that_does_not_tell_its_heads_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"200 wide: how many heads .* architecture metadata"):
        infer_architecture(tensors_of(embed_dim=200, num_heads=4))


@pytest.mark.parametrize(("embed_dim", "hidden"), [(448, 488), (448, 1840), (1536, 8192)])
def test_the_hidden_width_comes_out_whole(embed_dim: int, hidden: int) -> None:
    # embed_dim * (hidden / embed_dim) falls just short of hidden for some of these
    tensors = tensors_of() | {
        "patch_embed.proj.weight": torch.empty(embed_dim, 3, 8, 8, device="meta"),
        "blocks.0.mlp.fc1.weight": torch.empty(hidden, embed_dim, device="meta"),
    }
    assert int(infer_architecture(tensors)["mlp_ratio"] * embed_dim) == hidden


def test_a_gated_mlp_is_told_by_its_widths() -> None:
    tensors = tensors_of(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=4.0)
    inferred = infer_architecture(tensors)
    assert (inferred["mlp_layer"], inferred["act_layer"]) == (SwiGLUPacked, nn.SiLU)
    assert inferred["mlp_ratio"] == 4.0


def test_names_of_another_library_are_told() -> None:
    tensors = {f"embeddings.{n}": torch.zeros(1) for n in range(5)}
    wanted = r"lacks patch_embed\.proj\.weight, .*has 5 tensors: embeddings\.0.* and 2 more$"
    with pytest.raises(BackboneError, match=wanted):
        infer_architecture(tensors)
