"""What would hold up the event loop runs in threads, of which there are few, as may few wait."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar, TypeVarTuple

from lspt_serve.bundle import Bundle
from lspt_serve.cores import usable_cores
from lspt_serve.errors import OverloadedError
from lspt_serve.runtime import Classifier

__all__ = ["DECODING", "READING", "Threads", "find_bundle"]

MAX_WAITING = 256  # as many as may wait for the engine
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Threads:
    """A thread that somebody waits for no longer has its place until it is done."""

    def __init__(self, name: str, count: int, *, max_waiting: int = MAX_WAITING) -> None:
        self._name = name
        self._pool = ThreadPoolExecutor(count, name)
        self._limit = count + max_waiting
        self._taken = 0
        self._lock = threading.Lock()

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Raises OverloadedError if too much waits: better said now than a minute later."""
        return await _outcome(self._submit(work, *args))

    def _submit(self, work: Callable[[*Ts], T], *args: *Ts) -> "Future[T]":
        with self._lock:
            if self._taken >= self._limit:
                raise OverloadedError(f"{self._taken} wait for {self._name}; try again later")
            context = copy_context()
            calls = [lambda: context.run(work, *args)]
            future = self._pool.submit(lambda: calls.pop()())
            self._taken += 1
        future.add_done_callback(partial(self._leave, calls))
        return future

    def _leave(self, calls: list[Callable[[], T]], future: "Future[T]") -> None:
        calls.clear()  # whoever left before: the pool has the future until its turn
        with self._lock:
            self._taken -= 1


async def _outcome(future: "Future[T]") -> T:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        # the future holds this error, which would hold all that called, and their images with them
        raise asyncio.CancelledError from None


DECODING = Threads("decoding", usable_cores() + 1)  # more would only take turns with the engine
READING = Threads("reading", 8)  # bundles that are not in memory, from whatever disk


async def find_bundle(classifier: Classifier, reference: str) -> Bundle:
    """The task, if an image of it may be submitted now; one in memory waits for no disk.

    Raises UnknownTaskError, OverloadedError, StorageError.
    """
    if bundle := classifier.held(reference):
        return bundle
    return await READING.run(classifier.find, reference)
