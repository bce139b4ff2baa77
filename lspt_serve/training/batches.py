"""A split on the training device, and the logits of any of its rows.

N images, B rows, S side of the decoded squares, K classes, F pooled features.
"""

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lspt_serve.errors import DataError
from lspt_serve.models import PromptedViT
from lspt_serve.preprocess import Preprocess
from lspt_serve.training.augment import augment_batch
from lspt_serve.training.data import Split
from lspt_serve.training.settings import Augment

__all__ = ["Batches"]


class Batches:
    """Images stay uint8 and are augmented and normalised batch by batch, on the device.

    They lie in the device's memory, those of a np.memmap on disk. Where nothing before the head is
    trained (a linear probe) and nothing is augmented, the features of all images are computed once,
    in fp32, and only the head runs from then on.

    Args:
        generator: of the augmentation, on the CPU.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        model: PromptedViT,
        *,
        augment: Augment = "none",
        generator: torch.Generator | None = None,
    ) -> None:
        side = preprocess.resized_side
        if split.images.shape[1:] != (side, side, 3):
            raise DataError(
                f"images are {list(split.images.shape[1:])}, wanted {[side, side, 3]} for img_size "
                f"{preprocess.img_size} and crop_pct {preprocess.crop_pct}; load them so"
            )
        self.device = next(model.parameters()).device
        self.model = model
        self.img_size = preprocess.img_size
        self.augment = augment
        self.generator = generator
        self.data_s = 0.0  # spent on inputs so far; on a GPU, by the host
        on_disk = isinstance(split.images, np.memmap)
        self.images = split.images if on_disk else self._to_device(split.images)
        self.targets = torch.from_numpy(split.targets).to(self.device)  # N
        self.mean = torch.tensor(preprocess.mean, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(preprocess.std, device=self.device).view(3, 1, 1)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        trains_head_only = all(name.startswith("head.") for name in trained)
        self.features = self._features() if trains_head_only and augment == "none" else None

    def __len__(self) -> int:
        return len(self.targets)

    def logits(self, rows: Tensor) -> Tensor:
        """Rows (B indices) to logits (B x K)."""
        if self.features is not None:
            return self.model.head(self.features[rows])  # type: ignore[no-any-return]
        return self.model(self.inputs(rows))  # type: ignore[no-any-return]

    def inputs(self, rows: Tensor) -> Tensor:
        """Rows (B indices) to augmented, normalised images (B x 3 x H x W)."""
        started = time.perf_counter()
        if isinstance(self.images, Tensor):
            images = self.images[rows]
        else:
            images = self._to_device(self.images[rows.numpy()])
        images = augment_batch(images, self.img_size, self.augment, self.generator)
        images = (images.float() / 255 - self.mean) / self.std
        self.data_s += time.perf_counter() - started
        return images

    def _to_device(self, images: NDArray[np.uint8]) -> Tensor:
        """N x S x S x 3 to N x 3 x S x S."""
        return torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(self.device)

    def _features(self, batch_size: int = 64) -> Tensor:
        with torch.no_grad():
            rows: Any = torch.arange(len(self)).split(batch_size)
            return torch.cat([self.model.forward_features(self.inputs(r)) for r in rows])
