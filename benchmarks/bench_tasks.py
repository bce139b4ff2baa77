"""Many tasks behind one graph: throughput, memory, and what a task costs that is not in memory.

    python benchmarks/bench_tasks.py

Batches of 8 images (224 px, random weights) of up to 1,000 LSPT tasks, for the coder's default
width and for the full one. Ours, one run for the mixed batch, by way of the Classifier and by the
engine alone, takes turns with

- grouped: a run for each task in the batch, on the same graph;
- sessions: an ONNX Runtime session for each task, its tensors baked in, as many as `--sessions`;
- torch: one model in fp32 into which the tensors of each task in the batch are copied in turn.

All look tasks up in a store that holds all of them in memory. Traffic: see traffic.py.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import (
    Target,
    check_equal,
    clean_up_when_stopped,
    create_parser,
    describe_machine,
    parse,
    progress,
)
from serving_page import finish
from tasks_arms import CODERS, Setup, export_task, set_up
from tasks_memory import create_sessions, measure_capacity, measure_memory, measure_miss
from tasks_throughput import ENGINE, OURS, Bench, measure_cells, measure_scale, tolerance
from vits import short_name, task_name

from lspt_serve.reference import reference_images
from lspt_serve.runtime import ENGINES, PRECISIONS

TASKS = [1, 2, 8, 32, 128, 1000]
VIT, MISS_VIT = "vit_tiny_patch16_224", "vit_base_patch16_224"
CELL_ROUNDS, CELL_S = 12, 4.0
LONG_ROUNDS, LONG_S = 101, 90.0  # where a p99 is wanted
MISS_ROUNDS = 30
AT_LEAST = dict(zip(CODERS, (0.97, 0.93), strict=True))
MOST_MEMORY, MOST_STEP, MOST_MISS_MS = 1.1, 2.0, 50.0


@contextmanager
def prepared(vit: str, coder: str, num_tasks: int, args: Namespace) -> Iterator[Setup]:
    progress(f"{vit}, {coder}: exporting, writing {num_tasks} tasks")
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        yield set_up(vit, coder, num_tasks, (args.engine, args.precision), Path(name))


def measure_coder(coder: str, args: Namespace) -> dict[str, Any]:
    num_tasks = max(*args.tasks, args.capacity + 1)
    long = {"max_rounds": args.long_rounds, "budget_s": args.long_s}
    with prepared(args.vit, coder, num_tasks, args) as setup:
        memory = measure_memory(setup, max(args.tasks))
        bench = Bench(setup, args)
        try:
            store = bench.classifiers[max(args.tasks)].store
            graph = export_task(setup, store[task_name(0)])
            sessions, of_sessions = create_sessions(graph, store, args.sessions)
            cells = measure_cells(bench, sessions)
            del sessions
            scale = measure_scale(bench)
            progress(f"{args.capacity} tasks in memory, and one more")
            capacity, error = measure_capacity(setup, bench.images, args.capacity, **long)
            check_equal("over capacity", error, bench.tolerance)
        finally:
            bench.close()
        miss = first_answers(setup, args) if args.miss_vit == args.vit else None
    if miss is None:
        with prepared(args.miss_vit, coder, 2, args) as setup:
            miss = first_answers(setup, args)
    measured = {"cells": cells, "scale": scale, "memory": memory, "sessions": of_sessions}
    return {"coder": coder, **measured, "capacity": capacity, "miss": miss}


def first_answers(setup: Setup, args: Namespace) -> dict[str, Any]:
    progress("first answers")
    image = reference_images(1, setup.backbone.preprocess.img_size)[0]
    miss, error = measure_miss(setup, image, max_rounds=args.miss_rounds, budget_s=args.long_s)
    check_equal("after a miss", error, tolerance(args.precision))
    return {**miss, "task_bytes": setup.task_bytes}


def to_targets(coders: Sequence[Mapping[str, Any]]) -> list[Target]:
    return [target for measured in coders for target in to_targets_of(measured)]


def to_targets_of(measured: Mapping[str, Any]) -> list[Target]:
    coder, scale, memory = measured["coder"], measured["scale"], measured["memory"]
    capacity, added = measured["capacity"], measured["miss"]["added_ms"]
    fewest, most = scale["tasks"]
    ratio = scale["throughput"]
    per_task = memory["resident_bytes"] / memory["tensor_bytes"]
    step = f"p99 at {capacity['capacity'] + 1} tasks over that at {capacity['capacity']}"
    targets = [
        Target(
            f"{most:,} tasks, {coder}",
            "at least",
            AT_LEAST[coder],
            ratio[OURS],
            f"throughput over that of {fewest}, uniform; the engine alone {ratio[ENGINE]:.3f}",
        ),
        Target(f"over capacity, {coder}", "at most", MOST_STEP, capacity["p99_ratio"], step),
        Target(f"memory of a task, {coder}", "at most", MOST_MEMORY, per_task, "over its tensors"),
    ]
    for kind in ("in the page cache", "on disk"):
        name, figures = f"first answer, files {kind}, {coder}", added.get(kind)
        note = "the page cache cannot be dropped here" if figures is None else "over a warm answer"
        middle = figures and figures["median"]
        targets.append(Target(name, "at most", MOST_MISS_MS, middle, note))
    return targets


def parse_args(words: Sequence[str] | None) -> Namespace:
    parser = create_parser(__doc__)
    parser.add_argument("--vit", default=VIT, help="a timm name or a file")
    parser.add_argument("--miss-vit", help="of the first answer; as --vit")
    parser.add_argument("--tasks", type=int, action="append", help="can be repeated")
    parser.add_argument("--coder", choices=CODERS, action="append", help="can be repeated")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--capacity", type=int, default=32, help="tasks that stay in memory")
    parser.add_argument("--sessions", type=int, default=32, help="baked sessions at most")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime", help="of the graph")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument(
        "--scratch", type=Path, help="folder for bundles; a disk's, for a true miss"
    )
    args = parse(parser, words)
    quick = args.quick
    args.miss_vit = args.miss_vit or (args.vit if quick else MISS_VIT)
    args.batch_size = args.batch_size or (4 if quick else 8)
    args.tasks = args.tasks or ([1, 32] if quick else TASKS)
    args.coder = args.coder or (CODERS[:1] if quick else CODERS)
    args.sessions = min(args.sessions, 2) if quick else args.sessions
    args.cell_rounds, args.cell_s = (3, 1.0) if quick else (CELL_ROUNDS, CELL_S)
    args.long_rounds, args.long_s = (5, 3.0) if quick else (LONG_ROUNDS, LONG_S)
    args.miss_rounds = 5 if quick else MISS_ROUNDS
    return args


def main(words: Sequence[str] | None = None) -> None:
    args = parse_args(words)
    machine = describe_machine()
    coders = [measure_coder(coder, args) for coder in args.coder]
    about = {name: getattr(args, name) for name in ("batch_size", "engine", "precision")}
    about |= {"vit": short_name(args.vit), "miss_vit": short_name(args.miss_vit)}
    finish("tasks", {"machine": machine, **about, "coders": coders}, to_targets(coders), args)


if __name__ == "__main__":
    clean_up_when_stopped()
    main()
