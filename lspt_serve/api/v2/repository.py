"""The model repository: which tasks there are, and which of them are served."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from lspt_serve.api.auth import CallersClassifier, StoreToChange
from lspt_serve.api.bodies import parse_json, read_body, validate
from lspt_serve.api.changes import change
from lspt_serve.api.openapi import json_body, responses
from lspt_serve.api.v2.schemas import Index

__all__ = ["ChangeRequest", "IndexRequest", "router"]

CHANGED = responses(400, 401, 404, 409, 413, 503, 504, of_v2=True)
router = APIRouter(prefix="/v2/repository")


class IndexRequest(BaseModel):
    """`ready`: only what is served."""

    ready: bool = False


class ChangeRequest(BaseModel):
    """There are no parameters here; an empty body does, too."""

    parameters: dict[str, Any] = {}


BODY = json_body(ChangeRequest, {}, required=False)


@router.post(
    "/index",
    response_model=Index,
    responses=responses(400, 401, 413, 503, 504, of_v2=True),
    openapi_extra=json_body(IndexRequest, {"ready": True}, required=False),
)
async def list_models(request: Request, classifier: CallersClassifier) -> Response:
    """All versions of all tasks, and folders of bundles that are refused, with the reason."""
    asked = validate(IndexRequest, parse_json(await read_body(request) or b"{}"))

    def to_response() -> Response:
        return JSONResponse(
            [
                {
                    "name": row.name,
                    "version": str(row.version or ""),
                    "state": "UNAVAILABLE" if row.reason else "READY",
                    "reason": row.reason or "",
                }
                for row in classifier.tasks.listed()
                if not (asked.ready and row.reason)
            ]
        )

    return await run_in_threadpool(to_response)  # there may be thousands


@router.post("/models/{name}/load", responses=CHANGED, openapi_extra=BODY)
async def load_model(name: str, request: Request, store: StoreToChange) -> None:
    """Look at the folder of bundles now, and serve a task again that was unloaded."""
    asked = validate(ChangeRequest, parse_json(await read_body(request) or b"{}"))
    if asked.parameters:
        raise HTTPException(
            400, "a task is loaded as its folder has it; put other files there, send none"
        )
    await change(request, store.load, name)


@router.post("/models/{name}/unload", responses=CHANGED, openapi_extra=BODY)
async def unload_model(name: str, request: Request, store: StoreToChange) -> None:
    """Serve a task no more, here and at every server of the folder, until it is loaded."""
    validate(ChangeRequest, parse_json(await read_body(request) or b"{}"))
    await change(request, store.unload, name)
