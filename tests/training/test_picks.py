from itertools import chain

import numpy as np
import pytest
import torch

from lspt_serve.training.augment import Changes
from lspt_serve.training.picks import Picks, draw_order, mix


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picked(count: int) -> Picks:
    """Rows 100, 101, ... with changes that tell them apart."""
    along = torch.arange(count)
    return Picks(along + 100, Changes(torch.stack([along, -along]), along % 2 == 0))


def told(picks: Picks) -> list[tuple[int, int, int, bool]]:
    assert picks.changes.starts is not None
    assert picks.changes.mirrored is not None
    tops, lefts = picks.changes.starts.tolist()
    columns = (picks.rows.tolist(), tops, lefts, picks.changes.mirrored.tolist())
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("pieces", "sizes"), [(1, [7]), (2, [4, 3]), (3, [3, 2, 2]), (9, [1] * 7 + [0, 0])]
)
def test_pieces_are_the_batch_in_its_order_with_its_partners(pieces: int, sizes: list[int]) -> None:
    batch = mix(picked(7), 1.0, seeded())

    cut = batch.cut(pieces)

    assert [len(piece) for piece in cut] == sizes
    assert list(chain(*map(told, cut))) == told(batch)
    assert batch.partners is not None
    theirs = [piece.partners for piece in cut if piece.partners is not None]
    assert list(chain(*map(told, theirs))) == told(batch.partners)
    assert {piece.weight for piece in cut} == {batch.weight}


def test_partners_are_the_batch_in_another_order_with_their_changes() -> None:
    batch = mix(picked(20), 1.0, seeded())

    assert batch.partners is not None
    assert told(batch) == told(picked(20))
    assert told(batch.partners) != told(batch)
    assert sorted(told(batch.partners)) == told(batch)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_weights_are_of_a_beta_distribution(alpha: float) -> None:
    generator = seeded()

    weights = [mix(picked(2), alpha, generator).weight for _ in range(4000)]

    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha)
    assert np.mean(weights) == pytest.approx(0.5, abs=4 * (variance / 4000) ** 0.5)
    assert np.var(weights) == pytest.approx(variance, rel=0.1)


def test_same_seed_mixes_alike_and_another_otherwise() -> None:
    first, again, other = (mix(picked(20), 1.0, seeded(seed)) for seed in (1, 1, 2))

    assert first.weight == again.weight != other.weight
    assert first.partners is not None
    assert again.partners is not None
    assert told(first.partners) == told(again.partners)


def test_an_epoch_of_all_is_every_row_once() -> None:
    order = draw_order(torch.zeros(50, dtype=torch.int64), "all", seeded())

    assert sorted(order.tolist()) == list(range(50)) != order.tolist()


def test_a_balanced_epoch_has_as_many_images_of_each_class() -> None:
    counts = torch.tensor([3000, 600, 0, 300])  # of the classes in train; one has none
    targets = torch.repeat_interleave(torch.arange(4), counts)

    order = draw_order(targets, "balanced", seeded())

    assert len(order) == 3900
    drawn = targets[order].bincount(minlength=4).tolist()
    assert drawn[2] == 0
    for count in (drawn[0], drawn[1], drawn[3]):  # 1300 each, standard deviation 29
        assert abs(count - 1300) < 4 * 29
    of_last = order[targets[order] == 3].bincount(minlength=3900)[3600:]
    assert (of_last > 0).float().mean() > 0.95  # 1 - exp(-1300 / 300) = 0.987 of its images
