"""Requests and answers as bytes: JSON, then the binary data of the tensors that have it."""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Response
from pydantic import AfterValidator, BaseModel, Field, StrictBool
from starlette.exceptions import HTTPException

from lspt_serve.api.bodies import parse_json, validate

__all__ = [
    "HEADER_LENGTH",
    "InferRequest",
    "InputTensor",
    "OutputTensor",
    "Tensor",
    "decompress",
    "parse_request",
    "to_response",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
WBITS = {"gzip": 31, "deflate": 15}  # deflate is zlib's own format, in HTTP
MAX_ID = 1024
MAX_TENSORS = 16  # of a request; more than one are refused, but by what is wrong with them
Size = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Name = Annotated[str, Field(max_length=64)]
Tensor = tuple[dict[str, Any], bytes | None]  # what JSON says of it, and its binary data


class InputParameters(BaseModel):
    binary_data_size: Size | None = None
    shared_memory_region: Any = None


class InputTensor(BaseModel):
    """A tensor of a request; its data are here or, where they have a size, after the JSON."""

    name: Name
    shape: Annotated[list[Size], Field(max_length=8, fail_fast=True)]
    datatype: Name
    parameters: InputParameters = InputParameters()
    data: Any = None


class OutputParameters(BaseModel):
    binary_data: StrictBool | None = None
    classification: Size = 0  # so many best labels in place of the scores
    shared_memory_region: Any = None


class OutputTensor(BaseModel):
    """A tensor that is asked for."""

    name: Name
    parameters: OutputParameters = OutputParameters()


class RequestParameters(BaseModel):
    binary_data_output: StrictBool = False


def _check_id(given: str) -> str:
    if len(given) > MAX_ID:  # pydantic's own check is of UTF-8, which an id need not be
        raise ValueError(f"{len(given)} letters; at most {MAX_ID}")
    return given


class InferRequest(BaseModel):
    """What is asked of a model; parameters of the protocol that are not here change nothing."""

    id: Annotated[str, AfterValidator(_check_id)] = ""  # the answer repeats it
    inputs: Annotated[list[InputTensor], Field(max_length=MAX_TENSORS, fail_fast=True)]
    outputs: Annotated[list[OutputTensor], Field(max_length=MAX_TENSORS, fail_fast=True)] = []
    parameters: RequestParameters = RequestParameters()


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """What was compressed in a body, as Content-Encoding says.

    Raises:
        HTTPException: 400, 413 (more than `max_bytes`) or 415 (compressed in another way).
    """
    encoding = encoding.strip().lower()
    if encoding == "identity":
        return body
    if encoding not in WBITS:
        raise HTTPException(415, f"Content-Encoding {encoding[:64]!r}; wanted gzip or deflate")
    unpacker = zlib.decompressobj(WBITS[encoding])
    try:
        unpacked = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise HTTPException(400, f"the body is not {encoding}") from error
    if len(unpacked) > max_bytes:
        raise HTTPException(413, f"request body over {max_bytes} bytes once decompressed")
    if not unpacker.eof or unpacker.unused_data:
        raise HTTPException(400, f"the body is not {encoding} from its start to its end")
    return unpacked


def parse_request(
    body: bytes, headers: Mapping[str, str]
) -> tuple[InferRequest, list[bytes | None]]:
    """A request, and the binary data of each of its inputs; raises HTTPException(400)."""
    length = _header_length(headers.get(HEADER_LENGTH), len(body))
    asked = validate(InferRequest, parse_json(body[:length]))
    sizes = [tensor.parameters.binary_data_size for tensor in asked.inputs]
    declared, came = sum(size or 0 for size in sizes), len(body) - length
    if declared != came:
        raise HTTPException(400, f"binary_data_size of the inputs is {declared}; {came} bytes came")
    binary: list[bytes | None] = []
    for size in sizes:
        binary.append(None if size is None else body[length : length + size])
        length += size or 0
    return asked, binary


def to_response(record: Mapping[str, Any], outputs: Sequence[Tensor]) -> Response:
    """JSON alone or, where an output has binary data, with them behind it."""
    tensors = []
    for tensor, binary in outputs:
        size = {} if binary is None else {"parameters": {"binary_data_size": len(binary)}}
        tensors.append(tensor | size)
    header = json.dumps({**record, "outputs": tensors}).encode()
    if all(binary is None for _, binary in outputs):
        return Response(header, media_type="application/json")
    return Response(
        b"".join([header, *(binary or b"" for _, binary in outputs)]),
        media_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(header))},
    )


def _header_length(given: str | None, num_bytes: int) -> int:
    """Of the JSON."""
    if given is None:
        return num_bytes
    if not re.fullmatch("[0-9]{1,18}", given) or int(given) > num_bytes:
        raise HTTPException(400, f"{HEADER_LENGTH} is no length within {num_bytes} bytes")
    if int(given) == 0:
        raise HTTPException(400, f"{HEADER_LENGTH} is 0; which input it is, only JSON can say")
    return int(given)
