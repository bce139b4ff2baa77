"""A server that is too busy says so before it reads what it is asked."""

from contextlib import suppress

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from lspt_serve.api.auth import get_classifier
from lspt_serve.api.failures import refuse
from lspt_serve.api.observe import Observe
from lspt_serve.errors import OverloadedError, UnauthorisedError

__all__ = ["RefuseEarly"]

PATH = "/classify"


class RefuseEarly:
    """ASGI middleware: while there is no room for an image of the task, it is refused unread.

    That of a request which names its `task` in the query, a task that is in memory. Others are
    refused once they are read. It comes before all routes, which cost more than to say no.

    Args:
        app: what leads to `api`, by way of whatever else.
        api: the app whose classifier has room or not.
    """

    def __init__(self, app: ASGIApp, *, api: FastAPI) -> None:
        self.app = app
        self.api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", PATH):
            request = Request({**scope, "app": self.api, "state": {"route": PATH}})
            try:
                await _check_room(request)
            except OverloadedError as error:
                await Observe(refuse(request, error))(request.scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _check_room(request: Request) -> None:
    """Raises OverloadedError."""
    if task := request.query_params.get("task"):
        with suppress(UnauthorisedError):  # the route will say so
            (await get_classifier(request)).held(task)
