"""How large a request may be, and the inputs of a graph, for what compiles it for bounds."""

from dataclasses import dataclass

from lspt_serve.bounds import MAX_PROMPTS
from lspt_serve.graph import BACK, IMAGES, NUM_PROMPTS, PLACE, GraphSpec

__all__ = [
    "LARGEST",
    "MAX_BATCH_SIZE",
    "MAX_REQUEST_BYTES",
    "SMALLEST",
    "USUAL",
    "USUAL_PROMPTS",
    "Sizes",
    "input_shapes",
]

MAX_BATCH_SIZE = 32
USUAL_PROMPTS = 16  # what a task is trained with unless told
MAX_REQUEST_BYTES = 20_000_000


@dataclass(frozen=True)
class Sizes:
    """Of what is free in a graph: images, tasks, rows of the task that has the most, prompts."""

    batch: int
    tasks: int
    rows: int
    prompts: int


SMALLEST = Sizes(batch=1, tasks=1, rows=1, prompts=1)
USUAL = Sizes(batch=16, tasks=4, rows=4, prompts=USUAL_PROMPTS)  # what is made fastest
LARGEST = Sizes(
    batch=MAX_BATCH_SIZE, tasks=MAX_BATCH_SIZE, rows=MAX_BATCH_SIZE, prompts=MAX_PROMPTS
)


def input_shapes(graph: GraphSpec, sizes: Sizes) -> dict[str, list[int]]:
    """The shape of every input at these sizes."""
    img_size = graph.preprocess.img_size
    shapes = {IMAGES: [sizes.batch, 3, img_size, img_size]}
    for name, shape in graph.inputs.items():
        own = [size if isinstance(size, int) else sizes.prompts for size in shape]
        shapes[name] = [sizes.tasks, *own]
    if graph.inputs:
        shapes[PLACE] = [sizes.tasks, sizes.rows]
        shapes[BACK] = [sizes.batch]
        shapes[NUM_PROMPTS] = [sizes.tasks]
    return shapes
