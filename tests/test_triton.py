"""A real tritonserver on a repository that was exported; it has the python backend alone."""

import os
import shutil
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
from toys_triton import TritonServer, needs_triton
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

import lspt_serve.export.triton
from lspt_serve.bundle import Bundle, load_bundle, save_bundle
from lspt_serve.errors import GraphError, OutputError
from lspt_serve.export.triton import TritonBackend, export_task_to_triton, export_to_triton
from lspt_serve.graph import (
    GRAPH_FILE,
    TRITON_CONFIG,
    TRITON_GRAPH,
    TRITON_MODEL,
    GraphSpec,
    load_graph_spec,
)
from lspt_serve.models import Backbone
from lspt_serve.preprocess import preprocess_image
from lspt_serve.runtime import (
    Classifier,
    OnnxEngine,
    PromptStore,
    TritonEngine,
    activate,
    top_labels,
)

CLIENTS: dict[str, Any] = {"http": tritonclient.http, "grpc": tritonclient.grpc}


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


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of a tritonserver that serves the model of all tasks."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(repository / TRITON_MODEL, folder / "models" / TRITON_MODEL)
    server = TritonServer(folder)
    try:
        server.start()
        yield server.ports
    finally:
        server.stop()


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
        wanted = top_labels(activate(classifier.submit(pixels, bundle).result()), bundle.labels, 2)
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


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("scheme", CLIENTS)
def test_engine_refuses_a_server_that_lacks_the_model_of_the_graph(
    server: dict[str, int], repository: Path, scheme: str
) -> None:
    url = f"{scheme}://127.0.0.1:{server[scheme]}"

    with pytest.raises(GraphError, match=f"{url} has no model 'lspt-graph'; .*lspt export"):
        TritonEngine(repository / TRITON_MODEL / "graph", url=url)


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_shared_graph_is_described_as_it_is(
    tiny_backbone: Backbone, tmp_path: Path, backend: TritonBackend
) -> None:
    export_to_triton(tiny_backbone, tmp_path, backend=backend)

    config = read_config(tmp_path / TRITON_GRAPH)
    session = onnxruntime.InferenceSession(
        tmp_path / TRITON_GRAPH / "1" / GRAPH_FILE, providers=["CPUExecutionProvider"]
    )
    said = {i.name: [size if size > 0 else None for size in i.dims] for i in config.input}
    real = {
        i.name: [size if isinstance(size, int) else None for size in i.shape]
        for i in session.get_inputs()
    }
    assert said == real
    assert (config.backend, config.max_batch_size) == (backend, 0)
    assert config.default_model_filename == (GRAPH_FILE if backend == "onnxruntime" else "")
    wanted = load_graph_spec(tmp_path / TRITON_MODEL / "graph").sha256
    assert config.parameters["spec_sha256"].string_value == wanted


@pytest.fixture
def quick_graph(tiny_backbone: Backbone, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export of what was exported already."""

    def copy(backbone: Backbone, folder: Path, *, like: Bundle | None = None) -> GraphSpec:
        shutil.copytree(repository / TRITON_MODEL / "graph", folder)
        return load_graph_spec(folder)

    monkeypatch.setattr(lspt_serve.export.triton, "export_graph", copy)


@pytest.mark.usefixtures("quick_graph")
def test_bundles_of_a_repository_outlast_an_export(
    tiny_backbone: Backbone, bundles: list[Bundle], tmp_path: Path
) -> None:
    models, own = tmp_path / "models", tmp_path / "models" / TRITON_MODEL / "bundles"
    export_to_triton(tiny_backbone, models)
    save_bundle(bundles[0], own / "colour")
    save_bundle(bundles[1], tmp_path / "parity")
    (own / "parity").symlink_to(tmp_path / "parity")
    (own / "aliases.json").write_text('{"colour": {"stable": 1}}')
    (own.parent / "keys").mkdir()
    (own.parent / "keys" / "mine.pem").write_text("a key")
    (own.parent / "graph" / "old").touch()

    export_to_triton(tiny_backbone, models)

    assert not (own.parent / "graph" / "old").exists()
    assert load_bundle(own / "colour").manifest == bundles[0].manifest
    assert (own / "parity").readlink() == tmp_path / "parity"
    assert (own / "aliases.json").read_text() == '{"colour": {"stable": 1}}'
    assert (own.parent / "keys" / "mine.pem").read_text() == "a key"


@pytest.mark.usefixtures("quick_graph")
def test_settings_of_a_repository_outlast_an_export(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    export_to_triton(tiny_backbone, tmp_path)
    fresh = read_config(tmp_path / TRITON_MODEL)
    assert {name: value.string_value for name, value in fresh.parameters.items()} == {
        "graph": "graph",
        "bundles": "bundles",
        "engine": "auto",
        "precision": "fp32",
    }
    fresh.parameters["trusted_keys"].string_value = "keys"
    fresh.parameters["engine"].string_value = "openvino"
    path = tmp_path / TRITON_MODEL / TRITON_CONFIG
    path.write_text(text_format.MessageToString(fresh), "utf-8")

    export_to_triton(tiny_backbone, tmp_path)
    assert read_config(tmp_path / TRITON_MODEL) == fresh

    path.write_text("parameters {", "utf-8")
    with pytest.raises(OutputError, match=r"config\.pbtxt: its parameters cannot be kept: "):
        export_to_triton(tiny_backbone, tmp_path)
    assert path.read_text("utf-8") == "parameters {"


@pytest.mark.usefixtures("quick_graph")
def test_bundles_that_cannot_be_kept_leave_the_repository_as_it_was(
    tiny_backbone: Backbone, bundles: list[Bundle], tmp_path: Path
) -> None:
    export_to_triton(tiny_backbone, tmp_path)
    own = tmp_path / TRITON_MODEL / "bundles"
    save_bundle(bundles[0], own / "colour")
    os.mkfifo(own / "pipe")

    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    with pytest.raises(OutputError, match=r"cannot be written: .*pipe"):
        export_to_triton(tiny_backbone, tmp_path)

    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


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


def test_label_of_several_lines_is_one_line_of_labels(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    bundle = random_bundle(tiny_backbone, name="colour", labels=["sky\nblue", "grün"])

    export_task_to_triton(tiny_backbone, bundle, tmp_path)

    assert (tmp_path / "colour" / "labels.txt").read_text("utf-8") == "sky\\nblue\ngrün\n"
