"""How much of a CUDA GPU a mixed batch makes use of, by torch in bf16.

    python benchmarks/bench_gpu.py

A ViT with random weights at 224 px and 10 prompts: batches of 256 images, all of one task or each
of its own, take turns in one engine, compiled and not. The ceiling is the best large matrix product
of torch on this GPU. Without a GPU the targets are written down as not measured.
"""

import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    Target,
    check_equal,
    clean_up_when_stopped,
    create_parser,
    describe_machine,
    paired_ratio,
    parse,
    progress,
    spread,
    take_turns,
)
from serving_page import finish
from vits import count_flops, create_backbone, measure_ceiling, random_bundles, short_name

from lspt_serve.export import create_model, export_graph
from lspt_serve.reference import MAX_ERROR, reference_images, row_errors
from lspt_serve.runtime.torch import TorchEngine

VIT, BATCH_SIZE = "vit_base_patch16_224", 256
ROUNDS, BUDGET_S, SIDE = 31, 60.0, 8192
CHECKED = 8  # rows that are held to torch in fp32
ONE, DISTINCT = "one task", "distinct tasks"
USE, MIX = "use of the GPU", "distinct tasks"
NO_GPU = "torch sees no CUDA GPU"


def measure(args: Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress(f"{args.vit}: exporting")
        backbone = create_backbone(args.vit, folder)
        bundles = list(random_bundles(backbone, args.batch_size))
        export_graph(backbone, folder / "graph", like=bundles[0])
        images = reference_images(args.batch_size, backbone.preprocess.img_size)
        with torch.inference_mode():
            wanted = torch.cat(
                [
                    create_model(backbone, bundle).forward_features(torch.from_numpy(image[None]))
                    for bundle, image in zip(bundles[:CHECKED], images, strict=False)
                ]
            ).numpy()
        tasks = {
            ONE: [bundles[0].method_tensors] * args.batch_size,
            DISTINCT: [bundle.method_tensors for bundle in bundles],
        }
        arms, errors = {}, {}
        for compiled in (False, True) if args.device == "cuda" else (False,):
            engine = TorchEngine(
                folder / "graph",
                device=args.device,
                precision=args.precision,
                num_slots=args.batch_size,
                compiled=compiled,
            )
            way = "compiled" if compiled else "eager"
            got = engine.features(images, tasks[DISTINCT])[:CHECKED]
            error = float(row_errors(got, wanted).max())
            errors[way] = check_equal(way, error, MAX_ERROR[args.precision])
            for mix, own in tasks.items():
                arms[f"{way}, {mix}"] = lambda _, run=engine.features, own=own: run(images, own)
        progress(f"batches of {args.batch_size}")
        seconds = take_turns(arms, max_rounds=args.rounds, budget_s=args.budget_s)
    return {
        "flops": count_flops(backbone, bundles[0]),
        "errors": errors,
        "images_per_s": {
            name: spread([args.batch_size / each for each in taken])
            for name, taken in seconds.items()
        },
        "seconds": seconds,
    }


def to_targets(measured: dict[str, Any] | None, ceiling: float | None) -> list[Target]:
    """Of the way that is faster, eager or compiled."""
    if measured is None or ceiling is None:
        note = f"{NO_GPU}; ViT-B/16, batches of {BATCH_SIZE}, bf16"
        return [
            Target(USE, "at least", 0.60, None, note),
            Target(MIX, "at least", 0.85, None, note),
        ]
    speeds, seconds = measured["images_per_s"], measured["seconds"]
    way = max(measured["errors"], key=lambda way: speeds[f"{way}, {DISTINCT}"]["median"])
    mixed = speeds[f"{way}, {DISTINCT}"]["median"]
    ratio = paired_ratio(seconds[f"{way}, {ONE}"], seconds[f"{way}, {DISTINCT}"])
    use = mixed * measured["flops"] / ceiling
    return [
        Target(USE, "at least", 0.60, use, f"of its best matrix product, {way}, distinct tasks"),
        Target(MIX, "at least", 0.85, ratio, f"throughput over that of one task, {way}"),
    ]


def parse_args(words: Sequence[str] | None) -> Namespace:
    parser = create_parser(__doc__)
    parser.add_argument("--vit", default=VIT, help="a timm name or a file")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="cpu: to try it")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    args = parse(parser, words)
    args.batch_size = args.batch_size or (8 if args.quick else BATCH_SIZE)
    args.rounds, args.budget_s = (3, 1.0) if args.quick else (ROUNDS, BUDGET_S)
    return args


def main(words: Sequence[str] | None = None) -> None:
    args = parse_args(words)
    machine = describe_machine()
    measured = ceiling = None
    if args.device == "cpu" or torch.cuda.is_available():
        ceiling = measure_ceiling(args.precision, args.device, 512 if args.quick else SIDE)
        measured = measure(args)
    about = {"vit": short_name(args.vit), "batch_size": args.batch_size, "device": args.device}
    report = {"machine": machine, **about, "ceiling": ceiling, "measured": measured}
    finish("gpu", report, to_targets(measured, ceiling), args)


if __name__ == "__main__":
    clean_up_when_stopped()
    main()
