"""A GPU that has too little memory, in words."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lspt_serve.errors import OutOfMemoryError, first_line

__all__ = ["enough_memory"]


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raises OutOfMemoryError, which says what to do, for torch's own; functions take it on top."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"the GPU has too little memory ({first_line(error)}); end what else runs on it, lower "
            "batch_size, raise accumulate, or keep the images on disk with cache"
        ) from error
