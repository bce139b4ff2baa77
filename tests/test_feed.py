from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lspt_serve.feed import create_feed, row_inputs
from lspt_serve.graph import BACK, NUM_PROMPTS, PLACE, Dim

# A gate of one number for each of two blocks, and prompts L x P x D with L = 2, D = 3
INPUTS: dict[str, list[Dim]] = {"gate": [2], "prompts": [2, "num_prompts", 3]}


def task(number: float, num_prompts: int) -> dict[str, NDArray[np.float32]]:
    """Prompts that say whose they are, and which block and prompt: number + l / 10 + p / 100."""
    block, prompt, _ = np.indices((2, num_prompts, 3))
    prompts = number + block / 10 + prompt / 100
    return {"gate": np.full(2, number, np.float32), "prompts": prompts.astype(np.float32)}


def test_tasks_stand_side_by_side_in_the_order_that_they_come() -> None:
    five, seven = task(5, num_prompts=4), task(7, num_prompts=4)

    fed = create_feed(INPUTS, [seven, five, seven])

    np.testing.assert_array_equal(fed["gate"], [[7, 7], [5, 5]])
    assert fed["prompts"].shape == (2, 2, 4, 3)
    np.testing.assert_allclose(fed["prompts"][0, :, 3, 0], [7.03, 7.13])
    np.testing.assert_array_equal(fed[NUM_PROMPTS], [4, 4])
    assert {name: fed[name].tolist() for name in (PLACE, BACK)} == {
        PLACE: [[0, 2], [1, 0]],
        BACK: [0, 2, 1],
    }


def test_task_with_fewer_prompts_than_another_is_filled_up_with_zeros() -> None:
    fed = create_feed(INPUTS, [task(1, num_prompts=2), task(2, num_prompts=5)])

    assert fed["prompts"].shape == (2, 2, 5, 3)
    np.testing.assert_array_equal(fed["prompts"][0, :, 2:], 0)
    np.testing.assert_array_equal(fed["prompts"][0, :, :2], task(1, num_prompts=2)["prompts"])
    np.testing.assert_array_equal(fed["prompts"][1], task(2, num_prompts=5)["prompts"])
    np.testing.assert_array_equal(fed[NUM_PROMPTS], [2, 5])


def test_tensors_of_a_single_task_are_not_copied() -> None:
    own = task(1, num_prompts=9)

    fed = create_feed(INPUTS, [own] * 3)

    assert fed["prompts"].shape == (1, 2, 9, 3)
    assert all(np.shares_memory(fed[name], own[name]) for name in INPUTS)


def test_equal_tensors_of_another_object_are_another_task() -> None:
    fed = create_feed(INPUTS, [task(1, num_prompts=2), task(1, num_prompts=2)])

    assert len(fed["gate"]) == 2


def test_linear_probe_is_fed_nothing() -> None:
    assert create_feed({}, [{}, {}]) == {}


@pytest.mark.parametrize(
    ("tasks", "wanted"),
    [
        ([0], {PLACE: [[0]], BACK: [0]}),
        ([0, 0, 0], {PLACE: [[0, 1, 2]], BACK: [0, 1, 2]}),
        ([1, 0], {PLACE: [[1], [0]], BACK: [1, 0]}),
        ([1, 0, 1], {PLACE: [[1, 0], [0, 2]], BACK: [2, 0, 3]}),
    ],
)
def test_rows_by_hand(tasks: list[int], wanted: dict[str, Any]) -> None:
    got = row_inputs(np.array(tasks, np.int64))

    assert {name: array.tolist() for name, array in got.items()} == wanted
    assert {array.dtype for array in got.values()} == {np.dtype(np.int64)}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_every_row_is_found_again_at_the_place_of_its_own_task(numbers: Sequence[int]) -> None:
    tasks = np.unique(numbers, return_inverse=True)[1]

    rows = row_inputs(tasks)

    task_of_place, _ = np.divmod(rows[BACK], rows[PLACE].shape[1])
    assert task_of_place.tolist() == tasks.tolist()
    assert rows[PLACE].flatten()[rows[BACK]].tolist() == list(range(len(tasks)))
    assert rows[PLACE].shape == (len(set(numbers)), np.bincount(tasks).max())
