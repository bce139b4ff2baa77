"""Confusion, worst errors and examples against worked examples."""

import numpy as np
import pytest
import torch

from lspt_serve.pictures import short
from lspt_serve.training.data import Split
from lspt_serve.training.report.charts import cell_labels, pool_cells
from lspt_serve.training.report.numbers import (
    Answer,
    Bin,
    ClassRow,
    Pair,
    class_rows,
    confused_pairs,
    confusion_matrix,
    list_answers,
    list_bins,
    pick_examples,
)

LABELS = ["ant", "bee", "cat", "dog"]
TARGETS = np.array([0, 0, 0, 1, 1, 2])  # no dog
PREDICTED = np.array([0, 1, 1, 1, 0, 0])  # cat and dog are never said
CONFUSION = np.array([[1, 2, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_rows_of_the_confusion_matrix_are_true_and_columns_predicted() -> None:
    assert np.array_equal(confusion_matrix(PREDICTED, TARGETS, 4), CONFUSION)


def test_labels_come_worst_first_and_those_without_images_last() -> None:
    assert class_rows(CONFUSION, LABELS) == [
        ClassRow("cat", 1, 0, 0.0),
        ClassRow("ant", 3, 1, 1 / 3),
        ClassRow("bee", 2, 1, 0.5),
        ClassRow("dog", 0, 0, None),
    ]


def test_of_labels_equally_bad_that_with_more_images_comes_first() -> None:
    rows = class_rows(np.array([[1, 1, 0], [2, 2, 0], [0, 0, 5]]), LABELS[:3])
    assert [row.label for row in rows] == ["bee", "ant", "cat"]


def test_pairs_come_by_images_then_by_share() -> None:
    pairs = [Pair("ant", "bee", 2, 2 / 3), Pair("cat", "ant", 1, 1.0), Pair("bee", "ant", 1, 0.5)]
    assert confused_pairs(CONFUSION, LABELS, limit=9) == pairs
    assert confused_pairs(CONFUSION, LABELS, limit=2) == pairs[:2]
    assert confused_pairs(np.diag([3, 1]), LABELS[:2], limit=9) == []


def test_answers_come_surest_first() -> None:
    scores = np.array([[0.6, 0.3, 0.1], [0.05, 0.9, 0.05], [0.2, 0.1, 0.7]], np.float32)
    test = Split(np.zeros((3, 1, 1, 3), np.uint8), np.array([0, 2, 2]), names=["x", "y", "z"])
    answers = list_answers(scores, test, LABELS[:3])
    assert [(a.index, a.name, a.true, a.predicted, a.right) for a in answers] == [
        (1, "y", "cat", "bee", False),
        (2, "z", "cat", "cat", True),
        (0, "x", "ant", "ant", True),
    ]
    assert [a.score for a in answers] == pytest.approx([0.9, 0.7, 0.6])
    assert [a.true_score for a in answers] == pytest.approx([0.05, 0.7, 0.6])


def answer(index: int, true: str, predicted: str | None = None) -> Answer:
    return Answer(index, "", true, predicted or true, score=1 - index / 10, true_score=0.0)


def picked(answers: list[Answer]) -> list[int]:
    return [a.index for a in pick_examples(answers, wrong=2, right=2)]


def test_examples_are_the_surest_wrong_ones_then_right_ones_of_different_labels() -> None:
    right = [answer(0, "ant"), answer(2, "ant"), answer(4, "bee")]
    wrong = [answer(1, "ant", "bee"), answer(3, "ant", "bee"), answer(5, "bee", "ant")]
    answers = sorted(right + wrong, key=lambda a: a.index)
    assert picked(answers) == [1, 3, 0, 4]


def test_examples_of_one_kind_fill_the_place_of_the_other() -> None:
    right = [answer(i, "ant") for i in range(5)]
    wrong = [answer(i, "ant", "bee") for i in range(5, 10)]
    assert picked(right) == [0, 1, 2, 3]
    assert picked(wrong) == [5, 6, 7, 8]
    assert picked([right[0], *wrong]) == [5, 6, 7, 0]
    assert picked([*right, wrong[0]]) == [5, 0, 1, 2]
    assert picked(right[:1] + wrong[:1]) == [5, 0]


def test_bins_hold_means_and_empty_ones_nothing() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.95, 0.05]])
    bins = list_bins(probabilities.log(), torch.tensor([0, 0, 0]))
    assert len(bins) == 15
    assert bins[0] == Bin(0.0, bins[1].low, 0, None, None)
    assert (bins[13].low, bins[13].high) == pytest.approx((13 / 15, 14 / 15))
    assert [each.images for each in bins[12:]] == [0, 2, 1]
    assert [each.confidence for each in bins[13:]] == pytest.approx([0.9, 0.95])
    assert [each.accuracy for each in bins[13:]] == [0.5, 1.0]


@pytest.mark.parametrize(("num_classes", "step"), [(2, 1), (120, 1), (121, 2), (1000, 9)])
def test_a_drawn_cell_stands_for_as_many_labels_as_it_must(num_classes: int, step: int) -> None:
    assert cell_labels(num_classes) == step
    assert len(pool_cells(np.eye(num_classes))) == -(-num_classes // step)


def test_a_pooled_cell_is_a_mean_on_the_diagonal_and_elsewhere_the_largest() -> None:
    shares = np.zeros((241, 241))  # 81 x 81 cells of 3 labels, the last of 1
    np.fill_diagonal(shares, 0.5)
    shares[0, 0], shares[0, 1], shares[5, 4], shares[2, 240] = 1.0, 0.9, 0.8, 0.7
    shares[3, 0], shares[4, 1] = 0.2, 0.3

    pooled = pool_cells(shares)

    assert pooled.shape == (81, 81)
    assert [pooled[0, 0], pooled[1, 1], pooled[80, 80]] == pytest.approx([2 / 3, 0.5, 0.5])
    assert [pooled[1, 0], pooled[0, 80], pooled[0, 1]] == pytest.approx([0.3, 0.7, 0.0])


@pytest.mark.parametrize(
    ("label", "fits"),
    [
        ("cat", "cat"),
        ("line\nbreak", "line break"),
        ("\x00 nul ", "nul"),
        ("abcdefghijk", "abcdefghi…"),
    ],
)
def test_a_label_is_made_to_fit_a_picture(label: str, fits: str) -> None:
    assert short(label, limit=10) == fits
