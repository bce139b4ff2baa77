"""The section of docs/benchmarks.md on CUDA GPUs; see bench_gpu.py."""

from collections.abc import Mapping
from typing import Any

from page_parts import to_spread, to_table

__all__ = ["COMMAND", "TITLE", "UNITS", "draw", "to_parts"]

TITLE, COMMAND = "A CUDA GPU", "python benchmarks/bench_gpu.py"
UNITS: Mapping[str, str] = {}
draw = None  # four figures need no picture


def to_parts(report: Mapping[str, Any]) -> list[str]:
    measured = report["measured"]
    if measured is None:
        return ["There was no CUDA GPU: nothing was measured."]
    flops, ceiling = measured["flops"], report["ceiling"]
    rows = [
        [name, str(speed["n"]), to_spread(speed), f"{speed['median'] * flops / ceiling:.0%}"]
        for name, speed in measured["images_per_s"].items()
    ]
    caption = (
        f"{report['vit']}, batches of {report['batch_size']}, {flops / 1e9:.2f} GFLOP an image. "
        f"*Of the ceiling*: of the best large matrix product here, {ceiling / 1e12:.1f} TFLOP/s."
    )
    return [to_table(caption, ["rows", "n", "images/s", "of the ceiling"], rows)]
