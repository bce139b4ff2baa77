"""A real server in processes of its own: `lspt serve`, or `bentoml serve` of a service or bento."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from toys import export_once
from toys_api import save_tasks

from lspt_serve.models import Backbone

LSPT = [sys.executable, "-c", "from lspt_serve.cli import main; main()"]
SERVICE = "lspt_serve.service:LSPTService"


@dataclass(frozen=True)
class Server:
    """Runs already, and is ready."""

    url: str
    process: "subprocess.Popen[str]"
    log: Path

    def wait_until_ready(self, *, timeout_s: float = 90) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/readyz", timeout=20).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        pytest.fail(f"not ready after {timeout_s} s: {self.log.read_text()}")

    def end(self) -> None:
        """The server and the processes that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                return


def create_served(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph and two bundles, as `serving` and `served` take it."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "graph").symlink_to(export_once(backbone, tmp_path_factory))
    save_tasks(backbone, folder / "bundles")
    return folder


@contextmanager
def served(*options: object, folder: Path) -> Iterator[str]:
    """The address of an `lspt serve` of FOLDER/graph and FOLDER/bundles, until the block ends."""
    with running([*LSPT, "serve"], options, folder=folder, environment={}) as server:
        yield server.url


@contextmanager
def serving(
    target: str | Path = SERVICE,
    *,
    folder: Path,
    python: str | Path = sys.executable,
    environment: Mapping[str, object],
) -> Iterator[Server]:
    """A `bentoml serve`, from `folder`, whose graph and bundles it takes if need be.

    Args:
        environment: what is added to this process's; None takes a variable away.
    """
    command = [python, "-m", "bentoml", "serve", target, "--host", "127.0.0.1"]
    with running(command, [], folder=folder, environment=environment) as server:
        yield server


@contextmanager
def running(
    command: Sequence[object],
    options: Sequence[object],
    *,
    folder: Path,
    environment: Mapping[str, object],
) -> Iterator[Server]:
    """The command with a --port that is free, from `folder`, as `serving` has it."""
    port, log = free_port(), folder / "server.log"
    added = {"BENTOML_HOME": folder / "bentoml", "BENTOML_DO_NOT_TRACK": True, **environment}
    variables = {**os.environ, **{name: str(value) for name, value in added.items()}}
    for name in (name for name, value in added.items() if value is None):
        del variables[name]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command), "--port", str(port), *map(str, options)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
