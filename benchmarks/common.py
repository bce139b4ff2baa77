"""What the benchmarks of serving share: options, machine, turns, equality of arms, targets."""

import argparse
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

__all__ = [
    "Arm",
    "Seconds",
    "Target",
    "check_equal",
    "clean_up_when_stopped",
    "create_parser",
    "describe_machine",
    "max_difference",
    "name_cpu",
    "paired_ratio",
    "parse",
    "percentile",
    "progress",
    "spread",
    "take_turns",
]

HERE = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime-gpu", "onnxruntime", "openvino", "pillow")
KIND = {"cpu family": "family", "model": "model"}  # of a CPU: generations share a name
MIN_ROUNDS = 3
PAUSE_S = 0.02  # for the threads of the arm before, which spin a while when they have nothing to do
Arm = Callable[[int], object]  # of the number of the round
Seconds = dict[str, list[float]]  # of one call, by arm, a figure for each round


@dataclass(frozen=True)
class Target:
    """What was wanted and what was measured; `measured` None: it was not, and `note` says why.

    Args:
        limit: `at least` or `at most`.
    """

    name: str
    limit: str
    target: float
    measured: float | None
    note: str = ""

    @property
    def reached(self) -> bool:
        if self.measured is None:
            return False
        if self.limit == "at least":
            return self.measured >= self.target
        return self.measured <= self.target

    @property
    def record(self) -> dict[str, Any]:
        known = {"limit": self.limit, "target": self.target, "measured": self.measured}
        return {**known, "reached": self.reached, "note": self.note}


def create_parser(doc: str | None) -> argparse.ArgumentParser:
    """With the options that all scripts have; `doc` is the script's own."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a rough, small run; writes nothing")
    parser.add_argument("--out", type=Path, help="folder for the raw figures")
    parser.add_argument("--docs", type=Path, help="folder for benchmarks.md, made of --out")
    return parser


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """A full run writes into benchmarks/ and docs/ unless told otherwise, a quick one if told."""
    args = parser.parse_args(words)
    if not args.quick:
        args.docs = args.docs or (None if args.out else HERE.parent / "docs")
        args.out = args.out or HERE
    if args.docs and not args.out:
        parser.error("--docs is made of what --out holds: give both")
    return args


def clean_up_when_stopped() -> None:
    """SIGTERM ends the script as Ctrl-C does: temporary folders go, processes end."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped"))


def take_turns(
    arms: Mapping[str, Arm],
    *,
    max_rounds: int,
    budget_s: float,
    min_turn_s: float = 0.0,
    prepare: Callable[[str, int], object] | None = None,
) -> Seconds:
    """Time all arms in turn, round after round; one round before them warms up.

    Each round starts with another arm than the last. There are no more than `max_rounds`, and at
    least MIN_ROUNDS, but no further one starts once `budget_s` is used up.

    Args:
        min_turn_s: an arm that is quicker is called several times in its turn; seconds are of one
            call, on average.
        prepare: called with arm and round before each turn, not timed.
    """
    repeats = dict.fromkeys(arms, 1)
    seconds: Seconds = {name: [] for name in arms}
    names, started = list(arms), time.perf_counter()
    for number in range(1 + max_rounds):
        if number > MIN_ROUNDS and time.perf_counter() - started > budget_s:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if prepare:
                prepare(name, number)
            time.sleep(PAUSE_S)
            taken = _time(arms[name], number, repeats[name])
            if number == 0:
                repeats[name] = max(1, math.ceil(min_turn_s / taken))
            else:
                seconds[name].append(taken)
    return seconds


def _time(arm: Arm, number: int, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        arm(number)
    return (time.perf_counter() - started) / repeats


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values), "n": len(values)}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; of few it is the largest."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of each round: what changes on the machine changes both."""
    return median(a / b for a, b in zip(above, below, strict=True))


def check_equal(arm: str, error: float, tolerance: float) -> float:
    """The error, which ends the script where it is too large: arms that differ are not compared."""
    if not error <= tolerance:
        raise SystemExit(f"{arm}: answers differ by {error:.2e}, wanted at most {tolerance:.0e}")
    return float(error)


def max_difference(got: Iterable[Any], wanted: Iterable[Any]) -> float:
    """The largest |difference| of arrays that go together."""
    return float(np.max([np.abs(g - w).max() for g, w in zip(got, wanted, strict=True)]))  # or NaN


def describe_machine() -> dict[str, Any]:
    """Load is what other work took of the cores in the minute before."""
    return {
        "date": date.today().isoformat(),
        "cpu": name_cpu(Path("/proc/cpuinfo").read_text()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def name_cpu(info: str) -> str:
    """Of /proc/cpuinfo, with the numbers of its kind."""
    lines = [line.partition(":") for line in info.partition("\n\n")[0].splitlines()]
    own = {name.strip(): value.strip() for name, _, value in lines}
    if "model name" not in own:
        return platform.machine()
    kind = [f"{name} {own[key]}" for key, name in KIND.items() if key in own]
    return ", ".join([own["model name"], *kind])


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if "onnxruntime-gpu" in found:  # which is the same module, and wins
        found.pop("onnxruntime", None)
    return found


def progress(text: str) -> None:
    """On stderr: stdout is for the line of targets."""
    print(text, file=sys.stderr, flush=True)
