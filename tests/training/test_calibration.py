"""Temperature scaling and the calibration error, against worked examples."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lspt_serve.training.calibration import (
    MAX_TEMPERATURE,
    calibration_error,
    confidence_bins,
    fit_temperature,
    scale_head,
)


@pytest.mark.parametrize(("right", "share"), [(3, 17 / 24), (4, 11 / 12)])
def test_two_classes_are_scaled_to_say_how_often_they_are_right(right: int, share: float) -> None:
    """Of 4, smoothed by 1 / 6: 5 / 6 x right / 4 + 1 / 12; sigmoid(4 / T) is that."""
    logits = torch.tensor([[4.0, 0.0]]).repeat(4, 1)
    targets = (torch.arange(4) >= right).long()
    wanted = 4 / math.log(share / (1 - share))
    assert fit_temperature(logits, targets) == pytest.approx(wanted, rel=1e-6)


def test_no_other_temperature_has_a_lower_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(200, 7, generator=generator)
    targets = torch.randint(7, (200,), generator=generator)
    targets[:120] = logits[:120].argmax(dim=-1)
    fitted = fit_temperature(logits, targets)
    losses = [
        cross_entropy(logits / (fitted * factor), targets, label_smoothing=1 / 202).item()
        for factor in (0.98, 1, 1.02)
    ]
    assert 1 / MAX_TEMPERATURE < fitted < MAX_TEMPERATURE
    assert losses[1] == min(losses)


def test_a_temperature_without_a_minimum_stays_in_bounds() -> None:
    """Logits that are always wrong ask for T without end."""
    logits = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    fitted = fit_temperature(logits, torch.ones(3, dtype=torch.long))
    assert fitted == pytest.approx(MAX_TEMPERATURE, rel=1e-3)


def test_the_calibration_error_worked_by_hand() -> None:
    """Four images at confidence 0.9, half right; two at 0.6, all right: (4 x 0.4 + 2 x 0.4) / 6."""
    probabilities = torch.tensor([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    targets = torch.tensor([0, 0, 1, 1, 1, 1])
    assert calibration_error(probabilities.log(), targets) == pytest.approx(0.4, abs=1e-6)


def test_the_bins_of_confidence_worked_by_hand() -> None:
    """In quarters: 0.9 and 1.0 in the last, 0.5 in the second, whose upper edge it is."""
    probabilities = torch.tensor([[0.9, 0.1], [0.0, 1.0], [0.5, 0.5], [0.1, 0.9]])
    bins = confidence_bins(probabilities.log(), torch.tensor([0, 0, 0, 1]), num_bins=4)
    wanted = torch.tensor([[0, 0, 0], [1, 0.5, 1], [0, 0, 0], [3, 2.8, 2]], dtype=torch.float64)
    torch.testing.assert_close(bins, wanted, atol=1e-6, rtol=0)


def test_scores_that_are_always_right_and_sure_have_no_error() -> None:
    assert calibration_error(100 * torch.eye(3), torch.arange(3)) == 0


def test_a_scaled_head_gives_scaled_logits() -> None:
    head, features = nn.Linear(6, 3), torch.randn(4, 6)
    wanted = head(features) / 2.5
    scale_head(head, 2.5)
    torch.testing.assert_close(head(features), wanted, atol=1e-6, rtol=1e-5)
