import asyncio
import gc
import threading
import weakref
from contextlib import suppress
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from toys import coloured, encoded
from toys_api import Api, check_refused, create_classifier

from lspt_serve.api.threads import Threads
from lspt_serve.errors import OverloadedError
from lspt_serve.models import Backbone

PNG = encoded(coloured("red", np.random.default_rng(0)))


def test_more_images_than_may_wait_to_be_decoded_are_refused_at_once(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api(create_classifier(tiny_backbone, tmp_path_factory))
    classifier, go_on, begun = api.app.state.classifier, threading.Event(), []
    decode = classifier.decode

    def decode_later(*args: Any) -> Any:
        begun.append(args)
        assert go_on.wait(timeout=30)
        return decode(*args)

    monkeypatch.setattr(classifier, "decode", decode_later)
    monkeypatch.setattr("lspt_serve.api.classify.DECODING", Threads("one", 1, max_waiting=2))

    async def send() -> list[httpx.Response]:
        """Three at once, of which two wait, and a fourth: who is answered first comes first."""
        answers: list[httpx.Response] = []
        transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def classify() -> None:
                form: Any = {"files": {"image": PNG}, "data": {"task": "colour"}}
                answers.append(await client.post("/classify", **form))

            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(classify)
                while not answers:
                    await anyio.sleep(0.001)
                assert len(begun) == 1
                go_on.set()
        return answers

    refused, *answered = anyio.run(send)

    assert "3 wait for one; try again later" in check_refused(refused, 503, "overloaded")
    assert refused.headers["Retry-After"] == "1"
    assert [answer.status_code for answer in answered] == [200] * 3


def test_a_thread_has_its_place_until_it_is_done_and_work_that_nobody_waits_for_has_none() -> None:
    threads, go_on, done = Threads("two", 1, max_waiting=1), threading.Event(), []

    def work(number: int) -> None:
        assert go_on.wait(timeout=30)
        done.append(number)

    async def run() -> None:
        running = asyncio.ensure_future(threads.run(work, 1))
        waiting = asyncio.ensure_future(threads.run(work, 2))
        await asyncio.sleep(0.05)
        for left in (running, waiting):
            left.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        last = asyncio.ensure_future(threads.run(work, 3))  # in the place of the one that waited
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await threads.run(work, 4)
        go_on.set()
        await last

    asyncio.run(run())
    assert done == [1, 3]


def test_work_that_nobody_waits_for_holds_nothing_while_others_run() -> None:
    threads, go_on = Threads("two", 1), threading.Event()
    held: weakref.WeakSet[object] = weakref.WeakSet()

    class Upload:
        def __init__(self) -> None:
            held.add(self)

    async def leave() -> None:
        waiting = asyncio.ensure_future(threads.run(id, Upload()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting

    async def run() -> None:
        running = asyncio.ensure_future(threads.run(go_on.wait, 30))
        for _ in range(10):
            await leave()
        gc.collect()
        assert len(held) <= 1  # asyncio keeps the last error
        go_on.set()
        assert await running

    asyncio.run(run())
