"""A real `lspt serve` in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

LSPT = [sys.executable, "-c", "from lspt_serve.cli import main; main()"]


@contextmanager
def served(*options: object, folder: Path) -> Iterator[str]:
    """The address of a server of FOLDER/graph and FOLDER/bundles; it ends with the block."""
    port, log = _free_port(), folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*LSPT, "serve", "--port", str(port), *map(str, options)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "BENTOML_HOME": str(folder / "bentoml")},
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, server, log)
        yield url
    finally:
        _end(server)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _wait_until_ready(url: str, server: "subprocess.Popen[str]", log: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", timeout=20).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail(f"not ready after 90 s: {log.read_text()}")


def _end(server: "subprocess.Popen[str]") -> None:
    """End the server and the processes that it started."""
    for number, patience_s in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        try:
            os.killpg(server.pid, number)
            server.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
