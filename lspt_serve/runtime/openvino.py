"""OpenVINO as an engine: on a CPU that has bf16 instructions it is the fastest."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lspt_serve.bank import Bank
from lspt_serve.errors import GraphError, first_line
from lspt_serve.graph import FEATURES, GRAPH_FILE, IMAGES, load_graph_spec
from lspt_serve.runtime.engine import NUM_SLOTS, Precision

__all__ = ["OpenVINOEngine"]

HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}


class OpenVINOEngine:
    """An exported graph compiled by OpenVINO for the CPU.

    Args:
        folder: what `lspt export` wrote.
        num_threads: of one run; 0 is one for each core.
        num_slots: tasks whose tensors the engine holds at once.

    Raises:
        GraphError: no such graph, no OpenVINO, or a precision that it or the CPU does not have.
    """

    name = "openvino"
    provider = "CPU"

    def __init__(
        self,
        folder: Path,
        *,
        precision: Precision = "fp32",
        num_threads: int = 0,
        num_slots: int = NUM_SLOTS,
    ) -> None:
        self.graph = load_graph_spec(folder)
        self.num_slots, self.precision = num_slots, precision
        self._bank = Bank(self.graph.inputs, num_slots)
        try:
            import openvino
        except ImportError as error:
            raise GraphError(
                "engine 'openvino' needs its package: pip install '.[openvino]' in a clone"
            ) from error
        core = openvino.Core()
        has = {"FP32", *core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")}
        here = [known for known in HINTS if known.upper() in has]
        if precision not in here:  # OpenVINO would take another, and not say so
            raise GraphError(f"OpenVINO has no {precision} on this CPU; wanted {' or '.join(here)}")
        path = folder / GRAPH_FILE
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": num_threads,
        }
        try:
            self._request = core.compile_model(path, "CPU", config).create_infer_request()
        except RuntimeError as error:
            raise GraphError(f"{path}: OpenVINO cannot load it: {first_line(error)}") from error

    def put(self, slot: int, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._bank.put(slot, tensors)

    def features(self, images: NDArray[np.float32], slots: Sequence[int]) -> NDArray[np.float32]:
        feed = self._bank.feed(slots, copy=True)  # in bf16 it would convert all slots, every time
        answer = self._request.infer({IMAGES: images, **feed}, share_inputs=True)
        return np.array(answer[FEATURES])  # a copy: the next run writes into the request's own
