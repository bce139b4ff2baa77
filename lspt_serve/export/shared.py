"""The shared graph: made once per backbone, never per task."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.export.fresh import (
    Inputs,
    free_shapes,
    fresh_task,
    method_tensors,
    with_other_prompts,
)
from lspt_serve.export.parity import Predict, check_parity, create_session
from lspt_serve.export.to_onnx import TRACED, write_onnx
from lspt_serve.export.wrapper import create_model
from lspt_serve.feed import create_feed, prompts_axes
from lspt_serve.files import atomic_folder
from lspt_serve.graph import (
    ATTENTION,
    BACK,
    BATCH,
    FEATURES,
    GRAPH_FILE,
    IMAGES,
    NUM_PROMPTS,
    PLACE,
    SPEC_FILE,
    GraphSpec,
)
from lspt_serve.manifest import BackboneRef, MethodRef
from lspt_serve.models import Backbone, PromptedViT, SharedGraph
from lspt_serve.reference import Reference, reference_images

__all__ = ["export_graph"]

REFERENCE_ROWS = 8
TASKS = "tasks"  # the axis of the tasks in a batch
AXES = {PLACE: {0: TASKS, 1: "rows"}, BACK: {0: BATCH}, NUM_PROMPTS: {0: TASKS}}


def export_graph(backbone: Backbone, out: Path, *, like: Bundle | None = None) -> GraphSpec:
    """Write the folder OUT: the backbone baked in, task tensors as inputs.

    Beside graph.onnx and graph.json is what torch answers, for every engine to be held to. The
    numbers of images, tasks and prompts are free. The graph is written only after its answers for
    two tasks with different tensors and numbers of prompts, alone and in one batch, agreed with
    torch.

    Args:
        like: serve bundles of this one's method, options, pool and preprocessing; None is LSPT
            with its defaults.

    Raises:
        BundleError: `like` belongs to another backbone or size of images.
        GraphError: the graph disagrees with torch.
        OutputError: OUT cannot be written.
    """
    first = create_model(backbone, like) if like else fresh_task(backbone, "lspt")
    second = with_other_prompts(backbone, first)
    tasks = {like.name if like else "fresh": first, "fresh, other prompts": second}
    inputs = free_shapes(method_tensors(first), method_tensors(second))
    own = [_arrays(model) for model in tasks.values()]
    feed = create_feed(inputs, [own[row % len(own)] for row in range(TRACED)])
    traced = {name: torch.from_numpy(array) for name, array in feed.items()}
    tensors = {name: traced.pop(name) for name in inputs}
    grid = backbone.vit.patch_embed.grid_size if first.can_be_watched else None
    with atomic_folder(out) as folder:
        write_onnx(
            SharedGraph(first),
            folder / GRAPH_FILE,
            img_size=backbone.preprocess.img_size,
            outputs=[FEATURES] if grid is None else [FEATURES, ATTENTION],
            inputs={"tensors": tensors, "rows": traced},
            axes={"tensors": _axes(inputs), "rows": AXES},
        )
        spec = GraphSpec(
            backbone=BackboneRef(source=backbone.source, sha256=backbone.sha256),
            method=MethodRef(name=first.method.name, options=first.method.settings.graph_options()),
            pool=first.pool,
            preprocess=like.manifest.preprocess if like else backbone.preprocess,
            num_features=first.head.in_features,
            grid=grid,
            inputs=inputs,
            parity=check_parity(
                _predictor(folder / GRAPH_FILE, inputs, list(tasks.values())),
                tasks,
                backbone.preprocess.img_size,
            ),
        )
        _refer(list(tasks.values()), backbone.preprocess.img_size).save(folder)
        (folder / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n", "utf-8")
    return spec


def _predictor(path: Path, inputs: Inputs, tasks: Sequence[PromptedViT]) -> Predict:
    session = create_session(path)
    tensors = {model: _arrays(model) for model in tasks}

    def predict(
        images: NDArray[np.float32], models: Sequence[PromptedViT]
    ) -> list[NDArray[np.float32]]:
        feed = create_feed(inputs, [tensors[model] for model in models])
        (features,) = session.run([FEATURES], {IMAGES: images, **feed})
        with torch.inference_mode():
            return [
                model.head(torch.from_numpy(row)).numpy()
                for row, model in zip(features, models, strict=True)
            ]

    return predict


def _refer(tasks: Sequence[PromptedViT], img_size: int) -> Reference:
    """What torch answers in fp32, the tasks taking turns."""
    images = reference_images(REFERENCE_ROWS, img_size)
    whose = [row % len(tasks) for row in range(len(images))]
    with torch.inference_mode():
        rows = [
            SharedGraph(tasks[task].eval())(torch.from_numpy(image[None]))
            for image, task in zip(images, whose, strict=True)
        ]
    features, *attention = (torch.cat(own).numpy() for own in zip(*rows, strict=True))
    return Reference(
        [_arrays(model) for model in tasks],
        np.array(whose),
        features,
        attention=attention[0] if attention else None,
    )


def _arrays(model: PromptedViT) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy() for name, tensor in method_tensors(model).items()}


def _axes(inputs: Inputs) -> dict[str, dict[int, str]]:
    axes = prompts_axes(inputs)
    return {
        name: {0: TASKS, axes[name] + 1: NUM_PROMPTS} if name in axes else {0: TASKS}
        for name in inputs
    }
