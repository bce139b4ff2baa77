"""A cap on the bytes of a request, known before they are read where the caller says how many.

And one on those of all requests that are under way.
"""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lspt_serve.errors import OverloadedError

__all__ = ["LimitBody"]

AT_ONCE = 32  # as many of the largest requests are held in memory, or more smaller ones


class LimitBody:
    """ASGI middleware: more than the app's `state.max_bytes` raises 413 where the body is read.

    More than AT_ONCE times that, of all that is not answered yet, raises OverloadedError there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._held = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        max_bytes: int = scope["app"].state.max_bytes
        declared = Headers(scope=scope).get("content-length", "0").lstrip("0")
        digits = len(str(max_bytes))
        too_many = declared.isdecimal() and (len(declared) > digits or int(declared) > max_bytes)
        received, held = max_bytes + 1 if too_many else 0, 0

        async def limited() -> Message:
            nonlocal received, held
            message = {"type": "http.request"} if received > max_bytes else await receive()
            size = len(message.get("body", b""))
            received += size
            if received > max_bytes:
                raise HTTPException(413, f"request body over {max_bytes} bytes")
            if self._held + size > AT_ONCE * max_bytes:
                raise OverloadedError(f"{self._held} bytes are held already; try again later")
            self._held, held = self._held + size, held + size
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            self._held -= held
