import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toys import coloured, encoded, export_once, noise, random_bundle

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.errors import OverloadedError
from lspt_serve.export import create_model
from lspt_serve.feed import TaskTensors
from lspt_serve.graph import GraphSpec
from lspt_serve.models import Backbone
from lspt_serve.runtime import (
    Classifier,
    OnnxEngine,
    Precision,
    Prediction,
    PromptStore,
    activate,
    top_labels,
)
from lspt_serve.runtime.batch_size import Pace
from lspt_serve.schemas import Activation

LABELS = ["ant", "bee", "cat", "dog"]
Array = NDArray[np.float32]


class Echo:
    """An engine that gives the first pixels back as features and remembers what it was asked."""

    name = provider = "Echo"
    num_prompts = 16
    num_beside = num_batches = 1
    precision: Precision = "fp32"

    def __init__(self, graph: GraphSpec) -> None:
        self.graph = graph
        self.asked: list[tuple[int, ...]] = []
        self.fetched: list[TaskTensors] = []

    def num_wanted(self) -> int:
        return self.num_batches

    def features(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
        assert list(tasks) == [{}] * len(images)
        self.asked.append(images.shape)
        return images[:, 0, 0, : self.graph.num_features]

    def attention(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
        return images[:, 0, 1, :9]

    def prefetch(self, tasks: Sequence[TaskTensors]) -> None:
        self.fetched += tasks

    def close(self) -> None:
        pass


@pytest.fixture
def echo(tiny_backbone: Backbone, tmp_path: Path) -> Iterator[Classifier]:
    """A classifier whose logits are an image's first four pixels."""
    drawn = random_bundle(tiny_backbone, method="linear", labels=LABELS).manifest
    tensors = {"head.weight": np.eye(4, dtype=np.float32), "head.bias": np.zeros(4, np.float32)}
    fields = drawn.model_dump(exclude={"name", "tensors", "tensors_sha256"})
    save_bundle(Bundle.create(tensors, name="animals", **fields), tmp_path / "animals")
    graph = GraphSpec(
        backbone=drawn.backbone,
        method=drawn.method,
        pool=drawn.pool,
        preprocess=drawn.preprocess,
        num_features=4,
        inputs={},
        parity=[],
    )
    classifier = Classifier(Echo(graph), PromptStore(tmp_path, graph), max_batch_size=2)
    yield classifier
    classifier.close()


def classify(
    classifier: Classifier, images: Array, task: str, *, top_k: int
) -> list[list[Prediction]]:
    bundle = classifier.store[task]
    futures = [classifier.submit(image, bundle) for image in images]
    scores = [activate(future.result(timeout=5)) for future in futures]
    return [top_labels(each, bundle.labels, top_k) for each in scores]


def images_of(*logits: list[float]) -> Array:
    images = np.zeros((len(logits), 3, 32, 32), np.float32)
    images[:, 0, 0, :4] = logits
    return images


def test_scores_are_the_softmax_of_the_logits(echo: Classifier) -> None:
    (best,) = classify(echo, images_of([0.0, math.log(3), 0.0, math.log(5)]), "animals", top_k=4)

    assert [prediction.label for prediction in best] == ["dog", "bee", "ant", "cat"]
    assert [prediction.index for prediction in best] == [3, 1, 0, 2]
    assert [prediction.score for prediction in best] == pytest.approx([0.5, 0.3, 0.1, 0.1])


def test_head_has_a_bias(echo: Classifier) -> None:
    echo.store["animals"].tensors["head.bias"][2] = 10.0

    ((best,),) = classify(echo, images_of([1.0, 2.0, 3.0, 4.0]), "animals", top_k=1)

    assert best.label == "cat"


def test_every_image_gets_its_own_answer_in_order(echo: Classifier) -> None:
    rows = np.eye(4)[[2, 0, 3]].tolist()

    answers = classify(echo, images_of(*rows), "animals", top_k=1)

    assert [best.label for (best,) in answers] == ["cat", "ant", "dog"]


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (4, 4), (1000, 4)])
def test_top_k_labels_are_given_or_all_there_are(echo: Classifier, top_k: int, count: int) -> None:
    (best,) = classify(echo, images_of([1.0, 2.0, 3.0, 4.0]), "animals", top_k=top_k)

    assert [prediction.index for prediction in best] == [3, 2, 1, 0][:count]


def test_equal_scores_keep_the_order_of_the_labels(tmp_path: Path, echo: Classifier) -> None:
    manifest = echo.store["animals"].manifest
    fields = manifest.model_dump(exclude={"name", "labels", "tensors", "tensors_sha256"})
    tensors = {"head.weight": np.ones((99, 4), np.float32), "head.bias": np.ones(99, np.float32)}
    tensors["head.bias"][[7, 70]] = 2.0
    labels = [str(index) for index in range(99)]
    save_bundle(Bundle.create(tensors, name="many", labels=labels, **fields), tmp_path / "many")
    many = PromptStore(tmp_path, echo.engine.graph)["many"]

    answer = echo.submit(images_of([0.0] * 4)[0], many).result(timeout=5)

    best = top_labels(answer, many.labels, 99)

    rest = [index for index in range(99) if index not in {7, 70}]
    assert [prediction.index for prediction in best] == [7, 70, *rest]


@pytest.mark.parametrize(
    ("activation", "logits", "wanted"),
    [
        ("softmax", [1e4, 0, -1e4], [1, 0, 0]),
        ("softmax", [-1e4, -1e4, -1e4], [1 / 3, 1 / 3, 1 / 3]),
        ("softmax", [0, math.log(2), math.log(5)], [1 / 8, 2 / 8, 5 / 8]),
        ("sigmoid", [1e4, 0, -1e4], [1, 1 / 2, 0]),
        ("sigmoid", [math.log(3), -math.log(3), math.log(9)], [3 / 4, 1 / 4, 9 / 10]),
        ("none", [1e4, 0, -0.5], [1e4, 0, -0.5]),
    ],
)
def test_scores_are_as_the_activation_says_and_do_not_overflow(
    activation: Activation, logits: list[float], wanted: list[float]
) -> None:
    scores = activate(np.array(logits, np.float32), activation)

    np.testing.assert_allclose(scores, wanted, rtol=1e-6)


def test_labels_below_the_threshold_are_left_out(echo: Classifier) -> None:
    scores, bundle = np.array([0.1, 0.5, 0.3, 0.1], np.float32), echo.store["animals"]

    best = top_labels(scores, bundle.labels, 4, threshold=0.3)

    assert [prediction.index for prediction in best] == [1, 2]
    assert top_labels(scores, bundle.labels, 1, threshold=0.3) == best[:1]
    assert top_labels(scores, bundle.labels, 4, threshold=0.6) == []


def test_answer_that_is_not_finite_is_an_error_of_its_row_alone(echo: Classifier) -> None:
    bundle = echo.store["animals"]
    rows = [[0.0] * 4, [float("nan"), 0.0, 0.0, 0.0], [1.0] * 4]

    first, broken, last = (echo.submit(image, bundle) for image in images_of(*rows))

    with pytest.raises(ArithmeticError, match="animals: not finite"):
        broken.result(timeout=5)
    for answer in (first, last):
        np.testing.assert_allclose(activate(answer.result(timeout=5)), [0.25] * 4)


def test_attention_and_answers_of_one_batch_are_not_mixed_up(
    echo: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, bundle = noise(6), echo.store["animals"]
    run, go, sizes = echo.engine.features, threading.Event(), []

    def features(images: Array, tasks: Sequence[TaskTensors]) -> Array:
        assert go.wait(timeout=5)
        sizes.append(len(images))
        return run(images, tasks)

    monkeypatch.setattr(echo.engine, "features", features)
    logits = [echo.submit(image, bundle) for image in images[:4]]
    attention = [echo.attend(image, bundle) for image in images]
    logits += [echo.submit(image, bundle) for image in images[4:]]
    go.set()

    for image, row in zip(images, logits, strict=True):
        np.testing.assert_array_equal(row.result(timeout=5), image[0, 0, :4])
    for image, row in zip(images, attention, strict=True):
        np.testing.assert_array_equal(row.result(timeout=5), image[0, 1, :9])
    assert sum(sizes) == 6


def test_task_that_is_found_is_on_its_way_to_the_engine(echo: Classifier) -> None:
    bundle = echo.find("animals")

    assert bundle is echo.store["animals"]
    assert isinstance(echo.engine, Echo)
    assert [id(tensors) for tensors in echo.engine.fetched] == [id(bundle.method_tensors)]


def test_task_is_on_its_way_to_the_engine_while_its_image_is_decoded(echo: Classifier) -> None:
    bundle = echo.store["animals"]

    echo.decode(encoded(coloured("red", np.random.default_rng(0))), bundle)

    assert isinstance(echo.engine, Echo)
    assert [id(tensors) for tensors in echo.engine.fetched] == [id(bundle.method_tensors)]


def test_task_in_memory_is_held_while_there_is_room(echo: Classifier) -> None:
    assert echo.held("animals") is echo.store["animals"]
    assert echo.held("plants") is None

    echo.close()
    with pytest.raises(OverloadedError, match="the server is stopping"):
        echo.held("animals")


def test_task_whose_image_would_be_refused_is_neither_read_nor_fetched(
    echo: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(store: PromptStore, reference: str) -> Bundle:
        pytest.fail(f"{reference} was read")

    monkeypatch.setattr(PromptStore, "__getitem__", read)
    echo.close()

    with pytest.raises(OverloadedError, match="the server is stopping"):
        echo.find("animals")

    assert isinstance(echo.engine, Echo)
    assert echo.engine.fetched == []


@pytest.mark.parametrize(
    ("pace", "capacity", "window"),
    [
        (Pace(2, 1000.0), 256, 64),
        (Pace(2, 11.2), 112, 28),
        (Pace(2, 0.1), 16, 4),
        (Pace(32, 1.0), 128, 32),
    ],
)
def test_no_more_images_wait_than_the_engine_runs_in_ten_seconds(
    echo: Classifier,
    monkeypatch: pytest.MonkeyPatch,
    pace: Pace,
    capacity: int,
    window: int,
) -> None:
    monkeypatch.setattr("lspt_serve.runtime.classifier.measure_pace", lambda *_, limit: pace)
    run, go = echo.engine.features, threading.Event()
    monkeypatch.setattr(echo.engine, "features", lambda *batch: go.wait(30) and run(*batch))
    classifier, bundle = Classifier(echo.engine, echo.store), echo.store["animals"]
    (image,) = images_of([0.0, 0.0, 0.0, 0.0])
    waiting = [classifier.submit(image, bundle) for _ in range(capacity)]
    while not waiting[0].running():  # the first batch has left the queue then
        time.sleep(0.001)
    waiting += [classifier.submit(image, bundle) for row in waiting if row.running()]

    with pytest.raises(OverloadedError, match=f"{capacity} images wait already"):
        classifier.submit(image, bundle)

    assert classifier.window == window
    go.set()
    classifier.close()
    assert all(future.done() for future in waiting)


def test_batches_are_no_larger_than_what_was_measured_to_pay(echo: Classifier) -> None:
    classifier = Classifier(echo.engine, echo.store)
    try:
        assert classifier.max_batch_size in {1, 2, 4, 8, 16, 32}
    finally:
        classifier.close()


def test_no_more_batches_are_made_than_the_engine_wants(echo: Classifier) -> None:
    class Crowded(Echo):
        num_batches = 3
        running, most = 0, 0

        def num_wanted(self) -> int:
            return 1

        def features(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
            self.running += 1
            self.most = max(self.most, self.running)
            time.sleep(0.05)
            self.running -= 1
            return super().features(images, tasks)

    engine = Crowded(echo.engine.graph)
    classifier = Classifier(engine, echo.store, max_batch_size=1)
    try:
        classify(classifier, images_of(*[[1.0, 0.0, 0.0, 0.0]] * 4), "animals", top_k=1)
    finally:
        classifier.close()

    assert engine.most == 1


@pytest.fixture
def real(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Iterator[Callable[..., Classifier]]:
    """real(bundle, ...): a classifier of these tasks on a real graph and engine."""
    made: list[Classifier] = []

    def create(*bundles: Bundle) -> Classifier:
        for bundle in bundles:
            save_bundle(bundle, tmp_path / bundle.name)
        engine = OnnxEngine(export_once(tiny_backbone, tmp_path_factory), device="cpu")
        made.append(Classifier(engine, PromptStore(tmp_path, engine.graph), max_batch_size=4))
        return made[-1]

    yield create
    for classifier in made:
        classifier.close()


def test_float16_on_a_real_engine_answers_like_torch_on_the_rounded_tensors(
    tiny_backbone: Backbone, real: Callable[..., Classifier]
) -> None:
    exact = random_bundle(tiny_backbone, num_prompts=8)
    fields = exact.manifest.model_dump(exclude={"dtype", "tensors", "tensors_sha256"})
    classifier = real(Bundle.create(exact.tensors, dtype="float16", **fields))
    images, model = noise(5), create_model(tiny_backbone, exact)
    with torch.inference_mode():
        before = model(torch.from_numpy(images)).softmax(dim=-1).numpy()
        rounded = {k: torch.from_numpy(t).half().float() for k, t in exact.tensors.items()}
        model.load_task_tensors(rounded)
        wanted = model(torch.from_numpy(images)).softmax(dim=-1).numpy()

    futures = [classifier.submit(image, classifier.store["colour"]) for image in images]

    got = [activate(future.result(timeout=5)) for future in futures]
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)
    assert np.abs(before - wanted).max() > 2e-5


def test_tasks_in_one_batch_on_a_real_engine_answer_like_torch(
    tiny_backbone: Backbone, real: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [
        random_bundle(tiny_backbone, name="animals", labels=LABELS, num_prompts=2, seed=1),
        random_bundle(tiny_backbone, name="colour", num_prompts=6, seed=2),
    ]
    models = {bundle.name: create_model(tiny_backbone, bundle) for bundle in bundles}
    classifier, images = real(*bundles), noise(11)
    whose = [classifier.store[name] for name in random.Random(0).choices(list(models), k=11)]
    run, batches, go = classifier.engine.features, [], threading.Event()

    def features(images: Array, tasks: Sequence[TaskTensors]) -> Array:
        assert go.wait(timeout=5)  # while the first batch is held up, others gather
        batches.append(set(map(id, tasks)))
        return run(images, tasks)

    monkeypatch.setattr(classifier.engine, "features", features)

    futures = [
        classifier.submit(image, bundle) for image, bundle in zip(images, whose, strict=True)
    ]
    go.set()

    for image, bundle, future in zip(images, whose, futures, strict=True):
        with torch.inference_mode():
            (wanted,) = models[bundle.name](torch.from_numpy(image[None])).softmax(dim=-1)
        np.testing.assert_allclose(activate(future.result(timeout=5)), wanted, atol=1e-6, rtol=0)
    assert max(map(len, batches)) == 2
