"""A busy server refuses what it has not read."""

import asyncio
import http.client
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from pydantic import SecretStr
from toys import coloured, encoded
from toys_api import Api, check_refused, create_classifier, overloaded

from lspt_serve.api.auth import Access
from lspt_serve.bundle import Bundle
from lspt_serve.models import Backbone
from lspt_serve.runtime import Classifier

PNG = encoded(coloured("red", np.random.default_rng(0)))
IMAGE = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory))


@contextmanager
def listening(api: Api) -> Iterator[http.client.HTTPConnection]:
    """A connection to the app behind a real server, in a thread."""
    server = uvicorn.Server(uvicorn.Config(api.served, port=0, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        yield connection
        connection.close()
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def test_refusal_comes_before_the_image_and_the_connection_is_good_for_more(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(api) as connection:
        with overloaded(api.app.state.classifier, monkeypatch):
            connection.putrequest("POST", "/classify?task=colour")
            connection.putheader("Content-Type", "image/png")
            connection.putheader("Content-Length", str(len(PNG)))
            connection.endheaders()  # and nothing of the image
            refused = connection.getresponse()
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            assert b"256 images wait already" in refused.read()
            connection.send(PNG)

        connection.request("POST", "/classify?task=colour", body=PNG, headers=IMAGE)
        assert connection.getresponse().status == 200


def test_refusal_of_what_is_not_read_is_logged_and_counted_as_any_other(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lspt_serve.access")
    fresh = Api(api.app.state.classifier)
    with overloaded(api.app.state.classifier, monkeypatch):
        unread = fresh.request("POST", "/classify?task=colour", content=PNG, headers=IMAGE)
        read = fresh.classify(PNG)

    texts = [check_refused(answer, 503, "overloaded") for answer in (unread, read)]
    assert texts[0] == texts[1]
    assert unread.headers.keys() == read.headers.keys()
    lines = [record.getMessage().partition(" overloaded ")[0] for record in caplog.records]
    assert lines == 2 * ["POST /classify 503"]
    metrics = fresh.app.state.metrics.render().decode()
    assert 'lspt_http_seconds_count{route="/classify",status="503"} 2.0' in metrics
    assert 'lspt_errors_total{code="overloaded"} 2.0' in metrics


def test_task_in_a_form_is_refused_once_the_form_is_read(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with overloaded(api.app.state.classifier, monkeypatch):
        check_refused(api.classify(PNG), 503, "overloaded")


def test_every_image_that_was_decoded_is_answered(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier: Classifier = api.app.state.classifier
    run, decode, go = classifier.engine.features, Classifier.decode, threading.Event()
    small = Classifier(classifier.engine, classifier.store, max_batch_size=4, capacity=4)
    decoded, statuses = [], Counter[int]()

    def features(images: NDArray[np.float32], tasks: Any) -> NDArray[np.float32]:
        assert go.wait(timeout=30)
        return run(images, tasks)

    def counted(self: Classifier, data: bytes, bundle: Bundle) -> NDArray[np.float32]:
        time.sleep(0.02)
        decoded.append(data)
        return decode(self, data, bundle)

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        task = ("colour", "parity")[number % 2]
        answer = await client.post("/classify", files={"image": PNG}, data={"task": task})
        statuses[answer.status_code] += 1
        if statuses[503] >= 40 - 8:  # that many may wait or be run
            go.set()

    async def ask_all() -> None:
        transport = httpx.ASGITransport(Api(small).app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await asyncio.gather(*(ask(client, number) for number in range(40)))

    monkeypatch.setattr(classifier.engine, "features", features)
    monkeypatch.setattr(Classifier, "decode", counted)
    anyio.run(ask_all)
    small._batcher.close()  # the engine is that of others

    assert set(statuses) == {200, 503}
    assert len(decoded) == statuses[200] <= 8


def test_busy_server_has_its_other_answers_still(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    with overloaded(api.app.state.classifier, monkeypatch):
        unknown = api.request("POST", "/classify?task=colours", content=PNG, headers=IMAGE)
        other = api.request("GET", "/classify?task=colour")
        api.app.state.access = Access(SecretStr("token"), keys={})
        stranger = api.request("POST", "/classify?task=colour", content=PNG, headers=IMAGE)
        api.app.state.access = Access()

    check_refused(unknown, 404, "unknown_task", item="task")
    check_refused(other, 405, "method_not_allowed")
    check_refused(stranger, 401, "unauthorised")
