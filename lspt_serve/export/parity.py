"""Does an exported graph answer what torch answers?

B batch, K classes.
"""

from collections.abc import Callable, Mapping
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
MAX_ERROR = 1e-4  # relative to the largest value; fp32 gives about 1e-6
Predict = Callable[[NDArray[np.float32], PromptedViT], NDArray[np.float32]]


def create_session(path: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU, where torch's fp32 reference runs too."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check_parity(
    predict: Predict, models: Mapping[str, PromptedViT], img_size: int, *, softmax: bool = False
) -> list[ParityRow]:
    """Compare a graph with torch in fp32, for every model at batch sizes 1, 3 and 8, on noise.

    Args:
        predict: images (B x 3 x H x W) and the model that they are for to logits (B x K), ...
        softmax: ... or to probabilities.

    Raises:
        GraphError: another top-1, or a relative error above 1e-4.
    """
    rng = np.random.default_rng(0)
    rows = []
    for name, model in models.items():
        for batch_size in BATCH_SIZES:
            images = rng.standard_normal((batch_size, 3, img_size, img_size), np.float32)
            with torch.inference_mode():
                logits = model.eval()(torch.from_numpy(images))
            expected = (logits.softmax(dim=-1) if softmax else logits).numpy()
            got = predict(images, model)
            rows.append(
                ParityRow(
                    task=name,
                    batch_size=batch_size,
                    max_error=float(np.abs(got - expected).max() / np.abs(expected).max()),
                    top1_agreement=float((got.argmax(-1) == expected.argmax(-1)).mean()),
                )
            )
    for row in rows:
        if row.top1_agreement < 1 or not row.max_error <= MAX_ERROR:
            raise GraphError(
                f"the exported graph disagrees with torch for {row.task} at batch "
                f"{row.batch_size}: top-1 agreement {row.top1_agreement:.3f}, relative error "
                f"{row.max_error:.1e}; wanted 1 and at most {MAX_ERROR:.0e}"
            )
    return rows
