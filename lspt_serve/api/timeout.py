"""Who has waited too long is told so, whatever it is that takes the time."""

import asyncio

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lspt_serve.api.failures import refuse
from lspt_serve.errors import DeadlineError

__all__ = ["ANSWER_S", "AnswerInTime"]

ANSWER_S = 60.0


class AnswerInTime:
    """ASGI middleware: what is not answered in the app's `state.answer_s` is answered with 504.

    That is from a request's headers to the start of its answer, with the time of its body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer_s: float = scope["app"].state.answer_s
        limit = asyncio.timeout(answer_s)

        async def begin(message: Message) -> None:
            limit.reschedule(None)
            await send(message)

        try:
            async with limit:
                await self.app(scope, receive, begin)
        except TimeoutError:
            if not limit.expired():
                raise
            error = DeadlineError(f"not answered in {answer_s:g} s, its body's time included")
            await refuse(Request(scope), error)(scope, receive, send)
