"""Connections that never send all, and connections that are dropped at once."""

import asyncio
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress

from common import Target, percentile
from proof_client import Caller, to_request
from proof_scene import Scene
from proof_server import Server, count_files, serve, wait_until

__all__ = ["drop_connections", "hold_connections"]

HEAD = b"POST /classify?task=task00 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
BEGINNINGS = (HEAD, HEAD + b"Content-Length: 100000\r\n\r\n" + bytes(100))  # of headers, of a body
AT_ONCE_S, BUSY_S = 0.5, 1.0
SPARE_FILES = 8  # connections of our own that the server keeps a while
TOGETHER = 250
Targets = list[tuple[Target, str]]


def hold_connections(scene: Scene, count: int, seconds: float) -> Targets:
    """So many that send a byte a second of a header or a body that does not end."""
    with serve(scene.folder) as server:
        files = count_files(server.workers())
        taken, open_at_end = asyncio.run(_hold(scene, server, count, seconds))
        after = _settle(scene, server, files)
    name, most = f"{count} half-sent requests", percentile(taken, 0.99)
    note = (
        f"of {len(taken)}; p50 {percentile(taken, 0.5):.3f} s; {open_at_end} still held at the end"
    )
    return [
        (Target(f"{name}: p99 of others", "at most", BUSY_S, most, note), "s"),
        *_after(name, after),
    ]


def drop_connections(scene: Scene, count: int) -> Targets:
    """Half are closed, half reset; half of each had sent the beginning of a request."""
    with serve(scene.folder) as server:
        files = count_files(server.workers())
        began = time.monotonic()
        asyncio.run(_drop(server, count))
        taken = time.monotonic() - began
        after = _settle(scene, server, files)
    return _after(f"{count} connections dropped", after, note=f"in {taken:.1f} s")


async def _hold(
    scene: Scene, server: Server, count: int, seconds: float
) -> tuple[list[float], int]:
    """Seconds of other requests meanwhile, and how many connections the server left open."""
    held = []
    for number in range(count):
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(BEGINNINGS[number % len(BEGINNINGS)])
        held.append((reader, writer))
    taken: list[float] = []
    end = time.monotonic() + seconds
    caller = Caller(server.host, server.port)
    while time.monotonic() < end:
        for _, writer in held:
            writer.write(b"x")
        for _ in range(5):
            taken.append(await _ask(scene, caller, server))
            await asyncio.sleep(0.15)
    left = sum(not reader.at_eof() for reader, _ in held)
    for _, writer in held:
        writer.close()
    caller.close()
    return taken, left


async def _ask(scene: Scene, caller: Caller, server: Server) -> float:
    started = time.monotonic()
    reply = await caller.ask(
        to_request(server.host, f"/classify?task={scene.names[0]}", scene.images[0])
    )
    if reply.status != 200:
        raise SystemExit(f"{reply.status}: {reply.body[:300]!r}")
    return time.monotonic() - started


async def _drop(server: Server, count: int) -> None:
    for first in range(0, count, TOGETHER):
        numbers = range(first, min(count, first + TOGETHER))
        await asyncio.gather(*(_drop_one(server, number) for number in numbers))


async def _drop_one(server: Server, number: int) -> None:
    _, writer = await asyncio.open_connection(server.host, server.port)
    if number % 4 >= 2:
        writer.write(HEAD)
    if number % 2:
        own: socket.socket = writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    writer.close()


def _settle(scene: Scene, server: Server, files: int) -> tuple[float, int, float]:
    """Of afterwards: seconds of a request, descriptors more than before, seconds until gone."""

    async def once() -> float:
        caller = Caller(server.host, server.port)
        taken = await _ask(scene, caller, server)
        caller.close()
        return taken

    taken, began = asyncio.run(once()), time.monotonic()
    with suppress(SystemExit):
        wait_until(
            lambda: count_files(server.workers()) <= files + SPARE_FILES,
            timeout_s=15,
            what="descriptors back",
        )
    return taken, count_files(server.workers()) - files, time.monotonic() - began


def _after(name: str, after: Sequence[float], *, note: str = "") -> Targets:
    taken, more, waited = after
    back = f"after {waited:.1f} s"
    return [
        (Target(f"{name}: an answer afterwards", "at most", AT_ONCE_S, taken, note), "s"),
        (Target(f"{name}: descriptors left open", "at most", SPARE_FILES, more, back), ""),
    ]
