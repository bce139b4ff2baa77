import asyncio
import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from queue import Empty, SimpleQueue

import numpy as np
import pytest
from numpy.typing import NDArray
from toys import simple_bundle

from lspt_serve.bundle import Bundle
from lspt_serve.errors import DeadlineError, OverloadedError, UnavailableError
from lspt_serve.runtime.batcher import Batcher

Array = NDArray[np.float32]
TASKS = {
    name: simple_bundle(name, number=number)
    for number, name in enumerate(("a", "b", "flood", "trickle"))
}


class Model:
    """Answers an image with its first number and that of its bundle, once `go` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.go.set()
        self.started = threading.Event()

    def __call__(self, images: Array, bundles: Sequence[Bundle]) -> Sequence[Array | Exception]:
        self.started.set()
        assert self.go.wait(timeout=10)
        self.batches.append([bundle.name for bundle in bundles])
        if (images == 13).any():
            raise RuntimeError("the engine broke")
        return [
            ArithmeticError("not finite")
            if image[0, 0, 0] == 7
            else np.array([image[0, 0, 0], bundle.tensors["method.prompts"][0, 0]])
            for image, bundle in zip(images, bundles, strict=True)
        ]


def image_of(number: float) -> Array:
    return np.full((3, 1, 1), number, np.float32)


@contextmanager
def running(
    model: Model, *, max_batch_size: int = 4, **settings: float
) -> Iterator[Batcher[Bundle]]:
    batcher = Batcher(model, max_batch_size=max_batch_size, **settings)  # type: ignore[arg-type]
    try:
        yield batcher
    finally:
        model.go.set()
        batcher.close()


@contextmanager
def busy(model: Model, batcher: Batcher[Bundle]) -> Iterator[None]:
    """While a first batch is held up, others gather."""
    model.go.clear()
    first = batcher.submit(image_of(0), TASKS["a"])
    assert model.started.wait(timeout=5)
    yield
    model.go.set()
    first.result(timeout=5)


def results(futures: Sequence[Future[Array]]) -> list[float]:
    return [float(future.result(timeout=5)[0]) for future in futures]


def test_every_caller_gets_the_answer_to_its_own_image() -> None:
    with running(Model()) as batcher:
        futures = [batcher.submit(image_of(n), TASKS["ab"[n % 2]]) for n in (1, 2, 3, 4, 5, 6)]

        assert results(futures) == [1, 2, 3, 4, 5, 6]
        assert [float(future.result()[1]) for future in futures] == [1, 0, 1, 0, 1, 0]


def test_lone_image_does_not_wait_for_others() -> None:
    model = Model()
    with running(model) as batcher:
        assert results([batcher.submit(image_of(1), TASKS["a"])]) == [1]
    assert model.batches == [["a"]]


def test_images_that_come_while_a_batch_runs_share_the_next_of_any_tasks() -> None:
    model = Model()
    with running(model) as batcher:
        with busy(model, batcher):
            futures = [batcher.submit(image_of(n), TASKS[t]) for n, t in enumerate("ababab", 1)]
        assert results(futures) == [1, 2, 3, 4, 5, 6]
    assert [len(batch) for batch in model.batches] == [1, 4, 2]


def test_batch_waits_for_more_rows_up_to_the_delay() -> None:
    model = Model()
    with running(model, max_delay_s=0.3) as batcher:
        first = batcher.submit(image_of(1), TASKS["a"])
        time.sleep(0.05)
        second = batcher.submit(image_of(2), TASKS["b"])
        assert results([first, second]) == [1, 2]
    assert model.batches == [["a", "b"]]


def test_row_that_waited_for_a_batch_does_not_wait_for_the_delay_again() -> None:
    model = Model()
    with running(model, max_delay_s=0.2) as batcher:
        with busy(model, batcher):
            row = batcher.submit(image_of(1), TASKS["a"])
            time.sleep(0.2)
        started = time.monotonic()
        assert results([row]) == [1]
        assert time.monotonic() - started < 0.15


@pytest.mark.parametrize("size", [0, -1])
def test_batch_of_no_rows_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="max_batch_size must be at least 1"):
        Batcher(Model(), max_batch_size=size)


def test_full_batch_does_not_wait_for_the_delay() -> None:
    with running(Model(), max_delay_s=60) as batcher:
        assert results([batcher.submit(image_of(n), TASKS["a"]) for n in range(4)]) == [0, 1, 2, 3]


def test_flood_of_ten_to_one_does_not_starve_the_other_task() -> None:
    model = Model()
    with running(model, capacity=100) as batcher:
        with busy(model, batcher):
            flood = [batcher.submit(image_of(n), TASKS["flood"]) for n in range(20, 80)]
            trickle = [batcher.submit(image_of(n), TASKS["trickle"]) for n in range(6)]
        wait(flood + trickle, timeout=5)
        assert results(trickle) == [0, 1, 2, 3, 4, 5]
    assert all(Counter(batch)["trickle"] == 2 for batch in model.batches[1:4])


def test_full_queue_refuses_the_flooding_task_and_takes_the_other() -> None:
    model = Model()
    with running(model, capacity=5) as batcher:
        with busy(model, batcher):
            flood = [batcher.submit(image_of(n), TASKS["flood"]) for n in range(5)]
            with pytest.raises(OverloadedError, match="5 images wait already"):
                batcher.submit(image_of(9), TASKS["flood"])
            other = batcher.submit(image_of(10), TASKS["trickle"])
        assert results([other, *flood[:4]]) == [10, 0, 1, 2, 3]
        with pytest.raises(OverloadedError, match="5 images wait already"):
            flood[4].result(timeout=5)


def test_row_that_is_being_made_has_its_place() -> None:
    model = Model()
    with running(model, capacity=2) as batcher:
        with busy(model, batcher):
            with batcher.place("a"), batcher.place("b"):
                with pytest.raises(OverloadedError, match="2 images wait already"):
                    batcher.check_room("a")
                with pytest.raises(OverloadedError), batcher.place("c"):
                    pytest.fail("there is no room")
                rows = [batcher.submit(image_of(1), TASKS["a"])]
            batcher.check_room("b")  # the other one was given up
            with batcher.place("b"):
                rows.append(batcher.submit(image_of(2), TASKS["b"]))
        assert results(rows) == [1, 2]


def test_row_past_its_deadline_is_not_run() -> None:
    model = Model()
    with running(model) as batcher:
        with busy(model, batcher):
            late = batcher.submit(image_of(1), TASKS["b"], deadline=time.monotonic() - 1)
            in_time = batcher.submit(image_of(2), TASKS["a"], deadline=time.monotonic() + 60)
        assert results([in_time]) == [2]
        with pytest.raises(DeadlineError):
            late.result(timeout=5)
    assert model.batches == [["a"], ["a"]]


def test_row_whose_caller_left_is_not_run() -> None:
    model = Model()
    with running(model) as batcher:
        with busy(model, batcher):
            gone = batcher.submit(image_of(1), TASKS["b"])
            assert gone.cancel()
            stays = batcher.submit(image_of(2), TASKS["a"])
        assert results([stays]) == [2]
        with pytest.raises(CancelledError):
            gone.result(timeout=5)
    assert model.batches == [["a"], ["a"]]


def test_batch_of_callers_who_all_left_stops_nothing() -> None:
    model = Model()
    with running(model) as batcher:
        with busy(model, batcher):
            assert batcher.submit(image_of(1), TASKS["b"]).cancel()
        assert results([batcher.submit(image_of(3), TASKS["a"])]) == [3]


def test_error_of_a_row_is_its_own() -> None:
    model = Model()
    with running(model) as batcher:
        with busy(model, batcher):
            rows = [batcher.submit(image_of(n), TASKS["a"]) for n in (6, 7, 8)]
        assert results([rows[0], rows[2]]) == [6, 8]
        with pytest.raises(ArithmeticError, match="not finite"):
            rows[1].result(timeout=5)
    assert [len(batch) for batch in model.batches] == [1, 3]


def test_rows_whose_callers_left_make_room_for_others() -> None:
    model = Model()
    with running(model, capacity=3) as batcher:
        with busy(model, batcher):
            gone = [batcher.submit(image_of(n), TASKS["a"]) for n in (1, 2, 3)]
            with pytest.raises(OverloadedError):
                batcher.check_room("a")
            for future in gone[:2]:
                assert future.cancel()
            batcher.check_room("a")
            stays = [batcher.submit(image_of(n), TASKS["a"]) for n in (4, 5)]
        assert results([gone[2], *stays]) == [3, 4, 5]


def test_image_is_let_go_of_without_the_garbage_collector() -> None:
    image = image_of(1)
    gone = weakref.ref(image)
    gc.disable()
    try:
        with running(Model()) as batcher:
            batcher.submit(image, TASKS["a"]).result(timeout=5)
            del image
            assert results([batcher.submit(image_of(2), TASKS["a"])]) == [2]
            assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("num_batches", [1, 2])
def test_as_many_batches_run_at_a_time_as_the_engine_takes(num_batches: int) -> None:
    running_now, most = 0, 0
    lock, together = threading.Lock(), threading.Barrier(num_batches)

    def run(images: Array, bundles: Sequence[Bundle]) -> list[Array]:
        nonlocal running_now, most
        with lock:
            running_now += 1
            most = max(most, running_now)
        together.wait(timeout=5)  # breaks where fewer than these ever run at a time
        with lock:
            running_now -= 1
        return [image[0, 0] for image in images]

    batcher = Batcher[Bundle](run, max_batch_size=1, num_batches=num_batches)
    answers = [batcher.submit(image_of(number), TASKS["a"]) for number in range(20)]
    got = [answer.result(timeout=5)[0] for answer in answers]
    batcher.close()

    assert got == [*range(20)]
    assert most == num_batches


def test_a_row_waits_for_others_however_long_those_before_it_did() -> None:
    """One thread takes the first two rows, which fill a batch; the other waited with it."""
    batcher = Batcher[Bundle](Model(), max_batch_size=2, num_batches=2, max_delay_s=0.2)
    first = batcher.submit(image_of(1), TASKS["a"])
    time.sleep(0.1)
    assert results([batcher.submit(image_of(2), TASKS["a"]), first]) == [2, 1]
    time.sleep(0.05)
    started = time.monotonic()
    assert results([batcher.submit(image_of(3), TASKS["a"])]) == [3]
    took = time.monotonic() - started
    batcher.close()

    assert took > 0.19


def test_delay_is_that_of_the_row_that_waited_longest_whosever_turn_it_is() -> None:
    """A batch of a, b and a leaves a row of b, whose turn it is, and an older one of a."""
    model = Model()
    with running(model, max_batch_size=3, max_delay_s=2) as batcher:
        with busy(model, batcher):
            rows = [batcher.submit(image_of(number), TASKS["a"]) for number in (1, 2, 3)]
            time.sleep(1.5)
            rows += [batcher.submit(image_of(number), TASKS["b"]) for number in (4, 5)]
        started = time.monotonic()
        assert results(rows) == [1, 2, 3, 4, 5]
        assert time.monotonic() - started < 1.5
    assert model.batches == [["a"], ["a", "b", "a"], ["b", "a"]]


def test_no_more_batches_are_made_than_are_wanted_now() -> None:
    """The rows of others wait in the queue, where deadlines and callers who left are seen."""
    wanted, go = 1, threading.Semaphore(0)
    began = SimpleQueue[int]()

    def run(images: Array, bundles: Sequence[Bundle]) -> list[Array]:
        began.put(int(images[0, 0, 0, 0]))
        assert go.acquire(timeout=5)
        return [image[0, 0] for image in images]

    batcher = Batcher[Bundle](run, max_batch_size=1, num_batches=3, num_wanted=lambda: wanted)
    answers = [batcher.submit(image_of(number), TASKS["a"]) for number in range(6)]
    assert began.get(timeout=5) == 0
    with pytest.raises(Empty):
        began.get(timeout=0.1)
    assert answers[1].cancel()
    wanted = 3
    go.release()
    assert sorted(began.get(timeout=5) for _ in range(3)) == [2, 3, 4]
    with pytest.raises(Empty):
        began.get(timeout=0.1)
    go.release(4)
    batcher.close()

    assert results([answers[0], *answers[2:]]) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("num_batches", [1, 2])
def test_every_thread_ends_when_it_is_closed(num_batches: int) -> None:
    before = threading.active_count()
    batcher = Batcher[Bundle](Model(), max_batch_size=1, num_batches=num_batches)
    assert threading.active_count() == before + num_batches

    batcher.close()

    assert threading.active_count() == before


def test_row_that_breaks_the_engine_fails_alone_and_the_batcher_lives_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Model()
    with running(model) as batcher:
        with busy(model, batcher):
            rows = [batcher.submit(image_of(n), TASKS["a"]) for n in (12, 13, 14)]
        assert results([rows[0], rows[2]]) == [12, 14]
        assert "a batch of 3 failed" in caplog.text
        with pytest.raises(RuntimeError, match="the engine broke"):
            rows[1].result(timeout=5)
        assert results([batcher.submit(image_of(1), TASKS["b"])]) == [1]


@pytest.mark.parametrize("error", [UnavailableError, DeadlineError])
def test_rows_whose_server_is_gone_are_not_run_again(error: type[Exception]) -> None:
    batches = []

    def run(images: Array, bundles: Sequence[Bundle]) -> list[Array | Exception]:
        batches.append(len(images))
        time.sleep(0.1)  # the others gather
        raise error("no server")

    batcher = Batcher(run, max_batch_size=4)
    rows = [batcher.submit(image_of(n), TASKS["a"]) for n in range(5)]
    batcher.close()

    assert {type(row.exception(timeout=5)) for row in rows} == {error}
    assert sum(batches) == 5


def test_answers_that_are_too_few_are_an_error_not_a_hang() -> None:
    batcher: Batcher[Bundle] = Batcher(lambda images, bundles: [], max_batch_size=2)
    try:
        with pytest.raises(ValueError, match="shorter"):
            batcher.submit(image_of(1), TASKS["a"]).result(timeout=5)
    finally:
        batcher.close()


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    model = Model()
    with running(model) as batcher:
        closing = threading.Thread(target=batcher.close)
        with busy(model, batcher):
            rows = [batcher.submit(image_of(n), TASKS["a"]) for n in range(20, 29)]
            closing.start()
            while not batcher._closed:
                time.sleep(0.001)
            with pytest.raises(OverloadedError, match="stopping"):
                batcher.submit(image_of(1), TASKS["a"])
        closing.join(timeout=5)
        assert [future.done() for future in rows] == [True] * 9
        assert results(rows) == list(range(20, 29))


def test_coroutine_that_is_cancelled_takes_its_row_along() -> None:
    model = Model()

    async def leave(batcher: Batcher[Bundle]) -> None:
        answer = asyncio.wrap_future(batcher.submit(image_of(1), TASKS["b"]))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer, timeout=0.01)

    with running(model) as batcher, busy(model, batcher):
        asyncio.run(leave(batcher))
    assert model.batches == [["a"]]


def test_many_threads_each_get_their_own_answers() -> None:
    with running(Model(), max_batch_size=7, capacity=1000) as batcher:
        wrong: list[int] = []

        def call(start: int) -> None:
            futures = [
                batcher.submit(image_of(n), TASKS["ab"[n % 2]]) for n in range(start, start + 100)
            ]
            if results(futures) != list(range(start, start + 100)):
                wrong.append(start)

        threads = [threading.Thread(target=call, args=(1000 * k,)) for k in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert wrong == []
