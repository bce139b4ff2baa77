"""The section of docs/benchmarks.md on batches beside one another; see bench_beside.py."""

from collections.abc import Mapping
from typing import Any

from page_parts import to_ratio, to_spread, to_table

__all__ = ["COMMAND", "TITLE", "UNITS", "draw", "to_parts"]

TITLE, COMMAND = "Batches beside one another", "python benchmarks/bench_beside.py"
UNITS: Mapping[str, str] = {}
HEADER = (
    "ViT",
    "engine",
    "batch",
    "n",
    "images/s, one after another",
    "beside one another",
    "ratio",
)
draw = None


def to_parts(report: Mapping[str, Any]) -> list[str]:
    caption = (
        "Batches in fp32, a task for every row: one after another, each on all cores, or as many "
        "at a time as a server gives the engine, each on one (and one that is made ready)."
    )
    return [to_table(caption, HEADER, [to_row(row) for row in report["rows"]])]


def to_row(row: Mapping[str, Any]) -> list[str]:
    speeds = row["images_per_s"]
    return [
        row["vit"],
        row["engine"],
        str(row["batch_size"]),
        str(speeds["beside"]["n"]),
        *(to_spread(speeds[name]) for name in ("one after another", "beside")),
        to_ratio(row["ratio"]),
    ]
