"""The shared graph: made once per backbone, never per task."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lspt_serve.bundle import BackboneRef, Bundle, MethodRef
from lspt_serve.export.parity import Predict, check_parity, create_session
from lspt_serve.export.to_onnx import write_onnx
from lspt_serve.export.wrapper import SharedGraph, create_model
from lspt_serve.files import atomic_folder
from lspt_serve.graph import FEATURES, GRAPH_FILE, IMAGES, SPEC_FILE, Dim, GraphSpec
from lspt_serve.models import Backbone, PromptedViT, create_prompted_vit

__all__ = ["export_graph"]

NUM_PROMPTS = "num_prompts"  # the option, and the name of the axis that it sizes
NOISE = 0.1
NUM_CLASSES = 10  # of a freshly initialised task; its head stays outside the graph


def export_graph(backbone: Backbone, out: Path, *, like: Bundle | None = None) -> GraphSpec:
    """Write OUT/graph.onnx and OUT/graph.json: the backbone baked in, task tensors as inputs.

    The numbers of images and of prompts are free. The graph is written only after its answers for
    two tasks with different tensors and numbers of prompts, fed to one session, agreed with torch.

    Args:
        like: serve bundles of this one's method, options, pool and preprocessing; None is LSPT
            with its defaults.

    Raises:
        BundleError: `like` belongs to another backbone or size of images.
        GraphError: the graph disagrees with torch.
        OutputError: OUT cannot be written.
    """
    first = create_model(backbone, like) if like else _fresh(backbone, MethodRef(name="lspt"))
    method = MethodRef(name=first.method.name, options=asdict(first.method.settings))
    second = _fresh(backbone, _with_one_more_prompt(method), pool=first.pool)
    tensors, axes = _method_tensors(first), _free_axes(first, second)
    with atomic_folder(out) as folder:
        write_onnx(
            SharedGraph(first),
            folder / GRAPH_FILE,
            img_size=backbone.preprocess.img_size,
            output=FEATURES,
            inputs={"tensors": tensors},
            axes={"tensors": axes},
        )
        spec = GraphSpec(
            backbone=BackboneRef(source=backbone.source, sha256=backbone.sha256),
            method=method.model_copy(update={"options": first.method.settings.graph_options()}),
            pool=first.pool,
            preprocess=like.manifest.preprocess if like else backbone.preprocess,
            num_features=first.head.in_features,
            inputs={name: _shape(tensor, axes[name]) for name, tensor in tensors.items()},
            parity=check_parity(
                _predictor(folder / GRAPH_FILE),
                {like.name if like else "fresh": first, "fresh, one more prompt": second},
                backbone.preprocess.img_size,
            ),
        )
        (folder / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n", "utf-8")
    return spec


def _fresh(backbone: Backbone, method: MethodRef, *, pool: str | None = None) -> PromptedViT:
    """A task as it is before training, without zeros, which would hide what comes before them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_prompted_vit(
            backbone, method.name, num_classes=NUM_CLASSES, pool=pool, **method.options
        )
        for tensor in model.method.parameters():
            if not tensor.any():
                torch.nn.init.trunc_normal_(tensor, std=NOISE)
    return model


def _with_one_more_prompt(method: MethodRef) -> MethodRef:
    options = dict(method.options)
    if NUM_PROMPTS in options:
        options[NUM_PROMPTS] += 1
    return method.model_copy(update={"options": options})


def _predictor(path: Path) -> Predict:
    session = create_session(path)

    def predict(images: NDArray[np.float32], model: PromptedViT) -> NDArray[np.float32]:
        task = {name: tensor.numpy() for name, tensor in _method_tensors(model).items()}
        (features,) = session.run([FEATURES], {IMAGES: images, **task})
        with torch.inference_mode():
            return np.asarray(model.head(torch.from_numpy(features)))

    return predict


def _method_tensors(model: PromptedViT) -> dict[str, Tensor]:
    return {
        f"method.{name}": tensor.detach().clone()
        for name, tensor in sorted(model.method.named_parameters())
    }


def _free_axes(first: PromptedViT, second: PromptedViT) -> dict[str, dict[int, str]]:
    """Per tensor the axes in which a task with one more prompt differs."""
    wider = _method_tensors(second)
    return {
        name: {
            axis: NUM_PROMPTS
            for axis, (size, wide) in enumerate(zip(tensor.shape, wider[name].shape, strict=True))
            if size != wide
        }
        for name, tensor in _method_tensors(first).items()
    }


def _shape(tensor: Tensor, axes: dict[int, str]) -> list[Dim]:
    return [axes.get(axis, size) for axis, size in enumerate(tensor.shape)]
