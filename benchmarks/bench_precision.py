"""A training step in bf16 autocast beside fp32, for widths of ViTs: what --precision auto goes by.

    python benchmarks/bench_precision.py

LSPT on 4 blocks with random weights, the two precisions in turn; medians of 15 steps. Prints a line
for each width and one JSON object at the end.
"""

import json
import os
import platform
import time
from statistics import median

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import cross_entropy

from lspt_serve.models import PromptedViT
from lspt_serve.models.methods import Shape, create_method

WARM_UP, STEPS = 3, 15
SIZES = (  # embed_dim, num_heads, img_size, patch_size, batch_size
    (96, 3, 32, 8, 64),
    (192, 3, 224, 16, 8),
    (384, 6, 224, 16, 8),
    (768, 12, 224, 16, 8),
)


def measure(
    embed_dim: int, num_heads: int, img_size: int, patch_size: int, batch_size: int
) -> dict[str, float]:
    vit = VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        num_heads=num_heads,
        depth=4,
        num_classes=0,
    )
    method = create_method("lspt", Shape(embed_dim, 4, patch_size))
    model = PromptedViT(vit, method, torch.nn.Linear(embed_dim, 10), pool="cls").train()
    images = torch.randn(batch_size, 3, img_size, img_size)
    targets = torch.randint(0, 10, (batch_size,))

    def step(bf16: bool) -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        cross_entropy(logits.float(), targets).backward()
        return time.perf_counter() - started

    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(WARM_UP + STEPS):
        for bf16, taken in seconds.items():
            taken_now = step(bf16)
            if number >= WARM_UP:
                taken.append(taken_now)
    fp32_ms, bf16_ms = (1000 * median(taken) for taken in seconds.values())
    return {"embed_dim": embed_dim, "fp32_ms": fp32_ms, "bf16_ms": bf16_ms}


def main() -> None:
    rows = [measure(*size) for size in SIZES]
    for row in rows:
        fp32_ms, bf16_ms = row["fp32_ms"], row["bf16_ms"]
        times = f"fp32 {fp32_ms:.0f} ms, bf16 {bf16_ms:.0f} ms, {fp32_ms / bf16_ms:.2f} x"
        print(f"width {row['embed_dim']}: {times}")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    print(json.dumps({**machine, "steps": STEPS, "rows": rows}))


if __name__ == "__main__":
    main()
