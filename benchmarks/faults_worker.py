"""A worker is killed under load: when is it back, and what becomes of the requests."""

import signal
import time
from collections.abc import Sequence

from common import Target, progress
from proof_scene import Scene
from proof_server import Server, serve, wait_until
from proof_traffic import Run, Seen, Start

__all__ = ["kill_workers"]

MOST_S, PATIENCE_S = 5.0, 30.0
BEFORE_S, AFTER_S = 2.0, 3.0
IN_FLIGHT_S = 1.0  # what was sent to a worker before its end may be lost with it
READY = "serving "  # a worker's line in the log once it can answer, and how it begins
Targets = list[tuple[Target, str]]


def kill_workers(scene: Scene, start: Start, counts: Sequence[int]) -> Targets:
    return [target for count in counts for target in _kill_one(scene, start, count)]


def _kill_one(scene: Scene, start: Start, count: int) -> Targets:
    name = f"kill -9, {count} worker(s)"
    with serve(scene.folder, workers=count) as server:
        wait_until(lambda: _starts(server) >= count, timeout_s=PATIENCE_S, what="all workers")
        began, seconds = time.monotonic() + 0.5, BEFORE_S + PATIENCE_S
        answer = scene.ask(server, start, begin=began, seconds=seconds)
        time.sleep(0.5 + BEFORE_S)
        killed, before = time.monotonic(), _starts(server)
        server.workers()[0].send_signal(signal.SIGKILL)
        back: float | None = None
        while back is None and time.monotonic() < began + seconds - AFTER_S:
            if _starts(server) > before:
                back = time.monotonic() - killed
            time.sleep(0.05)
        run = answer.result()
        ended = server.process.poll()
    failed, wrong = scene.judge(run)
    for fault, number in wrong.items():
        progress(f"{number} x {fault}")
    lost = [each for each in run.seen if each.status != 200]
    late = [each for each in lost if each.sent > killed + IN_FLIGHT_S]
    note = f"{longest_gap(run, killed):.1f} s without an answer at most"
    if ended is not None:
        note = f"the server ended with {ended}"
    return [
        (Target(f"{name}: back", "at most", MOST_S, back, note), "s"),
        (Target(f"{name}: wrong answers", "at most", 0, wrong.total(), f"of {len(run.seen)}"), ""),
        (
            Target(
                f"{name}: failed, sent {IN_FLIGHT_S:g} s after it or later",
                "at most",
                0,
                len(late),
                f"{len(lost)} of {len(run.seen)} in all, {dict(failed)} by status, 0 for none",
            ),
            "",
        ),
    ]


def _starts(server: Server) -> int:
    """How many times a worker came to serve."""
    lines = server.log.read_text(errors="replace").splitlines()
    return sum(line.rstrip().endswith("task(s)") and READY in line for line in lines)


def longest_gap(run: Run, since: float) -> float:
    """Seconds without any answer of status 200, after a moment."""
    answered: list[Seen] = [each for each in run.answered if each.received >= since]
    times = [since, *sorted(each.received for each in answered)]
    end = max([since, run.start + run.seconds])
    return max(b - a for a, b in zip(times, [*times[1:], end], strict=True))
