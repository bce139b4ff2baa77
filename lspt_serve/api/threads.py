"""What would hold up the event loop runs in threads, and few wait for one."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio.to_thread import current_default_thread_limiter, run_sync

from lspt_serve.errors import OverloadedError

__all__ = ["in_thread"]

MAX_WAITING = 256  # as many as may wait for the engine
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Raises OverloadedError if too much waits already: better said now than a minute later."""
    waiting = current_default_thread_limiter().statistics().tasks_waiting
    if waiting >= MAX_WAITING:
        raise OverloadedError(f"{waiting} images wait to be decoded already; try again later")
    return await run_sync(work, *args)
