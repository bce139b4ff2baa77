from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lspt_serve.bank import Bank, row_inputs
from lspt_serve.graph import BACK, NUM_PROMPTS, PLACE, SLOTS, Dim

# A gate of one number for each of two blocks, and prompts L x P x D with L = 2, D = 3
INPUTS: dict[str, list[Dim]] = {"gate": [2], "prompts": [2, "num_prompts", 3]}


def task(number: float, num_prompts: int) -> dict[str, NDArray[np.float32]]:
    """Prompts that say whose they are, and which block and prompt: number + l / 10 + p / 100."""
    block, prompt, _ = np.indices((2, num_prompts, 3))
    prompts = number + block / 10 + prompt / 100
    return {"gate": np.full(2, number, np.float32), "prompts": prompts.astype(np.float32)}


def test_task_is_fed_in_its_slot_with_prompts_first() -> None:
    bank = Bank(INPUTS, 4)
    bank.put(2, task(7, num_prompts=5))

    fed = bank.feed([2])

    assert fed["gate"].shape == (4, 2)
    assert fed["prompts"].shape == (5, 4, 2, 3)
    np.testing.assert_array_equal(fed["gate"][2], [7, 7])
    np.testing.assert_allclose(fed["prompts"][4, 2, :, 0], [7.04, 7.14])
    np.testing.assert_array_equal(fed[NUM_PROMPTS], [5])


def test_batch_takes_no_more_prompts_than_its_tasks_have_and_copies_nothing() -> None:
    bank = Bank(INPUTS, 3)
    bank.put(0, task(1, num_prompts=9))
    bank.put(1, task(2, num_prompts=2))
    bank.put(2, task(3, num_prompts=4))

    few, more, most = bank.feed([1]), bank.feed([1, 2, 1]), bank.feed([2, 0])

    assert [len(fed["prompts"]) for fed in (few, more, most)] == [2, 4, 9]
    assert all(np.shares_memory(few["prompts"], fed["prompts"]) for fed in (more, most))
    assert few["prompts"].flags.c_contiguous
    np.testing.assert_array_equal(more[NUM_PROMPTS], [2, 4])
    np.testing.assert_array_equal(more["prompts"][2:, 1], 0)


def test_slot_that_is_filled_again_holds_nothing_of_the_task_before() -> None:
    bank, fresh = Bank(INPUTS, 2), Bank(INPUTS, 2)
    bank.put(0, task(1, num_prompts=6))
    bank.put(1, task(2, num_prompts=6))
    for one in (bank, fresh):
        one.put(0, task(3, num_prompts=2))

    assert bank.feed([0])["prompts"].shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(bank.feed([0])["prompts"][:, 0], fresh.feed([0])["prompts"][:, 0])
    np.testing.assert_array_equal(bank.feed([1])["prompts"][2:, 0], 0)
    np.testing.assert_array_equal(bank.feed([1])["gate"], [[3, 3], [2, 2]])


def test_copy_of_the_batch_has_what_its_slots_have() -> None:
    bank = Bank(INPUTS, 8)
    for slot, num_prompts in {1: 3, 4: 2, 7: 9}.items():
        bank.put(slot, task(slot, num_prompts))

    everything, own = bank.feed([4, 1, 4]), bank.feed([4, 1, 4], copy=True)

    assert own["gate"].shape == (2, 2)
    assert own["prompts"].shape == (3, 2, 2, 3)
    assert own[SLOTS].tolist() == [0, 1]
    np.testing.assert_array_equal(own["gate"], everything["gate"][everything[SLOTS]])
    np.testing.assert_array_equal(own["prompts"], everything["prompts"][:, everything[SLOTS]])
    for name in (PLACE, BACK, NUM_PROMPTS):
        np.testing.assert_array_equal(own[name], everything[name])


def test_linear_probe_is_fed_nothing() -> None:
    bank = Bank({}, 2)
    bank.put(0, {})

    assert bank.feed([0, 1]) == {}


@pytest.mark.parametrize(
    ("slots", "wanted"),
    [
        ([5], {SLOTS: [5], PLACE: [[0]], BACK: [0]}),
        ([5, 5, 5], {SLOTS: [5], PLACE: [[0, 1, 2]], BACK: [0, 1, 2]}),
        ([7, 3], {SLOTS: [3, 7], PLACE: [[1], [0]], BACK: [1, 0]}),
        ([7, 3, 7], {SLOTS: [3, 7], PLACE: [[1, 0], [0, 2]], BACK: [2, 0, 3]}),
    ],
)
def test_rows_by_hand(slots: list[int], wanted: dict[str, Any]) -> None:
    got = row_inputs(np.array(slots, np.int64))

    assert {name: array.tolist() for name, array in got.items()} == wanted
    assert {array.dtype for array in got.values()} == {np.dtype(np.int64)}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_every_row_is_found_again_at_the_place_of_its_own_task(slots: list[int]) -> None:
    rows = row_inputs(np.array(slots, np.int64))

    task_of_place, _ = np.divmod(rows[BACK], rows[PLACE].shape[1])
    assert rows[SLOTS][task_of_place].tolist() == slots
    assert rows[PLACE].flatten()[rows[BACK]].tolist() == list(range(len(slots)))
    assert rows[SLOTS].tolist() == sorted(set(slots))
    assert rows[PLACE].shape[1] == max(slots.count(slot) for slot in slots)
