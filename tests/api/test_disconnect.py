import asyncio
from typing import Any

import pytest
from fastapi import Request
from starlette.exceptions import HTTPException

from lspt_serve.api.disconnect import unless_gone


def request_whose_caller(leaves_after: float) -> Request:
    async def receive() -> Any:
        await asyncio.sleep(leaves_after)
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


async def wait(request: Request, seconds: float) -> tuple[str, "asyncio.Future[str]"]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    loop.call_later(seconds, answer.set_result, "cat")
    try:
        return await unless_gone(request, answer), answer
    except HTTPException as error:
        return str(error.status_code), answer


def test_answer_is_given_to_a_caller_who_waits() -> None:
    got, _ = asyncio.run(wait(request_whose_caller(leaves_after=60), 0.01))

    assert got == "cat"


def test_answer_is_cancelled_when_its_caller_leaves() -> None:
    got, answer = asyncio.run(wait(request_whose_caller(leaves_after=0.01), 60))

    assert got == "499"
    assert answer.cancelled()


def test_error_of_the_answer_is_raised() -> None:
    async def fail() -> None:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        answer.set_exception(ValueError("broken"))
        await unless_gone(request_whose_caller(leaves_after=60), answer)

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(fail())
