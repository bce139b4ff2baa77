from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from toys import simple_bundle

from lspt_serve.bundle import MethodRef
from lspt_serve.graph import GraphSpec
from lspt_serve.preprocess import Preprocess
from lspt_serve.runtime import Precision
from lspt_serve.runtime.slots import Slots

Array = NDArray[np.float32]
BUNDLES = [simple_bundle(f"task-{number}", number=number) for number in range(20)]


class Notebook:
    """An engine whose slots hold one number each, and which says what it finds there."""

    name = provider = "Notebook"
    precision: Precision = "fp32"
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
    places = slots.assign([BUNDLES[number] for number in numbers])
    return [engine.slots[place] for place in places]


def test_every_row_is_told_the_slot_of_its_own_task() -> None:
    engine = Notebook(3)

    assert use(Slots(engine), engine, 2, 1, 2, 0) == [2, 1, 2, 0]


def test_task_that_is_in_a_slot_is_not_put_again() -> None:
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


def test_task_of_the_batch_does_not_make_room_for_another_of_it() -> None:
    engine = Notebook(3)
    slots = Slots(engine)
    use(slots, engine, 0, 1, 2)

    assert use(slots, engine, 3, 0, 4) == [3, 0, 4]
    assert engine.puts == [0, 1, 2, 3, 4]


def test_new_version_of_a_task_has_a_slot_of_its_own() -> None:
    engine = Notebook(2)
    old = simple_bundle("task", number=1)
    new = simple_bundle("task", number=2, version=2)

    places = Slots(engine).assign([old, new])

    assert [engine.slots[place] for place in places] == [1, 2]


def test_bundle_of_the_same_tensors_shares_a_slot() -> None:
    engine = Notebook(2)

    one, other = Slots(engine).assign([simple_bundle("one"), simple_bundle("other")])

    assert one == other
    assert engine.puts == [0]


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


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5]), min_size=1, max_size=4), max_size=30))
def test_whatever_comes_every_row_has_the_slot_of_its_own_task(batches: list[list[int]]) -> None:
    engine = Notebook(4)
    slots = Slots(engine)

    for numbers in batches:
        assert use(slots, engine, *numbers) == numbers
