"""Every failure as JSON with a code; never a 500 for what a caller sent."""

import logging
import re
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lspt_serve.api.disconnect import CLIENT_GONE
from lspt_serve.errors import (
    DeadlineError,
    LSPTError,
    OverloadedError,
    TooLargeError,
    UnauthorisedError,
    UnavailableError,
    UndecodableError,
    UnknownTaskError,
    UnsupportedFormatError,
)
from lspt_serve.schemas import ErrorAnswer, Failure, ItemFailure

__all__ = [
    "CODES",
    "FAILURES",
    "PLAIN",
    "REQUEST_ID",
    "add_failure_handlers",
    "explain",
    "refuse",
    "request_id",
]

REQUEST_ID = "X-Request-ID"
PLAIN = re.compile("[A-Za-z0-9._-]{1,64}")
logger = logging.getLogger(__name__)

# code, status and blamed field of what a caller can cause
FAILURES: dict[type[LSPTError], tuple[str, int, str | None]] = {
    OverloadedError: ("overloaded", 503, None),
    UnavailableError: ("unavailable", 503, None),
    DeadlineError: ("deadline", 504, None),
    UnauthorisedError: ("unauthorised", 401, None),
    UnknownTaskError: ("unknown_task", 404, "task"),
    TooLargeError: ("too_large", 413, "image"),
    UnsupportedFormatError: ("unsupported_format", 415, "image"),
    UndecodableError: ("undecodable", 422, "image"),
}
# codes of what is raised as a status, by the web framework too
CODES = {
    400: "malformed",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_format",
    CLIENT_GONE: "client_gone",
    503: "unavailable",
}
PARTS = ("body", "header", "path", "query")  # of a request, before the names in them
RETRY_AFTER_S = 1


def request_id(request: Request) -> str:
    """The caller's X-Request-ID if it is a plain one, else a new one; the same all request long."""
    state: dict[str, Any] = request.scope.setdefault("state", {})
    if "request_id" not in state:
        given = request.headers.get(REQUEST_ID, "")
        state["request_id"] = given if PLAIN.fullmatch(given) else uuid.uuid4().hex
    return str(state["request_id"])


def add_failure_handlers(app: FastAPI) -> None:
    """Make `app` answer every exception with an ErrorAnswer."""

    @app.exception_handler(LSPTError)
    async def on_refused(request: Request, error: LSPTError) -> JSONResponse:
        return refuse(request, error)

    @app.exception_handler(RequestValidationError)
    async def on_malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        names = [part for part in first["loc"] if part not in PARTS] or first["loc"]
        item = str(next(iter(names), "body"))
        item = item.encode("utf-8", "replace").decode()  # JSON can spell what is no text
        message = f"{item}: {first['msg']}"
        return _answer(request, 400, ItemFailure(code="malformed", message=message, item=item))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code) or HTTPStatus(error.status_code).phrase
        failure = ItemFailure(code=code, message=str(error.detail))
        return _answer(request, error.status_code, failure, error.headers)

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        return refuse(request, error)


def refuse(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that failed with the error."""
    return _answer(request, *explain(error, request))


def explain(error: Exception, request: Request) -> tuple[int, ItemFailure]:
    """The status of an error and what a caller may know of it; the log has the rest."""
    message = str(error)
    if type(error) is UnavailableError:  # it names a machine that is no business of callers
        logger.warning("request %s failed: %s", request_id(request), message)
        message = "the server that runs the model does not answer; try again later"
    for kind, (code, status, item) in FAILURES.items():
        if isinstance(error, kind):
            return status, ItemFailure(code=code, message=message, item=item)
    logger.error("request %s failed", request_id(request), exc_info=error)
    return 500, ItemFailure(code="internal", message="an error of the server; its log has more")


def _answer(
    request: Request,
    status: int,
    failed: ItemFailure,
    own_headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    request.state.code = failed.code
    failure = Failure(request_id=request_id(request), **failed.model_dump())
    headers = {**(own_headers or {}), REQUEST_ID: failure.request_id}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    of_v2 = f"{request.scope['path']}/".startswith("/v2/")
    content = {"error": failure.message} if of_v2 else ErrorAnswer(error=failure).model_dump()
    return JSONResponse(content, status_code=status, headers=headers)
