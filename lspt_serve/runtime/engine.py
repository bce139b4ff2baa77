"""What every engine is: something that runs a graph on images and the tensors of a task.

B batch, F pooled features.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lspt_serve.graph import GraphSpec

__all__ = ["Engine"]


class Engine(Protocol):
    """Runs one shared graph; `provider` says what it really runs on."""

    graph: GraphSpec
    provider: str

    def features(
        self, images: NDArray[np.float32], tensors: Mapping[str, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Normalised images (B x 3 x H x W) of one task and its tensors to features (B x F)."""
        ...
