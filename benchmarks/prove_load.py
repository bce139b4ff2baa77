"""Ten minutes of traffic at 80 % of capacity while tasks come, change and go; then far too much.

    python benchmarks/prove_load.py

A real `lspt serve` of a ViT-Ti with 200 tasks, with one worker and with two. What it can do is
measured first, by callers that each wait for their answer. Then requests come at random times (a
Poisson process), at 80 % of that, for ten minutes, while 100 tasks are added, 100 replaced and 100
removed; and then at three times that, for a minute. Traffic comes from a process of its own. Every
answer is held to what the model answers in this process, for the versions whose files lay there
between request and answer; a server may take 3 seconds to see a change.
"""

import math
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Target, clean_up_when_stopped, percentile, progress
from proof_changes import (
    Change,
    Folder,
    Lives,
    Tasks,
    find_failures,
    judge,
    plan_changes,
    tasks_at,
)
from proof_memory import Memory, growth
from proof_page import finish, parse_proof
from proof_server import Server, serve
from proof_tasks import Answers, answer_all, check_apart, create_images, create_versions, prepare
from proof_traffic import Load, Run, Start, generator, poisson
from vits import task_name

from lspt_serve.bundle import Bundle

VIT = "vit_tiny_patch16_224"
NUM_IMAGES, CLIENTS = 3, 32  # clients of each worker, to measure the capacity
SHARE, EXCESS = 0.8, 3.0
CAPACITY_S, QUIET_S = 20.0, 3.0
QUEUE = 256  # images that wait at a worker before it refuses some
SAMPLE_S = 1.0
BUSY = (429, 503)
Targets = list[tuple[Target, str]]


@dataclass(frozen=True)
class World:
    """What a run is made of, the same for every number of workers."""

    folder: Path
    names: list[str]
    changes: list[Change]
    bundles: dict[tuple[str, int], Bundle]
    images: list[bytes]
    answers: Answers


def create_world(args: Namespace, folder: Path) -> World:
    names = [task_name(number) for number in range(args.tasks)]
    progress(f"{args.vit}: exporting, writing {len(names)} tasks")
    backbone, engine, plain = prepare(args.vit, folder, names)
    changes = plan_changes(names, args.changes, args.minutes * 60)
    versions = [(name, 1) for name in names]
    versions += [(each.task, each.version) for each in changes if each.kind != "remove"]
    images = create_images(NUM_IMAGES, backbone.preprocess.img_size)
    bundles = {
        (each.name, each.manifest.version): each for each in create_versions(plain, versions)
    }
    progress(f"answering {len(images) * len(bundles)} rows for reference")
    answers = answer_all(engine, images, bundles.values())
    progress(f"any two answers differ by at least {check_apart(answers):.2g}")
    engine.close()
    return World(folder, names, changes, bundles, images, answers)


def prove(workers: int, world: World, start: Start, args: Namespace) -> tuple[Targets, Any]:
    """Capacity, the long run and the excess, of a server of its own."""
    bundles = world.folder / f"bundles-{workers}"
    folder = Folder(bundles, world.bundles)
    for name in world.names:
        folder.make(Change(0, "add", name, 1))
    with serve(world.folder, workers=workers, bundles=bundles) as server:
        load = {"host": server.host, "port": server.port, "images": world.images}
        capacity = measure_capacity(workers, world, load, start, args)
        progress(f"{workers} worker(s): {capacity:.1f} requests/s")
        steady, samples = run_steady(server, folder, world, capacity, load, start, args)
        time.sleep(QUIET_S)
        left = [name for (name, _), (_, last) in folder.lives.items() if last == math.inf]
        late = tasks_at(left, [])
        excess = shoot(late, EXCESS * capacity, args.excess_s, load, start, seed=2)
        again = shoot(late, SHARE * capacity / 2, QUIET_S, load, start, seed=3)
    faults = judge([*steady.seen, *excess.seen, *again.seen], world.answers, folder.lives)
    for fault, count in faults.most_common(10):
        progress(f"{count} x {fault}")
    runs = (steady, excess, again)
    targets = to_targets(f"{workers} worker(s)", workers, capacity, runs, faults, folder.lives)
    targets.append(to_memory(f"{workers} worker(s)", samples))
    targets.append(to_changes(f"{workers} worker(s)", folder.done - len(world.names), world))
    raw = {"workers": workers, "capacity": capacity, "memory": samples, "faults": dict(faults)}
    return targets, raw | {
        name: summarise(run) for name, run in (("steady", steady), ("3x", excess))
    }


def measure_capacity(
    workers: int, world: World, load: dict[str, Any], start: Start, args: Namespace
) -> float:
    tasks = tasks_at(world.names, [])
    shots = poisson(1.0, 1000.0, lambda rng, at_s: draw(tasks, rng, at_s), 0)
    closed: dict[str, Any] = {"shots": shots, "clients": CLIENTS * workers}
    for seconds in (args.capacity_s / 4, args.capacity_s):  # the first warms up
        run = start(Load(**load, **closed, seconds=seconds)).result()
    return run.per_s


def draw(tasks: Tasks, rng: Any, at_s: float) -> tuple[int, str]:
    return rng.randrange(NUM_IMAGES), tasks.draw(rng, at_s)


def shoot(
    tasks: Tasks, rate: float, seconds: float, load: dict[str, Any], start: Start, *, seed: int
) -> Run:
    shots = poisson(rate, seconds, lambda rng, at_s: draw(tasks, rng, at_s), seed)
    begin = time.monotonic() + 1
    return start(Load(**load, shots=shots, seconds=seconds, start=begin)).result()


def run_steady(
    server: Server,
    folder: Folder,
    world: World,
    capacity: float,
    load: dict[str, Any],
    start: Start,
    args: Namespace,
) -> tuple[Run, list[tuple[float, int]]]:
    seconds, tasks = args.minutes * 60, tasks_at(world.names, world.changes)
    shots = poisson(SHARE * capacity, seconds, lambda rng, at_s: draw(tasks, rng, at_s), 1)
    progress(f"{len(shots)} requests in {seconds:g} s")
    memory, begin = Memory(server), time.monotonic() + 1
    with memory.sampled(min(SAMPLE_S, seconds / 30)):
        answer = start(Load(**load, shots=shots, seconds=seconds, start=begin))
        changing = folder.start(world.changes, begin)
        run = answer.result()
        changing.join()
    return run, memory.samples


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
        (
            Target(f"{name}: failed", "at most", 0, sum(failed.values()), f"{of} {_show(failed)}"),
            "",
        ),
        (Target(f"{name}: mixed up", "at most", 0, faults.total(), "answers of all runs"), ""),
        (
            Target(
                f"{name}: refused without 429 or 503 and Retry-After at 3x",
                "at most",
                0,
                sum(wrong.values()),
                f"{shed} of {len(excess.seen)} shed {_show(wrong)}",
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


def to_changes(name: str, done: int, world: World) -> tuple[Target, str]:
    kinds = Counter(each.kind for each in world.changes)
    note = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    return Target(f"{name}: changes under traffic", "at least", len(world.changes), done, note), ""


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
    full = (200, 100, 10.0, [1, 2], CAPACITY_S, 60.0)
    quick = (16, 4, 0.1, [1], 2.0, 3.0)
    for name, value in zip(
        ("tasks", "changes", "minutes", "workers", "capacity_s", "excess_s"),
        quick if args.quick else full,
        strict=True,
    ):
        setattr(args, name, getattr(args, name, None) or value)
    clean_up_when_stopped()
    targets, details = [], []
    with tempfile.TemporaryDirectory() as scratch, generator() as start:
        world = create_world(args, Path(scratch))
        for workers in args.workers:
            found, raw = prove(workers, world, start, args)
            targets += found
            details.append(raw)
    finish("prove_load", targets, args, details=details)


if __name__ == "__main__":
    main()
