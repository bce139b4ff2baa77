"""A TensorRT engine of the shared graph, where TensorRT's Python libraries and a GPU are.

An engine is good for the kind of GPU and the version of TensorRT that built it, which its name
says; ONNX Runtime's TensorRT provider builds its own.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch

from lspt_serve.errors import GraphError
from lspt_serve.feed import create_feed
from lspt_serve.files import atomic_file
from lspt_serve.graph import ATTENTION, FEATURES, GRAPH_FILE, IMAGES, GraphSpec
from lspt_serve.reference import MAX_ERROR, Precision, Reference, reference_images, row_errors
from lspt_serve.sizes import LARGEST, SMALLEST, USUAL, input_shapes

__all__ = ["TIMINGS", "build_engine", "load_tensorrt"]

TIMINGS = "timing.cache"  # of earlier builds into the same folder


def load_tensorrt() -> Any:
    """The module; raises GraphError where it, or a GPU to build for, is missing."""
    try:
        import tensorrt
    except ImportError as error:
        raise GraphError(
            "a TensorRT engine needs TensorRT's Python libraries: pip install 'tensorrt-cu13<11'"
        ) from error
    if not torch.cuda.is_available():
        raise GraphError("a TensorRT engine is built on the GPU it is for, and there is none")
    return tensorrt


def build_engine(folder: Path, graph: GraphSpec, precision: Precision) -> Path:
    """Write FOLDER/graph-GPU-trtVERSION-PRECISION.plan beside the graph.

    LayerNorm stays in fp32.

    Raises:
        GraphError: TensorRT is missing, cannot build it, or answers otherwise than torch.
        OutputError: it cannot be written.
    """
    trt = load_tensorrt()
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    path = folder / f"graph-{gpu}-trt{trt.__version__}-{precision}.plan"
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = _parse(trt, builder, logger, folder / GRAPH_FILE)
    config = builder.create_builder_config()
    _set_precision(trt, network, config, precision)
    config.add_optimization_profile(_profile(builder, graph))
    timings = folder / TIMINGS
    known = timings.read_bytes() if timings.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(known), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise GraphError(f"{folder / GRAPH_FILE}: TensorRT {trt.__version__} cannot build it")
    _check(trt, plan, folder, graph, precision)
    with atomic_file(timings) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    with atomic_file(path) as temporary:
        temporary.write_bytes(bytes(plan))
    return path


def _parse(trt: Any, builder: Any, logger: Any, path: Path) -> Any:
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):  # by its path: large weights lie beside it
        raise GraphError(f"{path}: TensorRT cannot read it: {parser.get_error(0).desc()}")
    return network


def _set_precision(trt: Any, network: Any, config: Any, precision: Precision) -> None:
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # which is on by itself, and a thousandth off
        return
    flag = getattr(trt.BuilderFlag, precision.upper(), None)
    if flag is None:
        raise GraphError(
            f"TensorRT {trt.__version__} builds no engine in {precision} of a graph in fp32, which "
            "TensorRT 10 does: pip install 'tensorrt-cu13<11'"
        )
    config.set_flag(flag)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.NORMALIZATION:  # sums of squares are too much for fp16
            layer.precision = trt.float32


def _profile(builder: Any, graph: GraphSpec) -> Any:
    profile = builder.create_optimization_profile()
    shapes = [input_shapes(graph, sizes) for sizes in (SMALLEST, USUAL, LARGEST)]
    for name in shapes[0]:
        profile.set_shape(name, *(shape[name] for shape in shapes))
    return profile


def _check(trt: Any, plan: Any, folder: Path, graph: GraphSpec, precision: Precision) -> None:
    reference = Reference.load(folder)
    images = reference_images(len(reference.rows), graph.preprocess.img_size)
    feed = {IMAGES: images, **create_feed(graph.inputs, reference.rows)}
    tensors = {name: torch.from_numpy(array).cuda().contiguous() for name, array in feed.items()}
    tensors[FEATURES] = torch.empty(reference.features.shape, device="cuda")
    if graph.grid is not None:
        tensors[ATTENTION] = torch.empty(len(images), math.prod(graph.grid), device="cuda")
    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    for name, tensor in tensors.items():
        if name not in graph.outputs:
            context.set_input_shape(name, tuple(tensor.shape))
        context.set_tensor_address(name, tensor.data_ptr())
    context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    worst = row_errors(tensors[FEATURES].cpu().numpy(), reference.features).max()
    if not worst <= MAX_ERROR[precision]:
        raise GraphError(
            f"TensorRT's engine in {precision} differs from torch by {worst:.1e} of a row, wanted "
            f"at most {MAX_ERROR[precision]:g}; build it in another precision"
        )
