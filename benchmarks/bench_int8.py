"""Engines and precisions beside ONNX Runtime in fp32, on one thread, for widths of ViTs at 224 px.

    python benchmarks/bench_int8.py

LSPT with its defaults on 12 blocks with random weights: for speed alone. Engines take turns; the
best of 10 runs. Prints a line for each width and batch, and one JSON object at the end.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from lspt_serve.export import export_graph, quantise_graph
from lspt_serve.feed import TaskTensors
from lspt_serve.models import create_prompted_vit, load_backbone
from lspt_serve.reference import reference_images
from lspt_serve.runtime import PRECISIONS, Engine, OnnxEngine, OpenVINOEngine
from lspt_serve.training import create_bundle

REPEATS = 10
SIZES = ((192, 3), (384, 6), (768, 12))  # embed_dim, num_heads
BATCH_SIZES = (1, 8)


def measure(embed_dim: int, num_heads: int, folder: Path) -> list[dict[str, float]]:
    torch.manual_seed(0)
    sizes = {"img_size": 224, "patch_size": 16, "depth": 12, "num_classes": 0}
    architecture: dict[str, Any] = {**sizes, "embed_dim": embed_dim, "num_heads": num_heads}
    path, half = folder / "vit.safetensors", json.dumps([0.5, 0.5, 0.5])
    metadata = {"architecture": json.dumps(architecture), "mean": half, "std": half}
    save_file(VisionTransformer(**architecture).state_dict(), path, metadata=metadata)
    backbone = load_backbone(str(path))
    bundle = create_bundle(
        create_prompted_vit(backbone, "lspt", num_classes=2),
        backbone,
        name="random",
        labels=["no", "yes"],
    )
    graph = folder / "graph"
    export_graph(backbone, graph)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    quantise_graph(graph, bundle, pixels)
    engines: dict[str, Engine] = {
        "onnxruntime fp32": OnnxEngine(graph, device="cpu", num_threads=1)
    }
    for precision in PRECISIONS:
        engine = OpenVINOEngine(graph, precision=precision, num_threads=1)
        engines[f"openvino {precision}"] = engine
    return [
        {"embed_dim": embed_dim, "batch_size": size, **race(engines, bundle.method_tensors, size)}
        for size in BATCH_SIZES
    ]


def race(engines: dict[str, Engine], tensors: TaskTensors, batch_size: int) -> dict[str, float]:
    """Images in a second of each."""
    images, tasks = reference_images(batch_size, 224), [tensors] * batch_size
    best = dict.fromkeys(engines, float("inf"))
    for _ in range(REPEATS):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.features(images, tasks)
            best[name] = min(best[name], time.perf_counter() - started)
    return {name: round(batch_size / seconds, 1) for name, seconds in best.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "").parse_args()
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(*size, Path(folder))
        for row in rows[-len(BATCH_SIZES) :]:
            print(", ".join(f"{name} {value:g}" for name, value in row.items()), flush=True)
    print(json.dumps({"machine": platform.machine(), "repeats": REPEATS, "rows": rows}))


if __name__ == "__main__":
    main()
