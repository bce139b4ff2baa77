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


def worker_of(server: Server) -> psutil.Process | None:
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if WORKER in child.cmdline():
                return child
    return None


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
