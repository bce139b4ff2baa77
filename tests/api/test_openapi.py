"""The OpenAPI document: complete, right, and with examples that work as they stand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate
from pydantic import SecretStr
from toys import export_once, random_bundle
from toys_api import Api, check_fits

from lspt_serve.api.auth import Access
from lspt_serve.api.document import OF_BENTOML
from lspt_serve.api.failures import CODES, FAILURES
from lspt_serve.api.openapi import EXAMPLES
from lspt_serve.bundle import save_bundle
from lspt_serve.models import Backbone
from lspt_serve.runtime import Classifier, OnnxEngine, PromptStore

UNLOAD = "/v2/repository/models/{name}/unload"
ADMIN = {"Authorization": "Bearer token"}
Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Api:
    """With the tasks that the examples name."""
    folder = tmp_path / "bundles"
    for name in ("digit", "parity"):
        save_bundle(random_bundle(tiny_backbone, name=name), folder / name)
    engine = OnnxEngine(export_once(tiny_backbone, tmp_path_factory), device="cpu")
    api = Api(Classifier(engine, PromptStore(folder, engine.graph), max_batch_size=4))
    api.app.state.access = Access(SecretStr("token"))
    return api


def operations(api: Api) -> Iterator[Operation]:
    """Of the app: method, path, and what the document says of it."""
    for path, methods in api.app.openapi()["paths"].items():
        for method, operation in methods.items():
            if path not in OF_BENTOML:
                yield method.upper(), path, operation


def of_example(api: Api, method: str, path: str, operation: dict[str, Any]) -> httpx.Response:
    """What is answered to the operation's own examples."""
    known = {each["name"]: each for each in operation.get("parameters", [])}
    in_path = {name: each["example"] for name, each in known.items() if each["in"] == "path"}
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return api.request(method, path.format(**in_path), json=content.get("example"), headers=ADMIN)


def test_the_document_is_openapi(api: Api) -> None:
    document = api.app.openapi()

    validate(document)
    assert document["openapi"].startswith("3.1")


def test_every_operation_works_as_its_example_says(api: Api) -> None:
    document = api.app.openapi()
    # of an alias that PUT makes; and of a task that others ask
    last = [("DELETE", "/tasks/{name}/aliases/{alias}"), ("POST", UNLOAD)]
    for method, path, operation in sorted(operations(api), key=lambda each: each[:2] in last):
        answer = of_example(api, method, path, operation)

        assert answer.status_code == 200, (method, path, answer.text)
        content = operation["responses"]["200"].get("content", {})
        media_type = answer.headers.get("content-type", "").partition(";")[0]
        if media_type == "application/json":
            check_fits(document, content[media_type]["schema"], answer.json())
        elif media_type:
            assert media_type in content, path


def test_every_example_fits_its_schema(api: Api) -> None:
    document = api.app.openapi()
    for schema in document["components"]["schemas"].values():
        if "example" in schema:
            check_fits(document, schema, schema["example"])
    checked = 0
    for _, _, operation in operations(api):
        contents = [operation.get("requestBody", {}).get("content", {})]
        contents += [each.get("content", {}) for each in operation["responses"].values()]
        for content in contents:
            for each in content.values():
                if "example" in each:
                    check_fits(document, each["schema"], each["example"])
                    checked += 1
    assert checked > 50


def test_every_body_and_answer_has_an_example(api: Api) -> None:
    schemas = api.app.openapi()["components"]["schemas"]
    for _, path, operation in operations(api):
        if content := operation.get("requestBody", {}).get("content", {}):
            assert "example" in content["application/json"], path
        for status, answer in operation["responses"].items():
            if json := answer.get("content", {}).get("application/json"):
                name = json["schema"].get("$ref", "").rpartition("/")[2]
                known = "example" in json or "example" in schemas.get(name, {})
                assert known or json["schema"] == {}, (path, status)  # which is null: nothing


def test_examples_of_refusals_have_the_codes_of_their_statuses() -> None:
    known = {(code, status) for code, status, _ in FAILURES.values()}
    known |= {(code, status) for status, code in CODES.items()}

    assert {(code, status) for status, (code, _, _) in EXAMPLES.items()} <= known


def test_every_route_with_a_body_may_have_too_many_of_them(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it is said of each is checked of every answer."""
    monkeypatch.setattr("lspt_serve.api.limits.AT_ONCE", 0)
    for method, path, operation in operations(api):
        if "requestBody" in operation:
            assert of_example(api, method, path, operation).status_code == 503, path


def test_what_a_caller_needs_is_said(api: Api) -> None:
    """A key where there are keys, the admin's token to change what is served."""
    api.app.state.access = Access(SecretStr("token"), {})
    refused = {
        (method, path)
        for method, path, operation in operations(api)
        if api.request(method, path.format(name="digit", version=1, alias="a")).status_code == 401
    }
    api.app.state.access = Access(SecretStr("token"))
    said = {(method, path): each.get("security") for method, path, each in operations(api)}

    assert refused == {operation for operation, security in said.items() if security}
    changes = {operation for operation, security in said.items() if security == [{"admin": []}]}
    assert changes == {
        ("PUT", "/tasks/{name}/aliases/{alias}"),
        ("DELETE", "/tasks/{name}/aliases/{alias}"),
        ("POST", "/v2/repository/models/{name}/load"),
        ("POST", UNLOAD),
    }
