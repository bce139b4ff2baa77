"""The app: its routes, limits and errors."""

from fastapi import FastAPI

from lspt_serve.api import classify, classify_many, tasks
from lspt_serve.api.failures import add_failure_handlers
from lspt_serve.api.limits import LimitBody
from lspt_serve.sizes import MAX_REQUEST_BYTES
from lspt_serve.ui import add_page

__all__ = ["create_app"]


def create_app(*, max_bytes: int = MAX_REQUEST_BYTES) -> FastAPI:
    """The API without its classifier: put one into `app.state.classifier` before the first request.

    Args:
        max_bytes: of a request's body; more is answered with 413. `app.state.max_bytes` later.
    """
    app = FastAPI(title="lspt-serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.max_bytes = max_bytes
    app.add_middleware(LimitBody)
    add_failure_handlers(app)
    for part in (classify, classify_many, tasks):
        app.include_router(part.router)
    add_page(app)
    return app
