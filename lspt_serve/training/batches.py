"""A split on the training device, and the logits of any of its rows.

N images, B rows, S side of the decoded squares, K classes, F pooled features.
"""

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lspt_serve.errors import DataError
from lspt_serve.models import PromptedViT
from lspt_serve.preprocess import Preprocess
from lspt_serve.training.augment import augment_batch
from lspt_serve.training.data import Split
from lspt_serve.training.distributed import add_up, rank, world_size
from lspt_serve.training.picks import Picks
from lspt_serve.training.prefetch import one_ahead, send

__all__ = ["Batches"]


class Batches:
    """Images stay uint8 and are augmented and normalised batch by batch, on the device.

    They lie in the device's memory; those of a np.memmap stay on disk, and those that are read
    once where they are. Where nothing before the head is trained (a linear probe) and images do
    not vary, the features of all images are computed once, in fp32, and only the head runs from
    then on. Targets (N) stay on the CPU.

    Args:
        varied: images are augmented or mixed.
        once: all are read a single time.
        forward: runs in place of the model, for example the model compiled.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        model: PromptedViT,
        *,
        varied: bool = False,
        once: bool = False,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        side = preprocess.resized_side
        if split.images.dtype != np.uint8 or split.images.shape[1:] != (side, side, 3):
            got = f"{split.images.dtype} {list(split.images.shape[1:])}"
            raise DataError(
                f"images are {got}, wanted uint8 {[side, side, 3]} for img_size "
                f"{preprocess.img_size} and crop_pct {preprocess.crop_pct}; load them so"
            )
        self.device = next(model.parameters()).device
        self.model = model
        self.forward = forward or model
        self.split = split
        self.img_size = preprocess.img_size
        self.margin = side - preprocess.img_size
        self.data_s = 0.0  # waited for inputs so far; on a GPU, by the host
        stay = once or isinstance(split.images, np.memmap)
        self.images = split.images if stay else _planes(split.images).to(self.device)
        self.targets = torch.from_numpy(split.targets)
        self.mean = torch.tensor(preprocess.mean, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(preprocess.std, device=self.device).view(3, 1, 1)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        trains_head_only = all(name.startswith("head.") for name in trained)
        self.features = None  # N x F
        if trains_head_only and not varied:
            self.features = self._for_all(model.forward_features, model.head.in_features)

    def __len__(self) -> int:
        return len(self.targets)

    def all_logits(self, batch_size: int = 64) -> Tensor:
        """N x K, fp32; each process computes a share of them."""
        return self._for_all(self.logits, self.model.head.out_features, batch_size)

    def logits(self, inputs: Tensor) -> Tensor:
        """B x K, of what `prefetch` gave."""
        if self.features is not None:
            return self.model.head(inputs)  # type: ignore[no-any-return]
        return self.forward(inputs)

    def prefetch(self, batches: Iterable[Picks]) -> Iterator[tuple[Picks, Tensor]]:
        """Each batch with its images, or with its features (B x F).

        For a GPU images are made one batch ahead. On a CPU a thread that makes them takes the cores
        from the step, which is 1.6 times as long then; images are 1 to 2 % of it.
        """
        made: Iterator[tuple[Picks, Tensor]] = map(self._load, batches)
        if self.device.type == "cuda" and self.features is None:
            made = one_ahead(self._load, batches)
        while True:
            started = time.perf_counter()
            batch = next(made, None)
            self.data_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def inputs(self, picks: Picks) -> Tensor:
        """Augmented, normalised, mixed images, B x 3 x H x W."""
        images = self._normalised(picks)
        if picks.partners is not None:
            images = picks.weight * images + (1 - picks.weight) * self._normalised(picks.partners)
        return images

    def _load(self, picks: Picks) -> tuple[Picks, Tensor]:
        if self.features is not None:
            return picks, self.features[send(picks.rows, self.device)]
        return picks, self.inputs(picks)

    def _normalised(self, picks: Picks) -> Tensor:
        if isinstance(self.images, Tensor):
            images = self.images[send(picks.rows, self.device)]
        else:
            images = send(_planes(self.images[picks.rows.numpy()]), self.device)
        images = augment_batch(images, self.img_size, picks.changes)
        return (images.float() / 255 - self.mean) / self.std

    @torch.no_grad()
    def _for_all(
        self, compute: Callable[[Tensor], Tensor], width: int, batch_size: int = 64
    ) -> Tensor:
        """What is computed of all inputs, N x width in fp32, a share of them in each process."""
        found = torch.zeros(len(self), width, device=self.device)
        share = torch.arange(len(self)).tensor_split(world_size())[rank()]
        batches = [Picks(rows) for rows in share.split(batch_size) if len(rows)]
        for picks, inputs in self.prefetch(batches):
            found[send(picks.rows, self.device)] = compute(inputs).float()
        return add_up(found)


def _planes(images: NDArray[np.uint8]) -> Tensor:
    """N x S x S x 3 to N x 3 x S x S, a copy."""
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy())
