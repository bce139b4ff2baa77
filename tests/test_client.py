"""The client, in process against the real app, and against a real server."""

import asyncio
import io
import json
import math
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toys import coloured, encoded
from toys_api import TASKS, Api, create_classifier
from toys_server import create_served, served

from lspt_serve.api.failures import FAILURES
from lspt_serve.client import AsyncClient, Client, error_code
from lspt_serve.client.calls import ERRORS, ask_items
from lspt_serve.client.images import read_image
from lspt_serve.errors import (
    DeadlineError,
    ImageError,
    LSPTError,
    OverloadedError,
    ServerError,
    SettingError,
    TooLargeError,
    UnavailableError,
    UndecodableError,
    UnknownTaskError,
    UnsupportedFormatError,
)
from lspt_serve.models import Backbone
from lspt_serve.preprocess import decode_image
from lspt_serve.schemas import Answer, Item

T = TypeVar("T")
RNG = np.random.default_rng(0)
PIXELS = coloured("red", RNG, side=40)
PNG = encoded(PIXELS)
IMAGES = [encoded(coloured(label, RNG, side=40)) for label in ("red", "green", "blue")]
ANSWER = {
    "task": "colour",
    "version": 1,
    "predictions": [{"label": "red", "score": 0.5, "index": 2}],
    "request_id": "a",
    "timings_ms": {"decode": 1, "engine": 1, "total": 2},
}


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory))


@pytest.fixture(scope="module")
def url(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a real server that holds the same bundles as the app."""
    folder = create_served(tiny_backbone, tmp_path_factory)
    with served("--device", "cpu", "--engine", "onnxruntime", folder=folder) as url:
        yield url


Ask = Callable[..., Any]


@pytest.fixture
def ask(api: Api) -> Ask:
    """ask("classify", ...): a method of an AsyncClient of the app in process."""

    def ask(method: str, *given: Any, **named: Any) -> Any:
        async def run() -> Any:
            transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
            async with AsyncClient(transport=transport) as client:
                return await getattr(client, method)(*given, **named)

        return asyncio.run(run())

    return ask


def scores(item: Answer | Item) -> dict[str, float]:
    return {best.label: best.score for best in item.predictions or []}


def test_answer_is_that_of_the_api(ask: Ask, api: Api) -> None:
    wanted = api.classify(PNG, top_k=2).json()

    answer = ask("classify", PNG, "colour", top_k=2)

    assert (answer.task, answer.version) == ("colour", 1)
    assert [best.model_dump() for best in answer.predictions] == wanted["predictions"]


def test_attention_is_given_to_who_asks_for_it(ask: Ask, api: Api) -> None:
    wanted = api.classify(PNG, attention="true").json()["attention"]

    answer = ask("classify", PNG, "colour", attention=True)

    assert answer.attention.model_dump() == wanted
    assert len(answer.attention.values) == answer.attention.height > 1
    assert ask("classify", PNG, "colour").attention is None


def test_activation_and_threshold_are_asked_for(ask: Ask) -> None:
    logits = scores(ask("classify", PNG, "colour", activation="none"))
    middle = sorted(logits.values())[1]

    over = scores(
        ask("classify", PNG, "colour", activation="sigmoid", threshold=1 / (1 + math.exp(-middle)))
    )
    none = ask("classify", PNG, "colour", threshold=2)

    wanted = {label: 1 / (1 + math.exp(-x)) for label, x in logits.items() if x >= middle}
    assert over == {label: pytest.approx(score, abs=1e-6) for label, score in wanted.items()}
    assert none.predictions == []


def jpeg(orientation: int) -> Image.Image:
    """An image that a JPEG was opened as."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(file, "JPEG", exif=exif)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("kind", ["bytes", "path", "text", "pillow", "array"])
def test_an_image_may_be_a_file_or_pixels(ask: Ask, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    images = {
        "bytes": PNG,
        "path": path,
        "text": str(path),
        "pillow": Image.fromarray(PIXELS),
        "array": PIXELS,
    }

    assert scores(ask("classify", images[kind], "colour")) == scores(ask("classify", PNG, "colour"))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_pillow_image_is_turned_as_its_exif_says(orientation: int) -> None:
    sent = Image.open(io.BytesIO(read_image(jpeg(orientation))))

    turns = {1: 0, 3: 2, 6: 3}[orientation]  # to the left, by 90 degrees
    wanted = np.rot90(np.asarray(jpeg(1)), turns)
    np.testing.assert_array_equal(np.asarray(sent), wanted)
    assert sent.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I"])
def test_a_pillow_image_of_any_mode_is_sent(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("RGB" if mode != "HSV" else "HSV")
    image = image.convert("L").convert("I") if mode == "I" else image.convert(mode)

    assert Image.open(io.BytesIO(read_image(image))).size == (40, 40)


@pytest.mark.parametrize(
    ("mode", "start", "value", "seen"),
    [
        *((mode, "I", 30_000, 117) for mode in ("I", "I;16", "I;16B")),  # 30000 / 257
        *((mode, "RGBA", (10, 20, 30, 0), 255) for mode in ("PA", "RGBa", "RGBA")),
    ],
)
def test_a_wide_or_transparent_image_is_sent_as_it_looks(
    mode: str, start: str, value: Any, seen: int
) -> None:
    image = Image.new(start, (8, 8), value).convert(mode)

    assert (decode_image(read_image(image), 8) == seen).all()


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.task("\udcff"),
        lambda client: client.classify(PNG, "\udcff"),
        lambda client: client.classify_many([PNG], ["\udcff"]),
    ],
)
def test_a_task_that_is_no_text_is_unknown(ask: Callable[[Client], object]) -> None:
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(UnknownTaskError, match=r"unknown task '\\udcff'"),
    ):
        ask(client)


def test_a_pillow_image_of_floats_is_refused() -> None:
    with pytest.raises(ImageError, match="mode F; wanted 8 or 16 bits"):
        read_image(Image.new("F", (8, 8), 0.5))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS.astype(np.float32), "an array of 40 x 40 x 3 float32; wanted H x W x 3 uint8"),
        (PIXELS[..., 0], "an array of 40 x 40 uint8"),
        (PIXELS.transpose(2, 0, 1), "an array of 3 x 40 x 40 uint8"),
        (PIXELS[:0], "an array of 0 x 40 x 3"),
    ],
)
def test_an_array_that_is_no_image_is_refused(array: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image(array)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nothing: cannot be read: No such file"):
        read_image(tmp_path / "nothing")
    with pytest.raises(ImageError, match="Is a directory"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read: embedded null"):
        read_image("a\0b")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(TooLargeError, match="268435457 bytes, wanted at most 268435456"):
        read_image(tmp_path / "huge")


def test_every_image_by_every_task(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(IMAGES[1])

    items = ask("classify_many", [IMAGES[0], path, b"text"], ["parity", "colour", "none"])

    assert [(item.image, item.file, item.task) for item in items] == [
        (number, file, task)
        for number, file in enumerate([None, str(path), None])
        for task in ("parity", "colour", "none")
    ]
    for number, image in enumerate(IMAGES[:2]):
        for item in items[3 * number : 3 * number + 2]:
            alone = scores(ask("classify", image, item.task))
            assert scores(item) == {label: pytest.approx(x, abs=1e-5) for label, x in alone.items()}
    codes = [item.error.code if item.error else None for item in items]
    assert codes == [None, None, "unknown_task"] * 2 + ["unsupported_format"] * 2 + ["unknown_task"]


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_PAIRS", 4), ("MAX_LABELS", 20), ("GROUP_BYTES", 2 * len(PNG))]
)
def test_more_images_than_a_request_takes_are_several_requests(
    ask: Ask, api: Api, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    whole = ask("classify_many", [PNG] * 5, ["colour", "parity"])
    requests = []

    def counted(group: Any, *given: Any, **named: Any) -> Any:
        requests.append(len(group.images))
        return ask_items(group, *given, **named)

    monkeypatch.setattr("lspt_serve.client.clients.ask_items", counted)
    monkeypatch.setattr(f"lspt_serve.client.calls.{limit}", value)

    split = ask("classify_many", [PNG] * 5, ["colour", "parity"])

    assert requests == [2, 2, 1]
    assert [(item.image, item.task) for item in split] == [(i.image, i.task) for i in whole]
    for item, same in zip(split, whole, strict=True):
        assert scores(item) == {k: pytest.approx(x, abs=1e-5) for k, x in scores(same).items()}


def test_no_images_are_no_items(ask: Ask) -> None:
    assert ask("classify_many", [], ["colour"]) == []


def test_tasks_are_typed(ask: Ask) -> None:
    listed = ask("tasks")

    assert [(task.name, tuple(task.labels)) for task in listed.tasks] == [*TASKS.items()]
    assert ask("task", "parity") == listed.tasks[1]
    assert ask("task", "parity@1") == listed.tasks[1]


@pytest.mark.parametrize(
    ("image", "task", "error", "message"),
    [
        (PNG, "color", UnknownTaskError, "nearest: colour"),
        (b"text", "colour", UnsupportedFormatError, "4 bytes that are no image"),
        (PNG[:60], "colour", UndecodableError, "does not decode"),
        (bytes(20_000_001), "colour", TooLargeError, "request body over 20000000 bytes"),
    ],
)
def test_a_refusal_is_the_error_that_the_server_raised(
    ask: Ask, image: bytes, task: str, error: type[LSPTError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        ask("classify", image, task)

    assert raised.value.__notes__[0].startswith("request ")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a?b", "é", "%2e%2e", "a b#c", "colour\n"])
def test_a_name_that_no_task_has_is_an_error_of_the_caller(ask: Ask, name: str) -> None:
    with pytest.raises((UnknownTaskError, ServerError)):
        ask("task", name)


def test_a_request_that_is_malformed_says_so(ask: Ask) -> None:
    with pytest.raises(ServerError, match="top_k") as raised:
        ask("classify", PNG, "colour", top_k=0)

    assert raised.value.code == "malformed"


def test_client_and_server_have_the_same_word_for_an_error() -> None:
    assert {code: kind for kind, (code, *_) in FAILURES.items() if code in ERRORS} == ERRORS
    for code, kind in ERRORS.items():
        assert error_code(kind("x")) == code


Handler = Callable[[httpx.Request], httpx.Response]


def answering(*responses: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """A mock of a server: answers in this order."""
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        response = responses[len(requests) - 1]
        if isinstance(response, Exception):
            raise response
        return response

    return handle, requests


def busy(status: int, **headers: str) -> httpx.Response:
    failure = {"code": "overloaded", "message": "256 wait", "request_id": "a", "item": None}
    return httpx.Response(status, json={"error": failure}, headers=headers)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a Client would have waited."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_said(waits: list[float], status: int) -> None:
    again = {"Retry-After": "2"}
    handle, requests = answering(
        busy(status, **again), busy(status, **again), httpx.Response(200, json=ANSWER)
    )

    with Client(transport=httpx.MockTransport(handle)) as client:
        assert client.classify(PNG, "colour") == Answer.model_validate(ANSWER)

    assert [PNG in request.content for request in requests] == [True] * 3
    assert waits[0] == 0
    assert 2 <= waits[1] <= 3
    assert 4 <= waits[2] <= 6


def test_a_server_that_stays_busy_is_given_up(waits: list[float]) -> None:
    handle, requests = answering(*[busy(503, **{"Retry-After": "1"})] * 3)

    with (
        Client(transport=httpx.MockTransport(handle)) as client,
        pytest.raises(OverloadedError, match="256 wait") as raised,
    ):
        client.classify(PNG, "colour")

    assert raised.value.retry_after_s == 1
    assert len(requests) == 3


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (503, {}),
        (503, {"Retry-After": "86400"}),
        (503, {"Retry-After": "Fri, 31 Dec 2027 23:59:59 GMT"}),
        (503, {"Retry-After": "-1"}),
        (503, {"Retry-After": "²"}),
        (500, {"Retry-After": "1"}),
        (504, {"Retry-After": "1"}),
    ],
)
def test_no_other_answer_is_asked_for_again(
    waits: list[float], status: int, headers: dict[str, str]
) -> None:
    given = [(name.encode(), value.encode()) for name, value in headers.items()]
    refused = httpx.Response(status, content=b"{}", headers=given)
    handle, requests = answering(refused)

    with Client(transport=httpx.MockTransport(handle)) as client, pytest.raises(LSPTError):
        client.classify(PNG, "colour")

    assert len(requests) == 1
    assert waits == [0]


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (httpx.ConnectError("refused"), UnavailableError, "http://h:1 does not answer: refused"),
        (httpx.ReadError(""), UnavailableError, "http://h:1 does not answer: ReadError"),
        (httpx.ConnectTimeout(""), UnavailableError, "http://h:1 does not answer"),
        (httpx.ReadTimeout(""), DeadlineError, "http://h:1 gave no answer in 60 s"),
    ],
)
def test_a_connection_that_fails_is_not_tried_again(
    failure: Exception, error: type[LSPTError], message: str
) -> None:
    handle, requests = answering(failure)

    with (
        Client("http://h:1", transport=httpx.MockTransport(handle)) as client,
        pytest.raises(error, match=message),
    ):
        client.tasks()

    assert len(requests) == 1


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"error": 1}', b"\xff", b""])
@pytest.mark.parametrize("status", [200, 307, 404, 429, 500, 502])
def test_what_another_kind_of_server_answers_is_a_server_error(status: int, body: bytes) -> None:
    handle, _ = answering(httpx.Response(status, content=body))
    wanted = OverloadedError if status == 429 else ServerError
    said = "no TaskList" if status == 200 else f"{status} {HTTPStatus(status).phrase}"

    with (
        Client("http://h:1", transport=httpx.MockTransport(handle)) as client,
        pytest.raises(wanted, match=f"http://h:1 answered .*{said}"),
    ):
        client.tasks()


def test_a_code_that_the_client_does_not_know_is_kept(waits: list[float]) -> None:
    failure = {"code": "teapot", "message": "short and stout", "request_id": "r7"}
    handle, _ = answering(httpx.Response(418, json={"error": failure}))

    with (
        Client(transport=httpx.MockTransport(handle)) as client,
        pytest.raises(ServerError, match="short and stout") as raised,
    ):
        client.tasks()

    assert (raised.value.code, raised.value.__notes__) == ("teapot", ["request r7"])
    assert error_code(raised.value) == "teapot"


def test_the_key_is_a_bearer_token_and_the_url_may_have_a_path() -> None:
    handle, requests = answering(httpx.Response(200, json=ANSWER))

    mock = httpx.MockTransport(handle)
    with Client("http://h:1/vision", api_key="secret", transport=mock) as client:
        client.classify(PNG, "colour")

    (request,) = requests
    assert str(request.url) == "http://h:1/vision/classify?task=colour"
    assert request.headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("location", ["http://other.example/", "https://h:1/classify", "/tasks"])
def test_the_key_is_sent_nowhere_else(location: str) -> None:
    redirect = httpx.Response(307, headers={"Location": location})
    handle, requests = answering(redirect)
    mock = httpx.MockTransport(handle)

    with (
        Client("http://h:1", api_key="secret", transport=mock) as client,
        pytest.raises(ServerError, match="answered 307"),
    ):
        client.classify(PNG, "colour")

    assert [str(request.url) for request in requests] == ["http://h:1/classify?task=colour"]


@pytest.mark.parametrize("url", ["", "127.0.0.1:3000", "ftp://h", "http://", "http://h:port"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match=r"^the server's url is '.*'; wanted http://HOST:PORT$"):
        Client(url)


@pytest.mark.parametrize("key", ["a\nb", "clé", "\0"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(SettingError) as raised:
        Client(api_key=key)

    assert key not in str(raised.value)


def test_retries_are_not_negative() -> None:
    with pytest.raises(SettingError, match="retries is -1"):
        AsyncClient(retries=-1)


@given(st.binary(max_size=200), st.sampled_from([200, 400, 404, 413, 422, 429, 500, 503]))
def test_no_answer_of_a_server_is_more_than_an_error(body: bytes, status: int) -> None:
    handle, _ = answering(httpx.Response(status, content=body))

    with Client(transport=httpx.MockTransport(handle)) as client, pytest.raises(LSPTError):
        client.classify(PNG, "colour")


def test_the_client_needs_no_part_of_the_server() -> None:
    program = (
        "import json, sys; import lspt_serve.client; "
        "print(json.dumps([*{name.partition('.')[0] for name in sys.modules}]))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )

    loaded = set(json.loads(printed.stdout))
    assert "httpx" in loaded
    assert not loaded & {"bentoml", "fastapi", "onnxruntime", "openvino", "starlette", "torch"}


def test_nobody_there_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    with Client(f"http://127.0.0.1:{port}") as client:
        assert not client.is_ready()
        with pytest.raises(UnavailableError, match=f"http://127.0.0.1:{port} does not answer: "):
            client.tasks()


@pytest.mark.slow
def test_a_real_server_answers_as_the_app_does(url: str, ask: Ask) -> None:
    with Client(url) as client:
        assert client.is_ready()
        assert client.tasks() == ask("tasks")
        assert client.task("colour") == ask("task", "colour")
        answer = client.classify(PNG, "colour", activation="none")
        items = client.classify_many([*IMAGES, b"text"], [*TASKS])

    wanted = scores(ask("classify", PNG, "colour", activation="none"))
    assert scores(answer) == {label: pytest.approx(x, abs=1e-5) for label, x in wanted.items()}
    same = ask("classify_many", [*IMAGES, b"text"], [*TASKS])
    assert [item.error for item in items] == [item.error for item in same]
    for item, other in zip(items, same, strict=True):
        assert scores(item) == {k: pytest.approx(x, abs=1e-5) for k, x in scores(other).items()}


@pytest.mark.slow
def test_a_real_server_is_asked_many_things_at_once(url: str) -> None:
    async def run() -> list[Answer]:
        async with AsyncClient(url) as client:
            assert await client.is_ready()
            return await asyncio.gather(*(client.classify(image, "colour") for image in IMAGES * 8))

    answers = asyncio.run(run())

    for answer, first in zip(answers, answers[:3] * 8, strict=True):
        assert scores(answer) == {k: pytest.approx(x, abs=1e-5) for k, x in scores(first).items()}


@pytest.mark.slow
def test_a_real_server_refuses_a_body_that_is_too_long(url: str) -> None:
    with Client(url) as client, pytest.raises(TooLargeError, match="20000000 bytes"):
        client.classify(bytes(30_000_000), "colour")


@pytest.mark.slow
def test_the_code_in_the_documents_runs(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(IMAGES[0])
    (tmp_path / "other.png").write_bytes(IMAGES[1])
    page = (Path(__file__).resolve().parents[1] / "docs" / "serving.md").read_text("utf-8")
    section = page.partition("### From Python\n")[2].partition("###")[0]
    here = {"http://127.0.0.1:3000": url, "flowers": "colour", "birds": "parity"}
    for word, ours in here.items():
        section = section.replace(word, ours)

    first, second = re.findall(r"(?:^(?:    .*)?\n)+", section, re.MULTILINE)[:2]
    for block in (first, second):
        exec(compile(textwrap.dedent(block), "serving.md", "exec"), {})

    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[0] in TASKS["colour"]
    assert [line.split()[:2] for line in printed[1:5]] == [
        [file, task] for file in ("photo.jpg", "other.png") for task in ("colour", "parity")
    ]
    assert printed[5] == "['colour', 'parity'] True"
    assert len(printed) == 7
