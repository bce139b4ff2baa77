"""Copies between the CPU and a GPU beside the batch that runs, from and to pinned memory.

B batch.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Uploads", "download", "upload_numbers"]

PART = 32  # images: while these are copied, the next are made ready


class Uploads:
    """A stream for copies of images.

    Args:
        dtype: that the images are copied in: half as wide is half as much to copy.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._stream = torch.cuda.Stream(device)

    def upload(self, images: NDArray[np.float32]) -> tuple[Tensor, torch.cuda.Event]:
        """Images (B x 3 x H x W), which are there for a stream that waits for the event.

        From any thread.
        """
        whole = torch.from_numpy(images)
        with torch.cuda.stream(self._stream):
            there = torch.empty(whole.shape, dtype=self._dtype, device=self._device)
            for own, part in zip(there.split(PART), whole.split(PART), strict=True):
                pinned = torch.empty(part.shape, dtype=self._dtype, pin_memory=True)
                own.copy_(pinned.copy_(part), non_blocking=True)
            return there, self._stream.record_event()


def upload_numbers(numbers: NDArray[np.int64], device: torch.device) -> Tensor:
    """For what is given to the current stream from now on; unlike torch's `to` it does not wait.

    The device may be the CPU.
    """
    tensor = torch.from_numpy(numbers)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def download(answers: Tensor) -> tuple[NDArray[np.float32], torch.cuda.Event]:
    """The answers in float32, which are there when the event is; the current stream can go on."""
    there = torch.empty(answers.shape, pin_memory=True)
    there.copy_(answers, non_blocking=True)
    done = torch.cuda.Event(blocking=True)  # whose wait leaves the core to others
    done.record()
    return there.numpy(), done
