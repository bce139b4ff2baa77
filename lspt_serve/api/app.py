"""The app: its routes, limits and errors."""

from functools import cache, partial

from fastapi import Depends, FastAPI, Response

from lspt_serve.api import aliases, classify, classify_many, tasks, v2
from lspt_serve.api.auth import Access, check_sees_all
from lspt_serve.api.document import describe
from lspt_serve.api.failures import add_failure_handlers
from lspt_serve.api.limits import LimitBody
from lspt_serve.api.metrics import Metrics, get_metrics
from lspt_serve.api.observe import Observe
from lspt_serve.api.openapi import OK_TEXT, responses
from lspt_serve.api.timeout import ANSWER_S, AnswerInTime
from lspt_serve.sizes import MAX_REQUEST_BYTES
from lspt_serve.ui import add_page

__all__ = ["create_app"]


def create_app(*, max_bytes: int = MAX_REQUEST_BYTES) -> FastAPI:
    """The API without its classifier: put one into `app.state.classifier` before the first request.

    `app.state.metrics` is what GET /metrics shows; a classifier is to be given it as its events.

    Args:
        max_bytes: of a request's body; more is answered with 413. `app.state.max_bytes` later.
    """
    app = FastAPI(title="lspt-serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False  # to whatever Host the caller named
    app.state.max_bytes = max_bytes
    app.state.answer_s = ANSWER_S
    app.state.access = Access()
    app.state.metrics = Metrics()
    app.add_middleware(LimitBody)
    app.add_middleware(AnswerInTime)
    app.add_middleware(Observe)
    add_failure_handlers(app)
    for part in (classify, classify_many, tasks, aliases, v2):
        app.include_router(part.router)
    app.get(
        "/metrics",
        response_class=Response,
        responses={200: OK_TEXT, **responses(401)},
        dependencies=[Depends(check_sees_all)],
    )(get_metrics)
    add_page(app)
    app.openapi = cache(partial(describe, app))  # type: ignore[method-assign]
    return app
