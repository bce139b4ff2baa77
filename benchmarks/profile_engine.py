"""Where OpenVINO's time goes, by kind of operation, for a precision and batches of several sizes.

    python benchmarks/profile_engine.py --vit vit_base_patch16_224 --precision bf16

The graphs of bench_engines.py, with 10 prompts of one task and without, in turn. OpenVINO times
every operation that it runs; a line of the table is a kind of them and the type of number that it
computes in, in ms of one image, so that what does not get cheaper in a larger batch can be seen,
and what prompts cost.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench_engines import random_pixels
from vits import create_backbone, export_plain, linear_bundle, random_bundles

from lspt_serve.export import export_graph, quantise_graph
from lspt_serve.feed import Feed, create_feed, prompts_axes
from lspt_serve.graph import GRAPH_FILE, IMAGES, load_graph_spec
from lspt_serve.preprocess import normalise
from lspt_serve.quantised import find_int8
from lspt_serve.results.table import Grid, Text

ROUNDS, REPEATS = 3, 10
SHOWN = 10  # kinds, of those that take the most
Spent = dict[tuple[str, int], Counter[str]]  # by graph and batch size
PROMPTED, PLAIN = "with prompts", "without"


def profile(model: Any, feed: Feed, batch_size: int) -> Counter[str]:
    """ms of one image by kind of operation, on average; of a model that has run nothing else."""
    request = model.create_infer_request()
    for _ in range(REPEATS):
        request.infer(feed)
    spent: Counter[str] = Counter()
    for each in request.profiling_info:  # means over all runs of the model
        kind = f"{each.node_type}, {each.exec_type.rpartition('_')[2].lower()}"
        spent[kind] += each.real_time.total_seconds() * 1000 / batch_size
    return spent


def profile_in_turn(graphs: dict[str, Path], feeds: dict[str, Feed], precision: str) -> Spent:
    """By graph, the median of each kind."""
    rounds: dict[str, list[Counter[str]]] = {graph: [] for graph in graphs}
    batch_size = 0
    for _ in range(ROUNDS):
        for graph, folder in graphs.items():
            feed = feeds[graph]
            batch_size = len(feed[IMAGES])
            rounds[graph].append(profile(compile_graph(folder, feed, precision), feed, batch_size))
    return {
        (graph, batch_size): Counter(
            {kind: median(each[kind] for each in spent) for kind in spent[0]}
        )
        for graph, spent in rounds.items()
    }


def compile_graph(folder: Path, feed: Feed, precision: str) -> Any:
    """As the engine does for the number of prompts that it is made for; it is timed as it runs."""
    import openvino

    core = openvino.Core()
    model = core.read_model(find_int8(folder) if precision == "int8" else folder / GRAPH_FILE)
    shapes = {name: model.input(name).get_partial_shape() for name in feed}
    for name, axis in prompts_axes(load_graph_spec(folder).inputs).items():
        shapes[name][axis + 1] = feed[name].shape[axis + 1]
    model.reshape(shapes)
    hint = "f32" if precision == "fp32" else "bf16"
    config = {"PERF_COUNT": True, "INFERENCE_PRECISION_HINT": hint}
    return core.compile_model(model, "CPU", config)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vit", default="vit_base_patch16_224", help="a timm name or a file")
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="bf16")
    parser.add_argument("--batch-size", type=int, action="append", help="can be repeated")
    args = parser.parse_args(words)
    sizes = args.batch_size or [1, 8]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = create_backbone(args.vit, folder)
        (bundle,) = random_bundles(backbone, 1)
        bundles = {PROMPTED: bundle, PLAIN: linear_bundle(backbone)}
        graphs = {graph: folder / graph for graph in bundles}
        spec = export_graph(backbone, graphs[PROMPTED], like=bundle)
        export_plain(backbone, spec, graphs[PLAIN])
        pixels = random_pixels(max(sizes), backbone.preprocess.img_size)
        if args.precision == "int8":
            for graph, own in bundles.items():
                quantise_graph(graphs[graph], own, pixels)
        spent: Spent = {}
        for size in sizes:
            images: Feed = {IMAGES: normalise(pixels[:size], backbone.preprocess)}
            feeds = {
                graph: images
                | create_feed(load_graph_spec(graphs[graph]).inputs, [own.method_tensors] * size)
                for graph, own in bundles.items()
            }
            spent |= profile_in_turn(graphs, feeds, args.precision)
    print(to_table(args.vit, args.precision, spent))


def to_table(vit: str, precision: str, spent: Spent) -> str:
    first, *_ = spent.values()
    shown = [kind for kind, _ in first.most_common(SHOWN)]
    rows = [[kind, *(f"{each[kind]:.2f}" for each in spent.values())] for kind in shown]
    rest = [sum(each.values()) - sum(each[kind] for kind in shown) for each in spent.values()]
    rows += [["the rest", *(f"{each:.2f}" for each in rest)]]
    rows += [["all", *(f"{sum(each.values()):.2f}" for each in spent.values())]]
    header = ["operation", *(f"batch of {size}, {graph}" for graph, size in spent)]
    caption = f"{vit}, OpenVINO {precision}: ms of an image"
    return Grid(caption, header, [[*map(Text, row)] for row in rows]).to_markdown()


if __name__ == "__main__":
    main()
