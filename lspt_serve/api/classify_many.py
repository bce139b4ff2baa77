"""POST /classify_many: several images, each by several tasks."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray

from lspt_serve.api.auth import CallersClassifier
from lspt_serve.api.classify import DEADLINE_S, predict, to_ms
from lspt_serve.api.disconnect import unless_gone
from lspt_serve.api.failures import explain, request_id
from lspt_serve.api.openapi import IMAGES_REFUSED, body, responses
from lspt_serve.api.threads import DECODING, find_bundle
from lspt_serve.api.uploads import Upload, malformed, read_request
from lspt_serve.bundle import Bundle
from lspt_serve.errors import LSPTError, OverloadedError, UnavailableError, UnknownTaskError
from lspt_serve.manifest import Manifest
from lspt_serve.preprocess import Preprocess
from lspt_serve.runtime import Classifier
from lspt_serve.schemas import (
    MAX_LABELS,
    MAX_PAIRS,
    ClassifyManyFields,
    Item,
    ManyAnswer,
    Timings,
)

__all__ = ["router"]

MAX_UNKNOWN = 32  # tasks of a request, each with an error of its own
Outcome = tuple[Manifest, NDArray[np.float32]] | Exception  # logits (K)
router = APIRouter()


@router.post(
    "/classify_many",
    responses=responses(*IMAGES_REFUSED),
    response_model_exclude_unset=True,
    openapi_extra=body(ClassifyManyFields, "images", several=True),
)
async def classify_many(request: Request, classifier: CallersClassifier) -> ManyAnswer:
    """Classify every image by every task.

    An image is decoded once. What fails has an error in the place of its predictions; the request
    is refused as a whole only where the server has too much to do for any of it.
    """
    started = time.perf_counter()
    uploads, asked = await read_request(request, ClassifyManyFields, "images")
    if len(uploads) * len(asked.tasks) > MAX_PAIRS:
        raise malformed("images", f"{len(uploads)} x {len(asked.tasks)} tasks; at most {MAX_PAIRS}")
    versions = await asyncio.to_thread(_find_versions, classifier, asked.tasks)
    _check_labels(len(uploads), versions, asked.top_k)
    job = _Job(classifier, versions)
    outcomes = await unless_gone(request, asyncio.ensure_future(job.run(uploads)))
    if all(isinstance(outcome, (OverloadedError, UnavailableError)) for outcome in outcomes):
        raise outcomes[0]  # type: ignore[misc]
    files = [upload.file for upload in uploads]
    items = await asyncio.to_thread(_to_items, outcomes, files, asked, request)
    timings = Timings(
        decode=to_ms(job.decode_s),
        engine=to_ms(job.engine_s),
        total=to_ms(time.perf_counter() - started),
    )
    request.state.timings = timings.model_dump()
    return ManyAnswer(items=items, request_id=request_id(request), timings_ms=timings)


def _find_versions(classifier: Classifier, tasks: Sequence[str]) -> list[Manifest | LSPTError]:
    """One version answers all images, whatever alias moves or version comes meanwhile.

    Raises UnknownTaskError for a request that is of little else than unknown tasks: to name the
    nearest of each takes milliseconds.
    """
    found: dict[str, Manifest | LSPTError] = {}
    unknown = 0
    for task in dict.fromkeys(tasks):
        try:
            found[task] = classifier.manifest(task)
        except UnknownTaskError as error:
            found[task] = error
            unknown += 1
            if unknown > MAX_UNKNOWN:
                raise
    return [found[task] for task in tasks]


def _check_labels(num_images: int, versions: Sequence[Manifest | LSPTError], top_k: int) -> None:
    known = [version for version in versions if isinstance(version, Manifest)]
    count = num_images * sum(min(top_k, len(manifest.labels)) for manifest in known)
    if count > MAX_LABELS:
        raise malformed("top_k", f"{count} labels of all images and tasks; at most {MAX_LABELS}")


def _to_items(
    outcomes: Sequence[Outcome],
    files: Sequence[str | None],
    asked: ClassifyManyFields,
    request: Request,
) -> list[Item]:
    """In the order of the pairs, those of the first image first."""
    pairs = [(image, task) for image in range(len(files)) for task in asked.tasks]
    items = []
    for (image, task), outcome in zip(pairs, outcomes, strict=True):
        item = Item(image=image, file=files[image], task=task)
        if isinstance(outcome, Exception):
            item.error = explain(outcome, request)[1]
        else:
            manifest, logits = outcome
            item.task, item.version = manifest.name, manifest.version
            item.predictions = predict(logits, manifest, asked)
        items.append(item)
    return items


class _Job:
    """The pairs of one request, a window of them at a time."""

    def __init__(self, classifier: Classifier, versions: Sequence[Manifest | LSPTError]) -> None:
        self.classifier = classifier
        self.versions = versions
        self.window = asyncio.Semaphore(classifier.window)
        self.deadline = time.monotonic() + DEADLINE_S
        self.decode_s = self.engine_s = 0.0

    async def run(self, uploads: Sequence[Upload]) -> list[Outcome]:
        """The tasks of the first image first."""
        answered = await asyncio.gather(*map(self._image, uploads))
        return [outcome for outcomes in answered for outcome in outcomes]

    async def _image(self, upload: Upload) -> Sequence[Outcome]:
        decoded: dict[Preprocess, asyncio.Task[NDArray[np.float32]]] = {}

        async def answer(version: Manifest | LSPTError) -> Outcome:
            if isinstance(version, LSPTError):
                return version
            async with self.window:  # no more bundles than that are held in memory for it
                reference = f"{version.name}@{version.version}"
                bundle = await find_bundle(self.classifier, reference)
                # another than was looked up, where the version was replaced under its number
                manifest = bundle.manifest
                way = manifest.preprocess
                with self.classifier.place(bundle):
                    if way not in decoded:
                        decoded[way] = asyncio.ensure_future(self._decode(upload.data, bundle))
                    with self.classifier.telling(manifest):
                        pixels = await decoded[way]
                    row = self.classifier.submit(pixels, bundle, deadline=self.deadline)
                return manifest, await self._wait(row)

        return await asyncio.gather(*map(answer, self.versions), return_exceptions=True)  # type: ignore[return-value]

    async def _decode(self, data: bytes, bundle: Bundle) -> NDArray[np.float32]:
        started = time.perf_counter()
        try:
            return await DECODING.run(self.classifier.decode, data, bundle)
        finally:
            self.decode_s += time.perf_counter() - started

    async def _wait(self, row: Future[NDArray[np.float32]]) -> NDArray[np.float32]:
        started = time.perf_counter()
        try:
            return await asyncio.wrap_future(row)
        finally:
            self.engine_s += time.perf_counter() - started
