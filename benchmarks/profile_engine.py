"""Where OpenVINO's time goes, by kind of operation, for a precision and batches of several sizes.

    python benchmarks/profile_engine.py --vit vit_base_patch16_224 --precision bf16

The shared graph of bench_engines.py, with 10 prompts of one task. OpenVINO times every operation
that it runs; a line of the table is a kind of them, in ms of one image, so that what does not get
cheaper in a larger batch can be seen.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_engines import random_pixels
from vits import create_backbone, random_bundles

from lspt_serve.export import export_graph, quantise_graph
from lspt_serve.feed import create_feed
from lspt_serve.graph import GRAPH_FILE, IMAGES, load_graph_spec
from lspt_serve.preprocess import normalise
from lspt_serve.quantised import find_int8
from lspt_serve.results.table import Grid, Text

REPEATS = 20
SHOWN = 8  # kinds, of those that take the most


def profile(model: Any, feed: dict[str, Any], batch_size: int) -> Counter[str]:
    """ms of one image by kind of operation, on average; of a model that has run nothing else."""
    request = model.create_infer_request()
    for _ in range(REPEATS):
        request.infer(feed)
    spent: Counter[str] = Counter()
    for each in request.profiling_info:  # means over all runs of the model
        spent[each.node_type] += each.real_time.total_seconds() * 1000 / batch_size
    return spent


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vit", default="vit_base_patch16_224", help="a timm name or a file")
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="bf16")
    parser.add_argument("--batch-size", type=int, action="append", help="can be repeated")
    args = parser.parse_args(words)
    sizes = args.batch_size or [1, 8]
    import openvino

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = create_backbone(args.vit, folder)
        (bundle,) = random_bundles(backbone, 1)
        export_graph(backbone, folder / "graph", like=bundle)
        pixels = random_pixels(max(sizes), backbone.preprocess.img_size)
        path = folder / "graph" / GRAPH_FILE
        if args.precision == "int8":
            quantise_graph(folder / "graph", bundle, pixels)
            path = find_int8(folder / "graph")
        config = {
            "PERF_COUNT": True,
            "INFERENCE_PRECISION_HINT": "f32" if args.precision == "fp32" else "bf16",
        }
        core = openvino.Core()
        inputs = load_graph_spec(folder / "graph").inputs
        spent = {
            size: profile(
                core.compile_model(path, "CPU", config),
                {
                    IMAGES: normalise(pixels[:size], backbone.preprocess),
                    **create_feed(inputs, [bundle.method_tensors] * size),
                },
                size,
            )
            for size in sizes
        }
    print(to_table(args.vit, args.precision, spent))


def to_table(vit: str, precision: str, spent: dict[int, Counter[str]]) -> str:
    first, *_ = spent.values()
    shown = [kind for kind, _ in first.most_common(SHOWN)]
    rows = [[kind, *(f"{each[kind]:.2f}" for each in spent.values())] for kind in shown]
    rest = [sum(each.values()) - sum(each[kind] for kind in shown) for each in spent.values()]
    rows += [["the rest", *(f"{each:.2f}" for each in rest)]]
    rows += [["all", *(f"{sum(each.values()):.2f}" for each in spent.values())]]
    header = ["operation", *(f"batch of {size}" for size in spent)]
    caption = f"{vit}, OpenVINO {precision}: ms of an image"
    return Grid(caption, header, [[*map(Text, row)] for row in rows]).to_markdown()


if __name__ == "__main__":
    main()
