"""Against `create_feed`, which is tested by hand; numbers in a task say whose they are."""

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toys import DEVICES

from lspt_serve.feed import create_feed
from lspt_serve.graph import NUM_PROMPTS, Dim
from lspt_serve.runtime.bank import DeviceBank, Gathered

# A gate of one number for each of two blocks, and prompts L x P x D with L = 2, D = 3
INPUTS: dict[str, list[Dim]] = {"gate": [2], "prompts": [2, "num_prompts", 3]}
Task = dict[str, NDArray[np.float32]]


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    """What was never written shows itself."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def create_bank(num_slots: int, device: torch.device | None = None) -> DeviceBank:
    return DeviceBank(INPUTS, num_slots=num_slots, device=device or torch.device("cpu"), dtypes={})


def task(number: float, num_prompts: int = 2) -> Task:
    """Prompts that say whose they are, and which block and prompt: number + l / 10 + p / 100."""
    block, prompt, _ = np.indices((2, num_prompts, 3))
    prompts = number + block / 10 + prompt / 100
    return {"gate": np.full(2, number, np.float32), "prompts": prompts.astype(np.float32)}


def check(gathered: Gathered, wanted: Sequence[Task]) -> None:
    """Exactly what a graph would be fed of these tasks, in this order."""
    fed = create_feed(INPUTS, wanted)
    assert [id(each) for each in gathered.tasks] == [id(each) for each in wanted]
    for name in INPUTS:
        np.testing.assert_array_equal(gathered.tensors[name].cpu().numpy(), fed[name])
    if len(set(fed[NUM_PROMPTS].tolist())) == 1:
        assert gathered.num_prompts is None
    else:
        assert gathered.num_prompts is not None
        assert gathered.num_prompts.tolist() == fed[NUM_PROMPTS].tolist()


def test_tasks_of_a_batch_stand_side_by_side_each_once(device: torch.device) -> None:
    bank = create_bank(4, device)
    first, second = task(1), task(2)

    check(bank.gather([second, first, second, second]), [second, first])
    assert bank.num_uploads == 2


def test_task_that_is_there_is_not_brought_again(device: torch.device) -> None:
    bank = create_bank(4, device)
    first, second = task(1), task(2)
    bank.gather([first, second])

    check(bank.gather([second]), [second])
    check(bank.gather([first, second]), [first, second])
    assert bank.num_uploads == 2


def test_tasks_with_different_numbers_of_prompts_are_filled_up_with_zeros(
    device: torch.device,
) -> None:
    bank = create_bank(4, device)
    few, many = task(1, num_prompts=2), task(2, num_prompts=5)

    check(bank.gather([few]), [few])
    check(bank.gather([few, many]), [few, many])
    check(bank.gather([few]), [few])  # no longer than it needs


def test_slot_of_a_task_with_more_prompts_is_left_clean(device: torch.device) -> None:
    bank = create_bank(2, device)
    many, middle, few = (task(number, num_prompts=number) for number in (6, 3, 1))
    bank.gather([many])
    bank.gather([middle])

    check(bank.gather([few, middle]), [few, middle])  # `few` is where `many` was
    assert many not in bank
    assert bank.num_uploads == 3


def test_what_was_used_longest_ago_makes_room() -> None:
    bank = create_bank(2)
    old, new, third = task(1), task(2), task(3)
    bank.gather([old])
    bank.gather([new])
    bank.gather([old])

    bank.gather([third])

    assert [each in bank for each in (old, new, third)] == [True, False, True]


def test_no_task_of_a_batch_makes_room_for_another_of_it() -> None:
    bank = create_bank(3)
    first, second, third, fourth = map(task, range(4))
    for each in (first, second, third):
        bank.gather([each])

    check(bank.gather([fourth, first, second]), [fourth, first, second])

    assert third not in bank
    assert bank.num_uploads == 4


def test_one_task_too_many_costs_one_upload_each_time_and_nothing_else() -> None:
    bank = create_bank(3)
    regular, rare = [task(1), task(2), task(3)], [task(4), task(5)]
    bank.gather(regular)
    for turn in range(10):
        before = bank.num_uploads
        bank.gather(regular[:2])
        assert bank.num_uploads == before
        check(bank.gather([rare[turn % 2]]), [rare[turn % 2]])
        assert bank.num_uploads == before + 1
    assert bank.num_uploads == 3 + 10


def test_of_more_tasks_than_slots_the_first_are_taken() -> None:
    bank = create_bank(2)
    tasks = [task(number, num_prompts=number) for number in (1, 2, 3)]

    check(bank.gather([tasks[0], tasks[1], tasks[0], tasks[2]]), tasks[:2])
    check(bank.gather(tasks[2:]), tasks[2:])


def test_equal_tensors_of_another_object_are_another_task() -> None:
    bank = create_bank(3)

    assert len(bank.gather([task(1), task(1)]).tasks) == 2


def test_task_that_nobody_else_holds_is_not_taken_for_a_new_one_at_its_address() -> None:
    bank = create_bank(3)
    for number in range(50):
        fresh = task(number)
        check(bank.gather([fresh]), [fresh])
        del fresh
    assert bank.num_uploads == 50


def test_what_was_gathered_stays_when_its_slots_are_given_away(device: torch.device) -> None:
    bank = create_bank(2, device)
    batch = [task(1), task(2, num_prompts=4)]

    gathered = bank.gather(batch)
    bank.prefetch([task(3, num_prompts=7), task(4)])

    assert not any(each in bank for each in batch)
    check(gathered, batch)


def test_prefetched_task_needs_no_upload_when_its_batch_comes(device: torch.device) -> None:
    bank = create_bank(4, device)
    now, soon = task(1), task(2, num_prompts=3)
    bank.gather([now])

    thread = threading.Thread(target=bank.prefetch, args=([soon, soon],))
    thread.start()
    thread.join()

    assert soon in bank
    assert bank.num_uploads == 2
    check(bank.gather([now, soon]), [now, soon])
    assert bank.num_uploads == 2


def test_no_task_that_is_prefetched_makes_room_for_another_of_them() -> None:
    bank = create_bank(2)
    first, second, third = map(task, range(3))
    bank.gather([first])
    bank.gather([third])

    bank.prefetch([second, first, third])  # more than there are slots for

    assert [each in bank for each in (first, second, third)] == [True, True, False]
    assert bank.num_uploads == 3


def test_prefetched_tasks_wait_for_their_batch_and_others_do_without() -> None:
    bank = create_bank(3)
    now, waiting, late = task(0), [task(1), task(2), task(3)], task(4)
    bank.gather([now])

    bank.prefetch(waiting)
    bank.prefetch([late])

    assert [each in bank for each in (now, *waiting, late)] == [False, True, True, True, False]
    bank.gather(waiting[:1])
    bank.prefetch([late])  # in the place of the one whose batch has come
    assert [each in bank for each in (*waiting, late)] == [False, True, True, True]
    assert bank.num_uploads == 5


def test_what_is_waited_for_in_vain_makes_room_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bank = create_bank(2)
    in_vain, late = [task(1), task(2)], [task(3), task(4)]
    bank.prefetch(in_vain)

    now += 0.9
    bank.prefetch(late)
    assert [each in bank for each in (*in_vain, *late)] == [True, True, False, False]

    now += 0.2
    bank.prefetch(late)
    assert [each in bank for each in (*in_vain, *late)] == [False, False, True, True]
    bank.prefetch(in_vain)  # they are waited for in turn
    assert bank.num_uploads == 4


def test_batch_goes_before_what_is_waited_for() -> None:
    bank = create_bank(2)
    waiting, now = [task(1), task(2)], [task(3), task(4, num_prompts=5)]
    bank.prefetch(waiting)

    check(bank.gather(now), now)

    assert not any(each in bank for each in waiting)
    check(bank.gather(waiting), waiting)
    assert bank.num_uploads == 6


def test_task_of_a_batch_stays_where_all_others_are_waited_for() -> None:
    bank = create_bank(3)
    here, new, waiting = task(1), task(2), [task(3), task(4)]
    bank.gather([here])
    bank.prefetch(waiting)

    check(bank.gather([here, new]), [here, new])

    assert [each in bank for each in waiting] == [False, True]


def test_batches_are_right_while_another_thread_prefetches(device: torch.device) -> None:
    """With as many slots as a batch needs, every prefetch takes one of what runs."""
    bank = create_bank(3, device)
    tasks = [task(number, num_prompts=1 + number % 4) for number in range(8)]
    done = threading.Event()
    rng, theirs = np.random.default_rng(0), np.random.default_rng(1)

    def prefetch() -> None:
        while not done.wait(0.001):
            bank.prefetch([tasks[number] for number in theirs.choice(8, 2, replace=False)])

    thread = threading.Thread(target=prefetch)
    thread.start()
    try:
        for _ in range(100):
            batch = [tasks[number] for number in rng.choice(8, 3, replace=False)]
            check(bank.gather(batch), batch)
    finally:
        done.set()
        thread.join()


def test_batch_that_waits_comes_before_the_next_prefetched_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank = create_bank(8)
    copy, begun, brought = bank._copy, threading.Event(), list[Task]()

    def slow_copy(of: Task, name: str, slot: torch.Tensor) -> None:
        begun.set()
        deadline = time.monotonic() + 10
        while not brought and not bank._lock._next.locked():  # until the batch waits
            assert time.monotonic() < deadline, "who waits is not the next"
            time.sleep(0.001)
        brought.append(of)
        copy(of, name, slot)

    monkeypatch.setattr(bank, "_copy", slow_copy)
    tasks, own = [task(2), task(3), task(4)], task(1)
    thread = threading.Thread(target=bank.prefetch, args=(tasks,))
    thread.start()
    begun.wait()

    check(bank.gather([own]), [own])

    thread.join()
    copies = [float(each["gate"][0]) for each in brought]  # of two tensors each
    assert copies == [2, 2, 1, 1, 3, 3, 4, 4]


def test_bank_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="num_slots must be at least 1, got 0"):
        create_bank(0)


def test_task_that_cannot_be_brought_costs_no_slot() -> None:
    bank = create_bank(1)
    good = task(1)
    bank.gather([good])

    for _ in range(3):
        with pytest.raises(KeyError, match="gate"):
            bank.gather([{"prompts": np.zeros((2, 4, 3), np.float32)}])

    check(bank.gather([good]), [good])


def test_tensors_are_kept_in_the_type_that_is_asked_for(device: torch.device) -> None:
    bank = DeviceBank(INPUTS, num_slots=2, device=device, dtypes={"gate": torch.bfloat16})

    tensors = bank.gather([task(1.001)]).tensors

    assert tensors["prompts"].dtype == torch.float32
    assert tensors["gate"].dtype == torch.bfloat16
    assert tensors["gate"].tolist() == [[1.0, 1.0]]  # 8 bits of mantissa


@given(
    batches=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=6), min_size=1, max_size=12),
    coming=st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=12, max_size=12),
    num_slots=st.integers(1, 7),
)
@settings(max_examples=100)
def test_any_batches_get_what_is_theirs_and_each_miss_costs_one_upload(
    batches: Sequence[Sequence[int]], coming: Sequence[Sequence[int]], num_slots: int
) -> None:
    bank = create_bank(num_slots)
    tasks = [task(number, num_prompts=1 + number) for number in range(7)]
    for numbers, later in zip(batches, coming, strict=False):
        bank.prefetch([tasks[number] for number in later])
        wanted = [tasks[number] for number in dict.fromkeys(numbers)][:num_slots]
        missing = [each for each in wanted if each not in bank]
        before = bank.num_uploads

        check(bank.gather([tasks[number] for number in numbers]), wanted)

        assert bank.num_uploads - before == len(missing)
