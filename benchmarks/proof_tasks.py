"""Tasks that no two answers can be mixed up of, and what each has to answer.

An answer is all logits of a task, in the order of its labels. Those of two tasks, or of two
versions of one, are far apart for every image: their heads are drawn anew.

K classes.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from vits import create_backbone, random_bundles

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.export import export_graph
from lspt_serve.models import Backbone
from lspt_serve.preprocess import preprocess_image
from lspt_serve.runtime import Engine
from lspt_serve.runtime.choose import create_engine

__all__ = [
    "TOLERANCE",
    "Answers",
    "Key",
    "answer_all",
    "check_apart",
    "create_images",
    "create_versions",
    "prepare",
]

TOLERANCE = 1e-2  # of a logit; engines differ by some 1e-5, answers of two tasks by 1 and more
APART = 10  # so many tolerances at least lie between any two answers
HEAD_STD = 1.0
Array = NDArray[np.float32]
Key = tuple[int, str, int]  # image, task, version
Answers = Mapping[Key, Array]


def create_images(count: int, side: int, *, seed: int = 0) -> list[bytes]:
    """JPEG files of coloured clouds, as large as the model's input or a little larger."""
    rng = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        file = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def create_versions(plain: Bundle, wanted: Iterable[tuple[str, int]]) -> Iterator[Bundle]:
    """A bundle for each task and version: the tensors of `plain`, each time with another head."""
    kept = {"labels", "method", "backbone", "preprocess", "pool"}
    about: dict[str, Any] = {name: getattr(plain.manifest, name) for name in kept}
    for name, version in wanted:
        rng = np.random.default_rng([*name.encode(), version])
        heads = {
            tensor: HEAD_STD * rng.standard_normal(plain.tensors[tensor].shape, np.float32)
            for tensor in ("head.weight", "head.bias")
        }
        moved = {
            tensor: values + 0.02 * rng.standard_normal(values.shape, np.float32)
            for tensor, values in plain.method_tensors.items()
        }
        yield Bundle.create({**moved, **heads}, name=name, version=version, **about)


def prepare(
    vit: str, folder: Path, names: Sequence[str], *, engine: str = "onnxruntime"
) -> tuple[Backbone, Engine, Bundle]:
    """FOLDER/graph, and FOLDER/bundles with version 1 of each name; the bundle is to make more of.

    The engine is one in this process, for what the server's has to answer.
    """
    backbone = create_backbone(vit, folder)
    (plain,) = random_bundles(backbone, 1)
    export_graph(backbone, folder / "graph", like=plain)
    (folder / "bundles").mkdir()
    for bundle in create_versions(plain, ((name, 1) for name in names)):
        save_bundle(bundle, folder / "bundles" / bundle.name)
    name: Any = engine
    return backbone, create_engine(folder / "graph", name, "fp32", "cpu"), plain


def answer_all(engine: Engine, images: Sequence[bytes], bundles: Iterable[Bundle]) -> Answers:
    """The logits (K) of every image by every bundle; each bundle is run alone."""
    answers: dict[Key, Array] = {}
    preprocess = engine.graph.preprocess
    pixels = np.stack([preprocess_image(image, preprocess) for image in images])
    for bundle in bundles:
        weight, bias = bundle.head
        features = engine.features(pixels, [bundle.method_tensors] * len(images))
        for number, row in enumerate(features):
            key = (number, bundle.name, bundle.manifest.version)
            answers[key] = (weight @ row + bias).astype(np.float32)
    return answers


def check_apart(answers: Answers) -> float:
    """The least difference of two answers; ends the script where it could hide a mix-up."""
    rows = np.stack([*answers.values()])
    least = float("inf")
    for number, row in enumerate(rows[:-1]):
        least = min(least, float(np.abs(rows[number + 1 :] - row).max(axis=1).min()))
    if least < APART * TOLERANCE:
        raise SystemExit(f"two answers differ by {least:.1e} alone; a mix-up would not be seen")
    return least
