"""Requests that are meant to cost more than they should: each is refused before it does."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from toys import coloured, encoded
from toys_api import Api, check_refused, create_classifier

from lspt_serve.api.auth import Access
from lspt_serve.models import Backbone

PNG = encoded(coloured("red", np.random.default_rng(0)))
TEXT = base64.b64encode(PNG).decode()
ADMIN = {"Authorization": "Bearer token"}
JSON_ROUTES = [
    ("POST", "/classify"),
    ("POST", "/classify_many"),
    ("PUT", "/tasks/colour/aliases/stable"),
    ("POST", "/v2/models/colour/infer"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/colour/load"),
    ("POST", "/v2/repository/models/colour/unload"),
]
KEYS = ["image", "images", "inputs", "outputs", "parameters", "ready", "task", "tasks", "version"]


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    api = Api(create_classifier(tiny_backbone, tmp_path_factory))
    api.app.state.access = Access(SecretStr("token"))
    yield api
    assert len(api.app.state.classifier.store) == 2


def post(api: Api, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return api.request("POST", path, content=content, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("levels", [900, 1000, 100_000])
@pytest.mark.parametrize(("method", "path"), JSON_ROUTES)
def test_json_of_many_levels_is_no_error_of_the_server(
    api: Api, method: str, path: str, levels: int
) -> None:
    headers = {"Content-Type": "application/json", **ADMIN}
    for start, end in (("[", "]"), ('{"a":', "}")):
        for key in KEYS:
            body = f'{{"{key}": ' + start * levels + "1" + end * levels + "}"
            status = api.request(method, path, content=body, headers=headers).status_code
            assert status == 400 if levels == 100_000 else status < 500
    api.request("POST", "/v2/repository/models/colour/load", headers=ADMIN)  # if it was unloaded


@pytest.mark.parametrize("path", ["/classify", "/classify_many", "/v2/models/colour/infer"])
def test_json_of_too_many_lists_is_malformed(api: Api, path: str) -> None:
    response = post(api, path, b'{"images": [' + b"[]," * 100_000 + b"[]]}")

    assert response.status_code == 400
    assert "more than 100000 lists or objects" in response.text


@pytest.mark.parametrize("many", ["images", "tasks"])
def test_more_in_a_list_than_a_form_may_have_is_malformed(api: Api, many: str) -> None:
    body = {"images": [TEXT], "tasks": ["colour"], many: ["x"] * 1001}

    message = check_refused(post(api, "/classify_many", body), 400, "malformed", item=many)

    assert message == f"{many}: 1001 of them; at most 1000"


def test_only_the_first_of_many_mistakes_is_told(api: Api) -> None:
    response = post(api, "/classify_many", {"images": [TEXT], "tasks": [1] * 1000})

    message = check_refused(response, 400, "malformed", item="tasks")
    assert message == "tasks: Input should be a valid string"


def test_more_tensors_than_a_request_may_have_are_malformed(api: Api) -> None:
    tensor = {"name": "IMAGE", "shape": [1], "datatype": "BYTES", "data": [TEXT]}

    for name in ("inputs", "outputs"):
        response = post(api, "/v2/models/colour/infer", {"inputs": [tensor], name: [tensor] * 17})
        assert response.status_code == 400
        assert response.json()["error"].startswith(f"{name}: List should have at most 16 items")


def test_name_of_a_task_that_answers_would_repeat_is_limited(api: Api) -> None:
    images, name = [TEXT] * 3, "x" * 257

    alone = post(api, "/classify", {"image": TEXT, "task": name})
    among = post(api, "/classify_many", {"images": images, "tasks": ["colour", name]})

    assert "at most 256" in check_refused(alone, 400, "malformed", item="task")
    assert "at most 256" in check_refused(among, 400, "malformed", item="tasks")
    assert post(api, "/classify", {"image": TEXT, "task": name[:256]}).status_code == 404


@pytest.mark.parametrize("charset", ["punycode", "idna", "raw_unicode_escape", "utf-16", "UTF-7"])
def test_form_in_another_charset_than_utf_8_is_refused(api: Api, charset: str) -> None:
    """Of punycode, Python reads a megabyte in most of a minute."""
    content_type = f"multipart/form-data; boundary=line; charset={charset}"

    response = api.request(
        "POST", "/classify", content=b"--line--\r\n", headers={"Content-Type": content_type}
    )

    message = check_refused(response, 415, "unsupported_format")
    assert message == f"a form in {charset!r}; wanted utf-8"


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "us-ascii"])
def test_form_may_say_that_it_is_utf_8(api: Api, charset: str) -> None:
    parts = {"image": b'; filename="a"\r\n\r\n' + PNG, "task": b"\r\n\r\ncolour"}
    content = b"".join(
        b'--line\r\nContent-Disposition: form-data; name="%b"' % name.encode() + part + b"\r\n"
        for name, part in parts.items()
    )
    content_type = f"multipart/form-data; boundary=line; charset={charset}"

    response = api.request(
        "POST",
        "/classify",
        content=content + b"--line--\r\n",
        headers={"Content-Type": content_type},
    )

    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", b'{"image": "", "task": "colour", "\\ud800": 1}'),
        ("/classify", b'{"image": "%b", "task": "\\ud800"}' % TEXT.encode()),
        ("/classify_many", b'{"images": ["%b"], "tasks": ["\\ud800"]}' % TEXT.encode()),
        ("/classify_many", b'{"images": ["\\ud800"], "tasks": ["colour"]}'),
    ],
)
def test_json_that_spells_what_is_no_text_is_malformed(api: Api, path: str, body: bytes) -> None:
    response = post(api, path, body)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "malformed"


@pytest.mark.parametrize(
    "name", ["..", "../colour", "colour/../parity", "/etc/passwd", "%2e%2e", "a\0b", ".aliases"]
)
def test_name_of_a_task_is_no_path(api: Api, name: str) -> None:
    """It is looked up among those that the folder of bundles was found to have."""
    message = check_refused(api.classify(PNG, task=name), 404, "unknown_task", item="task")

    assert message.startswith(f"unknown task {name!r}")


@pytest.mark.parametrize("given", ["a b", "a:b", "x" * 65, "é", "", "{}", "a,b"])
def test_request_id_that_is_not_plain_is_not_sent_back(api: Api, given: str) -> None:
    headers = {"X-Request-ID": given.encode()}

    answer = api.request("GET", "/tasks/nobody", headers=headers)

    assert answer.headers["X-Request-ID"] != given
    assert len(answer.headers["X-Request-ID"]) == 32


def test_no_other_site_may_read_answers(api: Api) -> None:
    for method in ("GET", "OPTIONS"):
        answer = api.request(method, "/tasks", headers={"Origin": "http://other.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
