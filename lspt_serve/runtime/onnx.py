"""ONNX Runtime as an engine, on a CUDA GPU where there is one, else on the CPU."""

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lspt_serve.errors import GraphError
from lspt_serve.feed import Feed, TaskTensors, create_feed
from lspt_serve.graph import FEATURES, GRAPH_FILE, IMAGES, load_graph_spec
from lspt_serve.runtime.engine import Precision

__all__ = ["Device", "OnnxEngine", "has_cuda_gpu"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
Device = Literal["auto", "cpu", "cuda"]
logger = logging.getLogger(__name__)


class OnnxEngine:
    """An exported graph in an ONNX Runtime session, in fp32.

    Args:
        folder: what `lspt export` wrote.
        device: `auto` is CUDA where there is a GPU and ONNX Runtime can use it, else the CPU.
        num_threads: of one run on the CPU; 0 is one for each core.

    Raises:
        GraphError: no such graph, or CUDA was asked for and cannot be had.
    """

    name = "onnxruntime"
    precision: Precision = "fp32"

    def __init__(self, folder: Path, *, device: Device = "auto", num_threads: int = 0) -> None:
        self.graph = load_graph_spec(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        path = folder / GRAPH_FILE
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=_providers(device)
            )
        except Exception as error:  # ONNX Runtime has no common base for what it raises
            raise GraphError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        self.provider: str = self._session.get_providers()[0]
        if device == "cuda" and self.provider != CUDA:
            raise GraphError(f"device 'cuda' was asked for, but ONNX Runtime runs {self.provider}")
        logger.info("ONNX Runtime runs %s on %s", path, self.provider)

    def features(
        self, images: NDArray[np.float32], tasks: Sequence[TaskTensors]
    ) -> NDArray[np.float32]:
        return self.run({IMAGES: images, **create_feed(self.graph.inputs, tasks)})

    def run(self, feed: Feed) -> NDArray[np.float32]:
        """Features (B x F) of all that the graph takes, images and `create_feed`'s."""
        (features,) = self._session.run([FEATURES], feed)
        return np.asarray(features)

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


def _providers(device: Device) -> list[str]:
    """The providers to ask for; asking for CUDA without a GPU would fill the log with errors."""
    usable = CUDA in onnxruntime.get_available_providers() and has_cuda_gpu()
    if device == "cuda" and not usable:
        raise GraphError("device 'cuda' was asked for, but there is no CUDA GPU for ONNX Runtime")
    if device == "cpu" or not usable:
        return [CPU]
    onnxruntime.preload_dlls()  # CUDA's libraries from the nvidia-* packages
    return [CUDA, CPU]
