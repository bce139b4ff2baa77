"""What of BentoML's app is ours: the middleware before its routes, what comes after them, and its
OpenAPI document.
"""

import os

from _bentoml_impl.server.app import ServiceAppFactory
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from lspt_serve.api.overload import RefuseEarly

__all__ = ["configure_middleware", "configure_openapi", "configure_unknown_paths"]

DISABLED = "OTEL_SDK_DISABLED"  # OpenTelemetry's own: who sets it up himself says false
_of_bentoml = ServiceAppFactory.middlewares
_make_app = ServiceAppFactory.__call__


def configure_middleware(api: FastAPI) -> None:
    """A server that is too busy says so at little cost. Call it before BentoML makes its app.

    The app refuses before BentoML's routes. It keeps BentoML's limit of time, which is a task and a
    timer for every request there. Spans are made where something collects them, not anyway; a trace
    that a caller names is in the log all the same.

    Args:
        api: what the routes lead to.
    """

    def middlewares(factory: ServiceAppFactory) -> list[Middleware]:
        api.state.answer_s = factory.timeout
        unwanted: list[object] = [TimeoutMiddleware]
        if not _collects_spans():
            unwanted.append(OpenTelemetryMiddleware)
        wanted = [each for each in _of_bentoml.__get__(factory) if each.cls not in unwanted]
        return [*wanted, Middleware(RefuseEarly, api=api)]

    ServiceAppFactory.middlewares = property(middlewares)


def configure_unknown_paths(api: FastAPI) -> None:
    """Requests that no route is for are answered, counted and logged by `api` as all others are.

    Call it before BentoML makes its app, whose own answer is plain text or, where a slash is one
    too many, leads to whatever Host the caller named.
    """

    def make_app(factory: ServiceAppFactory) -> Starlette:
        app: Starlette = _make_app(factory)
        app.router.redirect_slashes = False
        app.router.default = api
        return app

    ServiceAppFactory.__call__ = make_app


def configure_openapi(api: FastAPI) -> None:
    """GET /docs.json is the app's own document, whole. Call it before BentoML makes its app.

    BentoML would take the routes alone, without what the app knows of them all, and say that it is
    of OpenAPI 3.0, which it is not.
    """

    async def show(factory: ServiceAppFactory, request: Request) -> JSONResponse:
        return JSONResponse(api.openapi())

    ServiceAppFactory.openapi_spec_view = show


def _collects_spans() -> bool:
    return BentoMLContainer.tracing.exporter_type.get() is not None or DISABLED in os.environ
