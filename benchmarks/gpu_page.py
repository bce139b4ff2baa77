"""The section of docs/benchmarks.md on CUDA GPUs; see bench_gpu.py."""

from collections.abc import Mapping
from typing import Any

from common import spread
from page_parts import to_spread, to_table

__all__ = ["COMMAND", "TITLE", "UNITS", "draw", "to_kinds", "to_parts"]

TITLE, COMMAND = "A CUDA GPU", "python benchmarks/bench_gpu.py"
UNITS: Mapping[str, str] = {}
KINDS = {  # of kernels, by what their names have; the first that fits
    "attention": ("sdpa", "flash", "fmha", "attention"),
    "residual additions and norms": ("_add_norm", "layer_norm"),
    "matrix products": ("nvjet", "gemm", "cutlass", "gemv", "xmma", "splitK"),
    "copies to and from the CPU": ("HtoD", "DtoH"),
    "other copies": ("copy", "DtoD", "gather", "Memset", "indexSelect", "CatArray"),
    "other kernels": ("",),  # the coder's, and the mean of the patches
}
draw = None  # so few figures need no picture


def to_parts(report: Mapping[str, Any]) -> list[str]:
    measured = report["measured"]
    if measured is None:
        return ["There was no CUDA GPU: nothing was measured."]
    flops, ceiling = measured["flops"], spread(measured["ceilings"])
    rows = [
        [
            name,
            str(speed["n"]),
            to_spread(speed),
            f"{speed['median'] * flops / ceiling['median']:.0%}",
        ]
        for name, speed in measured["images_per_s"].items()
    ]
    caption = (
        f"{report['vit']}, batches of {measured['batch_size']}, {flops / 1e9:.2f} GFLOP an image. "
        f"*Of the ceiling*: of large matrix products in turn with them, "
        f"{to_spread({name: rate / 1e12 for name, rate in ceiling.items()})} TFLOP/s."
    )
    small = [[size, to_spread(each, 2)] for size, each in measured["small_ms"].items()]
    parts = [
        to_table(caption, ["rows", "n", "images/s", "of the ceiling"], rows),
        to_table(
            "Small batches of distinct tasks, one caller.", ["images", "ms of a batch"], small
        ),
    ]
    if not measured["kernels_ms"]:
        return parts
    kinds = to_kinds(measured["kernels_ms"])
    whole = sum(each["ms"] for each in kinds.values())
    spent = [
        [kind, f"{each['launches']:.0f}", f"{each['ms']:.2f}", f"{each['ms'] / whole:.0%}"]
        for kind, each in kinds.items()
    ]
    caption = (
        f"Where the GPU's time goes in a batch of {measured['batch_size']}, distinct tasks, by "
        f"torch's profiler: {whole:.1f} ms."
    )
    return [*parts, to_table(caption, ["kernels", "launches", "ms", "share"], spent)]


def to_kinds(kernels: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """What a profile has, by kind of kernel; those that take the most are first."""
    spent = {kind: {"ms": 0.0, "launches": 0.0} for kind in KINDS}
    for name, each in kernels.items():
        kind = next(kind for kind, words in KINDS.items() if any(word in name for word in words))
        for figure, value in each.items():
            spent[kind][figure] += value
    return dict(sorted(spent.items(), key=lambda item: -item[1]["ms"]))
