"""PUT and DELETE /tasks/NAME/aliases/ALIAS: what names stand for."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from lspt_serve.api.auth import StoreToChange
from lspt_serve.api.bodies import parse_json, read_body, validate
from lspt_serve.api.changes import change
from lspt_serve.api.openapi import json_body, responses
from lspt_serve.manifest import TaskName, TaskVersion

__all__ = ["AliasVersion", "router"]

Alias = Annotated[TaskName, Path()]
router = APIRouter(responses=responses(400, 401, 404, 409, 413, 503, 504))


class AliasTo(BaseModel):
    """`version` is None where the alias is gone."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"task": "digit", "alias": "stable", "version": 1}}
    )

    task: str
    alias: str
    version: int | None


class AliasVersion(BaseModel):
    """What an alias is to stand for."""

    version: Annotated[TaskVersion, Field(strict=True)]


@router.put("/tasks/{name}/aliases/{alias}", openapi_extra=json_body(AliasVersion, {"version": 1}))
async def set_alias(name: str, alias: Alias, request: Request, store: StoreToChange) -> AliasTo:
    """Make NAME:ALIAS stand for a version; `default` is what NAME alone stands for."""
    version = validate(AliasVersion, parse_json(await read_body(request))).version
    await change(request, store.set_alias, name, alias, version)
    return AliasTo(task=name, alias=alias, version=version)


@router.delete("/tasks/{name}/aliases/{alias}")
async def delete_alias(name: str, alias: Alias, request: Request, store: StoreToChange) -> AliasTo:
    """Take an alias away, if there is one."""
    await change(request, store.set_alias, name, alias, None)
    return AliasTo(task=name, alias=alias, version=None)
