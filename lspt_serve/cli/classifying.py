"""Files to answers, a bounded number at a time, in the order of the files."""

import asyncio
import os
import random
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lspt_serve.client import AsyncClient, error_code
from lspt_serve.errors import DataError, LSPTError, UnavailableError, name_some
from lspt_serve.schemas import Item, ItemFailure

__all__ = ["ATTEMPTS", "STDIN", "Source", "classify_files", "find_images"]

STDIN = "-"
ATTEMPTS = 8  # at what a server is too busy for
TASKS_AT_ONCE = 16  # in a request; an image of more tasks is sent again for the rest
BUSY = ("overloaded", "unavailable")


@dataclass(frozen=True)
class Source:
    """A file and its name as text, or bytes that have no file."""

    name: str
    image: Path | bytes


def find_images(given: Sequence[Path], formats: Sequence[str]) -> list[Source]:
    """Files as they are given, and those in folders, and in theirs, whose suffix is of a format.

    Raises:
        DataError: there is none.
    """
    Image.init()
    known = Image.registered_extensions().items()
    suffixes = {suffix for suffix, file_format in known if file_format in formats}
    sources = [source for path in given for source in _find(path, suffixes)]
    if not sources:
        wanted = name_some(sorted(suffixes), limit=len(suffixes))
        raise DataError(f"no images in {name_some(given)}; wanted files that end in {wanted}")
    return sources


def _find(path: Path, suffixes: set[str]) -> Iterator[Source]:
    if str(path) == STDIN:
        yield Source(STDIN, sys.stdin.buffer.read())
    elif path.is_dir():
        inside = (file for file in path.rglob("*") if file.suffix.lower() in suffixes)
        yield from (Source(_to_text(file), file) for file in sorted(inside) if file.is_file())
    else:
        yield Source(_to_text(path), path)


def _to_text(path: Path) -> str:
    """Names of files may be bytes that are no text."""
    return os.fsencode(path).decode("utf-8", "replace")


async def classify_files(
    client: AsyncClient,
    sources: Sequence[Source],
    tasks: Sequence[str],
    *,
    pairs: int,
    **asked: Any,
) -> AsyncGenerator[list[Item], None]:
    """The items of each image, its tasks as they were given; `pairs` of these are under way.

    What is wrong with an image, or takes too long, is the error of its items.

    Raises:
        UnavailableError: the server is gone.
    """
    window = max(2, pairs // min(len(tasks), TASKS_AT_ONCE))
    running: deque[asyncio.Task[list[Item]]] = deque()
    try:
        for number, source in enumerate(sources):
            if len(running) == window:
                yield await running.popleft()
            running.append(asyncio.create_task(_classify(client, number, source, tasks, asked)))
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _classify(
    client: AsyncClient, number: int, source: Source, tasks: Sequence[str], asked: dict[str, Any]
) -> list[Item]:
    items: list[Item] = []
    for start in range(0, len(tasks), TASKS_AT_ONCE):
        items += await _ask(client, source.image, tasks[start : start + TASKS_AT_ONCE], asked)
    return [item.model_copy(update={"image": number, "file": source.name}) for item in items]


async def _ask(
    client: AsyncClient, image: Path | bytes, tasks: Sequence[str], asked: dict[str, Any]
) -> list[Item]:
    items: list[Item] = []
    for attempt in range(ATTEMPTS):
        await asyncio.sleep(attempt * random.uniform(1, 1.5))
        try:
            items = await client.classify_many([image], tasks, **asked)
        except UnavailableError:
            raise
        except LSPTError as error:
            failure = ItemFailure(code=error_code(error), message=str(error))
            return [Item(image=0, file=None, task=task, error=failure) for task in tasks]
        if not any(item.error and item.error.code in BUSY for item in items):
            break
    return items
