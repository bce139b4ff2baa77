"""What every engine is: something that runs a graph on images of several tasks.

B batch, F pooled features.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lspt_serve.graph import GraphSpec

__all__ = ["NUM_SLOTS", "Engine", "Precision"]

NUM_SLOTS = 64
Precision = Literal["fp32", "bf16"]  # of the matrix products


class Engine(Protocol):
    """Runs one shared graph; `name` is its kind, `provider` says what it really runs on.

    It holds the tensors of tasks in slots 0 to num_slots - 1. For one thread.
    """

    name: str
    provider: str
    precision: Precision
    graph: GraphSpec
    num_slots: int

    def put(self, slot: int, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Copy the tensors of a task, which fit the graph, into a slot that no run is using."""
        ...

    def features(self, images: NDArray[np.float32], slots: Sequence[int]) -> NDArray[np.float32]:
        """Normalised images (B x 3 x H x W), each of the task in its slot, to features (B x F)."""
        ...
