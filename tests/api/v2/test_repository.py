"""What is served, changed while it is served, by way of the model repository."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from toys import export_once, random_bundle
from toys_api import Api, check_refused

from lspt_serve.api.auth import Access
from lspt_serve.bundle import MANIFEST, save_bundle
from lspt_serve.files import locked
from lspt_serve.models import Backbone
from lspt_serve.runtime import Classifier, OnnxEngine, PromptStore
from lspt_serve.runtime.unloaded import UNLOADED_FILE

ADMIN = {"Authorization": "Bearer token"}


@pytest.fixture
def folder(tiny_backbone: Backbone, tmp_path: Path) -> Path:
    """Two versions of colour and one of parity."""
    for name, version in (("colour", 1), ("colour", 2), ("parity", 1)):
        bundle = random_bundle(tiny_backbone, name=name, seed=version)
        bundle.manifest.__dict__["version"] = version
        save_bundle(bundle, tmp_path / f"{name}-{version}")
    return tmp_path


@pytest.fixture
def api(folder: Path, tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    engine = OnnxEngine(export_once(tiny_backbone, tmp_path_factory), device="cpu")
    api = Api(Classifier(engine, PromptStore(folder, engine.graph), max_batch_size=4))
    api.app.state.access = Access(SecretStr("token"))
    return api


def change(api: Api, task: str, action: str, **settings: Any) -> httpx.Response:
    path = f"/v2/repository/models/{task}/{action}"
    return api.request("POST", path, **{"headers": ADMIN, **settings})


def index(api: Api, asked: Any = None) -> list[tuple[str, str, str]]:
    content = b"" if asked is None else json.dumps(asked).encode()
    rows = api.request("POST", "/v2/repository/index", content=content).json()
    return [(row["name"], row["version"], row["state"]) for row in rows]


ALL = [("colour", "1", "READY"), ("colour", "2", "READY"), ("parity", "1", "READY")]


def test_index_lists_every_version(api: Api) -> None:
    assert index(api) == ALL


def test_task_that_is_unloaded_is_unknown_until_it_is_loaded(api: Api, folder: Path) -> None:
    assert change(api, "colour", "unload").status_code == 200

    assert index(api) == [("colour", v, "UNAVAILABLE") for v in "12"] + ALL[2:]
    assert index(api, {"ready": True}) == ALL[2:]
    assert json.loads((folder / UNLOADED_FILE).read_text()) == ["colour"]
    for reference in ("colour", "colour@1"):
        message = check_refused(api.classify(b"", task=reference), 404, "unknown_task", item="task")
        assert message == "task 'colour' is unloaded; it is served again once loaded"
    assert [task["name"] for task in api.request("GET", "/tasks").json()["tasks"]] == ["parity"]
    assert api.request("GET", "/v2/models/colour/ready").status_code == 404

    assert change(api, "colour", "load").status_code == 200

    assert index(api) == ALL
    assert api.request("GET", "/v2/models/colour/ready").status_code == 200
    assert json.loads((folder / UNLOADED_FILE).read_text()) == []


def test_other_and_later_servers_of_the_folder_see_it(api: Api, folder: Path) -> None:
    other = PromptStore(folder, api.app.state.classifier.engine.graph)
    change(api, "colour", "unload")

    other.refresh()
    later = PromptStore(folder, api.app.state.classifier.engine.graph)

    assert [task.name for task in other] == [task.name for task in later] == ["parity"]


def test_bundle_that_is_dropped_in_is_served_at_once_when_it_is_loaded(
    api: Api, folder: Path, tiny_backbone: Backbone
) -> None:
    check = change(api, "late", "load")
    assert (check.status_code, check.json()["error"]) == (404, "unknown task 'late'")

    save_bundle(random_bundle(tiny_backbone, name="late"), folder / "late")

    assert change(api, "late", "load").status_code == 200
    assert ("late", "1", "READY") in index(api)


def test_aliases_of_an_unloaded_task_are_kept(api: Api) -> None:
    api.app.state.classifier.store.set_alias("colour", "default", 1)
    change(api, "colour", "unload")

    assert api.app.state.classifier.store.refused == {}
    change(api, "colour", "load")

    assert api.request("GET", "/tasks/colour").json()["version"] == 1


def test_folder_with_a_broken_bundle_is_listed_with_the_reason_and_no_path(
    api: Api, folder: Path
) -> None:
    (folder / "parity-1" / MANIFEST).write_text("{")
    (folder / "other").mkdir()
    (folder / "other" / MANIFEST).write_text("{")
    api.app.state.classifier.store.refresh()

    rows = api.request("POST", "/v2/repository/index").json()

    (row,) = (row for row in rows if row["name"] == "other")
    assert (row["version"], row["state"]) == ("", "UNAVAILABLE")
    assert row["reason"].startswith(f"other/{MANIFEST}: ")
    assert str(folder) not in json.dumps(rows)


@pytest.mark.parametrize("task", ["color", "colour@1", "colour:x", "..", "%2e%2e%2fx", "x" * 5000])
@pytest.mark.parametrize("action", ["load", "unload"])
def test_unknown_task_is_refused_and_not_written(
    api: Api, folder: Path, task: str, action: str
) -> None:
    answer = change(api, task, action)

    assert answer.status_code == 404
    assert answer.json().keys() == {"error"}
    assert not (folder / UNLOADED_FILE).exists()


@pytest.mark.parametrize(
    "body",
    [
        b'{"parameters": {"config": "{}"}}',
        b'{"parameters": {"file:1/model.onnx": "AAAA"}}',
        b'{"parameters": []}',
        b"[]",
        b"{",
    ],
)
def test_load_with_files_or_with_what_is_no_request_is_refused(api: Api, body: bytes) -> None:
    assert change(api, "colour", "load", content=body).status_code == 400


def test_folder_that_another_writes_for_long_is_told_without_its_path(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lspt_serve.runtime.store.LOCK_WAIT_S", 0.05)

    with locked(folder / UNLOADED_FILE):
        answer = change(api, "colour", "unload")

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json() == {"error": "the folder of bundles cannot be written now"}
    assert str(folder) in caplog.text
    assert index(api) == ALL


@pytest.mark.parametrize("text", ["{", '{"colour": 1}', '["../x"]', "[1]"])
def test_broken_list_of_unloaded_tasks_lets_the_last_go_on(
    api: Api, folder: Path, text: str
) -> None:
    change(api, "colour", "unload")

    (folder / UNLOADED_FILE).write_text(text)
    store = api.app.state.classifier.store
    store.refresh()

    assert [task.name for task in store] == ["parity"]
    assert [*store.refused] == [UNLOADED_FILE]
    assert str(folder) not in store.refused[UNLOADED_FILE]
    assert change(api, "parity", "unload").status_code == 409


def test_model_says_what_it_takes_and_gives(api: Api) -> None:
    metadata = api.request("GET", "/v2/models/colour/versions/1").json()

    assert metadata == {
        "name": "colour",
        "versions": ["1", "2"],
        "platform": "lspt",
        "inputs": [
            {"name": "IMAGE", "datatype": "BYTES", "shape": [-1]},
            {"name": "PIXELS", "datatype": "FP32", "shape": [-1, 3, 32, 32]},
        ],
        "outputs": [{"name": "SCORES", "datatype": "FP32", "shape": [-1, 3]}],
    }
    config = api.request("GET", "/v2/models/colour/config").json()
    assert config["max_batch_size"] == 0
    assert json.loads(config["parameters"]["labels"]["string_value"]) == ["blue", "green", "red"]


def test_server_is_live_and_ready_and_says_what_it_speaks(api: Api) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert api.request("GET", path).status_code == 200
    assert "model_repository" in api.request("GET", "/v2").json()["extensions"]

    vars(api.app.state)["_state"].pop("classifier")

    starting = api.request("GET", "/v2/health/ready")
    assert (starting.status_code, starting.json()) == (503, {"error": "the server is starting"})


@pytest.mark.parametrize("path", ["/v2/nowhere", "/v2/models", "/v2/models/colour/stats"])
def test_what_there_is_not_is_refused_as_the_protocol_has_it(api: Api, path: str) -> None:
    answer = api.request("GET", path)

    assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})
