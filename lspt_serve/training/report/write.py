"""The report of a run: its numbers, then pictures and a page of them."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lspt_serve.baseline import BaselineRecord
from lspt_serve.errors import BackboneError
from lspt_serve.files import atomic_folder
from lspt_serve.manifest import Manifest
from lspt_serve.models import PromptedViT
from lspt_serve.pictures import drawing
from lspt_serve.preprocess import crop_middle, normalise
from lspt_serve.training.data import Dataset
from lspt_serve.training.report.attention import Gaze, find_gazes
from lspt_serve.training.report.charts import draw_calibration, draw_confusion, draw_curves
from lspt_serve.training.report.numbers import (
    Answer,
    Bin,
    class_rows,
    confused_pairs,
    confusion_matrix,
    list_answers,
    list_bins,
    pick_examples,
)
from lspt_serve.training.report.page import render_page
from lspt_serve.training.report.sheets import draw_attention, draw_errors
from lspt_serve.training.trainer import Epoch

__all__ = ["Record", "write_report"]

Record = Manifest | BaselineRecord

PAIRS, ERRORS = 20, 10
WRONG_ROWS, RIGHT_ROWS = 3, 3  # of the attention picture


@dataclass(frozen=True)
class _Findings:
    """What there is to tell of the answers to test."""

    confusion: NDArray[np.int64]
    before: list[Bin]
    after: list[Bin]
    errors: list[Answer]  # the worst
    examples: list[Answer]  # whose attention is shown
    gazes: list[Gaze]
    without: str | None  # why there are no gazes


def write_report(
    folder: Path,
    model: PromptedViT,
    record: Record,
    dataset: Dataset,
    history: Sequence[Epoch],
    *,
    logits: Tensor,
) -> None:
    """Write index.html, its pictures and report.json, whole or not at all.

    Args:
        model: the one that is served, its temperature folded in.
        record: of its bundle, with metrics, or of a baseline.
        history: all epochs.
        logits: of test, as that model gives them; N x K.

    Raises:
        OutputError: the folder cannot be written.
    """
    findings = _find(model, record, dataset, logits.cpu())
    report = _to_json(findings, record, dataset, history)
    with atomic_folder(folder) as temporary:
        with drawing():
            _draw(temporary, findings, record, dataset, history)
        sizes = {path.name: _size(path) for path in temporary.glob("*.png")}
        (temporary / "index.html").write_text(render_page(report, sizes), "utf-8")
        text = json.dumps(report, allow_nan=False, ensure_ascii=False, indent=1)
        (temporary / "report.json").write_text(text + "\n", "utf-8")


def _find(model: PromptedViT, record: Record, dataset: Dataset, logits: Tensor) -> _Findings:
    metrics, labels, targets = record.metrics, record.labels, dataset.test.targets
    assert metrics is not None
    answers = list_answers(logits.softmax(dim=-1).numpy(), dataset.test, labels)
    examples = pick_examples(answers, wrong=WRONG_ROWS, right=RIGHT_ROWS)
    gazes, without = _look(model, _pixels(dataset, examples, record), record)
    return _Findings(
        confusion=confusion_matrix(logits.argmax(dim=-1).numpy(), targets, len(labels)),
        before=list_bins(logits * metrics.temperature, torch.from_numpy(targets)),
        after=list_bins(logits, torch.from_numpy(targets)),
        errors=[answer for answer in answers if not answer.right][:ERRORS],
        examples=examples,
        gazes=gazes,
        without=without,
    )


def _draw(
    folder: Path,
    findings: _Findings,
    record: Record,
    dataset: Dataset,
    history: Sequence[Epoch],
) -> None:
    assert record.metrics is not None
    draw_curves(folder / "curves.png", history, record.metrics.best_epoch)
    draw_confusion(folder / "confusion.png", findings.confusion, record.labels)
    bins = {"As trained": findings.before, "As served": findings.after}
    draw_calibration(folder / "calibration.png", bins)
    if errors := findings.errors:
        draw_errors(folder / "errors.png", _pixels(dataset, errors, record), errors)
    if gazes := findings.gazes:
        pixels = _pixels(dataset, findings.examples, record)
        draw_attention(folder / "attention.png", pixels, findings.examples, gazes)


def _to_json(
    findings: _Findings, record: Record, dataset: Dataset, history: Sequence[Epoch]
) -> dict[str, Any]:
    labels, confusion = record.labels, findings.confusion
    true, predicted = np.nonzero(confusion)
    cells = zip(true.tolist(), predicted.tolist(), confusion[true, predicted].tolist(), strict=True)
    pairs = confused_pairs(confusion, labels, limit=PAIRS)
    return {
        **record.model_dump(mode="json", exclude={"tensors", "tensors_sha256"}),
        "notes": dataset.notes,
        "epochs": [_finite(asdict(epoch)) for epoch in history],
        "classes": [asdict(row) for row in class_rows(confusion, labels)],
        "confusion": [*map(list, cells)],  # true, predicted, count of cells that are not empty
        "pairs": [asdict(pair) for pair in pairs],
        "errors": [asdict(answer) for answer in findings.errors],
        "calibration": {
            "before": [asdict(each) for each in findings.before],
            "after": [asdict(each) for each in findings.after],
        },
        "attention": {
            "images": [asdict(answer) for answer in findings.examples],
            "gazes": [gaze.numbers() for gaze in findings.gazes],
            "without": findings.without,
        },
    }


def _look(
    model: PromptedViT, pixels: NDArray[np.uint8], record: Record
) -> tuple[list[Gaze], str | None]:
    """The gazes, or why there are none."""
    inputs = torch.from_numpy(normalise(pixels, record.preprocess))
    try:
        gazes = find_gazes(model, inputs.to(next(model.parameters()).device))
    except BackboneError as error:
        return [], str(error)
    return gazes, None if gazes else "this model has neither a class token nor prompts"


def _pixels(dataset: Dataset, answers: Sequence[Answer], record: Record) -> NDArray[np.uint8]:
    """Images of test as the model sees them but for the normalisation, B x H x W x C."""
    images = dataset.test.images[[answer.index for answer in answers]]
    return crop_middle(np.asarray(images), record.preprocess.img_size)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _finite(epoch: dict[str, Any]) -> dict[str, Any]:
    """JSON has no word for what a diverged epoch lost."""
    return {key: value if math.isfinite(value) else None for key, value in epoch.items()}
