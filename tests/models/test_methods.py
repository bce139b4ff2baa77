"""The methods without a backbone: settings, initialisation, what enters a block."""

import math
from typing import Any

import pytest
import torch
from toys import PAPER

from lspt_serve.errors import MethodError
from lspt_serve.models.methods import METHODS, Shape, create_method
from lspt_serve.models.methods.base import uniform_prompts
from lspt_serve.models.methods.lspt import normalise_input, spatial_prompt_coding
from lspt_serve.models.rows import OneTask

VIT = Shape(embed_dim=24, depth=3, patch_size=8)
ROWS = OneTask(2)
PATCHES = torch.arange(2 * 4 * 24, dtype=torch.float32).reshape(2, 4, 24)  # B=2, N=4


@pytest.mark.parametrize(
    ("patch_size", "embed_dim", "bound"),
    [(16, 768, math.sqrt(6 / 1536)), (8, 24, math.sqrt(6 / 216))],
)
def test_prompts_start_uniform_within_vpts_bound(
    patch_size: int, embed_dim: int, bound: float
) -> None:
    prompts = uniform_prompts((500, embed_dim), Shape(embed_dim, 12, patch_size)).detach()
    assert prompts.abs().max() <= bound
    assert prompts.max() > 0.99 * bound
    assert prompts.min() < -0.99 * bound
    assert prompts.mean().item() == pytest.approx(0, abs=0.02 * bound)
    assert prompts.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_spatial_prompt_coding_on_numbers_worked_by_hand() -> None:
    prompts = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    patches = torch.tensor([[[0.0, 9.0], [6.0, 0.0], [3.0, 3.0]]])  # mean: 3, 4
    wanted = torch.tensor([[[4.0, 6.0], [6.0, 8.0]]])
    assert torch.equal(spatial_prompt_coding(prompts, patches), wanted)


@pytest.mark.parametrize(
    ("name", "options"), [("vpt-shallow", {}), ("gated", {}), ("lspt", PAPER)], ids=str
)
def test_the_same_prompts_enter_block_1_for_every_image(name: str, options: dict[str, Any]) -> None:
    method = create_method(name, VIT, num_prompts=5, **options)
    prompts, _ = method.start(PATCHES, ROWS)
    own = method.get_parameter("prompts")
    assert torch.equal(prompts, torch.stack([own, own]))


def test_linear_has_no_prompts_and_no_tensors() -> None:
    method = create_method("linear", VIT)
    prompts, _ = method.start(PATCHES, ROWS)
    assert prompts.shape == (2, 0, 24)
    assert not method.state_dict()


def test_vpt_deep_gives_every_block_its_own_prompts() -> None:
    method = create_method("vpt-deep", VIT, num_prompts=5)
    own = method.get_parameter("prompts")  # L x P x D
    prompts, state = method.start(PATCHES, ROWS)
    entered = [prompts]
    for block in (1, 2):
        prompts, state = method.advance(block, prompts, torch.randn(2, 5, 24), PATCHES, state, ROWS)
        entered.append(prompts)
    assert own.shape == (3, 5, 24)
    for got, wanted in zip(entered, own, strict=True):
        assert torch.equal(got, torch.stack([wanted, wanted]))


def test_a_gate_mixes_what_left_a_block_with_what_entered_it() -> None:
    method = create_method("gated", VIT, num_prompts=1)
    gamma = method.get_parameter("gamma")
    gamma.data = torch.tensor([0.0, math.log(3)])  # g = 1/2, 3/4
    entered, left = torch.full((2, 1, 24), 4.0), torch.full((2, 1, 24), 8.0)
    first, _ = method.advance(1, entered, left, PATCHES, (), ROWS)
    second, _ = method.advance(2, entered, left, PATCHES, (), ROWS)
    torch.testing.assert_close(first, torch.full((2, 1, 24), 6.0))
    torch.testing.assert_close(second, torch.full((2, 1, 24), 7.0))


def test_gates_and_temperatures_start_where_the_options_say() -> None:
    method = create_method("gated", VIT, gate_init=-10.0)
    assert method.get_parameter("gamma").tolist() == [-10.0] * 2  # none after the last block
    assert method.get_parameter("tau").tolist() == [1.0] * 3


def test_gspc_alone_adds_the_mean_patch_embedding() -> None:
    method = create_method("lspt", VIT, num_prompts=2, lpc=False)
    left = torch.randn(2, 2, 24)
    prompts, _ = method.advance(1, torch.zeros_like(left), left, PATCHES, (), ROWS)
    wanted = left + PATCHES.sum(dim=1)[:, None] / 4
    torch.testing.assert_close(prompts, wanted, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("coder", ["lstm", "gru", "ema"])
def test_residual_adds_what_the_coder_saw(coder: str) -> None:
    plain = create_method("lspt", VIT, num_prompts=8, **PAPER, coder=coder)
    residual = create_method("lspt", VIT, num_prompts=8, **PAPER, coder=coder, residual=True)
    residual.load_state_dict(plain.state_dict())
    left = torch.randn(2, 8, 24)
    _, state = plain.start(PATCHES, ROWS)
    h, _ = plain.advance(1, left, left, PATCHES, state, ROWS)
    z, _ = residual.advance(1, left, left, PATCHES, state, ROWS)
    torch.testing.assert_close(z, spatial_prompt_coding(left, PATCHES) + h)


@pytest.mark.parametrize("hidden", [24, 6])
@pytest.mark.parametrize("coder", ["lstm", "gru", "ema"])
def test_deep_adds_what_the_coder_says_to_the_prompts_of_the_block(coder: str, hidden: int) -> None:
    options: dict[str, Any] = {"coder": coder, "coder_hidden": hidden}
    method = create_method("lspt", VIT, num_prompts=8, input_norm=False, **options)
    for name, tensor in method.named_parameters():
        if name.startswith("coder.up."):
            assert not tensor.any()  # it starts as VPT-deep
            torch.nn.init.normal_(tensor)
    left = torch.randn(2, 8, 24)
    entered, state = method.start(PATCHES, ROWS)
    own = method.get_parameter("prompts")
    assert own.shape == (3, 8, 24)
    assert torch.equal(entered, own[0].expand(2, -1, -1))
    prompts, after = method.advance(1, entered, left, PATCHES, state, ROWS)
    s = spatial_prompt_coding(left, PATCHES)
    h, wanted_state = method.get_submodule("coder")(s, state)
    torch.testing.assert_close(prompts, own[1] + h)
    assert all(map(torch.equal, after, wanted_state))
    assert h.abs().max() > 0.1


def test_normalise_input_on_numbers_worked_by_hand() -> None:
    s = torch.tensor([[[1.0, 3.0], [-5.0, 15.0]]])  # means 2 and 5, deviations 1 and 10
    wanted = torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]])
    torch.testing.assert_close(normalise_input(s), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("hidden", [24, 6])
def test_forget_bias_shifts_the_forget_gate_alone(hidden: int) -> None:
    torch.manual_seed(0)
    plain = create_method("lspt", VIT, coder_hidden=hidden)
    torch.manual_seed(0)
    biased = create_method("lspt", VIT, coder_hidden=hidden, forget_bias=2.5)
    for name, tensor in plain.state_dict().items():
        wanted = tensor.clone()
        if name == "coder.bias_ih":
            wanted[hidden : 2 * hidden] += 2.5
        assert torch.equal(biased.state_dict()[name], wanted), name


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (PAPER, 16 * 24 + 8 * 24**2 + 8 * 24),
        ({**PAPER, "coder": "gru"}, 16 * 24 + 6 * 24**2 + 6 * 24),
        ({**PAPER, "coder": "ema"}, 16 * 24 + 24),
        ({"deep": False}, 16 * 24 + (8 * 3**2 + 8 * 3) + (24 * 3 + 3) + (3 * 24 + 24)),
        ({}, 3 * 16 * 24 + 96 + (24 * 3 + 3) + (3 * 24 + 24)),  # a cell of an eighth of 24
        ({"coder_hidden": 24}, 3 * 16 * 24 + (8 * 24**2 + 8 * 24) + (24 * 24 + 24)),
        ({"coder_hidden": 24, "coder": "ema"}, 3 * 16 * 24 + 24 + (24 * 24 + 24)),
        ({"lpc": False}, 16 * 24),
        ({"lpc": False, "deep": False}, 16 * 24),
        ({"num_prompts": 3, "lpc": False}, 3 * 24),
    ],
)
def test_lspt_has_the_stated_number_of_weights(options: dict[str, Any], size: int) -> None:
    method = create_method("lspt", VIT, **options)
    assert sum(tensor.numel() for tensor in method.state_dict().values()) == size


@pytest.mark.parametrize("name", METHODS)
def test_the_number_of_prompts_and_options_of_training_do_not_shape_the_graph(name: str) -> None:
    options = create_method(name, VIT).settings.graph_options()
    of_training = {"prompt_dropout", "gate_init", "forget_bias", "kl_weight"}
    assert not options.keys() & {"num_prompts", *of_training}


def test_the_coder_shapes_the_graph() -> None:
    options = create_method("lspt", VIT, coder="gru", coder_hidden=6).settings.graph_options()
    assert options == {
        "gspc": True,
        "lpc": True,
        "coder": "gru",
        "coder_hidden": 6,
        "residual": False,
        "input_norm": True,
        "deep": True,
    }


def test_options_may_be_the_strings_of_a_command_line() -> None:
    settings: Any = create_method("lspt", VIT, num_prompts="3", gspc="false").settings
    assert (settings.num_prompts, settings.gspc) == (3, False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lspt", {"num_promts": 4}, "unknown option 'num_promts'.*nearest: num_prompts"),
        ("lspt", {"residuals": True}, "unknown option 'residuals'.*nearest: residual"),
        ("gated", {"gate": 1}, "unknown option 'gate'.*nearest: gate_init"),
        ("linear", {"num_prompts": 4}, "unknown option 'num_prompts'; wanted one of: none$"),
        ("vpt-deep", {"num_prompts": 0}, "^num_prompts must be at least 1, got 0$"),
        ("vpt-deep", {"num_prompts": 1.5}, "^num_prompts: .*valid integer"),
        ("vpt-deep", {"num_prompts": "many"}, "^num_prompts: .*valid integer"),
        ("vpt-deep", {"num_prompts": None}, "^num_prompts: .*valid integer"),
        ("vpt-shallow", {"prompt_dropout": 1.0}, r"^prompt_dropout must be in \[0, 1\), got 1"),
        ("vpt-shallow", {"prompt_dropout": -0.1}, r"^prompt_dropout must be in .*got -0\.1"),
        ("vpt-shallow", {"prompt_dropout": math.nan}, "^prompt_dropout must be in .*got nan"),
        ("lspt", {"coder": "lsmt"}, "^unknown coder 'lsmt'.*nearest: lstm"),
        ("lspt", {"coder": 3}, "^coder: "),
        ("lspt", {"coder_hidden": 0}, "^coder_hidden must be at least 1, got 0$"),
        ("lspt", {"residual": True}, "^deep and residual are two ways"),
        ("lspt", {"forget_bias": math.inf}, "^forget_bias must be finite, got inf$"),
        ("lspt", {"forget_bias": 1, "coder": "gru"}, "^forget_bias needs coder 'lstm', got 'gru'$"),
        ("lspt", {"forget_bias": 1, "lpc": False}, "^forget_bias needs coder 'lstm', got 'none'$"),
        ("vfpt", {"fourier_share": 1.5}, r"^fourier_share must be in \[0, 1\], got 1\.5$"),
        ("vfpt", {"fourier_share": -0.5}, r"^fourier_share must be in \[0, 1\], got -0\.5$"),
        ("vfpt", {"fourier_share": math.nan}, "^fourier_share must be in .*got nan$"),
        *(
            (name, {"num_prompts": 257}, "^num_prompts must be at most 256, .*, got 257$")
            for name in METHODS
            if name != "linear"
        ),
        ("v2apt", {"num_prompts": 0}, "^num_prompts must be at least 1, got 0$"),
        ("v2apt", {"num_vae_prompts": 0}, "^num_vae_prompts must be at least 1, got 0$"),
        ("v2apt", {"latent_dim": 0}, "^latent_dim must be at least 1, got 0$"),
        ("v2apt", {"kl_weight": -1}, "^kl_weight must be finite and not negative, got -1"),
        ("v2apt", {"kl_weight": math.inf}, "^kl_weight must be finite .*got inf$"),
        ("lspt", {"gspc": "maybe"}, "^gspc: .*valid boolean"),
        ("gated", {"gate_init": "open"}, "^gate_init: .*valid number"),
        ("gated", {"gate_init": math.nan}, "gate_init"),
        ("gated", {"gate_init": math.inf}, "gate_init"),
        ("lstp", {}, "^unknown method 'lstp'.*nearest: lspt"),
        ("vpt", {}, "^unknown method 'vpt'.*nearest: .*vfpt"),
        ("vpt-deap", {}, "^unknown method 'vpt-deap'.*nearest: vpt-deep"),
        ("zzz", {}, "^unknown method 'zzz'; wanted one of: linear, vpt-shallow, .*lspt, full$"),
    ],
)
def test_what_does_not_exist_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        create_method(name, VIT, **options)
