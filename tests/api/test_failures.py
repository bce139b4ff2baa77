import errno
import os
import socket
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import coloured, encoded
from toys_api import Api, check_refused, create_classifier, overloaded

from lspt_serve.errors import BundleError, UnavailableError
from lspt_serve.models import Backbone
from lspt_serve.preprocess import FORMATS
from lspt_serve.runtime.memory import BundleMemory

PIXELS = coloured("red", np.random.default_rng(0))
PNG, JPEG = encoded(PIXELS), encoded(PIXELS, "JPEG")
MULTIPART = "multipart/form-data; boundary=line"

# starlette does not close the file of a part that ends too early
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function SpooledTemporaryFile"
    ":pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A local server that notices whether anybody comes."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        listening.settimeout(0.3)
        yield listening


def post(api: Api, **settings: Any) -> httpx.Response:
    return api.request("POST", "/classify", **settings)


def test_missing_image_is_malformed(api: Api) -> None:
    response = post(api, data={"task": "colour"})

    assert "image" in check_refused(response, 400, "malformed", item="image")


def test_missing_task_is_malformed(api: Api) -> None:
    response = post(api, files={"image": PNG})

    assert "task" in check_refused(response, 400, "malformed", item="task")


def test_file_in_place_of_the_task_is_malformed(api: Api) -> None:
    response = post(api, files={"image": PNG, "task": ("task.txt", b"colour")})

    check_refused(response, 400, "malformed", item="task")


def test_url_in_place_of_the_image_is_malformed_and_not_fetched(
    api: Api, listener: socket.socket
) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/photo.png"

    response = post(api, data={"image": url, "task": "colour"}, files={"other": b""})

    assert "wanted a file" in check_refused(response, 400, "malformed", item="image")
    with pytest.raises(TimeoutError):
        listener.accept()


@pytest.mark.parametrize("top_k", ["0", "-1", "1001", "many", "1e3", "9" * 5000])
def test_bad_top_k_is_malformed(api: Api, top_k: str) -> None:
    check_refused(api.classify(PNG, top_k=top_k), 400, "malformed", item="top_k")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no parts at all",
        b"--line\r\n",
        b"--line\r\nno header\r\n\r\n\r\n--line--\r\n",
        b"--line\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--line--\r\n",
        b'--line\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nno end',
    ],
)
def test_malformed_multipart_is_malformed(api: Api, content: bytes) -> None:
    response = post(api, content=content, headers={"Content-Type": MULTIPART})

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "malformed"


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=\xff", "image/png"]
)
def test_content_without_its_fields_is_malformed(api: Api, content_type: str) -> None:
    response = post(api, content=PNG, headers={"Content-Type": content_type.encode("latin-1")})

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "malformed"


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/xml"])
def test_other_content_is_refused(api: Api, content_type: str) -> None:
    response = post(api, content=PNG, headers={"Content-Type": content_type})

    message = check_refused(response, 415, "unsupported_format")
    assert message.startswith(f"Content-Type '{content_type}'; wanted multipart/form-data, ")


def test_unknown_task_is_refused_and_the_nearest_named(api: Api) -> None:
    message = check_refused(api.classify(PNG, task="color"), 404, "unknown_task", item="task")

    assert message == "unknown task 'color'; nearest: colour"


def test_unknown_path_is_refused(api: Api) -> None:
    check_refused(api.request("GET", "/nowhere"), 404, "not_found")


def test_wrong_verb_is_refused(api: Api) -> None:
    check_refused(api.request("GET", "/classify"), 405, "method_not_allowed")


def test_refusal_keeps_the_request_id(api: Api) -> None:
    response = api.classify(PNG, task="color", headers={"X-Request-ID": "mine"})

    assert response.json()["error"]["request_id"] == response.headers["X-Request-ID"] == "mine"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"garbage" * 1000,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        encoded(PIXELS, "TIFF"),
        encoded(PIXELS, "WEBP"),
        encoded(PIXELS, "JPEG2000"),
    ],
)
def test_file_of_another_format_is_refused(api: Api, data: bytes) -> None:
    message = check_refused(api.classify(data), 415, "unsupported_format", item="image")

    assert all(name in message for name in FORMATS)


@pytest.mark.parametrize("data", [PNG[: len(PNG) // 2], JPEG[: len(JPEG) // 2], PNG[:60]])
def test_truncated_file_is_refused(api: Api, data: bytes) -> None:
    check_refused(api.classify(data), 422, "undecodable", item="image")


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that claims a size and has no pixels."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    idat = b"IDAT" + zlib.compress(b"\0" * 64)
    pixels = struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    return b"\x89PNG\r\n\x1a\n" + chunk + pixels


@pytest.mark.parametrize(
    "size", [(10_000, 5_001), (13_000, 13_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_image_of_too_many_pixels_is_refused_by_its_header(api: Api, size: tuple[int, int]) -> None:
    check_refused(api.classify(png_header(*size)), 413, "too_large", item="image")


def test_bug_is_answered_without_its_details_and_the_next_request_works(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(images: object, slots: Sequence[int]) -> NoReturn:
        raise RuntimeError("secret path")

    with monkeypatch.context() as patch:
        patch.setattr(api.app.state.classifier.engine, "features", fail)
        broken = api.classify(PNG, headers={"X-Request-ID": "mine"})

    check_refused(broken, 500, "internal")
    assert broken.json()["error"]["request_id"] == "mine"
    assert "secret" not in broken.text
    assert "Traceback" not in broken.text
    assert "request mine failed" in caplog.text
    assert "secret path" in caplog.text
    assert api.classify(PNG).status_code == 200


def test_overload_is_answered_with_when_to_come_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with overloaded(api.app.state.classifier, monkeypatch):
        refused = api.classify(PNG)

    message = check_refused(refused, 503, "overloaded")
    assert message == "256 images wait already; try again later"
    assert refused.headers["Retry-After"] == "1"
    assert api.classify(PNG).status_code == 200


def test_server_behind_the_engine_that_is_gone_is_answered_without_its_address(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(images: object, tasks: object) -> NoReturn:
        raise UnavailableError("no Triton server answers at grpc://secret:8001: refused")

    with monkeypatch.context() as patch:
        patch.setattr(api.app.state.classifier.engine, "features", fail)
        refused = api.classify(PNG)

    message = check_refused(refused, 503, "unavailable")
    assert message == "the server that runs the model does not answer; try again later"
    assert refused.headers["Retry-After"] == "1"
    assert "grpc://secret:8001" in caplog.text
    assert api.classify(PNG).status_code == 200


def test_task_whose_disk_is_away_may_be_asked_for_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = api.app.state.classifier.store

    def fail(folder: Path, **options: object) -> NoReturn:
        raise BundleError(f"{folder}: cannot be read: Stale file handle") from OSError(
            errno.ESTALE, os.strerror(errno.ESTALE)
        )

    with monkeypatch.context() as patch:
        patch.setattr("lspt_serve.runtime.store.load_bundle", fail)
        patch.setattr(store, "_memory", BundleMemory(0))
        refused = api.classify(PNG)
        refused_by_v2 = api.request("GET", "/v2/models/colour/ready")

    message = check_refused(refused, 503, "unavailable")
    assert message == "task 'colour' cannot be read now; try again later"
    assert refused.headers["Retry-After"] == "1"
    assert refused_by_v2.status_code == 200  # the folder still has it
    assert api.classify(PNG).status_code == 200


def test_answer_that_comes_too_late_is_a_timeout(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lspt_serve.api.classify.DEADLINE_S", -1.0)

    check_refused(api.classify(PNG), 504, "deadline")


def is_refusal(response: httpx.Response) -> bool:
    return 400 <= response.status_code < 500 and response.json().keys() == {"error"}


@settings(max_examples=60)
@given(data=st.binary(max_size=300))
def test_no_bytes_for_an_image_are_an_error_of_the_server(api: Api, data: bytes) -> None:
    assert is_refusal(api.classify(data))


@settings(max_examples=120)
@given(
    file_format=st.sampled_from(FORMATS),
    place=st.floats(0, 1, exclude_max=True),
    change=st.binary(min_size=1, max_size=8),
    cut=st.floats(0.1, 1),
)
def test_no_damage_to_an_image_is_an_error_of_the_server(
    api: Api, file_format: str, place: float, change: bytes, cut: float
) -> None:
    data = bytearray(encoded(PIXELS, file_format))
    start = int(place * len(data))
    data[start : start + len(change)] = change

    response = api.classify(bytes(data[: int(cut * len(data))]))

    assert response.status_code == 200 or is_refusal(response)


@settings(max_examples=60)
@given(task=st.text(max_size=30), top_k=st.text(max_size=10))
def test_no_text_in_a_field_is_an_error_of_the_server(api: Api, task: str, top_k: str) -> None:
    response = api.classify(PNG, task=task, top_k=top_k)

    assert response.status_code == 200 or is_refusal(response)


@settings(max_examples=60)
@given(content=st.binary(max_size=200))
def test_no_body_is_an_error_of_the_server(api: Api, content: bytes) -> None:
    header = b'--line\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'

    response = post(api, content=header + content, headers={"Content-Type": MULTIPART})

    assert is_refusal(response)


@pytest.mark.parametrize("charset", ["idna", "utf-7", "utf-16", "unicode_escape", "hex", "no\0ne"])
@pytest.mark.parametrize("task", [b"colour", b"+2AA-", b"\\ud800", b"\xff\xfe\x00\xd8", b"a..b"])
def test_no_charset_is_an_error_of_the_server(api: Api, charset: str, task: bytes) -> None:
    parts = [
        b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PNG,
        b'Content-Disposition: form-data; name="task"\r\n\r\n' + task,
    ]
    content = b"".join(b"--line\r\n" + part + b"\r\n" for part in parts) + b"--line--\r\n"

    response = post(
        api, content=content, headers={"Content-Type": f"{MULTIPART}; charset={charset}"}
    )

    assert response.status_code == 200 or is_refusal(response)


def test_method_that_a_route_has_not_is_told_which_it_has(api: Api) -> None:
    answer = api.request("DELETE", "/tasks")

    check_refused(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET"
