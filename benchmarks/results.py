"""docs/results.md and docs/results.json: the prompt methods compared, by one command.

    python benchmarks/results.py --backbone vit.pth --data clothing10.tar --data grocery81.tar \
      --data cifar100.tar --data signdigits10.tar --processes 2

Runs `lspt sweep` on results.toml, in several processes that share the cores; stopped, the same
command goes on. Then measures how long one image takes in ONNX Runtime for each entry, in turn, and
writes the runs, the latencies and the page.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median

import numpy as np

from lspt_serve.export import export_graph
from lspt_serve.graph import check_fits
from lspt_serve.models import Backbone, create_prompted_vit, load_backbone
from lspt_serve.results import (
    Grid,
    Run,
    compare,
    comparison_grid,
    draw_comparison,
    load_runs,
)
from lspt_serve.results.table import Text
from lspt_serve.runtime import OnnxEngine
from lspt_serve.training import create_bundle
from lspt_serve.training.sweep import Plan, load_config, make_plans

CONFIG = Path(__file__).with_suffix(".toml")
TRIED = Path(__file__).with_name("tried.md")
ROUNDS = 31
Model = tuple[str, str, str | None]  # method, its options as JSON, pool
TARGETS = {"the best other prompt method": 1.0, "linear": 3.0}  # points of the mean over tasks


def sweep(args: argparse.Namespace, out: Path) -> None:
    """Several processes on one storage; each has its share of the cores."""
    command = [sys.executable, "-m", "lspt_serve", "sweep", str(args.config)]
    command += ["--backbone", args.backbone, "--storage", str(args.storage), "--out", str(out)]
    command += ["--cache", str(args.storage.with_name("cache"))]
    command += [word for path in args.data for word in ("--data", str(path))]
    threads = max(1, (os.cpu_count() or 1) // args.processes)
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for _ in range(args.processes)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit("lspt sweep failed; its message is above")


def measure_latencies(backbone: Backbone, runs: Sequence[Run]) -> dict[str, float]:
    """Median ms of one image by entry, mean over what was chosen for its tasks.

    fp32, one thread of ONNX Runtime on the CPU.
    """
    image = np.random.default_rng(0).standard_normal((1, 3, *[runs[0].image_size] * 2), np.float32)
    trained = [(run.name, to_model(run)) for run in runs if run.test is not None]
    engines = {model: create_engine(backbone, model) for _, model in dict.fromkeys(trained)}
    seconds: dict[Model, list[float]] = {model: [] for model in engines}
    for _ in range(ROUNDS):
        for model, engine in engines.items():
            started = time.perf_counter()
            engine.features(image, [0])
            seconds[model].append(time.perf_counter() - started)
    by_name: dict[str, list[float]] = {}
    for name, model in trained:
        by_name.setdefault(name, []).append(1000 * median(seconds[model]))
    return {name: round(fmean(values), 3) for name, values in by_name.items()}


def to_model(run: Run) -> Model:
    """What a latency depends on."""
    return run.method, json.dumps(run.options, sort_keys=True), run.pool


def create_engine(backbone: Backbone, model: Model) -> OnnxEngine:
    """The shared graph for a model, whose fresh tensors are in slot 0."""
    method, options, pool = model
    created = create_prompted_vit(backbone, method, num_classes=2, pool=pool, **json.loads(options))
    bundle = create_bundle(created.fold(), backbone, name="task", version=1, labels=["a", "b"])
    with tempfile.TemporaryDirectory() as folder:
        export_graph(backbone, Path(folder) / "graph", like=bundle)
        engine = OnnxEngine(Path(folder) / "graph", device="cpu", num_threads=1, num_slots=1)
    check_fits(bundle, engine.graph)
    engine.put(0, bundle.method_tensors)
    return engine


def to_table(runs: Iterable[Run], latencies: dict[str, float]) -> str:
    """The table of `lspt results`, with a column for latency."""
    parts = []
    for comparison in compare(list(runs)):
        grid = comparison_grid(comparison)
        rows = [[*row, to_cell(latencies.get(row[0].text))] for row in grid.rows]
        parts.append(Grid(grid.caption, [*grid.header, "ms"], rows, grid.notes).to_markdown())
    return "\n\n".join(parts)


def to_cell(latency: float | None) -> Text:
    return Text("-" if latency is None else f"{latency:.1f}")


def to_verdict(runs: Sequence[Run]) -> list[str]:
    """LSPT's mean over tasks beside the targets."""
    (comparison,) = compare(runs)
    means = {row.name: 100 * row.mean.mean for row in comparison.rows if row.mean}
    if not {"lspt", "linear"} <= means.keys():
        return ["- `lspt` or `linear` failed on a task: nothing to compare."]
    others = {
        name: value for name, value in means.items() if "lspt" not in name and name != "linear"
    }
    best = max(others, key=others.__getitem__)
    beaten = dict(zip(TARGETS, (best, "linear"), strict=True))
    lines = []
    for words, target in TARGETS.items():
        name = beaten[words]
        ahead = means["lspt"] - means[name]
        verdict = "met" if ahead >= target else "missed"
        known = "" if words == name else f" ({name})"
        lines.append(
            f"- `lspt` is {ahead:+.1f} points from {words}{known}; the target was "
            f"{target:+.0f}: **{verdict}**."
        )
    return lines


def to_choices(runs: Sequence[Run], plans: Iterable[Plan]) -> str:
    """What the search has chosen, by entry and task."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    found = {(run.name, run.task): run for run in sorted(runs, key=lambda run: run.error is None)}
    rows = []
    for plan in plans:
        own = [found.get((plan.name, task)) for task in tasks]
        cells = [choice(run, plan) if run else "-" for run in own]
        rows.append([Text(plan.name), *map(Text, cells), Text(", ".join(plan.space))])
    caption = "What the search chose, and its accuracy on val in %."
    return Grid(caption, ["entry", *tasks, "searched"], rows).to_markdown()


def choice(run: Run, plan: Plan) -> str:
    if run.error or run.val is None:
        return "failed"
    chosen = run.train | {f"options.{name}": value for name, value in run.options.items()}
    values = [chosen[name] for name in plan.space]
    words = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return f"{', '.join(words)}: {100 * run.val:.1f}"


def split_runs(runs: Sequence[Run], plans: Sequence[Plan]) -> tuple[list[Run], list[Run]]:
    """Those of entries with a search of their own, and those of LSPT and what copies it."""
    searched = [plan.name for plan in plans if not plan.like]
    methods = [run for run in runs if run.name in searched]
    return methods, [run for run in runs if run.name == "lspt" or run.name not in searched]


def to_ablation(runs: Sequence[Run], latencies: dict[str, float]) -> list[str]:
    if {run.name for run in runs} <= {"lspt"}:
        return ["The variants have not been run yet."]
    return [
        "![Test accuracy of variants of LSPT on each task](ablation.png)",
        "Each trained with what was tuned for `lspt`, without a search of its own.",
        to_table(runs, latencies),
    ]


def to_page(runs: Sequence[Run], plans: Sequence[Plan], latencies: dict[str, float]) -> str:
    methods, ablation = split_runs(runs, plans)
    epochs = sorted({run.train["epochs"] for run in methods if run.method != "linear"})
    hours = sum(run.train_s or 0 for run in runs) / 3600
    parts = [
        "# Results",
        "Made by one command from one config, [results.toml](../benchmarks/results.toml); the runs "
        "are in [results.json](results.json):",
        "    python benchmarks/results.py --backbone vit.pth --data clothing10.tar \\\n"
        "      --data grocery81.tar --data cifar100.tar --data signdigits10.tar --processes 2",
        f"{len(runs)} final runs, {hours:.1f} hours of training beside the searches. "
        f"{', '.join(map(str, epochs))} epochs (a linear probe 100). *bytes a task* are fp32; *ms* "
        f"is one image in ONNX Runtime, fp32, one thread, median of {ROUNDS}, all entries in turn. "
        "*train s* are rough: the runs shared the cores with one another and with other work.",
        "## Methods",
        "![Test accuracy of the methods on each task](results.png)",
        to_table(methods, latencies),
        "\n".join(to_verdict(methods)),
        to_choices(methods, [plan for plan in plans if not plan.like]),
        "## What was tried for LSPT",
        TRIED.read_text("utf-8").strip(),
        "## What LSPT is without its parts",
        *to_ablation(ablation, latencies),
        "## Published",
        "Beside figures that others published, of another backbone and other tasks:",
        "    lspt results docs/results.json --published mae\n"
        "    lspt results docs/results.json --published mocov3",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--storage", type=Path, default=Path("build/results.db"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    args.storage.parent.mkdir(parents=True, exist_ok=True)
    out = args.docs / "results.json"
    sweep(args, out)
    config = load_config(args.config)
    plans = make_plans(config)
    runs = load_runs(out)
    latencies = measure_latencies(load_backbone(args.backbone, img_size=config.img_size), runs)
    (args.docs / "latencies.json").write_text(json.dumps(latencies, indent=1) + "\n")
    (args.docs / "results.md").write_text(to_page(runs, plans, latencies))
    methods, ablation = split_runs(runs, plans)
    for name, part in (("results", methods), ("ablation", ablation)):
        for comparison in compare(part) if len({run.name for run in part}) > 1 else []:
            draw_comparison(args.docs / f"{name}.png", comparison)


if __name__ == "__main__":
    main()
