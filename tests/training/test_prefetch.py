import threading
from collections.abc import Iterator

import pytest

from lspt_serve.training.prefetch import one_ahead


def test_items_come_in_order_and_one_is_made_ahead_by_another_thread() -> None:
    made: list[int] = []
    threads: set[int] = set()

    def square(item: int) -> int:
        made.append(item)
        threads.add(threading.get_ident())
        return item**2

    def asked() -> Iterator[int]:
        for item in range(5):
            assert item - len(got) <= 1  # before item is asked for, all but one were handed over
            yield item

    got: list[int] = []
    for square_of in one_ahead(square, asked()):
        got.append(square_of)  # noqa: PERF402  asked() looks at it

    assert got == [0, 1, 4, 9, 16]
    assert made == [0, 1, 2, 3, 4]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_nothing_is_made_of_nothing() -> None:
    assert list(one_ahead(abs, [])) == []


def test_error_comes_in_its_turn() -> None:
    shares = one_ahead(lambda item: 1 / item, [2, 0, 1])

    assert next(shares) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(shares)
