from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from starlette.types import Message
from toys import coloured, encoded
from toys_api import Api, check_refused, create_classifier, stall

from lspt_serve.models import Backbone

PNG = encoded(coloured("red", np.random.default_rng(0)))
MAX_BYTES = 20_000


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory), max_bytes=MAX_BYTES)


def body(size: int) -> bytes:
    """A good request whose image is followed by as many bytes as make it `size` bytes long."""
    head = b'--line\r\nContent-Disposition: form-data; name="task"\r\n\r\ncolour\r\n'
    head += b'--line\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PNG
    tail = b"\r\n--line--\r\n"
    return head + b"\0" * (size - len(head) - len(tail)) + tail


def send(api: Api, content: Any, **headers: str) -> Any:
    given = {"Content-Type": "multipart/form-data; boundary=line", **headers}
    return api.request("POST", "/classify", content=content, headers=given)


def in_chunks(content: bytes, size: int = 1000) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def streamed(content: bytes) -> Any:
    for chunk in in_chunks(content):
        yield chunk


@pytest.mark.parametrize("chunked", [False, True])
def test_body_at_the_limit_is_taken(api: Api, chunked: bool) -> None:
    content = body(MAX_BYTES)

    response = send(api, streamed(content) if chunked else content)

    assert ("content-length" in response.request.headers) is not chunked
    assert response.status_code == 200


@pytest.mark.parametrize("size", [MAX_BYTES + 1, 10 * MAX_BYTES])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_refused(api: Api, chunked: bool, size: int) -> None:
    content = body(size)

    response = send(api, streamed(content) if chunked else content)

    assert f"over {MAX_BYTES} bytes" in check_refused(response, 413, "too_large")


def test_next_request_after_a_refused_one_works(api: Api) -> None:
    send(api, body(MAX_BYTES + 1))

    assert send(api, body(MAX_BYTES)).status_code == 200


def ask(api: Api, content_length: bytes, chunks: list[bytes]) -> tuple[int, int]:
    """Speak ASGI with the app; returns the answer's status and how many chunks it read."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/classify",
        "raw_path": b"/classify",
        "query_string": b"",
        "headers": [
            (b"content-type", b"multipart/form-data; boundary=line"),
            (b"content-length", content_length),
        ],
    }
    left, statuses = [*chunks], []

    async def receive() -> Message:
        if not left:  # the caller waits for the answer
            await anyio.sleep_forever()
        chunk = left.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    anyio.run(api.app, scope, receive, answer)
    (status,) = statuses
    return status, len(chunks) - len(left)


def test_body_that_is_declared_too_long_is_not_read(api: Api) -> None:
    chunks = [*in_chunks(body(MAX_BYTES + 1))]

    assert ask(api, str(MAX_BYTES + 1).encode(), chunks) == (413, 0)


def test_body_that_is_longer_than_declared_is_read_up_to_the_limit(api: Api) -> None:
    chunks = [*in_chunks(body(5 * MAX_BYTES))]

    assert ask(api, b"10", chunks) == (413, MAX_BYTES // 1000 + 1)


def test_bodies_that_are_held_are_weighed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a caller takes long over one of 15 kB, there is no room for another of 6 kB."""
    monkeypatch.setattr("lspt_serve.api.limits.AT_ONCE", 1)
    large, small = body(15_000), body(6_000)
    answers: dict[str, Any] = {}

    async def send_both() -> None:
        begun, go_on = anyio.Event(), anyio.Event()

        async def slow() -> Any:
            yield large[:-10]
            begun.set()
            await go_on.wait()
            yield large[-10:]

        transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
        headers = {"Content-Type": "multipart/form-data; boundary=line"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def classify(name: str, content: Any) -> None:
                answers[name] = await client.post("/classify", content=content, headers=headers)

            async with anyio.create_task_group() as group:
                group.start_soon(classify, "slow", slow())
                await begun.wait()
                await classify("refused", small)
                go_on.set()
            await classify("after", small)

    anyio.run(send_both)

    message = check_refused(answers["refused"], 503, "overloaded")
    assert message == "14990 bytes are held already; try again later"
    assert [answers[name].status_code for name in ("slow", "after")] == [200, 200]


@pytest.mark.parametrize("declared", [b"9" * 5000, b"-1", b"many", b"", b"1e9"])
def test_no_declared_length_is_an_error_of_the_server(api: Api, declared: bytes) -> None:
    status, _ = ask(api, declared, [*in_chunks(body(1000))])

    assert status in {200, 400, 413}


def test_image_that_is_decoded_is_held_no_longer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one of 15 kB is in the engine there is room for another."""
    monkeypatch.setattr("lspt_serve.api.limits.AT_ONCE", 1)
    stalled = stall(api.app.state.classifier.engine, monkeypatch)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(send, api, body(15_000))
        assert stalled.busy.wait(timeout=10)
        second = pool.submit(send, api, body(15_000))
        wait([second], timeout=0.3)  # a refusal would have come
        stalled.go_on.set()

    assert [first.result().status_code, second.result().status_code] == [200, 200]
