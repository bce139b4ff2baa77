"""A split on the training device, and the logits of any of its rows.

N images, B rows, K classes, F pooled features.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lspt_serve.models import PromptedViT
from lspt_serve.preprocess import Preprocess
from lspt_serve.training.data import Split

__all__ = ["Batches"]


class Batches:
    """Images stay uint8 in memory and are normalised batch by batch.

    Where nothing before the head is trained (a linear probe), the features of all images are
    computed once, in fp32, and only the head runs from then on.
    """

    def __init__(self, split: Split, preprocess: Preprocess, model: PromptedViT) -> None:
        device = next(model.parameters()).device
        self.model = model
        self.images = torch.from_numpy(np.moveaxis(split.images, -1, 1).copy()).to(device)
        self.targets = torch.from_numpy(split.targets).to(device)  # N
        self.mean = torch.tensor(preprocess.mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(preprocess.std, device=device).view(3, 1, 1)
        self.features = None if any(True for _ in model.method.parameters()) else self._features()

    def __len__(self) -> int:
        return len(self.targets)

    def logits(self, rows: Tensor) -> Tensor:
        """Rows (B indices) to logits (B x K)."""
        if self.features is not None:
            return self.model.head(self.features[rows])  # type: ignore[no-any-return]
        return self.model(self._normalised(rows))  # type: ignore[no-any-return]

    def _normalised(self, rows: Tensor) -> Tensor:
        return (self.images[rows].float() / 255 - self.mean) / self.std

    def _features(self, batch_size: int = 64) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            rows: Any = torch.arange(len(self)).split(batch_size)
            return torch.cat([self.model.forward_features(self._normalised(r)) for r in rows])
