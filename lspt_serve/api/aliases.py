"""PUT and DELETE /tasks/NAME/aliases/ALIAS: what names stand for."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from lspt_serve.api.auth import StoreToChange
from lspt_serve.api.bodies import parse_json, read_body, validate
from lspt_serve.api.changes import change
from lspt_serve.api.failures import RESPONSES
from lspt_serve.bundle import TASK_NAME

__all__ = ["router"]

Alias = Annotated[str, Path(pattern=f"^{TASK_NAME}$")]
router = APIRouter(responses={status: RESPONSES[status] for status in (400, 401, 404, 503)})


class AliasTo(BaseModel):
    """`version` is None where the alias is gone."""

    task: str
    alias: str
    version: int | None


class _To(BaseModel):
    version: Annotated[int, Field(strict=True, ge=1)]


BODY = {"content": {"application/json": {"schema": _To.model_json_schema()}}, "required": True}


@router.put("/tasks/{name}/aliases/{alias}", openapi_extra={"requestBody": BODY})
async def set_alias(name: str, alias: Alias, request: Request, store: StoreToChange) -> AliasTo:
    """Make NAME:ALIAS stand for a version; `default` is what NAME alone stands for."""
    version = validate(_To, parse_json(await read_body(request))).version
    await change(request, store.set_alias, name, alias, version)
    return AliasTo(task=name, alias=alias, version=version)


@router.delete("/tasks/{name}/aliases/{alias}")
async def delete_alias(name: str, alias: Alias, request: Request, store: StoreToChange) -> AliasTo:
    """Take an alias away, if there is one."""
    await change(request, store.set_alias, name, alias, None)
    return AliasTo(task=name, alias=alias, version=None)
