"""What makes torch fast on a GPU, as far as it can be tested without one."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from toys import noise, random_bundle

from lspt_serve.bundle import Bundle
from lspt_serve.export import create_model
from lspt_serve.feed import Feed, create_feed
from lspt_serve.graph import BACK, NUM_PROMPTS, PLACE, Dim
from lspt_serve.models import Backbone
from lspt_serve.models.rows import InOrder, ManyTasks, OneTask, Rows
from lspt_serve.runtime.gpu.graphs import round_up

pytest.importorskip("triton", reason="Triton is where torch is built for CUDA")

from lspt_serve.runtime.gpu import fused

KERNEL = """
import torch
from torch import nn
from lspt_serve.runtime.gpu.add_norm import add_norm

for width in (24, 192, 768):
    norm = nn.LayerNorm(width, eps=1e-6).requires_grad_(False)
    norm.weight.normal_(), norm.bias.normal_()
    for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 8e-3)):
        x, y = 3 + torch.randn(2, 5, width), torch.randn(2, 5, width).to(dtype)
        wanted = x + y
        out = add_norm(x, y, norm)
        assert torch.equal(x, wanted) and out.dtype == dtype
        torch.testing.assert_close(out.float(), norm(wanted), rtol=close, atol=close)
print("equal")
"""


def by_torch(x: Tensor, y: Tensor, norm: nn.LayerNorm) -> Tensor:
    """In the place of the kernel, which needs a GPU."""
    x += y
    normed: Tensor = norm(x)
    return normed.to(y.dtype)


def test_addition_and_norm_in_one_pass_are_those_of_torch() -> None:
    """In Triton's interpreter, on the CPU."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": ""}

    ran = subprocess.run(
        [sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True
    )

    assert ran.stdout == "equal\n", ran.stderr


@pytest.mark.parametrize("method", ["lspt", "vpt-shallow", "vpt-deep", "gated", "v2apt", "linear"])
def test_features_with_fewer_passes_are_the_model_s(
    tiny_backbone: Backbone, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32 on the CPU, of two tasks with 5 and 7 prompts."""
    monkeypatch.setattr(fused, "add_norm", by_torch)
    counts: list[dict[str, Any]] = (
        [{}, {}] if method == "linear" else [{"num_prompts": 5}, {"num_prompts": 7}]
    )
    bundles = [
        random_bundle(tiny_backbone, method=method, seed=seed, **count)
        for seed, count in enumerate(counts)
    ]
    models = [create_model(tiny_backbone, bundle) for bundle in bundles]
    whose, images = [0, 1, 1, 0, 1], torch.from_numpy(noise(5))
    feed = create_feed(inputs_of(bundles[0]), [bundles[task].method_tensors for task in whose])
    tensors = {f"model.{name}": torch.from_numpy(feed[name]) for name in bundles[0].method_tensors}
    rows = to_rows(feed) if feed else OneTask(5)
    changed = copy.deepcopy(models[0])
    fused.embed_by_product(changed.backbone)

    with torch.inference_mode():
        got = functional_call(fused.FusedFeatures(changed), tensors, (images, rows))
        wanted = [
            models[task].forward_features(image[None])
            for task, image in zip(whose, images, strict=True)
        ]

    assert fused.can_be_fused(changed.backbone)
    assert not isinstance(changed.backbone.patch_embed.proj, nn.Conv2d)
    torch.testing.assert_close(got, torch.cat(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lspt", "gated", "v2apt"])
@pytest.mark.parametrize("whose", [[0, 0, 0], [0, 1, 0]], ids=["of one task", "each its own"])
def test_rows_in_order_are_answered_as_any_rows_are(
    tiny_backbone: Backbone, method: str, whose: list[int]
) -> None:
    bundles = [
        random_bundle(tiny_backbone, method=method, seed=count, num_prompts=count)
        for count in (5, 7)
    ]
    model, images = create_model(tiny_backbone, bundles[0]), torch.from_numpy(noise(3))
    feed = create_feed(inputs_of(bundles[0]), [bundles[task].method_tensors for task in whose])
    tensors = {name: torch.from_numpy(feed[name]) for name in bundles[0].method_tensors}
    counts = torch.from_numpy(feed[NUM_PROMPTS])
    order = whose if len(counts) > 1 else [0]  # the tasks as each row has its own, or one for all

    def run(own: dict[str, Tensor], rows: Rows) -> Tensor:
        named = {f"model.{name}": tensor for name, tensor in own.items()}
        return functional_call(Features(model), named, (images, rows))  # type: ignore[no-any-return]

    with torch.inference_mode():
        wanted = run(tensors, to_rows(feed))
        own = {name: tensor[order] for name, tensor in tensors.items()}
        got = run(own, InOrder(3, len(order), counts[order]))

    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


class Features(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor, rows: Rows) -> Tensor:
        return self.model.forward_features(images, rows)  # type: ignore[no-any-return]


def to_rows(feed: Feed) -> ManyTasks:
    place, back, counts = (torch.from_numpy(feed[name]) for name in (PLACE, BACK, NUM_PROMPTS))
    return ManyTasks(place, back, counts)


def inputs_of(bundle: Bundle) -> dict[str, list[Dim]]:
    """As a graph of it has them."""
    count = bundle.manifest.method.options.get(NUM_PROMPTS)
    return {
        name: [NUM_PROMPTS if size == count else size for size in tensor.shape]
        for name, tensor in bundle.method_tensors.items()
    }


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"init_values": 0.1}, True),
        ({"qk_norm": True}, True),
        ({"scale_mlp_norm": True}, False),
    ],
)
def test_only_plain_blocks_are_fused(
    make_backbone: Callable[..., Backbone], change: dict[str, Any], fits: bool
) -> None:
    assert fused.can_be_fused(make_backbone(**change).vit) == fits


def test_graphs_are_of_few_sizes_that_waste_little() -> None:
    sizes = [round_up(count) for count in range(1, 257)]

    assert all(count <= size < 1.25 * count for count, size in enumerate(sizes, start=1))
    assert len(set(sizes)) == 28
