"""The shared graph in int8, after training, for the CPU: NNCF measures the ranges of activations.

The products with the backbone's own weights become int8: the patches, and qkv, proj, fc1 and fc2 of
every block. All else stays float: norms, softmax, the products inside attention, and the prompt
coder, whose weights are inputs and so are not known yet.

So does a product of what is small but for a few places where it is very large (Sun et al. 2024,
"Massive Activations"): with 256 values that reach so far, the steps are coarser than all the rest.
Of timm's ViT-Ti/16 it is one, fc2 of block 7, whose input spans 216 times its root mean square;
the others' span 10 to 49 times theirs.
"""

import io
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.errors import GraphError, first_line
from lspt_serve.export.parity import create_session
from lspt_serve.feed import Feed, create_feed, prompts_axes
from lspt_serve.files import atomic_folder
from lspt_serve.graph import FEATURES, GRAPH_FILE, IMAGES, GraphSpec, check_fits, load_graph_spec
from lspt_serve.preprocess import crop_middle, normalise
from lspt_serve.quantised import INT8, INT8_GRAPH, Quantised, hash_graph
from lspt_serve.reference import Reference

__all__ = ["load_nncf", "quantise_graph"]

PRODUCTS, OUTSIDE = ("Convolution", "MatMul"), ("Constant", "Parameter", "Result")
KEPT = LOOKED_AT = 8  # images, for how wide the inputs of products are
MAX_RANGE = 64  # in root mean squares; a step of int8 is a quarter of one then


def load_nncf() -> Any:
    """NNCF, which neither reports its use to its makers nor writes to stdout.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    os.environ["NNCF_CI"] = "1"  # read at its import
    logging.getLogger("torch.utils.cpp_extension").setLevel(
        logging.ERROR
    )  # it has no CUDA, so what
    import nncf

    # Not by nncf.set_log_level: it sets the level of every handler that hangs there, and one that
    # others hung there, as pytest does, would then drop their warnings too.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def quantise_graph(
    graph: Path,
    bundle: Bundle,
    images: NDArray[np.uint8],
    *,
    on_image: Callable[[], object] = lambda: None,
) -> None:
    """Write GRAPH/int8, for every bundle that fits the graph.

    At most 8 of the images are kept in it, for engines to be held to what fp32 answers for them.

    Args:
        bundle: whose task the images are of.
        images: N x S x S x 3, as a Dataset has them.
        on_image: called whenever an image was looked at; each is, more than once.

    Raises:
        BundleError: the bundle does not fit the graph.
        GraphError: there is no such graph, or NNCF cannot quantise it.
        OutputError: the folder cannot be written.
    """
    spec = load_graph_spec(graph)
    check_fits(bundle, spec)

    def feed(image: NDArray[np.uint8]) -> Feed:
        on_image()
        own = create_feed(spec.inputs, [bundle.method_tensors])
        return {IMAGES: _normalised(image[None], spec), **own}

    with atomic_folder(graph / INT8) as folder:
        try:
            _quantise(graph / GRAPH_FILE, folder / INT8_GRAPH, images, feed)
        except OSError:
            raise
        except Exception as error:  # NNCF has no common base for what it raises
            reason = first_line(error)
            raise GraphError(f"{graph / GRAPH_FILE}: cannot be quantised: {reason}") from error
        _refer(graph, spec, bundle, images[:: -(-len(images) // KEPT)]).save(folder)
        Quantised(
            graph_sha256=hash_graph(graph), calibrated_on=bundle.name, num_images=len(images)
        ).save(folder)


def _refer(graph: Path, spec: GraphSpec, bundle: Bundle, images: NDArray[np.uint8]) -> Reference:
    """What the graph answers in fp32, for the task and for one of another number of prompts."""
    tasks = [bundle.method_tensors]
    if axes := prompts_axes(spec.inputs):
        longer = {name: _repeat_last(tasks[0][name], axis) for name, axis in axes.items()}
        tasks.append({**tasks[0], **longer})
    own, whose = _normalised(images, spec), np.arange(len(images)) % len(tasks)
    feed = {IMAGES: own, **create_feed(spec.inputs, [tasks[task] for task in whose])}
    (features,) = create_session(graph / GRAPH_FILE).run([FEATURES], feed)
    return Reference(tasks[: whose.max() + 1], whose, features, own)


def _repeat_last(prompts: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    return np.concatenate([prompts, np.take(prompts, [-1], axis)], axis)


def _normalised(images: NDArray[np.uint8], spec: GraphSpec) -> NDArray[np.float32]:
    return normalise(crop_middle(images, spec.preprocess.img_size), spec.preprocess)


def _quantise(
    source: Path,
    target: Path,
    images: NDArray[np.uint8],
    feed: Callable[[NDArray[np.uint8]], Feed],
) -> None:
    import openvino

    nncf = load_nncf()
    model = openvino.Core().read_model(source)
    widest = _widest(model.clone(), map(feed, images[:LOOKED_AT]))
    integers = {name for name, width in widest.items() if width <= MAX_RANGE}
    operations = [each for each in model.get_ordered_ops() if each.get_type_name() not in OUTSIDE]
    floats = [name for each in operations if (name := each.get_friendly_name()) not in integers]
    with redirect_stdout(io.StringIO()):  # its bars
        quantised = nncf.quantize(
            model,
            nncf.Dataset(images, feed),
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER,  # SmoothQuant, ranges that are not symmetric
            ignored_scope=nncf.IgnoredScope(names=floats),
        )
    openvino.save_model(quantised, target, compress_to_fp16=False)


def _products(model: Any) -> dict[str, Any]:
    """By name, the products with constants, and where what they multiply comes from."""
    found = {}
    for each in model.get_ordered_ops():
        if each.get_type_name() in PRODUCTS:
            left, right = (given.get_source_output() for given in each.inputs())
            if right.get_node().get_type_name() == "Constant":
                found[each.get_friendly_name()] = left
    return found


def _widest(model: Any, feeds: Iterable[Feed]) -> dict[str, float]:
    """By product, max - min of what it multiplies over the root of the mean square, at its most."""
    import openvino

    products, num_outputs = _products(model), len(model.outputs)
    model.add_outputs([*products.values()])
    run = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    widest = dict.fromkeys(products, 0.0)
    for each in feeds:
        inputs = [*run(each).values()][num_outputs:]
        for name, array in zip(products, inputs, strict=True):
            width = float(np.ptp(array) / np.sqrt(np.square(array).mean()))
            widest[name] = max(widest[name], width)
    return widest
