"""A real server in processes of its own, and what the system says of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

__all__ = ["Server", "count_files", "free_port", "run_server", "serve", "wait_until"]

WORKER = "_bentoml_impl.worker.service"  # in the command line of BentoML's workers
SERVES = " task(s)"  # in the log of each of them: connections come to those that serve already
READY_S, END_S = 120.0, 15.0
STEP_S = 0.05


@dataclass(frozen=True)
class Server:
    """Runs already, and is ready; `log` is what it says."""

    host: str
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def workers(self) -> list[psutil.Process]:
        """BentoML's processes that answer, of those that live."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in children if WORKER in _words(each)]

    def memory(self) -> int:
        """Bytes of its workers that are in memory."""
        found = 0
        for worker in self.workers():
            try:
                found += worker.memory_info().rss
            except psutil.Error:  # it ended meanwhile
                continue
        return found

    def is_ready(self, path: str = "/readyz") -> bool:
        try:
            with urlopen(self.url + path, timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


def _words(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline()]
    except psutil.Error:  # it ended meanwhile
        return []


def count_files(processes: Sequence[psutil.Process]) -> int:
    """Descriptors that they have open."""
    files: int = sum(process.num_fds() for process in processes)
    return files


def wait_until(is_so: Callable[[], object], *, timeout_s: float, what: str) -> float:
    """Seconds until a function gives something true; ends the script where it never does."""
    started = time.monotonic()
    while time.monotonic() - started < timeout_s:
        if is_so():
            return time.monotonic() - started
        time.sleep(STEP_S)
    raise SystemExit(f"{what}: not in {timeout_s:g} s")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextmanager
def serve(
    folder: Path,
    *,
    workers: int = 1,
    bundles: Path | None = None,
    engine: str = "auto",
    precision: str = "fp32",
    environment: Mapping[str, object] | None = None,
) -> Iterator[Server]:
    """`lspt serve` of FOLDER/graph and FOLDER/bundles on the CPU, until the block ends."""
    config = folder / f"{workers}-workers.yaml"
    config.write_text(f"services: {{lspt: {{workers: {workers}}}}}\n")
    command = [sys.executable, "-m", "lspt_serve", "serve", "--device", "cpu"]
    command += [
        "--engine",
        engine,
        "--precision",
        precision,
        "--graph",
        str(folder / "graph"),
        "--bundles",
        str(bundles or folder / "bundles"),
    ]
    added = {"BENTOML_CONFIG": config, "BENTOML_HOME": folder / "bentoml", **(environment or {})}
    with run_server([*command, "--port"], folder, environment=added) as server:

        def all_serve() -> bool:
            return server.log.read_text().count(SERVES) >= workers

        wait_until(all_serve, timeout_s=READY_S, what=f"{workers} workers ready")
        yield server


@contextmanager
def run_server(
    command: Sequence[str],
    folder: Path,
    *,
    ready: str = "/readyz",
    environment: Mapping[str, object],
) -> Iterator[Server]:
    """A command that is given its port as its last word; it and all that it started end here.

    Args:
        ready: the path that is answered with 200 once it serves.
    """
    port = free_port()
    log = folder / f"server-{port}.log"
    variables = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml")}
    variables |= {name: str(value) for name, value in environment.items()}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(port)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,
        )
    server = Server("127.0.0.1", port, process, log)

    def serves() -> bool:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}:\n{log.read_text()}")
        return server.is_ready(ready)

    try:
        wait_until(serves, timeout_s=READY_S, what=f"{' '.join(command[:4])} ready")
        yield server
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
