"""Tasks as adapters of ONNX Runtime, for its users in C++, C#, Java and other languages.

One model for every task of a backbone and method, and a file of tensors for each task.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.errors import GraphError, first_line
from lspt_serve.export.fresh import free_shapes, method_tensors, with_other_prompts
from lspt_serve.export.parity import check_parity, create_session
from lspt_serve.export.to_onnx import atomic_onnx, write_onnx
from lspt_serve.export.wrapper import OneTaskGraph, create_model
from lspt_serve.files import atomic_file, locked, remove_leftovers
from lspt_serve.graph import IMAGES, PROBABILITIES, ParityRow
from lspt_serve.models import Backbone, PromptedViT

__all__ = ["ADAPTER_MODEL", "export_adapter"]

ADAPTER_MODEL = "model.onnx"
LABELS = "labels"  # the free axis of a head
WAIT_S = 600.0  # for another task's export, which may be writing the model of both
Check = Callable[[onnxruntime.InferenceSession], list[ParityRow]]


def export_adapter(
    backbone: Backbone, bundle: Bundle, out: Path, *, overwrite: bool = False
) -> list[ParityRow]:
    """Write OUT/NAME.onnx_adapter and OUT/NAME.json, and OUT/model.onnx unless it is there.

    The model takes normalised images (B x 3 x H x W) and, as inputs that an active adapter fills,
    the tensors of a task; it gives probabilities (B x K). Its own values of these inputs are NaN:
    a tensor that no adapter brings makes no answer, rather than that of another task. NAME.json
    holds labels and preprocessing. Written only after the answers agreed with torch in fp32.

    Args:
        overwrite: OUT/model.onnx too, if it is damaged; one that loads and is of others stays.

    Raises:
        BundleError: the bundle belongs to another backbone or size of images.
        GraphError: OUT/model.onnx is of another backbone, method or option, or the answers
            disagree with torch's.
        OutputError: OUT cannot be written.
    """
    model = create_model(backbone, bundle)
    graph, metadata = out / ADAPTER_MODEL, _metadata(backbone, bundle, model)
    with (
        locked(graph, wait_s=WAIT_S),
        atomic_file(out / f"{bundle.name}.json") as labels,  # in place right after the tensors
        atomic_file(out / f"{bundle.name}.onnx_adapter") as path,
    ):
        labels.write_text(json.dumps(_describe(bundle), indent=2) + "\n", "utf-8")
        remove_leftovers(graph)
        _write_adapter(bundle, path)
        check = partial(_check, model, bundle, path)
        parity = _check_model(graph, metadata, check, overwrite=overwrite)
        if parity is None:
            with atomic_onnx(graph) as temporary:
                _write_model(backbone, model, temporary, metadata)
                parity = check(create_session(temporary))
    return parity


def _metadata(backbone: Backbone, bundle: Bundle, model: PromptedViT) -> dict[str, str]:
    """What all tasks of one model have in common."""
    preprocess = bundle.manifest.preprocess
    return {
        "backbone_sha256": backbone.sha256,
        "method": model.method.name,
        "options": json.dumps(model.method.settings.graph_options()),
        "pool": model.pool,
        "img_size": str(preprocess.img_size),
        "mean": json.dumps(preprocess.mean),
        "std": json.dumps(preprocess.std),
    }


def _describe(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "task": manifest.name,
        "version": manifest.version,
        "labels": list(manifest.labels),
        "preprocess": asdict(manifest.preprocess),
    }


def _check_model(
    path: Path, metadata: dict[str, str], check: Check, *, overwrite: bool
) -> list[ParityRow] | None:
    """None where there is no model, or a damaged one that may be overwritten."""
    if not path.exists():
        return None
    try:
        session = create_session(path)
    except Exception as error:  # ONNX Runtime has no common base for what it raises
        _check_overwrite(path, error, overwrite=overwrite)
        return None
    _check_same(path, session, metadata)
    try:
        return check(session)
    except Exception as error:
        _check_overwrite(path, error, overwrite=overwrite)
        return None


def _check_overwrite(path: Path, damage: Exception, *, overwrite: bool) -> None:
    """Raises GraphError for a damaged model that is not to be overwritten."""
    if not overwrite:
        reason = first_line(damage)
        raise GraphError(f"{path} is damaged: {reason}; --overwrite replaces it") from damage


def _check_same(
    path: Path, session: onnxruntime.InferenceSession, metadata: dict[str, str]
) -> None:
    theirs = session.get_modelmeta().custom_metadata_map
    for name, ours in metadata.items():
        if theirs.get(name) != ours:
            raise GraphError(
                f"{path} is of {name} {theirs.get(name)}, the bundle wants {ours}; give another "
                f"--out"
            )


def _write_model(
    backbone: Backbone, model: PromptedViT, path: Path, metadata: dict[str, str]
) -> None:
    tensors = {name: tensor.detach() for name, tensor in model.task_tensors().items()}
    of_method = method_tensors(model)
    shapes = free_shapes(of_method, method_tensors(with_other_prompts(backbone, model)))
    axes: dict[str, dict[int, str]] = {
        name: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
        for name, shape in shapes.items()
    }
    axes |= {"head.weight": {0: LABELS}, "head.bias": {0: LABELS}}
    write_onnx(
        OneTaskGraph(model),
        path,
        img_size=backbone.preprocess.img_size,
        outputs=[PROBABILITIES],
        inputs={"tensors": tensors},
        axes={"tensors": {name: axes[name] for name in tensors}},
        metadata=metadata,
        defaults={name: np.full_like(t.numpy(), np.nan) for name, t in tensors.items()},
    )


def _write_adapter(bundle: Bundle, path: Path) -> None:
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(bundle.manifest.version)
    adapter.set_model_version(1)
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor))
        for name, tensor in bundle.tensors.items()
    }
    adapter.set_parameters(values)
    adapter.export_adapter(str(path.resolve()))


def _check(
    model: PromptedViT, bundle: Bundle, adapter: Path, session: onnxruntime.InferenceSession
) -> list[ParityRow]:
    loaded = onnxruntime.LoraAdapter()
    loaded.Load(str(adapter.resolve()))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(loaded)

    def predict(images: NDArray[np.float32], _: Sequence[PromptedViT]) -> list[NDArray[np.float32]]:
        return list(session.run([PROBABILITIES], {IMAGES: images}, options)[0])

    img_size = bundle.manifest.preprocess.img_size
    return check_parity(predict, {bundle.name: model}, img_size, softmax=True)
