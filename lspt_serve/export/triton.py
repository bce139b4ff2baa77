"""A model repository for NVIDIA Triton: every task in one model, or one task in a model of its own.

DIR/lspt/         python backend: the service's own runtime; image and task in, labels out
    config.pbtxt  1/model.py  graph/  bundles/
DIR/lspt-graph/   onnxruntime, python or tensorrt: the shared graph alone, for `--engine triton`
    config.pbtxt  1/graph.onnx, 1/model.py and all of the graph's folder, or 1/model.plan
DIR/NAME/         onnxruntime backend: one task baked in; images in, probabilities out
    config.pbtxt  1/model.onnx  labels.txt
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from lspt_serve.bundle import Bundle
from lspt_serve.errors import OutputError, first_line, printable
from lspt_serve.export.baked import export_bundle
from lspt_serve.export.shared import export_graph
from lspt_serve.export.tensorrt import TIMINGS, build_engine
from lspt_serve.files import atomic_folder
from lspt_serve.graph import (
    ATTENTION,
    BACK,
    FEATURES,
    GRAPH_FILE,
    IMAGES,
    NUM_PROMPTS,
    PLACE,
    PROBABILITIES,
    TRITON_CONFIG,
    TRITON_GRAPH,
    TRITON_MODEL,
    TRITON_PRECISION,
    TRITON_SPEC,
    GraphSpec,
    ParityRow,
)
from lspt_serve.models import Backbone
from lspt_serve.reference import Precision
from lspt_serve.sizes import MAX_BATCH_SIZE

__all__ = ["TritonBackend", "export_task_to_triton", "export_to_triton"]

TritonBackend = Literal["onnxruntime", "python", "tensorrt"]
PLAN_FILE = "model.plan"
BUNDLES = "bundles"
SETTINGS = {"graph": "graph", "bundles": BUNDLES, "engine": "auto", "precision": "fp32"}
MODEL_PY = "from lspt_serve.triton import {}TritonPythonModel  # noqa: F401\n"


def export_to_triton(
    backbone: Backbone,
    repository: Path,
    *,
    like: Bundle | None = None,
    backend: TritonBackend = "onnxruntime",
    precision: Precision = "fp32",
) -> GraphSpec:
    """Write REPOSITORY/lspt and REPOSITORY/lspt-graph; bundles go into REPOSITORY/lspt/bundles.

    What else is in REPOSITORY/lspt already stays, bundles or keys say, and so do the settings in
    its config.pbtxt.

    Args:
        backend: of lspt-graph.
        precision: of the engine of TensorRT, which is built for the GPU here.

    Raises:
        OutputError: a config.pbtxt whose settings cannot be read; and as `export_graph` does.
    """
    settings = SETTINGS | _read_parameters(repository / TRITON_MODEL / TRITON_CONFIG)
    with atomic_folder(repository / TRITON_MODEL) as folder:
        spec = export_graph(backbone, folder / "graph", like=like)
        (folder / "1").mkdir()
        (folder / "1" / "model.py").write_text(MODEL_PY.format(""), "utf-8")
        _write(folder / TRITON_CONFIG, _shared_model(settings))
        with atomic_folder(repository / TRITON_GRAPH) as beside:
            if backend == "python":
                shutil.copytree(folder / "graph", beside / "1")
                model = MODEL_PY.format("GraphModel as ")
                (beside / "1" / "model.py").write_text(model, "utf-8")
            elif backend == "tensorrt":
                plan = build_engine(folder / "graph", spec, precision)
                (beside / "1").mkdir()
                plan.rename(beside / "1" / PLAN_FILE)
                (folder / "graph" / TIMINGS).unlink()  # the next export has another folder
            else:
                (beside / "1").mkdir()
                for file in (folder / "graph").glob(f"{GRAPH_FILE}*"):  # large weights: a second
                    shutil.copy(file, beside / "1" / file.name)
            _write(beside / TRITON_CONFIG, _shared_graph(spec, backend, precision))
            _keep_others(repository / TRITON_MODEL, folder)
    return spec


def export_task_to_triton(backbone: Backbone, bundle: Bundle, repository: Path) -> list[ParityRow]:
    """Write REPOSITORY/NAME, named after the task; raises as `export_bundle` does."""
    with atomic_folder(repository / bundle.name) as folder:
        parity = export_bundle(backbone, bundle, folder / "1" / "model.onnx")
        lines = [f"{printable(label)}\n" for label in bundle.labels]  # an end of line is none here
        (folder / "labels.txt").write_text("".join(lines), "utf-8")
        _write(folder / TRITON_CONFIG, _task(bundle))
    return parity


def _keep_others(old: Path, new: Path) -> None:
    """What a server was given since the last export, as it is: links stay links."""
    for path in old.iterdir() if old.is_dir() else ():
        if (kept := new / path.name).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, kept, symlinks=True)
        else:
            shutil.copy2(path, kept, follow_symlinks=False)
    (new / BUNDLES).mkdir(exist_ok=True)


def _read_parameters(path: Path) -> dict[str, str]:
    """They may say whose bundles a server takes: what it was given is not to be lost."""
    if not path.is_file():
        return {}
    try:
        config = text_format.Parse(path.read_text("utf-8"), triton.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        reason = first_line(error)
        raise OutputError(f"{path}: its parameters cannot be kept: {reason}") from error
    return {name: value.string_value for name, value in config.parameters.items()}


def _write(path: Path, config: Any) -> None:
    path.write_text(text_format.MessageToString(config), "utf-8")


def _shared_model(settings: Mapping[str, str]) -> Any:
    """Dynamic batching hands all waiting requests over; the runtime mixes their tasks."""
    config = triton.ModelConfig(name=TRITON_MODEL, backend="python", max_batch_size=MAX_BATCH_SIZE)
    config.input.add(name="image", data_type=triton.TYPE_STRING, dims=[1])
    config.input.add(name="task", data_type=triton.TYPE_STRING, dims=[1])
    config.input.add(name="top_k", data_type=triton.TYPE_INT32, dims=[1], optional=True)
    config.output.add(name="label", data_type=triton.TYPE_STRING, dims=[-1])
    config.output.add(name="score", data_type=triton.TYPE_FP32, dims=[-1])
    config.dynamic_batching.SetInParent()
    config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_CPU)
    for name, value in settings.items():
        config.parameters[name].string_value = value
    return config


def _shared_graph(spec: GraphSpec, backend: TritonBackend, precision: Precision) -> Any:
    """Its rows come sorted by task, and so does its batch: Triton cannot batch them further."""
    config = triton.ModelConfig(name=TRITON_GRAPH, backend=backend, max_batch_size=0)
    if backend == "onnxruntime":
        config.default_model_filename = GRAPH_FILE
    elif backend == "tensorrt":
        config.default_model_filename = PLAN_FILE
    else:  # one process, whose session takes the GPU by itself
        config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_CPU)
    img_size = spec.preprocess.img_size
    config.input.add(name=IMAGES, data_type=triton.TYPE_FP32, dims=[-1, 3, img_size, img_size])
    for name, shape in spec.inputs.items():
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        config.input.add(name=name, data_type=triton.TYPE_FP32, dims=[-1, *sizes])
    if spec.inputs:
        for name, axes in ((PLACE, 2), (BACK, 1), (NUM_PROMPTS, 1)):
            config.input.add(name=name, data_type=triton.TYPE_INT64, dims=[-1] * axes)
    config.output.add(name=FEATURES, data_type=triton.TYPE_FP32, dims=[-1, spec.num_features])
    if spec.grid is not None:
        patches = math.prod(spec.grid)
        config.output.add(name=ATTENTION, data_type=triton.TYPE_FP32, dims=[-1, patches])
    config.parameters[TRITON_SPEC].string_value = spec.sha256
    config.parameters[TRITON_PRECISION].string_value = precision
    return config


def _task(bundle: Bundle) -> Any:
    preprocess = bundle.manifest.preprocess
    config = triton.ModelConfig(
        name=bundle.name, backend="onnxruntime", max_batch_size=MAX_BATCH_SIZE
    )
    pixels = [3, preprocess.img_size, preprocess.img_size]
    config.input.add(name=IMAGES, data_type=triton.TYPE_FP32, dims=pixels)
    config.output.add(
        name=PROBABILITIES,
        data_type=triton.TYPE_FP32,
        dims=[len(bundle.labels)],
        label_filename="labels.txt",
    )
    config.dynamic_batching.SetInParent()
    config.parameters["preprocess"].string_value = json.dumps(asdict(preprocess))
    return config
