from collections import Counter
from random import Random

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
    assert filled(*"ab", capacity=4).has_room("a")


def test_those_that_are_coming_have_their_room() -> None:
    queue = filled(*"ab", capacity=4)
    queue.come("c")
    queue.come("c")

    assert not any(map(queue.has_room, "abcd"))
    queue.leave("c")
    assert [queue.has_room(task) for task in "abcd"] == [False, False, False, True]


def test_task_takes_no_more_than_its_share_where_it_is_crowded() -> None:
    queue = filled(*"aaaaab", capacity=8)

    assert [queue.has_room(task) for task in "abc"] == [False, True, True]
    assert filled(*"aab", capacity=8).has_room("a")


def test_flooding_task_does_not_give_way_twice() -> None:
    queue = filled(*"aaa", capacity=3)
    assert queue.has_room("b")
    queue.come("b")

    assert queue.has_room("c")  # a2 gives way to b, a1 to c
    queue.come("c")
    assert not queue.has_room("d")
    assert [queue.put("b", "b"), queue.put("c", "c")] == ["a2", "a1"]


def test_what_is_discarded_is_forgotten() -> None:
    queue = filled(*"abacbc")

    for item in ("b1", "b4", "a0", "a0", "d9"):
        queue.discard(item[0], item.__eq__)

    assert len(queue) == 3
    assert [*queue.oldest()] == ["a2", "c3"]
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


@given(
    st.lists(st.sampled_from(["come", "put", "give up", "take"]), max_size=120),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_who_found_room_is_kept(steps: list[str], capacity: int, random: Random) -> None:
    queue: FairQueue[int] = FairQueue(capacity)
    coming: list[str] = []
    for number, step in enumerate(steps):
        if step == "take" and len(queue):
            queue.take()
        if step == "come" and queue.has_room(task := random.choice("aaaaabcde")):
            queue.come(task)
            coming.append(task)
        if step in ("put", "give up") and coming:
            task = coming.pop(random.randrange(len(coming)))
            assert step == "give up" or queue.put(task, number) != number
            queue.leave(task)
        assert len(queue) <= capacity


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
