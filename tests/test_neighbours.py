"""Workers that see what the others run: with processes of their own, which die of a signal."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lspt_serve.neighbours import (
    NEIGHBOURS,
    Neighbours,
    create_neighbours,
    find_neighbours,
)

WORKER = """
import sys
from pathlib import Path
from lspt_serve.neighbours import Neighbours

worker = Neighbours(Path(sys.argv[1]))
worker.tell(int(sys.argv[2]))
print("told", flush=True)
sys.stdin.read()
"""


@contextmanager
def worker(path: Path, running: int) -> Iterator[subprocess.Popen[str]]:
    """Killed at the end."""
    words = [sys.executable, "-c", WORKER, str(path), str(running)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "told\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "running"
    create_neighbours(path, 3)
    return path


def test_each_sees_what_the_others_run(path: Path) -> None:
    here = Neighbours(path)
    assert (here.num_workers, here.others()) == (3, 0)
    here.tell(5)
    assert here.others() == 0
    with worker(path, 2), worker(path, 300):
        assert here.others() == 302


def test_who_was_killed_runs_nothing_and_leaves_its_place_to_the_next(path: Path) -> None:
    here = Neighbours(path)
    with worker(path, 2):
        with worker(path, 3):
            assert here.others() == 5
        assert here.others() == 2
        with worker(path, 1):
            assert here.others() == 3


def test_there_are_no_more_than_places(path: Path) -> None:
    full = pytest.raises(OSError, match="running: 3 workers have a place there already")
    with worker(path, 0), worker(path, 0), worker(path, 0), full:
        Neighbours(path)


def test_one_that_is_no_worker_has_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_neighbours.cache_clear()
    monkeypatch.delenv(NEIGHBOURS, raising=False)
    assert find_neighbours() is None
    find_neighbours.cache_clear()
    monkeypatch.setenv(NEIGHBOURS, str(path))
    try:
        found = find_neighbours()
        assert found
        assert found.num_workers == 3
        assert find_neighbours() is found  # a second one would take the place of the first
    finally:
        find_neighbours.cache_clear()


def test_a_worker_that_cannot_know_of_the_others_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find_neighbours.cache_clear()
    monkeypatch.setenv(NEIGHBOURS, str(tmp_path / "gone"))
    try:
        assert find_neighbours() is None
    finally:
        find_neighbours.cache_clear()
    assert "no more than its share of the cores: [Errno 2]" in caplog.text
