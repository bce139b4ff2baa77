"""Prompt coders: recurrent cells that run along the depth of the ViT, one step per block.

"Time" is the block index and every prompt token is its own sequence (LSPT, METHOD section LPC). The
functions hold the mathematics, the modules the weights, under torch.nn.LSTMCell's and GRUCell's
names and with their gate order.

B batch, P prompts, D embed_dim, H width of the cell.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lspt_serve.models.rows import Affine, affine

__all__ = [
    "CODERS",
    "EMACoder",
    "GRUCoder",
    "LSTMCoder",
    "PromptCoder",
    "ema_step",
    "gru_step",
    "lstm_step",
]

State = tuple[Tensor, ...]


def lstm_step(
    x: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> State:
    """i, f, g, o = split(W_ih x + b_ih + W_hh h + b_hh); c' = f c + i g; h' = o tanh(c').

    Args:
        x: ... x D.
        state: (h, c), each ... x H.
    """
    h, c = state
    gates = affine(x, w_ih, b_ih) + affine(h, w_hh, b_hh)  # ... x 4H
    i, f, g, o = gates.chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(
    x: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> State:
    """r, z, n of torch.nn.GRUCell; h' = (1 - z) n + z h.

    Args:
        x: ... x D.
        state: (h,), ... x H.
    """
    (h,) = state
    r_x, z_x, n_x = affine(x, w_ih, b_ih).chunk(3, dim=-1)
    r_h, z_h, n_h = affine(h, w_hh, b_hh).chunk(3, dim=-1)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()
    return ((1 - z) * n + z * h,)


def ema_step(x: Tensor, state: State, decay: Tensor) -> State:
    """h' = a h + (1 - a) x with a = sigmoid(decay), one per channel (ours, for the ablation)."""
    (h,) = state
    a = decay.sigmoid().unsqueeze(-2)
    return (a * h + (1 - a) * x,)


class PromptCoder(nn.Module, ABC):
    """A cell of width H, behind linear maps D -> H and H -> D where it is narrowed (ours).

    Args:
        starts_at_zero: what comes out passes a linear map H -> D whose weights start at 0 (ours).
    """

    num_states = 1

    def __init__(self, embed_dim: int, width: int, *, starts_at_zero: bool = False) -> None:
        super().__init__()
        self.width = width
        narrow = width != embed_dim
        self.down = Affine(embed_dim, self.width) if narrow else nn.Identity()
        self.up = Affine(self.width, embed_dim) if narrow or starts_at_zero else nn.Identity()
        if starts_at_zero:
            for tensor in self.up.parameters():
                nn.init.zeros_(tensor)

    def start(self, prompts: Tensor) -> State:
        """h_0 = c_0 = 0 (ours: the paper does not say), each B x P x H."""
        zeros = prompts.new_zeros(*prompts.shape[:-1], self.width)
        return (zeros,) * self.num_states

    def forward(self, s: Tensor, state: State) -> tuple[Tensor, State]:
        """One step along the depth: S_l (B x P x D) and the state to h_l (B x P x D), new state."""
        state = self.cell(self.down(s), state)
        return self.up(state[0]), state

    @abstractmethod
    def cell(self, x: Tensor, state: State) -> State:
        """x (B x P x H) and the state to the new state, whose first tensor is the output."""


class _GatedCoder(PromptCoder):
    """Weights of a cell with `gates` gates, initialised as torch's cells are: U(+-1/sqrt(H))."""

    gates: int

    def __init__(self, embed_dim: int, width: int, *, starts_at_zero: bool = False) -> None:
        super().__init__(embed_dim, width, starts_at_zero=starts_at_zero)
        bound, rows = 1 / math.sqrt(self.width), self.gates * self.width
        self.weight_ih = nn.Parameter(torch.empty(rows, self.width).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(rows, self.width).uniform_(-bound, bound))
        self.bias_ih = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))
        self.bias_hh = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


class LSTMCoder(_GatedCoder):
    """The paper's long-term prompt coder: 8 H^2 + 8 H weights."""

    gates, num_states = 4, 2

    def cell(self, x: Tensor, state: State) -> State:
        return lstm_step(x, state, *self.weights)

    @torch.no_grad()
    def add_forget_bias(self, value: float) -> None:
        """Shift the initial bias of the forget gate; above 0 the cell forgets less at the start."""
        self.bias_ih[self.width : 2 * self.width] += value


class GRUCoder(_GatedCoder):
    """A GRU in the LSTM's place (ours, for the ablation): 6 H^2 + 6 H weights."""

    gates = 3

    def cell(self, x: Tensor, state: State) -> State:
        return gru_step(x, state, *self.weights)


class EMACoder(PromptCoder):
    """A learned exponential moving average in the LSTM's place (ours, for the ablation)."""

    def __init__(self, embed_dim: int, width: int, *, starts_at_zero: bool = False) -> None:
        super().__init__(embed_dim, width, starts_at_zero=starts_at_zero)
        self.decay = nn.Parameter(torch.zeros(self.width))

    def cell(self, x: Tensor, state: State) -> State:
        return ema_step(x, state, self.decay)


CODERS: dict[str, type[PromptCoder]] = {"lstm": LSTMCoder, "gru": GRUCoder, "ema": EMACoder}
