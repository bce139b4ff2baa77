"""What is drawn for a step: which images, how each is changed, and what it is mixed with.

All of it is drawn for the whole global batch from one generator on the CPU, and only then cut into
micro-batches and into the shares of several processes: the cuts do not change what is trained.

N images of train, B of them in a batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lspt_serve.training.augment import Changes
from lspt_serve.training.settings import Sampling

__all__ = ["Picks", "draw_order", "mix"]


@dataclass(frozen=True)
class Picks:
    """B images of a split; where they have partners, `weight` is what is left of their own."""

    rows: Tensor  # B
    changes: Changes = Changes()  # noqa: RUF009  frozen
    partners: "Picks | None" = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: Tensor) -> "Picks":
        """Some of the images, given by their indices, with their partners."""
        partners = None if self.partners is None else self.partners.take(which)
        return Picks(self.rows[which], self.changes.take(which), partners, self.weight)

    def cut(self, pieces: int) -> "list[Picks]":
        """Pieces whose sizes differ by 1 at most; with fewer images than pieces some are empty."""
        return [self.take(which) for which in torch.arange(len(self)).tensor_split(pieces)]


def draw_order(targets: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The rows of an epoch, N of N.

    `all` is a permutation; `balanced` draws with replacement, every class equally likely.
    """
    if sampling == "all":
        return torch.randperm(len(targets), generator=generator)
    chances = 1 / targets.bincount().double()[targets]  # N
    return torch.multinomial(chances, len(targets), replacement=True, generator=generator)


def mix(picks: Picks, alpha: float, generator: torch.Generator) -> Picks:
    """mixup (Zhang et al. 2018): a partner from the same batch for each, one weight for all.

    The weight is of Beta(alpha, alpha); numpy draws it, seeded by the generator.
    """
    partners = picks.take(torch.randperm(len(picks), generator=generator))
    seed = torch.randint(2**63 - 1, (), generator=generator).item()
    weight = float(np.random.default_rng(int(seed)).beta(alpha, alpha))
    return Picks(picks.rows, picks.changes, partners, weight)
