"""The prompt methods side by side on the three digit tasks, several seeds: a table and a plot.

    python examples/digits/compare.py --data build/digits --out docs

Writes OUT/digits.json (raw), OUT/digits.md (table) and OUT/digits.png (plot). Each method has the
quickstart's settings but its own learning rate: of LEARNING_RATES the one that is best on val with
seed 0. The linear probe, which takes no time, has ten times the epochs.
"""

import argparse
import json
import os
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import torch

from lspt_serve.models import Backbone, load_backbone
from lspt_serve.training import Dataset, TrainSettings, load_dataset, train_task

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BACKBONE = "vit_digits_patch8_32"
TASKS = ("digit", "parity", "loop")
METHODS = ("linear", "vpt-shallow", "vpt-deep", "gated", "lspt, as published")
# The paper's LSPT for a backbone of embed_dim 96; the defaults are another variant
PUBLISHED = {"deep": False, "input_norm": False, "coder_hidden": 96}
EPOCHS, BATCH_SIZE = 20, 32
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
Run = dict[str, Any]


def run_all(data: Path, seeds: int) -> list[Run]:
    backbone = load_backbone(BACKBONE)
    runs: list[Run] = []
    for task in TASKS:
        dataset = load_dataset(data / task, backbone.preprocess.img_size)
        for method in METHODS:
            tried = [run_one(backbone, dataset, task, method, lr, 0) for lr in LEARNING_RATES]
            best = max(tried, key=lambda run: run["val_accuracy"])
            more = range(1, seeds)
            runs += [best]
            runs += [run_one(backbone, dataset, task, method, best["lr"], seed) for seed in more]
    return runs


def run_one(
    backbone: Backbone, dataset: Dataset, task: str, method: str, lr: float, seed: int
) -> Run:
    epochs = 10 * EPOCHS if method == "linear" else EPOCHS
    settings = TrainSettings(seed=seed, lr=lr, epochs=epochs, batch_size=BATCH_SIZE)
    known, _, published = method.partition(", ")
    options = PUBLISHED if published else {}
    bundle = train_task(
        backbone, dataset, name=task, method=known, options=options, settings=settings
    )
    assert bundle.manifest.metrics is not None
    measured = bundle.manifest.metrics.model_dump(include={"val_accuracy", "test_accuracy"})
    size = sum(tensor.nbytes for tensor in bundle.tensors.values())
    run = {"task": task, "method": method, "lr": lr, "seed": seed, "task_bytes": size, **measured}
    print(run, flush=True)
    return run


def select(runs: list[Run], task: str, method: str, key: str) -> list[float]:
    return [run[key] for run in runs if (run["task"], run["method"]) == (task, method)]


def to_table(runs: list[Run], circumstances: str) -> str:
    lines = [circumstances, "", f"| method | {' | '.join(TASKS)} | bytes a task |"]
    lines += ["|---" * (len(TASKS) + 2) + "|"]
    for method in METHODS:
        cells = []
        for task in TASKS:
            tests = [100 * value for value in select(runs, task, method, "test_accuracy")]
            cells.append(f"{mean(tests):.1f} ± {stdev(tests):.1f}")
        size = select(runs, TASKS[0], method, "task_bytes")[0]
        lines.append(f"| {method} | {' | '.join(cells)} | {size:,.0f} |")
    return "\n".join(lines) + "\n"


def plot(runs: list[Run], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.2, 2.8), layout="constrained")
    width = 0.8 / len(METHODS)
    colours = ["#9aa5b1", "#7fb3d5", "#5499c7", "#f0b27a", "#c0392b"]
    for column, (method, colour) in enumerate(zip(METHODS, colours, strict=True)):
        tests = [[100 * v for v in select(runs, t, method, "test_accuracy")] for t in TASKS]
        middles = [index + (column - (len(METHODS) - 1) / 2) * width for index in range(len(TASKS))]
        heights = [mean(values) for values in tests]
        axes.bar(middles, heights, width * 0.9, label=method, color=colour)
        for middle, values in zip(middles, tests, strict=True):
            axes.plot([middle] * len(values), values, "o", color="black", markersize=2)
        for middle, height in zip(middles, heights, strict=True):
            axes.text(middle, 81, f"{height:.1f}", ha="center", fontsize=7, color="white")
    axes.set_xticks(range(len(TASKS)), ["which digit (10)", "odd or even (2)", "closed loop (2)"])
    axes.set_ylim(80, 100)
    axes.set_ylabel("test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        ncols=len(METHODS), frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0)
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the prompt methods on the digit tasks.")
    parser.add_argument("--data", type=Path, required=True, help="what prepare.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the three files")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    runs = run_all(args.data, args.seeds)
    circumstances = (
        f"Test accuracy in %, mean ± standard deviation of {args.seeds} seeds; {BACKBONE}, "
        f"{EPOCHS} epochs, batches of {BATCH_SIZE}, learning rate chosen on val; 1,097 images in "
        f"train, 200 in val, 500 in test; torch {torch.__version__}, CPU, {os.cpu_count()} cores."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "digits.json").write_text(json.dumps(runs, indent=1) + "\n", "utf-8")
    (args.out / "digits.md").write_text(to_table(runs, circumstances), "utf-8")
    plot(runs, args.out / "digits.png")


if __name__ == "__main__":
    main()
