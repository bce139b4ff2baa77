"""Worlds of tasks whose answers are known, and servers of them that get more or less to do."""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common import progress
from load_targets import SHARE, Excess, Turn
from proof_changes import Change, Folder, Tasks, plan_changes
from proof_server import Server
from proof_spent import Spent, Totals
from proof_tasks import Answers, answer_all, check_apart, create_images, create_versions, prepare
from proof_traffic import Load, Run, Start, poisson
from vits import task_name

from lspt_serve.bundle import Bundle

__all__ = ["FULL", "QUICK", "Lengths", "Trial", "World", "create_world", "draw", "fill"]

NUM_IMAGES, CLIENTS = 3, 32  # clients of each worker, to measure the capacity
EXCESS = 3.0  # times the capacity
FULL_AFTER = 1 / 3  # of a turn of these the queues are full, and requests are refused
QUIET_S = 3.0


class Lengths(NamedTuple):
    """Seconds: of the first measurement of the capacity, and of filling the queue; then turns of
    the capacity and of far too many requests, each so long.
    """

    capacity_s: float
    fill_s: float
    turns: int
    turn_s: float


FULL, QUICK = Lengths(120.0, 5.0, 5, 15.0), Lengths(2.0, 1.0, 1, 3.0)
WARM_UP = 1 / 4  # of a measurement of the capacity, before it


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
class Trial:
    """A server of a world's tasks, and where traffic for it comes from."""

    server: Server
    world: World
    start: Start
    workers: int
    lengths: Lengths

    def measure_capacity(self, tasks: Tasks, seconds: float) -> tuple[float, Spent]:
        """Answers a second to callers that each wait for theirs, and what was spent on them."""
        shots = poisson(1.0, 1000.0, lambda rng, at_s: draw(tasks, rng, at_s), 0)
        closed: dict[str, Any] = {"shots": shots, "clients": CLIENTS * self.workers}
        for length in (WARM_UP * seconds, seconds):
            before = Totals.of(self.server)
            run = self.start(self.load(**closed, seconds=length)).result()
        progress(f"{self.workers} worker(s): {run.per_s:.1f} requests/s")
        return run.per_s, before.until(Totals.of(self.server))

    def shoot(self, tasks: Tasks, rate: float, seconds: float, *, seed: int) -> Run:
        """Requests at random times, `rate` a second on average."""
        return self._begin(tasks, rate, seconds, seed)[1].result()

    def _begin(
        self, tasks: Tasks, rate: float, seconds: float, seed: int
    ) -> tuple[float, Future[Run]]:
        """When the requests begin, and what becomes of them."""
        shots = poisson(rate, seconds, lambda rng, at_s: draw(tasks, rng, at_s), seed)
        begin = time.monotonic() + 1
        return begin, self.start(self.load(shots=shots, seconds=seconds, start=begin))

    def fill_queue(self, tasks: Tasks, capacity: float) -> Run:
        """Once, so that what its queue may hold is held: more later is what it does not let go."""
        run = self.shoot(tasks, EXCESS * capacity, self.lengths.fill_s, seed=4)
        time.sleep(self.lengths.fill_s)
        return run

    def load(self, **settings: Any) -> Load:
        own: dict[str, Any] = {
            "host": self.server.host,
            "port": self.server.port,
            "images": self.world.images,
        }
        return Load(**own, **settings)

    def exceed(self, tasks: Tasks) -> tuple[Excess, Run]:
        """What it can do and three times that, in turns, and a little while of less after them."""
        turns = [self._exceed_once(tasks, seed) for seed in range(5, 5 + self.lengths.turns)]
        again = self.shoot(tasks, SHARE * turns[-1].capacity / 2, QUIET_S, seed=3)
        return Excess(self.workers, turns), again

    def _exceed_once(self, tasks: Tasks, seed: int) -> Turn:
        capacity, of_capacity = self.measure_capacity(tasks, self.lengths.turn_s)
        begin, run = self._begin(tasks, EXCESS * capacity, self.lengths.turn_s, seed)
        before, after = (
            self._look(begin + later * self.lengths.turn_s) for later in (FULL_AFTER, 1)
        )
        return Turn(capacity, of_capacity, run.result(), before.until(after))

    def _look(self, at: float) -> Totals:
        """At a time of time.monotonic."""
        time.sleep(max(0.0, at - time.monotonic()))
        return Totals.of(self.server)


def draw(tasks: Tasks, rng: Any, at_s: float) -> tuple[int, str]:
    return rng.randrange(NUM_IMAGES), tasks.draw(rng, at_s)


def fill(world: World, name: str) -> Folder:
    """A folder of its own with the first version of every task."""
    folder = Folder(world.folder / name, world.bundles)
    for task in world.names:
        folder.make(Change(0, "add", task, 1))
    return folder
