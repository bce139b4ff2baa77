import threading
import time
from contextlib import ExitStack

import pytest

from lspt_serve.runtime.company import Company, seconds_in_company

LONG_S = 10


@pytest.mark.parametrize(
    ("num_beside", "few"),
    [
        (1, [True, False]),
        (2, [True, False, False]),
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
