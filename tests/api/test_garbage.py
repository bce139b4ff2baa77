"""No request leaves anything to the garbage collector, which the service runs but seldom."""

import base64
import gc
import json

import anyio
import httpx
import numpy as np
import pytest
from starlette.types import Message
from toys import coloured, encoded
from toys_api import Api, create_classifier, to_scope

from lspt_serve.models import Backbone

PNG = encoded(coloured("red", np.random.default_rng(0)))
CUT = PNG[:60]
IN_JSON = {"image": base64.b64encode(PNG).decode(), "task": "colour"}
IMAGE, OBJECT = {"Content-Type": "image/png"}, {"Content-Type": "application/json"}
ROUNDS = 20


def post(path: str, **given: object) -> httpx.Request:
    return httpx.Request("POST", f"http://test{path}", **given)  # type: ignore[arg-type]


REQUESTS = {
    "answered": (200, post("/classify?task=colour", content=PNG, headers=IMAGE)),
    "form": (200, post("/classify", files={"image": PNG}, data={"task": "colour"})),
    "json": (200, post("/classify", content=json.dumps(IN_JSON), headers=OBJECT)),
    "many": (200, post("/classify_many?tasks=colour&tasks=parity", files={"images": PNG})),
    "cut off": (422, post("/classify?task=colour", content=CUT, headers=IMAGE)),
    "no image": (415, post("/classify?task=colour", content=b"text", headers=IMAGE)),
    "no task": (404, post("/classify?task=nothing", content=PNG, headers=IMAGE)),
    "malformed": (400, post("/classify?task=colour&top_k=0", content=PNG, headers=IMAGE)),
    "tensors": (400, post("/v2/models/colour/infer", content=b"{", headers=OBJECT)),
}


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory))


async def send(api: Api, request: httpx.Request) -> int:
    """Straight to the app: clients have circles of their own."""
    messages: list[Message] = [{"type": "http.request", "body": request.read()}]
    statuses: list[int] = []

    async def receive() -> Message:
        if not messages:
            await anyio.sleep_forever()
        return messages.pop()

    async def note(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await api.app(to_scope(request), receive, note)
    return statuses[0]


@pytest.mark.parametrize("name", REQUESTS)
def test_request_leaves_no_circle(api: Api, name: str) -> None:
    status, request = REQUESTS[name]

    async def count() -> int:
        await send(api, request)
        gc.collect()
        gc.disable()
        try:
            assert [await send(api, request) for _ in range(ROUNDS)] == [status] * ROUNDS
            return gc.collect()
        finally:
            gc.enable()

    assert anyio.run(count) < ROUNDS
