from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from toys import export_once, random_bundle, writes_corrupted

import lspt_serve.export.shared
from lspt_serve.bundle import Bundle
from lspt_serve.errors import GraphError
from lspt_serve.export import create_model, export_graph
from lspt_serve.export.parity import check_parity
from lspt_serve.graph import GRAPH_FILE
from lspt_serve.models import Backbone, PromptedViT

Array = NDArray[np.float32]


def by_torch(images: Array, models: Sequence[PromptedViT]) -> Array:
    """Logits, each row by the model that it is for."""
    with torch.inference_mode():
        rows = zip(models, torch.from_numpy(images).split(1), strict=True)
        return torch.cat([model(image) for model, image in rows]).numpy()


@pytest.fixture(scope="module")
def models(tiny_backbone: Backbone) -> dict[str, PromptedViT]:
    return {
        name: create_model(tiny_backbone, random_bundle(tiny_backbone, seed=seed))
        for seed, name in enumerate(("sky", "sea"))
    }


@pytest.fixture(scope="module")
def lspt_graph(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tiny_backbone, tmp_path_factory)


def test_every_model_and_all_mixed_are_compared_at_three_batch_sizes(
    models: dict[str, PromptedViT],
) -> None:
    rows = check_parity(by_torch, models, 32)

    assert [(row.task, row.batch_size) for row in rows] == [
        (task, batch_size) for task in ("sky", "sea", "all, mixed") for batch_size in (1, 3, 8)
    ]
    assert {(row.max_error, row.top1_agreement) for row in rows} == {(0.0, 1.0)}


def test_task_may_be_called_mixed(models: dict[str, PromptedViT]) -> None:
    rows = check_parity(by_torch, {"mixed": models["sky"], "sea": models["sea"]}, 32)

    assert [row.task for row in rows[::3]] == ["mixed", "sea", "all, mixed"]


def test_error_is_relative_to_the_largest_value(models: dict[str, PromptedViT]) -> None:
    def predict(images: Array, whose: Sequence[PromptedViT]) -> Array:
        return by_torch(images, whose) * np.float32(0.99995)

    rows = check_parity(predict, models, 32)

    assert [row.max_error for row in rows] == pytest.approx([5e-5] * 9, rel=0.02)


def test_probabilities_are_compared_with_probabilities(models: dict[str, PromptedViT]) -> None:
    def predict(images: Array, whose: Sequence[PromptedViT]) -> Array:
        return torch.from_numpy(by_torch(images, whose)).softmax(dim=-1).numpy()

    assert len(check_parity(predict, models, 32, softmax=True)) == 9
    with pytest.raises(GraphError):
        check_parity(predict, models, 32)


def too_large(logits: Array) -> Array:
    return logits * np.float32(1.0002)


def best_is_nan(logits: Array) -> Array:
    return np.where(logits == logits.max(axis=-1, keepdims=True), np.float32(np.nan), logits)


def last_row_is_nan(logits: Array) -> Array:
    return np.concatenate([logits[:-1], np.full_like(logits[-1:], np.nan)])


def rows_in_another_order(logits: Array) -> Array:
    return logits[::-1]


@pytest.mark.parametrize("spoil", [too_large, best_is_nan, last_row_is_nan, rows_in_another_order])
def test_disagreement_is_refused_with_task_and_batch_size(
    models: dict[str, PromptedViT], spoil: Callable[[Array], Array]
) -> None:
    def predict(images: Array, whose: Sequence[PromptedViT]) -> Array:
        logits = by_torch(images, whose)
        return spoil(logits) if models["sea"] is whose[0] and len(images) > 1 else logits

    with pytest.raises(GraphError, match="disagrees with torch for sea at batch 3: "):
        check_parity(predict, models, 32)


def test_rows_that_are_right_alone_and_wrong_in_one_batch_are_refused(
    models: dict[str, PromptedViT],
) -> None:
    def predict(images: Array, whose: Sequence[PromptedViT]) -> Array:
        return by_torch(images, [whose[0]] * len(whose))

    with pytest.raises(GraphError, match="disagrees with torch for all, mixed at batch 3: "):
        check_parity(predict, models, 32)


def test_another_best_label_is_refused_however_close_it_was(
    models: dict[str, PromptedViT],
) -> None:
    def tied(images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 1.0 + 1e-6]]).expand(len(images), -1)

    class Tied(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return tied(images)

    def predict(images: Array, whose: object) -> Array:
        return tied(torch.from_numpy(images)).flip(-1).numpy()

    ties: Any = {"tied": Tied()}
    with pytest.raises(GraphError, match=r"top-1 agreement 0\.000"):
        check_parity(predict, ties, 32)


def test_graph_that_disagrees_is_not_written(
    tiny_backbone: Backbone, lspt_graph: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = writes_corrupted(lspt_graph / GRAPH_FILE)
    monkeypatch.setattr(lspt_serve.export.shared, "write_onnx", write)

    with pytest.raises(GraphError, match="disagrees with torch for fresh at batch 1"):
        export_graph(tiny_backbone, tmp_path / "graph")

    assert list(tmp_path.iterdir()) == []


def test_no_zeros_hide_a_part_of_the_graph_from_the_check(
    tiny_backbone: Backbone,
    make_bundle: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    checked: dict[str, PromptedViT] = {}

    def remember(predict: object, models: dict[str, PromptedViT], img_size: int) -> list[object]:
        checked.update(models)
        return []

    monkeypatch.setattr(lspt_serve.export.shared, "check_parity", remember)
    for name in ("write_onnx", "_predictor"):
        monkeypatch.setattr(lspt_serve.export.shared, name, lambda *args, **settings: None)

    export_graph(tiny_backbone, tmp_path / "graph", like=make_bundle(deep=True))

    fresh = checked["fresh, other prompts"].method
    assert [name for name, tensor in fresh.named_parameters() if not tensor.any()] == []
    assert isinstance(fresh.get_submodule("coder.up"), torch.nn.Linear)
