"""The section of docs/benchmarks.md on folders of many bundles; see bench_folders.py."""

from collections.abc import Mapping
from typing import Any

from page_parts import to_spread, to_table

__all__ = ["COMMAND", "TITLE", "UNITS", "draw", "to_parts"]

TITLE, COMMAND = "A folder of many bundles", "python benchmarks/bench_folders.py"
UNITS: Mapping[str, str] = {}
HEADER = ("coder", "bundles", "KB of a bundle", "n", "start, s", "a look, ms")
draw = None


def to_parts(report: Mapping[str, Any]) -> list[str]:
    caption = (
        f"What a process of a server spends on its folder, {report['vit']}: reading and checking "
        "all bundles when it starts, from the page cache, and a look at whether any has changed, "
        "which it takes every second."
    )
    return [to_table(caption, HEADER, [to_row(row) for row in report["rows"]])]


def to_row(row: Mapping[str, Any]) -> list[str]:
    return [
        row["coder"],
        f"{row['tasks']:,}",
        f"{row['task_bytes'] / 1e3:,.0f}",
        str(row["start_s"]["n"]),
        to_spread(row["start_s"]),
        to_spread(row["look_ms"], 0),
    ]
