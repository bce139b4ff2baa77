"""A cap on the bytes of a request, known before they are read where the caller says how many."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["LimitBody"]


class LimitBody:
    """ASGI middleware: more than the app's `state.max_bytes` raises 413 where the body is read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        max_bytes: int = scope["app"].state.max_bytes
        declared = Headers(scope=scope).get("content-length", "0").lstrip("0")
        digits = len(str(max_bytes))
        too_many = declared.isdecimal() and (len(declared) > digits or int(declared) > max_bytes)
        received = max_bytes + 1 if too_many else 0

        async def limited() -> Message:
            nonlocal received
            message = {"type": "http.request"} if received > max_bytes else await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                raise HTTPException(413, f"request body over {max_bytes} bytes")
            return message

        await self.app(scope, limited, send)
