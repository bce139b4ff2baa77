"""One call of torch.onnx.export, for both kinds of graph, and the files that it makes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim

from lspt_serve.files import atomic_file, sync
from lspt_serve.graph import BATCH, IMAGES

__all__ = ["TRACED", "atomic_onnx", "write_onnx"]

TRACED = 3  # images in the batch to trace with; torch takes an axis of 1 for a constant


def write_onnx(
    module: nn.Module,
    path: Path,
    *,
    img_size: int,
    outputs: Sequence[str],
    inputs: Mapping[str, Any] | None = None,
    axes: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    defaults: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Trace `module` and write it; weights of 1.5 GiB and more go into PATH.data.

    Args:
        img_size: images are `batch` x 3 x img_size x img_size, fp32, normalised.
        inputs: further keyword arguments of the module's forward: (nested) tensors by name.
        axes: the names of their free axes, in the same nesting.
        metadata: goes into the file's metadata_props.
        defaults: of inputs that need not be fed.
    """
    inputs = {name: nested for name, nested in (inputs or {}).items() if nested}
    axes = {name: nested for name, nested in (axes or {}).items() if name in inputs}
    names = [IMAGES, *(name for nested in inputs.values() for name in nested)]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (torch.zeros(TRACED, 3, img_size, img_size),),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=_name_once({IMAGES: {0: BATCH}, **axes}, set()),
            input_names=names,
            output_names=outputs,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    graph = program.model.graph
    free = {value.name: value for value in graph.inputs}
    for name, array in (defaults or {}).items():
        free[name].const_value = ir.tensor(array, name=name)
        graph.register_initializer(free[name])
    program.save(path)


@contextmanager
def atomic_onnx(path: Path) -> Iterator[Path]:
    """As `atomic_file`, for what `write_onnx` writes: the file, and its weights where it has some.

    While both are put in place there is no file, rather than one with the weights of another.
    """
    replaced, weights = path.exists(), Path(f"{path}.data")
    with atomic_file(path) as temporary:
        yield temporary
        own = Path(f"{temporary}.data")
        apart = own.exists()
        if apart:
            sync(own)
            path.unlink(missing_ok=True)
            own.replace(weights)
    if replaced and not apart:
        weights.unlink(missing_ok=True)  # of the file that was there


def _name_once(axes: Mapping[Any, Any], named: set[str]) -> dict[Any, Any]:
    """Of several axes of one size torch wants but the first to be named."""
    shapes: dict[Any, Any] = {}
    for key, value in axes.items():
        if isinstance(value, Mapping):
            shapes[key] = _name_once(value, named)
        else:
            shapes[key] = Dim.DYNAMIC if value in named else value
            named.add(value)
    return shapes
