"""The bodies of requests: read to their end, and JSON in them."""

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lspt_serve.api.disconnect import CLIENT_GONE
from lspt_serve.errors import first_mistake

__all__ = ["parse_json", "read_body", "validate"]

MAX_CONTAINERS = 100_000  # lists and objects: ten million of them would hold everybody up
M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request) -> bytes:
    """The request does not keep it. Raises HTTPException(499) if the caller leaves meanwhile."""
    try:
        return b"".join([chunk async for chunk in request.stream()])
    except ClientDisconnect:
        raise HTTPException(CLIENT_GONE, "the caller left before all was read") from None


def parse_json(body: bytes) -> Any:
    """Raises HTTPException(400), for NaN and the like too."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise HTTPException(400, f"the body is JSON of more than {MAX_CONTAINERS} lists or objects")
    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not JSON") from error


def validate(model: type[M], content: Any) -> M:
    """Raises HTTPException(400), which says what is wrong first."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise HTTPException(400, first_mistake(error, whole="the body")) from error
