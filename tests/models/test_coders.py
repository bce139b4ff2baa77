import pytest
import torch
from torch import Tensor, nn

from lspt_serve.models.coders import CODERS, GRUCoder, LSTMCoder, ema_step, gru_step, lstm_step

# B batch, P prompts, D embed_dim, H hidden width
B, P, D, H, STEPS = 2, 3, 8, 5, 4
CELLS: dict[str, type[nn.LSTMCell] | type[nn.GRUCell]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


def weights_of(cell: nn.RNNCellBase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def test_lstm_step_is_torchs_lstm_cell() -> None:
    cell, inputs = nn.LSTMCell(D, H), torch.randn(STEPS, B, D)
    ours = theirs = (torch.zeros(B, H), torch.zeros(B, H))
    for x in inputs:
        h, c = lstm_step(x, ours, *weights_of(cell))
        ours, theirs = (h, c), cell(x, theirs)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_gru_step_is_torchs_gru_cell() -> None:
    cell, inputs = nn.GRUCell(D, H), torch.randn(STEPS, B, D)
    ours = theirs = torch.zeros(B, H)
    for x in inputs:
        (ours,) = gru_step(x, (ours,), *weights_of(cell))
        theirs = cell(x, theirs)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_lstm_step_on_numbers_worked_by_hand() -> None:
    # W_ih = 0 and W_hh = 0, so the gates are their biases: i = f = o = sigmoid(0), g = tanh(1).
    zeros = torch.zeros(4, 1)
    bias = torch.tensor([0.0, 0.0, 1.0, 0.0])
    state = (torch.tensor([[9.0]]), torch.tensor([[2.0]]))
    h, c = lstm_step(torch.tensor([[7.0]]), state, zeros, zeros, bias, torch.zeros(4))
    assert c.item() == pytest.approx(0.5 * 2 + 0.5 * 0.76159416, abs=1e-6)
    assert h.item() == pytest.approx(0.5 * 0.88112963, abs=1e-6)  # tanh(1.38079708)


def test_ema_step_on_numbers_worked_by_hand() -> None:
    decay = torch.tensor([0.0, 1.0986123])  # sigmoid: 1/2, 3/4
    x, h = torch.tensor([[4.0, 4.0]]), torch.tensor([[2.0, 8.0]])
    (new,) = ema_step(x, (h,), decay)
    torch.testing.assert_close(new, torch.tensor([[3.0, 7.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_full_width_coder_is_the_bare_cell_on_every_prompt(name: str) -> None:
    coder, cell = CODERS[name](D, D), CELLS[name](D, D)
    cell.load_state_dict(coder.state_dict())
    inputs = torch.randn(STEPS, B, P, D)
    state, theirs = coder.start(inputs[0]), None
    for s in inputs:
        h, state = coder(s, state)
        theirs = cell(s.reshape(B * P, D), theirs)
        wanted = theirs[0] if isinstance(theirs, tuple) else theirs
        torch.testing.assert_close(h.reshape(B * P, D), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_narrow_coder_is_linear_then_cell_then_linear(name: str) -> None:
    coder = CODERS[name](D, H)
    tensors = coder.state_dict()
    down, cell, up = nn.Linear(D, H), CELLS[name](H, H), nn.Linear(H, D)
    for part, prefix in ((down, "down."), (up, "up.")):
        part.load_state_dict({k: tensors.pop(f"{prefix}{k}") for k in ("weight", "bias")})
    cell.load_state_dict(tensors)
    inputs = torch.randn(STEPS, B, P, D)
    state, theirs = coder.start(inputs[0]), None
    for s in inputs:
        out, state = coder(s, state)
        theirs = cell(down(s).reshape(B * P, H), theirs)
        h = theirs[0] if isinstance(theirs, tuple) else theirs
        torch.testing.assert_close(out, up(h).reshape(B, P, D), atol=1e-6, rtol=0)


def test_a_narrow_ema_averages_behind_the_linear_maps() -> None:
    coder = CODERS["ema"](D, H)
    nn.init.constant_(coder.get_parameter("decay"), 1.0986123)  # keeps 3/4
    s = torch.randn(B, P, D)
    first, state = coder(s, coder.start(s))
    second, _ = coder(s, state)
    x = coder.down(s)
    torch.testing.assert_close(first, coder.up(0.25 * x), atol=1e-6, rtol=0)
    torch.testing.assert_close(second, coder.up(0.4375 * x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "states"), [("lstm", 2), ("gru", 1), ("ema", 1)])
def test_the_first_state_is_zero_and_as_wide_as_the_cell(name: str, states: int) -> None:
    start = CODERS[name](D, H).start(torch.randn(B, P, D))
    assert len(start) == states
    assert all(torch.equal(part, torch.zeros(B, P, H)) for part in start)


@pytest.mark.parametrize(("coder", "factor"), [(LSTMCoder(D, D), 8), (GRUCoder(D, D), 6)])
def test_a_full_width_cell_has_the_stated_number_of_weights(coder: nn.Module, factor: int) -> None:
    assert sum(p.numel() for p in coder.parameters()) == factor * D**2 + factor * D


def test_one_image_does_not_reach_into_another() -> None:
    coder = CODERS["lstm"](D, H)
    s = torch.randn(B, P, D)
    together, _ = coder(s, coder.start(s))
    alone, _ = coder(s[:1], coder.start(s[:1]))
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)
