"""Does an exported graph answer what torch answers?

B batch, K classes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from lspt_serve.errors import GraphError
from lspt_serve.graph import ParityRow
from lspt_serve.models import PromptedViT

__all__ = ["MAX_ERROR", "Predict", "check_parity", "create_session"]

BATCH_SIZES = (1, 3, 8)
MIXED = "all, mixed"  # which no task may be called
MAX_ERROR = 1e-4  # relative to the largest value; fp32 gives about 1e-6
Array = NDArray[np.float32]
Predict = Callable[[Array, Sequence[PromptedViT]], Iterable[Array]]


def create_session(path: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU, where torch's fp32 reference runs too."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check_parity(
    predict: Predict, models: Mapping[str, PromptedViT], img_size: int, *, softmax: bool = False
) -> list[ParityRow]:
    """Compare a graph with torch in fp32, on noise, in batches of 1, 3 and 8.

    Every model has batches of its own, and if there are several, all share more.

    Args:
        predict: images (B x 3 x H x W) and the models that the rows are for to logits (B of K), ...
        softmax: ... or to probabilities.

    Raises:
        GraphError: another top-1, or a relative error above 1e-4.
    """
    rng = np.random.default_rng(0)
    batches = {name: [model] for name, model in models.items()}
    if len(models) > 1:
        batches[MIXED] = list(models.values())
    rows = []
    for name, taking_turns in batches.items():
        for batch_size in BATCH_SIZES:
            images = rng.standard_normal((batch_size, 3, img_size, img_size), np.float32)
            whose = [taking_turns[row % len(taking_turns)] for row in range(batch_size)]
            expected = [
                _reference(model, image, softmax=softmax)
                for model, image in zip(whose, images, strict=True)
            ]
            rows.append(_compare(name, predict(images, whose), expected))
    for row in rows:
        if row.top1_agreement < 1 or not row.max_error <= MAX_ERROR:
            raise GraphError(
                f"the exported graph disagrees with torch for {row.task} at batch "
                f"{row.batch_size}: top-1 agreement {row.top1_agreement:.3f}, relative error "
                f"{row.max_error:.1e}; wanted 1 and at most {MAX_ERROR:.0e}"
            )
    return rows


def _reference(model: PromptedViT, image: Array, *, softmax: bool) -> Array:
    with torch.inference_mode():
        (logits,) = model.eval()(torch.from_numpy(image[None]))
    return (logits.softmax(dim=-1) if softmax else logits).numpy()  # type: ignore[no-any-return]


def _compare(name: str, got: Iterable[Array], expected: Sequence[Array]) -> ParityRow:
    pairs = list(zip(got, expected, strict=True))
    largest = max(np.abs(row).max() for row in expected)
    return ParityRow(
        task=name,
        batch_size=len(pairs),
        max_error=float(np.max([np.abs(g - e).max() for g, e in pairs]) / largest),  # it keeps NaN
        top1_agreement=float(np.mean([g.argmax() == e.argmax() for g, e in pairs])),
    )
