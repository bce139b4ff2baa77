"""Ten minutes of traffic at 80 % of capacity while tasks come, change and go; then far too much.

    python benchmarks/prove_load.py

A real `lspt serve` of a ViT-Ti with 200 tasks, with one worker and with two. What it can do is
measured first, for two minutes, by callers that each wait for their answer, and its queue, which
bounds what it holds, is filled once. Then requests come at random times (a Poisson process), at 80
% of its capacity, for ten minutes, while 100 tasks are added, 100 replaced and 100 removed. Then
its capacity is measured again, and requests come at three times that: five turns of 15 seconds
each, of which the medians are shown; what was spent is of the last two thirds of a turn, when the
queues are full. Traffic comes from a process of its own, which has its part of the machine. Every
answer is held to what the model answers in this process, for the versions whose files lay there
between request and answer; a server may take 3 seconds to see a change.
"""

import math
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import clean_up_when_stopped, progress
from load_targets import (
    SHARE,
    Targets,
    summarise,
    to_changes,
    to_excess,
    to_memory,
    to_mixed_up,
    to_steady,
)
from load_world import FULL, QUICK, Lengths, Trial, World, create_world, draw, fill
from proof_changes import Folder, judge, tasks_at
from proof_memory import Memory
from proof_page import finish, parse_proof
from proof_server import serve
from proof_spent import Spent, Totals
from proof_traffic import Run, Start, generator, poisson

VIT = "vit_tiny_patch16_224"
QUIET_S = 3.0  # between two runs
SAMPLE_S = 1.0


def prove(
    workers: int, world: World, start: Start, args: Namespace, lengths: Lengths
) -> tuple[Targets, Any]:
    """Capacity, the long run and the excess, of a server of its own."""
    folder = fill(world, f"bundles-{workers}")
    with serve(world.folder, workers=workers, bundles=folder.path) as server:
        trial = Trial(server, world, start, workers, lengths)
        everything = tasks_at(world.names, [])
        capacity, _ = trial.measure_capacity(everything, lengths.capacity_s)
        full = trial.fill_queue(everything, capacity)
        steady, spent, samples = run_steady(trial, folder, capacity, args.minutes * 60)
        time.sleep(QUIET_S)
        left = [name for (name, _), (_, last) in folder.lives.items() if last == math.inf]
        excess, again = trial.exceed(tasks_at(left, []))
    faults = judge(
        [*full.seen, *steady.seen, *excess.seen, *again.seen], world.answers, folder.lives
    )
    for fault, count in faults.most_common(10):
        progress(f"{count} x {fault}")
    name, done = f"{workers} worker(s)", folder.done - len(world.names)
    targets = to_steady(name, capacity, (steady, again), spent, folder.lives)
    targets += [to_mixed_up(name, faults), *to_excess(name, excess)]
    targets += [to_memory(name, samples), to_changes(name, done, world.changes)]
    raw = {"workers": workers, "capacity": capacity, "memory": samples, "faults": dict(faults)}
    raw["steady"] = summarise(steady) | {"spent": spent._asdict()}
    return targets, raw | {"3x": excess.raw}


def run_steady(
    trial: Trial, folder: Folder, capacity: float, seconds: float
) -> tuple[Run, Spent, list[tuple[float, int]]]:
    world, before = trial.world, Totals.of(trial.server)
    tasks = tasks_at(world.names, world.changes)
    shots = poisson(SHARE * capacity, seconds, lambda rng, at_s: draw(tasks, rng, at_s), 1)
    progress(f"{len(shots)} requests in {seconds:g} s")
    memory, begin = Memory(trial.server), time.monotonic() + 1
    answer = trial.start(trial.load(shots=shots, seconds=seconds, start=begin))
    with memory.sampled(min(SAMPLE_S, seconds / 30)), folder.changing(world.changes, begin):
        run = answer.result()
    return run, before.until(Totals.of(trial.server)), memory.samples


def main(words: Sequence[str] | None = None) -> None:
    args = parse_proof(
        __doc__,
        words,
        vit={"default": VIT, "help": "a timm model, or a file of weights"},
        tasks={"type": int, "help": "200"},
        changes={"type": int, "help": "of each kind; 100"},
        minutes={"type": float, "help": "10"},
        workers={"type": int, "action": "append", "help": "1 and 2"},
    )
    usual = (16, 4, 0.1, [1]) if args.quick else (200, 100, 10.0, [1, 2])
    for name, value in zip(("tasks", "changes", "minutes", "workers"), usual, strict=True):
        setattr(args, name, getattr(args, name, None) or value)
    lengths = QUICK if args.quick else FULL
    clean_up_when_stopped()
    targets, details = [], []
    with tempfile.TemporaryDirectory() as scratch, generator() as start:
        planned = {"tasks": args.tasks, "changes": args.changes, "seconds": args.minutes * 60}
        world = create_world(args.vit, Path(scratch) / "world", **planned)
        for workers in args.workers:
            found, raw = prove(workers, world, start, args, lengths)
            targets += found
            details.append(raw)
    finish("prove_load", targets, args, details=details)


if __name__ == "__main__":
    main()
