"""What the runs of prove_load.py come to: targets, and raw figures."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, NamedTuple

from common import Target, percentile
from proof_changes import Change, Lives, find_failures
from proof_memory import growth
from proof_spent import Spent
from proof_traffic import Run, Seen

__all__ = [
    "SHARE",
    "Excess",
    "Targets",
    "Turn",
    "summarise",
    "to_changes",
    "to_excess",
    "to_memory",
    "to_mixed_up",
    "to_steady",
]

SHARE = 0.8  # of the capacity, for the long run
QUEUE, WAIT_S = 256, 10.0  # images that wait at a worker before it refuses some, and how long
BUSY = (429, 503)
Targets = list[tuple[Target, str]]  # each with its unit


class Turn(NamedTuple):
    """Far more requests than the capacity, which was measured just before; what both took."""

    capacity: float
    of_capacity: Spent
    run: Run
    spent: Spent


@dataclass(frozen=True)
class Excess:
    """In turns, for a machine whose speed is not that of a minute ago."""

    workers: int
    turns: Sequence[Turn]

    @property
    def capacity(self) -> float:
        return median(turn.capacity for turn in self.turns)

    @property
    def seen(self) -> list[Seen]:
        return [each for turn in self.turns for each in turn.run.seen]

    @property
    def raw(self) -> list[dict[str, Any]]:
        return [
            summarise(turn.run)
            | {
                "capacity": turn.capacity,
                "spent": turn.spent._asdict(),
                "spent at capacity": turn.of_capacity._asdict(),
            }
            for turn in self.turns
        ]


def to_steady(
    name: str, capacity: float, runs: tuple[Run, Run], spent: Spent, lives: Lives
) -> Targets:
    """Args:
    runs: at SHARE of the capacity, and a little one at the end of all.
    spent: on the first.
    """
    steady, again = runs
    failed = find_failures([*steady.seen, *again.seen], lives)
    latencies = steady.latencies_s() or [60.0]
    half, most = (1000 * percentile(latencies, share) for share in (0.5, 0.99))
    of = f"of {len(steady.seen)} at {SHARE:.0%} of {capacity:.1f}/s"
    of += f"; p50 {half:.0f}, p99 {most:.0f} ms; {spent}"
    return [
        (Target(f"{name}: failed", "at most", 0, failed.total(), f"{of}{_show(failed)}"), ""),
        _to_generator(f"{name}: CPU of the generator", steady),
    ]


def to_mixed_up(name: str, faults: Counter[str]) -> tuple[Target, str]:
    return Target(f"{name}: mixed up", "at most", 0, faults.total(), "answers of all runs"), ""


def to_excess(name: str, excess: Excess) -> Targets:
    capacity, runs = excess.capacity, [turn.run for turn in excess.turns]
    wrong = Counter(
        each.status
        for each in excess.seen
        if each.status != 200 and not (each.status in BUSY and each.retry_after)
    )
    shed = sum(each.status in BUSY for each in excess.seen)
    admitted = [each for run in runs for each in run.latencies_s()] or [60.0]
    came = len(excess.seen) / sum(run.seconds for run in runs)
    goodput = [turn.run.per_s / turn.capacity for turn in excess.turns]
    of_capacity, spent = (
        Spent(*map(fmean, zip(*each, strict=True)))
        for each in ([turn.of_capacity for turn in excess.turns], [t.spent for t in excess.turns])
    )
    queue = min(QUEUE, WAIT_S * capacity / excess.workers)
    bound = 1.5 * queue * excess.workers / capacity
    return [
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
        (
            Target(
                f"{name}: goodput at 3x",
                "at least",
                0.9,
                median(goodput),
                f"{min(goodput):.2f} to {max(goodput):.2f} in {len(goodput)} turns; "
                f"{median(run.per_s for run in runs):.1f} of {came:.1f}/s, {spent}; "
                f"at capacity {capacity:.1f}/s, {of_capacity}",
            ),
            "of capacity",
        ),
        (
            Target(
                f"{name}: p99 of admitted at 3x",
                "at most",
                round(bound, 2),
                percentile(admitted, 0.99),
                f"1.5 x {queue:.0f} images at each worker; p50 {percentile(admitted, 0.5):.2f} s",
            ),
            "s",
        ),
        _to_generator(f"{name}: CPU of the generator at 3x", *runs),
    ]


def _to_generator(name: str, *runs: Run) -> tuple[Target, str]:
    return Target(name, "at most", 0.25, max(run.cpu_share for run in runs)), "cores"


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
