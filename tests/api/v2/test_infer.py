"""Inference by the bytes that tritonclient makes, through the real app."""

import base64
import gzip
import json
import struct
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toys import coloured, encoded, random_bundle
from toys_api import TASKS, Api, create_classifier, stall

from lspt_serve.api import threads
from lspt_serve.api.v2 import tensors
from lspt_serve.export import create_model
from lspt_serve.models import Backbone
from lspt_serve.preprocess import normalise, preprocess_image

http = pytest.importorskip("tritonclient.http", reason="needs the extra triton")

MAX_BYTES = 1_000_000
LENGTH = "Inference-Header-Content-Length"
RNG = np.random.default_rng(0)
PIXELS = np.stack([coloured(colour, RNG) for colour in ("red", "blue", "green")])
FILES = [encoded(pixels) for pixels in PIXELS]
IMAGE = {"name": "IMAGE", "shape": [1], "datatype": "BYTES"}
GOOD = {**IMAGE, "data": [base64.b64encode(FILES[0]).decode()]}


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory), max_bytes=MAX_BYTES)


@pytest.fixture(scope="module")
def wanted(tiny_backbone: Backbone) -> NDArray[np.float32]:
    """What torch answers for FILES and task colour, 3 x 3."""
    bundle = random_bundle(
        tiny_backbone, name="colour", labels=TASKS["colour"], seed=1, num_prompts=2
    )
    images = np.stack([preprocess_image(data, tiny_backbone.preprocess) for data in FILES])
    with torch.inference_mode():
        logits = create_model(tiny_backbone, bundle)(torch.from_numpy(images))
    return np.asarray(logits.softmax(dim=-1))


def tensor_of(name: str, array: NDArray[Any], *, binary: bool = True) -> Any:
    datatype = {"O": "BYTES", "f": "FP32", "u": "UINT8"}[array.dtype.kind]
    tensor = http.InferInput(name, [*array.shape], datatype)
    return tensor.set_data_from_numpy(array, binary_data=binary)


def infer(
    api: Api, *inputs: Any, model: str = "colour", outputs: Any = None, **settings: Any
) -> Any:
    """What tritonclient makes of the answer to what it would send."""
    body, length = http.InferenceServerClient.generate_request_body(
        [*inputs], outputs=outputs, **settings
    )
    headers = {LENGTH: str(length)} if length is not None else {}
    answer = api.request("POST", f"/v2/models/{model}/infer", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    length = answer.headers.get(LENGTH)
    return http.InferenceServerClient.parse_response_body(
        answer.content, header_length=length and int(length)
    )


def post(api: Api, content: Any, *, model: str = "colour", **headers: str) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return api.request("POST", f"/v2/models/{model}/infer", content=body, headers=headers)


def check_refused(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    message: str = answer.json()["error"]
    assert message
    assert "\n" not in message
    return message


def files(column: bool = False) -> NDArray[np.object_]:
    array = np.array(FILES, dtype=np.object_)
    return array[:, None] if column else array


@pytest.mark.parametrize("column", [False, True])
def test_files_are_answered_as_torch_does(
    api: Api, wanted: NDArray[np.float32], column: bool
) -> None:
    result = infer(api, tensor_of("IMAGE", files(column)))

    scores = result.as_numpy("SCORES")
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    response = result.get_response()
    assert (response["model_name"], response["model_version"]) == ("colour", "1")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_pixels_are_answered_as_torch_does(
    api: Api, tiny_backbone: Backbone, wanted: NDArray[np.float32], kind: str, binary: bool
) -> None:
    pixels = (
        normalise(PIXELS, tiny_backbone.preprocess)
        if kind == "float32"
        else np.ascontiguousarray(np.moveaxis(PIXELS, -1, 1))
    )

    result = infer(api, tensor_of("PIXELS", pixels, binary=binary))

    np.testing.assert_allclose(result.as_numpy("SCORES"), wanted, atol=1e-5)


def test_files_in_json_are_base64(api: Api, wanted: NDArray[np.float32]) -> None:
    texts = np.array([base64.b64encode(data) for data in FILES], dtype=np.object_)

    result = infer(api, tensor_of("IMAGE", texts, binary=False))

    np.testing.assert_allclose(result.as_numpy("SCORES"), wanted, atol=1e-5)


@pytest.mark.parametrize("binary", [False, True])
def test_answer_is_binary_if_asked_for(api: Api, wanted: NDArray[np.float32], binary: bool) -> None:
    asked = [http.InferRequestedOutput("SCORES", binary_data=binary)]

    result = infer(api, tensor_of("IMAGE", files()), outputs=asked, request_id="mine")

    np.testing.assert_allclose(result.as_numpy("SCORES"), wanted, atol=1e-5)
    response = result.get_response()
    assert response["id"] == "mine"
    assert ("data" in response["outputs"][0]) is not binary


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (7, 3)])
def test_classes_are_score_index_and_label(
    api: Api, wanted: NDArray[np.float32], count: int, columns: int, binary: bool
) -> None:
    asked = [http.InferRequestedOutput("SCORES", binary_data=binary, class_count=count)]

    got = infer(api, tensor_of("IMAGE", files()), outputs=asked).as_numpy("SCORES")

    assert got.shape == (3, columns)
    for row, scores in zip(got, wanted, strict=True):
        texts = [text.decode() if isinstance(text, bytes) else text for text in row]
        parts = [text.split(":") for text in texts]
        best = np.argsort(-scores)[:columns]
        assert [int(index) for _, index, _ in parts] == best.tolist()
        assert [label for *_, label in parts] == [TASKS["colour"][i] for i in best]
        assert [float(score) for score, *_ in parts] == pytest.approx(scores[best], abs=2e-5)


def test_rows_are_many_more_than_a_batch(api: Api, wanted: NDArray[np.float32]) -> None:
    many = np.array(FILES * 60, dtype=np.object_)

    scores = infer(api, tensor_of("IMAGE", many)).as_numpy("SCORES")

    np.testing.assert_allclose(scores, np.tile(wanted, (60, 1)), atol=1e-5)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_request_is_taken(api: Api, encoding: str) -> None:
    body = json.dumps({"inputs": [GOOD]}).encode()
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)

    answer = post(api, packed, **{"Content-Encoding": encoding})

    assert answer.json()["outputs"][0]["shape"] == [1, 3]


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"not compressed", "gzip", 400),
        (gzip.compress(b"{}")[:-4], "gzip", 400),
        (gzip.compress(b"{}") + b"more", "gzip", 400),
        (gzip.compress(bytes(MAX_BYTES + 1)), "gzip", 413),
        (zlib.compress(bytes(10_000_000)), "deflate", 413),
        (b"{}", "br", 415),
        (b"{}", "gzip, deflate", 415),
        (b"{}", "x" * 5000, 415),
    ],
)
def test_compressed_request_that_is_broken_or_too_long_is_refused(
    api: Api, body: bytes, encoding: str, status: int
) -> None:
    message = check_refused(post(api, body, **{"Content-Encoding": encoding}), status)

    assert len(message) < 200


def test_body_over_the_limit_is_refused(api: Api) -> None:
    check_refused(post(api, bytes(MAX_BYTES + 1)), 413)


def test_unknown_model_is_refused(api: Api) -> None:
    assert "nearest: colour" in check_refused(post(api, {"inputs": [GOOD]}, model="color"), 404)
    check_refused(post(api, {"inputs": [GOOD]}, model="colour/versions/2"), 404)
    check_refused(post(api, {"inputs": [GOOD]}, model="colour/versions/one"), 404)


def test_version_and_alias_name_a_model(api: Api) -> None:
    answer = post(api, {"inputs": [GOOD]}, model="colour/versions/1")

    assert answer.json()["model_version"] == "1"
    assert "no-such" not in check_refused(
        post(api, {"inputs": [GOOD]}, model="colour%3Astable"), 404
    )


@pytest.mark.parametrize(("data", "status"), [(b"garbage", 415), (b"", 415), (FILES[0][:60], 422)])
def test_file_that_is_no_image_is_refused_and_its_row_named(
    api: Api, data: bytes, status: int
) -> None:
    texts = [base64.b64encode(each).decode() for each in (FILES[0], data)]
    tensor = {**IMAGE, "shape": [2], "data": texts}

    assert check_refused(post(api, {"inputs": [tensor]}), status).startswith("row 1: ")


def pixels(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "PIXELS", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [0.5] * 3072}
    return {key: value for key, value in {**tensor, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    "tensor",
    [
        pixels(shape=[2, 3, 32, 32]),
        pixels(shape=[1, 3, 32, 31]),
        pixels(shape=[1, 32, 32, 3]),
        pixels(shape=[3072]),
        pixels(shape=[]),
        pixels(shape=[0, 3, 32, 32], data=[]),
        pixels(shape=[-1, 3, 32, 32]),
        pixels(shape=[1.0, 3, 32, 32]),
        pixels(shape=[True, 3, 32, 32]),
        pixels(shape=[10**30, 3, 32, 32]),
        pixels(shape=[10**15, 3, 32, 32]),
        pixels(shape=[1] * 1000),
        pixels(shape="1"),
        pixels(datatype="FP64"),
        pixels(datatype="BYTES"),
        pixels(datatype="x" * 5000),
        pixels(datatype=4),
        pixels(name="PIXEL"),
        pixels(name="\ud800"),
        pixels(data=[0.5] * 3071),
        pixels(data=[0.5] * 3071 + [1e39]),
        pixels(data=[0.5] * 3071 + [255]),
        pixels(data=[0.5] * 3071 + [10**400]),
        pixels(data=[0.5] * 3071 + [None]),
        pixels(data=[0.5] * 3071 + ["x"]),
        pixels(data=[0.5] * 3071 + [[0.5]]),
        pixels(data=[0.5] * 3071 + [{}]),
        pixels(data=[0.5] * 3071 + ["nan"]),
        pixels(data={"0": 0.5}),
        pixels(data="0.5"),
        pixels(data=json.loads("[" * 500 + "]" * 500)),
        pixels(data=None),
        pixels(parameters={"binary_data_size": 0}),
        pixels(data=None, parameters={"binary_data_size": 12288}),
        pixels(data=None, parameters={"binary_data_size": -1}),
        pixels(data=None, parameters={"binary_data_size": 0}),
        pixels(data=None, parameters={"binary_data_size": 2**62}),
        pixels(data=None, parameters={"binary_data_size": "12288"}),
        pixels(data=None, parameters={"shared_memory_region": "r"}),
        pixels(datatype="UINT8", data=[0.5] * 3072),
        pixels(datatype="UINT8", data=[256] * 3072),
        pixels(datatype="UINT8", data=[-1] * 3072),
        {**GOOD, "shape": [2]},
        {**GOOD, "shape": [1, 2]},
        {**GOOD, "shape": [1001]},
        {**GOOD, "datatype": "FP32"},
        {**GOOD, "data": ["http://127.0.0.1/photo.png"]},
        {**GOOD, "data": ["é"]},
        {**GOOD, "data": [[]]},
        {**GOOD, "data": [[["x"]]]},
        {**GOOD, "data": [["YQ==", "YQ=="]]},
        {**GOOD, "data": [1]},
        {**GOOD, "data": {"x": 1}},
        {},
        [],
        None,
    ],
)
def test_tensor_that_is_not_what_it_says_is_malformed(api: Api, tensor: Any) -> None:
    assert len(check_refused(post(api, {"inputs": [tensor]}))) < 300


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"inputs": []}',
        b'{"inputs": [' + b"[" * 1000 + b"]" * 1000 + b"]}",
        b"[" * 100_000,
        b'{"inputs": NaN}',
        b'{"inputs": [' + b"9" * 5000 + b"]}",
        json.dumps({"inputs": [GOOD, GOOD]}).encode(),
        json.dumps({"inputs": [GOOD], "id": 5}).encode(),
        json.dumps({"inputs": [GOOD], "parameters": []}).encode(),
        json.dumps({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}).encode(),
        json.dumps({"inputs": [GOOD], "outputs": [{"name": "OTHER"}]}).encode(),
        json.dumps({"inputs": [GOOD], "outputs": [{"name": "SCORES"}] * 2}).encode(),
    ],
)
def test_body_that_is_no_request_is_malformed(api: Api, body: bytes) -> None:
    check_refused(post(api, body))


@pytest.mark.parametrize(
    "parameters",
    [
        {"classification": -1},
        {"classification": "2"},
        {"classification": True},
        {"classification": 1.5},
        {"binary_data": "yes"},
        {"shared_memory_region": "r"},
    ],
)
def test_bad_parameters_of_an_output_are_malformed(api: Api, parameters: Any) -> None:
    outputs = [{"name": "SCORES", "parameters": parameters}]

    check_refused(post(api, {"inputs": [GOOD], "outputs": outputs}))


def with_binary(tensor: dict[str, Any], binary: bytes) -> tuple[bytes, str]:
    tensor = {**tensor, "parameters": {"binary_data_size": len(binary)}}
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + binary, str(len(header))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_pixels_that_are_no_normalised_ones_are_malformed(api: Api, value: float) -> None:
    numbers = np.zeros((1, 3, 32, 32), np.float32)
    numbers[0, 1, 2, 3] = value
    body, length = with_binary(pixels(data=None), numbers.tobytes())

    assert "normalised pixels are numbers within 10.0" in check_refused(
        post(api, body, **{LENGTH: length})
    )


@pytest.mark.parametrize(
    "binary",
    [
        b"",
        b"\1",
        struct.pack("<I", 5) + b"four",
        struct.pack("<I", 3) + b"four",
        struct.pack("<I", 2**32 - 1) + b"four",
        bytes(4 * 1001),
        (struct.pack("<I", 4) + b"four") * 2,
    ],
)
def test_lengths_of_files_that_do_not_add_up_are_malformed(api: Api, binary: bytes) -> None:
    body, length = with_binary(IMAGE, binary)

    check_refused(post(api, body, **{LENGTH: length}))


@pytest.mark.parametrize("length", ["0", "-1", "x", "", "1e3", "9" * 5000, "999999", "²"])
def test_lengths_of_the_json_that_cannot_be_are_malformed(api: Api, length: str) -> None:
    body = json.dumps({"inputs": [GOOD]}).encode()

    check_refused(
        api.request(
            "POST",
            "/v2/models/colour/infer",
            content=body,
            headers={LENGTH.encode(): length.encode()},
        )
    )


def test_binary_data_that_nothing_announces_are_malformed(api: Api) -> None:
    body = json.dumps({"inputs": [GOOD]}).encode()

    message = check_refused(post(api, body + b"more", **{LENGTH: str(len(body))}))

    assert message == "binary_data_size of the inputs is 0; 4 bytes came"


def test_id_is_given_back_whatever_is_in_it(api: Api) -> None:
    for given_id in ("\ud800", "é\n", "x" * 1000):
        assert post(api, {"inputs": [GOOD], "id": given_id}).json()["id"] == given_id


def test_answer_that_comes_too_late_is_a_timeout(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lspt_serve.api.v2.infer.DEADLINE_S", -1.0)

    assert "deadline" in check_refused(post(api, {"inputs": [GOOD]}), 504)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=60)
@given(
    field=st.sampled_from(["name", "shape", "datatype", "parameters", "data"]),
    value=JSON,
    outer=st.sampled_from([None, "id", "outputs", "parameters", "inputs"]),
)
def test_no_json_is_an_error_of_the_server(
    api: Api, field: str, value: Any, outer: str | None
) -> None:
    request: dict[str, Any] = {"inputs": [{**GOOD, field: value}]}
    if outer:
        request = {"inputs": [GOOD], outer: value}

    assert post(api, request).status_code in {200, 400, 415, 422}


@settings(max_examples=40)
@given(binary=st.binary(max_size=60), rows=st.integers(0, 3), declared=st.integers(0, 70))
def test_no_binary_data_is_an_error_of_the_server(
    api: Api, binary: bytes, rows: int, declared: int
) -> None:
    tensor = {**IMAGE, "shape": [rows], "parameters": {"binary_data_size": declared}}
    header = json.dumps({"inputs": [tensor]}).encode()

    answer = post(api, header + binary, **{LENGTH: str(len(header))})

    assert answer.status_code in {400, 415, 422}


def test_body_that_was_compressed_is_held_at_its_full_size(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 kB of a few hundred bytes, of which two would be more than all may hold."""
    monkeypatch.setattr("lspt_serve.api.limits.AT_ONCE", 1)
    padded = FILES[0] + bytes(600_000)
    data = struct.pack("<I", len(padded)) + padded
    binary = {**IMAGE, "parameters": {"binary_data_size": len(data)}}
    header = json.dumps({"inputs": [binary]}).encode()
    content, length = gzip.compress(header + data), str(len(header))
    stalled = stall(api.app.state.classifier.engine, monkeypatch)

    def send() -> httpx.Response:
        return post(api, content, **{LENGTH: length, "Content-Encoding": "gzip"})

    with ThreadPoolExecutor() as pool:
        first = pool.submit(send)
        assert stalled.busy.wait(timeout=10)
        message = check_refused(send(), 503)
        stalled.go_on.set()

    assert len(content) < 10_000
    assert message.endswith("bytes are held already; try again later")
    assert first.result().status_code == 200


def test_task_in_memory_waits_for_no_disk(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def stall(*args: object) -> NoReturn:
        raise AssertionError("read from disk")

    monkeypatch.setattr(threads.READING, "run", stall)

    assert post(api, {"inputs": [GOOD]}).status_code == 200


def test_answer_that_is_there_waits_for_no_decoding(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the image has been run there is no room in the threads that decode."""
    engine = api.app.state.classifier.engine
    run = engine.features

    def features(*args: Any) -> Any:
        monkeypatch.setattr(threads.DECODING, "_limit", 0)
        return run(*args)

    monkeypatch.setattr(engine, "features", features)

    assert post(api, {"inputs": [GOOD]}).status_code == 200


def test_task_that_there_is_not_is_refused_before_the_body_is_read(api: Api) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b"{}"

    answer = api.request("POST", "/v2/models/color/infer", content=body())

    assert check_refused(answer, 404) == "unknown task 'color'; nearest: colour"
    assert read == []


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ({"parameters": {"binary_data": False}}, 400),
        ({"parameters": {"binary_data": True}}, 200),
        ({"parameters": {"binary_data": True, "classification": 3}}, 400),
        ({"parameters": {"binary_data": False, "classification": 1}}, 200),
    ],
)
def test_scores_that_are_too_much_text_are_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch, output: Any, status: int
) -> None:
    """Two images of three labels are six, of which five may be told as text."""
    monkeypatch.setattr(tensors, "MAX_LABELS", 5)
    texts = [base64.b64encode(data).decode() for data in FILES[:2]]
    asked = {"inputs": [{**IMAGE, "shape": [2], "data": texts}]}

    answer = post(api, {**asked, "outputs": [{"name": "SCORES", **output}]})

    assert answer.status_code == status, answer.text
    if status == 400:
        assert "6 scores as text; at most 5" in check_refused(answer)


def test_long_id_is_refused(api: Api) -> None:
    message = check_refused(post(api, {"id": "x" * 1025, "inputs": [GOOD]}))

    assert message == "id: 1025 letters; at most 1024"
