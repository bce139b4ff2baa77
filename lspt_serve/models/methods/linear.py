"""Linear probe: no prompts, a head on the frozen features. The baseline of every table."""

from dataclasses import dataclass

from torch import Tensor

from lspt_serve.models.methods.base import PromptMethod, Settings, Shape, State
from lspt_serve.models.rows import Rows

__all__ = ["Linear", "LinearSettings"]


@dataclass(frozen=True, kw_only=True)
class LinearSettings(Settings):
    """A linear probe has no options."""


class Linear(PromptMethod):
    """P = 0."""

    name = "linear"
    settings_type = LinearSettings

    def __init__(self, settings: LinearSettings, vit: Shape) -> None:
        super().__init__(settings)

    def start(self, patches: Tensor, rows: Rows) -> tuple[Tensor, State]:
        return patches[:, :0], ()
