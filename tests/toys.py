"""Small things that several tests make: images, bundles, a graph."""

import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from lspt_serve.bundle import Bundle
from lspt_serve.export import export_graph
from lspt_serve.feed import create_feed
from lspt_serve.graph import FEATURES, IMAGES, GraphSpec
from lspt_serve.manifest import BackboneRef, MethodRef
from lspt_serve.models import Backbone, create_prompted_vit
from lspt_serve.preprocess import Preprocess
from lspt_serve.training import Dataset, Split, create_bundle

FP32 = 1e-5  # of the largest value; products in another order give about 1e-7
COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
        ],
    ),
]

# LSPT as the paper has it, on a backbone of embed_dim 24; the defaults are what did best
PAPER: dict[str, Any] = {"coder_hidden": 24, "input_norm": False, "deep": False}


def random_bundle(
    backbone: Backbone,
    *,
    name: str = "colour",
    labels: Sequence[str] = ("blue", "green", "red"),
    method: str = "lspt",
    pool: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Bundle:
    """A task whose every tensor is off its initial value, so that none can be left out unseen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_prompted_vit(
            backbone, method, num_classes=len(labels), pool=pool, options=options
        ).fold()
        tensors = model.task_tensors()
        model.load_task_tensors({k: v + 0.2 * torch.rand_like(v) for k, v in tensors.items()})
    return create_bundle(model, backbone, name=name, labels=list(labels))


def simple_bundle(name: str, *, number: float = 0.0, version: int = 1) -> Bundle:
    """A task of two labels whose prompt and head are a number, for tests that run no model."""
    tensors = {
        "method.prompts": np.full((1, 1), number, np.float32),
        "head.weight": np.zeros((2, 1), np.float32),
        "head.bias": np.full(2, number, np.float32),
    }
    return Bundle.create(
        tensors,
        name=name,
        version=version,
        labels=["no", "yes"],
        method=MethodRef(name="vpt-shallow", options={"num_prompts": 1}),
        backbone=BackboneRef(source="none", sha256="0" * 64),
        preprocess=Preprocess(1),
        pool="cls",
    )


def prompts_graph(bundle: Bundle) -> GraphSpec:
    """What an export says of itself that takes this bundle's prompts and no other tensor."""
    manifest = bundle.manifest
    return GraphSpec(
        backbone=manifest.backbone,
        method=manifest.method.model_copy(update={"options": {}}),
        pool=manifest.pool,
        preprocess=manifest.preprocess,
        num_features=bundle.head[0].shape[1],
        inputs={"method.prompts": ["num_prompts", bundle.tensors["method.prompts"].shape[1]]},
        parity=[],
    )


def export_once(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the backbone's shared graph for LSPT; exported once in a session."""
    folder = tmp_path_factory.getbasetemp() / f"exported-{backbone.sha256[:12]}" / "graph"
    if not folder.exists():
        export_graph(backbone, folder)
    return folder


def run_graph(
    session: onnxruntime.InferenceSession,
    spec: GraphSpec,
    tasks: Sequence[Mapping[str, NDArray[np.float32]]],
    whose: Sequence[int],
    output: str = FEATURES,
) -> NDArray[np.float32]:
    """What a shared graph gives for noise, each row by the tensors of its task."""
    feed = create_feed(spec.inputs, [tasks[task] for task in whose])
    return session.run([output], {IMAGES: noise(len(whose)), **feed})[0]  # type: ignore[no-any-return]


def writes_corrupted(graph: Path) -> Callable[..., None]:
    """In place of write_onnx: a copy of the graph whose answers are others."""

    def write(module: object, path: Path, **settings: object) -> None:
        shutil.copy(graph, path)
        corrupt(path)

    return write


def corrupt(path: Path) -> None:
    """Turn the largest of an ONNX file's matrices upside down."""
    graph = onnx.load(path)
    largest = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    upside_down = np.ascontiguousarray(numpy_helper.to_array(largest)[::-1])
    largest.CopyFrom(numpy_helper.from_array(upside_down, largest.name))
    onnx.save(graph, path)


def noise(batch_size: int, *, seed: int = 1) -> NDArray[np.float32]:
    """What a normalised batch looks like, B x 3 x 32 x 32."""
    return np.random.default_rng(seed).standard_normal((batch_size, 3, 32, 32), np.float32)


def coloured(label: str, rng: np.random.Generator, *, side: int = 32) -> NDArray[np.uint8]:
    """A noisy square (H x W x 3) whose colour is its label."""
    grains = rng.integers(-30, 30, (side, side, 3))
    return np.clip(np.array(COLOURS[label]) + grains, 0, 255).astype(np.uint8)


def coloured_split(count: int, seed: int) -> Split:
    """`count` coloured squares for each label, label by label."""
    rng = np.random.default_rng(seed)
    images = [coloured(label, rng) for label in COLOURS for _ in range(count)]
    return Split(np.stack(images), np.repeat(np.arange(len(COLOURS)), count))


def coloured_dataset(train: int, val: int, test: int) -> Dataset:
    """So many squares for each label in the splits."""
    return Dataset(
        labels=list(COLOURS),
        train=coloured_split(train, 0),
        val=coloured_split(val, 1),
        test=coloured_split(test, 2),
        notes=[],
    )


def encoded(pixels: NDArray[np.uint8], file_format: str = "PNG") -> bytes:
    """An image file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


def write_coloured(
    folder: Path, labels: Sequence[str], *, count: int, seed: int = 0, side: int = 32
) -> None:
    """FOLDER/LABEL/*.png: `count` coloured squares for each label."""
    rng = np.random.default_rng(seed)
    for label in labels:
        (folder / label).mkdir(parents=True)
        for index in range(count):
            data = encoded(coloured(label, rng, side=side))
            (folder / label / f"{index:03}.png").write_bytes(data)
