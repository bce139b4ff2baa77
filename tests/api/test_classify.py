import asyncio
import io
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from toys import coloured, encoded, export_once, random_bundle
from toys_api import TASKS, Api, check_refused, create_classifier

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.export import create_model
from lspt_serve.models import Backbone
from lspt_serve.preprocess import FORMATS, normalise, preprocess_image
from lspt_serve.runtime import Classifier, OnnxEngine, PromptStore

PNG = encoded(coloured("red", np.random.default_rng(0), side=40))


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory))


@pytest.mark.parametrize(("seed", "task"), [*enumerate(TASKS, start=1)])
def test_answer_is_that_of_torch(api: Api, tiny_backbone: Backbone, seed: int, task: str) -> None:
    bundle = random_bundle(
        tiny_backbone, name=task, labels=TASKS[task], seed=seed, num_prompts=2 * seed
    )
    with torch.inference_mode():
        pixels = torch.from_numpy(preprocess_image(PNG, tiny_backbone.preprocess))
        wanted = create_model(tiny_backbone, bundle)(pixels[None])[0].softmax(dim=-1).numpy()

    answer = api.classify(PNG, task=task).json()

    order = np.argsort(-wanted)
    assert answer["predictions"] == [
        {
            "label": TASKS[task][index],
            "score": pytest.approx(wanted[index], abs=1e-5),
            "index": index,
        }
        for index in order
    ]
    assert (answer["task"], answer["version"]) == (task, 1)


def test_image_is_cropped_as_the_bundle_says(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    bundle = random_bundle(tiny_backbone, name="cropped")
    preprocess = replace(tiny_backbone.preprocess, crop_pct=0.5)
    manifest = bundle.manifest.model_copy(update={"preprocess": preprocess})
    save_bundle(Bundle(manifest, bundle.tensors), tmp_path / "cropped")
    engine = OnnxEngine(export_once(tiny_backbone, tmp_path_factory), device="cpu")
    cropping = Api(Classifier(engine, PromptStore(tmp_path, engine.graph), max_batch_size=1))
    middle = coloured("blue", np.random.default_rng(0), side=32)
    framed = np.pad(middle, ((16, 16), (16, 16), (0, 0)))  # 64 x 64, black around

    answer = cropping.classify(encoded(framed), task="cropped").json()

    with torch.inference_mode():
        pixels = torch.from_numpy(normalise(middle, preprocess))
        wanted = create_model(tiny_backbone, bundle)(pixels[None])[0].softmax(dim=-1).numpy()
    assert [p["index"] for p in answer["predictions"]] == np.argsort(-wanted).tolist()
    scores = [p["score"] for p in answer["predictions"]]
    assert scores == pytest.approx(sorted(wanted, reverse=True), abs=1e-5)


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_accepted_format_is_classified(api: Api, file_format: str) -> None:
    response = api.classify(encoded(coloured("red", np.random.default_rng(0)), file_format))

    assert response.status_code == 200
    assert len(response.json()["predictions"]) == 3


@pytest.mark.parametrize(("top_k", "count"), [("1", 1), ("2", 2), ("3", 3), ("1000", 3)])
def test_top_k_is_clipped_to_the_number_of_labels(api: Api, top_k: str, count: int) -> None:
    predictions = api.classify(PNG, top_k=top_k).json()["predictions"]

    assert len(predictions) == count


def test_scores_fall_and_sum_to_1(api: Api) -> None:
    scores = [p["score"] for p in api.classify(PNG).json()["predictions"]]

    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-6)


def test_attention_is_that_of_torch_where_it_is_asked_for(
    api: Api, tiny_backbone: Backbone
) -> None:
    bundle = random_bundle(tiny_backbone, name="colour", seed=1, num_prompts=2)
    with torch.inference_mode():
        pixels = torch.from_numpy(preprocess_image(PNG, tiny_backbone.preprocess))
        wanted = create_model(tiny_backbone, bundle).forward_watched(pixels[None])[1]

    answer = api.classify(PNG, attention="true").json()

    seen = answer["attention"]
    assert (seen["height"], seen["width"], seen["crop_pct"]) == (4, 4, 1)
    np.testing.assert_allclose(seen["values"], wanted.reshape(4, 4), atol=2e-6)
    plain = api.classify(PNG).json()
    assert plain["attention"] is None
    assert plain["predictions"] == answer["predictions"]


def test_image_is_decoded_once_there_is_room_for_its_attention_too(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = create_classifier(tiny_backbone, tmp_path_factory)
    api, decode, decoded = Api(classifier), classifier.decode, list[bytes]()

    def count(data: bytes, bundle: Bundle) -> Any:
        decoded.append(data)
        return decode(data, bundle)

    monkeypatch.setattr(classifier, "decode", count)
    monkeypatch.setattr(classifier._batcher._queue, "capacity", 1)

    assert api.classify(PNG).status_code == 200
    check_refused(api.classify(PNG, attention="true"), 503, "overloaded")
    assert decoded == [PNG]


def png_of(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **({"exif": exif} if exif else {}))
    return file.getvalue()


def test_image_is_turned_as_its_exif_says(api: Api) -> None:
    pixels = coloured("red", np.random.default_rng(0))
    pixels[:16] = coloured("blue", np.random.default_rng(1))[:16]
    image = Image.fromarray(pixels)
    turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees to show

    with_exif, without = (
        api.classify(png_of(turned, exif=mark)).json()["predictions"] for mark in (exif, None)
    )

    upright = api.classify(png_of(image)).json()["predictions"]
    assert with_exif == upright != without


@pytest.mark.parametrize("given", ["a", "4f0c-2e5d_1.b", "A" * 64])
def test_plain_request_id_is_kept(api: Api, given: str) -> None:
    response = api.classify(PNG, headers={"X-Request-ID": given})

    assert response.json()["request_id"] == response.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "A" * 65, "a b", "<script>", "a\tb", "é".encode(), "a;b"])
def test_other_request_ids_are_replaced(api: Api, given: str | bytes) -> None:
    response = api.classify(PNG, headers={"X-Request-ID": given})

    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])
    assert response.json()["request_id"] == response.headers["X-Request-ID"]


def test_requests_without_an_id_get_different_ones(api: Api) -> None:
    first, second = (api.classify(PNG).json()["request_id"] for _ in range(2))

    assert first != second


def test_timings_are_in_milliseconds_and_add_up(api: Api) -> None:
    timings = api.classify(PNG).json()["timings_ms"]

    assert timings.keys() == {"decode", "engine", "total"}
    assert 0 < timings["engine"] < 10_000
    assert timings["decode"] + timings["engine"] <= timings["total"] + 0.01


def test_tasks_are_listed_with_what_they_are(api: Api) -> None:
    listed = api.request("GET", "/tasks").json()

    assert [(task["name"], tuple(task["labels"])) for task in listed["tasks"]] == [*TASKS.items()]
    assert listed["refused"] == {}


@pytest.mark.parametrize(
    ("method", "path", "looked_at"),
    [("GET", "/tasks", "about"), ("POST", "/v2/repository/index", "listed")],
)
def test_a_list_of_many_tasks_holds_nobody_up(
    api: Api, monkeypatch: pytest.MonkeyPatch, method: str, path: str, looked_at: str
) -> None:
    """One that takes until another request is answered."""
    begun, go_on, look = threading.Event(), threading.Event(), getattr(PromptStore, looked_at)

    def slow(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(timeout=30)
        return look(*args)

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            listed = asyncio.ensure_future(client.request(method, path))
            await asyncio.to_thread(begun.wait, 30)
            other = await client.get("/tasks/nobody")
            go_on.set()
            return [(await listed).status_code, other.status_code]

    monkeypatch.setattr(PromptStore, looked_at, slow)

    assert asyncio.run(ask()) == [200, 404]


def test_no_address_is_another_without_its_slash(api: Api) -> None:
    answer = api.request("GET", "/tasks/", headers={"Host": "other.example"})

    assert answer.status_code == 404
    assert "location" not in answer.headers


def test_one_task_is_described(api: Api) -> None:
    assert api.request("GET", "/tasks/parity").json() == {
        "name": "parity",
        "version": 1,
        "versions": [1],
        "aliases": {},
        "resident": True,
        "labels": ["even", "odd"],
        "method": "lspt",
        "metrics": None,
        "license": None,
    }


def test_description_of_an_unknown_task_is_refused(api: Api) -> None:
    response = api.request("GET", "/tasks/parrity")

    assert "nearest: parity" in check_refused(response, 404, "unknown_task", item="task")
