"""How long a server reads a folder of many bundles, and looks at it again.

    python benchmarks/bench_folders.py

1,000 and 10,000 LSPT tasks of a ViT-Ti, for the coder's default width and for the full one, in a
store with the memory that a server gives it. 1,000 have tensors of their own; more have a manifest
of their own, and the tensors of others.
"""

import json
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import clean_up_when_stopped, create_parser, describe_machine, parse, progress, spread
from serving_page import finish
from tasks_arms import CODERS, Setup, set_up
from vits import short_name, task_name

from lspt_serve.bundle import MANIFEST, TENSORS
from lspt_serve.graph import load_graph_spec
from lspt_serve.runtime import PromptStore

VIT, COUNTS, ROUNDS = "vit_tiny_patch16_224", (1000, 10_000), 3


def measure_coder(coder: str, args: Namespace) -> list[dict[str, Any]]:
    progress(f"{args.vit}, {coder}: exporting, writing {args.counts[0]} tasks")
    with tempfile.TemporaryDirectory() as scratch:
        engine = ("onnxruntime", "fp32")
        setup = set_up(args.vit, coder, args.counts[0], engine, Path(scratch))
        about = {"coder": coder, "task_bytes": setup.task_bytes}
        return [{**about, **measure_folder(setup, count)} for count in args.counts]


def measure_folder(setup: Setup, num_tasks: int) -> dict[str, Any]:
    folder = create_folder(setup, num_tasks)
    spec = load_graph_spec(setup.graph)

    def read() -> PromptStore:
        return PromptStore(folder, spec)

    progress(f"{num_tasks} bundles")
    read()  # from the disk
    started = [timed(read) for _ in range(ROUNDS)]
    store = read()
    store.refresh()
    looks = [timed(store.refresh) for _ in range(ROUNDS)]
    if len(store) != num_tasks:
        raise SystemExit(f"{len(store)} tasks are served, wanted {num_tasks}: {store.refused}")
    seconds = {"start_s": started, "look_s": looks}
    ms = spread([1000 * look for look in looks])
    return {"tasks": num_tasks, "start_s": spread(started), "look_ms": ms, "seconds": seconds}


def create_folder(setup: Setup, num_tasks: int) -> Path:
    known = sorted(setup.bundles.iterdir())
    folder = setup.bundles.with_name(f"all-{num_tasks}")
    for number in range(num_tasks):
        like, own = known[number % len(known)], folder / task_name(number)
        own.mkdir(parents=True)
        manifest = json.loads((like / MANIFEST).read_text("utf-8"))
        (own / MANIFEST).write_text(json.dumps({**manifest, "name": task_name(number)}), "utf-8")
        os.link(like / TENSORS, own / TENSORS)
    return folder


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main(words: Sequence[str] | None = None) -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--vit", default=VIT, help="a timm name or a file")
    args = parse(parser, words)
    args.counts = (4, 8) if args.quick else COUNTS
    machine = describe_machine()
    rows = [row for coder in CODERS for row in measure_coder(coder, args)]
    finish("folders", {"machine": machine, "vit": short_name(args.vit), "rows": rows}, [], args)


if __name__ == "__main__":
    clean_up_when_stopped()
    main()
