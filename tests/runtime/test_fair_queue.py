from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspt_serve.runtime.fair_queue import FairQueue


def filled(*tasks: str, capacity: int = 100) -> FairQueue[str]:
    """Items are named by task and arrival: a0, b1, a2."""
    queue: FairQueue[str] = FairQueue(capacity)
    for number, task in enumerate(tasks):
        queue.put(task, f"{task}{number}")
    return queue


def drain(queue: FairQueue[str]) -> list[str]:
    return [queue.take() for _ in range(len(queue))]


def test_tasks_take_turns_in_the_order_of_their_arrival() -> None:
    assert drain(filled(*"aaabca")) == ["a0", "b3", "c4", "a1", "a2", "a5"]


def test_late_task_does_not_wait_for_those_that_queued_long_ago() -> None:
    queue = filled(*"aaaaaaaaaa")
    queue.take()
    queue.put("b", "b")

    assert drain(queue)[:2] == ["a1", "b"]


def test_flooding_task_gives_way_to_another_when_the_queue_is_full() -> None:
    queue = filled(*"aaab", capacity=4)

    assert queue.put("b", "b4") == "a2"
    assert drain(queue) == ["a0", "b3", "a1", "b4"]


def test_flooding_task_is_refused_itself_when_the_queue_is_full() -> None:
    queue = filled(*"aaab", capacity=4)

    assert queue.put("a", "a4") == "a4"
    assert drain(queue) == ["a0", "b3", "a1", "a2"]


def test_newcomer_is_refused_where_nobody_floods() -> None:
    assert filled(*"abc", capacity=3).put("d", "d3") == "d3"


def test_room_is_what_put_would_keep() -> None:
    queue = filled(*"aaab", capacity=4)

    assert [queue.has_room(task) for task in "abc"] == [False, True, True]
    assert [filled(*"ab", capacity=2).has_room(task) for task in "abc"] == [False] * 3
    assert filled(*"ab", capacity=3).has_room("a")


def test_what_is_discarded_is_forgotten() -> None:
    queue = filled(*"abacbc")

    queue.discard(lambda item: item[0] == "b" or item == "a0")

    assert len(queue) == 3
    assert queue.peek() == "a2"
    assert drain(queue) == ["a2", "c3", "c5"]


def test_empty_queue_has_nothing_to_take() -> None:
    with pytest.raises(KeyError):
        filled().take()


@given(st.lists(st.sampled_from("abcd"), max_size=60), st.integers(1, 20))
def test_nothing_is_lost_and_nothing_doubled(tasks: list[str], capacity: int) -> None:
    queue: FairQueue[int] = FairQueue(capacity)
    back = [queue.put(task, number) for number, task in enumerate(tasks)]
    taken = [queue.take() for _ in range(len(queue))]

    assert len(taken) == min(capacity, len(tasks))
    assert Counter(taken + [item for item in back if item is not None]) == Counter(
        range(len(tasks))
    )


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(1, 30))
def test_no_task_is_served_twice_while_another_waits(tasks: list[str], batch_size: int) -> None:
    queue = filled(*tasks)
    waiting = Counter(tasks)
    served: Counter[str] = Counter()
    for item in drain(queue)[:batch_size]:
        served[item[0]] += 1
        waiting[item[0]] -= 1

    still = [task for task in waiting if waiting[task]]
    assert all(served[task] <= served[other] + 1 for task in served for other in still)
