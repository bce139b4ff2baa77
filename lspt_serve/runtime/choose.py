"""Which engine serves: the fastest of those that answer on this machine as torch did."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from lspt_serve.cores import core_limit, server_cores
from lspt_serve.errors import GraphError, LSPTError, first_line
from lspt_serve.graph import load_graph_spec
from lspt_serve.neighbours import find_neighbours
from lspt_serve.quantised import INT8
from lspt_serve.reference import Reference
from lspt_serve.runtime.company import seconds_in_company
from lspt_serve.runtime.engine import Engine, Precision
from lspt_serve.runtime.gate import Parity, check_engine
from lspt_serve.runtime.onnx import Device, OnnxEngine, has_cuda_gpu
from lspt_serve.runtime.openvino import OpenVINOEngine
from lspt_serve.runtime.triton import TRITON_URL, TritonEngine

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Candidate",
    "EngineName",
    "Refusal",
    "choose_engine",
    "fastest",
    "try_engines",
]

EngineName = Literal["onnxruntime", "openvino", "torch", "tensorrt", "triton"]
# That need no build and no other server; the rest is asked for by name
ENGINES: tuple[EngineName, ...] = ("onnxruntime", "openvino", "torch")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
ROWS, REPEATS = 2, 3  # of a batch, of a measurement
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """An engine that passed the gate, and how fast it runs the reference's rows."""

    engine: Engine
    parity: Parity
    images_per_s: float

    def __str__(self) -> str:
        return (
            f"{self.engine.name} in {self.engine.precision} on {self.engine.provider}: "
            f"{self.images_per_s:.1f} images/s, differs from torch by {self.parity.max_error:.1e} "
            f"of a row, top-1 agreement {self.parity.top1_agreement:.1%}"
        )


@dataclass(frozen=True)
class Refusal:
    """An engine that cannot serve here, and why."""

    name: EngineName
    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{self.name} in {self.precision} is not taken: {self.reason}"


def choose_engine(
    folder: Path,
    *,
    names: Iterable[EngineName] | None = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    triton_url: str = TRITON_URL,
) -> Engine:
    """The fastest of the engines that pass the gate; the log has all of them.

    Args:
        names: None is what `try_engines` makes of it.

    Raises:
        GraphError: there is no such graph, or no engine that can serve it; says why of each.
    """
    found = try_engines(
        folder, names=names, precisions=[precision], device=device, triton_url=triton_url
    )
    return fastest(found, log=logger.info).engine


def fastest(found: Iterable[Candidate | Refusal], *, log: Callable[[str], object]) -> Candidate:
    """The one that runs the most images in a second.

    Args:
        log: is told of each, and which one was taken.

    Raises:
        GraphError: none passed; says why of each.
    """
    best: Candidate | None = None
    refusals: list[str] = []
    for each in found:
        log(str(each))
        if isinstance(each, Refusal):
            refusals.append(each.reason)
        elif best is None or each.images_per_s > best.images_per_s:
            if best is not None:
                best.engine.close()
            best = each
        else:
            each.engine.close()
        del each  # the next one has its memory
    if best is None:
        raise GraphError("; ".join(refusals))
    log(f"{best.engine.name} is the fastest here and serves")
    return best


def try_engines(
    folder: Path,
    *,
    names: Iterable[EngineName] | None = None,
    precisions: Iterable[Precision] = ("fp32",),
    device: Device = "auto",
    triton_url: str = TRITON_URL,
) -> Iterator[Candidate | Refusal]:
    """Build each engine, hold it to the reference, and time it.

    Args:
        names: None is all that may be the fastest on the device. On a CPU torch is not, and only
            to try it costs a server seconds and memory.

    Raises:
        GraphError: there is no such graph, or no reference beside it.
    """
    load_graph_spec(folder)
    reference = Reference.load(folder)
    for name in _worth_trying(device) if names is None else names:
        for precision in precisions:
            yield _try_one(folder, reference, name, precision, device, triton_url)


def _try_one(
    folder: Path,
    reference: Reference,
    name: EngineName,
    precision: Precision,
    device: Device,
    triton_url: str,
) -> Candidate | Refusal:
    try:
        engine = create_engine(folder, name, precision, device, triton_url=triton_url)
        own = Reference.load(folder / INT8) if precision == "int8" else reference
        return _try(engine, own)
    except LSPTError as error:
        return Refusal(name, precision, str(error))
    except Exception as error:  # what runs them has no common base for what it raises
        logger.debug("%s in %s failed", name, precision, exc_info=True)
        return Refusal(name, precision, first_line(error))


def _worth_trying(device: Device) -> Iterable[EngineName]:
    on_gpu = device != "cpu" and has_cuda_gpu()
    return [name for name in ENGINES if on_gpu or name != "torch"]


def create_engine(
    folder: Path,
    name: EngineName,
    precision: Precision,
    device: Device,
    *,
    triton_url: str = TRITON_URL,
) -> Engine:
    """Raises LSPTError if the engine cannot be had in this precision or on this device."""
    if name == "triton":
        if (precision, device) != ("fp32", "auto"):
            raise GraphError(
                f"Triton runs the graph as and where its server does, and {precision} on device "
                f"{device!r} was asked for"
            )
        return TritonEngine(folder, url=triton_url)
    if precision == "int8" and name != "openvino":
        raise GraphError(f"int8 is OpenVINO's; engine {name!r} has none")
    if name == "torch":
        return _create_torch_engine(folder, precision, device)
    neighbours = find_neighbours()
    num_threads = server_cores() if neighbours else core_limit() or 0
    if name == "openvino":
        if device == "cuda":
            raise GraphError("OpenVINO runs on the CPU, and device 'cuda' was asked for")
        return OpenVINOEngine(
            folder, precision=precision, num_threads=num_threads, neighbours=neighbours
        )
    return OnnxEngine(
        folder,
        device=device,
        tensorrt=name == "tensorrt",
        precision=precision,
        num_threads=num_threads,
        neighbours=neighbours,
    )


def _create_torch_engine(folder: Path, precision: Precision, device: Device) -> Engine:
    """Imports torch here and nowhere else: a server that runs another engine does without."""
    try:
        from lspt_serve.runtime.torch import TorchEngine
    except ImportError as error:
        raise GraphError(
            "engine 'torch' needs torch and timm: pip install '.[train]' in a clone"
        ) from error
    return TorchEngine(folder, device=device, precision=precision, num_threads=core_limit() or 0)


def _try(engine: Engine, reference: Reference) -> Candidate:
    """An engine that does not pass is closed."""
    try:
        return _measure(engine, reference)
    except BaseException:
        engine.close()
        raise


def _measure(engine: Engine, reference: Reference) -> Candidate:
    parity = check_engine(engine, reference)
    images = reference.images(engine.graph.preprocess.img_size)[:ROWS]
    alike = [reference.tasks[0]] * len(images)  # as those of most batches are
    run = partial(engine.features, images, alike)
    seconds = min(seconds_in_company(run, engine.num_beside) for _ in range(REPEATS))
    return Candidate(engine, parity, engine.num_beside * len(images) / seconds)
