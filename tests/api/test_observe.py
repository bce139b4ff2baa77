import base64
import io
import json
import logging
import struct
import warnings

import anyio
import numpy as np
import pytest
from opentelemetry import trace
from PIL import Image
from starlette.types import Message
from toys import coloured, encoded
from toys_api import Api, create_classifier

from lspt_serve.api.logs import JsonLines, ignore_warnings_of_decoders
from lspt_serve.errors import UndecodableError
from lspt_serve.models import Backbone
from lspt_serve.preprocess import decode_image

TRACE = "0af7651916cd43dd8448eb211c80319c"
PNG = encoded(coloured("red", np.random.default_rng(0), side=40))


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory))


@pytest.fixture
def access(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="lspt_serve.access")
    return caplog


def test_an_answer_is_a_line_in_the_log(api: Api, access: pytest.LogCaptureFixture) -> None:
    answer = api.classify(PNG, headers={"X-Request-ID": "mine-1", "Authorization": "Bearer secret"})

    (record,) = access.records
    line = json.loads(JsonLines().format(record))
    assert line.pop("ms") >= line["timings"]["total"]
    assert line.pop("time").endswith("+00:00")
    assert line.pop("message").startswith("POST /classify 200 colour@1 ")
    assert line == {
        "level": "info",
        "logger": "lspt_serve.access",
        "request_id": "mine-1",
        "method": "POST",
        "path": "/classify",
        "status": 200,
        "task": "colour@1",
        "timings": answer.json()["timings_ms"],
    }
    assert "secret" not in str(vars(record))


def test_a_line_of_v2_names_the_task(api: Api, access: pytest.LogCaptureFixture) -> None:
    data = [base64.b64encode(PNG).decode()]
    tensor = {"name": "IMAGE", "shape": [1], "datatype": "BYTES", "data": data}
    answer = api.request("POST", "/v2/models/colour/infer", json={"inputs": [tensor]})

    (record,) = access.records
    assert answer.status_code == 200
    assert json.loads(JsonLines().format(record))["task"] == "colour@1"


def test_a_line_has_the_trace_that_the_caller_names(api: Api) -> None:
    lines, logger = io.StringIO(), logging.getLogger("lspt_serve.access")
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        api.classify(PNG, headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
        api.classify(PNG, headers={"traceparent": "nonsense"})
        api.classify(PNG)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)

    named, *others = map(json.loads, lines.getvalue().splitlines())
    assert (named["trace_id"], named["span_id"]) == (TRACE, "b7ad6b7169203331")
    assert len(others) == 2
    assert not any("trace_id" in line for line in others)


@pytest.mark.parametrize(
    ("image", "task", "status", "code", "known"),
    [
        (PNG, "nobody", 404, "unknown_task", None),
        (b"garbage", "parity", 415, "unsupported_format", "parity@1"),
    ],
)
def test_a_refusal_is_a_line_with_its_code(
    api: Api,
    access: pytest.LogCaptureFixture,
    image: bytes,
    task: str,
    status: int,
    code: str,
    known: str | None,
) -> None:
    answer = api.classify(image, task=task)

    (record,) = access.records
    line = json.loads(JsonLines().format(record))
    assert (line["status"], line["code"], line.get("task")) == (status, code, known)
    assert line["request_id"] == answer.json()["error"]["request_id"]


def test_what_asks_for_metrics_is_not_logged(api: Api, access: pytest.LogCaptureFixture) -> None:
    assert api.request("GET", "/metrics").status_code == 200

    assert access.records == []


def test_a_path_writes_no_line_of_its_own(api: Api, access: pytest.LogCaptureFixture) -> None:
    api.request("GET", "/tasks/a%0AINFO%20b" + "c" * 1000)

    (record,) = access.records
    assert record.getMessage().startswith("GET /tasks/a%0AINFO%20bccc")
    assert len(record.getMessage()) < 300


def test_a_body_that_does_not_come_is_a_line_that_says_so(
    api: Api, access: pytest.LogCaptureFixture
) -> None:
    """A server that stops cancels what it no longer waits for."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/classify",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png"), (b"content-length", b"1000")],
    }

    async def receive() -> Message:
        await anyio.sleep(60)
        raise AssertionError("not given up")

    async def send(message: Message) -> None:
        raise AssertionError(message)

    async def give_up() -> None:
        with anyio.move_on_after(0.2):
            await api.app(scope, receive, send)

    anyio.run(give_up)

    (record,) = access.records
    line = json.loads(JsonLines().format(record))
    assert (line["status"], line["code"]) == (503, "unavailable")


def test_what_pillow_says_of_a_file_is_no_warning() -> None:
    """Without that it is an error here, and in a server a line, and a text that Python keeps."""
    tag = struct.pack("<HHII", 1000, 7, 2**20, 26)  # a megabyte, at the end of 26 bytes
    exif = b"Exif\0\0" + struct.pack("<4sIH", b"II*\0", 8, 1) + tag + bytes(4)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    with pytest.raises(UndecodableError, match="Tag data larger than file"):
        decode_image(file.getvalue(), 8)

    with warnings.catch_warnings():
        ignore_warnings_of_decoders()
        assert decode_image(file.getvalue(), 8).shape == (8, 8, 3)


def test_a_line_names_its_trace_and_its_exception() -> None:
    span = trace.SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=True)
    with trace.use_span(trace.NonRecordingSpan(span)):
        try:
            raise ValueError("bad\nluck")
        except ValueError as error:
            info = (ValueError, error, error.__traceback__)
        record = logging.LogRecord("name", logging.ERROR, "", 0, "%d went\nwrong", (3,), info)
        text = JsonLines().format(record)

    line = json.loads(text)
    assert "\n" not in text
    assert (line["trace_id"], line["span_id"]) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert (line["level"], line["message"]) == ("error", "3 went\nwrong")
    assert line["exception"].endswith("ValueError: bad\nluck")


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_probes_fill_no_log(api: Api, access: pytest.LogCaptureFixture, path: str) -> None:
    assert api.request("GET", path).status_code == 200

    assert access.records == []
