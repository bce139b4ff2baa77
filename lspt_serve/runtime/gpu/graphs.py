"""Batches by CUDA graphs: one launch in place of hundreds, which take longer than a small batch.

B batch, S tasks.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lspt_serve.models.rows import InOrder, OneTask, Rows

__all__ = ["Forward", "GraphRunner", "round_up"]

MAX_GRAPHS = 48  # the 16 sizes up to 32 rows: of one task, of several, of several unlike in prompts
WARM_UPS = 2  # what is chosen at the first call, as a kernel of cuBLAS, is not to be captured
Forward = Callable[[Tensor, Mapping[str, Tensor], Rows], Tensor]


def round_up(count: int) -> int:
    """The rows of the graph that runs `count` of them: at most a quarter more.

    1 to 8, then 10, 12, 14, 16, 20, ...: three binary digits.
    """
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


@dataclass(frozen=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    images: Tensor
    tensors: dict[str, Tensor]
    num_prompts: Tensor | None
    output: Tensor

    def run(
        self, images: Tensor, tensors: Mapping[str, Tensor], num_prompts: Tensor | None
    ) -> Tensor:
        """The rows after these hold what is left of an earlier batch: their answers are cut off."""
        pairs = [(self.images, images), *((self.tensors[name], tensors[name]) for name in tensors)]
        if self.num_prompts is not None and num_prompts is not None:
            pairs.append((self.num_prompts, num_prompts))
        for own, tensor in pairs:
            own[: len(tensor)].copy_(tensor)
        self.graph.replay()
        return self.output[: len(images)]


class GraphRunner:
    """A forward by graphs, which are captured when a batch of their size first comes.

    Every row is given the tensors of its task, unless all are of one: which rows share a task then
    makes no difference to the graph. For one thread at a time.

    Args:
        forward: of images (B x 3 x H x W), tensors with a leading axis of tasks, and whose row is
            whose, all of them on the GPU, to a tensor of B rows.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._graphs: OrderedDict[tuple[object, ...], _Captured] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    def run(
        self, images: Tensor, tensors: Mapping[str, Tensor], num_prompts: Tensor | None
    ) -> Tensor:
        """The answers of a batch, good until the next one is run.

        Args:
            tensors: of one task or, with S = B, of each row's.
            num_prompts: S; None where all have as many.
        """
        size = round_up(len(images))
        num_tasks = size if any(len(tensor) > 1 for tensor in tensors.values()) else 1
        shapes = {name: tensor.shape[1:] for name, tensor in tensors.items()}
        key = (size, num_tasks, num_prompts is not None, tuple(shapes.items()))
        if key not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
                torch.cuda.current_stream().synchronize()  # it may run still
                self._graphs.popitem(last=False)
            self._graphs[key] = self._capture(size, num_tasks, images, tensors, num_prompts)
        self._graphs.move_to_end(key)
        return self._graphs[key].run(images, tensors, num_prompts)

    def _capture(
        self,
        size: int,
        num_tasks: int,
        images: Tensor,
        tensors: Mapping[str, Tensor],
        num_prompts: Tensor | None,
    ) -> _Captured:
        own_images = images.new_zeros(size, *images.shape[1:])
        own = {name: each.new_zeros(num_tasks, *each.shape[1:]) for name, each in tensors.items()}
        counts = None if num_prompts is None else num_prompts.new_ones(num_tasks)
        rows = InOrder(size, num_tasks, counts) if tensors else OneTask(size)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._forward(own_images, own, rows)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads go on copying meanwhile, which is none of the graph's
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = self._forward(own_images, own, rows)
        return _Captured(graph, own_images, own, counts, output)
