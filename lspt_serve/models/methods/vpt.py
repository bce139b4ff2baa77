"""Visual prompt tuning, shallow and deep (Jia et al. 2022), the base that everything extends."""

from dataclasses import dataclass

from torch import Tensor, nn

from lspt_serve.bounds import MAX_PROMPTS
from lspt_serve.errors import MethodError
from lspt_serve.models.methods.base import PromptMethod, Settings, Shape, State, uniform_prompts
from lspt_serve.models.rows import Rows

__all__ = ["VPTDeep", "VPTSettings", "VPTShallow"]


@dataclass(frozen=True, kw_only=True)
class VPTSettings(Settings):
    """Options of VPT; `prompt_dropout` falls on the expanded prompts, in training only.

    The default number of prompts (ours) is a compromise: LSPT gains from more, see docs/results.md,
    and every one of them is a token that is served.
    """

    num_prompts: int = 16
    prompt_dropout: float = 0.0

    training_only = frozenset({"prompt_dropout"})

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise MethodError(f"num_prompts must be at least 1, got {self.num_prompts}")
        if self.num_prompts > MAX_PROMPTS:
            raise MethodError(
                f"num_prompts must be at most {MAX_PROMPTS}, which servers take, got "
                f"{self.num_prompts}"
            )
        if not 0 <= self.prompt_dropout < 1:
            raise MethodError(f"prompt_dropout must be in [0, 1), got {self.prompt_dropout}")


class VPTShallow(PromptMethod):
    """[x_l, Z_l, X_l] = B_l([x_{l-1}, Z_{l-1}, X_{l-1}]), Z_0 = P_0."""

    name = "vpt-shallow"
    settings_type = VPTSettings

    def __init__(self, settings: VPTSettings, vit: Shape) -> None:
        super().__init__(settings)
        self.prompts = uniform_prompts((settings.num_prompts, vit.embed_dim), vit)  # P x D
        self.dropout = nn.Dropout(settings.prompt_dropout)

    def start(self, patches: Tensor, rows: Rows) -> tuple[Tensor, State]:
        return self.dropout(rows.spread(self.prompts)), ()


class VPTDeep(PromptMethod):
    """[x_l, _, X_l] = B_l([x_{l-1}, P_{l-1}, X_{l-1}]): every block has prompts of its own."""

    name = "vpt-deep"
    settings_type = VPTSettings
    default_init = "tokens"

    def __init__(self, settings: VPTSettings, vit: Shape) -> None:
        super().__init__(settings)
        shape = (vit.depth, settings.num_prompts, vit.embed_dim)
        self.prompts = uniform_prompts(shape, vit)  # L x P x D
        self.dropout = nn.Dropout(settings.prompt_dropout)

    def start(self, patches: Tensor, rows: Rows) -> tuple[Tensor, State]:
        return self._prompts_of(0, rows), ()

    def advance(
        self, block: int, entered: Tensor, left: Tensor, patches: Tensor, state: State, rows: Rows
    ) -> tuple[Tensor, State]:
        return self._prompts_of(block, rows), state

    def _prompts_of(self, block: int, rows: Rows) -> Tensor:
        spread: Tensor = self.dropout(rows.spread(self.prompts.select(-3, block)))
        return spread  # B x P x D
