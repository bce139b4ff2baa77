"""The clock of the machine jumps while a server serves: by a day forward, then two back.

A real clock belongs to all that runs on the machine, so it is Python's that jumps here: time.time
of the server's processes. What measures spans is to go by time.monotonic.
"""

import time
from email.utils import parsedate_to_datetime
from urllib.request import urlopen

from common import Target, percentile
from proof_scene import Scene, with_hook
from proof_server import Server, serve
from proof_traffic import Start

__all__ = ["jump_clock"]

DAY_S = 86400
PHASE_S = 3.0
MOST_S = 1.0
HOOK = """
import time

real, path = time.time, {path!r}

def jumped():
    try:
        with open(path) as file:
            return real() + float(file.read() or 0)
    except OSError:
        return real()

time.time = jumped
"""
Targets = list[tuple[Target, str]]


def jump_clock(scene: Scene, start: Start) -> Targets:
    jump = scene.folder / "jump"
    variables = with_hook(scene.folder / "clock-hook", HOOK.format(path=str(jump)))
    with serve(scene.folder, environment=variables) as server:
        answer = scene.ask(server, start, begin=time.monotonic() + 0.2, seconds=3 * PHASE_S)
        shown = []
        for days in (1, -1):
            time.sleep(PHASE_S)
            jump.write_text(str(days * DAY_S))
            time.sleep(PHASE_S / 2)
            shown.append(round((_read_date(server) - time.time()) / DAY_S))
        run = answer.result()
    if shown != [1, -1]:
        raise SystemExit(f"the server's clock did not jump: it is {shown} days ahead")
    failed, wrong = scene.judge(run)
    most = percentile(run.latencies_s() or [60.0], 0.99)
    count = f"of {len(run.seen)}; its Date header jumped by {shown} days"
    return [
        (Target("clock jumps: failed", "at most", 0, failed.total(), count), ""),
        (Target("clock jumps: wrong answers", "at most", 0, wrong.total(), count), ""),
        (Target("clock jumps: p99", "at most", MOST_S, most), "s"),
    ]


def _read_date(server: Server) -> float:
    with urlopen(f"{server.url}/livez", timeout=10) as answer:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()
