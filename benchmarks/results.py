"""docs/results.md and docs/results.json: the prompt methods compared, by one command.

    python benchmarks/results.py --backbone vit.pth --data clothing10.tar --data grocery81.tar \
      --data cifar100.tar --data signdigits10.tar --processes 2

Runs `lspt sweep` on methods.toml and on ablation.toml, in several processes that share the cores;
stopped, the same command goes on. With --part it runs one of them, and leaves the other as
docs/results.json has it. Then measures how long one image takes in ONNX Runtime for each entry, in
turn, and writes the runs, the latencies and the page.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import numpy as np
from results_page import to_page

from lspt_serve.bundle import Bundle
from lspt_serve.export import export_graph
from lspt_serve.graph import check_fits
from lspt_serve.models import Backbone, create_prompted_vit, load_backbone
from lspt_serve.results import Run, compare, draw_comparison, load_runs, save_runs
from lspt_serve.runtime import OnnxEngine
from lspt_serve.training import create_bundle, load_dataset
from lspt_serve.training.sweep import load_config, make_plans

PARTS = ("methods", "ablation")  # each has a config, NAME.toml
ROUNDS = 31
Model = tuple[str, str, str | None]  # method, its options as JSON, pool


def sweep(args: argparse.Namespace, part: str) -> list[Run]:
    """Several processes on one storage; each has its share of the cores."""
    storage = args.build / f"{part}.db"
    command = [sys.executable, "-m", "lspt_serve", "sweep", str(args.configs / f"{part}.toml")]
    command += ["--backbone", args.backbone, "--storage", str(storage)]
    command += ["--cache", str(args.build / "cache")]
    command += [word for path in args.data for word in ("--data", str(path))]
    threads = max(1, (os.cpu_count() or 1) // args.processes)
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for _ in range(args.processes)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit("lspt sweep failed; its message is above")
    return load_runs(storage.with_suffix(".json"))


def measure_latencies(backbone: Backbone, runs: Sequence[Run]) -> dict[str, float]:
    """Median ms of one image by entry, mean over what was chosen for its tasks.

    fp32, one thread of ONNX Runtime on the CPU.
    """
    image = np.random.default_rng(0).standard_normal((1, 3, *[runs[0].image_size] * 2), np.float32)
    trained = [(run.name, to_model(run)) for run in runs if run.test is not None]
    served = {model: create_engine(backbone, model) for _, model in dict.fromkeys(trained)}
    seconds: dict[Model, list[float]] = {model: [] for model in served}
    for _ in range(ROUNDS):
        for model, (engine, bundle) in served.items():
            started = time.perf_counter()
            engine.features(image, [bundle.method_tensors])
            seconds[model].append(time.perf_counter() - started)
    by_name: dict[str, list[float]] = {}
    for name, model in trained:
        by_name.setdefault(name, []).append(1000 * median(seconds[model]))
    return {name: round(fmean(values), 3) for name, values in by_name.items()}


def to_model(run: Run) -> Model:
    """What a latency depends on."""
    return run.method, json.dumps(run.options, sort_keys=True), run.pool


def create_engine(backbone: Backbone, model: Model) -> tuple[OnnxEngine, Bundle]:
    """The shared graph for a model, and a fresh task of it."""
    method, options, pool = model
    created = create_prompted_vit(
        backbone, method, num_classes=2, pool=pool, options=json.loads(options)
    )
    bundle = create_bundle(created.fold(), backbone, name="task", version=1, labels=["a", "b"])
    with tempfile.TemporaryDirectory() as folder:
        export_graph(backbone, Path(folder) / "graph", like=bundle)
        engine = OnnxEngine(Path(folder) / "graph", device="cpu", num_threads=1)
    check_fits(bundle, engine.graph)
    return engine, bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--part", choices=PARTS, help="make this one alone")
    parser.add_argument("--configs", type=Path, default=Path(__file__).parent)
    parser.add_argument("--build", type=Path, default=Path("build/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    args.build.mkdir(parents=True, exist_ok=True)
    out = args.docs / "results.json"
    configs = {part: load_config(args.configs / f"{part}.toml") for part in PARTS}
    plans = {part: make_plans(config) for part, config in configs.items()}
    runs = {
        part: sweep(args, part)
        if args.part in (None, part)
        else [run for run in load_runs(out) if run.name in {plan.name for plan in plans[part]}]
        for part in PARTS
    }
    everything = [run for part in PARTS for run in runs[part]]
    save_runs(out, everything)
    backbone = load_backbone(args.backbone, img_size=configs["methods"].img_size)
    tasks = {
        path.stem: load_dataset(path, backbone.preprocess.img_size, cache=args.build / "cache")
        for path in args.data
    }
    latencies = measure_latencies(backbone, everything)
    (args.docs / "latencies.json").write_text(json.dumps(latencies, indent=1) + "\n")
    page = to_page(runs["methods"], runs["ablation"], plans["methods"], backbone, tasks, latencies)
    (args.docs / "results.md").write_text(page)
    for name, part in (("results", "methods"), ("ablation", "ablation")):
        for comparison in compare(runs[part]) if len({run.name for run in runs[part]}) > 1 else []:
            draw_comparison(args.docs / f"{name}.png", comparison)


if __name__ == "__main__":
    main()
