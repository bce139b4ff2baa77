"""What the runs of prove_load.py come to: targets, and raw figures."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from common import Target, percentile
from proof_changes import Change, Lives, find_failures
from proof_memory import growth
from proof_traffic import Run

__all__ = ["SHARE", "Targets", "summarise", "to_changes", "to_memory", "to_targets"]

SHARE = 0.8  # of the capacity, for the long run
QUEUE = 256  # images that wait at a worker before it refuses some
BUSY = (429, 503)
Targets = list[tuple[Target, str]]  # each with its unit


def to_targets(
    name: str,
    workers: int,
    capacity: float,
    runs: tuple[Run, Run, Run],
    faults: Counter[str],
    lives: Lives,
) -> Targets:
    steady, excess, again = runs
    failed = find_failures([*steady.seen, *again.seen], lives)
    wrong = Counter(
        each.status
        for each in excess.seen
        if each.status != 200 and not (each.status in BUSY and each.retry_after)
    )
    shed = sum(each.status in BUSY for each in excess.seen)
    latencies, admitted = steady.latencies_s() or [60.0], excess.latencies_s() or [60.0]
    half, most = (1000 * percentile(latencies, share) for share in (0.5, 0.99))
    of = f"of {len(steady.seen)} at {SHARE:.0%} of {capacity:.1f}/s"
    of += f"; p50 {half:.0f}, p99 {most:.0f} ms"
    bound = 1.5 * QUEUE * workers / capacity
    share = max(run.cpu_share for run in runs)
    return [
        (Target(f"{name}: failed", "at most", 0, failed.total(), f"{of}{_show(failed)}"), ""),
        (Target(f"{name}: mixed up", "at most", 0, faults.total(), "answers of all runs"), ""),
        (
            Target(
                f"{name}: refused without 429 or 503 and Retry-After at 3x",
                "at most",
                0,
                wrong.total(),
                f"{shed} of {len(excess.seen)} shed{_show(wrong)}",
            ),
            "",
        ),
        (Target(f"{name}: goodput at 3x", "at least", 0.9, excess.per_s / capacity), "of capacity"),
        (
            Target(
                f"{name}: p99 of admitted at 3x",
                "at most",
                round(bound, 2),
                percentile(admitted, 0.99),
                f"1.5 x {QUEUE} images at each worker; p50 {percentile(admitted, 0.5):.2f} s",
            ),
            "s",
        ),
        (Target(f"{name}: CPU of the generator", "at most", 0.25, share), "cores"),
    ]


def _show(statuses: Counter[int]) -> str:
    return "".join(f"; {count} x {status or 'no answer'}" for status, count in statuses.items())


def to_memory(name: str, samples: Sequence[tuple[float, int]]) -> tuple[Target, str]:
    note = f"{samples[0][1] / 2**20:.0f} MiB at first, {samples[-1][1] / 2**20:.0f} at last"
    grown = 100 * growth(samples)
    return Target(f"{name}: memory grows in the last half", "at most", 2, grown, note), "%"


def to_changes(name: str, done: int, changes: Sequence[Change]) -> tuple[Target, str]:
    kinds = Counter(each.kind for each in changes)
    note = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    return Target(f"{name}: changes under traffic", "at least", len(changes), done, note), ""


def summarise(run: Run) -> dict[str, Any]:
    latencies = run.latencies_s() or [math.nan]
    return {
        "seconds": run.seconds,
        "per_s": run.per_s,
        "statuses": Counter(str(each.status) for each in run.seen),
        "latest_s": max((each.sent - each.due for each in run.seen), default=0.0),
        "ms": {share: 1000 * percentile(latencies, share) for share in (0.5, 0.9, 0.99, 1.0)},
        "cpu_share": run.cpu_share,
    }
