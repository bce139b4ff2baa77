"""A cap on the bytes of a request, known before they are read where the caller says how many.

And one on those of all requests that are under way.
"""

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lspt_serve.errors import OverloadedError

__all__ = ["Held", "LimitBody", "held_of"]

AT_ONCE = 32  # as many of the largest requests are held in memory, or more smaller ones


@dataclass
class _Total:
    held: int = 0  # bytes


class Held:
    """The bytes that a request holds in memory, of those that all may hold together."""

    def __init__(self, total: _Total, most: int) -> None:
        self._total, self._most = total, most
        self._own = 0

    def take(self, size: int) -> None:
        """Hold more; raises OverloadedError where there is no room for it."""
        if self._total.held + size > self._most:
            raise OverloadedError(f"{self._total.held} bytes are held already; try again later")
        self._total.held += size
        self._own += size

    def release(self) -> None:
        """All is let go of: its images are decoded, or it is answered."""
        self._total.held -= self._own
        self._own = 0


def held_of(request: Request) -> Held:
    """What the request holds."""
    held: Held = request.state.held
    return held


class LimitBody:
    """ASGI middleware: more than the app's `state.max_bytes` raises 413 where the body is read.

    More than AT_ONCE times that, of all that is not let go of yet, raises OverloadedError there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._total = _Total()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        max_bytes: int = scope["app"].state.max_bytes
        declared = Headers(scope=scope).get("content-length", "0").lstrip("0")
        digits = len(str(max_bytes))
        too_many = declared.isdecimal() and (len(declared) > digits or int(declared) > max_bytes)
        received = max_bytes + 1 if too_many else 0
        held = scope["state"]["held"] = Held(self._total, AT_ONCE * max_bytes)

        async def limited() -> Message:
            nonlocal received
            message = {"type": "http.request"} if received > max_bytes else await receive()
            size = len(message.get("body", b""))
            received += size
            if received > max_bytes:
                raise HTTPException(413, f"request body over {max_bytes} bytes")
            held.take(size)
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            held.release()
