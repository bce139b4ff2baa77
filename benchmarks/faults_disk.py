"""The disk is full, or the folder of bundles is gone, while a server serves it."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from common import Target, progress
from proof_scene import Scene
from proof_server import Server, serve
from proof_traffic import Run, Start

from lspt_serve.bundle import load_bundle, save_bundle
from lspt_serve.errors import OutputError

__all__ = ["delete_store", "fill_home", "fill_store", "small_disk"]

DISK_MB = 16
TOKEN = "proof"
PHASE_S = 4.0
Targets = list[tuple[Target, str]]


@contextmanager
def small_disk(path: Path) -> Iterator[str]:
    """A file system of DISK_MB at `path`; gives why there is none, or nothing."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        yield mounted.stderr.strip() if mounted.returncode else ""
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(path)], check=False)


def fill(path: Path) -> None:
    """Until nothing more can be written."""
    with (path / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def delete_store(scene: Scene, start: Start) -> Targets:
    """The folder of bundles goes, as a disk does, is deleted, and comes back later."""
    bundles, gone = scene.folder / "deleted", scene.folder / "gone"
    shutil.copytree(scene.folder / "bundles", bundles)

    def delete() -> None:
        bundles.rename(gone)
        shutil.rmtree(gone)

    with serve(scene.folder, bundles=bundles) as server:
        run = _under_traffic(scene, server, start, delete)
        shutil.copytree(scene.folder / "bundles", gone)
        again = _under_traffic(scene, server, start, lambda: gone.rename(bundles))
    return _to_targets("folder of bundles deleted", scene, [run, again])


def fill_store(scene: Scene, start: Start) -> Targets:
    """A bundle and an alias are written where there is no room."""
    disk, name = scene.folder / "store-disk", "full disk of bundles"
    with small_disk(disk) as reason:
        if reason:
            return [(Target(f"{name}: failed", "at most", 0, None, reason), "")]
        bundles = disk / "bundles"
        shutil.copytree(scene.folder / "bundles", bundles)
        with serve(
            scene.folder, bundles=bundles, environment={"LSPT_ADMIN_TOKEN": TOKEN}
        ) as server:
            run = _under_traffic(scene, server, start, lambda: fill(disk))
            status = _set_alias(server, scene.names[0])
            refused = _is_refused(bundles / scene.names[0], bundles / "another")
            again = _under_traffic(scene, server, start, lambda: None)
            (disk / "filler").unlink()
            after = _set_alias(server, scene.names[0])
        whole = [load_bundle(bundles / task).name for task in scene.names]
    targets = _to_targets(name, scene, [run, again])
    note = f"an alias {status} on the full disk, {after} with room; a new bundle refused: {refused}"
    right = status == 503 and after == 200 and refused and whole == [*scene.names]
    return [
        *targets,
        (Target(f"{name}: refused and nothing lost", "at least", 1, float(right), note), ""),
    ]


def fill_home(scene: Scene, start: Start) -> Targets:
    """The workers' metrics are files; they grow where there is no room."""
    disk, name = scene.folder / "home-disk", "full disk of metrics"
    with small_disk(disk) as reason:
        if reason:
            return [(Target(f"{name}: failed", "at most", 0, None, reason), "")]
        with serve(scene.folder, environment={"BENTOML_HOME": disk / "bentoml"}) as server:
            workers = {each.pid for each in server.workers()}
            fill(disk)
            for number in range(200):  # series that were not there before
                if not _ask_wrong(server, number):
                    break
            run = _under_traffic(scene, server, start, lambda: None)
            died = len(workers - {each.pid for each in server.workers()})
    targets = _to_targets(name, scene, [run])
    return [*targets, (Target(f"{name}: workers that died", "at most", 0, died), "")]


def _under_traffic(scene: Scene, server: Server, start: Start, make: Callable[[], Any]) -> Run:
    answer = scene.ask(server, start, begin=time.monotonic() + 0.2, seconds=PHASE_S)
    time.sleep(PHASE_S / 4)
    make()
    return answer.result()


def _set_alias(server: Server, task: str) -> int:
    return httpx.put(
        f"{server.url}/tasks/{task}/aliases/stable",
        json={"version": 1},
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=20,
    ).status_code


def _is_refused(bundle: Path, copy: Path) -> bool:
    try:
        save_bundle(load_bundle(bundle), copy)
    except OutputError:
        return not copy.exists()
    return False


def _ask_wrong(server: Server, number: int) -> bool:
    """Whether there was an answer."""
    paths = ("/classify", "/classify_many", f"/tasks/{number}", "/v2/nothing")
    try:
        httpx.post(server.url + paths[number % len(paths)], content=os.urandom(8), timeout=5)
    except httpx.TransportError as error:
        progress(f"no answer to request {number} on a full disk: {error!r}")
        return False
    return True


def _to_targets(name: str, scene: Scene, runs: list[Run]) -> Targets:
    failed, wrong, count = 0, 0, 0
    for run in runs:
        failures, faults = scene.judge(run)
        failed, wrong, count = (
            failed + failures.total(),
            wrong + faults.total(),
            count + len(run.seen),
        )
    return [
        (Target(f"{name}: failed", "at most", 0, failed, f"of {count}"), ""),
        (Target(f"{name}: wrong answers", "at most", 0, wrong, f"of {count}"), ""),
    ]
