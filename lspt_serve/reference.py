"""What was answered in fp32 when a graph was made; an engine is held to it before it serves.

Written by the export beside the graph and its int8 twin, read by the runtime; needs neither torch
nor ONNX.

B rows, F pooled features, N patches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lspt_serve.errors import GraphError, first_line
from lspt_serve.graph import REFERENCE_FILE

__all__ = ["MAX_ERROR", "Precision", "Reference", "reference_images", "row_errors"]

FEATURES, WHOSE, IMAGES, ATTENTION = "features", "whose", "images", "attention"
Precision = Literal["fp32", "fp16", "bf16", "int8"]  # of the matrix products; of int8's, most
# The error of a row is the length of its difference from torch's, over the length of torch's.
# For int8 it is of real images: ranges measured on images cut off what noise has beyond them, and
# 60 % of a row's length with it, which says nothing of images. ViT-Ti/16 is off by up to 21 % on
# 372 images of the task that it was calibrated on, by up to 15 % on 300 of another, and hardly any
# answer that was right is lost (docs/engines.md); without SmoothQuant it was off by up to 78 %.
MAX_ERROR: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.01, "bf16": 0.05, "int8": 0.3}
Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reference:
    """The tensors of some tasks, and the features of one batch.

    Args:
        tasks: each a task's tensors as they enter the graph; a linear probe has none.
        whose: which of the tasks a row is for; B.
        features: B x F.
        own: the images, B x 3 x H x W; None is `reference_images`, which need not be kept.
        attention: B x N; None where the graph gives none, and of an int8 twin.
    """

    tasks: Sequence[Mapping[str, Array]]
    whose: NDArray[np.int64]
    features: Array
    own: Array | None = None
    attention: Array | None = None

    def images(self, img_size: int) -> Array:
        """Normalised, B x 3 x img_size x img_size."""
        return reference_images(len(self.features), img_size) if self.own is None else self.own

    @property
    def rows(self) -> list[Mapping[str, Array]]:
        """The tensors of each row's task, B."""
        return [self.tasks[task] for task in self.whose]

    def save(self, folder: Path) -> None:
        """Write FOLDER/reference.safetensors."""
        tensors: dict[str, NDArray[Any]] = {
            f"{number}/{name}": np.ascontiguousarray(tensor)
            for number, task in enumerate(self.tasks)
            for name, tensor in task.items()
        }
        tensors |= {FEATURES: self.features, WHOSE: self.whose}
        tensors |= {} if self.own is None else {IMAGES: self.own}
        tensors |= {} if self.attention is None else {ATTENTION: self.attention}
        save_file(tensors, folder / REFERENCE_FILE)

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """Raises GraphError if the file is missing or broken."""
        path = folder / REFERENCE_FILE
        try:
            tensors = load_file(path)
            features, whose = tensors.pop(FEATURES), tensors.pop(WHOSE)
            own, attention = tensors.pop(IMAGES, None), tensors.pop(ATTENTION, None)
            tasks: list[dict[str, Array]] = [{} for _ in range(int(whose.max()) + 1)]
            for key, tensor in tensors.items():
                number, _, name = key.partition("/")
                tasks[int(number)][name] = tensor
        except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
            raise GraphError(
                f"{path}: cannot be read: {first_line(error)}; export the graph again"
            ) from error
        return cls(tasks, whose, features, own, attention)


def row_errors(got: Array, wanted: Array) -> Array:
    """Length of the difference over the length of what was wanted, row by row (B)."""
    lengths = np.linalg.norm(wanted, axis=1)
    return np.asarray(np.linalg.norm(got - wanted, axis=1) / lengths)


def reference_images(count: int, img_size: int) -> Array:
    """Noise with a spectrum of 1/f, as photographs have it, normalised; the same on every machine.

    Returns:
        count x 3 x img_size x img_size.
    """
    noise = np.random.RandomState(0).standard_normal((count, 3, img_size, img_size))
    frequency = np.hypot(np.fft.fftfreq(img_size)[:, None], np.fft.rfftfreq(img_size))
    frequency[0, 0] = 1 / img_size
    images = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(img_size, img_size))
    return np.asarray(images / images.std(axis=(1, 2, 3), keepdims=True), np.float32)
