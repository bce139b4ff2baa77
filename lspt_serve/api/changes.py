"""Changes of what is served, made in threads that may wait; and the bodies that ask for them."""

import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lspt_serve.api.disconnect import CLIENT_GONE
from lspt_serve.api.failures import request_id
from lspt_serve.errors import BundleError, OutputError, first_mistake

__all__ = ["change", "parse_json", "read_body", "validate"]

M = TypeVar("M", bound=BaseModel)
logger = logging.getLogger(__name__)


async def change(request: Request, make: Callable[..., None], *args: Any) -> None:
    """Have the store make a change; its errors name files, which are no business of callers.

    Raises:
        UnknownTaskError: there is no such task or version.
        HTTPException: 503, the folder cannot be written; 409, its file is broken.
    """
    try:
        await anyio.to_thread.run_sync(make, *args)
    except OutputError as error:
        logger.error("request %s failed: %s", request_id(request), error)
        raise HTTPException(503, "the folder of bundles cannot be written now") from error
    except BundleError as error:
        logger.error("request %s failed: %s", request_id(request), error)
        raise HTTPException(
            409, "a file in the folder of bundles is broken; see the log"
        ) from error


async def read_body(request: Request) -> bytes:
    """Raises HTTPException(499) if the caller leaves meanwhile."""
    try:
        return await request.body()
    except ClientDisconnect:
        raise HTTPException(CLIENT_GONE, "the caller left before all was read") from None


def parse_json(body: bytes) -> Any:
    """Raises HTTPException(400), for NaN and the like too."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

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
