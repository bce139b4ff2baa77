import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import numpy as np
import pytest
from numpy.typing import NDArray
from toys import simple_bundle

from lspt_serve.bundle import Bundle
from lspt_serve.runtime.backlog import Backlog
from lspt_serve.runtime.batcher import Batcher


class Clock:
    """In place of time.monotonic."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("lspt_serve.runtime.backlog.time.monotonic", clock)
    return clock


def run(backlog: Backlog, clock: Clock, num_images: int, seconds: float, *, times: int = 1) -> None:
    for _ in range(times):
        with backlog.running(num_images):
            clock.now += seconds


@pytest.mark.parametrize(
    ("images_per_s", "capacity"), [(5.0, 50), (0.1, 16), (1000.0, 256), (0.0, 16)]
)
def test_at_first_it_is_what_was_measured(images_per_s: float, capacity: int) -> None:
    assert Backlog(images_per_s, least=16, most=256).capacity == capacity


def test_what_was_measured_wrongly_is_made_good(clock: Clock) -> None:
    """Other servers started beside it, say."""
    backlog = Backlog(2.0, least=1, most=256)
    run(backlog, clock, 2, 0.1, times=10)
    assert backlog.capacity == pytest.approx(10 * (2 + 20) / (1 + 1), rel=0.05)
    run(backlog, clock, 2, 0.1, times=290)
    assert backlog.capacity == pytest.approx(200, rel=0.05)


def test_an_engine_that_gets_slower_has_fewer_wait(clock: Clock) -> None:
    backlog = Backlog(20.0, least=16, most=256)
    run(backlog, clock, 2, 0.5, times=100)
    assert backlog.capacity == pytest.approx(40, rel=0.1)
    run(backlog, clock, 1, 60)
    assert backlog.capacity == 16


def test_batches_beside_one_another_count_together(clock: Clock) -> None:
    backlog = Backlog(0.0, least=1, most=1000)
    for _ in range(100):
        with ExitStack() as two:
            two.enter_context(backlog.running(3))
            two.enter_context(backlog.running(4))
            clock.now += 0.5
    assert backlog.capacity == pytest.approx(140, rel=0.05)


def test_time_without_a_batch_does_not_count(clock: Clock) -> None:
    backlog = Backlog(10.0, least=1, most=1000)
    for _ in range(100):
        clock.now += 3600
        run(backlog, clock, 5, 0.5)
    assert backlog.capacity == pytest.approx(100, rel=0.01)


def test_a_batch_that_fails_has_run_nothing(clock: Clock) -> None:
    backlog = Backlog(10.0, least=1, most=1000)
    for _ in range(100):
        with suppress(ArithmeticError), backlog.running(100):
            clock.now += 1.0
            raise ArithmeticError
    assert backlog.capacity == 1


@pytest.mark.parametrize(("num_waiting", "capacity"), [(0, 2), (1, 2), (2, 8)])
def test_a_queue_takes_more_once_a_batch_that_left_some_waiting_was_faster(
    num_waiting: int, capacity: int
) -> None:
    """Measured as 0.1 images a second, while they take no time to speak of."""
    began, go_on = threading.Event(), threading.Event()

    def run(images: NDArray[np.float32], jobs: Sequence[Bundle]) -> list[NDArray[np.float32]]:
        began.set()
        assert go_on.wait(10)
        return [*images[:, 0, 0]]

    batcher = Batcher[Bundle](run, max_batch_size=1, backlog=Backlog(0.1, least=2, most=8))
    image, job = np.zeros((3, 1, 1), np.float32), simple_bundle("a")
    assert batcher.capacity == 2
    answers = [batcher.submit(image, job)]
    assert began.wait(10)
    answers += [batcher.submit(image, job) for _ in range(num_waiting)]
    go_on.set()
    for answer in answers:
        answer.result(timeout=10)
    batcher.close()

    assert batcher.capacity == capacity
