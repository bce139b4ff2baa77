"""How much of a CUDA GPU a mixed batch makes use of, by torch in bf16.

    python benchmarks/bench_gpu.py

A ViT with random weights at 224 px and 10 prompts: batches of 256 images, all of one task or each
of its own, take turns in one engine, given to it by as many threads as it takes at a time, as a
server's batcher does, and by one. Images come from the CPU as a server has them, in float32, and
the answers go back. Large matrix products of torch, of as many FLOPs as the batches, take turns
with them: a GPU that is busy for long is clocked lower than one that was idle before. The profile
is of the distinct tasks, by torch's own profiler. Without a GPU the targets are written down as not
measured.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Arm,
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
from numpy.typing import NDArray
from serving_page import finish
from vits import DTYPES, count_flops, create_backbone, random_bundles, short_name

from lspt_serve.bundle import Bundle
from lspt_serve.export import create_model, export_graph
from lspt_serve.feed import TaskTensors
from lspt_serve.models import Backbone
from lspt_serve.reference import MAX_ERROR, reference_images, row_errors
from lspt_serve.runtime.torch import TorchEngine

VIT, BATCH_SIZE = "vit_base_patch16_224", 256
SMALL = (1, 8, 32)  # batches that a server has when few call it
ROUNDS, BUDGET_S = 15, 60.0
SIDE, QUICK_SIDE = 8192, 512  # of the matrices
RUNS = 32  # batches of a turn
CHECKED = 8  # rows that are held to torch in fp32
ONE, DISTINCT, PRODUCTS = "one task", "distinct tasks", "matrix products"
USE, MIX = "use of the GPU", "distinct tasks"
NO_GPU = "torch sees no CUDA GPU"
Array = NDArray[np.float32]


def measure(args: Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress(f"{args.vit}: exporting")
        backbone = create_backbone(args.vit, folder)
        bundles = list(random_bundles(backbone, args.batch_size))
        export_graph(backbone, folder / "graph", like=bundles[0])
        images = reference_images(args.batch_size, backbone.preprocess.img_size)
        engine = TorchEngine(
            folder / "graph",
            device=args.device,
            precision=args.precision,
            num_slots=2 * args.batch_size,
        )
        error = check(engine, backbone, bundles[:CHECKED], images[:CHECKED])
        tasks = {
            ONE: [bundles[0].method_tensors] * args.batch_size,
            DISTINCT: [bundle.method_tensors for bundle in bundles],
        }
        how = {"max_rounds": args.rounds, "budget_s": args.budget_s}
        progress(f"batches of {args.batch_size}")
        flops = count_flops(backbone, bundles[0])
        arms = create_arms(engine, images, tasks)
        product, product_flops = create_product(args)
        count = max(1, round(RUNS * args.batch_size * flops / product_flops))
        seconds = take_turns({**arms, PRODUCTS: lambda _: product(count)}, **how)
        rates = [count * product_flops / each for each in seconds.pop(PRODUCTS)]
        progress("small batches")
        latencies = take_turns(create_small_arms(engine, images, tasks[DISTINCT]), **how)
        on_gpu = args.device == "cuda"
        busiest = arms[f"{DISTINCT}, {to_callers(engine.num_batches)}"]
        kernels = profile(busiest) if on_gpu else {}
    return {
        "flops": flops,
        "ceilings": rates,
        "error": error,
        "batch_size": args.batch_size,
        "num_batches": engine.num_batches,
        "images_per_s": {
            name: spread([RUNS * args.batch_size / each for each in taken])
            for name, taken in seconds.items()
        },
        "small_ms": {
            size: spread([1000 * each / RUNS for each in taken])
            for size, taken in latencies.items()
        },
        "kernels_ms": kernels,
        "seconds": seconds,
    }


def check(
    engine: TorchEngine, backbone: Backbone, bundles: Sequence[Bundle], images: Array
) -> float:
    """The error of the worst row, beside torch in fp32 on the CPU."""
    with torch.inference_mode():
        wanted = torch.cat(
            [
                create_model(backbone, bundle).forward_features(torch.from_numpy(image[None]))
                for bundle, image in zip(bundles, images, strict=False)
            ]
        ).numpy()
    got = engine.features(images, [bundle.method_tensors for bundle in bundles])
    return check_equal("torch", float(row_errors(got, wanted).max()), MAX_ERROR[engine.precision])


def create_arms(
    engine: TorchEngine, images: Array, tasks: Mapping[str, Sequence[TaskTensors]]
) -> dict[str, Arm]:
    """Each of RUNS batches."""
    return {
        f"{mix}, {to_callers(number)}": partial(run_batches, engine, images, own, number)
        for mix, own in tasks.items()
        for number in sorted({engine.num_batches, 1}, reverse=True)
    }


def create_product(args: Namespace) -> tuple[Callable[[int], object], int]:
    """Runs a product of square matrices a number of times; and its FLOPs."""
    side = QUICK_SIDE if args.quick else SIDE
    a = torch.randn(side, side, device=args.device).to(DTYPES[args.precision])
    out = torch.empty_like(a)

    def run(count: int) -> float:
        for _ in range(count):
            torch.matmul(a, a, out=out)
        return out[0, 0].item()  # waits for all

    return run, 2 * side**3


def create_small_arms(
    engine: TorchEngine, images: Array, tasks: Sequence[TaskTensors]
) -> dict[str, Arm]:
    return {
        str(size): partial(run_batches, engine, images[:size], tasks[:size], 1)
        for size in SMALL
        if size <= len(images)
    }


def run_batches(
    engine: TorchEngine, images: Array, tasks: Sequence[TaskTensors], callers: int, round: int
) -> None:
    with ThreadPoolExecutor(callers) as threads:
        for done in [threads.submit(engine.features, images, tasks) for _ in range(RUNS)]:
            done.result()


def to_callers(number: int) -> str:
    return "one caller" if number == 1 else f"{number} callers"


def profile(arm: Arm) -> dict[str, dict[str, float]]:
    """ms and launches of a batch by kernel; those that take the most are first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        arm(0)
    spent = {
        each.key: {"ms": each.self_device_time_total / 1000 / RUNS, "launches": each.count / RUNS}
        for each in profiler.key_averages()
        if each.self_device_time_total
    }
    return dict(sorted(spent.items(), key=lambda item: -item[1]["ms"]))


def to_targets(measured: dict[str, Any] | None) -> list[Target]:
    """Of as many callers as the engine takes at a time."""
    if measured is None:
        note = f"{NO_GPU}; ViT-B/16, batches of {BATCH_SIZE}, bf16"
        return [
            Target(USE, "at least", 0.60, None, note),
            Target(MIX, "at least", 0.85, None, note),
        ]
    callers = to_callers(measured["num_batches"])
    one, distinct = (measured["seconds"][f"{mix}, {callers}"] for mix in (ONE, DISTINCT))
    flops = RUNS * measured["batch_size"] * measured["flops"]
    use = paired_ratio([flops / each for each in distinct], measured["ceilings"])
    mixed = paired_ratio(one, distinct)
    return [
        Target(USE, "at least", 0.60, use, f"of large matrix products, {DISTINCT}, {callers}"),
        Target(MIX, "at least", 0.85, mixed, f"throughput over that of one task, {callers}"),
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
    there = args.device == "cpu" or torch.cuda.is_available()
    measured = measure(args) if there else None
    report = {"machine": machine, "vit": short_name(args.vit), "measured": measured}
    finish("gpu", report, to_targets(measured), args)


if __name__ == "__main__":
    clean_up_when_stopped()
    main()
