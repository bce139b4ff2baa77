import errno
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from toys import coloured, encoded, export_once, prompts_graph, random_bundle, simple_bundle

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.errors import DeadlineError, OverloadedError, UndecodableError, UnknownTaskError
from lspt_serve.manifest import Manifest
from lspt_serve.models import Backbone
from lspt_serve.runtime import Classifier, Events, OnnxEngine, PromptStore
from lspt_serve.runtime.batcher import Batcher

PNG = encoded(coloured("red", np.random.default_rng(0)))
Array = NDArray[np.float32]


class Told(Events):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.answers: list[tuple[str | None, type[BaseException] | None]] = []
        self.queue: list[int] = []
        self.waits: list[tuple[str, float]] = []
        self.batches: list[list[str]] = []
        self.loads: list[str] = []
        self.present: list[str] = []
        self.evictions: list[str] = []
        self.in_memory = self.in_folder = (-1, -1)

    def answered(self, task: Manifest | None, error: BaseException | None) -> None:
        self.answers.append((task.name if task else None, type(error) if error else None))

    def waiting(self, images: int) -> None:
        self.queue.append(images)

    def waited(self, task: Manifest, seconds: float) -> None:
        self.waits.append((task.name, seconds))

    def ran(self, tasks: Sequence[Manifest], seconds: float) -> None:
        assert seconds >= 0
        self.batches.append([task.name for task in tasks])

    def loaded(self, task: Manifest, seconds: float) -> None:
        assert seconds >= 0
        self.loads.append(task.name)

    def came(self, task: Manifest) -> None:
        self.present.append(task.name)

    def went(self, task: Manifest, *, evicted: bool) -> None:
        self.present.remove(task.name)
        self.evictions += [task.name] * evicted

    def held(self, bundles: int, num_bytes: int) -> None:
        self.in_memory = (bundles, num_bytes)

    def served(self, tasks: int, refused: int) -> None:
        self.in_folder = (tasks, refused)


def size(bundle: Bundle) -> int:
    return sum(tensor.nbytes for tensor in bundle.tensors.values())


def test_a_store_tells_what_it_read_holds_and_serves(tmp_path: Path) -> None:
    bundles = [simple_bundle(name) for name in ("a", "b", "c")]
    for bundle in bundles:
        save_bundle(bundle, tmp_path / bundle.name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_text("{")
    told = Told()

    store = PromptStore(
        tmp_path, prompts_graph(bundles[0]), host_bytes=2 * size(bundles[0]), events=told
    )

    assert told.in_folder == (3, 1)
    assert told.in_memory == (2, 2 * size(bundles[0]))
    assert (told.loads, told.evictions, told.present) == (["a", "b", "c"], ["a"], ["b", "c"])
    for _ in range(2):
        assert store["a"].name == "a"  # another one has to go for it, once
        assert told.loads == ["a", "b", "c", "a"]
        assert (told.evictions, told.present) == (["a", "b"], ["c", "a"])


def test_a_store_tells_of_what_went(tmp_path: Path) -> None:
    bundle = simple_bundle("a")
    save_bundle(bundle, tmp_path / "a")
    told = Told()
    store = PromptStore(tmp_path, prompts_graph(bundle), events=told)

    for file in (tmp_path / "a").iterdir():
        file.unlink()
    store.refresh()

    assert (told.in_folder, told.in_memory) == ((0, 0), (0, 0))
    assert (told.loads, told.present, told.evictions) == (["a"], [], [])


def test_a_batcher_tells_of_every_batch_and_wait() -> None:
    def run(images: Array, bundles: Sequence[Bundle]) -> list[Array | Exception]:
        if len(images) > 1:
            raise RuntimeError("only one at a time")
        return [np.zeros(2, np.float32)]

    told, image = Told(), np.zeros((3, 1, 1), np.float32)
    batcher = Batcher(run, max_batch_size=2, max_delay_s=5, events=told)
    rows = [batcher.submit(image, simple_bundle(name)) for name in "ab"]
    assert [len(row.result(timeout=5)) for row in rows] == [2, 2]
    batcher.close()

    assert told.queue == [1, 2, 0]
    assert told.batches == [["a", "b"], ["a"], ["b"]]  # the halves of one that failed, too
    assert [name for name, _ in told.waits] == ["a", "b"]
    assert all(0 <= wait < 5 for _, wait in told.waits)


@pytest.mark.parametrize("method", ["waiting", "waited", "ran"])
def test_a_batcher_outlives_who_counts(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told, image, failing = Told(), np.zeros((3, 1, 1), np.float32), threading.Event()
    count = getattr(told, method)

    def fail(*given: object) -> None:
        if failing.is_set() and threading.current_thread().name == "batcher":
            raise OSError(errno.EMFILE, "Too many open files")
        count(*given)

    monkeypatch.setattr(told, method, fail)
    batcher: Batcher[Bundle] = Batcher(
        lambda images, _: [*images[:, 0, 0]], max_batch_size=2, events=told
    )

    failing.set()
    with pytest.raises(OSError, match="Too many open files"):
        batcher.submit(image, simple_bundle("a")).result(timeout=5)
    failing.clear()
    assert len(batcher.submit(image, simple_bundle("a")).result(timeout=5)) == 1
    batcher.close()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def classifier(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, told: Told
) -> Classifier:
    save_bundle(random_bundle(tiny_backbone, name="colour"), tmp_path / "colour")
    engine = OnnxEngine(export_once(tiny_backbone, tmp_path_factory), device="cpu")
    return Classifier(engine, PromptStore(tmp_path, engine.graph), max_batch_size=2, events=told)


def test_a_classifier_tells_of_every_answer_and_refusal(classifier: Classifier, told: Told) -> None:
    bundle = classifier.find("colour")
    pixels = classifier.decode(PNG, bundle)
    classifier.submit(pixels, bundle).result(timeout=10)
    with pytest.raises(UnknownTaskError):
        classifier.find("color")
    with pytest.raises(UndecodableError), classifier.telling(bundle.manifest):
        classifier.decode(PNG[:60], bundle)
    with pytest.raises(DeadlineError):
        classifier.submit(pixels, bundle, deadline=0).result(timeout=10)
    classifier.close()
    with pytest.raises(OverloadedError):
        classifier.find("colour")
    with pytest.raises(OverloadedError):
        classifier.submit(pixels, bundle)

    assert told.answers == [
        ("colour", None),
        (None, UnknownTaskError),
        ("colour", UndecodableError),
        ("colour", DeadlineError),
        ("colour", OverloadedError),
        ("colour", OverloadedError),
    ]
