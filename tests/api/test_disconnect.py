import asyncio
from threading import Event
from typing import Any

import numpy as np
import pytest
from fastapi import Request
from starlette.exceptions import HTTPException
from toys import coloured, encoded
from toys_api import Api, create_classifier, leave_busy

from lspt_serve.api.disconnect import unless_gone
from lspt_serve.models import Backbone


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


def test_answer_is_cancelled_when_its_handler_is() -> None:
    async def cancel() -> "asyncio.Future[str]":
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        handler = asyncio.ensure_future(unless_gone(request_whose_caller(60), answer))
        await asyncio.sleep(0.01)
        handler.cancel()
        await asyncio.wait({handler})
        return answer

    assert asyncio.run(cancel()).cancelled()


def test_image_whose_caller_leaves_while_it_waits_is_not_run(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = create_classifier(tiny_backbone, tmp_path_factory)
    image = encoded(coloured("red", np.random.default_rng(0)))
    sent = {"files": {"image": image}, "data": {"task": "colour"}}

    status, rows = leave_busy(Api(classifier), monkeypatch, "/classify", **sent)

    assert status == 499
    assert rows == [1]


def test_image_whose_caller_leaves_while_it_is_decoded_takes_no_place(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = create_classifier(tiny_backbone, tmp_path_factory)
    image, go_on = encoded(coloured("red", np.random.default_rng(0))), Event()
    monkeypatch.setattr(classifier, "decode", lambda *_: go_on.wait(timeout=30))
    sent = {"files": {"image": image}, "data": {"task": "colour"}}

    status = Api(classifier).leave("/classify", **sent)  # while its image is decoded still
    go_on.set()

    assert status == 499
    assert classifier._batcher._queue._num_coming == 0


def test_error_of_the_answer_is_raised() -> None:
    async def fail() -> None:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        answer.set_exception(ValueError("broken"))
        await unless_gone(request_whose_caller(leaves_after=60), answer)

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(fail())
