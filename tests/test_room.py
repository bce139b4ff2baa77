import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lspt_serve.room import Room


def test_what_does_not_fit_waits_and_is_not_passed_by() -> None:
    room, order = Room(10), list[str]()

    def take(name: str, amount: int) -> None:
        with room.taken(amount):
            order.append(name)

    with ThreadPoolExecutor(2) as pool, room.taken(6):
        pool.submit(take, "large", 10)
        time.sleep(0.1)
        pool.submit(take, "small", 1)
        time.sleep(0.1)
        assert order == []
    assert order == ["large", "small"]


def test_what_fits_does_not_wait() -> None:
    room = Room(10)
    with room.taken(4), room.taken(6):
        pass


def test_more_than_all_is_all() -> None:
    room, waiting = Room(10), threading.Event()

    def take() -> None:
        with room.taken(1):
            waiting.set()

    with ThreadPoolExecutor(1) as pool:
        with room.taken(1000):
            pool.submit(take)
            assert not waiting.wait(0.1)
        assert waiting.wait(5)


def test_what_was_taken_comes_back_after_an_error() -> None:
    room = Room(10)
    with pytest.raises(ZeroDivisionError), room.taken(10):
        _ = 1 / 0
    with room.taken(10):
        pass
