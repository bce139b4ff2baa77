"""Long-term Spatial Prompt Tuning (Mo et al. 2024, arXiv 2402.17406).

Between two blocks the prompts pass two coders. Global Spatial Prompt Coding adds the mean patch
embedding, against spatial forgetting; Long-term Prompt Coding runs one cell, shared by all blocks,
along the depth, against temporal forgetting.
"""

from dataclasses import dataclass

from torch import Tensor

from lspt_serve.errors import MethodError, nearest
from lspt_serve.models.coders import CODERS
from lspt_serve.models.methods.base import Shape, State
from lspt_serve.models.methods.vpt import VPTSettings, VPTShallow

__all__ = ["LSPT", "LSPTSettings", "spatial_prompt_coding"]


@dataclass(frozen=True, kw_only=True)
class LSPTSettings(VPTSettings):
    """Options of LSPT. The defaults are the paper's as far as it tells; the others are ablations.

    Args:
        gspc: add the mean patch embedding to the prompts.
        lpc: run the coder along the depth. With gspc and lpc off LSPT is VPT-shallow.
        coder: lstm (the paper's), gru or ema (ours).
        coder_hidden: width of the cell, None for embed_dim; else behind linear maps (ours).
        residual: Z_l = S_l + h_l in place of Z_l = h_l (ours).
    """

    gspc: bool = True
    lpc: bool = True
    coder: str = "lstm"
    coder_hidden: int | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coder not in CODERS:
            known = ", ".join(CODERS)
            raise MethodError(
                f"unknown coder {self.coder!r}; wanted one of: {known}{nearest(self.coder, CODERS)}"
            )
        if self.coder_hidden is not None and self.coder_hidden < 1:
            raise MethodError(f"coder_hidden must be at least 1, got {self.coder_hidden}")


def spatial_prompt_coding(prompts: Tensor, patches: Tensor) -> Tensor:
    """GSPC: S_l = Z_l + mean over the N patches of X_l; B x P x D and B x N x D to B x P x D."""
    return prompts + patches.mean(dim=1, keepdim=True)


class LSPT(VPTShallow):
    """S_l = Z_l + mean(X_l), then (h_l, c_l) = cell(S_l, h_{l-1}, c_{l-1}) and Z_l := h_l."""

    name = "lspt"
    settings_type = LSPTSettings
    settings: LSPTSettings

    def __init__(self, settings: LSPTSettings, vit: Shape) -> None:
        super().__init__(settings, vit)
        if settings.lpc:
            self.coder = CODERS[settings.coder](vit.embed_dim, settings.coder_hidden)

    def start(self, patches: Tensor) -> tuple[Tensor, State]:
        prompts, _ = super().start(patches)
        return prompts, self.coder.start(prompts) if self.settings.lpc else ()

    def advance(
        self, block: int, entered: Tensor, left: Tensor, patches: Tensor, state: State
    ) -> tuple[Tensor, State]:
        s = spatial_prompt_coding(left, patches) if self.settings.gspc else left
        if not self.settings.lpc:
            return s, state
        h, state = self.coder(s, state)
        return (s + h if self.settings.residual else h), state
