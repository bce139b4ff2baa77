"""Tensors of requests to images, and scores to tensors of answers.

N rows, H height, W width, K classes.
"""

import base64
import math
import struct
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from lspt_serve.api.v2.models import IMAGE, PIXELS, SCORES
from lspt_serve.api.v2.wire import InferRequest, InputTensor, OutputTensor, Tensor
from lspt_serve.bundle import Bundle
from lspt_serve.preprocess import Preprocess
from lspt_serve.runtime import top_labels
from lspt_serve.schemas import MAX_LABELS

__all__ = ["Row", "check_labels", "check_outputs", "read_rows", "to_outputs"]

MAX_ROWS = 1000
BEYOND = 10  # times what normalised pixels can be: more is another unit
DTYPES = {"FP32": "<f4", "UINT8": "u1"}
Row = bytes | NDArray[np.float32] | NDArray[np.uint8]  # a file, or pixels: 3 x H x W


def read_rows(
    asked: InferRequest, binary: Sequence[bytes | None], preprocess: Preprocess
) -> list[Row]:
    """The images of a request; raises HTTPException(400)."""
    if len(asked.inputs) != 1:
        _refuse(f"{len(asked.inputs)} inputs; wanted one, {IMAGE} or {PIXELS}")
    tensor, data = asked.inputs[0], binary[0]
    if tensor.name not in (IMAGE, PIXELS):
        _refuse(f"unknown input {tensor.name!r}; wanted {IMAGE} or {PIXELS}")
    if tensor.parameters.shared_memory_region is not None:
        _refuse(f"{tensor.name}: shared memory is not read here; send the data")
    if (tensor.data is None) == (data is None):
        _refuse(f"{tensor.name}: wanted data or binary_data_size, one of them")
    if not tensor.shape or not 1 <= tensor.shape[0] <= MAX_ROWS:
        _refuse(f"{tensor.name} has shape {tensor.shape}; wanted 1 to {MAX_ROWS} rows")
    if tensor.name == IMAGE:
        return [*_read_files(tensor, data)]
    return [*_read_pixels(tensor, data, preprocess)]


def check_outputs(asked: InferRequest) -> list[OutputTensor]:
    """The outputs that are asked for; raises HTTPException(400)."""
    outputs = asked.outputs or [OutputTensor(name=SCORES)]
    if len(outputs) > 1 or outputs[0].name != SCORES:
        _refuse(f"unknown output, or one that is asked for twice; wanted {SCORES}")
    if outputs[0].parameters.shared_memory_region is not None:
        _refuse(f"{SCORES}: shared memory is not written here; take the data")
    return outputs


def check_labels(asked: InferRequest, num_rows: int, bundle: Bundle) -> None:
    """Raises HTTPException(400) for an answer that would be too much text."""
    for output in check_outputs(asked):
        best = output.parameters.classification
        count = num_rows * min(best or len(bundle.labels), len(bundle.labels))
        if count > MAX_LABELS and (best or not _is_binary(asked, output)):
            _refuse(f"{count} scores as text; at most {MAX_LABELS}, or any number as binary data")


def to_outputs(asked: InferRequest, scores: NDArray[np.float32], bundle: Bundle) -> list[Tensor]:
    """Scores (N x K) as the request wants them."""
    tensors = []
    for output in check_outputs(asked):
        as_binary = _is_binary(asked, output)
        if count := output.parameters.classification:
            tensors.append(_classes(scores, bundle, count, as_binary=as_binary))
        else:
            tensor = {"name": SCORES, "datatype": "FP32", "shape": [*scores.shape]}
            data = {} if as_binary else {"data": scores.ravel().tolist()}
            tensors.append((tensor | data, scores.astype("<f4").tobytes() if as_binary else None))
    return tensors


def _is_binary(asked: InferRequest, output: OutputTensor) -> bool:
    own = output.parameters.binary_data
    return asked.parameters.binary_data_output if own is None else own


def _classes(scores: NDArray[np.float32], bundle: Bundle, count: int, *, as_binary: bool) -> Tensor:
    """The best labels of each row, best first, as SCORE:INDEX:LABEL."""
    texts = [
        f"{best.score:f}:{best.index}:{best.label}"
        for row in scores
        for best in top_labels(row, bundle.labels, count)
    ]
    tensor = {
        "name": SCORES,
        "datatype": "BYTES",
        "shape": [len(scores), len(texts) // len(scores)],
    }
    if not as_binary:
        return tensor | {"data": texts}, None
    packed = [struct.pack("<I", len(text)) + text for text in map(str.encode, texts)]
    return tensor, b"".join(packed)


def _read_files(tensor: InputTensor, binary: bytes | None) -> list[bytes]:
    """[N] or [N, 1] of files: with their lengths before them, or base64 texts in JSON."""
    if tensor.datatype != "BYTES" or tensor.shape[1:] not in ([], [1]):
        _refuse(f"{IMAGE} is {tensor.datatype!r} of shape {tensor.shape}; wanted BYTES, [-1]")
    files = _from_json(tensor.data) if binary is None else _unpack(binary)
    if len(files) != tensor.shape[0]:
        _refuse(f"{IMAGE} has shape {tensor.shape}, but {len(files)} elements")
    return files


def _unpack(binary: bytes) -> list[bytes]:
    files: list[bytes] = []
    place = 0
    while place < len(binary):
        start = place + 4
        place = start + int.from_bytes(binary[place:start], "little")
        if place > len(binary) or len(files) == MAX_ROWS:
            _refuse(f"{IMAGE}: lengths and elements do not add up to {len(binary)} bytes")
        files.append(binary[start:place])
    return files


def _from_json(data: object) -> list[bytes]:
    texts = data if isinstance(data, list) else [data]
    try:
        return [_from_base64(text) for text in texts]
    except (TypeError, ValueError):
        _refuse(f"{IMAGE}: wanted base64 texts, or binary data")


def _from_base64(text: object) -> bytes:
    """Of a text, or a list of one, as [N, 1] has them."""
    if isinstance(text, list):
        (text,) = text
    if not isinstance(text, str):
        raise TypeError
    return base64.b64decode(text, validate=True)


def _read_pixels(
    tensor: InputTensor, binary: bytes | None, preprocess: Preprocess
) -> NDArray[np.float32] | NDArray[np.uint8]:
    """N x 3 x H x W: FP32, normalised as the task's preprocess says, or UINT8, which are not."""
    side = preprocess.img_size
    if tensor.shape[1:] != [3, side, side]:
        _refuse(f"{PIXELS} has shape {tensor.shape}; wanted [-1, 3, {side}, {side}]")
    if tensor.datatype not in DTYPES:
        _refuse(f"{PIXELS} is {tensor.datatype!r}; wanted FP32, normalised, or UINT8, not so")
    pixels = _numbers(tensor.data) if binary is None else _frombuffer(binary, tensor.datatype)
    if pixels.size != math.prod(tensor.shape):
        _refuse(f"{PIXELS} has shape {tensor.shape}, but {pixels.size} elements")
    pixels = pixels.reshape(tensor.shape)
    if tensor.datatype == "UINT8":
        if binary is None and ((pixels < 0) | (pixels > 255) | (pixels % 1 != 0)).any():
            _refuse(f"{PIXELS}: UINT8 is of whole numbers from 0 to 255")
        return pixels.astype(np.uint8)
    limit = BEYOND * _largest(preprocess)
    if not (abs(pixels) <= limit).all():  # nor is NaN
        _refuse(f"{PIXELS}: normalised pixels are numbers within {limit:.1f}; UINT8 takes raw ones")
    return pixels.astype(np.float32)


def _frombuffer(binary: bytes, datatype: str) -> NDArray[np.float32 | np.uint8]:
    dtype = np.dtype(DTYPES[datatype])
    if len(binary) % dtype.itemsize:
        _refuse(f"{PIXELS}: {len(binary)} bytes are no whole number of {datatype}")
    return np.frombuffer(binary, dtype)


def _numbers(data: object) -> NDArray[np.float64]:
    """Of nested or flat lists."""
    try:
        return np.asarray(data, np.float64)  # a type that no text in the data can blow up
    except (TypeError, ValueError, OverflowError):
        _refuse(f"{PIXELS}: wanted numbers, in a flat list or lists of lists of one length")


def _largest(preprocess: Preprocess) -> float:
    """Of the absolute values that normalised pixels can have."""
    mean, std = np.asarray([preprocess.mean, preprocess.std])
    return float((np.maximum(abs(mean), abs(1 - mean)) / std).max())


def _refuse(reason: str) -> NoReturn:
    raise HTTPException(400, reason) from None
