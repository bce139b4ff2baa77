"""The ways in which an image and its fields come."""

import base64
import io
import json
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import coloured, encoded, export_once
from toys_api import Api, check_refused, create_classifier, save_tasks

from lspt_serve.models import Backbone
from lspt_serve.preprocess import Format
from lspt_serve.settings import ServiceSettings, load_classifier

PNG = encoded(coloured("red", np.random.default_rng(0), side=40))
TEXT = base64.b64encode(PNG).decode()
LOSSLESS: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG2000": {}}


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory))


def post(api: Api, **settings: Any) -> httpx.Response:
    return api.request("POST", "/classify", **settings)


def predictions(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


@pytest.mark.parametrize("content_type", ["image/png", "IMAGE/JPEG", "application/octet-stream"])
def test_body_may_be_the_file_itself(api: Api, content_type: str) -> None:
    wanted = predictions(api.classify(PNG, top_k=2))

    response = post(
        api,
        content=PNG,
        params={"task": "colour", "top_k": 2},
        headers={"Content-Type": content_type},
    )

    assert predictions(response) == wanted
    assert len(wanted) == 2


@pytest.mark.parametrize("content_type", ["image/png", "IMAGE/JPEG", "application/octet-stream"])
def test_body_may_be_the_one_file_of_many(api: Api, content_type: str) -> None:
    asked = {"tasks": ["parity", "colour", "nobody"], "top_k": 2}
    form = api.request("POST", "/classify_many", files={"images": PNG}, data=asked)

    response = api.request(
        "POST",
        "/classify_many",
        content=PNG,
        params=asked,
        headers={"Content-Type": content_type},
    )

    items = form.json()["items"]
    assert [len(item.get("predictions", [])) for item in items] == [2, 2, 0]
    for item in items:
        item["file"] = None
        for best in item.get("predictions", []):
            best["score"] = pytest.approx(best["score"], abs=1e-5)
    assert response.json()["items"] == items


@pytest.mark.parametrize("file_format", ["WEBP", "JPEG2000"])
def test_file_of_a_format_that_is_listed_is_answered(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    file_format: Format,
) -> None:
    save_tasks(tiny_backbone, tmp_path)
    settings = ServiceSettings(
        graph=export_once(tiny_backbone, tmp_path_factory),
        bundles=tmp_path,
        engine="onnxruntime",
        device="cpu",
        formats=("PNG", file_format),
    )
    file = io.BytesIO()
    Image.open(io.BytesIO(PNG)).save(file, file_format, **LOSSLESS[file_format])

    with closing(load_classifier(settings)) as classifier:
        api = Api(classifier)
        assert predictions(api.classify(file.getvalue())) == predictions(api.classify(PNG))


@pytest.mark.parametrize("image", [TEXT, [TEXT], f"data:image/png;base64,{TEXT}"])
def test_image_may_be_base64_in_json(api: Api, image: Any) -> None:
    wanted = predictions(api.classify(PNG, top_k=2))

    response = post(api, json={"image": image, "task": "colour", "top_k": 2})

    assert predictions(response) == wanted


def test_fields_of_the_query_count_for_a_form_too(api: Api) -> None:
    response = post(
        api, files={"image": PNG}, data={"task": "colour"}, params={"top_k": 1, "threshold": 0}
    )

    assert len(predictions(response)) == 1


@pytest.mark.parametrize(
    "text", ["", "!", "http://127.0.0.1/photo.png", TEXT[:-1], "YQ==YQ==", "é"]
)
def test_text_that_is_not_base64_is_malformed(api: Api, text: str) -> None:
    response = post(api, json={"image": text, "task": "colour"})

    if text:
        assert "wanted base64" in check_refused(response, 400, "malformed", item="image")
    else:  # no bytes, in base64
        check_refused(response, 415, "unsupported_format", item="image")


@pytest.mark.parametrize("image", [None, 7, {"data": TEXT}, [None], [[TEXT]]])
def test_image_that_is_no_text_is_malformed(api: Api, image: Any) -> None:
    response = post(api, json={"image": image, "task": "colour"})

    check_refused(response, 400, "malformed", item="image")


@pytest.mark.parametrize("image", [[], [TEXT, TEXT]])
def test_other_than_one_image_is_malformed(api: Api, image: list[str]) -> None:
    response = post(api, json={"image": image, "task": "colour"})

    check_refused(response, 400, "malformed", item="image")


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "null", '"colour"', "[" * 100_000, '{"a":' * 1000 + "1" + "}" * 1000, "\xff"],
)
def test_body_that_is_no_json_object_is_malformed(api: Api, body: str) -> None:
    headers = {"Content-Type": "application/json"}

    response = post(api, content=body.encode("latin-1"), headers=headers)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "malformed"


def test_field_that_there_is_not_is_malformed_and_the_nearest_named(api: Api) -> None:
    message = check_refused(api.classify(PNG, topk=3), 400, "malformed", item="topk")

    assert message.startswith("topk: unknown field; nearest: top_k")


@pytest.mark.parametrize("field", ["task", "top_k"])
def test_field_that_is_given_twice_is_malformed(api: Api, field: str) -> None:
    value = {"task": "colour", "top_k": "1"}[field]

    response = api.request(
        "POST",
        "/classify",
        files={"image": PNG},
        data={"task": "colour", "top_k": "1"},
        params={field: value},
    )

    assert "given twice" in check_refused(response, 400, "malformed", item=field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation", "relu"),
        ("activation", ""),
        ("threshold", "nan"),
        ("threshold", "inf"),
        ("threshold", "half"),
    ],
)
def test_bad_field_is_malformed(api: Api, field: str, value: str) -> None:
    check_refused(api.classify(PNG, **{field: value}), 400, "malformed", item=field)


def test_scores_are_as_the_activation_says(api: Api) -> None:
    by_index = {}
    for activation in ("softmax", "sigmoid", "none"):
        given = predictions(api.classify(PNG, activation=activation))
        by_index[activation] = np.array(
            [p["score"] for p in sorted(given, key=lambda p: int(p["index"]))]
        )

    logits = by_index["none"]
    np.testing.assert_allclose(by_index["sigmoid"], 1 / (1 + np.exp(-logits)), rtol=1e-4)
    softmax = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(by_index["softmax"], softmax, rtol=1e-4)


def test_labels_that_score_less_than_the_threshold_are_left_out(api: Api) -> None:
    first, second, third = predictions(api.classify(PNG))
    between = (first["score"] + second["score"]) / 2

    assert predictions(api.classify(PNG, threshold=between)) == [first]
    assert predictions(api.classify(PNG, threshold=third["score"] / 2)) == [first, second, third]
    assert predictions(api.classify(PNG, threshold=2)) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
fields = st.sampled_from(["image", "task", "top_k", "activation", "threshold", "other"])


@settings(max_examples=100)
@given(given=st.dictionaries(fields, json_values) | json_values)
def test_no_json_is_an_error_of_the_server(api: Api, given: Any) -> None:
    headers = {"Content-Type": "application/json"}

    response = post(api, content=json.dumps(given), headers=headers)

    assert 400 <= response.status_code < 500
    assert response.json().keys() == {"error"}


def test_image_larger_than_a_megabyte_needs_no_disk(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))

    assert api.classify(PNG + bytes(2_000_000)).status_code == 200
