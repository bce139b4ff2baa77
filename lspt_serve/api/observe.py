"""A line in the log and a count for every request."""

import asyncio
import logging
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import quote

from fastapi import Request
from opentelemetry import trace
from opentelemetry.propagate import extract
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lspt_serve.api.failures import REQUEST_ID, request_id
from lspt_serve.api.metrics import Metrics

__all__ = ["Observe"]

# what asks every few seconds is not counted, and fills no log
QUIET = ("/metrics", "/v2/health/live", "/v2/health/ready")
MAX_PATH = 200  # characters of a path that are logged
logger = logging.getLogger("lspt_serve.access")


class Observe:
    """ASGI middleware around the app; every answer gets the request's id.

    A route tells what it knows of a request by way of its state: `task` (NAME@VERSION) and
    `timings` (milliseconds by name); what answers an error tells its `code`, and in the place of a
    route its `route`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        with _named_trace(Request(scope)):
            await self._observe(scope, receive, send)

    async def _observe(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).setdefault(REQUEST_ID, request_id(Request(scope)))
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:  # the server stops, and waits no longer
            status, scope["state"]["code"] = 503, "unavailable"
            raise
        finally:
            route = scope["state"].get("route") or getattr(scope.get("route"), "path", "")
            if route not in QUIET:
                _tell(Request(scope), route, status, time.perf_counter() - started)


def _named_trace(request: Request) -> AbstractContextManager[Any]:
    """The trace that the caller is in, for the log, where no span is made of the request."""
    named = request.headers.get("traceparent")
    if named is None or trace.get_current_span().get_span_context().is_valid:
        return nullcontext()
    return trace.use_span(trace.get_current_span(extract({"traceparent": named})))


def _tell(request: Request, route: str, status: int, seconds: float) -> None:
    state, path = request.scope["state"], quote(request.scope["path"])[:MAX_PATH]
    code = state.get("code", "internal" if status == 500 else None)
    metrics: Metrics = request.app.state.metrics
    metrics.responded(route, status, code, seconds)
    fields: dict[str, Any] = {
        "request_id": request_id(request),
        "method": request.method,
        "path": path,
        "status": status,
        "ms": round(seconds * 1000, 3),
    }
    known = {name: state[name] for name in ("task", "timings") if name in state}
    fields |= known | ({"code": code} if code else {})
    about = " ".join(fields[name] for name in ("code", "task") if name in fields)
    line = f"{request.method} {path} {status} {about}".rstrip()
    logger.info(
        "%s %.1f ms, request %s",
        line,
        seconds * 1000,
        fields["request_id"],
        extra={"fields": fields},
    )
