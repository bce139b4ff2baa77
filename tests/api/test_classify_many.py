import base64
from collections import Counter
from typing import Any, NoReturn

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from toys import coloured, encoded
from toys_api import Api, check_refused, create_classifier, leave_busy, overloaded

from lspt_serve.api import threads
from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.models import Backbone

RNG = np.random.default_rng(0)
IMAGES = {f"{name}.png": encoded(coloured(name, RNG, side=40)) for name in ("red", "green", "blue")}


@pytest.fixture
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory))


def post(api: Api, images: dict[str, bytes], **fields: Any) -> httpx.Response:
    files = [("images", (name, data)) for name, data in images.items()]
    return api.request("POST", "/classify_many", files=files, data=fields)


def test_every_image_by_every_task_is_answered_as_alone(api: Api) -> None:
    tasks = ["parity", "colour", "colour@1"]

    answer = post(api, IMAGES, tasks=tasks, top_k=2, activation="sigmoid").json()

    assert answer["items"] == [
        {
            "image": number,
            "file": name,
            "task": alone["task"],
            "version": 1,
            "predictions": [
                best | {"score": pytest.approx(best["score"], abs=1e-5)}
                for best in alone["predictions"]
            ],
        }
        for number, (name, data) in enumerate(IMAGES.items())
        for task in tasks
        for alone in [api.classify(data, task=task, top_k=2, activation="sigmoid").json()]
    ]


def test_images_may_be_base64_in_json(api: Api) -> None:
    wanted = post(api, IMAGES, tasks=["colour", "parity"]).json()["items"]
    texts = [base64.b64encode(data).decode() for data in IMAGES.values()]

    body = {"images": texts, "tasks": ["colour", "parity"]}
    answer = api.request("POST", "/classify_many", json=body).json()

    assert [item["file"] for item in answer["items"]] == [None] * 6
    for item, same in zip(answer["items"], wanted, strict=True):
        assert item["predictions"][0]["label"] == same["predictions"][0]["label"]


def test_what_fails_has_an_error_and_the_rest_is_answered(api: Api) -> None:
    images = {"red.png": IMAGES["red.png"], "text.png": b"text", "half.png": IMAGES["red.png"][:60]}

    response = post(api, images, tasks=["colour", "color"])

    assert response.status_code == 200
    good, unknown, *others = response.json()["items"]
    assert good["predictions"][0]["label"] in {"red", "green", "blue"}
    assert unknown == {
        "image": 0,
        "file": "red.png",
        "task": "color",
        "error": {
            "code": "unknown_task",
            "message": "unknown task 'color'; nearest: colour",
            "item": "task",
        },
    }
    assert [(item["file"], item["error"]["code"]) for item in others] == [
        ("text.png", "unsupported_format"),
        ("text.png", "unknown_task"),
        ("half.png", "undecodable"),
        ("half.png", "unknown_task"),
    ]


def test_image_is_decoded_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = api.app.state.classifier
    decode, decoded = classifier.decode, Counter[bytes]()

    def count(data: bytes, bundle: Bundle) -> Any:
        decoded[data] += 1
        return decode(data, bundle)

    monkeypatch.setattr(classifier, "decode", count)

    post(api, IMAGES, tasks=["colour", "parity", "colour@1"])

    assert decoded == dict.fromkeys(IMAGES.values(), 1)


def test_labels_are_those_of_the_bundle_that_answered(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 1 is replaced, under its number, after the request was looked over."""
    classifier = api.app.state.classifier
    store, find = classifier.store, classifier.manifest
    old = store["colour"]
    fields = old.manifest.model_dump(exclude={"dtype", "tensors", "tensors_sha256"})
    wider = {
        name: np.concatenate([tensor, tensor[:1] + 99]) if name.startswith("head.") else tensor
        for name, tensor in old.tensors.items()
    }
    new = Bundle.create(wider, **{**fields, "labels": ["a", "b", "c", "d"]})

    def find_and_replace(reference: str) -> Any:
        found = find(reference)
        save_bundle(new, store.folder / "colour")
        store.refresh()
        return found

    monkeypatch.setattr(classifier, "manifest", find_and_replace)

    items = post(api, IMAGES, tasks=["colour"], top_k=4).json()["items"]

    for item in items:
        assert sorted(each["label"] for each in item["predictions"]) == ["a", "b", "c", "d"]


def test_more_pairs_than_may_wait_are_all_answered(api: Api) -> None:
    tasks = ["colour", "parity"] * 160

    response = post(api, IMAGES, tasks=tasks)

    items = response.json()["items"]
    assert [item["task"] for item in items] == tasks * 3
    assert all("predictions" in item for item in items)


def test_too_many_pairs_are_malformed(api: Api) -> None:
    message = check_refused(
        post(api, IMAGES, tasks=["colour"] * 334), 400, "malformed", item="images"
    )

    assert message == "images: 3 x 334 tasks; at most 1000"


def test_too_many_labels_of_an_answer_are_malformed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 images of colour's three labels and parity's two."""
    monkeypatch.setattr("lspt_serve.api.classify_many.MAX_LABELS", 14)
    tasks = ["colour", "parity", "nobody"]

    refused = post(api, IMAGES, tasks=tasks, top_k=1000)
    message = check_refused(refused, 400, "malformed", item="top_k")
    assert message == "top_k: 15 labels of all images and tasks; at most 14"
    assert post(api, IMAGES, tasks=tasks, top_k=2).status_code == 200


@pytest.mark.parametrize(
    ("images", "fields", "item"),
    [({}, {"tasks": ["colour"]}, "images"), (IMAGES, {}, "tasks"), (IMAGES, {"task": "a"}, "task")],
)
def test_what_is_missing_or_unknown_is_malformed(
    api: Api, images: dict[str, bytes], fields: dict[str, Any], item: str
) -> None:
    check_refused(post(api, images, **fields), 400, "malformed", item=item)


def test_bug_is_an_error_of_its_items_without_details(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(images: object, tasks: object) -> NDArray[np.float32]:
        raise RuntimeError("secret path")

    monkeypatch.setattr(api.app.state.classifier.engine, "features", fail)

    response = post(api, IMAGES, tasks=["colour"])

    assert [item["error"]["code"] for item in response.json()["items"]] == ["internal"] * 3
    assert "secret" not in response.text
    assert "secret path" in caplog.text


def test_overload_of_all_is_answered_with_when_to_come_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with overloaded(api.app.state.classifier, monkeypatch):
        refused = post(api, IMAGES, tasks=["colour"])

    check_refused(refused, 503, "overloaded")
    assert refused.headers["Retry-After"] == "1"


def test_images_whose_caller_leaves_are_not_run(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {
        "files": [("images", data) for data in IMAGES.values()],
        "data": {"tasks": ["colour", "parity"]},
    }

    status, rows = leave_busy(api, monkeypatch, "/classify_many", **sent)

    assert status == 499
    assert rows == [1]


def test_as_many_tasks_as_a_request_may_have_fit_in_a_form(api: Api) -> None:
    one = dict([*IMAGES.items()][:1])

    response = post(api, one, tasks=["colour"] * 1000, top_k=1, activation="none", threshold=-9)

    assert len(response.json()["items"]) == 1000


def test_tasks_in_memory_wait_for_no_disk(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def stall(*args: object) -> NoReturn:
        raise AssertionError("read from disk")

    monkeypatch.setattr(threads.READING, "run", stall)

    items = post(api, IMAGES, tasks=["colour", "nobody"]).json()["items"]

    assert [item.get("error", {}).get("code") for item in items] == [None, "unknown_task"] * 3


def test_request_of_little_else_than_unknown_tasks_is_refused(api: Api) -> None:
    names = [f"nobody-{number}" for number in range(40)]

    few = post(api, IMAGES, tasks=["colour", *names[:32] * 2])
    message = check_refused(
        post(api, IMAGES, tasks=["colour", *names]), 404, "unknown_task", item="task"
    )

    assert few.status_code == 200
    assert message == "unknown task 'nobody-32'"


def test_answer_repeats_no_long_name_of_a_file(api: Api) -> None:
    image = {"x" * 1000 + ".png": IMAGES["red.png"]}

    (item,) = post(api, image, tasks=["colour"]).json()["items"]

    assert item["file"] == "x" * 255
