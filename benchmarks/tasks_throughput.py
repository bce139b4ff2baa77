"""Throughput of batches of many tasks, ours beside what one does without it; see bench_tasks.py."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from common import (
    Seconds,
    check_equal,
    max_difference,
    paired_ratio,
    progress,
    spread,
    take_turns,
)
from numpy.typing import NDArray
from tasks_arms import (
    Answer,
    Sessions,
    Setup,
    by_session,
    create_classifier,
    grouped,
    in_one_run,
    mixed,
    open_store,
    swapped,
    to_probabilities,
)
from tasks_memory import to_ms
from traffic import PATTERNS, Traffic, draw_batches
from vits import task_name

from lspt_serve.reference import reference_images
from lspt_serve.runtime import Classifier

__all__ = ["ENGINE", "OURS", "Bench", "measure_cells", "measure_scale", "tolerance"]

OURS, ENGINE, GROUPED, SESSIONS, TORCH = "ours", "engine", "grouped", "sessions", "torch"
SWITCHING = (GROUPED, SESSIONS, TORCH)
Array = NDArray[np.float32]


class Bench:
    """What all measurements on one setup share: images, classifiers by number of tasks, options."""

    def __init__(self, setup: Setup, args: Namespace) -> None:
        self.setup, self.args = setup, args
        self.images = reference_images(args.batch_size, setup.backbone.preprocess.img_size)
        self.tolerance = tolerance(args.precision)
        self.classifiers: dict[int, Classifier] = {
            count: create_classifier(setup, open_store(setup, count), args.batch_size)
            for count in args.tasks
        }

    def arms(self, count: int, sessions: Sessions) -> dict[str, Answer]:
        classifier, engine = self.classifiers[count], self.setup.engine
        store, images = classifier.store, self.images
        arms: dict[str, Answer] = {
            OURS: mixed(classifier, images),
            ENGINE: in_one_run(engine, store, images),
            GROUPED: grouped(engine, store, images),
            TORCH: swapped(self.setup, store, images),
        }
        return arms | ({SESSIONS: by_session(sessions, images)} if count <= len(sessions) else {})

    def check(self, arms: Mapping[str, Answer], count: int, tasks: Sequence[int]) -> float:
        """The largest difference of any arm from torch; too large a one ends the script."""
        store = self.classifiers[count].store
        wanted = arms[TORCH](tasks)
        worst = 0.0
        for name, answer in arms.items():
            got = answer(tasks)
            if name == ENGINE:
                got = to_probabilities(got, [store[task_name(task)] for task in tasks])
            error = max_difference(got, wanted)
            worst = max(worst, check_equal(f"{name}, {count} tasks", error, self.tolerance))
        return worst

    def close(self) -> None:
        for classifier in self.classifiers.values():
            classifier.close()


def tolerance(precision: str) -> float:
    """Of a probability, to that of torch in fp32."""
    return 1e-4 if precision == "fp32" else 0.05


def play(arms: Mapping[str, Answer], traffic: Traffic) -> dict[str, Any]:
    """Arms for take_turns: every one gets the same batch in a round."""
    return {
        name: lambda number, answer=answer: answer(traffic[number]) for name, answer in arms.items()
    }


def measure_cells(bench: Bench, sessions: Sessions) -> list[dict[str, Any]]:
    """Every number of tasks with every pattern of traffic that makes a difference to it."""
    args, cells = bench.args, []
    for count in args.tasks:
        arms = bench.arms(count, sessions)
        for pattern in PATTERNS:
            alike = count == 1 and pattern != "uniform"
            if alike or (pattern == "distinct" and count < args.batch_size):
                continue
            traffic = draw_batches(pattern, count, args.batch_size, 1 + args.cell_rounds)
            error = bench.check(arms, count, traffic[0])
            seconds = take_turns(
                play(arms, traffic), max_rounds=args.cell_rounds, budget_s=args.cell_s
            )
            cells.append(
                {"tasks": count, "traffic": pattern, "error": error, **to_cell(seconds, args)}
            )
            progress(f"{count} tasks, {pattern}")
    return cells


def to_cell(seconds: Seconds, args: Namespace) -> dict[str, Any]:
    others = [name for name in SWITCHING if name in seconds]
    return {
        "images_per_s": {
            name: spread([args.batch_size / each for each in taken])
            for name, taken in seconds.items()
        },
        "ms": {name: to_ms(taken) for name, taken in seconds.items()},
        "gain": {name: paired_ratio(seconds[name], seconds[OURS]) for name in others},
        "seconds": seconds,
    }


def measure_scale(bench: Bench) -> dict[str, Any]:
    """The fewest tasks and the most in turn, uniform traffic: what their number costs."""
    args = bench.args
    arms: dict[str, Any] = {}
    ends = (min(args.tasks), max(args.tasks))
    for count in ends:
        traffic = draw_batches("uniform", count, args.batch_size, 1 + args.long_rounds)
        own = bench.arms(count, {})
        bench.check(own, count, traffic[0])
        both = {f"{name} {count}": own[name] for name in (OURS, ENGINE)}
        arms |= play(both, traffic)
    seconds = take_turns(arms, max_rounds=args.long_rounds, budget_s=args.long_s)
    fewest, most = ends
    return {
        "tasks": ends,
        "throughput": {
            name: paired_ratio(seconds[f"{name} {fewest}"], seconds[f"{name} {most}"])
            for name in (OURS, ENGINE)
        },
        "ms": {name: to_ms(taken) for name, taken in seconds.items()},
        "seconds": seconds,
    }
