"""What every engine is: something that runs a graph on images of several tasks.

B batch, F pooled features, N patches.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lspt_serve.feed import TaskTensors
from lspt_serve.graph import GraphSpec
from lspt_serve.reference import Precision

__all__ = ["Engine", "Precision"]


class Engine(Protocol):
    """Runs one shared graph; `name` is its kind, `provider` says what it really runs on."""

    name: str
    num_prompts: int  # of the tasks that it is fastest for
    num_beside: int  # batches that it runs beside one another
    num_batches: int  # that it is given at a time at most, each by a thread of its own
    provider: str
    precision: Precision
    graph: GraphSpec

    def features(
        self, images: NDArray[np.float32], tasks: Sequence[TaskTensors]
    ) -> NDArray[np.float32]:
        """Normalised images (B x 3 x H x W), each by the tensors of its task, to features (B x F).

        The tensors fit the graph (see `check_fits`) and never change.
        """
        ...

    def attention(
        self, images: NDArray[np.float32], tasks: Sequence[TaskTensors]
    ) -> NDArray[np.float32]:
        """As `features`, but what of the patches each row's answer attends to (B x N).

        Of a graph that gives it (`graph.grid`); values in [0, 1], whose sum is at most 1.
        """
        ...

    def num_wanted(self) -> int:
        """Of `num_batches`, as many as it is best given now: no fewer.

        More would wait for cores that others use; their rows had better wait in the queue.
        """
        ...

    def prefetch(self, tasks: Sequence[TaskTensors]) -> None:
        """Bring tensors that a batch will take to where it takes them from, while another runs.

        From any thread.
        """
        ...

    def close(self) -> None:
        """Give back what it holds outside this process; it runs no more."""
        ...
