"""The section of docs/benchmarks.md on engines on a CUDA GPU; see bench_engines.py."""

from engines_page import UNITS, draw, to_parts

__all__ = ["COMMAND", "TITLE", "UNITS", "draw", "to_parts"]

TITLE, COMMAND = "Engines on a CUDA GPU", "python benchmarks/bench_engines.py --device cuda"
