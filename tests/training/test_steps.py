import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from toys import COLOURS, DEVICES, coloured_dataset, coloured_split

from lspt_serve.errors import CompileError, DataError
from lspt_serve.models import METHODS, Backbone, PromptedViT, create_prompted_vit
from lspt_serve.preprocess import normalise
from lspt_serve.training import Dataset, Epoch, Split, TrainSettings, fit
from lspt_serve.training.batches import Batches
from lspt_serve.training.picks import Picks, mix
from lspt_serve.training.steps import Steps, mixed_loss

LABELS = list(COLOURS)
SHORT = TrainSettings(epochs=2, batch_size=8, warmup_epochs=0.5, precision="fp32", device="cpu")
STILL = replace(SHORT, epochs=1, lr=1e-12)  # the loss of one epoch is that of the start


@pytest.fixture(scope="module")
def colours() -> Dataset:
    return coloured_dataset(8, 3, 3)


def fresh(backbone: Backbone, method: str = "lspt") -> PromptedViT:
    torch.manual_seed(0)
    return create_prompted_vit(backbone, method, num_classes=len(LABELS))


def trained(
    backbone: Backbone, dataset: Dataset, settings: TrainSettings, method: str = "lspt"
) -> tuple[Epoch, dict[str, Tensor]]:
    model = fresh(backbone, method)
    epoch = fit(model, dataset, backbone.preprocess, settings)
    return epoch, model.task_tensors()


def normalised(images: Any, backbone: Backbone) -> Tensor:
    return torch.from_numpy(normalise(images, backbone.preprocess))


def soft_loss(logits: Tensor, wanted: Tensor) -> float:
    """- sum over K of wanted x log softmax, mean over B; in fp64."""
    return -(wanted * logits.double().log_softmax(dim=1)).sum(dim=1).mean().item()


def test_mixed_loss_of_a_batch_worked_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # softmax 3/4, 1/4 and 1/2, 1/2
    targets = torch.tensor([1, 0, 1])
    picks = Picks(torch.tensor([1, 2]), partners=Picks(torch.tensor([2, 1])), weight=0.75)

    got = mixed_loss(logits, picks, targets, 0.0).item()

    # own classes 0, 1; the partners' 1, 0
    own = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    other = (-math.log(1 / 4) - math.log(1 / 2)) / 2
    assert got == pytest.approx(0.75 * own + 0.25 * other, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_targets_give_their_share_to_all_classes(smoothing: float) -> None:
    logits, rows = torch.randn(5, 3), torch.tensor([4, 0, 2, 1, 1])
    targets = torch.tensor([0, 2, 1, 1, 0])

    got = mixed_loss(logits, Picks(rows), targets, smoothing).item()

    wanted = torch.full((5, 3), smoothing / 3, dtype=torch.float64)
    wanted[torch.arange(5), targets[rows]] += 1 - smoothing
    assert got == pytest.approx(soft_loss(logits, wanted), rel=1e-6)


def test_inputs_are_mixed_with_the_partners_after_both_were_changed(
    tiny_backbone: Backbone, colours: Dataset
) -> None:
    batches = Batches(colours.train, tiny_backbone.preprocess, fresh(tiny_backbone))
    flipped = torch.tensor([True, False, False])
    plain = Picks(torch.tensor([3, 20, 9]))
    batch = mix(replace(plain, changes=replace(plain.changes, mirrored=flipped)), 1.0, seeded())

    got = batches.inputs(batch)

    assert batch.partners is not None
    pixels = normalised(colours.train.images, tiny_backbone)
    changed = {3: pixels[3].flip(-1), 20: pixels[20], 9: pixels[9]}
    own, other = (
        torch.stack([changed[row] for row in picks.rows.tolist()])
        for picks in (batch, batch.partners)
    )
    torch.testing.assert_close(
        got, batch.weight * own + (1 - batch.weight) * other, rtol=0, atol=1e-5
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("method", ["linear", "lspt"])
@pytest.mark.parametrize(("mixup", "smoothing"), [(0.0, 0.2), (0.5, 0.0), (0.5, 0.2)])
def test_epoch_has_the_loss_of_soft_targets(
    tiny_backbone: Backbone,
    colours: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    mixup: float,
    smoothing: float,
) -> None:
    seen: list[Picks] = []
    loss = Steps._loss

    def watched(self: Steps, picks: Picks, inputs: Tensor) -> Tensor:
        seen.append(picks)
        return loss(self, picks, inputs)

    monkeypatch.setattr(Steps, "_loss", watched)
    settings = replace(STILL, mixup=mixup, label_smoothing=smoothing, accumulate=3)
    epoch, _ = trained(tiny_backbone, colours, settings, method)

    model, losses = fresh(tiny_backbone, method).eval(), []
    pixels = normalised(colours.train.images, tiny_backbone)
    one_hot = torch.eye(3, dtype=torch.float64)[torch.from_numpy(colours.train.targets)]
    for picks in seen:
        partners = picks.partners or picks
        images, wanted = (
            picks.weight * of[picks.rows] + (1 - picks.weight) * of[partners.rows]
            for of in (pixels, one_hot)
        )
        wanted = wanted * (1 - smoothing) + smoothing / 3
        losses.append(soft_loss(model(images), wanted) * len(picks))
    assert len({picks.weight for picks in seen}) == (3 if mixup else 1)  # one for each step
    assert epoch.loss == pytest.approx(sum(losses) / 24, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", [5, 24])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    tiny_backbone: Backbone,
    colours: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    accumulate: int,
) -> None:
    # a latent is drawn for each micro-batch, the mean is the same
    monkeypatch.setattr("lspt_serve.models.methods.v2apt.sample_latent", lambda mean, _: mean)
    whole = replace(SHORT, batch_size=24, augment="crop+flip", mixup=0.4)
    results = []
    for settings in (whole, replace(whole, accumulate=accumulate)):
        train = Batches(
            colours.train, tiny_backbone.preprocess, fresh(tiny_backbone, method), varied=True
        )
        steps = Steps(train, settings, torch.float32)
        results.append((steps.run_epoch(1), [p.grad for p in steps.parameters]))

    (loss, gradients), (accumulated_loss, accumulated) = results
    assert accumulated_loss == pytest.approx(loss, abs=1e-6)
    for got, wanted in zip(accumulated, gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_training_with_accumulation_ends_with_the_tensors_of_without(
    tiny_backbone: Backbone, colours: Dataset
) -> None:
    whole = replace(SHORT, augment="crop+flip", mixup=0.4, label_smoothing=0.1)

    (one, first), (two, second) = (
        trained(tiny_backbone, colours, settings)
        for settings in (whole, replace(whole, accumulate=3))
    )

    assert two.loss == pytest.approx(one.loss, abs=1e-6)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-6)


def test_balanced_epochs_are_drawn_anew_and_train(
    tiny_backbone: Backbone, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.r_[0:8, 8:10, 16:18]  # 8, 2 and 2 images
    train = Split(colours.train.images[rows], colours.train.targets[rows])
    seen: list[int] = []
    loss = Steps._loss

    def watched(self: Steps, picks: Picks, inputs: Tensor) -> Tensor:
        seen.extend(picks.rows.tolist())
        return loss(self, picks, inputs)

    monkeypatch.setattr(Steps, "_loss", watched)
    settings = replace(SHORT, epochs=40, sampling="balanced")
    trained(tiny_backbone, replace(colours, train=train), settings, "linear")

    assert len(seen) == 40 * 12
    assert seen[:12] != seen[12:24]
    for count in np.bincount(train.targets[seen]):  # 160 each, standard deviation 10.3
        assert abs(count - 160) < 42


def make_nan(monkeypatch: pytest.MonkeyPatch, row: int, *, epoch: int) -> list[list[int]]:
    """From this epoch on the loss of the row is nan; returns the rows of every step so far."""
    seen: list[list[int]] = []
    loss = Steps._loss

    def broken(self: Steps, picks: Picks, inputs: Tensor) -> Tensor:
        seen.append(picks.rows.tolist())
        bad = row in seen[-1] and len(seen) > 3 * (epoch - 1)
        return loss(self, picks, inputs) * (math.nan if bad else 1.0)

    monkeypatch.setattr(Steps, "_loss", broken)
    return seen


@pytest.mark.parametrize("named", [True, False])
def test_loss_that_is_not_finite_ends_training_with_its_step_and_images(
    tiny_backbone: Backbone, colours: Dataset, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    steps, history = make_nan(monkeypatch, 5, epoch=2), list[Epoch]()
    if named:
        train = replace(colours.train, names=[f"photo-{row}" for row in range(24)])
        colours = replace(colours, train=train)

    with pytest.raises(DataError) as caught:
        fit(
            fresh(tiny_backbone),
            colours,
            tiny_backbone.preprocess,
            replace(SHORT, epochs=3),
            on_epoch=history.append,
        )

    assert [epoch.number for epoch in history] == [1]
    bad = next(index for index, rows in enumerate(steps) if index >= 3 and 5 in rows)
    images = ", ".join(f"photo-{row}" if named else f"row {row}" for row in steps[bad])
    assert str(caught.value) == (
        f"training diverged: loss nan in epoch 2, step {bad - 2} of 3; lower lr 0.003, or look at "
        f"the images of the step: {images}"
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["linear", "lspt"])
def test_gradient_that_is_not_finite_ends_training_with_its_own_step(
    tiny_backbone: Backbone, colours: Dataset, method: str, bad: float
) -> None:
    model, seen = fresh(tiny_backbone, method), list[Tensor]()

    def harm(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return gradient.index_fill(0, torch.tensor([1]), bad) if len(seen) == 5 else gradient

    model.head.bias.register_hook(harm)
    with pytest.raises(DataError) as caught:
        fit(model, colours, tiny_backbone.preprocess, SHORT)

    # 24 images in batches of 8
    assert f"training diverged: a gradient of {bad} in epoch 2, step 2 of 3;" in str(caught.value)
    generator = seeded(SHORT.seed)
    torch.randperm(24, generator=generator)
    rows = torch.randperm(24, generator=generator)[8:16].tolist()
    assert str(caught.value).endswith(": " + ", ".join(f"row {row}" for row in rows))


@pytest.fixture
def misled(colours: Dataset) -> Dataset:
    """What helps on train harms on val: val's labels are turned round."""
    wrong = Split(colours.val.images, (colours.val.targets + 1) % len(LABELS))
    return replace(colours, val=wrong)


@pytest.mark.parametrize("patience", [1, 2])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_early_stop_ends_so_many_epochs_after_the_best(
    tiny_backbone: Backbone, misled: Dataset, patience: int, keep: Any
) -> None:
    whole: list[Epoch] = []
    short: list[Epoch] = []
    settings = replace(SHORT, epochs=12, lr=0.02, keep=keep)

    for seen, early_stop in ((whole, None), (short, patience)):
        kept = fit(
            fresh(tiny_backbone),
            misled,
            tiny_backbone.preprocess,
            replace(settings, early_stop=early_stop),
            on_epoch=seen.append,
        )

    best = max(short, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))
    assert len(short) == best.number + patience < len(whole) == 12
    assert kept == (best if keep == "best" else short[-1])
    # the schedule is that of all epochs
    assert [e.loss for e in short] == [e.loss for e in whole[: len(short)]]


def test_early_stop_without_a_single_finite_epoch_says_so(
    tiny_backbone: Backbone, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = torch.full((9, 3), math.nan)
    monkeypatch.setattr(Batches, "all_logits", lambda self, batch_size: nan)
    history: list[Epoch] = []

    with pytest.raises(DataError, match="no epoch has a finite loss on val"):
        fit(
            fresh(tiny_backbone, "vpt-shallow"),
            colours,
            tiny_backbone.preprocess,
            replace(SHORT, epochs=9, early_stop=2),
            on_epoch=history.append,
        )

    assert len(history) == 2


def keep_gradients(steps: Steps, gradients: list[Tensor], *_: Any) -> None:
    scale = steps.scaler.get_scale()
    gradients.extend(p.grad / scale for p in steps.parameters if p.grad is not None)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"v2apt"}))  # it draws
def test_fp16_has_nearly_the_gradients_of_fp32(
    tiny_backbone: Backbone, colours: Dataset, method: str, device: str
) -> None:
    results = []
    for dtype in (torch.float32, torch.float16):
        model = fresh(tiny_backbone, method).to(device)
        train = Batches(colours.train, tiny_backbone.preprocess, model, varied=True)
        steps = Steps(train, replace(SHORT, batch_size=24, accumulate=2), dtype)
        assert steps.scaler.is_enabled() is (dtype == torch.float16)
        if steps.scaler.is_enabled():
            steps.scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
        gradients: list[Tensor] = []
        steps.optimizer.register_step_pre_hook(partial(keep_gradients, steps, gradients))
        results.append((steps.run_epoch(1), gradients))
        model.cpu()

    (loss32, in32), (loss16, in16) = results
    assert loss16 != loss32
    assert loss16 == pytest.approx(loss32, abs=0.005)
    for got, wanted in zip(in16, in32, strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() <= 0.01 * wanted.norm()  # behind a map of zeros both are 0


@pytest.mark.parametrize("device", DEVICES)
def test_fp16_leaves_out_a_step_whose_gradients_overflow(
    tiny_backbone: Backbone, colours: Dataset, device: str
) -> None:
    model = fresh(tiny_backbone).to(device)
    train = Batches(colours.train, tiny_backbone.preprocess, model)
    steps = Steps(train, replace(SHORT, batch_size=24, lr=0.01), torch.float16)
    before = {name: tensor.clone() for name, tensor in model.task_tensors().items()}

    steps.scaler = torch.amp.GradScaler(device, init_scale=2.0**40)
    steps.run_epoch(1)
    after_overflow = {name: tensor.clone() for name, tensor in model.task_tensors().items()}
    scale = steps.scaler.get_scale()
    steps.scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    steps.run_epoch(2)

    assert scale == 2.0**39
    for name, tensor in model.task_tensors().items():
        assert torch.equal(after_overflow[name], before[name])
        assert not torch.equal(tensor, before[name])
    model.cpu()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
@pytest.mark.parametrize("on_disk", [False, True])
def test_steps_and_their_inputs_do_not_wait_for_the_gpu(
    tiny_backbone: Backbone, colours: Dataset, tmp_path: Path, on_disk: bool
) -> None:
    images = tmp_path / "images.npy"
    np.save(images, colours.train.images)
    mapped = replace(colours.train, images=np.load(images, mmap_mode="r"))
    model = fresh(tiny_backbone).to("cuda")
    train = Batches(mapped if on_disk else colours.train, tiny_backbone.preprocess, model)
    steps = Steps(train, replace(SHORT, augment="crop+flip", mixup=0.4), torch.float32)
    steps.run_epoch(1)  # memory is pinned, kernels are loaded
    shares = [steps._share(steps._draw(torch.arange(start, start + 8))) for start in (0, 8, 16)]

    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, share in enumerate(shares, start=3):
            steps._step(step, train.prefetch(share), 8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.cpu()


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


@pytest.fixture
def dynamo() -> None:
    """torch.compile without what other tests left."""
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("dynamo")
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler for torch.compile")
@pytest.mark.parametrize(("method", "graphs"), [("linear", 1), ("lspt", 2)])
def test_compiled_training_has_the_losses_of_eager_and_one_graph_for_all_sizes(
    make_backbone: Callable[..., Backbone], colours: Dataset, method: str, graphs: int
) -> None:
    backbone, before = make_backbone(depth=1), counters["stats"]["unique_graphs"]
    # micro-batches of 4, 3 and 2; augmentation, or only the head would run, as linear's does on val
    settings = replace(SHORT, batch_size=7, accumulate=2, augment="flip")
    varied = replace(colours, train=coloured_split(9, 0))

    (eager, first), (compiled, second) = (
        trained(backbone, varied, replace(settings, compile=on), method) for on in (False, True)
    )

    assert counters["stats"]["unique_graphs"] - before == graphs
    assert compiled.loss == pytest.approx(eager.loss, rel=1e-5)
    assert compiled.val_loss == pytest.approx(eager.val_loss, rel=1e-5)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("method", METHODS)
def test_traced_training_has_the_losses_of_eager(
    make_backbone: Callable[..., Backbone],
    colours: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """What Dynamo and autograd make of a model; aot_eager leaves out the C++ compiler alone."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    graphs = counters["stats"]["unique_graphs"]
    settings = replace(SHORT, batch_size=7, augment="flip")
    backbone = make_backbone(depth=1)

    (eager, first), (traced, second) = (
        trained(backbone, colours, replace(settings, compile=on), method) for on in (False, True)
    )

    assert counters["stats"]["unique_graphs"] > graphs
    assert traced.loss == pytest.approx(eager.loss, rel=1e-6)
    assert traced.val_loss == pytest.approx(eager.val_loss, rel=1e-6)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("dynamo")
def test_compiler_that_there_is_not_is_one_line(
    make_backbone: Callable[..., Backbone], colours: Dataset
) -> None:
    no_compiler = {"cpp.cxx": (None, "no-such-compiler"), "fx_graph_cache": False}
    message = r"^torch.compile failed: .*no-such-compiler.*; train with"

    with (
        torch._inductor.config.patch(no_compiler),
        pytest.raises(CompileError, match=message),
    ):
        trained(make_backbone(depth=1), colours, replace(SHORT, compile=True), "vpt-shallow")


@pytest.mark.parametrize("method", ["vpt-shallow", "vpt-deep", "vfpt", "v2apt", "gated", "lspt"])
def test_prompts_have_a_learning_rate_of_their_own(
    tiny_backbone: Backbone, colours: Dataset, method: str
) -> None:
    one_step = replace(SHORT, epochs=1, batch_size=24, warmup_epochs=0, weight_decay=0, lr=1e-3)
    settings = replace(one_step, prompt_lr_scale=4.0, keep="last")
    before = {k: v.clone() for k, v in fresh(tiny_backbone, method).task_tensors().items()}

    epoch, after = trained(tiny_backbone, colours, settings, method)

    # AdamW's first step moves what has a gradient by the learning rate
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert moved.pop("method.prompts") == pytest.approx(4e-3, rel=1e-2)
    assert max(moved.values()) == pytest.approx(1e-3, rel=1e-2)
    assert epoch.lr == pytest.approx(1e-3)
