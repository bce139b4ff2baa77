"""The prompted ViT against loops written out from the equations, timm's blocks called directly.

B batch, N patches, P prompts, D embed_dim, L blocks.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu
from toys import PAPER

from lspt_serve.errors import BundleError, MethodError
from lspt_serve.models import METHODS, POOLS, Backbone, PromptedViT, create_prompted_vit
from lspt_serve.models.attention import attention_weights

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
D, N = 24, 16
ARCHITECTURES = [
    pytest.param({}, id="cls"),
    pytest.param({"reg_tokens": 4}, id="registers"),
    pytest.param({"reg_tokens": 4, "no_embed_class": True}, id="registers-not-embedded"),
    pytest.param({"class_token": False, "global_pool": "avg"}, id="no-cls"),
    pytest.param({"pre_norm": True, "init_values": 0.5}, id="pre-norm-layer-scale"),
]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    ("lspt", {"coder": "gru"}),
    ("lspt", {"coder": "ema"}),
    ("lspt", {"coder_hidden": 24}),
    ("lspt", {"coder": "gru", "coder_hidden": 24}),
    ("lspt", {"residual": True, "deep": False}),
    ("lspt", PAPER),
    ("lspt", {"forget_bias": 1.0}),
    ("vfpt", {"fourier_share": 0.0}),
    ("vfpt", {"fourier_share": 1.0}),
    ("v2apt", {"num_vae_prompts": 1, "latent_dim": 1}),
    ("lspt", {"gspc": False}),
    ("lspt", {"lpc": False}),
    ("lspt", {"gspc": False, "lpc": False}),
]


def embed(vit: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Prefix tokens (CLS, registers) and patches, as they enter block 1."""
    patches = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)  # B x N x D
    prefix = patches[:, :0]
    for token in (vit.cls_token, vit.reg_token):
        if token is not None:
            prefix = torch.cat([prefix, token.expand(len(images), -1, -1)], dim=1)
    if vit.no_embed_class:
        patches = patches + vit.pos_embed
    else:
        prefix = prefix + vit.pos_embed[:, : prefix.shape[1]]
        patches = patches + vit.pos_embed[:, prefix.shape[1] :]
    return vit.norm_pre(prefix), vit.norm_pre(patches)


def run_by_hand(
    vit: Any, images: Tensor, prompts: Tensor, advance: Callable[[int, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefix, prompts and patches after the final norm; advance(block, left, patches) between."""
    x, patches = embed(vit, images)
    start, z = x.shape[1], prompts.expand(len(images), -1, -1)
    stop = start + z.shape[1]
    for block in range(1, len(vit.blocks) + 1):
        tokens = vit.blocks[block - 1](torch.cat([x, z, patches], dim=1))
        x, left, patches = tokens[:, :start], tokens[:, start:stop], tokens[:, stop:]
        z = advance(block, left, patches) if block < len(vit.blocks) else left
    return vit.norm(x), vit.norm(z), vit.norm(patches)


def features_by_hand(
    model: PromptedViT, prompts: Tensor, advance: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """Pooled as the backbone's default says: CLS, or the mean patch where there is none."""
    vit = model.backbone
    prefix, _, patches = run_by_hand(vit, IMAGES, prompts, advance)
    pooled: Tensor = prefix[:, 0] if vit.cls_token is not None else vit.fc_norm(patches.mean(1))
    return pooled


def create(
    backbone: Backbone, method: str, *, pool: str | None = None, **options: Any
) -> PromptedViT:
    return create_prompted_vit(backbone, method, num_classes=3, pool=pool, options=options).eval()


@pytest.mark.parametrize("pool", ["cls", "patch_mean", "prompt_mean", "cls+prompt_mean"])
def test_attention_is_that_of_the_pooled_tokens_in_the_last_block(
    tiny_backbone: Backbone, pool: str
) -> None:
    model = create(tiny_backbone, "vpt-deep", num_prompts=3, pool=pool)
    last, entered = model.backbone.blocks[-1], []
    hook = last.norm1.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    features, attention = model.forward_watched(IMAGES)
    hook.remove()

    weights = attention_weights(last, entered[0]).mean(dim=1)  # B x tokens x tokens
    of_part = {
        "cls": weights[:, 0],
        "prompt_mean": weights[:, 1:4].mean(dim=1),
        "patch_mean": weights[:, 4:].mean(dim=1),
    }
    wanted = torch.stack([of_part[part] for part in pool.split("+")]).mean(dim=0)[:, 4:]
    torch.testing.assert_close(attention, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(features, model.forward_features(IMAGES), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("pool", "count"), [("cls", 1), ("patch_mean", 20), ("cls+patch_mean", 20)]
)
def test_last_block_is_run_for_the_tokens_that_are_pooled(
    tiny_backbone: Backbone, pool: str, count: int
) -> None:
    model = create(tiny_backbone, "vpt-deep", num_prompts=3, pool=pool)
    fed: list[Tensor] = []
    hook = model.backbone.blocks[-1].mlp.register_forward_pre_hook(
        lambda _, given: fed.append(given[0])
    )
    model.forward_features(IMAGES)
    model.forward_watched(IMAGES)
    hook.remove()

    assert [tokens.shape[1] for tokens in fed] == [count, count]


def flow_on(block: int, left: Tensor, patches: Tensor) -> Tensor:
    return left


@pytest.mark.parametrize("input_norm", [False, True])  # without a cell it has nothing to do
def test_lspt_with_both_parts_off_is_vpt_shallow_bit_for_bit(
    tiny_backbone: Backbone, input_norm: bool
) -> None:
    lspt = create(tiny_backbone, "lspt", gspc=False, lpc=False, input_norm=input_norm)
    shallow = create(tiny_backbone, "vpt-shallow")
    shallow.load_task_tensors(lspt.task_tensors())
    assert torch.equal(lspt(IMAGES), shallow(IMAGES))


def test_gated_with_open_gates_and_temperature_1_is_vpt_shallow(tiny_backbone: Backbone) -> None:
    gated = create(tiny_backbone, "gated", gate_init=100.0)  # sigmoid(100) = 1
    shallow = create(tiny_backbone, "vpt-shallow")
    tensors = gated.task_tensors()
    shallow.load_task_tensors({name: tensors[name] for name in shallow.task_tensors()})
    torch.testing.assert_close(gated(IMAGES), shallow(IMAGES), atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lspt_is_the_equations_written_as_a_loop(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any]
) -> None:
    model = create(make_backbone(**architecture), "lspt", num_prompts=5, **PAPER)
    prompts = model.method.get_parameter("prompts")
    cell = nn.LSTMCell(D, D)
    cell.load_state_dict(model.method.get_submodule("coder").state_dict())
    h, c = torch.zeros(2 * 5, D), torch.zeros(2 * 5, D)

    def advance(block: int, left: Tensor, patches: Tensor) -> Tensor:
        nonlocal h, c
        s = left + torch.stack([patches[:, j] for j in range(N)]).sum(dim=0)[:, None] / N
        h, c = cell(s.reshape(2 * 5, D), (h, c))
        z: Tensor = h.reshape(2, 5, D)
        return z

    wanted = features_by_hand(model, prompts, advance)
    torch.testing.assert_close(model.forward_features(IMAGES), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_lspt_with_input_norm_and_forget_bias_is_the_loop_with_both(
    tiny_backbone: Backbone, residual: bool
) -> None:
    options = {**PAPER, "input_norm": True, "forget_bias": 1.5, "residual": residual}
    model = create(tiny_backbone, "lspt", num_prompts=5, **options)
    cell = nn.LSTMCell(D, D)
    cell.load_state_dict(model.method.get_submodule("coder").state_dict())
    h, c = torch.zeros(2 * 5, D), torch.zeros(2 * 5, D)

    def advance(block: int, left: Tensor, patches: Tensor) -> Tensor:
        nonlocal h, c
        s = left + patches.sum(dim=1)[:, None] / N
        mean = s.sum(dim=-1, keepdim=True) / D
        variance = (s - mean).square().sum(dim=-1, keepdim=True) / D
        h, c = cell(((s - mean) / (variance + 1e-6).sqrt()).reshape(2 * 5, D), (h, c))
        z: Tensor = h.reshape(2, 5, D)
        return z + s if residual else z

    wanted = features_by_hand(model, model.method.get_parameter("prompts"), advance)
    torch.testing.assert_close(model.forward_features(IMAGES), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vpt_shallow_lets_the_prompts_outputs_flow_on(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any]
) -> None:
    model = create(make_backbone(**architecture), "vpt-shallow")
    wanted = features_by_hand(model, model.method.get_parameter("prompts"), flow_on)
    torch.testing.assert_close(model.forward_features(IMAGES), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vpt_deep_shows_each_block_its_own_prompts(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any]
) -> None:
    model = create(make_backbone(**architecture), "vpt-deep")
    prompts = model.method.get_parameter("prompts")

    def advance(block: int, left: Tensor, patches: Tensor) -> Tensor:
        return prompts[block].expand(2, -1, -1)

    wanted = features_by_hand(model, prompts[0], advance)
    torch.testing.assert_close(model.forward_features(IMAGES), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vfpt_shows_each_block_its_transformed_and_its_plain_prompts(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any]
) -> None:
    model = create(make_backbone(**architecture), "vfpt", num_prompts=5, fourier_share=0.7)
    own = model.method.get_parameter("prompts").double()
    p, d = torch.arange(3).double(), torch.arange(D).double()  # 0.7 x 5 is 3 prompts
    angle = p[:, None, None, None] * p[:, None] / 3 + d[None, :, None, None] * d / D
    waves = torch.cos(2 * torch.pi * angle)  # real part of exp(-i ...), P x D x P x D
    transformed = torch.einsum("pdqe,lqe->lpd", waves, own[:, :3])
    prompts = torch.cat([transformed, own[:, 3:]], dim=1).float()

    def advance(block: int, left: Tensor, patches: Tensor) -> Tensor:
        return prompts[block].expand(2, -1, -1)

    wanted = features_by_hand(model, prompts[0], advance)
    torch.testing.assert_close(model.forward_features(IMAGES), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_v2apt_shows_each_block_its_own_and_the_images_prompts(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"num_prompts": 5, "num_vae_prompts": 3, "latent_dim": 7}
    model = create(make_backbone(**architecture), "v2apt", **options)
    own, vae = model.method.get_parameter("prompts"), model.method.get_submodule("vae")
    tensors: dict[str, Tensor] = vae.state_dict()
    _, patches = embed(model.backbone, IMAGES)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    hidden = gelu(linear("patch_encoder", patches)).sum(dim=1) / N
    mean = linear("encoder", hidden)[:, :7]
    of_image = linear("decoder.2", gelu(linear("decoder.0", mean))).reshape(2, 3, D)

    def advance(block: int, left: Tensor, patches: Tensor) -> Tensor:
        return torch.cat([own[block].expand(2, -1, -1), of_image], dim=1)

    wanted = features_by_hand(model, advance(0, own, patches), advance)
    torch.testing.assert_close(model.forward_features(IMAGES), wanted, atol=1e-5, rtol=1e-5)


def test_gated_mixes_the_prompts_after_each_block(tiny_backbone: Backbone) -> None:
    model = create(tiny_backbone, "gated")
    prompts = model.method.get_parameter("prompts")
    gamma = model.method.get_parameter("gamma")
    gamma.data = torch.tensor([0.5, -1.0])
    entered = prompts.expand(2, -1, -1)

    def advance(block: int, left: Tensor, patches: Tensor) -> Tensor:
        nonlocal entered
        gate = 1 / (1 + torch.exp(-gamma[block - 1]))
        entered = gate * left + (1 - gate) * entered
        return entered

    wanted = features_by_hand(model, prompts, advance)
    torch.testing.assert_close(model.forward_features(IMAGES), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"linear"}))
def test_prompts_change_the_answer(tiny_backbone: Backbone, name: str) -> None:
    model = create(tiny_backbone, name)
    before = model(IMAGES)
    with torch.no_grad():
        model.method.get_parameter("prompts").mul_(-3)
    assert (model(IMAGES) - before).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_prefix_then_prompts_then_patches(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any]
) -> None:
    model = create(make_backbone(**architecture), "vpt-shallow", num_prompts=5)
    seen: list[Tensor] = []
    model.backbone.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    assert model(IMAGES).shape == (2, 3)
    prefix, patches = embed(model.backbone, IMAGES)
    prompts = model.method.get_parameter("prompts").expand(2, -1, -1)
    wanted = torch.cat([prefix, prompts, patches], dim=1)
    torch.testing.assert_close(seen[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_linear_features_are_timms_own(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any]
) -> None:
    backbone = make_backbone(**architecture)
    wanted = backbone.vit.forward_head(backbone.vit.forward_features(IMAGES), pre_logits=True)
    got = create(backbone, "linear").forward_features(IMAGES)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pool", POOLS)
def test_pools_are_the_named_tokens_side_by_side(tiny_backbone: Backbone, pool: str) -> None:
    model = create(tiny_backbone, "vpt-shallow", pool=pool, num_prompts=5)
    prompts = model.method.get_parameter("prompts")
    tokens = torch.cat(run_by_hand(tiny_backbone.vit, IMAGES, prompts, flow_on), dim=1)
    by_hand = {  # 1 CLS, 5 prompts, 16 patches
        "cls": tokens[:, 0],
        "prompt_mean": tokens[:, 1:6].sum(dim=1) / 5,
        "patch_mean": tokens[:, 6:22].sum(dim=1) / 16,
    }
    wanted = torch.cat([by_hand[part] for part in pool.split("+")], dim=1)
    torch.testing.assert_close(model.forward_features(IMAGES), wanted, atol=1e-5, rtol=1e-5)
    assert model.head.in_features == wanted.shape[1]


@pytest.mark.parametrize("architecture", [{}, {"reg_tokens": 4}])
def test_cls_is_the_class_token_and_not_a_register(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any]
) -> None:
    backbone = make_backbone(**architecture)
    wanted = backbone.vit.forward_features(IMAGES)[:, 0]
    got = create(backbone, "linear", pool="cls").forward_features(IMAGES)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_where_timm_normalises_after_pooling_every_part_is_normalised(
    make_backbone: Callable[..., Backbone],
) -> None:
    backbone = make_backbone(class_token=False, global_pool="avg")
    model = create(backbone, "vpt-shallow", pool="patch_mean+prompt_mean")
    prompts = model.method.get_parameter("prompts")
    _, left, patches = run_by_hand(backbone.vit, IMAGES, prompts, flow_on)
    norm = backbone.vit.fc_norm
    wanted = torch.cat([norm(patches.mean(1)), norm(left.mean(1))], dim=1)
    torch.testing.assert_close(model.forward_features(IMAGES), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "pool"),
    [({}, "cls"), ({"class_token": False, "global_pool": "avg"}, "patch_mean")],
)
def test_the_pool_is_the_backbones_unless_given(
    make_backbone: Callable[..., Backbone], architecture: dict[str, Any], pool: str
) -> None:
    assert create(make_backbone(**architecture), "lspt").pool == pool


@pytest.mark.parametrize("pool", ["cls", "cls+patch_mean", "cls+prompt_mean"])
def test_a_cls_pool_needs_a_class_token(make_backbone: Callable[..., Backbone], pool: str) -> None:
    backbone = make_backbone(class_token=False, global_pool="avg")
    with pytest.raises(MethodError, match=r"needs a class token, and .*tiny\.safetensors has none"):
        create(backbone, "lspt", pool=pool)


@pytest.mark.parametrize("pool", ["prompt_mean", "cls+prompt_mean", "patch_mean+prompt_mean"])
def test_a_prompt_pool_needs_prompts(tiny_backbone: Backbone, pool: str) -> None:
    with pytest.raises(MethodError, match="needs prompts, and method 'linear' has none"):
        create(tiny_backbone, "linear", pool=pool)


@pytest.mark.parametrize(
    ("pool", "nearest"),
    [("clss", "cls"), ("patch-mean", "patch_mean"), ("prompt_mean+cls", "cls\\+prompt_mean")],
)
def test_an_unknown_pool_is_told_the_nearest(
    tiny_backbone: Backbone, pool: str, nearest: str
) -> None:
    with pytest.raises(MethodError, match=f"unknown pool .*; nearest: .*{nearest}"):
        create(tiny_backbone, "lspt", pool=pool)


@pytest.mark.parametrize("name", ["backbone", "method", "name", "num_classes", "options", "pool"])
def test_option_that_is_called_as_an_argument_is_unknown(
    tiny_backbone: Backbone, name: str
) -> None:
    with pytest.raises(MethodError, match=f"^unknown option '{name}'; wanted one of: num_prompts"):
        create_prompted_vit(tiny_backbone, "lspt", num_classes=3, options={name: "cls"})


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_gradients_reach_every_task_tensor_and_no_backbone_tensor(
    tiny_backbone: Backbone, name: str, options: dict[str, Any]
) -> None:
    model = create(tiny_backbone, name, **options).train()
    for key, tensor in model.method.named_parameters():
        if key.startswith("coder.up."):  # they start at 0, and let no gradient through
            nn.init.normal_(tensor)
    cross_entropy(model(IMAGES), torch.tensor([0, 2])).backward()
    tensors = dict(model.named_parameters())
    assert model.task_tensors().keys() <= tensors.keys()
    for key, tensor in tensors.items():
        if key.startswith("backbone."):
            assert tensor.grad is None, key
        else:
            assert tensor.grad is not None, key
            assert tensor.grad.abs().max() > 0, key


def test_gradients_reach_every_block_of_vpt_deep_and_gated(tiny_backbone: Backbone) -> None:
    for name, key in (("vpt-deep", "prompts"), ("gated", "gamma"), ("gated", "tau")):
        model = create(tiny_backbone, name)
        cross_entropy(model(IMAGES), torch.tensor([0, 2])).backward()
        gradient = model.method.get_parameter(key).grad
        assert gradient is not None
        assert (
            (gradient.flatten(start_dim=1) if gradient.ndim > 1 else gradient[:, None]).any(1).all()
        )


def test_train_leaves_the_backbone_in_eval_mode(make_backbone: Callable[..., Backbone]) -> None:
    rates = {"drop_path_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5}
    model = create(make_backbone(**rates, pos_drop_rate=0.5), "lspt").train()
    assert model.method.training
    assert not any(module.training for module in model.backbone.modules())
    assert torch.equal(model(IMAGES), model(IMAGES))


def test_a_backbone_in_train_mode_is_frozen_when_taken(
    make_backbone: Callable[..., Backbone],
) -> None:
    backbone = make_backbone(drop_path_rate=0.5)
    backbone.vit.train().requires_grad_(True)
    model = create_prompted_vit(backbone, "lspt", num_classes=3)
    assert not any(module.training for module in model.backbone.modules())
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"linear"}))
def test_prompt_dropout_acts_in_train_mode_only(tiny_backbone: Backbone, name: str) -> None:
    model = create(tiny_backbone, name, prompt_dropout=0.5)
    assert torch.equal(model(IMAGES), model(IMAGES))
    model.train()
    assert not torch.equal(model(IMAGES), model(IMAGES))


def test_an_image_gets_the_same_answer_alone_and_in_a_batch(tiny_backbone: Backbone) -> None:
    model = create(tiny_backbone, "lspt")
    alone = torch.cat([model(image[None]) for image in IMAGES])
    torch.testing.assert_close(model(IMAGES), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_vit_of_one_block_works(make_backbone: Callable[..., Backbone], name: str) -> None:
    logits = create(make_backbone(depth=1), name)(IMAGES)
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


def test_the_backbone_is_shared_and_its_tensors_are_not_the_tasks(tiny_backbone: Backbone) -> None:
    model = create(tiny_backbone, "vpt-shallow")
    assert model.backbone is tiny_backbone.vit
    assert sorted(model.task_tensors()) == ["head.bias", "head.weight", "method.prompts"]


def test_task_tensors_travel_from_model_to_model(tiny_backbone: Backbone) -> None:
    one, other = create(tiny_backbone, "lspt"), create(tiny_backbone, "lspt")
    assert not torch.equal(one(IMAGES), other(IMAGES))
    other.load_task_tensors(one.task_tensors())
    assert torch.equal(one(IMAGES), other(IMAGES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method.prompts": None}, "missing: method.prompts;"),
        ({"method.extra": torch.zeros(1)}, "unexpected: method.extra;"),
        (
            {"method.prompts": torch.zeros(3, D)},
            r"misshapen: method.prompts is \[3, 24\], wanted \[16, 24\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tiny_backbone: Backbone, change: dict[str, Tensor | None], message: str
) -> None:
    model = create(tiny_backbone, "vpt-shallow")
    tensors = {k: v for k, v in (model.task_tensors() | change).items() if v is not None}
    with pytest.raises(BundleError, match=message):
        model.load_task_tensors(tensors)
