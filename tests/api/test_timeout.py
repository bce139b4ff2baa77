import anyio
import pytest
from starlette.types import Message, Scope
from toys_api import Api, create_classifier

from lspt_serve.api.timeout import AnswerInTime
from lspt_serve.models import Backbone
from lspt_serve.schemas import ErrorAnswer


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    api = Api(create_classifier(tiny_backbone, tmp_path_factory))
    api.app.state.answer_s = 0.2
    return api


def ask(api: Api, path: str, *, body_after_s: float) -> list[Message]:
    """What is sent to a caller whose body comes late."""
    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "query_string": b"task=colour",
        "headers": [(b"content-type", b"image/png"), (b"x-request-id", b"late")],
    }
    sent: list[Message] = []

    async def receive() -> Message:
        await anyio.sleep(body_after_s)
        return {"type": "http.request", "body": b"no image"}

    async def send(message: Message) -> None:
        sent.append(message)

    anyio.run(api.app, scope, receive, send)
    return sent


def test_body_that_does_not_come_is_answered_as_every_failure_is(api: Api) -> None:
    start, body = ask(api, "/classify", body_after_s=60)

    assert start["status"] == 504
    assert (b"x-request-id", b"late") in start["headers"]
    failure = ErrorAnswer.model_validate_json(body["body"]).error
    assert (failure.code, failure.request_id) == ("deadline", "late")
    assert failure.message == "not answered in 0.2 s, its body's time included"


def test_body_that_comes_in_time_is_read(api: Api) -> None:
    start, _ = ask(api, "/classify", body_after_s=0.01)

    assert start["status"] == 415


def test_answer_that_has_begun_is_sent_to_its_end(api: Api) -> None:
    sent: list[Message] = []

    async def slow(scope: Scope, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        await anyio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"whole"})  # type: ignore[operator]

    async def receive() -> Message:
        raise AssertionError("there is no body to read")

    async def send(message: Message) -> None:
        sent.append(message)

    anyio.run(AnswerInTime(slow), {"type": "http", "app": api.app}, receive, send)

    assert [each.get("body") for each in sent] == [None, b"whole"]
