"""What every engine has to do. What is special about one is in a file of its own."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toys import FP32, export_once, noise, random_bundle

from lspt_serve.bundle import Bundle
from lspt_serve.errors import GraphError
from lspt_serve.export import create_model
from lspt_serve.graph import GRAPH_FILE, SPEC_FILE, load_graph_spec
from lspt_serve.models import Backbone
from lspt_serve.runtime import Engine, OnnxEngine, OpenVINOEngine
from lspt_serve.runtime.torch import TorchEngine

Create = Callable[..., Engine]
ENGINES: dict[str, Create] = {
    "onnxruntime": partial(OnnxEngine, device="cpu"),
    "openvino": OpenVINOEngine,
    "torch": partial(TorchEngine, device="cpu"),
}
READ_THE_GRAPH = ("onnxruntime", "openvino")  # torch has the model itself


@pytest.fixture(params=ENGINES)
def create(request: pytest.FixtureRequest) -> Create:
    return ENGINES[request.param]


@pytest.fixture(params=READ_THE_GRAPH)
def read(request: pytest.FixtureRequest) -> Create:
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def graph(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tiny_backbone, tmp_path_factory)


@pytest.fixture(scope="module")
def bundle(tiny_backbone: Backbone) -> Bundle:
    return random_bundle(tiny_backbone, num_prompts=3)


def by_torch(backbone: Backbone, bundle: Bundle, batch_size: int) -> NDArray[np.float32]:
    with torch.inference_mode():
        features = create_model(backbone, bundle).forward_features(
            torch.from_numpy(noise(batch_size))
        )
    return features.numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("num_threads", [0, 1])
def test_features_are_those_of_torch(
    create: Create,
    tiny_backbone: Backbone,
    graph: Path,
    bundle: Bundle,
    batch_size: int,
    num_threads: int,
) -> None:
    engine = create(graph, num_threads=num_threads)

    features = engine.features(noise(batch_size), [bundle.method_tensors] * batch_size)

    wanted = by_torch(tiny_backbone, bundle, batch_size)
    assert features.dtype == np.float32
    assert np.abs(features - wanted).max() <= FP32 * np.abs(wanted).max()


def test_tasks_share_a_batch_and_none_is_left_over_for_the_next(
    create: Create, tiny_backbone: Backbone, graph: Path, bundle: Bundle
) -> None:
    engine = create(graph)
    wider = random_bundle(tiny_backbone, num_prompts=5, seed=1)
    for mix in ([wider, bundle], [bundle, wider], [bundle, bundle]):
        features = engine.features(noise(2), [task.method_tensors for task in mix])

        for row, task in enumerate(mix):
            wanted = by_torch(tiny_backbone, task, 2)[row]
            assert np.abs(features[row] - wanted).max() <= FP32 * np.abs(wanted).max()


@pytest.fixture(scope="module", params=READ_THE_GRAPH)
def engine(request: pytest.FixtureRequest, graph: Path) -> Iterator[Engine]:
    """Torch has mixes at random in a file of its own, with few slots."""
    engine = ENGINES[request.param](graph)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tasks(tiny_backbone: Backbone) -> list[Bundle]:
    """Of as many prompts as most tasks have (16), fewer and more; two are alike but for values."""
    return [
        random_bundle(tiny_backbone, num_prompts=count, seed=seed)
        for seed, count in enumerate((3, 16, 16, 1, 20))
    ]


@pytest.fixture(scope="module")
def alone(tiny_backbone: Backbone, tasks: Sequence[Bundle]) -> list[NDArray[np.float32]]:
    """Of each task alone, in torch: 8 x F."""
    return [by_torch(tiny_backbone, task, 8) for task in tasks]


@given(numbers=st.lists(st.integers(0, 4), min_size=1, max_size=8))
@settings(max_examples=40)
def test_row_of_any_mix_is_answered_as_its_task_alone(
    engine: Engine,
    tasks: Sequence[Bundle],
    alone: Sequence[NDArray[np.float32]],
    numbers: Sequence[int],
) -> None:
    features = engine.features(noise(8)[: len(numbers)], [tasks[n].method_tensors for n in numbers])

    for row, number in enumerate(numbers):
        wanted = alone[number][row]
        assert np.abs(features[row] - wanted).max() <= FP32 * np.abs(wanted).max()


def test_answer_stays_when_the_engine_runs_again(
    create: Create, graph: Path, bundle: Bundle
) -> None:
    engine = create(graph)
    tasks = [bundle.method_tensors] * 2

    features = engine.features(noise(2), tasks)
    before = features.copy()
    engine.features(noise(2, seed=2), tasks)

    np.testing.assert_array_equal(features, before)


@pytest.mark.parametrize("more_prompts", [0, 2])
def test_a_batch_beside_others_is_answered_as_one_that_is_alone(
    read: Create,
    tiny_backbone: Backbone,
    graph: Path,
    monkeypatch: pytest.MonkeyPatch,
    more_prompts: int,
) -> None:
    """And not by what runs one that is alone, which is taken away."""
    engine = read(graph, num_threads=2)
    assert isinstance(engine, OnnxEngine | OpenVINOEngine)
    counts = [engine.num_prompts, engine.num_prompts + more_prompts]
    bundles = [
        random_bundle(tiny_backbone, num_prompts=count, seed=seed)
        for seed, count in enumerate(counts)
    ]
    tasks = [bundle.method_tensors for bundle in bundles]
    alone = engine.features(noise(2), tasks)
    if isinstance(engine, OnnxEngine):
        monkeypatch.setattr(engine, "_few", None)
    else:
        for model in ("_usual", "_any"):
            compiled = getattr(engine, model)
            if compiled.beside is not compiled.few:
                monkeypatch.setattr(engine, model, compiled._replace(few=None))

    with engine._company.join():
        beside = engine.features(noise(2), tasks)

    assert np.abs(beside - alone).max() <= FP32 * np.abs(alone).max()


@pytest.mark.parametrize(("num_threads", "num_batches"), [(1, 1), (2, 3)])
def test_a_batch_is_made_ready_while_every_core_runs_one(
    read: Create, graph: Path, num_threads: int, num_batches: int
) -> None:
    engine = read(graph, num_threads=num_threads)

    if isinstance(engine, OpenVINOEngine) and num_threads > 1:  # as many as it thinks best here
        assert engine.num_batches in (1, num_batches)
    else:
        assert engine.num_batches == num_batches


@pytest.mark.parametrize("num_callers", [2, 5])
def test_batches_at_a_time_do_not_mix(
    read: Create, tiny_backbone: Backbone, graph: Path, num_callers: int
) -> None:
    """More callers than batches that it may be given, too: some wait."""
    engine = read(graph, num_threads=2)
    cases = [
        (noise(count + 1, seed=count), [random_bundle(tiny_backbone, seed=count).method_tensors])
        for count in range(num_callers)
    ]
    wanted = [engine.features(images, tasks * len(images)) for images, tasks in cases]
    errors: list[float] = []

    def call(number: int) -> None:
        images, tasks = cases[number]
        for _ in range(20):
            got = engine.features(images, tasks * len(images))
            errors.append(np.abs(got - wanted[number]).max() / np.abs(wanted[number]).max())

    with ThreadPoolExecutor(num_callers) as pool:
        list(pool.map(call, range(num_callers)))

    assert len(errors) == 20 * num_callers
    assert max(errors) <= FP32


def test_engine_knows_its_graph(create: Create, graph: Path) -> None:
    assert create(graph).graph == load_graph_spec(graph)


def test_folder_without_a_graph_is_refused_with_the_command_that_makes_one(
    create: Create, tmp_path: Path
) -> None:
    with pytest.raises(GraphError, match=r"graph\.json: cannot be read: .*lspt export --out"):
        create(tmp_path)


def test_description_without_its_graph_is_refused(
    create: Create, graph: Path, tmp_path: Path
) -> None:
    shutil.copy(graph / SPEC_FILE, tmp_path)

    with pytest.raises(GraphError, match=r"graph\.onnx: no such file"):
        create(tmp_path)


@pytest.mark.parametrize("data", [b"", b"no graph at all", b"\x08\x0a\xff\xff"])
def test_broken_graph_is_refused_in_one_line(
    read: Create, graph: Path, tmp_path: Path, data: bytes
) -> None:
    shutil.copytree(graph, tmp_path, dirs_exist_ok=True)
    (tmp_path / GRAPH_FILE).write_bytes(data)

    with pytest.raises(GraphError, match="cannot load it") as caught:
        read(tmp_path)

    assert "\n" not in str(caught.value)


def test_truncated_graph_is_refused(read: Create, graph: Path, tmp_path: Path) -> None:
    shutil.copytree(graph, tmp_path, dirs_exist_ok=True)
    data = (graph / GRAPH_FILE).read_bytes()
    (tmp_path / GRAPH_FILE).write_bytes(data[: len(data) // 2])

    with pytest.raises(GraphError, match="cannot load it"):
        read(tmp_path)
