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

__all__ = ["router"]

router = APIRouter(prefix="/v2/repository")


class _IndexRequest(BaseModel):
    ready: bool = False


class _ChangeRequest(BaseModel):
    parameters: dict[str, Any] = {}


@router.post("/index", response_model=list[dict[str, str]])
async def list_models(request: Request, classifier: CallersClassifier) -> Response:
    """All versions of all tasks, and folders of bundles that are refused, with the reason."""
    asked = validate(_IndexRequest, parse_json(await read_body(request) or b"{}"))

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


@router.post("/models/{name}/load")
async def load_model(name: str, request: Request, store: StoreToChange) -> None:
    """Look at the folder of bundles now, and serve a task again that was unloaded."""
    asked = validate(_ChangeRequest, parse_json(await read_body(request) or b"{}"))
    if asked.parameters:
        raise HTTPException(
            400, "a task is loaded as its folder has it; put other files there, send none"
        )
    await change(request, store.load, name)


@router.post("/models/{name}/unload")
async def unload_model(name: str, request: Request, store: StoreToChange) -> None:
    """Serve a task no more, here and at every server of the folder, until it is loaded."""
    validate(_ChangeRequest, parse_json(await read_body(request) or b"{}"))
    await change(request, store.unload, name)
