"""Ten minutes of traffic at 80 % of capacity while tasks come, change and go; then far too much.

    python benchmarks/prove_load.py

A real `lspt serve` of a ViT-Ti with 200 tasks, with one worker and with two. What it can do is
measured first, by callers that each wait for their answer. Then requests come at random times (a
Poisson process), at 80 % of that, for ten minutes, while 100 tasks are added, 100 replaced and 100
removed. Then its capacity is measured again, and requests come at three times that, for a minute;
the same of a ViT-B. Traffic comes from a process of its own, which has its part of the machine.
Every answer is held to what the model answers in this process, for the versions whose files lay
there between request and answer; a server may take 3 seconds to see a change.
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
from load_targets import (
    SHARE,
    Excess,
    Targets,
    summarise,
    to_changes,
    to_excess,
    to_memory,
    to_mixed_up,
    to_steady,
)
from proof_changes import Change, Folder, Tasks, judge, plan_changes, tasks_at
from proof_memory import Memory
from proof_page import finish, parse_proof
from proof_server import Server, serve
from proof_spent import Spent, Totals
from proof_tasks import Answers, answer_all, check_apart, create_images, create_versions, prepare
from proof_traffic import Load, Run, Start, generator, poisson
from vits import task_name

from lspt_serve.bundle import Bundle

VIT, LARGER = "vit_tiny_patch16_224", "vit_base_patch16_224"
NUM_IMAGES, CLIENTS = 3, 32  # clients of each worker, to measure the capacity
EXCESS = 3.0  # times the capacity
CAPACITY_S, QUIET_S = 60.0, 3.0
SAMPLE_S = 1.0
FEW = 16  # tasks of the larger model


@dataclass(frozen=True)
class World:
    """What a run is made of, the same for every number of workers."""

    folder: Path
    names: list[str]
    changes: list[Change]
    bundles: dict[tuple[str, int], Bundle]
    images: list[bytes]
    answers: Answers


def create_world(vit: str, folder: Path, *, tasks: int, changes: int, seconds: float) -> World:
    names = [task_name(number) for number in range(tasks)]
    progress(f"{vit}: exporting, writing {len(names)} tasks")
    folder.mkdir()
    backbone, engine, plain = prepare(vit, folder, names)
    planned = plan_changes(names, changes, seconds)
    versions = [(name, 1) for name in names]
    versions += [(each.task, each.version) for each in planned if each.kind != "remove"]
    images = create_images(NUM_IMAGES, backbone.preprocess.img_size)
    bundles = {
        (each.name, each.manifest.version): each for each in create_versions(plain, versions)
    }
    progress(f"answering {len(images) * len(bundles)} rows for reference")
    answers = answer_all(engine, images, bundles.values())
    progress(f"any two answers differ by at least {check_apart(answers):.2g}")
    engine.close()
    return World(folder, names, planned, bundles, images, answers)


@dataclass(frozen=True)
class Scene:
    """A server of a world's tasks, and where traffic for it comes from."""

    server: Server
    world: World
    start: Start
    args: Namespace
    workers: int

    def measure_capacity(self, tasks: Tasks) -> tuple[float, Spent]:
        """Answers a second to callers that each wait for theirs, and what was spent on them."""
        shots = poisson(1.0, 1000.0, lambda rng, at_s: draw(tasks, rng, at_s), 0)
        closed: dict[str, Any] = {"shots": shots, "clients": CLIENTS * self.workers}
        for seconds in (self.args.capacity_s / 4, self.args.capacity_s):  # the first warms up
            before = Totals.of(self.server)
            run = self.start(self.load(**closed, seconds=seconds)).result()
        progress(f"{self.workers} worker(s): {run.per_s:.1f} requests/s")
        return run.per_s, before.until(Totals.of(self.server))

    def shoot(self, tasks: Tasks, rate: float, seconds: float, *, seed: int) -> Run:
        """Requests at random times, `rate` a second on average."""
        shots = poisson(rate, seconds, lambda rng, at_s: draw(tasks, rng, at_s), seed)
        begin = time.monotonic() + 1
        return self.start(self.load(shots=shots, seconds=seconds, start=begin)).result()

    def load(self, **settings: Any) -> Load:
        own: dict[str, Any] = {
            "host": self.server.host,
            "port": self.server.port,
            "images": self.world.images,
        }
        return Load(**own, **settings)

    def exceed(self, tasks: Tasks) -> tuple[Excess, Run]:
        """Three times what it can do now, and a little while of less after it."""
        capacity, of_capacity = self.measure_capacity(tasks)
        before = Totals.of(self.server)
        run = self.shoot(tasks, EXCESS * capacity, self.args.excess_s, seed=2)
        spent = before.until(Totals.of(self.server))
        again = self.shoot(tasks, SHARE * capacity / 2, QUIET_S, seed=3)
        return Excess(self.workers, capacity, of_capacity, run, spent), again


def draw(tasks: Tasks, rng: Any, at_s: float) -> tuple[int, str]:
    return rng.randrange(NUM_IMAGES), tasks.draw(rng, at_s)


def fill(world: World, name: str) -> Folder:
    """A folder of its own with the first version of every task."""
    folder = Folder(world.folder / name, world.bundles)
    for task in world.names:
        folder.make(Change(0, "add", task, 1))
    return folder


def prove(workers: int, world: World, start: Start, args: Namespace) -> tuple[Targets, Any]:
    """Capacity, the long run and the excess, of a server of its own."""
    folder = fill(world, f"bundles-{workers}")
    with serve(world.folder, workers=workers, bundles=folder.path) as server:
        scene = Scene(server, world, start, args, workers)
        capacity, _ = scene.measure_capacity(tasks_at(world.names, []))
        steady, samples = run_steady(scene, folder, capacity)
        time.sleep(QUIET_S)
        left = [name for (name, _), (_, last) in folder.lives.items() if last == math.inf]
        excess, again = scene.exceed(tasks_at(left, []))
    faults = judge([*steady.seen, *excess.run.seen, *again.seen], world.answers, folder.lives)
    for fault, count in faults.most_common(10):
        progress(f"{count} x {fault}")
    name, done = f"{workers} worker(s)", folder.done - len(world.names)
    targets = to_steady(name, capacity, (steady, again), folder.lives)
    targets += [to_mixed_up(name, faults), *to_excess(name, excess)]
    targets += [to_memory(name, samples), to_changes(name, done, world.changes)]
    raw = {"workers": workers, "capacity": capacity, "memory": samples, "faults": dict(faults)}
    return targets, raw | {"steady": summarise(steady), "3x": excess.raw}


def prove_larger(world: World, start: Start, args: Namespace) -> tuple[Targets, Any]:
    """The excess alone, of one worker."""
    folder = fill(world, "bundles-1")
    with serve(world.folder, workers=1, bundles=folder.path) as server:
        excess, again = Scene(server, world, start, args, 1).exceed(tasks_at(world.names, []))
    faults = judge([*excess.run.seen, *again.seen], world.answers, folder.lives)
    targets = [to_mixed_up(args.larger, faults), *to_excess(args.larger, excess)]
    return targets, {"vit": args.larger, "faults": dict(faults), "3x": excess.raw}


def run_steady(
    scene: Scene, folder: Folder, capacity: float
) -> tuple[Run, list[tuple[float, int]]]:
    world, seconds = scene.world, scene.args.minutes * 60
    tasks = tasks_at(world.names, world.changes)
    shots = poisson(SHARE * capacity, seconds, lambda rng, at_s: draw(tasks, rng, at_s), 1)
    progress(f"{len(shots)} requests in {seconds:g} s")
    memory, begin = Memory(scene.server), time.monotonic() + 1
    answer = scene.start(scene.load(shots=shots, seconds=seconds, start=begin))
    with memory.sampled(min(SAMPLE_S, seconds / 30)), folder.changing(world.changes, begin):
        run = answer.result()
    return run, memory.samples


def main(words: Sequence[str] | None = None) -> None:
    args = parse_proof(
        __doc__,
        words,
        vit={"default": VIT, "help": "a timm model, or a file of weights"},
        larger={"help": f"the same, for the excess alone; {LARGER}"},
        tasks={"type": int, "help": "200"},
        changes={"type": int, "help": "of each kind; 100"},
        minutes={"type": float, "help": "10"},
        workers={"type": int, "action": "append", "help": "1 and 2"},
    )
    full = (LARGER, 200, 100, 10.0, [1, 2], CAPACITY_S, 60.0)
    quick = (None, 16, 4, 0.1, [1], 2.0, 3.0)
    for name, value in zip(
        ("larger", "tasks", "changes", "minutes", "workers", "capacity_s", "excess_s"),
        quick if args.quick else full,
        strict=True,
    ):
        setattr(args, name, getattr(args, name, None) or value)
    clean_up_when_stopped()
    targets, details = [], []
    with tempfile.TemporaryDirectory() as scratch, generator() as start:
        planned = {"tasks": args.tasks, "changes": args.changes, "seconds": args.minutes * 60}
        world = create_world(args.vit, Path(scratch) / "world", **planned)
        runs = [prove(workers, world, start, args) for workers in args.workers]
        if args.larger:
            larger = create_world(
                args.larger, Path(scratch) / "larger", tasks=FEW, changes=0, seconds=0.0
            )
            runs.append(prove_larger(larger, start, args))
    for found, raw in runs:
        targets += found
        details.append(raw)
    finish("prove_load", targets, args, details=details)


if __name__ == "__main__":
    main()
