"""What would hold up the event loop runs in threads, as many as cores can run, and few wait."""

import os
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from lspt_serve.errors import OverloadedError

__all__ = ["in_thread"]

MAX_THREADS = (os.cpu_count() or 1) + 1  # they decode, and more would only take turns
MAX_WAITING = 256  # as many as may wait for the engine
_limiter = CapacityLimiter(MAX_THREADS)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Raises OverloadedError if too much waits already: better said now than a minute later."""
    waiting = _limiter.statistics().tasks_waiting
    if waiting >= MAX_WAITING:
        raise OverloadedError(f"{waiting} images wait to be decoded already; try again later")
    return await run_sync(work, *args, limiter=_limiter)
