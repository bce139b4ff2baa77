"""The real HTTP app, in process, over a real graph of a tiny backbone."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from starlette.types import Message, Scope
from toys import export_once, noise, random_bundle

from lspt_serve.api import create_app
from lspt_serve.api.document import OF_BENTOML
from lspt_serve.api.overload import RefuseEarly
from lspt_serve.bundle import save_bundle
from lspt_serve.errors import OverloadedError
from lspt_serve.feed import TaskTensors
from lspt_serve.models import Backbone
from lspt_serve.runtime import SILENT, Classifier, Engine, Events, OnnxEngine, PromptStore

MAY_LACK = {"inference-header-content-length"}  # in an answer that is JSON alone
TASKS = {"colour": ("blue", "green", "red"), "parity": ("even", "odd")}


def save_tasks(backbone: Backbone, folder: Path) -> None:
    """Two bundles of different labels, tensors and numbers of prompts."""
    for seed, (name, labels) in enumerate(TASKS.items(), start=1):
        bundle = random_bundle(backbone, name=name, labels=labels, seed=seed, num_prompts=2 * seed)
        save_bundle(bundle, folder / name)


def create_classifier(
    backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, *, events: Events = SILENT
) -> Classifier:
    """Of two tasks, whose engine takes one batch at a time: a test that stalls it stalls all."""
    folder = tmp_path_factory.mktemp("bundles")
    save_tasks(backbone, folder)
    engine = OnnxEngine(export_once(backbone, tmp_path_factory), device="cpu", num_beside=1)
    store = PromptStore(folder, engine.graph, events=events)
    return Classifier(engine, store, max_batch_size=4, events=events)


class Api:
    """Sends requests to the app as a server would; exceptions become answers, as there."""

    def __init__(self, classifier: Classifier, **settings: Any) -> None:
        self.app = create_app(**settings)
        self.app.state.classifier = classifier
        self.served = RefuseEarly(self.app, api=self.app)  # as the service does

    def request(self, method: str, path: str, **settings: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.served, raise_app_exceptions=False)

        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **settings)

        response = anyio.run(send)
        check_documented(self.app, method, response)
        return response

    def classify(
        self, image: bytes, *, task: str = "colour", headers: Any = None, **fields: Any
    ) -> httpx.Response:
        files, data = {"image": ("image", image)}, {"task": task, **fields}
        return self.request("POST", "/classify", files=files, data=data, headers=headers)

    def leave(self, path: str, **settings: Any) -> int:
        """POST and disconnect once all is sent; returns the status in the log."""
        request = httpx.Request("POST", f"http://test{path}", **settings)
        messages: list[Message] = [
            {"type": "http.request", "body": request.read()},
            {"type": "http.disconnect"},
        ]
        statuses: list[int] = []

        async def receive() -> Message:
            if len(messages) == 1:
                await anyio.sleep(0.2)  # the image waits for the engine by then
            return messages.pop(0)

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        anyio.run(self.app, to_scope(request), receive, send)
        (status,) = statuses
        return status


def check_documented(app: FastAPI, method: str, response: httpx.Response) -> None:
    """What the OpenAPI document says of the route's answers, where there is such a route."""
    document = app.openapi()
    for path, operations in document["paths"].items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))
        operation = None if path in OF_BENTOML else operations.get(method.lower())
        if operation and re.fullmatch(pattern, response.url.path) and response.status_code != 500:
            documented = operation["responses"]
            assert str(response.status_code) in documented, (method, path, response.text)
            answer = documented[str(response.status_code)]
            assert {name.lower() for name in answer["headers"]} - MAY_LACK <= {*response.headers}
            if media_type := response.headers.get("content-type", "").partition(";")[0]:
                schema = answer["content"][media_type]["schema"]
                if media_type == "application/json":
                    check_fits(document, schema, response.json())


def check_fits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Without any field that the schema does not know."""
    Draft202012Validator(close({**document, **schema})).validate(value)


def close(schema: Any) -> Any:
    if isinstance(schema, list):
        return [*map(close, schema)]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if "properties" in closed else closed


def to_scope(request: httpx.Request) -> Scope:
    """As a server hands it to the app."""
    return {
        "type": "http",
        "http_version": "1.1",
        "method": request.method,
        "path": request.url.path,
        "raw_path": request.url.raw_path,
        "query_string": request.url.query,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
    }


@dataclass
class Stalled:
    """An engine in which a batch stays until `go_on` is set; `rows` of those that it has run."""

    busy: Event = field(default_factory=Event)  # a batch is there
    go_on: Event = field(default_factory=Event)
    rows: list[int] = field(default_factory=list)


def stall(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Stalled:
    run, stalled = engine.features, Stalled()

    def features(images: NDArray[np.float32], tasks: Sequence[TaskTensors]) -> NDArray[np.float32]:
        stalled.busy.set()
        assert stalled.go_on.wait(timeout=30)
        stalled.rows.append(len(tasks))
        return run(images, tasks)

    monkeypatch.setattr(engine, "features", features)
    return stalled


def leave_busy(
    api: "Api", monkeypatch: pytest.MonkeyPatch, path: str, **settings: Any
) -> tuple[int, list[int]]:
    """As `Api.leave`, while an image of somebody else is in the engine; the classifier is closed.

    Returns:
        The status in the log, and the rows of each batch that ran.
    """
    classifier: Classifier = api.app.state.classifier
    stalled = stall(classifier.engine, monkeypatch)
    first = classifier.submit(noise(1)[0], classifier.store["colour"])
    assert stalled.busy.wait(timeout=10)
    status = api.leave(path, **settings)
    stalled.go_on.set()
    first.result(timeout=10)
    classifier.close()
    return status, stalled.rows


@contextmanager
def overloaded(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While its engine is busy with a first batch and its queue is full; then all is answered."""
    stalled = stall(classifier.engine, monkeypatch)
    bundle = classifier.store["colour"]
    waiting = [classifier.submit(noise(1)[0], bundle)]
    assert stalled.busy.wait(timeout=10)  # it takes no more from the queue
    with suppress(OverloadedError):
        while True:
            waiting.append(classifier.submit(noise(1)[0], bundle))
    try:
        yield
    finally:
        stalled.go_on.set()
        wait(waiting, timeout=30)


def check_refused(
    response: httpx.Response, status: int, code: str, *, item: str | None = None
) -> str:
    """Check the shape of a refusal; returns its message."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"code", "message", "request_id", "item"}
    assert (error["code"], error["item"]) == (code, item)
    assert error["request_id"] == response.headers["X-Request-ID"]
    message: str = error["message"]
    assert "\n" not in message
    return message
