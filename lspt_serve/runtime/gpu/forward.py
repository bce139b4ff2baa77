"""Features of a batch on a CUDA GPU.

B batch, F pooled features.
"""

from collections.abc import Mapping
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from lspt_serve.feed import row_inputs
from lspt_serve.models.prompted_vit import PromptedViT
from lspt_serve.models.rows import ManyTasks, Rows
from lspt_serve.runtime.bank import Gathered
from lspt_serve.runtime.gpu.copies import Uploads, download, upload_numbers
from lspt_serve.runtime.gpu.fused import FusedFeatures, can_be_fused, embed_by_product
from lspt_serve.runtime.gpu.graphs import GraphRunner

__all__ = ["GPUForward"]

MAX_SPREAD = 1 << 30  # bytes: with more, giving every row its task's tensors costs what it saves


class GPUForward:
    """For two threads at a time: one batch is copied and queued while the other runs.

    Args:
        model: on the GPU; how its patches are embedded is changed.
        dtype: of its matrix products.
        turn: is held where the model is called: a task's tensors are then in it.
    """

    def __init__(
        self, model: PromptedViT, device: torch.device, dtype: torch.dtype, turn: Lock
    ) -> None:
        embed_by_product(model.backbone)
        self._halved = dtype == torch.bfloat16
        fused = self._halved and can_be_fused(model.backbone)
        self._features = FusedFeatures(model) if fused else _Features(model)
        self._device = device
        self._uploads = Uploads(device, dtype)
        self._graphs = GraphRunner(self._forward)
        self._turn = turn

    def features(
        self, images: NDArray[np.float32], gathered: Gathered, whose: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Normalised images (B x 3 x H x W) to features (B x F).

        Args:
            whose: the task of each row, by its place in `gathered`.
        """
        there, copied = self._uploads.upload(images)
        with self._turn, torch.inference_mode():
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            there.record_stream(stream)  # else its memory would be another's before it is read
            answers, done = download(self._run(there, gathered, whose))
        done.synchronize()
        return answers

    def _run(self, images: Tensor, gathered: Gathered, whose: NDArray[np.int64]) -> Tensor:
        tensors, num_prompts = gathered.tensors, gathered.num_prompts
        if len(gathered.tasks) < 2:
            return self._graphs.run(images, tensors, None)
        size = sum(tensor[0].nbytes for tensor in tensors.values())
        if size * len(images) > MAX_SPREAD:
            rows = {
                name: upload_numbers(array, self._device)
                for name, array in row_inputs(whose).items()
            }
            return self._forward(images, tensors, ManyTasks(**rows, num_prompts=num_prompts))
        task = upload_numbers(whose, self._device)
        own = {name: tensor.index_select(0, task) for name, tensor in tensors.items()}
        counts = None if num_prompts is None else num_prompts.index_select(0, task)
        return self._graphs.run(images, own, counts)

    def _forward(self, images: Tensor, tensors: Mapping[str, Tensor], rows: Rows) -> Tensor:
        own = {f"model.{name}": tensor for name, tensor in tensors.items()}
        with torch.autocast("cuda", torch.bfloat16, enabled=self._halved, cache_enabled=False):
            return functional_call(self._features, own, (images, rows))  # type: ignore[no-any-return]


class _Features(nn.Module):
    """The model as it is."""

    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, rows: Rows) -> Tensor:
        return self.model.forward_features(images, rows)
