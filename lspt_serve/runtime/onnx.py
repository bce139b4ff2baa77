"""ONNX Runtime as an engine: on a CUDA GPU, there by TensorRT too, or on the CPU."""

import ctypes
import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lspt_serve.cores import usable_cores
from lspt_serve.errors import GraphError
from lspt_serve.feed import Feed, TaskTensors, create_feed
from lspt_serve.graph import (
    ATTENTION,
    FEATURES,
    GRAPH_FILE,
    IMAGES,
    GraphSpec,
    load_graph_spec,
)
from lspt_serve.neighbours import Neighbours
from lspt_serve.runtime.company import Company, one_of
from lspt_serve.runtime.engine import Precision
from lspt_serve.runtime.tensorrt import TENSORRT, tensorrt_options
from lspt_serve.sizes import USUAL_PROMPTS

__all__ = ["Device", "OnnxEngine", "has_cuda_gpu"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
NO_TF32 = {"use_tf32": "0"}  # which is ONNX Runtime's own choice, and a thousandth off
STOP_SPINNING = ("session.force_spinning_stop", "1")  # once a run ends: others have the cores then
LIBRARIES = "TensorRT's libraries are missing or of another version: pip install 'tensorrt-cu13<11'"
Device = Literal["auto", "cpu", "cuda"]
logger = logging.getLogger(__name__)


class OnnxEngine:
    """An exported graph in an ONNX Runtime session.

    Args:
        folder: what `lspt export` wrote.
        device: `auto` is CUDA where there is a GPU and ONNX Runtime can use it, else the CPU.
        tensorrt: the provider for TensorRT on a CUDA GPU. The first start builds an engine, which
            takes minutes, and keeps it beside the graph.
        precision: with TensorRT, whose fp32 may be TF32; all else is fp32, on a GPU without TF32.
        num_threads: on the CPU, of a batch that is alone; 0 is one for each core.
        num_beside: batches that run beside one another, on a thread each, as soon as they are more
            than few; None is as many as there are threads on the CPU, else 1.
        neighbours: other workers on the same cores.

    Raises:
        GraphError: no such graph, or CUDA, TensorRT or the precision cannot be had.
    """

    num_prompts = USUAL_PROMPTS

    def __init__(
        self,
        folder: Path,
        *,
        device: Device = "auto",
        tensorrt: bool = False,
        precision: Precision = "fp32",
        num_threads: int = 0,
        num_beside: int | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.name = "tensorrt" if tensorrt else "onnxruntime"
        self.precision = precision
        self.graph = load_graph_spec(folder)
        if tensorrt:
            providers = _tensorrt_providers(folder, self.graph, precision, device)
        elif precision == "fp32":
            providers = _providers(device)
        else:
            raise GraphError(f"ONNX Runtime runs the graph in fp32 only, not in {precision}")
        path = folder / GRAPH_FILE

        def open_session(num_threads: int) -> onnxruntime.InferenceSession:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = num_threads
            options.add_session_config_entry(*STOP_SPINNING)
            return onnxruntime.InferenceSession(path, options, providers=providers)

        self._beside: SimpleQueue[onnxruntime.InferenceSession] = SimpleQueue()
        try:
            self._few = beside = open_session(num_threads)
            self.provider: str = self._few.get_providers()[0]
            if num_beside is None:
                num_beside = (num_threads or usable_cores()) if self.provider == CPU else 1
            if num_beside > 1:
                beside = open_session(1)
        except Exception as error:  # ONNX Runtime has no common base for what it raises
            raise GraphError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        for _ in range(num_beside):
            self._beside.put(beside)
        self._company = Company(num_beside, neighbours)
        self.num_beside, self.num_batches = num_beside, self._company.num_batches
        if tensorrt and self.provider != TENSORRT:
            raise GraphError(
                f"engine 'tensorrt' was asked for, but ONNX Runtime runs {self.provider}; "
                f"{LIBRARIES}"
            )
        if device == "cuda" and self.provider == CPU:
            raise GraphError(f"device 'cuda' was asked for, but ONNX Runtime runs {self.provider}")
        logger.info("ONNX Runtime runs %s on %s", path, self.provider)

    def features(
        self, images: NDArray[np.float32], tasks: Sequence[TaskTensors]
    ) -> NDArray[np.float32]:
        return self.run({IMAGES: images, **create_feed(self.graph.inputs, tasks)}, FEATURES)

    def attention(
        self, images: NDArray[np.float32], tasks: Sequence[TaskTensors]
    ) -> NDArray[np.float32]:
        return self.run({IMAGES: images, **create_feed(self.graph.inputs, tasks)}, ATTENTION)

    def run(self, feed: Feed, output: str) -> NDArray[np.float32]:
        """An output of the graph, of all that it takes: images and `create_feed`'s.

        Bound inputs go to a GPU once, whichever nodes take them, and only the output comes back.
        """
        with ExitStack() as stack:
            few = stack.enter_context(self._company.join())
            session = self._few if few else stack.enter_context(one_of(self._beside))
            binding = session.io_binding()
            for name, array in feed.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            binding.bind_output(output)
            session.run_with_iobinding(binding)
            (array,) = binding.copy_outputs_to_cpu()
        return np.asarray(array)

    def num_wanted(self) -> int:
        return self._company.num_wanted()

    def prefetch(self, tasks: Sequence[TaskTensors]) -> None:
        pass

    def close(self) -> None:
        pass


def has_cuda_gpu() -> bool:
    """Ask the driver itself: ONNX Runtime lists CUDA on machines without a GPU too."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return bool(
        driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 < count.value
    )


def _tensorrt_providers(
    folder: Path, graph: GraphSpec, precision: Precision, device: Device
) -> list[Any]:
    """CUDA runs what TensorRT does not know."""
    if device == "cpu":
        raise GraphError("TensorRT runs on a CUDA GPU, and device 'cpu' was asked for")
    if TENSORRT not in onnxruntime.get_available_providers():
        raise GraphError("engine 'tensorrt' was asked for, and this ONNX Runtime is built without")
    cuda = _providers("cuda")
    with suppress(ImportError):
        import tensorrt  # noqa: F401  # loads its libraries, which are on no search path
    return [(TENSORRT, tensorrt_options(folder, graph, precision)), *cuda]


def _providers(device: Device) -> list[Any]:
    """The providers to ask for; asking for CUDA without a GPU would fill the log with errors."""
    usable = CUDA in onnxruntime.get_available_providers() and has_cuda_gpu()
    if device == "cuda" and not usable:
        raise GraphError("device 'cuda' was asked for, but there is no CUDA GPU for ONNX Runtime")
    if device == "cpu" or not usable:
        return [CPU]
    onnxruntime.preload_dlls()  # CUDA's libraries from the nvidia-* packages
    return [(CUDA, NO_TF32), CPU]
