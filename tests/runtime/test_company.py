import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import cast

import pytest

import lspt_serve.runtime.company
from lspt_serve.neighbours import Neighbours
from lspt_serve.runtime.company import Company, seconds_in_company

LONG_S = 10


@pytest.mark.parametrize(
    ("num_beside", "few"),
    [
        (1, [True]),
        (2, [True, False]),
        (4, [True, True, False, False]),
        (5, [True, True, False]),
    ],
)
def test_few_are_one_or_half_of_those_that_can_run(num_beside: int, few: list[bool]) -> None:
    company = Company(num_beside)
    with ExitStack() as running:
        assert [running.enter_context(company.join()) for _ in few] == few
    with company.join() as later:
        assert later


class Others:
    """Neighbours without processes."""

    num_workers = 2

    def __init__(self, running: int) -> None:
        self.running, self.told = running, list[int]()

    def others(self) -> int:
        return self.running

    def tell(self, change: int) -> None:
        self.told.append(change)


@pytest.mark.parametrize(
    ("num_beside", "others", "runs"),
    [
        (4, 0, [True, True, False, False]),  # as if there were no other worker
        (4, 1, [True, False, False]),
        (4, 2, [False, False]),
        (4, 9, [False, False]),  # its share, whatever the others do
        (1, 1, [False]),
    ],
)
def test_few_are_so_beside_the_batches_of_other_workers(
    num_beside: int, others: int, runs: list[bool]
) -> None:
    neighbours = Others(others)
    company = Company(num_beside, cast(Neighbours, neighbours))
    with ExitStack() as running:
        assert [running.enter_context(company.join()) for _ in runs] == runs
        assert neighbours.told == [1] * len(runs)
    assert neighbours.told == [1] * len(runs) + [-1] * len(runs)


@pytest.mark.parametrize(("others", "runs"), [(1, 3), (2, 2), (9, 2)])
def test_more_than_its_share_waits_where_others_run(others: int, runs: int) -> None:
    company, joined = Company(4, cast(Neighbours, Others(others))), threading.Event()

    def join() -> None:
        with company.join():
            joined.set()

    with ThreadPoolExecutor(1) as pool, ExitStack() as running:
        last = ExitStack()
        running.enter_context(last)
        last.enter_context(company.join())
        for _ in range(runs - 1):
            running.enter_context(company.join())
        pool.submit(join)
        assert not joined.wait(0.1)
        last.close()
        assert joined.wait(LONG_S)


def test_one_that_begins_alone_has_a_core_where_others_come_soon() -> None:
    company = Company(2)

    def come() -> bool:
        with company.join() as few:
            return few

    assert [come() for _ in range(50)] == [True] * 50  # one after another: nobody else comes
    for _ in range(20):  # every other one finds another
        with company.join():
            assert not come()
    assert come()
    for _ in range(20):  # two of three do
        with company.join():
            assert not come()
            assert not come()
    alone = [come() for _ in range(50)]
    assert not alone[0]
    assert alone == sorted(alone)
    assert alone[-1]


def test_after_a_rest_one_that_begins_alone_has_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    company = Company(4)
    with ExitStack() as running:
        for _ in range(3):
            running.enter_context(company.join())
        for _ in range(40):
            with company.join():
                pass
    with company.join() as few:
        assert not few
    monkeypatch.setattr(lspt_serve.runtime.company, "FORGOTTEN_S", 0.01)
    time.sleep(0.1)
    with company.join() as few:
        assert few


def test_who_comes_wakes_one_that_waits_for_cores_which_others_left() -> None:
    others = Others(1)
    company, began = Company(2, cast(Neighbours, others)), SimpleQueue[int]()

    def join(number: int) -> None:
        with company.join():
            began.put(number)
            assert go.wait(LONG_S)

    go = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        pool.submit(join, 0)
        assert began.get(timeout=LONG_S) == 0
        pool.submit(join, 1)
        with pytest.raises(Empty):
            began.get(timeout=0.1)
        others.running = 0
        pool.submit(join, 2)
        assert began.get(timeout=1) == 1
        go.set()


@pytest.mark.parametrize("num_waiting", [1, 3])
def test_they_run_in_the_order_in_which_they_came(num_waiting: int) -> None:
    """Also before one whose thread has just ended another, and needs no waking."""
    company, order = Company(1), list[int]()

    def join(number: int) -> None:
        with company.join():
            order.append(number)

    with ThreadPoolExecutor(num_waiting) as pool:
        with company.join():
            for number in range(num_waiting):
                pool.submit(join, number)
                until = time.monotonic() + LONG_S
                while len(company._turns) <= number:
                    assert time.monotonic() < until
                    time.sleep(0.001)
        join(num_waiting)

    assert order == [*range(num_waiting + 1)]


@pytest.mark.parametrize(
    ("num_beside", "others", "wanted"),
    [(1, 0, 1), (1, 1, 1), (2, 0, 3), (2, 1, 2), (2, 2, 2), (8, 0, 9), (8, 3, 6), (8, 8, 5)],
)
def test_one_more_is_wanted_than_may_run(num_beside: int, others: int, wanted: int) -> None:
    company = Company(num_beside, cast(Neighbours, Others(others)))
    assert company.num_wanted() == wanted <= company.num_batches


def test_a_batch_that_fails_is_gone() -> None:
    company = Company(2)
    with pytest.raises(ArithmeticError), company.join():
        raise ArithmeticError
    with company.join() as few:
        assert few


@pytest.mark.parametrize("num_threads", [1, 3])
def test_batches_are_timed_while_others_run(num_threads: int) -> None:
    together = threading.Barrier(num_threads)

    def run() -> None:
        together.wait(LONG_S)  # in vain, if fewer run at a time
        time.sleep(0.1)

    assert seconds_in_company(run, num_threads) == pytest.approx(0.1, rel=0.3)


def test_what_fails_is_told() -> None:
    def run() -> None:
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError, match="no"):
        seconds_in_company(run, 2)
