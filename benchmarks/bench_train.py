"""Training LSPT: this trainer beside the way the reference code does it, and full fine-tuning.

    python benchmarks/bench_train.py --out benchmarks/train_cpu.json

Arms for each ViT, each in a process of its own, that take turns within one run:

- ours: `fit` as `lspt train` calls it, at precision auto;
- fused: the same with torch's fused attention, which ours does without in bf16 on a CPU;
- reference: the same model in fp32, eager, attention not fused, the backbone's weights without
  gradients, as VPT's and gated prompt tuning's code trains;
- full: fine-tuning of all weights of timm's own model in fp32, attention fused.

Images are noise and weights are random: neither changes the work. Medians over the ROUNDS turns of
all STARTS of the processes, with the least and the most. Peak memory is, on a GPU, what torch
allocated; on a CPU, what the process's resident memory grew by after the imports; the median of its
starts. The ceiling is the best of torch's large matrix products
in the same precision; FLOPs are those of matrix products and convolutions, as torch counts them.
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
Turn = Callable[[], float]  # STEPS training steps; their seconds


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


ARMS = {"ours": ours, "fused": fused, "reference": reference, "full": full}


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
    name: str, batch_size: int, device: torch.device, rounds: int, starts: int
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    peaks: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(starts):
        take_turns(name, batch_size, device, rounds, seconds, peaks)
    arms = {}
    for arm, taken in seconds.items():
        rates = sorted(STEPS * batch_size / each for each in taken)
        spread = {"least": rates[0], "most": rates[-1]}
        peak = {"peak_mb": median(peaks[arm]), "peaks_mb": peaks[arm]}
        arms[arm] = {"images_per_s": median(rates), **spread, **peak}
    return {"vit": name, "batch_size": batch_size, "arms": arms}


def take_turns(
    name: str,
    batch_size: int,
    device: torch.device,
    rounds: int,
    seconds: dict[str, list[float]],
    peaks: dict[str, list[float]],
) -> None:
    """Start a process for each arm, and add what its turns and its memory came to."""
    context, pipes = multiprocessing.get_context("spawn"), {}
    for arm in ARMS:
        pipes[arm], theirs = context.Pipe()
        context.Process(
            target=worker, args=(arm, name, batch_size, device, theirs), daemon=True
        ).start()
        theirs.close()  # else a worker's end would not be seen
    for number in range(1 + rounds):
        for arm, pipe in pipes.items():
            pipe.send(True)
            taken = pipe.recv()
            if number > 0:  # the first warms up
                seconds[arm].append(taken)
    for arm, pipe in pipes.items():
        pipe.send(False)
        peaks[arm].append(pipe.recv())


def count_flops(name: str) -> int:
    """Of LSPT's training step, for one image."""
    model = create_prompted_vit(create_backbone(name), "lspt", num_classes=NUM_CLASSES).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, IMG_SIZE, IMG_SIZE)).sum().backward()
    return int(counter.get_total_flops())


def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best of ten products of square matrices."""
    a = torch.randn(CEILING_SIDE, CEILING_SIDE, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * CEILING_SIDE**3 / best


def describe_machine(device: torch.device) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=2)
    args = parser.parse_args()
    device = pick_device("auto")
    rows = []
    for name, batch_size in VITS.items():
        batch_size = GPU_BATCH if device.type == "cuda" else batch_size
        row = measure(name, batch_size, device, args.rounds, args.starts)
        dtype = pick_precision("auto", device, create_backbone(name).vit.embed_dim)
        best, arms = ceiling(dtype, device), row["arms"]
        speed, flops = arms["ours"]["images_per_s"], count_flops(name)
        row |= {
            "precision": str(dtype).removeprefix("torch."),
            "speed_ratio": speed / arms["reference"]["images_per_s"],
            "fused_ratio": speed / arms["fused"]["images_per_s"],
            "memory_ratio": arms["ours"]["peak_mb"] / arms["reference"]["peak_mb"],
            "gflop_per_image": flops / 1e9,
            "ceiling_tflop_per_s": best / 1e12,
            "share_of_ceiling": speed * flops / best,
        }
        rows.append(row)
        print(json.dumps(row, indent=2), flush=True)
    report: dict[str, Any] = {
        "machine": describe_machine(device),
        "cores": os.cpu_count(),
        "steps": STEPS,
    }
    report |= {"rounds": args.rounds, "starts": args.starts, "rows": rows}
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
