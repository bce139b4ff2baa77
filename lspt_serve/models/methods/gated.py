"""Gated prompt tuning.

Yoo et al. 2023, "Improving Visual Prompt Tuning for Self-supervised Vision Transformers".
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lspt_serve.errors import MethodError
from lspt_serve.models.methods.base import Shape, State
from lspt_serve.models.methods.vpt import VPTSettings, VPTShallow
from lspt_serve.models.rows import Rows

__all__ = ["Gated", "GatedSettings"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 10.0


@dataclass(frozen=True, kw_only=True)
class GatedSettings(VPTSettings):
    """`gate_init` is gamma at the start: strongly negative lets the input prompts through."""

    gate_init: float = -5.0

    training_only = frozenset({"prompt_dropout", "gate_init"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.gate_init):
            raise MethodError(f"gate_init must be finite, got {self.gate_init}")


class Gated(VPTShallow):
    """Z_l <- g_l Z_l + (1 - g_l) Z_{l-1}, g_l = sigmoid(gamma_l), after every block but the last.

    The attention of block l is softmax(q k^T / sqrt(d) / tau_l), tau_l kept in [0.01, 10].
    """

    name = "gated"
    settings_type = GatedSettings

    def __init__(self, settings: GatedSettings, vit: Shape) -> None:
        super().__init__(settings, vit)
        self.gamma = nn.Parameter(torch.full((vit.depth - 1,), settings.gate_init))
        self.tau = nn.Parameter(torch.ones(vit.depth))

    def advance(
        self, block: int, entered: Tensor, left: Tensor, patches: Tensor, state: State, rows: Rows
    ) -> tuple[Tensor, State]:
        gate = rows.spread(self.gamma.select(-1, block - 1)).sigmoid()[:, None, None]
        return gate * left + (1 - gate) * entered, state

    def temperature(self, block: int, rows: Rows) -> Tensor:
        return rows.spread(self.tau.select(-1, block - 1)).clamp(MIN_TEMPERATURE, MAX_TEMPERATURE)
