import threading
import time

import pytest

from lspt_serve.runtime.company import Company, seconds_in_company

LONG_S = 10


def test_a_batch_is_alone_when_no_other_runs() -> None:
    company = Company()
    with company.join() as first, company.join() as second:
        assert (first, second) == (True, False)
    with company.join() as third:
        assert third


def test_a_batch_that_fails_is_gone() -> None:
    company = Company()
    with pytest.raises(ArithmeticError), company.join():
        raise ArithmeticError
    with company.join() as alone:
        assert alone


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
