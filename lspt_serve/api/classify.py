"""POST /classify: an image by a task."""

import asyncio
import time
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray

from lspt_serve.api.auth import CallersClassifier
from lspt_serve.api.disconnect import unless_gone
from lspt_serve.api.failures import request_id
from lspt_serve.api.limits import Held, held_of
from lspt_serve.api.openapi import IMAGES_REFUSED, body, responses
from lspt_serve.api.threads import DECODING, find_bundle
from lspt_serve.api.uploads import Upload, malformed, read_request
from lspt_serve.bundle import Bundle
from lspt_serve.manifest import Manifest
from lspt_serve.runtime import Classifier, activate, top_labels
from lspt_serve.schemas import (
    Answer,
    Attention,
    ClassifyFields,
    ClassifyManyFields,
    LabelScore,
    Timings,
)

__all__ = ["DEADLINE_S", "predict", "router", "to_ms"]

DEADLINE_S = 30.0  # for an image to be run
router = APIRouter()


@router.post(
    "/classify",
    responses=responses(*IMAGES_REFUSED),
    openapi_extra=body(ClassifyFields, "image", several=False),
)
async def classify(request: Request, classifier: CallersClassifier) -> Answer:
    """Classify one image by one task."""
    started = time.perf_counter()
    uploads, asked = await read_request(request, ClassifyFields, "image")
    if len(uploads) > 1:
        raise malformed("image", "given twice; POST /classify_many takes several")

    bundle = await find_bundle(classifier, asked.task)
    request.state.task = f"{bundle.name}@{bundle.manifest.version}"
    grid = classifier.engine.graph.grid if asked.attention else None
    job = _Job(classifier, bundle, attend=grid is not None)
    logits, *attention = await unless_gone(
        request, asyncio.ensure_future(job.run(uploads, held_of(request)))
    )
    decoded, answered = job.decoded, time.perf_counter()
    timings = Timings(
        decode=to_ms(decoded - started),
        engine=to_ms(answered - decoded),
        total=to_ms(time.perf_counter() - started),
    )
    request.state.timings = timings.model_dump()
    return Answer(
        task=bundle.name,
        version=bundle.manifest.version,
        predictions=predict(logits, bundle.manifest, asked),
        attention=_arrange(attention[0], grid, bundle) if attention and grid else None,
        request_id=request_id(request),
        timings_ms=timings,
    )


@dataclass
class _Job:
    """An image that is decoded once there is room for all its rows.

    Attributes:
        decoded: when it was, of time.perf_counter.
    """

    classifier: Classifier
    bundle: Bundle
    attend: bool
    decoded: float = 0.0

    async def run(self, uploads: list[Upload], held: Held) -> list[NDArray[np.float32]]:
        """Logits (K) and, if they are asked for, what of its patches it attends to (N)."""
        rows: list[Future[NDArray[np.float32]]] = []
        try:
            with ExitStack() as places:
                for _ in range(1 + self.attend):
                    places.enter_context(self.classifier.place(self.bundle))
                with self.classifier.telling(self.bundle.manifest):
                    pixels = await DECODING.run(
                        self.classifier.decode, uploads.pop().data, self.bundle
                    )
                held.release()
                self.decoded, deadline = time.perf_counter(), time.monotonic() + DEADLINE_S
                rows.append(self.classifier.submit(pixels, self.bundle, deadline=deadline))
                if self.attend:
                    rows.append(self.classifier.attend(pixels, self.bundle, deadline=deadline))
            return await asyncio.gather(*map(asyncio.wrap_future, rows))
        finally:
            for row in rows:  # where one fails, nobody waits for the other
                row.cancel()


def predict(
    logits: NDArray[np.float32], manifest: Manifest, asked: ClassifyFields | ClassifyManyFields
) -> list[LabelScore]:
    """Of logits (K), the labels that were asked for."""
    best = top_labels(
        activate(logits, asked.activation), manifest.labels, asked.top_k, threshold=asked.threshold
    )
    return [LabelScore.model_validate(prediction) for prediction in best]


def _arrange(attention: NDArray[np.float32], grid: tuple[int, int], bundle: Bundle) -> Attention:
    """Of patches (N), in rows."""
    values = attention.reshape(grid).astype(float).round(6).tolist()
    crop_pct = bundle.manifest.preprocess.crop_pct
    return Attention(height=grid[0], width=grid[1], values=values, crop_pct=crop_pct)


def to_ms(seconds: float) -> float:
    """Milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)
