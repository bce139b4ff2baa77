import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from toys import corrupt, export_once

from lspt_serve.errors import GraphError
from lspt_serve.feed import TaskTensors
from lspt_serve.graph import (
    FEATURES,
    GRAPH_FILE,
    IMAGES,
    REFERENCE_FILE,
    GraphSpec,
    load_graph_spec,
)
from lspt_serve.models import Backbone
from lspt_serve.reference import Reference, reference_images, row_errors
from lspt_serve.runtime import OnnxEngine, OpenVINOEngine, Precision
from lspt_serve.runtime.company import Company
from lspt_serve.runtime.gate import check_engine, top1_agreement

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def graph(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tiny_backbone, tmp_path_factory)


class OffBy:
    """An engine that knows the reference's answers, and is off by a share of one of its rows."""

    name, provider, num_prompts = "off", "nowhere", 16
    num_beside = num_batches = 1

    def __init__(
        self, graph: GraphSpec, wanted: Reference, *, share: float, row: int, precision: Precision
    ) -> None:
        self.graph, self.precision, answers = graph, precision, wanted.features
        assert wanted.attention is not None
        self.attended = wanted.attention.copy()
        self._images = reference_images(len(answers), graph.preprocess.img_size)
        self._answers = answers.copy()
        step = np.random.default_rng(0).standard_normal(answers.shape[1:], np.float32)
        length = np.linalg.norm(answers[row])
        self._answers[row] += share * length * step / np.linalg.norm(step)

    def num_wanted(self) -> int:
        return self.num_batches

    def features(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
        same = (images[:, None] == self._images[None]).all(axis=(2, 3, 4))
        answers: Array = self._answers[same.argmax(axis=1)]
        return answers

    def attention(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
        return self.attended

    def prefetch(self, tasks: Sequence[TaskTensors]) -> None:
        pass

    def close(self) -> None:
        pass


def test_onnx_runtime_passes(graph: Path) -> None:
    parity = check_engine(OnnxEngine(graph, device="cpu"), Reference.load(graph))

    assert parity.max_error < 1e-5
    assert parity.top1_agreement > 0.999


@pytest.mark.parametrize(
    ("share", "precision", "passes"),
    [
        (9e-4, "fp32", True),
        (1.1e-3, "fp32", False),
        (9e-3, "fp16", True),
        (0.011, "fp16", False),
        (0.045, "bf16", True),
        (0.055, "bf16", False),
        (0.28, "int8", True),
        (0.32, "int8", False),
    ],
)
@pytest.mark.parametrize("row", [0, 5])
def test_one_row_that_is_off_by_too_much_is_enough(
    graph: Path, share: float, precision: Precision, passes: bool, row: int
) -> None:
    reference = Reference.load(graph)
    engine = OffBy(load_graph_spec(graph), reference, share=share, row=row, precision=precision)

    if passes:
        assert check_engine(engine, reference).max_error == pytest.approx(share, rel=1e-3)
    else:
        with pytest.raises(GraphError, match=f"off in {precision} does not serve here: it differs"):
            check_engine(engine, reference)


def test_answers_that_are_not_finite_do_not_pass(graph: Path) -> None:
    reference = Reference.load(graph)
    engine = OffBy(load_graph_spec(graph), reference, share=np.nan, row=0, precision="bf16")

    with pytest.raises(GraphError, match="does not serve here"):
        check_engine(engine, reference)


@pytest.mark.parametrize(
    ("factor", "precision", "passes"),
    [
        (1.003, "fp32", True),
        (1.005, "fp32", False),
        (1.19, "bf16", True),
        (1.21, "bf16", False),
        (0, "bf16", False),
        (np.nan, "bf16", False),
    ],
)
def test_attention_that_is_off_does_not_pass(
    graph: Path, factor: float, precision: Precision, passes: bool
) -> None:
    reference = Reference.load(graph)
    engine = OffBy(load_graph_spec(graph), reference, share=0, row=0, precision=precision)
    engine.attended[-1] *= np.float32(factor)

    if passes:
        check_engine(engine, reference)
    else:
        with pytest.raises(GraphError, match=f"off in {precision} does .*its attention differs"):
            check_engine(engine, reference)


@pytest.mark.parametrize("batch_size", [1, 4, 8, 32])
def test_batches_of_one_size_that_are_not_finite_do_not_pass(graph: Path, batch_size: int) -> None:
    reference = Reference.load(graph)
    engine = OffBy(load_graph_spec(graph), reference, share=0, row=0, precision="fp32")
    right = engine.features

    def mostly_right(images: Array, tasks: Sequence[TaskTensors]) -> Array:
        answers = right(images, tasks)
        return answers * np.float32(np.nan) if len(images) == batch_size else answers

    engine.features = mostly_right  # type: ignore[method-assign]

    with pytest.raises(GraphError, match="it differs from torch by nan of a row"):
        check_engine(engine, reference)


def test_batches_that_take_too_long_to_be_made_are_not_tried(graph: Path) -> None:
    reference = Reference.load(graph)
    engine = OffBy(load_graph_spec(graph), reference, share=0, row=0, precision="fp32")
    right, sizes = engine.features, list[int]()

    def slow(images: Array, tasks: Sequence[TaskTensors]) -> Array:
        sizes.append(len(images))
        time.sleep(0.02 * len(images))  # 0.64 s of 32, and none is larger than one of 0.25 doubled
        return right(images, tasks)

    engine.features = slow  # type: ignore[method-assign]

    check_engine(engine, reference)

    assert max(sizes) == len(reference.features) == 8


def test_batches_that_are_wrong_beside_others_alone_do_not_pass(graph: Path) -> None:
    reference = Reference.load(graph)
    engine = OffBy(load_graph_spec(graph), reference, share=0, row=0, precision="fp32")
    right, company, together = engine.features, Company(3), threading.Barrier(3)

    def mostly_right(images: Array, tasks: Sequence[TaskTensors]) -> Array:
        with company.join() as few:
            if len(images) == len(reference.features):
                together.wait(10)
            return right(images, tasks) * np.float32(1 if few else 1.01)

    engine.num_beside = engine.num_batches = 3
    engine.features = mostly_right  # type: ignore[method-assign]

    with pytest.raises(GraphError, match=r"it differs from torch by 1\.0e-02 of a row"):
        check_engine(engine, reference)


@pytest.mark.parametrize("model", ["_usual", "_any"])
def test_what_openvino_runs_beside_others_is_looked_at(graph: Path, model: str) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    engine, broken = OpenVINOEngine(graph, num_threads=2), SimpleQueue[Any]()
    if engine.num_beside == 1:
        pytest.skip("OpenVINO runs one batch at a time here")

    class Zeros:
        def infer(self, feed: Any, **_: Any) -> dict[str, Array]:
            return {FEATURES: np.zeros((len(feed[IMAGES]), engine.graph.num_features), np.float32)}

    class Slow:
        """So that the other batch comes while this one runs, on a busy machine too."""

        def __init__(self, request: Any) -> None:
            self.request = request

        def infer(self, feed: Any, **options: Any) -> Any:
            time.sleep(0.2)
            return self.request.infer(feed, **options)

    compiled, slow = getattr(engine, model), SimpleQueue[Any]()
    while not compiled.few.empty():
        slow.put(Slow(compiled.few.get()))
    for _ in range(engine.num_beside):
        broken.put(Zeros())
    setattr(engine, model, compiled._replace(few=slow, beside=broken))

    with pytest.raises(GraphError, match=r"it differs from torch by 1\.0e\+00 of a row"):
        check_engine(engine, Reference.load(graph))


@pytest.mark.parametrize("task", [0, 1])
def test_batch_of_one_task_alone_that_is_wrong_does_not_pass(graph: Path, task: int) -> None:
    reference = Reference.load(graph)
    engine = OffBy(load_graph_spec(graph), reference, share=0, row=0, precision="fp32")
    right = engine.features

    def mostly_right(images: Array, tasks: Sequence[TaskTensors]) -> Array:
        alone = len(tasks) > 1 and all(each is reference.tasks[task] for each in tasks)
        return right(images, tasks) * np.float32(1.01 if alone else 1)

    engine.features = mostly_right  # type: ignore[method-assign]

    with pytest.raises(GraphError, match=r"it differs from torch by 1\.0e-02 of a row"):
        check_engine(engine, reference)


def test_graph_that_was_changed_after_its_export_does_not_pass(graph: Path, tmp_path: Path) -> None:
    for file in graph.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    corrupt(tmp_path / GRAPH_FILE)

    with pytest.raises(GraphError, match="onnxruntime in fp32 does not serve here"):
        check_engine(OnnxEngine(tmp_path, device="cpu"), Reference.load(tmp_path))


def test_error_of_a_row_is_relative_to_its_length() -> None:
    wanted = np.array([[3, 4], [0, 10]], np.float32)
    got = np.array([[3, 4.5], [0.6, 10.8]], np.float32)

    np.testing.assert_allclose(row_errors(got, wanted), [0.1, 0.1], rtol=1e-6)


def test_agreement_is_all_for_equal_features_and_chance_for_unrelated_ones() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 50, 20)).astype(np.float32)

    assert top1_agreement(first, first) == 1
    assert top1_agreement(second, first) == pytest.approx(0.1, abs=0.05)


def test_a_single_row_is_compared_as_any_other() -> None:
    row, other = np.random.default_rng(0).standard_normal((2, 1, 192)).astype(np.float32)

    assert top1_agreement(row * np.float32(1 + 1e-6), row) == 1
    assert top1_agreement(other, row) < 0.5


def test_reference_keeps_what_it_was_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tasks = [{"method.prompts": rng.standard_normal((n, 4), np.float32)} for n in (2, 3)]
    whose, features = np.array([0, 1, 0]), rng.standard_normal((3, 4), np.float32)

    Reference(tasks, whose, features).save(tmp_path)
    loaded = Reference.load(tmp_path)

    np.testing.assert_array_equal(loaded.whose, whose)
    np.testing.assert_array_equal(loaded.features, features)
    for got, wanted in zip(loaded.tasks, tasks, strict=True):
        assert got.keys() == wanted.keys()
        np.testing.assert_array_equal(got["method.prompts"], wanted["method.prompts"])


def test_reference_keeps_images_of_its_own(tmp_path: Path) -> None:
    own = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)

    Reference([{}], np.zeros(2, np.int64), np.ones((2, 4), np.float32), own).save(tmp_path)

    loaded = Reference.load(tmp_path)
    np.testing.assert_array_equal(loaded.images(8), own)
    assert loaded.rows == [{}, {}]


@pytest.mark.parametrize("data", [None, b"", b"no tensors"])
def test_graph_without_a_reference_is_to_be_exported_again(
    tmp_path: Path, data: bytes | None
) -> None:
    if data is not None:
        (tmp_path / REFERENCE_FILE).write_bytes(data)

    with pytest.raises(
        GraphError, match=r"reference\.safetensors: cannot be read: .*; export the graph again"
    ):
        Reference.load(tmp_path)


@pytest.mark.parametrize("key", ["prompts", "one/prompts", "7/prompts"])
def test_reference_with_a_tensor_of_no_task_is_broken(tmp_path: Path, key: str) -> None:
    Reference([{}], np.zeros(2, np.int64), np.ones((2, 4), np.float32)).save(tmp_path)
    tensors = load_file(tmp_path / REFERENCE_FILE)
    save_file(tensors | {key: np.ones(1, np.float32)}, tmp_path / REFERENCE_FILE)

    with pytest.raises(GraphError, match=r"reference\.safetensors: cannot be read: "):
        Reference.load(tmp_path)


def test_reference_images_are_smooth_and_of_unit_variance() -> None:
    images = reference_images(4, 32)

    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images.std(axis=(1, 2, 3)), 1, rtol=1e-5)
    neighbours = np.corrcoef(images[..., 1:].ravel(), images[..., :-1].ravel())[0, 1]
    assert neighbours > 0.6  # of white noise 0
