"""A server that is too busy says so before it reads what it is asked."""

from contextlib import suppress

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from lspt_serve.api.auth import get_classifier
from lspt_serve.api.failures import refuse
from lspt_serve.errors import OverloadedError, UnauthorisedError

__all__ = ["RefuseEarly"]


class RefuseEarly:
    """ASGI middleware: while there is no room for an image of the task, it is refused unread.

    That of a request which names its `task` in the query, a task that is in memory. Others are
    refused once they are read. It comes before the routes, which cost more than to say no.

    Args:
        path: where an image is sent to.
    """

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app = app
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", self.path):
            request = Request(scope)
            try:
                await _check_room(request)
            except OverloadedError as error:
                request.state.route = self.path
                await refuse(request, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _check_room(request: Request) -> None:
    """Raises OverloadedError."""
    if task := request.query_params.get("task"):
        with suppress(UnauthorisedError):  # the route will say so
            (await get_classifier(request)).held(task)
