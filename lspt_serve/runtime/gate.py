"""The parity gate: an engine serves only after it answered on this machine as torch did in fp32.

B rows, F pooled features.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

import numpy as np
from numpy.typing import NDArray

from lspt_serve.errors import GraphError
from lspt_serve.reference import MAX_ERROR, Precision, Reference, row_errors
from lspt_serve.runtime.batch_size import LONG_S
from lspt_serve.runtime.engine import Engine
from lspt_serve.sizes import MAX_BATCH_SIZE

__all__ = ["Parity", "check_engine"]

MIN_AGREEMENT: dict[Precision, float] = {"fp32": 0.99, "fp16": 0.97, "bf16": 0.9, "int8": 0.8}
HEADS, NUM_CLASSES = 100, 10  # random heads, whose answers are much closer to one another than a
#                               trained head's: their agreement is a lower bound, and a finer one
LONGEST_S = 2 * LONG_S / MAX_BATCH_SIZE  # of a row, where servers make the largest batches
ATTENTION_SLACK = 4  # times what features may differ by: no answer is made of attention
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """How far an engine's features are from torch's.

    Attributes:
        max_error: of the row that is farthest.
        top1_agreement: share of the top-1 answers of random heads that stay the same.
    """

    max_error: float
    top1_agreement: float


def check_engine(engine: Engine, reference: Reference) -> Parity:
    """Run the reference's batch whole, its first half, its first row, and each task's rows alone.

    And the whole, and the first task's rows, as many times beside one another as the engine may; a
    batch as large as any is, unless it would take longer than servers let one; and once for what
    the engine attends to.

    Raises:
        GraphError: the difference is more than the engine's precision explains.
    """
    wanted = reference.features
    worst, agreement = 0.0, 1.0
    for rows, got in _run_batches(engine, reference):
        worst = float(np.maximum(worst, row_errors(got, wanted[rows]).max()))  # it keeps NaN
        if len(rows) == len(wanted):
            agreement = min(agreement, top1_agreement(got, wanted))
    parity = Parity(worst, agreement)
    most, least = MAX_ERROR[engine.precision], MIN_AGREEMENT[engine.precision]
    if not (parity.max_error <= most and parity.top1_agreement >= least):
        raise GraphError(
            f"{engine.name} in {engine.precision} does not serve here: it differs from torch by "
            f"{worst:.1e} of a row and agrees in {parity.top1_agreement:.1%} of answers, wanted at "
            f"most {most:g} and at least {least:.0%}; take another engine or precision"
        )
    if reference.attention is not None:
        _check_attention(engine, reference, reference.attention)
    return parity


def _run_batches(engine: Engine, reference: Reference) -> list[tuple[NDArray[np.intp], Array]]:
    """Which of the reference's rows, and what the engine made of them."""
    images, count = reference.images(engine.graph.preprocess.img_size), len(reference.features)
    together = Barrier(engine.num_beside)

    def run(rows: NDArray[np.intp]) -> Array:
        return engine.features(images[rows], [reference.rows[row] for row in rows])

    def run_beside(rows: NDArray[np.intp]) -> Array:
        together.wait()
        return run(rows)

    each_task = [np.flatnonzero(reference.whose == task) for task in range(len(reference.tasks))]
    everything, started = np.arange(count), 0.0
    alone = [everything[:1], everything[: max(1, count // 2)], *each_task]
    answers = [(rows, run(rows)) for rows in alone]
    with ThreadPoolExecutor(engine.num_beside) as pool:
        for rows in (each_task[0], everything):
            started = time.monotonic()
            answers += [(rows, got) for got in pool.map(run_beside, [rows] * engine.num_beside)]
    seconds_of_a_row = (time.monotonic() - started) / (count * engine.num_beside)
    if seconds_of_a_row > LONGEST_S:  # perhaps because it was the first of its size
        started = time.monotonic()
        answers.append((everything, run(everything)))
        seconds_of_a_row = (time.monotonic() - started) / count
    if seconds_of_a_row <= LONGEST_S:
        rows = np.resize(everything, MAX_BATCH_SIZE)
        answers.append((rows, run(rows)))
    return answers


def _check_attention(engine: Engine, reference: Reference, wanted: Array) -> None:
    images = reference.images(engine.graph.preprocess.img_size)
    worst = row_errors(engine.attention(images, reference.rows), wanted).max()
    if not worst <= (most := ATTENTION_SLACK * MAX_ERROR[engine.precision]):
        raise GraphError(
            f"{engine.name} in {engine.precision} does not serve here: its attention differs from "
            f"torch's by {worst:.1e} of a row, wanted at most {most:g}; take another engine or "
            "precision"
        )


def top1_agreement(got: Array, wanted: Array) -> float:
    """Share of the answers of random heads, on features (B x F) about their mean, that agree.

    Of a single row the mean is the row itself: it is compared as it is.
    """
    heads = np.random.RandomState(0).standard_normal((HEADS, wanted.shape[1], NUM_CLASSES))
    mean = wanted.mean(axis=0) if len(wanted) > 1 else 0.0
    answers = [((features - mean) @ heads).argmax(axis=-1) for features in (got, wanted)]
    return float((answers[0] == answers[1]).mean())
