import threading
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from anyio import CapacityLimiter
from toys import coloured, encoded
from toys_api import Api, check_refused, create_classifier

from lspt_serve.models import Backbone

PNG = encoded(coloured("red", np.random.default_rng(0)))


def test_more_images_than_may_wait_to_be_decoded_are_refused_at_once(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api(create_classifier(tiny_backbone, tmp_path_factory))
    classifier, go_on = api.app.state.classifier, threading.Event()
    decode = classifier.decode

    def decode_later(*args: Any) -> Any:
        assert go_on.wait(timeout=30)
        return decode(*args)

    monkeypatch.setattr(classifier, "decode", decode_later)
    threads = CapacityLimiter(1)
    monkeypatch.setattr("lspt_serve.api.threads._limiter", threads)
    monkeypatch.setattr("lspt_serve.api.threads.MAX_WAITING", 2)

    async def send() -> list[httpx.Response]:
        """Three, of which two wait; one that is too many; and none of them any more."""
        answers: list[httpx.Response] = []

        def waits() -> int:
            return threads.statistics().tasks_waiting

        transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def classify() -> None:
                form: Any = {"files": {"image": PNG}, "data": {"task": "colour"}}
                answers.append(await client.post("/classify", **form))

            async with anyio.create_task_group() as group:
                for waiting in (0, 1, 2):
                    group.start_soon(classify)
                    while (threads.borrowed_tokens, waits()) != (1, waiting):
                        await anyio.sleep(0.001)
                await classify()
                go_on.set()
        return answers

    refused, *answered = anyio.run(send)

    assert "2 images wait to be decoded" in check_refused(refused, 503, "overloaded")
    assert refused.headers["Retry-After"] == "1"
    assert [answer.status_code for answer in answered] == [200] * 3
