"""Visual Fourier Prompt Tuning (Zeng et al. 2024, arXiv 2411.01327).

VPT-deep, a share of whose prompts passes a 2-D Fourier transform before it enters its block. What
enters does not depend on the image, so the transform is folded away before serving (ours).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lspt_serve.errors import MethodError
from lspt_serve.models.methods.base import Shape
from lspt_serve.models.methods.vpt import VPTDeep, VPTSettings
from lspt_serve.models.rows import Rows

__all__ = ["VFPT", "VFPTSettings", "fourier_prompts"]


@dataclass(frozen=True, kw_only=True)
class VFPTSettings(VPTSettings):
    """`fourier_share`: share of each block's prompts that is transformed, rounded down.

    The paper chooses it task by task; the default is ours.
    """

    fourier_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fourier_share <= 1:
            raise MethodError(f"fourier_share must be in [0, 1], got {self.fourier_share}")

    @property
    def num_fourier_prompts(self) -> int:
        return math.floor(round(self.fourier_share * self.num_prompts, 6))  # 0.29 of 100 is 29


def fourier_prompts(prompts: Tensor, count: int) -> Tensor:
    """Re(FFT(P)) along prompts and width for the first `count`; ... x P x D to ... x P x D.

    Unnormalised, as in the paper: the transform of uniform prompts is sqrt(count D / 2) as large.
    """
    if count == 0:
        return prompts
    first, others = prompts[..., :count, :], prompts[..., count:, :]
    return torch.cat([torch.fft.fft2(first).real, others], dim=-2)


class VFPT(VPTDeep):
    """[x_l, _, X_l] = B_l([x_{l-1}, Re(FFT(F_{l-1})), P_{l-1}, X_{l-1}]).

    F are the first prompts of a block, P the others; prompt dropout falls before the transform.
    """

    name = "vfpt"
    settings_type = VFPTSettings
    settings: VFPTSettings
    default_init = "uniform"

    def __init__(self, settings: VFPTSettings, vit: Shape) -> None:
        super().__init__(settings, vit)
        self.vit = vit

    def _prompts_of(self, block: int, rows: Rows) -> Tensor:
        prompts = super()._prompts_of(block, rows)  # B x P x D
        return fourier_prompts(prompts, self.settings.num_fourier_prompts)

    @torch.no_grad()
    def fold(self) -> VPTDeep:
        """VPT-deep with the prompts as they are after the transform."""
        num_prompts, dropout = self.settings.num_prompts, self.settings.prompt_dropout
        folded = VPTDeep(VPTSettings(num_prompts=num_prompts, prompt_dropout=dropout), self.vit)
        prompts = fourier_prompts(self.prompts, self.settings.num_fourier_prompts)
        folded.prompts = nn.Parameter(prompts.clone())  # L x P x D
        return folded.train(self.training)
