"""Long-term Spatial Prompt Tuning (Mo et al. 2024, arXiv 2402.17406).

Between two blocks the prompts pass two coders. Global Spatial Prompt Coding adds the mean patch
embedding, against spatial forgetting; Long-term Prompt Coding runs one cell, shared by all blocks,
along the depth, against temporal forgetting.
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import layer_norm

from lspt_serve.errors import MethodError, nearest
from lspt_serve.models.coders import CODERS, LSTMCoder
from lspt_serve.models.methods.base import Shape, State, uniform_prompts
from lspt_serve.models.methods.vpt import VPTSettings, VPTShallow
from lspt_serve.models.rows import Rows

__all__ = ["LSPT", "LSPTSettings", "normalise_input", "spatial_prompt_coding"]

EPS = 1e-6  # of a ViT's own norms


@dataclass(frozen=True, kw_only=True)
class LSPTSettings(VPTSettings):
    """Options of LSPT. The defaults did better than the paper's, see docs/results.md.

    The paper's LSPT, as far as it tells, is coder_hidden=D, input_norm=False, deep=False.

    Args:
        gspc: add the mean patch embedding to the prompts.
        lpc: run the coder along the depth. With gspc and lpc off LSPT is VPT-shallow.
        coder: lstm (the paper's), gru or ema (ours).
        coder_hidden: width of the cell. None is an eighth of embed_dim D, not the full width: that
            is coder_hidden=D. Unless it is D, the cell is behind linear maps (ours).
        residual: Z_l = S_l + h_l in place of Z_l = h_l (ours).
        input_norm: the coder sees LayerNorm(S_l) in place of S_l (ours).
        deep: every block has prompts P_l of its own, as in VPT-deep, and the coder adds to them, at
            the start nothing: Z_l = P_l + U h_l with U = 0 (ours). Part of the coder: without lpc
            there is none of it.
        forget_bias: added to the initial bias of the LSTM's forget gate (ours).
    """

    gspc: bool = True
    lpc: bool = True
    coder: str = "lstm"
    coder_hidden: int | None = None
    residual: bool = False
    input_norm: bool = True
    deep: bool = True
    forget_bias: float | None = None

    training_only = frozenset({"prompt_dropout", "forget_bias"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coder not in CODERS:
            known = ", ".join(CODERS)
            raise MethodError(
                f"unknown coder {self.coder!r}; wanted one of: {known}{nearest(self.coder, CODERS)}"
            )
        if self.coder_hidden is not None and self.coder_hidden < 1:
            raise MethodError(f"coder_hidden must be at least 1, got {self.coder_hidden}")
        if self.deep and self.residual:
            raise MethodError("deep and residual are two ways to use the coder; choose one")
        if self.forget_bias is not None:
            self._check_forget_bias(self.forget_bias)

    def _check_forget_bias(self, forget_bias: float) -> None:
        if not math.isfinite(forget_bias):
            raise MethodError(f"forget_bias must be finite, got {forget_bias}")
        if not self.lpc or self.coder != "lstm":
            coder = self.coder if self.lpc else "none"
            raise MethodError(f"forget_bias needs coder 'lstm', got {coder!r}")


def spatial_prompt_coding(prompts: Tensor, patches: Tensor) -> Tensor:
    """GSPC: S_l = Z_l + mean over the N patches of X_l; B x P x D and B x N x D to B x P x D."""
    return prompts + patches.mean(dim=1, keepdim=True)


def normalise_input(s: Tensor) -> Tensor:
    """LayerNorm of S_l (... x D) without weights of its own (ours).

    S_l differs in size from block to block, and one cell serves them all. A scale and a shift would
    add nothing: the linear map that follows (of an LSTM, a GRU, or the narrowing one) holds both.
    """
    return layer_norm(s, s.shape[-1:], eps=EPS)


class LSPT(VPTShallow):
    """S_l = Z_l + mean(X_l), then (h_l, c_l) = cell(S_l, h_{l-1}, c_{l-1}) and Z_l := h_l.

    With `deep` (ours) Z_l := P_l + U h_l: it starts as VPT-deep, and learns what to carry along.
    """

    name = "lspt"
    settings_type = LSPTSettings
    settings: LSPTSettings

    def __init__(self, settings: LSPTSettings, vit: Shape) -> None:
        width = settings.coder_hidden or max(1, vit.embed_dim // 8)
        settings = replace(settings, coder_hidden=width)  # a bundle says it as a number
        super().__init__(settings, vit)
        self.deep = settings.lpc and settings.deep
        if self.deep:
            shape = (vit.depth, settings.num_prompts, vit.embed_dim)
            self.prompts = uniform_prompts(shape, vit)  # L x P x D
            self.default_init = "tokens"
        if settings.lpc:
            self.coder = CODERS[settings.coder](vit.embed_dim, width, starts_at_zero=settings.deep)
            if settings.forget_bias is not None and isinstance(self.coder, LSTMCoder):
                self.coder.add_forget_bias(settings.forget_bias)

    def start(self, patches: Tensor, rows: Rows) -> tuple[Tensor, State]:
        prompts = self._prompts_of(0, rows)
        return prompts, self.coder.start(rows.gather(prompts)) if self.settings.lpc else ()

    def advance(
        self, block: int, entered: Tensor, left: Tensor, patches: Tensor, state: State, rows: Rows
    ) -> tuple[Tensor, State]:
        s = spatial_prompt_coding(left, patches) if self.settings.gspc else left
        if not self.settings.lpc:
            return s, state
        seen = normalise_input(s) if self.settings.input_norm else s
        h, state = self.coder(rows.gather(seen), state)
        h = rows.scatter(h, left.shape[1])
        if self.deep:
            return self._prompts_of(block, rows) + h, state
        return (s + h if self.settings.residual else h), state

    def _prompts_of(self, block: int, rows: Rows) -> Tensor:
        own = self.prompts.select(-3, block) if self.deep else self.prompts
        spread: Tensor = self.dropout(rows.spread(own))
        return spread  # B x P x D
