"""OpenVINO as an engine: on a CPU that has instructions for bf16 and int8 it is the fastest."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lspt_serve.cores import usable_cores
from lspt_serve.errors import GraphError, first_line
from lspt_serve.feed import TaskTensors, create_feed, prompts_axes
from lspt_serve.graph import ATTENTION, FEATURES, GRAPH_FILE, IMAGES, load_graph_spec
from lspt_serve.neighbours import Neighbours
from lspt_serve.quantised import find_int8
from lspt_serve.reference import Reference
from lspt_serve.runtime.company import Company, one_of
from lspt_serve.runtime.engine import Precision

__all__ = ["OpenVINOEngine"]

KNOWN: tuple[Precision, ...] = ("fp32", "bf16", "int8")


@cache
def load_core() -> Any:
    """OpenVINO itself, once and for all.

    With its first model a Core gives the thread a stack for signals, and takes it along when it
    goes, in whichever thread that is: the next Ctrl-C would end the process without a word.

    What it knows of numpy's types is made by who asks first: two that ask at a time would wait for
    one another for ever.

    Raises GraphError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise GraphError(
            "engine 'openvino' needs its package: pip install '.[openvino]' in a clone"
        ) from error
    openvino.Type.f32.to_dtype()
    return openvino.Core()


class _Compiled(NamedTuple):
    """A model's requests that are idle."""

    few: SimpleQueue[Any]
    beside: SimpleQueue[Any]


class OpenVINOEngine:
    """An exported graph compiled by OpenVINO for the CPU.

    It is compiled for any number of prompts, and for that of the task which the graph was made
    like: attention over a known number of tokens is a third faster (int8 ViT-B/16: 8 % of the
    whole, benchmarks/profile_engine.py). Either is compiled twice: few batches run one after
    another on all cores, more of them beside one another, on some each, as OpenVINO thinks best.

    Args:
        folder: what `lspt export` wrote, and for int8 `lspt quantise` added to.
        num_threads: of a batch that is alone; 0 is one for each core.
        neighbours: other workers on the same cores.

    Raises:
        GraphError: no such graph, no OpenVINO, or a precision that it or the CPU does not have; or
            no int8 twin of this very graph.
    """

    name = "openvino"
    provider = "CPU"

    def __init__(
        self,
        folder: Path,
        *,
        precision: Precision = "fp32",
        num_threads: int = 0,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.graph = load_graph_spec(folder)
        self.precision = precision
        core = load_core()
        has = {"FP32", *core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")}
        here = [known for known in KNOWN if known.upper() in has]
        if precision not in here:  # OpenVINO would take another, and not say so
            raise GraphError(f"OpenVINO has no {precision} on this CPU; wanted {' or '.join(here)}")
        path = find_int8(folder) if precision == "int8" else folder / GRAPH_FILE
        config = {
            "INFERENCE_PRECISION_HINT": _floats(precision, has),
            "INFERENCE_NUM_THREADS": num_threads,
        }
        if num_threads:  # others run on the same cores, and all would begin at the first
            config["ENABLE_CPU_PINNING"] = False
        with_all, with_some = (
            {**config, "PERFORMANCE_HINT": hint} for hint in ("LATENCY", "THROUGHPUT")
        )
        self._axes = {name: axis + 1 for name, axis in prompts_axes(self.graph.inputs).items()}
        self.num_prompts = _usual_prompts(folder, self._axes)
        several = (num_threads or usable_cores()) > 1

        def compile_twice(model: Any) -> _Compiled:
            few = _requests(core, model, with_all)
            beside = _requests(core, model, with_some) if several else few
            return _Compiled(few, beside if beside.qsize() > 1 else few)

        try:
            model = core.read_model(path)
            self._any = self._usual = compile_twice(model)
            if self._axes:
                model.reshape(_fix(model, self._axes, self.num_prompts))
                self._usual = compile_twice(model)
        except RuntimeError as error:
            raise GraphError(f"{path}: OpenVINO cannot load it: {first_line(error)}") from error
        self.num_beside = self._usual.beside.qsize()
        self._company = Company(self.num_beside, neighbours)
        self.num_batches = self._company.num_batches

    def features(
        self, images: NDArray[np.float32], tasks: Sequence[TaskTensors]
    ) -> NDArray[np.float32]:
        return self._run(images, tasks, FEATURES)

    def attention(
        self, images: NDArray[np.float32], tasks: Sequence[TaskTensors]
    ) -> NDArray[np.float32]:
        return self._run(images, tasks, ATTENTION)

    def _run(
        self, images: NDArray[np.float32], tasks: Sequence[TaskTensors], output: str
    ) -> NDArray[np.float32]:
        feed = create_feed(self.graph.inputs, tasks)
        usual = all(feed[name].shape[axis] == self.num_prompts for name, axis in self._axes.items())
        compiled = self._usual if usual else self._any
        with (
            self._company.join() as few,
            one_of(compiled.few if few else compiled.beside) as request,
        ):
            answer = request.infer({IMAGES: images, **feed}, share_inputs=True)
            return np.array(answer[output])  # a copy: the next run writes into the request's

    def num_wanted(self) -> int:
        return self._company.num_wanted()

    def prefetch(self, tasks: Sequence[TaskTensors]) -> None:
        pass

    def close(self) -> None:
        pass


def _requests(core: Any, model: Any, config: Mapping[str, Any]) -> SimpleQueue[Any]:
    """Of the model compiled, as many as it runs at a time."""
    compiled = core.compile_model(model, "CPU", config)
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
        requests.put(compiled.create_infer_request())
    return requests


def _usual_prompts(folder: Path, axes: Mapping[str, int]) -> int:
    """Of the task that the graph was made like, the first of the reference's."""
    if not axes:
        return 0
    name, axis = next(iter(axes.items()))
    return int(Reference.load(folder).tasks[0][name].shape[axis - 1])


def _fix(model: Any, axes: Mapping[str, int], num_prompts: int) -> dict[str, Any]:
    """The shapes of the inputs that have an axis of prompts, with so many of them."""
    shapes = {name: model.input(name).get_partial_shape() for name in axes}
    for name, axis in axes.items():
        shapes[name][axis] = num_prompts
    return shapes


def _floats(precision: Precision, has: Collection[str]) -> str:
    """What the floats are computed in; what int8 leaves of them, in bf16 where the CPU can."""
    return "bf16" if precision == "bf16" or (precision == "int8" and "BF16" in has) else "f32"
