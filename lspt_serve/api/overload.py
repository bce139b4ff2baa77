"""A server that is too busy says so before it reads what it is asked."""

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from lspt_serve.api.auth import get_classifier

__all__ = ["RefusedEarly"]


class RefusedEarly(APIRoute):
    """A route whose requests are refused, unread, while there is no room for an image of the task.

    Of those that name their `task` in the query, and of tasks that are in memory. Others are
    refused once they are read.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises OverloadedError, or UnauthorisedError as the route would."""
        request = Request(scope)
        if scope["method"] in (self.methods or ()) and (task := request.query_params.get("task")):
            (await get_classifier(request)).held(task)
        await super().handle(scope, receive, send)
