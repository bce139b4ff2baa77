import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from toys import simple_bundle

from lspt_serve.bundle import MethodRef
from lspt_serve.graph import GraphSpec
from lspt_serve.preprocess import Preprocess
from lspt_serve.runtime.slots import Slots

Array = NDArray[np.float32]
BUNDLES = [simple_bundle(f"task-{number}", number=number) for number in range(20)]


class Notebook:
    """An engine whose slots hold one number each, and which says what it finds there."""

    provider = "Notebook"
    graph = GraphSpec(
        backbone=BUNDLES[0].manifest.backbone,
        method=MethodRef(name="vpt-shallow"),
        pool="cls",
        preprocess=Preprocess(1),
        num_features=1,
        inputs={"method.prompts": ["num_prompts", 1]},
        parity=[],
    )

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.slots = [-1.0] * num_slots
        self.puts: list[float] = []

    def put(self, slot: int, tensors: Mapping[str, Array]) -> None:
        number = float(tensors["method.prompts"][0, 0])
        if number == 13:
            raise MemoryError("unlucky")
        self.slots[slot] = number
        self.puts.append(number)

    def features(self, images: Array, slots: Sequence[int]) -> Array:
        raise AssertionError("not of these tests")


def use(slots: Slots, engine: Notebook, *numbers: int) -> list[float]:
    with slots.hold([BUNDLES[number] for number in numbers]) as places:
        return [engine.slots[place] for place in places]


def test_every_row_is_told_the_slot_of_its_own_task() -> None:
    engine = Notebook(3)

    assert use(Slots(engine), engine, 2, 1, 2, 0) == [2, 1, 2, 0]


def test_task_that_is_held_is_not_put_again() -> None:
    engine = Notebook(2)
    slots = Slots(engine)

    for _ in range(3):
        use(slots, engine, 0, 1)

    assert engine.puts == [0, 1]


def test_task_unused_longest_makes_room() -> None:
    engine = Notebook(3)
    slots = Slots(engine)
    for number in (0, 1, 2, 0, 3):  # 3 takes the place of 1
        use(slots, engine, number)
    engine.puts.clear()

    assert use(slots, engine, 0, 2, 3) == [0, 2, 3]
    assert engine.puts == []


def test_new_version_of_a_task_has_a_slot_of_its_own_while_the_old_is_in_use() -> None:
    engine = Notebook(2)
    slots = Slots(engine)
    old = simple_bundle("task", number=1)
    new = simple_bundle("task", number=2, version=2)

    with slots.hold([old]) as (before,), slots.hold([new]) as (after,):
        assert (engine.slots[before], engine.slots[after]) == (1, 2)


def test_bundle_of_the_same_tensors_shares_a_slot() -> None:
    engine = Notebook(2)

    with Slots(engine).hold([simple_bundle("one"), simple_bundle("other")]) as (one, other):
        assert one == other
    assert engine.puts == [0]


def test_task_in_use_is_waited_for_not_put_out() -> None:
    engine = Notebook(2)
    slots = Slots(engine)
    order = []

    def other() -> None:
        with slots.hold([BUNDLES[2], BUNDLES[3]]):
            order.append("other")

    with ThreadPoolExecutor() as pool:
        with slots.hold([BUNDLES[0], BUNDLES[1]]) as places:
            waiting = pool.submit(other)
            time.sleep(0.05)
            order.append("first")
            assert [engine.slots[place] for place in places] == [0, 1]
        waiting.result(timeout=5)

    assert order == ["first", "other"]


def test_more_tasks_than_slots_are_refused() -> None:
    engine = Notebook(2)

    with pytest.raises(ValueError, match="3 tasks at once, and 2 slots"):
        use(Slots(engine), engine, 0, 1, 2)


def test_task_that_cannot_be_put_costs_no_slot() -> None:
    engine = Notebook(2)
    slots = Slots(engine)

    for _ in range(5):
        with pytest.raises(MemoryError, match="unlucky"):
            use(slots, engine, 0, 13)

    assert use(slots, engine, 1, 2) == [1, 2]


def test_many_threads_never_meet_another_tasks_tensors() -> None:
    engine = Notebook(8)
    slots = Slots(engine)
    end = time.monotonic() + 1.0

    def work(seed: int) -> int:
        draw, rounds = random.Random(seed), 0
        while time.monotonic() < end:
            numbers = [number for number in draw.choices(range(20), k=4) if number != 13]
            with slots.hold([BUNDLES[number] for number in numbers]) as places:
                for _ in range(3):
                    assert [engine.slots[place] for place in places] == numbers
                    time.sleep(0)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(6) as pool:
        rounds = [future.result() for future in [pool.submit(work, seed) for seed in range(6)]]

    assert min(rounds) > 0
    assert len(engine.puts) > 20  # slots were fought for
