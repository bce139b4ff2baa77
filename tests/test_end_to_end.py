"""The whole way, with the real commands: images -> bundles -> graph -> server -> answers."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from toys import COLOURS, coloured, encoded, write_coloured
from toys_server import LSPT, running

from lspt_serve.api import create_app
from lspt_serve.bundle import Bundle, load_bundle
from lspt_serve.cli import main
from lspt_serve.export import create_model
from lspt_serve.graph import IMAGES, PROBABILITIES
from lspt_serve.models import Backbone
from lspt_serve.preprocess import preprocess_image

pytestmark = pytest.mark.slow

TASKS = {"colour": [*COLOURS], "warm": ["green", "red"]}
DTYPES = {"colour": "float32", "warm": "float16"}


@dataclass(frozen=True)
class Built:
    """What train and export wrote."""

    folder: Path
    bundles: dict[str, Bundle]

    @property
    def graph(self) -> Path:
        return self.folder / "graph"


def run(*words: object, folder: Path) -> str:
    """Run a command to its end; returns its stdout."""
    ended = subprocess.run(
        [*LSPT, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("work")
    for task, labels in TASKS.items():
        write_coloured(folder / task, labels, count=14, side=40)
        run(
            *("train", "--backbone", tiny_backbone.source, "--data", task),
            *("--out", f"bundles/{task}", "--option", f"num_prompts={len(labels)}"),
            *("--pool", "patch_mean", "--epochs", 10, "--lr", 0.02, "--warmup-epochs", 1),
            *("--batch-size", 8, "--device", "cpu", "--dtype", DTYPES[task]),
            folder=folder,
        )
    run("export", "--like", "bundles/colour", "--out", "graph", folder=folder)
    return Built(folder, {task: load_bundle(folder / "bundles" / task) for task in TASKS})


@pytest.mark.parametrize("task", TASKS)
def test_training_leaves_a_report_beside_the_bundle(built: Built, task: str) -> None:
    metrics = built.bundles[task].manifest.metrics
    assert metrics is not None
    folder = built.folder / "bundles" / f"{task}.run" / "report"
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["metrics"] == metrics.model_dump()
    assert len(report["epochs"]) == 10
    page = (folder / "index.html").read_text("utf-8")
    assert f"{metrics.test_accuracy:.1%}" in page
    assert (folder / "attention.png").is_file()


@pytest.fixture(scope="module")
def client(built: Built) -> Iterator[httpx.Client]:
    """A client of a real `lspt serve`, where images wait for others to share their batch."""
    environment = {"LSPT_MAX_DELAY_MS": 50}
    options = ("--device", "cpu")
    with (
        running([*LSPT, "serve"], options, folder=built.folder, environment=environment) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        yield client


def images(labels: Sequence[str]) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(99)
    return [(label, encoded(coloured(label, rng, side=48))) for label in labels for _ in range(3)]


def by_torch(backbone: Backbone, bundle: Bundle, data: bytes) -> NDArray[np.float32]:
    """Probabilities, K."""
    pixels = torch.from_numpy(preprocess_image(data, backbone.preprocess))
    with torch.inference_mode():
        logits = create_model(backbone, bundle)(pixels[None])[0]
    return np.asarray(logits.softmax(dim=-1))


@pytest.mark.parametrize("task", TASKS)
def test_server_answers_like_torch_and_right(
    client: httpx.Client, tiny_backbone: Backbone, built: Built, task: str
) -> None:
    bundle, right = built.bundles[task], 0
    for label, data in images(TASKS[task]):
        answer = client.post("/classify", files={"image": data}, data={"task": task})
        assert answer.status_code == 200, answer.text
        predictions = answer.json()["predictions"]
        wanted = by_torch(tiny_backbone, bundle, data)
        assert [p["label"] for p in predictions] == [bundle.labels[i] for i in np.argsort(-wanted)]
        assert [p["score"] for p in predictions] == pytest.approx(sorted(wanted)[::-1], abs=1e-4)
        right += predictions[0]["label"] == label

    assert right / len(images(TASKS[task])) > 0.8


def test_batches_that_mix_tasks_are_answered_like_torch(
    client: httpx.Client, tiny_backbone: Backbone, built: Built
) -> None:
    before = batches(client)
    data = [image for _, image in images(TASKS["colour"])]

    answer = client.post(
        "/classify_many", files=[("images", image) for image in data], data={"tasks": [*TASKS]}
    )

    items = answer.json()["items"]
    assert [(item["image"], item["task"]) for item in items] == [
        (number, task) for number in range(len(data)) for task in TASKS
    ]
    for item in items:
        bundle = built.bundles[item["task"]]
        wanted = by_torch(tiny_backbone, bundle, data[item["image"]])
        got = {best["label"]: best["score"] for best in item["predictions"]}
        assert got == pytest.approx(dict(zip(bundle.labels, wanted, strict=True)), abs=1e-4)
    assert batches(client) - before < len(items) / 2  # an image's tasks come one after the other


def batches(client: httpx.Client) -> int:
    """That the engine has run."""
    (count,) = re.findall(r"^lspt_batch_size_count (\S+)", client.get("/metrics").text, re.M)
    return int(float(count))


def test_server_lists_its_tasks(client: httpx.Client, built: Built) -> None:
    listed = client.get("/tasks").json()

    assert {task["name"]: task["labels"] for task in listed["tasks"]} == TASKS
    assert listed["refused"] == {}
    metrics = built.bundles["colour"].manifest.metrics
    assert metrics is not None
    assert client.get("/tasks/colour").json()["metrics"] == metrics.model_dump()


def test_server_is_alive_and_has_metrics(client: httpx.Client) -> None:
    client.post("/classify", files={"image": b"x"}, data={"task": "colour"})

    assert client.get("/livez").status_code == 200
    metrics = client.get("/metrics")
    assert metrics.status_code == 200
    assert 'lspt_http_seconds_count{route="/classify",status="415"}' in metrics.text


def test_openapi_of_the_server_is_that_of_the_app(client: httpx.Client) -> None:
    assert client.get("/docs.json").json() == create_app().openapi()


@pytest.mark.parametrize(
    ("data", "task", "status"),
    [
        (b"garbage", "colour", 415),
        (b"", "colour", 415),
        (encoded(coloured("red", np.random.default_rng(0)))[:60], "colour", 422),
        (b"garbage", "color", 404),
    ],
)
def test_server_refuses_bad_requests(
    client: httpx.Client, data: bytes, task: str, status: int
) -> None:
    answer = client.post("/classify", files={"image": data}, data={"task": task})

    assert answer.status_code == status
    assert answer.json()["error"]["request_id"] == answer.headers["X-Request-ID"]


def test_server_refuses_a_body_that_is_too_long(client: httpx.Client) -> None:
    answer = client.post("/classify", files={"image": bytes(20_000_001)}, data={"task": "colour"})

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


def test_server_refuses_a_request_without_an_image(client: httpx.Client) -> None:
    answer = client.post("/classify", data={"task": "colour"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed")


def test_baked_file_answers_like_torch(
    tiny_backbone: Backbone, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.folder)
    words = ["lspt", "export", "--bundle", "bundles/warm", "--out", "warm.onnx"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main()

    session = onnxruntime.InferenceSession("warm.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == TASKS["warm"]
    for _, data in images(TASKS["warm"]):
        pixels = preprocess_image(data, tiny_backbone.preprocess)[None]
        (got,) = session.run([PROBABILITIES], {IMAGES: pixels})[0]
        wanted = by_torch(tiny_backbone, built.bundles["warm"], data)
        np.testing.assert_allclose(got, wanted, atol=1e-5)
