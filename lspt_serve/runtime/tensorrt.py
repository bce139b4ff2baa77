"""What ONNX Runtime is told to have TensorRT run a graph."""

from collections.abc import Mapping
from pathlib import Path

from lspt_serve.errors import GraphError
from lspt_serve.graph import GraphSpec
from lspt_serve.reference import Precision
from lspt_serve.sizes import LARGEST, SMALLEST, USUAL, input_shapes

__all__ = ["TENSORRT", "format_shapes", "tensorrt_options"]

TENSORRT = "TensorrtExecutionProvider"
CACHE = "tensorrt"  # a folder beside the graph: an export replaces both


def tensorrt_options(folder: Path, graph: GraphSpec, precision: Precision) -> dict[str, str]:
    """Of the provider. Engines and timings are kept in FOLDER/tensorrt: a build takes minutes.

    Raises:
        GraphError: that folder cannot be made.
    """
    cache = folder / CACHE
    try:
        cache.mkdir(exist_ok=True)
    except OSError as error:
        raise GraphError(
            f"{cache}: cannot be made for TensorRT's engines: {error.strerror}"
        ) from error
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache),
        "trt_profile_min_shapes": format_shapes(input_shapes(graph, SMALLEST)),
        "trt_profile_opt_shapes": format_shapes(input_shapes(graph, USUAL)),
        "trt_profile_max_shapes": format_shapes(input_shapes(graph, LARGEST)),
        "trt_fp16_enable": str(precision == "fp16"),
        "trt_bf16_enable": str(precision == "bf16"),
        "trt_layer_norm_fp32_fallback": "True",
    }


def format_shapes(shapes: Mapping[str, list[int]]) -> str:
    """As the provider reads them: NAME:1x3x224x224,NAME:1x10."""
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
