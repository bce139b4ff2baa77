"""ViTs and bundles with random weights, which cost what trained ones do; and what they compute.

B batch, F pooled features.
"""

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lspt_serve.bundle import Bundle
from lspt_serve.export import create_model
from lspt_serve.export.to_onnx import write_onnx
from lspt_serve.graph import FEATURES, GRAPH_FILE, SPEC_FILE, GraphSpec
from lspt_serve.manifest import MethodRef
from lspt_serve.models import Backbone, create_prompted_vit, load_backbone
from lspt_serve.models.prompted_vit import pool_tokens
from lspt_serve.reference import Reference, reference_images
from lspt_serve.training import create_bundle

__all__ = [
    "DTYPES",
    "PlainViT",
    "count_flops",
    "create_backbone",
    "export_plain",
    "linear_bundle",
    "measure_ceiling",
    "random_bundles",
    "short_name",
    "task_name",
]

NUM_PROMPTS, NUM_CLASSES = 10, 10
NOISE = 0.02  # added to every tensor of a task; a head's answers then differ by some percent
REFERENCE_ROWS = 8
CEILING_REPEATS = 10
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def create_backbone(vit: str, folder: Path) -> Backbone:
    """A timm model with random weights, by way of a file in `folder`; or the file `vit` itself."""
    if Path(vit).is_file():
        return load_backbone(vit)
    torch.manual_seed(0)
    path = folder / f"{vit}.safetensors"
    save_file(timm.create_model(vit, num_classes=0).state_dict(), path)
    return load_backbone(str(path))


def short_name(vit: str) -> str:
    """As figures have it: a file's without its folder."""
    return Path(vit).stem if Path(vit).is_file() else vit


def task_name(number: int) -> str:
    return f"task{number:04}"


def random_bundles(
    backbone: Backbone, count: int, *, coder_hidden: int | None = None
) -> Iterator[Bundle]:
    """LSPT tasks with all tensors off their initial values; `coder_hidden` None is its default."""
    torch.manual_seed(0)
    options = {"num_prompts": NUM_PROMPTS, "coder_hidden": coder_hidden}
    model = create_prompted_vit(backbone, "lspt", num_classes=NUM_CLASSES, options=options)
    labels = [f"label{number}" for number in range(NUM_CLASSES)]
    first = create_bundle(model, backbone, name=task_name(0), labels=labels)
    about = first.manifest.model_dump(include={"labels", "pool"})
    for number in range(count):
        rng = np.random.default_rng(number)
        yield Bundle.create(
            {
                name: tensor + NOISE * rng.standard_normal(tensor.shape, np.float32)
                for name, tensor in first.tensors.items()
            },
            name=task_name(number),
            method=first.manifest.method,
            backbone=first.manifest.backbone,
            preprocess=first.manifest.preprocess,
            **about,
        )


def linear_bundle(backbone: Backbone) -> Bundle:
    """A task without prompts, as the graph of `export_plain` takes it."""
    model = create_prompted_vit(backbone, "linear", num_classes=NUM_CLASSES)
    labels = [f"label{number}" for number in range(NUM_CLASSES)]
    return create_bundle(model, backbone, name="linear", labels=labels)


class PlainViT(nn.Module):
    """timm's own forward, without prompts: images (B x 3 x H x W) to features (B x F)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.vit: Any = backbone.vit
        self.pool = backbone.pool

    def forward(self, images: Tensor) -> Tensor:
        x = self.vit.forward_features(images)
        prefix, patches = x[:, : self.vit.num_prefix_tokens], x[:, self.vit.num_prefix_tokens :]
        pooled = pool_tokens(self.pool, prefix, patches[:, :0], patches)
        return self.vit.fc_norm(pooled).flatten(start_dim=1)  # type: ignore[no-any-return]


def export_plain(backbone: Backbone, like: GraphSpec, out: Path) -> None:
    """A folder as `export_graph` writes it, so that every engine can run it, of a PlainViT.

    For the engines it is a linear probe's graph: no tensor of a task is fed.
    """
    out.mkdir()
    plain = PlainViT(backbone)
    img_size = backbone.preprocess.img_size
    write_onnx(plain, out / GRAPH_FILE, img_size=img_size, outputs=[FEATURES])
    images = reference_images(REFERENCE_ROWS, img_size)
    with torch.inference_mode():
        features = plain(torch.from_numpy(images)).numpy()
    Reference([{}], np.zeros(len(images), np.int64), features).save(out)
    own = {"method": MethodRef(name="linear"), "inputs": {}, "parity": [], "pool": backbone.pool}
    own |= {"num_features": features.shape[1], "grid": None}
    (out / SPEC_FILE).write_text(like.model_copy(update=own).model_dump_json(indent=2), "utf-8")


def count_flops(backbone: Backbone, bundle: Bundle | None) -> int:
    """Of one image, in matrix products and convolutions, as torch counts them.

    Args:
        bundle: with its prompts and coder, without its head; None: the plain ViT.
    """
    size = backbone.preprocess.img_size
    forward: Callable[[Tensor], Tensor] = PlainViT(backbone)
    if bundle is not None:
        # the counter takes no parameters with a gradient where there is none to be had
        forward = create_model(backbone, bundle).requires_grad_(False).forward_features
    # the plain kernel is of products that every version of torch counts
    plain = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        forward(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


def measure_ceiling(precision: str, device: str, side: int) -> float:
    """FLOP/s of the best of ten products of square matrices, by whatever makes the best here.

    On a CPU torch's library is not the fastest on every machine: OpenVINO's product with a constant
    is tried too.
    """
    products = [_product_of_torch(precision, device, side)]
    if device == "cpu" and find_spec("openvino"):
        products.append(_product_of_openvino(precision, side))
    best = float("inf")
    for product in products:
        for _ in range(CEILING_REPEATS):
            started = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _product_of_torch(precision: str, device: str, side: int) -> Callable[[], object]:
    a = torch.randn(side, side, device=device).to(DTYPES[precision])
    return lambda: (a @ a)[0, 0].item()


def _product_of_openvino(precision: str, side: int) -> Callable[[], object]:
    import openvino
    from openvino import opset13 as ops

    matrix = np.random.default_rng(0).standard_normal((side, side), np.float32)
    given = ops.parameter([side, side], np.float32)
    model = openvino.Model([ops.matmul(given, ops.constant(matrix), False, False)], [given])
    hint = {"INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision)}
    request = openvino.Core().compile_model(model, "CPU", hint).create_infer_request()
    return lambda: request.infer([matrix], share_inputs=True)
