"""bundle.json: what a task is, and which backbone it belongs to. See docs/bundle-format.md."""

import re
from collections import Counter
from pathlib import PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from lspt_serve import __version__
from lspt_serve.errors import BundleError, name_some
from lspt_serve.preprocess import Preprocess
from lspt_serve.rounding import Dtype

__all__ = [
    "FORMAT_VERSION",
    "MAX_VERSION",
    "TASK_NAME",
    "BackboneRef",
    "Manifest",
    "MethodRef",
    "Metrics",
    "Rounding",
    "TaskName",
    "TaskVersion",
    "check_task_name",
]

FORMAT_VERSION: Literal[1] = 1
MAX_VERSION = 2**31 - 1  # as much as an ONNX adapter's holds
TASK_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
TaskName = Annotated[str, StringConstraints(pattern=f"^{TASK_NAME}$")]
TaskVersion = Annotated[int, Field(ge=1, le=MAX_VERSION)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneRef(_Record):
    """Which backbone a bundle or graph belongs to; `sha256` is over its tensors."""

    source: str
    sha256: Sha256

    @property
    def label(self) -> str:
        """Without the folder that a file lies in, which is no business of callers."""
        path = PureWindowsPath(self.source)  # which knows the separators of all systems
        return path.name or self.source if path.root else self.source


class MethodRef(_Record):
    """A prompt method by name, with its options."""

    name: str
    options: dict[str, Any] = {}


class Rounding(_Record):
    """What storing a bundle in float16 costs on test, against its tensors before rounding."""

    points_lost: float  # percentage points of top-1 accuracy; below 0: it is better
    answers_changed: int  # images whose best label is another


class Metrics(_Record):
    """Top-1 accuracies in [0, 1] and the circumstances that they were measured under.

    `temperature` was fitted on val and is folded into the head; `test_ece` is the expected
    calibration error (15 bins) with it, `test_ece_uncalibrated` without. All are those of the
    tensors as they are stored.
    """

    val_accuracy: Share
    test_accuracy: Share
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    test_ece: Share | None = None
    test_ece_uncalibrated: Share | None = None
    rounding: Rounding | None = None  # where the tensors are float16
    best_epoch: int
    seed: int
    split: dict[str, int]  # images in train, val, test
    train_s: float


class Manifest(_Record):
    """bundle.json."""

    format_version: Literal[1] = FORMAT_VERSION
    name: TaskName
    version: TaskVersion = 1
    labels: Annotated[list[str], Field(min_length=2, fail_fast=True)]
    method: MethodRef
    trained_as: MethodRef | None = None  # where folding made another method of it
    backbone: BackboneRef
    preprocess: Preprocess
    pool: str
    dtype: Dtype = "float32"  # of all tensors in the file; in memory they are float32
    tensors: dict[str, list[int]]  # name -> shape
    tensors_sha256: Sha256
    metrics: Metrics | None = None
    license: str | None = None
    created_with: str = f"lspt-serve {__version__}"

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: list[str]) -> list[str]:
        if twice := [label for label, count in Counter(labels).items() if count > 1]:
            raise ValueError(f"labels must differ, got twice: {name_some(twice)}")
        return labels


def check_task_name(name: str) -> None:
    """Raises BundleError for a name that a task may not have."""
    if not re.fullmatch(TASK_NAME, name):
        raise BundleError(
            f"{name!r} cannot name a task; wanted 1 to 64 of a-z 0-9 . _ -, the first a letter or "
            "digit"
        )
