"""Ways to answer a batch of several tasks: ours, and what one does without it.

B rows of a batch, F pooled features, K classes.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from vits import create_backbone, random_bundles, task_name

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.export import create_model, export_graph
from lspt_serve.export.to_onnx import write_onnx
from lspt_serve.export.wrapper import OneTaskGraph
from lspt_serve.graph import IMAGES, PROBABILITIES
from lspt_serve.models import Backbone
from lspt_serve.runtime import Classifier, Engine, PromptStore, activate
from lspt_serve.runtime.choose import create_engine

__all__ = [
    "CODERS",
    "Answer",
    "Sessions",
    "Setup",
    "bake",
    "by_session",
    "create_classifier",
    "export_task",
    "grouped",
    "in_one_run",
    "mixed",
    "open_store",
    "set_up",
    "swapped",
    "to_probabilities",
]

CODERS = ("default coder", "full-width coder")
PLENTY = 2**40  # bytes: all tasks stay in memory
WAIT_S = 1.0  # for a batch to be full, which it is at once
Array = NDArray[np.float32]
Answer = Callable[
    [Sequence[int]], Sequence[Array] | Array
]  # the tasks of the rows to probabilities
Sessions = Mapping[int, Any]  # task -> ONNX Runtime session


@dataclass(frozen=True)
class Setup:
    """A graph for one width of coder, in an engine, and bundles on disk that fit it."""

    backbone: Backbone
    engine: Engine
    graph: Path
    bundles: Path
    task_bytes: int  # of a task's tensors in memory


def set_up(vit: str, coder: str, num_tasks: int, engine: Sequence[Any], folder: Path) -> Setup:
    """Everything in `folder`; the engine is its name and precision."""
    backbone = create_backbone(vit, folder)
    width = None if coder == CODERS[0] else backbone.vit.embed_dim
    name, precision = engine
    for bundle in random_bundles(backbone, num_tasks, coder_hidden=width):
        save_bundle(bundle, folder / "bundles" / bundle.name)
    export_graph(backbone, folder / "graph", like=bundle)
    return Setup(
        backbone,
        create_engine(folder / "graph", name, precision, "cpu"),
        folder / "graph",
        folder / "bundles",
        sum(tensor.nbytes for tensor in bundle.tensors.values()),
    )


def open_store(setup: Setup, num_tasks: int, *, host_bytes: int = PLENTY) -> PromptStore:
    """A store of the first tasks alone, by way of a folder of hard links."""
    folder = setup.bundles.with_name(f"first-{num_tasks}")
    if not folder.exists():
        folder.mkdir()
        for number in range(num_tasks):
            name = task_name(number)
            shutil.copytree(setup.bundles / name, folder / name, copy_function=os.link)
    return PromptStore(folder, setup.engine.graph, host_bytes=host_bytes)


def create_classifier(setup: Setup, store: PromptStore, batch_size: int) -> Classifier:
    """It runs when a batch is full: rows that are submitted together run together."""
    return Classifier(setup.engine, store, max_batch_size=batch_size, max_delay_s=WAIT_S)


def mixed(classifier: Classifier, images: Array) -> Answer:
    """Ours, as the server does it: look the task of each row up, submit, one run for all."""

    def answer(tasks: Sequence[int]) -> list[Array]:
        rows = [
            classifier.submit(image, classifier.store[task_name(task)])
            for image, task in zip(images, tasks, strict=True)
        ]
        return [activate(row.result()) for row in rows]

    return answer


def in_one_run(engine: Engine, store: PromptStore, images: Array) -> Answer:
    """Ours without batcher and heads: features (F) of the rows."""

    def answer(tasks: Sequence[int]) -> Array:
        return engine.features(images, [store[task_name(task)].method_tensors for task in tasks])

    return answer


def grouped(engine: Engine, store: PromptStore, images: Array) -> Answer:
    """A run for each task in the batch, on the same graph."""

    def answer(tasks: Sequence[int]) -> list[Array]:
        def run(task: int, rows: list[int]) -> list[Array]:
            bundle = store[task_name(task)]
            features = engine.features(images[rows], [bundle.method_tensors] * len(rows))
            return to_probabilities(features, [bundle] * len(rows))

        return _by_task(tasks, run)

    return answer


def by_session(sessions: Sessions, images: Array) -> Answer:
    """A session of its own for each task, which has the task's tensors baked in."""

    def answer(tasks: Sequence[int]) -> list[Array]:
        def run(task: int, rows: list[int]) -> list[Array]:
            return list(sessions[task].run([PROBABILITIES], {IMAGES: images[rows]})[0])

        return _by_task(tasks, run)

    return answer


def swapped(setup: Setup, store: PromptStore, images: Array) -> Answer:
    """torch in fp32, eager, with one model whose tensors are changed from task to task."""
    model = create_model(setup.backbone, store[task_name(0)])

    @torch.inference_mode()
    def run(task: int, rows: list[int]) -> list[Array]:
        tensors = store[task_name(task)].tensors
        model.load_task_tensors({name: torch.from_numpy(t) for name, t in tensors.items()})
        return list(model(torch.from_numpy(images[rows])).softmax(dim=-1).numpy())

    return lambda tasks: _by_task(tasks, run)


def _by_task(tasks: Sequence[int], run: Callable[[int, list[int]], list[Array]]) -> list[Array]:
    """Run the rows of each task together; answers in the order of the batch."""
    answers: dict[int, Array] = {}
    for task in dict.fromkeys(tasks):
        rows = [row for row, other in enumerate(tasks) if other == task]
        answers |= dict(zip(rows, run(task, rows), strict=True))
    return [answers[row] for row in range(len(tasks))]


def to_probabilities(features: Sequence[Array] | Array, bundles: Sequence[Bundle]) -> list[Array]:
    """Features (F), each by the head of its bundle."""
    heads = [bundle.head for bundle in bundles]
    return [activate(w @ row + b) for row, (w, b) in zip(features, heads, strict=True)]


def export_task(setup: Setup, bundle: Bundle) -> onnx.ModelProto:
    """One task's graph whose tensors have names, for `bake` to fill in others."""
    path = setup.graph.with_name("task.onnx")
    tensors = {name: torch.from_numpy(tensor) for name, tensor in bundle.tensors.items()}
    write_onnx(
        OneTaskGraph(create_model(setup.backbone, bundle)),
        path,
        img_size=setup.backbone.preprocess.img_size,
        outputs=[PROBABILITIES],
        inputs={"tensors": tensors},
        axes={"tensors": {name: {} for name in tensors}},
        defaults=bundle.tensors,
    )
    return onnx.load(path)


def bake(graph: onnx.ModelProto, bundle: Bundle) -> Any:
    """A session in which the task's tensors are constants, as `lspt export --bundle` has them."""
    own = {value.name: value for value in graph.graph.initializer}
    for name, tensor in bundle.tensors.items():
        own[name].CopyFrom(numpy_helper.from_array(tensor, name))
    images = [value for value in graph.graph.input if value.name == IMAGES]
    del graph.graph.input[:]  # what is an input too is no constant
    graph.graph.input.extend(images)
    options = onnxruntime.SessionOptions()
    # else the threads of the session before spin, and take the cores from the one that runs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
