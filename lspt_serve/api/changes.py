"""Changes of what is served, made in threads that may wait."""

import logging
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from fastapi import Request
from starlette.exceptions import HTTPException

from lspt_serve.api.failures import request_id
from lspt_serve.errors import BundleError, OutputError

__all__ = ["change"]

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
