"""Many callers, some of whom leave, little memory, tasks that are replaced meanwhile, and several
batches at a time: every single answer is looked at.

An answer says which image it was made of, whose tensors were fed, and whose head was applied, so
that no two can be mixed up unseen. The engine is a stand-in for a graph: under stress is all that
lies between the callers and it. A million answers:

    LSPT_TEST_ANSWERS=250000 pytest tests/runtime/test_stress.py
"""

import itertools
import os
import random
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from toys import prompts_graph, simple_bundle

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.feed import TaskTensors, create_feed
from lspt_serve.graph import BACK, PLACE, GraphSpec
from lspt_serve.runtime import Classifier, Precision, PromptStore, Watch, activate

Array = NDArray[np.float32]
NUM_TASKS, BATCH_SIZE, VERSIONS = 40, 8, 100
CALLERS, OUTSTANDING, LEAVE = 4, 50, 0.05  # LEAVE: share of images whose caller does not wait
ANSWERS = int(os.environ.get("LSPT_TEST_ANSWERS", "5000"))  # of each caller
NUMBERS = NUM_TASKS * VERSIONS  # one for each version of each task, and as many images


def to_logit(number: float) -> float:
    """0 to NUMBERS in [-4, 4], in steps of 0.002: fp32 tells them apart."""
    return 8 * number / NUMBERS - 4


def to_number(logit: float) -> float:
    return (logit + 4) * NUMBERS / 8


class Pairs:
    """An engine whose features are the image's own number and that of the row's task."""

    name = provider = "pairs"
    num_prompts = 16
    num_beside = num_batches = 3
    precision: Precision = "fp32"

    def __init__(self, graph: GraphSpec) -> None:
        self.graph = graph
        self.mixed = 0  # batches of several tasks
        self._asked = itertools.count()

    def num_wanted(self) -> int:
        return 1 + next(self._asked) % self.num_batches

    def features(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
        feed = create_feed(self.graph.inputs, tasks)
        prompts = feed["method.prompts"][:, 0, 0]
        whose = feed[BACK] // feed[PLACE].shape[1]
        self.mixed += len(prompts) > 1
        return np.stack([images[:, 0, 0, 0], prompts[whose]], axis=1)

    def attention(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
        raise NotImplementedError

    def prefetch(self, tasks: Sequence[TaskTensors]) -> None:
        pass

    def close(self) -> None:
        pass


def numbered(task: int, version: int) -> Bundle:
    """Prompt and head both hold the number of this version of the task."""
    logit = to_logit(task * VERSIONS + version)
    plain = simple_bundle(f"task-{task}", version=1)
    tensors = {
        "method.prompts": np.full((1, 1), logit, np.float32),
        "head.weight": np.array([[0, 0], [1, 0], [0, 1], [0, 0]], np.float32),
        "head.bias": np.array([0, 0, 0, logit], np.float32),
    }
    fields = plain.manifest.model_dump(exclude={"dtype", "tensors", "tensors_sha256", "labels"})
    return Bundle.create(tensors, labels=["none", "image", "task", "head"], **fields)


def number_of(bundle: Bundle) -> int:
    return round(to_number(float(bundle.tensors["method.prompts"][0, 0])))


def read(answer: Array) -> list[int]:
    """The numbers of image, task and head."""
    return [round(to_number(float(np.log(p / answer[0])))) for p in answer[1:]]


@pytest.fixture
def graph() -> GraphSpec:
    return prompts_graph(numbered(0, 0))


@pytest.fixture
def store(graph: GraphSpec, tmp_path: Path) -> PromptStore:
    """Half of its tensors do not stay in memory."""
    for task in range(NUM_TASKS):
        save_bundle(numbered(task, 0), tmp_path / f"task-{task}")
    size = sum(tensor.nbytes for tensor in numbered(0, 0).tensors.values())
    return PromptStore(tmp_path, graph, host_bytes=NUM_TASKS // 2 * size)


def call(classifier: Classifier, seed: int) -> tuple[int, int]:
    """Ask for random images by random tasks.

    Returns how many answers were as they have to be, and how many images were left in time.
    """
    rng = random.Random(seed)
    waiting: deque[tuple[int, int, Future[Array]]] = deque()
    right = left = 0
    for count in range(ANSWERS + OUTSTANDING):
        if count >= OUTSTANDING:
            image, task, answer = waiting.popleft()
            if answer.cancelled():
                left += 1
            else:
                right += read(activate(answer.result(timeout=60))) == [image, task, task]
        if count < ANSWERS:
            image = rng.randrange(NUMBERS)
            bundle = classifier.store[f"task-{rng.randrange(NUM_TASKS)}"]
            pixels = np.full((3, 1, 1), to_logit(image), np.float32)
            waiting.append((image, number_of(bundle), classifier.submit(pixels, bundle)))
            if rng.random() < LEAVE:
                waiting[-1][2].cancel()  # others have hardly waited long enough to be missed
    return right, left


def replace_tasks(folder: Path, stop: threading.Event) -> int:
    """One after the other, until told to stop; returns how often."""
    rng, done = random.Random(0), 0
    while not stop.wait(0.01):
        version = 1 + done // NUM_TASKS % (VERSIONS - 1)
        task = rng.randrange(NUM_TASKS)
        save_bundle(numbered(task, version), folder / f"task-{task}")
        done += 1
    return done


@pytest.mark.slow
def test_no_answer_is_mixed_up(graph: GraphSpec, store: PromptStore, tmp_path: Path) -> None:
    engine = Pairs(graph)
    classifier = Classifier(engine, store, max_batch_size=BATCH_SIZE)
    watch, stop = Watch(store, interval_s=0.05), threading.Event()
    try:
        with ThreadPoolExecutor(CALLERS + 1) as threads:
            replacing = threads.submit(replace_tasks, tmp_path, stop)
            callers = [threads.submit(call, classifier, seed) for seed in range(CALLERS)]
            wait(callers)
            stop.set()
            outcomes = [caller.result() for caller in callers]
            replaced = replacing.result()
    finally:
        watch.close()
        classifier.close()

    assert [right + left for right, left in outcomes] == [ANSWERS] * CALLERS
    assert all(left > LEAVE * ANSWERS / 10 for _, left in outcomes)
    assert replaced > 20  # each waits for the disk
    assert store.generation > 10
    assert engine.mixed > ANSWERS / BATCH_SIZE
