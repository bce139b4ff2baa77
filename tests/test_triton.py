"""A real tritonserver on a repository that was exported; it has the python backend alone."""

import os
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from numpy.typing import NDArray
from toys import coloured, encoded, random_bundle
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.export.triton import (
    SHARED_GRAPH,
    export_task_to_triton,
    export_to_triton,
)
from lspt_serve.graph import TRITON_CONFIG, TRITON_MODEL
from lspt_serve.models import Backbone
from lspt_serve.preprocess import preprocess_image
from lspt_serve.runtime import Classifier, OnnxEngine, PromptStore, top_labels

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv" / "tritonserver"  # set up by make test
SERVER = VENV / f"lib/python{sysconfig.get_python_version()}/site-packages/pytriton/tritonserver"
LIBRARIES = "nvidia_pytriton.libs"
START_S = 120
CLIENTS: dict[str, Any] = {"http": tritonclient.http, "grpc": tritonclient.grpc}

needs_triton = pytest.mark.skipif(
    not SERVER.is_dir(), reason="no tritonserver: nvidia-pytriton could not be installed"
)


@pytest.fixture(scope="module")
def bundles(tiny_backbone: Backbone) -> list[Bundle]:
    return [
        random_bundle(tiny_backbone, name="colour", num_prompts=2, seed=1),
        random_bundle(tiny_backbone, name="parity", labels=["even", "odd"], seed=2),
    ]


@pytest.fixture(scope="module")
def repository(
    tiny_backbone: Backbone, bundles: list[Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    export_to_triton(tiny_backbone, folder)
    for bundle in bundles:
        save_bundle(bundle, folder / TRITON_MODEL / "bundles" / bundle.name)
    return folder


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encoded(coloured(label, rng, side=50)) for label in ("red", "green", "blue")]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return int(opened.getsockname()[1])


def wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")
    for _ in range(START_S * 5):
        if process.poll() is not None:
            pytest.fail(log.read_text()[-3000:])
        try:
            if client.is_server_ready():
                return
        except InferenceServerException:
            pass  # it does not listen yet
        time.sleep(0.2)
    pytest.fail(f"no tritonserver after {START_S} s: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of a tritonserver that serves the model of all tasks."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(SERVER / "backends", folder / "backends")
    version = sysconfig.get_python_version()
    stub = SERVER / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends" / "python")
    shutil.copytree(repository / TRITON_MODEL, folder / "models" / TRITON_MODEL)
    ports = {"http": free_port(), "grpc": free_port()}
    command = [str(SERVER / "bin" / "tritonserver"), "--allow-metrics=false"]
    command += [f"--model-repository={folder / 'models'}"]
    command += [f"--backend-directory={folder / 'backends'}"]
    command += [f"--{name}-port={port}" for name, port in ports.items()]
    libraries = [sysconfig.get_config_var("LIBDIR"), str(SERVER.parents[1] / LIBRARIES)]
    libraries += [os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {
        "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PYTHONPATH": str(ROOT),
    }
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        wait_until_ready(process, ports["grpc"], log)
        yield ports
    finally:
        process.terminate()
        process.wait(timeout=60)


Ask = Callable[..., Any]


@pytest.fixture(params=CLIENTS)
def ask(request: pytest.FixtureRequest, server: dict[str, int]) -> Ask:
    """Infer over HTTP or gRPC."""
    library = CLIENTS[request.param]
    client = library.InferenceServerClient(f"127.0.0.1:{server[request.param]}")

    def ask(images: list[bytes], tasks: list[str], **numbers: int) -> Any:
        given: dict[str, NDArray[Any]] = {
            "image": np.array([[image] for image in images], object),
            "task": np.array([[task.encode()] for task in tasks], object),
        }
        inputs = [library.InferInput(name, array.shape, "BYTES") for name, array in given.items()]
        for tensor, array in zip(inputs, given.values(), strict=True):
            tensor.set_data_from_numpy(array)
        for name, number in numbers.items():
            inputs.append(library.InferInput(name, [len(images), 1], "INT32"))
            inputs[-1].set_data_from_numpy(np.full((len(images), 1), number, np.int32))
        return client.infer(TRITON_MODEL, inputs)

    return ask


@pytest.fixture(scope="module")
def classifier(repository: Path) -> Iterator[Classifier]:
    """The local engine on the same graph and bundles."""
    engine = OnnxEngine(repository / TRITON_MODEL / "graph", device="cpu")
    store = PromptStore(repository / TRITON_MODEL / "bundles", engine.graph)
    classifier = Classifier(engine, store, max_batch_size=4)
    yield classifier
    classifier.close()


@needs_triton
@pytest.mark.slow
def test_triton_answers_as_the_local_engine_does(
    ask: Ask, classifier: Classifier, images: list[bytes]
) -> None:
    rows = [(image, task) for image in images for task in ("colour", "parity", "parity@1")]

    answer = ask([image for image, _ in rows], [task for _, task in rows], top_k=2)

    labels, scores = answer.as_numpy("label"), answer.as_numpy("score")
    assert labels.shape == scores.shape == (9, 2)
    for row, (image, task) in enumerate(rows):
        bundle = classifier.store[task]
        pixels = preprocess_image(image, bundle.manifest.preprocess)
        wanted = top_labels(classifier.submit(pixels, bundle).result(), bundle, 2)
        assert [label.decode() for label in labels[row]] == [best.label for best in wanted]
        np.testing.assert_allclose(scores[row], [best.score for best in wanted], atol=1e-5)


@needs_triton
@pytest.mark.slow
def test_rows_of_tasks_with_fewer_labels_are_filled_up(ask: Ask, images: list[bytes]) -> None:
    answer = ask(images[:2], ["parity", "colour"])

    labels, scores = answer.as_numpy("label"), answer.as_numpy("score")
    assert {*labels[0]} == {b"even", b"odd", b""}
    assert {*labels[1]} == {b"blue", b"green", b"red"}
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "task", "message", "codes"),
    [
        (
            b"no image",
            "colour",
            "8 bytes that are no image",
            {"400", "StatusCode.INVALID_ARGUMENT"},
        ),
        (None, "colours", "colours.*nearest: colour", {"404", "StatusCode.NOT_FOUND"}),
    ],
)
def test_what_cannot_be_answered_is_refused_and_the_next_is_not(
    ask: Ask, images: list[bytes], image: bytes | None, task: str, message: str, codes: set[str]
) -> None:
    with pytest.raises(InferenceServerException, match=message) as refused:
        ask([image or images[0]], [task])
    assert refused.value.status() in codes

    assert ask(images[:1], ["colour"]).as_numpy("label").shape == (1, 3)


def read_config(folder: Path) -> Any:
    return text_format.Parse(
        (folder / TRITON_CONFIG).read_text("utf-8"), model_config_pb2.ModelConfig()
    )


def test_shared_graph_is_described_as_it_is(repository: Path) -> None:
    config = read_config(repository / SHARED_GRAPH)

    session = onnxruntime.InferenceSession(
        repository / SHARED_GRAPH / "1" / config.default_model_filename,
        providers=["CPUExecutionProvider"],
    )
    said = {i.name: [size if size > 0 else None for size in i.dims] for i in config.input}
    real = {
        i.name: [size if isinstance(size, int) else None for size in i.shape]
        for i in session.get_inputs()
    }
    assert said == real
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 0)


def test_one_task_is_described_with_its_labels(
    tiny_backbone: Backbone, bundles: list[Bundle], tmp_path: Path
) -> None:
    export_task_to_triton(tiny_backbone, bundles[0], tmp_path)

    config = read_config(tmp_path / "colour")
    assert {path.name for path in (tmp_path / "colour").iterdir()} == {
        TRITON_CONFIG,
        "1",
        "labels.txt",
    }
    assert (tmp_path / "colour" / "labels.txt").read_text() == "blue\ngreen\nred\n"
    assert (config.name, config.backend) == ("colour", "onnxruntime")
    assert config.HasField("dynamic_batching")
    assert config.max_batch_size > 1
    assert [*config.input[0].dims] == [3, 32, 32]
    assert ([*config.output[0].dims], config.output[0].label_filename) == ([3], "labels.txt")
