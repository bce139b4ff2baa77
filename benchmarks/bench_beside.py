"""Images per second of a CPU's engines: batches one after another on all cores, or beside others.

    python benchmarks/bench_beside.py

For each ViT (224 px, random weights, LSPT's defaults but for 10 prompts, a task for every row) and
engine in fp32 both take turns, in batches of several sizes. One after another they come from one
thread, so that each has all cores; beside one another from as many as the server would give it, so
that each has a core. The engine is loaded once for either, as one that has had several batches
keeps a core for each a while. Answers of both are held to one another first.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    check_equal,
    clean_up_when_stopped,
    create_parser,
    describe_machine,
    max_difference,
    paired_ratio,
    parse,
    progress,
    spread,
    take_turns,
)
from numpy.typing import NDArray
from serving_page import finish
from vits import create_backbone, random_bundles, short_name

from lspt_serve.export import export_graph
from lspt_serve.feed import TaskTensors
from lspt_serve.runtime import Candidate, Engine, try_engines

VITS = ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"]
BATCH_SIZES = [1, 2, 4]
MAX_ROUNDS, BUDGET_S = 9, 60.0
ROUNDS = 4  # of batches, one of each thread, in a turn: the first is alone when it comes
TOLERANCE = 1e-4  # of the largest feature
AFTER, BESIDE = "one after another", "beside"
Array = NDArray[np.float32]
Batch = tuple[Array, Sequence[TaskTensors]]


def measure_vit(vit: str, args: Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress(f"{vit}: exporting")
        backbone = create_backbone(vit, folder)
        bundles = list(random_bundles(backbone, max(args.batch_sizes)))
        export_graph(backbone, folder / "graph", like=bundles[0])
        tasks = [bundle.method_tensors for bundle in bundles]
        size = backbone.preprocess.img_size
        images = np.random.default_rng(0).standard_normal((len(tasks), 3, size, size), np.float32)
        rows = []
        once, again = (try_engines(folder / "graph", device="cpu") for _ in (AFTER, BESIDE))
        for alone, several in zip(once, again, strict=True):
            progress(f"{vit}: {alone}")
            if isinstance(alone, Candidate) and isinstance(several, Candidate):
                known = {"vit": short_name(vit), "engine": alone.engine.name}
                own = measure_engine(alone.engine, several.engine, images, tasks, args)
                rows += [{**known, **row} for row in own]
    return rows


def measure_engine(
    alone: Engine, several: Engine, images: Array, tasks: Sequence[TaskTensors], args: Namespace
) -> list[dict[str, Any]]:
    arms: dict[str, Callable[[int], list[Array]]] = {}
    number = several.num_batches
    with ThreadPoolExecutor(number) as pool:
        for size in args.batch_sizes:
            batches = [(images[:size], tasks[:size])] * ROUNDS * number
            own = to_arms(alone, several, batches, pool)
            after, beside = (own[name](0) for name in (AFTER, BESIDE))
            error = max_difference(beside, after) / float(np.abs(after).max())
            check_equal(f"{alone.name}, batches of {size}", error, TOLERANCE)
            arms |= {f"{name}, {size}": arm for name, arm in own.items()}
        seconds = take_turns(arms, max_rounds=args.rounds, budget_s=args.budget_s)
    return [to_row(size, number, seconds) for size in args.batch_sizes]


def to_arms(
    alone: Engine, several: Engine, batches: Sequence[Batch], pool: ThreadPoolExecutor
) -> dict[str, Callable[[int], list[Array]]]:
    return {
        AFTER: lambda number: [alone.features(*batch) for batch in batches],
        BESIDE: lambda number: list(pool.map(lambda batch: several.features(*batch), batches)),
    }


def to_row(size: int, number: int, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    images = size * ROUNDS * number
    taken = {name: seconds[f"{name}, {size}"] for name in (AFTER, BESIDE)}
    return {
        "batch_size": size,
        "threads": number,
        "images_per_s": {
            name: spread([images / each for each in every]) for name, every in taken.items()
        },
        "ratio": paired_ratio(taken[AFTER], taken[BESIDE]),
        "seconds": taken,
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--vit", action="append", help="a timm name or a file; can be repeated")
    args = parse(parser, words)
    vits = args.vit or (VITS[:1] if args.quick else VITS)
    args.batch_sizes = BATCH_SIZES[:2] if args.quick else BATCH_SIZES
    args.rounds, args.budget_s = (3, 1.0) if args.quick else (MAX_ROUNDS, BUDGET_S)
    machine = describe_machine()
    rows = [row for vit in vits for row in measure_vit(vit, args)]
    finish("beside", {"machine": machine, "rows": rows}, [], args)


if __name__ == "__main__":
    clean_up_when_stopped()
    main()
