"""The routes."""

import asyncio
import time
from typing import Annotated

import anyio.to_thread
import numpy as np
from fastapi import Depends, FastAPI, File, Form, Request, Response, UploadFile
from numpy.typing import NDArray

from lspt_serve.api import aliases, v2
from lspt_serve.api.auth import Access, get_classifier
from lspt_serve.api.disconnect import unless_gone
from lspt_serve.api.failures import REQUEST_ID, RESPONSES, add_failure_handlers, request_id
from lspt_serve.api.limits import LimitBody
from lspt_serve.api.schemas import Answer, LabelScore, Task, TaskList, Timings
from lspt_serve.bundle import Bundle, Manifest
from lspt_serve.preprocess import preprocess_image
from lspt_serve.runtime import Classifier, top_labels

__all__ = ["create_app"]

MAX_BYTES = 20_000_000
DEADLINE_S = 30.0  # for an image to be run; BentoML gives up after 60


def create_app(*, max_bytes: int = MAX_BYTES) -> FastAPI:
    """The API without its classifier: put one into `app.state.classifier` before the first request.

    Args:
        max_bytes: of a request's body; more is answered with 413.
    """
    app = FastAPI(title="lspt-serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.max_bytes = max_bytes
    app.state.access = Access()
    app.add_middleware(LimitBody, max_bytes=max_bytes)
    add_failure_handlers(app)
    app.post("/classify", responses=RESPONSES)(classify)  # type: ignore[arg-type]
    app.get("/tasks")(list_tasks)
    app.get("/tasks/{name}", responses={404: RESPONSES[404]})(get_task)
    app.include_router(aliases.router)
    app.include_router(v2.router)
    return app


async def classify(
    request: Request,
    response: Response,
    classifier: Annotated[Classifier, Depends(get_classifier)],
    image: Annotated[UploadFile, File(description="A JPEG, PNG, BMP or GIF file.")],
    task: Annotated[
        str, Form(description="NAME, NAME@VERSION or NAME:ALIAS; GET /tasks lists them.")
    ],
    top_k: Annotated[int, Form(ge=1, le=1000, description="How many labels, best first.")] = 5,
) -> Answer:
    """Classify one image by one task."""
    started = time.perf_counter()
    data = await image.read()

    def prepare() -> tuple[Bundle, NDArray[np.float32]]:
        bundle = classifier.find(task)
        return bundle, preprocess_image(data, bundle.manifest.preprocess)

    bundle, pixels = await anyio.to_thread.run_sync(prepare)
    decoded = time.perf_counter()
    answer = classifier.submit(pixels, bundle, deadline=time.monotonic() + DEADLINE_S)
    probabilities = await unless_gone(request, asyncio.wrap_future(answer))
    answered = time.perf_counter()
    response.headers[REQUEST_ID] = request_id(request)
    return Answer(
        task=bundle.name,
        version=bundle.manifest.version,
        predictions=[
            LabelScore.model_validate(best) for best in top_labels(probabilities, bundle, top_k)
        ],
        request_id=request_id(request),
        timings_ms=Timings(
            decode=_ms(decoded - started),
            engine=_ms(answered - decoded),
            total=_ms(time.perf_counter() - started),
        ),
    )


async def list_tasks(classifier: Annotated[Classifier, Depends(get_classifier)]) -> TaskList:
    """The tasks that are served, and the bundles that are not, with the reason."""
    return TaskList(
        generation=classifier.store.generation,
        tasks=[_describe(task) for task in classifier.tasks],
        refused=dict(classifier.tasks.refused),
    )


async def get_task(name: str, classifier: Annotated[Classifier, Depends(get_classifier)]) -> Task:
    """One task."""
    return _describe(classifier.tasks.manifest(name))


def _describe(manifest: Manifest) -> Task:
    return Task(
        name=manifest.name,
        version=manifest.version,
        labels=manifest.labels,
        method=manifest.method.name,
        metrics=manifest.metrics,
        license=manifest.license,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
