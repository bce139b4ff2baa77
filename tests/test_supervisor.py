"""The process that looks after BentoML's workers."""

import signal
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from toys_server import Server, create_served, serving

from lspt_serve import supervisor
from lspt_serve.cores import THREADS
from lspt_serve.models import Backbone
from lspt_serve.neighbours import NEIGHBOURS, Neighbours
from lspt_serve.supervisor import CHECK_S, HEAPS, MEMORY

pytestmark = pytest.mark.slow

WORKER = "_bentoml_impl.worker.service"
METRICS = "PROMETHEUS_MULTIPROC_DIR"


@pytest.fixture(scope="module")
def folder(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_served(tiny_backbone, tmp_path_factory)


def workers_of(server: Server) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if WORKER in child.cmdline():
                found.append(child)
    return found


def worker_of(server: Server) -> psutil.Process | None:
    return next(iter(workers_of(server)), None)


def that_lock(path: Path) -> set[int]:
    """Processes, by what the system says of locks: to try for one would be in their way."""
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    file = f":{path.stat().st_ino}"
    return {int(words[4]) for words in locks if words[1] == "POSIX" and words[5].endswith(file)}


def test_worker_that_was_killed_is_started_again(folder: Path) -> None:
    with serving(folder=folder, environment={"LSPT_ENGINE": "onnxruntime"}) as server:
        killed = worker_of(server)
        assert killed
        killed.send_signal(signal.SIGKILL)
        end = time.monotonic() + 60
        while worker_of(server) in (None, killed):
            assert time.monotonic() < end, server.log.read_text()
            time.sleep(0.05)
        server.wait_until_ready()

        assert httpx.get(f"{server.url}/tasks").json()["tasks"][0]["name"] == "colour"


def test_workers_know_of_one_another_and_one_that_is_new_has_the_place_of_the_dead(
    folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "bentoml.yaml"
    config.write_text("services: {lspt: {workers: 2}}\n")
    environment = {"LSPT_ENGINE": "onnxruntime", "BENTOML_CONFIG": config}

    with serving(folder=folder, environment=environment) as server:
        killed, other = workers_of(server)
        path = Path(killed.environ()[NEIGHBOURS])
        assert other.environ()[NEIGHBOURS] == str(path)

        def wait_until_idle() -> set[int]:
            """Both have a place, and run nothing: their engines are tried before they serve."""
            end = time.monotonic() + 60
            while True:
                pids = {worker.pid for worker in workers_of(server)}
                if len(pids) == 2 and that_lock(path) == pids and path.read_bytes() == bytes(8):
                    return pids
                assert time.monotonic() < end, server.log.read_text()
                time.sleep(0.05)

        assert wait_until_idle() == {killed.pid, other.pid}
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert other.pid in wait_until_idle()
    assert not path.exists()


def test_container_ends_with_its_only_worker(folder: Path) -> None:
    environment = {"LSPT_ENGINE": "onnxruntime", "BENTOML_CONTAINERIZED": "true"}
    with serving(folder=folder, environment=environment) as server:
        killed = worker_of(server)
        assert killed
        killed.send_signal(signal.SIGKILL)

        server.process.wait(timeout=60)


def test_workers_share_the_cores_and_have_one_heap_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create(workers: int) -> Any:
        watcher = SimpleNamespace(numprocesses=workers, env={"A": "1"})
        return supervisor._create_attentive_arbiter([watcher]), watcher.env

    made: dict[str, Any] = {}
    monkeypatch.setattr(supervisor, "_create_arbiter", lambda watchers, **known: made | known)
    monkeypatch.setattr(supervisor, "usable_cores", lambda: 9)
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.setenv(HEAPS, "3")
    assert create(1) == ({"check_delay": CHECK_S}, {"A": "1"})
    four = create(4)[1]
    assert Neighbours(Path(four.pop(NEIGHBOURS))).num_workers == 4
    assert four == {"A": "1", THREADS: "2"}
    assert create(16)[1][THREADS] == "1"
    monkeypatch.setenv(THREADS, "5")
    assert create(4)[1] == {"A": "1"}
    monkeypatch.delenv(HEAPS)
    assert create(4)[1] == {"A": "1", HEAPS: "1"}


@pytest.mark.skipif(not MEMORY.is_dir(), reason=f"there is no {MEMORY}")
def test_metrics_are_in_memory_apart_for_each_server_and_gone_with_it(folder: Path) -> None:
    with serving(folder=folder, environment={"LSPT_ENGINE": "onnxruntime"}) as server:
        worker = worker_of(server)
        assert worker
        metrics = Path(worker.environ()[METRICS])
        assert metrics.parent == MEMORY
        assert worker.environ()[HEAPS] == "1"
        assert any(metrics.glob(f"*_{worker.pid}.db"))
        with serving(folder=folder, environment={"LSPT_ENGINE": "onnxruntime"}) as second:
            other = worker_of(second)
            assert other
            assert Path(other.environ()[METRICS]) != metrics
            assert any(metrics.glob(f"*_{worker.pid}.db"))

    assert not metrics.exists()
