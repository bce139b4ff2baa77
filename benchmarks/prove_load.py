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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import clean_up_when_stopped, progress
from load_targets import SHARE, Targets, summarise, to_changes, to_memory, to_targets
from proof_changes import Change, Folder, Tasks, judge, plan_changes, tasks_at
from proof_memory import Memory
from proof_page import finish, parse_proof
from proof_server import Server, serve
from proof_tasks import Answers, answer_all, check_apart, create_images, create_versions, prepare
from proof_traffic import Load, Run, Start, generator, poisson
from vits import task_name

from lspt_serve.bundle import Bundle

VIT = "vit_tiny_patch16_224"
NUM_IMAGES, CLIENTS = 3, 32  # clients of each worker, to measure the capacity
EXCESS = 3.0  # times the capacity
CAPACITY_S, QUIET_S = 20.0, 3.0
SAMPLE_S = 1.0


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
    name, done = f"{workers} worker(s)", folder.done - len(world.names)
    targets = to_targets(name, workers, capacity, runs, faults, folder.lives)
    targets += [to_memory(name, samples), to_changes(name, done, world.changes)]
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
