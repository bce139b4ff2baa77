"""A caller that costs little beside the server it measures: HTTP/1.1 over connections it keeps."""

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

__all__ = ["Caller", "Reply", "Way", "to_request"]

IDLE_S = 2.0  # a connection that nothing was sent on for longer is not used again: servers close it
BOUNDARY = "lspt-proof-boundary"
Way = Literal["body", "form", "json"]


class Reply(NamedTuple):
    """`headers` by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def to_request(
    host: str, path: str, image: bytes, way: Way = "body", field: str = "image"
) -> bytes:
    """A POST of an image: as the body itself, the file `field` of a form, or base64 in JSON."""
    content_type, body = "image/jpeg", image
    if way == "form":
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        opening = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; '
            'filename="image.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        )
        body = opening.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    elif way == "json":
        content_type = "application/json"
        body = json.dumps({field: base64.b64encode(image).decode()}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: float = 0.0

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        return cls(*await asyncio.open_connection(host, port, limit=2**20))

    async def ask(self, request: bytes) -> Reply:
        self.writer.write(request)
        await self.writer.drain()
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = dict(_split(line) for line in lines)
        body = await self._read_body(headers)
        self.used = time.monotonic()
        return Reply(int(first.split()[1]), headers, body)

    async def _read_body(self, headers: Mapping[str, str]) -> bytes:
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        parts = []
        while size := int(await self.reader.readline(), 16):
            parts.append((await self.reader.readexactly(size + 2))[:-2])
        await self.reader.readline()
        return b"".join(parts)

    def close(self) -> None:
        self.writer.close()


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


@dataclass
class Caller:
    """Asks over a connection that is free, or else over a new one."""

    host: str
    port: int
    timeout_s: float = 60.0
    _free: list[_Connection] = field(default_factory=list)

    async def ask(self, request: bytes) -> Reply:
        """Raises OSError, EOFError or TimeoutError where there is no whole answer."""
        connection = self._take() or await _Connection.open(self.host, self.port)
        try:
            reply = await asyncio.wait_for(connection.ask(request), self.timeout_s)
        except BaseException:
            connection.close()
            raise
        if reply.headers.get("connection", "").lower() == "close":
            connection.close()
        else:
            self._free.append(connection)
        return reply

    def _take(self) -> _Connection | None:
        while self._free:
            connection = self._free.pop()
            if time.monotonic() - connection.used < IDLE_S:
                return connection
            connection.close()
        return None

    def close(self) -> None:
        for connection in self._free:
            connection.close()
        self._free.clear()
