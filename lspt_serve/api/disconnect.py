"""Callers who leave before they are answered."""

import asyncio
from typing import Any, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException

__all__ = ["CLIENT_GONE", "unless_gone"]

CLIENT_GONE = 499  # nginx's; nobody reads it but the log
T = TypeVar("T")


async def unless_gone(request: Request, answer: "asyncio.Future[T]") -> T:
    """The answer; cancelled if the caller disconnects first, which raises HTTPException(499).

    Once the request's body has been read.
    """
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        both: set[asyncio.Future[Any]] = {answer, gone}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise HTTPException(CLIENT_GONE, "the caller left before the answer was there")
    finally:
        gone.cancel()
        answer.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
