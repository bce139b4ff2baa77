"""Inference: every row of a batch is an image like those of /classify, in batches with them."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from lspt_serve.api.auth import CallersClassifier
from lspt_serve.api.bodies import read_body
from lspt_serve.api.classify import DEADLINE_S
from lspt_serve.api.disconnect import unless_gone
from lspt_serve.api.limits import held_of
from lspt_serve.api.openapi import EXAMPLE_IMAGE, IMAGES_REFUSED, json_body, responses
from lspt_serve.api.threads import DECODING, find_bundle
from lspt_serve.api.v2.models import IMAGE, MODEL, SCORES, VERSION, refer
from lspt_serve.api.v2.schemas import InferAnswer
from lspt_serve.api.v2.tensors import Row, check_labels, check_outputs, read_rows, to_outputs
from lspt_serve.api.v2.wire import (
    HEADER_LENGTH,
    InferRequest,
    decompress,
    parse_request,
    to_response,
)
from lspt_serve.bundle import Bundle
from lspt_serve.errors import ImageError
from lspt_serve.preprocess import normalise
from lspt_serve.runtime import Classifier, activate

__all__ = ["router"]

Array = NDArray[np.float32]
BINARY = {  # the same JSON, and data behind it
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
}
EXAMPLE = {
    "inputs": [{"name": IMAGE, "shape": [1], "datatype": "BYTES", "data": [EXAMPLE_IMAGE]}],
    "outputs": [{"name": SCORES, "parameters": {"classification": 2}}],
}
LENGTH = {"schema": {"type": "integer"}, "description": "Of the JSON, where data follow it."}
BODY = json_body(InferRequest, EXAMPLE)
BODY["requestBody"]["content"] |= BINARY
BODY["parameters"] = [
    {"name": HEADER_LENGTH, "in": "header", "required": False, **LENGTH},
    {
        "name": "Content-Encoding",
        "in": "header",
        "required": False,
        "schema": {"enum": ["gzip", "deflate", "identity"]},
    },
]
ANSWERED = {"model": InferAnswer, "content": BINARY, "headers": {HEADER_LENGTH: LENGTH}}
router = APIRouter(responses={200: ANSWERED, **responses(*IMAGES_REFUSED, of_v2=True)})


@router.post(f"{MODEL}/infer", response_class=Response, openapi_extra=BODY)
@router.post(f"{VERSION}/infer", response_class=Response, openapi_extra=BODY)
async def infer(
    name: str, request: Request, classifier: CallersClassifier, version: str | None = None
) -> Response:
    """Scores of images: files as IMAGE, or pixels as PIXELS."""
    deadline = time.monotonic() + DEADLINE_S
    bundle = await find_bundle(classifier, refer(name, version))
    request.state.task = f"{bundle.name}@{bundle.manifest.version}"
    body = await _read_body(request)

    def parse(body: bytes) -> tuple[InferRequest, list[Row]]:
        asked, binary = parse_request(body, request.headers)
        check_outputs(asked)
        rows = read_rows(asked, binary, bundle.manifest.preprocess)
        check_labels(asked, len(rows), bundle)
        return asked, rows

    asked, rows = await DECODING.run(parse, body)
    answer = asyncio.ensure_future(_classify(rows, classifier, bundle, deadline=deadline))
    scores = await unless_gone(request, answer)
    record: dict[str, Any] = {"model_name": bundle.name}
    record["model_version"] = str(bundle.manifest.version)
    if asked.id:
        record["id"] = asked.id
    return await asyncio.to_thread(lambda: to_response(record, to_outputs(asked, scores, bundle)))


async def _read_body(request: Request) -> bytes:
    """Decompressed; all of it is held."""
    body, max_bytes = await read_body(request), request.app.state.max_bytes
    if encoding := request.headers.get("content-encoding"):
        body = await DECODING.run(decompress, body, encoding, max_bytes)
        held_of(request).take(len(body))
    return body


async def _classify(
    rows: Sequence[Row], classifier: Classifier, bundle: Bundle, *, deadline: float
) -> Array:
    """Probabilities, N x K; the first row that fails is what all fail of, and ends the others."""
    window = asyncio.Semaphore(classifier.window)

    async def classify(index: int, row: Row) -> Array:
        async with window:
            with classifier.place(bundle):
                try:
                    with classifier.telling(bundle.manifest):
                        image = await DECODING.run(_to_image, row, bundle, classifier)
                except ImageError as error:
                    raise type(error)(f"row {index}: {error}") from error
                row_logits = classifier.submit(image, bundle, deadline=deadline)
            return activate(await asyncio.wrap_future(row_logits))

    tasks = [asyncio.ensure_future(classify(*item)) for item in enumerate(rows)]
    try:
        return np.stack(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _to_image(row: Row, bundle: Bundle, classifier: Classifier) -> Array:
    """3 x H x W, normalised."""
    if isinstance(row, bytes):
        return classifier.decode(row, bundle)
    if row.dtype == np.uint8:
        return normalise(np.moveaxis(row, 0, -1), bundle.manifest.preprocess)  # type: ignore[arg-type]
    return row  # type: ignore[return-value]
