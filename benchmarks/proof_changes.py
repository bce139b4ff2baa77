"""Tasks that come, change and go under traffic, and whether an answer is one that there was."""

import json
import math
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from proof_tasks import TOLERANCE, Answers
from proof_traffic import Seen

from lspt_serve.bundle import Bundle, save_bundle

__all__ = [
    "Change",
    "Folder",
    "Lives",
    "Tasks",
    "find_failures",
    "find_fault",
    "judge",
    "plan_changes",
    "tasks_at",
]

NOTICED_S = 3.0  # a server looks at its folder every second
AHEAD_S = 1.0  # a task that is about to go is not asked any more
Version = tuple[str, int]
Lives = dict[Version, tuple[float, float]]  # from when until when its files lay there, at most


@dataclass(frozen=True)
class Change:
    """`at_s` seconds after the start this version of a task is written, or the task removed."""

    at_s: float
    kind: Literal["add", "replace", "remove"]
    task: str
    version: int


def plan_changes(names: Sequence[str], count: int, seconds: float) -> list[Change]:
    """So many additions, replacements (from the first name on) and removals (from the last on)."""
    if 2 * count > len(names):
        raise ValueError(f"{count} changes need at least {2 * count} tasks, got {len(names)}")
    changes = []
    for number in range(count):
        at_s, step = seconds * number / count, seconds / count / 3
        changes += [
            Change(at_s, "add", f"new{number:04}", 1),
            Change(at_s + step, "replace", names[number], 2),
            Change(at_s + 2 * step, "remove", names[-1 - number], 1),
        ]
    return changes


def tasks_at(names: Sequence[str], changes: Sequence[Change]) -> "Tasks":
    """What may be asked when; a server may take NOTICED_S to see what was added."""
    open_s = dict.fromkeys(names, (0.0, math.inf))
    for change in changes:
        if change.kind == "add":
            open_s[change.task] = (change.at_s + NOTICED_S, math.inf)
        elif change.kind == "remove":
            open_s[change.task] = (0.0, change.at_s - AHEAD_S)
    return Tasks(open_s)


@dataclass(frozen=True)
class Tasks:
    """Task -> from when until when it may be asked, in seconds after the start."""

    open_s: Mapping[str, tuple[float, float]]

    def draw(self, rng: random.Random, at_s: float) -> str:
        names = [*self.open_s]
        while True:
            name = rng.choice(names)
            first, last = self.open_s[name]
            if first <= at_s < last:
                return name


@dataclass
class Folder:
    """A folder of bundles that changes as planned, in a thread; `lives` says what lay there when.

    Args:
        bundles: every version that is written.
    """

    path: Path
    bundles: Mapping[Version, Bundle]
    lives: Lives = field(default_factory=dict)
    done: int = 0

    @contextmanager
    def changing(self, changes: Iterable[Change], start: float) -> Iterator[None]:
        """While the block runs, and until all are made; not if it is stopped."""
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(changes, start, stop), name="changes")
        thread.start()
        try:
            yield
        except BaseException:
            stop.set()
            raise
        finally:
            thread.join()

    def _run(self, changes: Iterable[Change], start: float, stop: threading.Event) -> None:
        for change in changes:
            if stop.wait(max(0.0, start + change.at_s - time.monotonic())):
                return
            self.make(change)

    def make(self, change: Change) -> None:
        own = self.path / change.task
        began = time.monotonic()
        if change.kind == "remove":
            shutil.rmtree(own)
        else:
            save_bundle(self.bundles[change.task, change.version], own)
            self.lives[change.task, change.version] = (began, math.inf)
        gone = change.version - (change.kind == "replace")
        if change.kind != "add":
            first, _ = self.lives[change.task, gone]
            self.lives[change.task, gone] = (first, time.monotonic())
        self.done += 1


def find_fault(seen: Seen, answers: Answers, lives: Lives) -> str | None:
    """What is wrong with an answer of status 200: of another time, task or image; None: nothing."""
    record = json.loads(seen.body)
    version = (record["task"], record["version"])
    if record["task"] != seen.task:
        return f"asked {seen.task}, answered by {record['task']}"
    if version not in lives:
        return f"{seen.task} never had a version {record['version']}"
    first, last = lives[version]
    if seen.received < first or seen.sent > last + NOTICED_S:
        return f"{seen.task}@{record['version']} was not there"
    logits = np.full(len(record["predictions"]), np.nan)
    for prediction in record["predictions"]:
        logits[prediction["index"]] = prediction["score"]
    wanted = answers[(seen.image, *version)]
    if logits.shape != wanted.shape or not np.abs(logits - wanted).max() <= TOLERANCE:
        return f"{seen.task}@{record['version']} answered for another task, version or image"
    return None


def judge(seen: Iterable[Seen], answers: Answers, lives: Lives) -> Counter[str]:
    """The faults of all answers of status 200, each with how often it was."""
    faults = (find_fault(each, answers, lives) for each in seen if each.status == 200)
    return Counter(fault for fault in faults if fault is not None)


def find_failures(seen: Iterable[Seen], lives: Lives) -> Counter[int]:
    """Statuses that are not 200, each with how often; 404 is right where the task may be gone."""
    return Counter(
        each.status
        for each in seen
        if each.status != 200 and not (each.status == 404 and not _was_there(each, lives))
    )


def _was_there(seen: Seen, lives: Lives) -> bool:
    """Whether all servers had the task from the request to its answer."""
    spans = [span for (task, _), span in lives.items() if task == seen.task]
    first, last = min(span[0] for span in spans), max(span[1] for span in spans)
    return first + NOTICED_S <= seen.sent and seen.received <= last
