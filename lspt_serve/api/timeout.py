"""Who has waited too long is told so, whatever it is that takes the time."""

import asyncio

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lspt_serve.api.failures import refuse
from lspt_serve.errors import DeadlineError

__all__ = ["ANSWER_S", "AnswerInTime"]

ANSWER_S = 60.0  # from a request's headers to the start of its answer


class AnswerInTime:
    """ASGI middleware: a request whose answer has not begun in ANSWER_S is answered with 504.

    The time that its body takes to come is among that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = asyncio.timeout(ANSWER_S)

        async def begin(message: Message) -> None:
            limit.reschedule(None)
            await send(message)

        try:
            async with limit:
                await self.app(scope, receive, begin)
        except TimeoutError:
            if not limit.expired():
                raise
            error = DeadlineError(f"not answered in {ANSWER_S:g} s, its body's time included")
            await refuse(Request(scope), error)(scope, receive, send)
