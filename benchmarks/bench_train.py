"""Training LSPT: this trainer beside the way the reference code does it, and full fine-tuning.

    python benchmarks/bench_train.py --out benchmarks/train_cpu.json

Arms for each ViT, each in a process of its own, that take turns within one run:

- ours: `fit` as `lspt train` calls it, at precision auto;
- fused: the same with torch's fused attention, which ours does without in bf16 on a CPU;
- reference: the same model in fp32, eager, attention not fused, the backbone's weights without
  gradients, as VPT's and gated prompt tuning's code trains;
- full: fine-tuning of all weights of timm's own model in fp32, attention fused;
- ceiling: a product of large matrices in the precision of ours.

Images are noise and weights are random: neither changes the work. Every repeat starts all processes
anew. Speeds are medians over all turns, peak memory over repeats, with the least and the most. Peak
memory is, on a GPU, what torch allocated; on a CPU, what the process's resident memory grew by
after the imports. FLOPs are those of matrix products and convolutions, as torch counts them.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timm import create_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from lspt_serve.models import Backbone, attention, create_prompted_vit
from lspt_serve.preprocess import Preprocess
from lspt_serve.training import Dataset, Split, TrainSettings, fit
from lspt_serve.training.settings import pick_device, pick_precision

VITS = {"vit_tiny_patch16_224": 64, "vit_base_patch16_224": 16}  # batch size on a CPU
GPU_BATCH = 128
IMG_SIZE, NUM_CLASSES, STEPS = 224, 100, 2  # steps in a turn
CEILING_SIDE = 4096
Turn = Callable[[], float]  # STEPS training steps, or one product; the seconds


def create_backbone(name: str) -> Backbone:
    vit: Any = create_model(name, num_classes=0).eval().requires_grad_(False)
    return Backbone(vit, name, "0" * 64, Preprocess(IMG_SIZE), "cls")


def ours(name: str, batch_size: int, device: torch.device) -> Turn:
    backbone = create_backbone(name)
    model = create_prompted_vit(backbone, "lspt", num_classes=NUM_CLASSES).to(device)
    dataset = noise(batch_size)
    settings = TrainSettings(epochs=1, batch_size=batch_size, warmup_epochs=0, device=device.type)

    def turn() -> float:
        epoch = fit(model, dataset, backbone.preprocess, settings)
        return epoch.data_s + epoch.step_s

    return turn


def fused(name: str, batch_size: int, device: torch.device) -> Turn:
    attention._fused_is_slow = lambda x: False
    return ours(name, batch_size, device)


def reference(name: str, batch_size: int, device: torch.device) -> Turn:
    model = create_prompted_vit(create_backbone(name), "lspt", num_classes=NUM_CLASSES).to(device)
    for block in model.backbone.blocks:
        block.attn.fused_attn = False
    return partial(plain_turn, model.train(), *random_batch(batch_size, device))


def full(name: str, batch_size: int, device: torch.device) -> Turn:
    model = create_model(name, num_classes=NUM_CLASSES).to(device)
    return partial(plain_turn, model.train(), *random_batch(batch_size, device))


def precision(name: str, device: torch.device) -> torch.dtype:
    return pick_precision("auto", device, create_backbone(name).vit.embed_dim)


def ceiling(name: str, batch_size: int, device: torch.device) -> Turn:
    dtype = precision(name, device)
    matrix = torch.randn(CEILING_SIDE, CEILING_SIDE, device=device).to(dtype)

    def turn() -> float:
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        return time.perf_counter() - started

    return turn


ARMS = {"ours": ours, "fused": fused, "reference": reference, "full": full, "ceiling": ceiling}


def plain_turn(model: Any, images: Tensor, targets: Tensor) -> float:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    started = time.perf_counter()
    for _ in range(STEPS):
        loss = cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - started


def noise(batch_size: int) -> Dataset:
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = rng.integers(0, 256, (count, IMG_SIZE, IMG_SIZE, 3), np.uint8)
        return Split(images, np.arange(count) % NUM_CLASSES)

    labels = [str(number) for number in range(NUM_CLASSES)]
    return Dataset(labels, split(STEPS * batch_size), split(1), split(1), notes=[])


def random_batch(batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    images = torch.randn(batch_size, 3, IMG_SIZE, IMG_SIZE, device=device)
    return images, torch.arange(batch_size, device=device) % NUM_CLASSES


def worker(arm: str, name: str, batch_size: int, device: torch.device, pipe: Connection) -> None:
    """Take turns as told; at the end say how much memory that took, in MB."""
    before = resident_mb()
    turn = ARMS[arm](name, batch_size, device)
    while pipe.recv():
        pipe.send(turn())
    if device.type == "cuda":
        pipe.send(torch.cuda.max_memory_allocated() / 1e6)
    else:
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def measure(
    name: str, batch_size: int, device: torch.device, *, rounds: int, repeats: int
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    peaks: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(repeats):
        pipes = {arm: start(arm, name, batch_size, device) for arm in ARMS}
        for number in range(1 + rounds):
            for arm, pipe in pipes.items():
                pipe.send(True)
                taken = pipe.recv()
                if number > 0:  # the first warms up
                    seconds[arm].append(taken)
        for arm, pipe in pipes.items():
            pipe.send(False)
            peaks[arm].append(pipe.recv())
    work = dict.fromkeys(ARMS, STEPS * batch_size) | {"ceiling": 2 * CEILING_SIDE**3 / 1e12}
    rates = {arm: [work[arm] / taken for taken in seconds[arm]] for arm in ARMS}
    arms = {
        arm: {"images_per_s": spread(rates[arm]), "peak_mb": spread(peaks[arm])}
        for arm in ARMS
        if arm != "ceiling"
    }
    return {
        "vit": name,
        "batch_size": batch_size,
        "precision": str(precision(name, device)).removeprefix("torch."),
        "arms": arms,
        "ceiling_tflop_per_s": spread(rates["ceiling"]),
    }


def start(arm: str, name: str, batch_size: int, device: torch.device) -> Connection:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    words = (arm, name, batch_size, device, theirs)
    context.Process(target=worker, args=words, daemon=True).start()
    theirs.close()  # else a worker's end would not be seen
    return ours


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def count_flops(name: str) -> int:
    """Of LSPT's training step, for one image."""
    model = create_prompted_vit(create_backbone(name), "lspt", num_classes=NUM_CLASSES).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, IMG_SIZE, IMG_SIZE)).sum().backward()
    return int(counter.get_total_flops())


def ratios(row: dict[str, Any]) -> dict[str, float]:
    def of(arm: str, what: str) -> float:
        return float(row["arms"][arm][what]["median"])

    tflop = count_flops(row["vit"]) / 1e12
    speed, best = of("ours", "images_per_s"), row["ceiling_tflop_per_s"]["median"]
    return {
        "speed_ratio": speed / of("reference", "images_per_s"),
        "fused_ratio": speed / of("fused", "images_per_s"),
        "memory_ratio": of("ours", "peak_mb") / of("reference", "peak_mb"),
        "gflop_per_image": 1000 * tflop,
        "share_of_ceiling": speed * tflop / best,
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--rounds", type=int, default=3, help="turns in each repeat")
    parser.add_argument("--repeats", type=int, default=3, help="starts of all processes")
    args = parser.parse_args()
    device = pick_device("auto")
    turns = {"rounds": args.rounds, "repeats": args.repeats}
    rows = []
    for name, on_cpu in VITS.items():
        row = measure(name, GPU_BATCH if device.type == "cuda" else on_cpu, device, **turns)
        rows.append(row | ratios(row))
        print(json.dumps(rows[-1], indent=2), flush=True)
    report = {"machine": describe_machine(device), "cores": os.cpu_count(), "steps": STEPS}
    args.out.write_text(json.dumps(report | turns | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
