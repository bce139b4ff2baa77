"""Traffic from a process of its own: as fast as callers get answers, or at times of its own."""

import asyncio
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle

import uvloop
from proof_client import Caller, Way, to_request

__all__ = ["Load", "Run", "Seen", "Shot", "Start", "evenly", "generator", "poisson", "run_load"]

Choose = Callable[[random.Random, float], tuple[int, str]]  # the image and task of a shot


@dataclass(frozen=True)
class Shot:
    """An image of a task, asked so many seconds after the start."""

    at_s: float
    image: int
    task: str


@dataclass(frozen=True)
class Load:
    """Args:
    path: of the request; {task} stands in it.
    way, field: how an image is sent, see `to_request`.
    clients: None: each shot at its time, whatever became of those before (an open loop). Or so
        many, each of which takes the next shot once it has its answer, for `seconds`.
    """

    host: str
    port: int
    images: Sequence[bytes]
    shots: Sequence[Shot]
    path: str = "/classify?task={task}&activation=none&top_k=1000"
    way: Way = "body"
    field: str = "image"
    clients: int | None = None
    seconds: float = 0.0
    timeout_s: float = 60.0
    start: float = 0.0  # of time.monotonic


@dataclass(frozen=True)
class Seen:
    """What became of a shot. Times are of time.monotonic, which all processes share.

    Args:
        due: when it was to be sent; in a closed loop when it was.
        status: 0: there was no answer, and `body` says why.
    """

    image: int
    task: str
    due: float
    sent: float
    received: float
    status: int
    body: bytes = b""
    retry_after: str | None = None

    @property
    def latency_s(self) -> float:
        """From when it was due: a server that holds the generator up does not look better."""
        return self.received - self.due


@dataclass(frozen=True)
class Run:
    """`cpu_share`: of one core, that the generator itself took."""

    seen: list[Seen]
    start: float
    seconds: float
    cpu_share: float

    @property
    def answered(self) -> list[Seen]:
        return [each for each in self.seen if each.status == 200]

    @property
    def per_s(self) -> float:
        """Answers with 200, of those that came before the end."""
        end = self.start + self.seconds
        return sum(each.received <= end for each in self.answered) / self.seconds

    @property
    def whole_per_s(self) -> float:
        """Answers with 200 over the time until the last: no batch counts as half done."""
        end = max((each.received for each in self.answered), default=math.inf)
        return len(self.answered) / (end - self.start)

    def latencies_s(self) -> list[float]:
        """Of answers with 200."""
        return [each.latency_s for each in self.answered]


Start = Callable[[Load], "Future[Run]"]


@contextmanager
def generator() -> Iterator[Start]:
    """A function that starts traffic in another process, which runs already.

    A script that is stopped does not wait for traffic to end.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(time.monotonic).result()

        def start(load: Load) -> "Future[Run]":
            return pool.submit(run_load, load)

        try:
            yield start
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def poisson(rate: float, seconds: float, choose: Choose, seed: int) -> list[Shot]:
    """Shots of an open loop, `rate` a second on average."""
    rng, at_s, shots = random.Random(seed), 0.0, []
    while (at_s := at_s + rng.expovariate(rate)) < seconds:
        shots.append(Shot(at_s, *choose(rng, at_s)))
    return shots


def evenly(rate: float, seconds: float, choose: Choose, seed: int) -> list[Shot]:
    """As `poisson`, but all as far apart: none has to wait for another by chance."""
    rng, times = random.Random(seed), (number / rate for number in range(int(rate * seconds)))
    return [Shot(at_s, *choose(rng, at_s)) for at_s in times]


def run_load(load: Load) -> Run:
    """In this process, to the end."""
    return uvloop.run(_Traffic(load).run())


@dataclass
class _Traffic:
    load: Load
    seen: list[Seen] = field(default_factory=list)

    async def run(self) -> Run:
        load = self.load
        self.caller = Caller(load.host, load.port, load.timeout_s)
        start = max(load.start, time.monotonic())
        used = time.process_time()
        if load.clients is None:
            await self._open(start)
        else:
            shots = cycle(load.shots)
            await asyncio.gather(
                *(self._close(shots, start + load.seconds) for _ in range(load.clients))
            )
        taken = time.monotonic() - start
        share = (time.process_time() - used) / taken
        self.caller.close()
        await asyncio.sleep(0)
        return Run(self.seen, start, load.seconds or taken, share)

    async def _open(self, start: float) -> None:
        async with asyncio.TaskGroup() as group:
            for shot in self.load.shots:
                due = start + shot.at_s
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(self._ask(shot, due))

    async def _close(self, shots: Iterator[Shot], end: float) -> None:
        while (now := time.monotonic()) < end:
            await self._ask(next(shots), now)

    async def _ask(self, shot: Shot, due: float) -> None:
        path = self.load.path.format(task=shot.task)
        image = self.load.images[shot.image]
        request = to_request(self.load.host, path, image, self.load.way, self.load.field)
        sent = time.monotonic()
        try:
            reply = await self.caller.ask(request)
        except (OSError, EOFError, TimeoutError) as error:
            status, body, retry_after = 0, repr(error).encode(), None
        else:
            status, body = reply.status, reply.body
            retry_after = reply.headers.get("retry-after")
        now = time.monotonic()
        self.seen.append(Seen(shot.image, shot.task, due, sent, now, status, body, retry_after))
