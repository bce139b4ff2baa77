"""Full fine-tuning: its first step against a loop on timm's own model, and what it writes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import cross_entropy
from toys import COLOURS, coloured_dataset, random_bundle

from lspt_serve.bundle import BASELINE, MANIFEST, load_bundle
from lspt_serve.errors import BundleError, MethodError, OutputError
from lspt_serve.export import create_model, export_bundle, export_graph
from lspt_serve.manifest import MethodRef
from lspt_serve.models import Backbone, PromptedViT, create_prompted_vit, load_backbone
from lspt_serve.models.backbone import sha256_of_tensors
from lspt_serve.preprocess import normalise
from lspt_serve.training import (
    Baseline,
    Dataset,
    Split,
    TrainSettings,
    create_bundle,
    fit,
    save_baseline,
    train_baseline,
    train_task,
    tune,
)
from lspt_serve.training.calibration import calibration_error
from lspt_serve.training.picks import Picks
from lspt_serve.training.steps import Steps

LABELS = list(COLOURS)
SHORT = TrainSettings(
    epochs=2, batch_size=8, lr=1e-3, warmup_epochs=0, precision="fp32", device="cpu"
)
ARCHITECTURE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
}


@pytest.fixture(scope="module")
def colours() -> Dataset:
    return coloured_dataset(8, 3, 4)


def fresh(backbone: Backbone) -> PromptedViT:
    torch.manual_seed(0)
    return create_prompted_vit(backbone, "full", num_classes=len(LABELS))


def images_of(split: Split, backbone: Backbone) -> Tensor:
    return torch.from_numpy(normalise(split.images, backbone.preprocess))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_first_step_is_that_of_timms_own_model(
    tiny_backbone: Backbone,
    colours: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    weight_decay: float,
) -> None:
    model = fresh(tiny_backbone)
    vit = VisionTransformer(**ARCHITECTURE, num_classes=len(LABELS))
    head = {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    vit.load_state_dict(tiny_backbone.vit.state_dict() | head)
    order: list[Tensor] = []
    loss = Steps._loss

    def watched(self: Steps, picks: Picks, inputs: Tensor) -> Tensor:
        order.append(picks.rows)
        return loss(self, picks, inputs)

    monkeypatch.setattr(Steps, "_loss", watched)
    one_step = replace(SHORT, epochs=1, batch_size=24, weight_decay=weight_decay)
    fit(model, colours, tiny_backbone.preprocess, one_step)

    optimizer = torch.optim.AdamW(vit.parameters(), lr=SHORT.lr, weight_decay=weight_decay)
    images = images_of(colours.train, tiny_backbone)[order[0]]
    cross_entropy(vit.train()(images), torch.from_numpy(colours.train.targets)[order[0]]).backward()
    optimizer.step()
    assert len(order[0]) == 24
    for name, wanted in vit.state_dict().items():
        got = model.state_dict()[name if name.startswith("head.") else f"backbone.{name}"]
        if name.endswith("attn.qkv.bias"):  # that of k has no gradient but rounding: a softmax
            got, wanted = (torch.cat([bias[:24], bias[48:]]) for bias in (got, wanted))
        # a step is lr large whatever the gradient: of a tiny one, rounding is a share of it
        torch.testing.assert_close(got, wanted, rtol=0, atol=0.01 * SHORT.lr)


def test_training_moves_every_tensor_and_leaves_the_shared_backbone(
    tiny_backbone: Backbone, colours: Dataset
) -> None:
    before = fresh(tiny_backbone).task_tensors()

    tuned = tune(tiny_backbone, colours, method="full", settings=SHORT)

    after = tuned.model.task_tensors()
    assert [name for name, tensor in after.items() if torch.equal(tensor, before[name])] == []
    assert sha256_of_tensors(tiny_backbone.vit) == tiny_backbone.sha256
    assert not any(parameter.requires_grad for parameter in tiny_backbone.vit.parameters())
    assert all(parameter.grad is None for parameter in tiny_backbone.vit.parameters())
    assert not tiny_backbone.vit.training


def test_model_ends_as_it_was_after_the_best_epoch(
    tiny_backbone: Backbone, colours: Dataset
) -> None:
    wrong = Split(colours.val.images, (colours.val.targets + 1) % len(LABELS))
    hashes: list[str] = []
    settings = replace(SHORT, epochs=4, lr=3e-3)
    model = fresh(tiny_backbone)

    best = fit(
        model,
        replace(colours, val=wrong),
        tiny_backbone.preprocess,
        settings,
        on_epoch=lambda _: hashes.append(sha256_of_tensors(model)),
    )

    assert len(set(hashes)) == 4
    assert best.number < 4
    assert sha256_of_tensors(model) == hashes[best.number - 1]


def test_same_seed_gives_the_same_tensors(tiny_backbone: Backbone, colours: Dataset) -> None:
    first, again, other = (
        tune(tiny_backbone, colours, method="full", settings=replace(SHORT, seed=seed)).model
        for seed in (1, 1, 2)
    )

    assert sha256_of_tensors(first) == sha256_of_tensors(again) != sha256_of_tensors(other)


def test_record_is_what_the_weights_do(
    tiny_backbone: Backbone, colours: Dataset, tmp_path: Path
) -> None:
    settings = replace(SHORT, epochs=6)
    baseline = train_baseline(tiny_backbone, colours, name="colour", settings=settings)
    save_baseline(baseline, tmp_path / "colour")

    record = json.loads((tmp_path / "colour" / BASELINE).read_text())
    assert record == baseline.record.model_dump(mode="json")
    assert {path.name for path in (tmp_path / "colour").iterdir()} == {BASELINE, record["weights"]}
    vit = VisionTransformer(**ARCHITECTURE, num_classes=3).eval()
    weights = tmp_path / "colour" / record["weights"]
    vit.load_state_dict(load_file(weights))
    targets = torch.from_numpy(colours.test.targets)
    with torch.inference_mode():
        logits = vit(images_of(colours.test, tiny_backbone))
    metrics = record["metrics"]
    accuracy = (logits.argmax(-1) == targets).float().mean().item()
    assert accuracy > 0.5
    assert metrics["test_accuracy"] == pytest.approx(accuracy)
    assert metrics["test_ece"] == pytest.approx(calibration_error(logits, targets), abs=1e-5)
    assert record["num_bytes"] == 4 * sum(p.numel() for p in vit.parameters())
    assert record["backbone"]["sha256"] == tiny_backbone.sha256
    assert record["method"] == {"name": "full", "options": {}}
    assert (record["name"], record["labels"], record["pool"]) == ("colour", LABELS, "cls")
    assert metrics["split"] == {"train": 24, "val": 9, "test": 12}
    assert load_backbone(str(weights)).sha256 == sha256_of_tensors(baseline.model.backbone)


def test_a_run_leaves_a_report_once_the_baseline_is_saved(
    tiny_backbone: Backbone, colours: Dataset, tmp_path: Path
) -> None:
    report = tmp_path / "run" / "report"

    def save_first(baseline: Baseline) -> None:
        assert not report.exists()
        save_baseline(baseline, tmp_path / "colour")

    baseline = train_baseline(
        tiny_backbone,
        colours,
        name="colour",
        settings=SHORT,
        run=tmp_path / "run",
        on_baseline=save_first,
    )

    record = baseline.record.model_dump(mode="json")
    assert json.loads((tmp_path / "colour" / BASELINE).read_text()) == record
    numbers = json.loads((report / "report.json").read_text())
    assert {key: numbers[key] for key in record} == record
    assert {gaze["who"] for gaze in numbers["attention"]["gazes"]} == {"CLS"}
    page = (report / "index.html").read_text()
    assert f"full on {tiny_backbone.source}, 3 labels" in page


def test_what_timm_cannot_hold_is_refused_before_training(
    tiny_backbone: Backbone, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lspt_serve.training.baseline.tune", None)

    with pytest.raises(MethodError, match=r"with pool 'cls\+patch_mean' no VisionTransformer of"):
        train_baseline(tiny_backbone, colours, name="colour", pool="cls+patch_mean", settings=SHORT)


def test_baseline_is_written_whole_or_not_at_all(
    tiny_backbone: Backbone, colours: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = train_baseline(tiny_backbone, colours, name="colour", settings=SHORT)

    def fail(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)

    with pytest.raises(OutputError, match="No space left"):
        save_baseline(baseline, tmp_path / "colour")
    assert list(tmp_path.iterdir()) == []


def test_no_bundle_can_be_made_of_it(
    tiny_backbone: Backbone, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lspt_serve.training.task.tune", None)  # it is said before any training
    with pytest.raises(MethodError, match=r"method 'full' is a baseline: .*frozen"):
        train_task(tiny_backbone, colours, name="colour", method="full", settings=SHORT)
    with pytest.raises(MethodError, match=r"method 'full' is a baseline: .*frozen"):
        create_bundle(fresh(tiny_backbone), tiny_backbone, name="colour", labels=LABELS)


def test_no_graph_can_be_made_of_it(tiny_backbone: Backbone, tmp_path: Path) -> None:
    bundle = random_bundle(tiny_backbone, method="linear")
    bundle.manifest = bundle.manifest.model_copy(update={"method": MethodRef(name="full")})

    for make in (
        lambda: create_model(tiny_backbone, bundle),
        lambda: export_bundle(tiny_backbone, bundle, tmp_path / "colour.onnx"),
        lambda: export_graph(tiny_backbone, tmp_path / "graph", like=bundle),
    ):
        with pytest.raises(MethodError, match="method 'full' is a baseline"):
            make()
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_is_not_taken_for_a_bundle(
    tiny_backbone: Backbone, colours: Dataset, tmp_path: Path
) -> None:
    save_baseline(
        train_baseline(tiny_backbone, colours, name="colour", settings=SHORT), tmp_path / "colour"
    )

    assert not (tmp_path / "colour" / MANIFEST).exists()
    with pytest.raises(BundleError, match="colour: a baseline that lspt train --method full wrote"):
        load_bundle(tmp_path / "colour")
