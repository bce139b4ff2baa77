import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from toys import coloured, encoded
from toys_api import Api, check_refused, create_classifier

from lspt_serve.api.auth import Access, Key, get_store, load_access
from lspt_serve.errors import SettingError
from lspt_serve.files import locked
from lspt_serve.models import Backbone
from lspt_serve.runtime.aliases import ALIASES_FILE

PNG = encoded(coloured("red", np.random.default_rng(0)))
V2_INFER: dict[str, Any] = {"inputs": []}
WRONG = [
    "",
    "token",
    "Bearer",
    "Bearer ",
    "Bearer tokens",
    "Bearer Token",
    "Basic token",
    "Bearer é",
]


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory))


@contextmanager
def guarded(api: Api, access: Access) -> Iterator[Api]:
    api.app.state.access = access
    try:
        yield api
    finally:
        api.app.state.access = Access()


@pytest.fixture
def with_token(api: Api) -> Iterator[Api]:
    with guarded(api, Access(SecretStr("token"))):
        yield api


@pytest.fixture
def with_keys(api: Api, tmp_path: Path) -> Iterator[Api]:
    """A key for every colour*, one for nothing, one for all, and an admin token."""
    keys = {
        "all": {"sha256": sha256("key-all"), "tasks": ["*"]},
        "one": {"sha256": sha256("key-one"), "tasks": ["col*"]},
        "none": {"sha256": sha256("key-none"), "tasks": []},
    }
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    with guarded(api, load_access(SecretStr("token"), tmp_path / "keys.json")):
        yield api


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class AskedForTheStoreError(Exception):
    pass


def admin_routes(api: Api) -> list[tuple[str, str]]:
    """(method, path) of the routes that are handed the store to change it."""

    def tell() -> NoReturn:
        raise AskedForTheStoreError

    found = []
    api.app.dependency_overrides[get_store] = tell
    try:
        for path, methods in api.app.openapi()["paths"].items():
            for method in methods:
                filled = path.format(name="colour", alias="stable", version=1)
                answer = api.request(method.upper(), filled)
                if answer.status_code == 500:
                    found.append((method.upper(), filled))
    finally:
        del api.app.dependency_overrides[get_store]
    return found


def test_every_route_that_changes_what_is_served_wants_the_token(with_token: Api) -> None:
    routes = admin_routes(with_token)

    assert ("POST", "/v2/repository/models/colour/unload") in routes
    assert ("PUT", "/tasks/colour/aliases/stable") in routes
    assert len(routes) >= 4
    for method, path in routes:
        for content in (b"", b"{", b'{"version": 1}'):
            answer = with_token.request(method, path, content=content)
            assert answer.status_code == 401, path
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            for wrong in WRONG:
                headers = {"Authorization": wrong.encode()}
                wrongly = with_token.request(method, path, content=content, headers=headers)
                assert wrongly.status_code == 401, (path, wrong)
    assert with_token.app.state.classifier.store.refused == {}
    assert len(with_token.app.state.classifier.store) == 2


def test_without_a_token_for_the_server_there_are_no_such_routes(api: Api) -> None:
    for method, path in admin_routes(api):
        for headers in ({}, bearer(""), bearer("None")):
            assert api.request(method, path, headers=headers).status_code == 404, path


def test_alias_is_set_and_taken_away(with_token: Api) -> None:
    path = "/tasks/colour/aliases/stable"
    admin = bearer("token")

    answer = with_token.request("PUT", path, json={"version": 1}, headers=admin)
    assert answer.json() == {"task": "colour", "alias": "stable", "version": 1}
    assert with_token.classify(PNG, task="colour:stable").status_code == 200

    answer = with_token.request("DELETE", path, headers=admin)
    assert answer.json() == {"task": "colour", "alias": "stable", "version": None}
    assert with_token.classify(PNG, task="colour:stable").status_code == 404


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("colour/aliases/stable", b'{"version": 7}', 404),
        ("color/aliases/stable", b'{"version": 1}', 404),
        ("colour/aliases/Stable", b'{"version": 1}', 400),
        ("colour/aliases/stable", b'{"version": 0}', 400),
        ("colour/aliases/stable", b'{"version": "1"}', 400),
        ("colour/aliases/stable", b'{"version": 1e400}', 400),
        ("colour/aliases/stable", b'{"version": ' + b"9" * 5000 + b"}", 400),
        ("colour/aliases/stable", b"[" * 5000, 400),
        ("colour/aliases/stable", b"", 400),
    ],
)
def test_alias_that_cannot_be_is_refused(
    with_token: Api, path: str, content: bytes, status: int
) -> None:
    answer = with_token.request("PUT", f"/tasks/{path}", content=content, headers=bearer("token"))

    assert answer.status_code == status
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "request_id", "item"}
    if path.endswith("Stable"):
        assert error["item"] == "alias"


def set_alias(api: Api) -> httpx.Response:
    path, admin = "/tasks/colour/aliases/stable", bearer("token")
    return api.request("PUT", path, json={"version": 1}, headers=admin)


def test_alias_in_a_broken_file_is_a_conflict(with_token: Api) -> None:
    file = with_token.app.state.classifier.store.folder / ALIASES_FILE
    file.write_text("{")
    try:
        answer = set_alias(with_token)
    finally:
        file.unlink()

    assert check_refused(answer, 409, "conflict").endswith("is broken; see the log")


def test_alias_that_cannot_be_written_is_unavailable_for_now(
    with_token: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lspt_serve.runtime.store.LOCK_WAIT_S", 0.05)

    with locked(with_token.app.state.classifier.store.folder / ALIASES_FILE):
        answer = set_alias(with_token)

    assert check_refused(answer, 503, "unavailable").endswith("cannot be written now")
    assert answer.headers["Retry-After"] == "1"


def uses(api: Api, task: str, headers: Any) -> list[httpx.Response]:
    """Every way to use a task."""
    return [
        api.classify(PNG, task=task, headers=headers),
        api.request("GET", f"/tasks/{task}", headers=headers),
        *(
            api.request("GET", f"/v2/models/{task}{rest}", headers=headers)
            for rest in ("", "/ready", "/config")
        ),
        api.request("POST", f"/v2/models/{task}/infer", json=V2_INFER, headers=headers),
    ]


def listed(api: Api, headers: Any) -> set[str]:
    tasks = api.request("GET", "/tasks", headers=headers).json()["tasks"]
    models = api.request("POST", "/v2/repository/index", headers=headers).json()
    names = {task["name"] for task in tasks}
    assert names == {model["name"] for model in models}
    return names


@pytest.mark.parametrize("header", WRONG)
def test_with_keys_nobody_uses_a_task_without_one(with_keys: Api, header: str) -> None:
    headers = {"Authorization": header.encode()} if header else {}

    for answer in uses(with_keys, "colour", headers):
        assert answer.status_code == 401
    for method, path in (("GET", "/tasks"), ("POST", "/v2/repository/index")):
        assert with_keys.request(method, path, headers=headers).status_code == 401
    check_refused(with_keys.classify(PNG, headers=headers), 401, "unauthorised")


def test_key_uses_its_tasks(with_keys: Api) -> None:
    statuses = [answer.status_code for answer in uses(with_keys, "colour", bearer("key-one"))]

    assert statuses == [200] * 5 + [400]
    assert listed(with_keys, bearer("key-one")) == {"colour"}


def test_task_that_a_key_may_not_use_is_as_one_that_there_is_not(with_keys: Api) -> None:
    for task in ("parity", "parity@1", "parity@7", "parity:stable"):
        known = uses(with_keys, task, bearer("key-one"))
        unknown = uses(with_keys, task.replace("parity", "purity"), bearer("key-one"))
        for answer, other in zip(known, unknown, strict=True):
            assert answer.status_code == other.status_code == 404
            assert "nearest" not in answer.text
            error, instead = answer.json()["error"], other.json()["error"]
            if isinstance(error, dict):
                error, instead = error["message"], instead["message"]
            assert error == instead.replace("purity", "parity")


def classify_many(api: Api, key: str, *tasks: str, **fields: Any) -> httpx.Response:
    files, data = {"images": ("red.png", PNG)}, {"tasks": tasks, **fields}
    return api.request("POST", "/classify_many", files=files, data=data, headers=bearer(key))


@pytest.mark.parametrize("task", ["parity", "parity@1", "parity@7", "parity:stable"])
def test_of_many_tasks_a_key_gets_its_own_and_the_others_are_as_ones_that_there_are_not(
    with_keys: Api, task: str
) -> None:
    other = task.replace("parity", "purity")
    known, unknown = (
        classify_many(with_keys, "key-one", "colour", each, "colour@1") for each in (task, other)
    )

    assert known.status_code == unknown.status_code == 200
    assert known.headers.keys() == unknown.headers.keys()
    assert known.json().keys() == unknown.json().keys()
    first, refused, last = known.json()["items"]
    assert [len(item["predictions"]) for item in (first, last)] == [3, 3]
    assert refused == {
        "image": 0,
        "file": "red.png",
        "task": task,
        "error": {"code": "unknown_task", "message": "unknown task 'parity'", "item": "task"},
    }
    text = json.dumps(unknown.json()["items"][1])
    assert refused == json.loads(text.replace("purity", "parity"))


def test_labels_of_tasks_that_a_key_may_not_use_do_not_count(
    with_keys: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 of colour, 2 of parity."""
    monkeypatch.setattr("lspt_serve.api.classify_many.MAX_LABELS", 3)

    refused = classify_many(with_keys, "key-all", "colour", "parity", top_k=3)

    check_refused(refused, 400, "malformed", item="top_k")
    assert classify_many(with_keys, "key-one", "colour", "parity", top_k=3).status_code == 200


def test_tasks_that_a_key_may_not_use_are_not_named_as_nearest(with_keys: Api) -> None:
    message = check_refused(
        with_keys.classify(PNG, task="parrity", headers=bearer("key-one")),
        404,
        "unknown_task",
        item="task",
    )
    assert message == "unknown task 'parrity'"
    near = with_keys.classify(PNG, task="color", headers=bearer("key-one"))
    assert "nearest: colour" in near.text


def test_version_that_there_is_not_of_a_task_that_may_be_used_is_told(with_keys: Api) -> None:
    answer = with_keys.classify(PNG, task="colour@7", headers=bearer("key-one"))

    assert "there are @1" in check_refused(answer, 404, "unknown_task", item="task")


def test_key_for_nothing_uses_nothing(with_keys: Api) -> None:
    assert listed(with_keys, bearer("key-none")) == set()
    for answer in uses(with_keys, "colour", bearer("key-none")):
        assert answer.status_code == 404


def test_admin_uses_every_task_and_a_key_changes_nothing(with_keys: Api) -> None:
    assert listed(with_keys, bearer("token")) == {"colour", "parity"}
    for method, path in admin_routes(with_keys):
        answer = with_keys.request(method, path, headers=bearer("key-one"))
        assert answer.status_code == 401


def test_folders_that_are_refused_are_not_told_to_keys(
    with_keys: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = with_keys.app.state.classifier.store
    monkeypatch.setattr(type(store), "refused", {"secret": "broken"})

    assert "secret" in with_keys.request("GET", "/tasks", headers=bearer("token")).text
    assert "secret" not in with_keys.request("GET", "/tasks", headers=bearer("key-one")).text


def test_metrics_name_tasks_to_those_alone_who_may_use_all(with_keys: Api) -> None:
    """Of each task that was asked for they have a series."""
    for headers in ({}, bearer("key-one"), bearer("key-none"), bearer("wrong")):
        answer = with_keys.request("GET", "/metrics", headers=headers)
        check_refused(answer, 401, "unauthorised")
    for key in ("key-all", "token"):
        answer = with_keys.request("GET", "/metrics", headers=bearer(key))
        assert "lspt_requests_total" in answer.text


def test_without_keys_metrics_need_none(with_token: Api) -> None:
    assert with_token.request("GET", "/metrics").status_code == 200


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready"])
def test_health_needs_no_key(with_keys: Api, path: str) -> None:
    assert with_keys.request("GET", path).status_code == 200


def test_digest_of_nothing_is_no_key() -> None:
    access = Access(keys={"x": Key(sha256=sha256(""), tasks=("*",))})

    assert access.find(b"") is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "the file: Invalid JSON"),
        ("[]", "the file: Input should be an object"),
        ('{"one": {"sha256": "key-one", "tasks": []}}', "one.sha256: String should match"),
        ('{"one": {"sha256": "' + "0" * 64 + '"}}', "one.tasks: Field required"),
        ('{"one": {"sha256": "' + "0" * 64 + '", "tasks": [], "x": 1}}', "one.x: Extra"),
    ],
)
def test_keys_that_cannot_be_read_are_refused(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)

    with pytest.raises(SettingError, match=f"LSPT_KEYS is {path}: {wanted}") as caught:
        load_access(None, path)
    assert "\n" not in str(caught.value)


def test_keys_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read: No such file"):
        load_access(None, tmp_path / "keys.json")


def test_token_is_not_shown() -> None:
    assert "token" not in repr(Access(SecretStr("token"))).replace("admin_token", "")
