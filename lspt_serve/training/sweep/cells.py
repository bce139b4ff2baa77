"""A sweep's work as cells, an entry on a task each, and their items, one training each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from lspt_serve.models import Backbone
from lspt_serve.results.storage import SEEDS
from lspt_serve.training.data import Dataset
from lspt_serve.training.sweep.config import SweepConfig
from lspt_serve.training.sweep.plan import Params, Plan, split_params
from lspt_serve.training.sweep.protocol import fingerprint
from lspt_serve.training.sweep.study import choose, done, open_study

__all__ = ["Cell", "Item", "open_cells"]

SEARCH = "search/"
MAX_ITEMS = 2**32  # of a study: seeds are below


@dataclass(frozen=True, eq=False)
class Cell:
    """One entry on one task. `source`, for an entry with like, is the cell that it copies."""

    task: str
    plan: Plan
    seeds: list[int]
    search: optuna.Study | None
    finals: optuna.Study
    source: "Cell | None"

    @property
    def size(self) -> int:
        return self.plan.trials + len(self.seeds)

    def count_done(self) -> int:
        trials = len(done(self.search)) if self.search else 0
        return trials + len(done(self.finals).keys() & set(self.seeds))

    def open_items(self) -> Iterator["Item"]:
        """What is not done and could be: the trials, then the seeds once a choice is made."""
        if self.search:
            finished = done(self.search)
            for number in range(self.plan.trials):
                if number not in finished:
                    yield Item(self, self.search, number, final=False)
        if self.has_chosen():
            finished = done(self.finals)
            for seed in self.seeds:
                if seed not in finished:
                    yield Item(self, self.finals, seed, final=True)

    @property
    def chooser(self) -> "Cell":
        """The cell whose search this one goes by."""
        return self.source or self

    @property
    def choosing(self) -> optuna.Study:
        """That search."""
        assert self.chooser.search is not None
        return self.chooser.search

    def has_chosen(self) -> bool:
        return len(done(self.choosing)) == self.chooser.plan.trials

    def best(self) -> FrozenTrial | None:
        """What is best by now; None if no trial has succeeded."""
        return choose(self.choosing)

    def chosen_params(self) -> Params:
        """Those of the best trial; options only for the method that they were searched for."""
        best = self.best()
        params = best.params if best else {}
        if self.chooser.plan.method == self.plan.method:
            return params
        train, _ = split_params(params)
        return train


@dataclass(frozen=True)
class Item:
    """Trial `number` of a cell's search, or its final run with seed `number`."""

    cell: Cell
    study: optuna.Study
    number: int
    final: bool

    @property
    def place(self) -> int:
        """For Locks: another one for each item of a storage."""
        return (1 + self.study._study_id) * MAX_ITEMS + self.number

    @property
    def step(self) -> str:
        """For people."""
        if self.final:
            return f"seed {self.number}"
        return f"trial {self.number + 1} of {self.cell.plan.trials}"


def open_cells(
    config: SweepConfig,
    plans: Iterable[Plan],
    backbone: Backbone,
    datasets: dict[str, Dataset],
    storage: Any,
) -> list[Cell]:
    """A cell for each task and entry, in that order.

    Raises:
        SweepError: the storage holds one of them with another setup.
    """
    cells: dict[tuple[str, str], Cell] = {}
    for task, dataset in datasets.items():
        shared = {
            "protocol": config.protocol,
            "sampler": config.sampler,
            "seed of the search": config.seeds[0],
            "img_size": backbone.preprocess.img_size,
            "crop_pct": config.crop_pct,
            "mean": backbone.preprocess.mean,
            "std": backbone.preprocess.std,
            "backbone": backbone.sha256[:12],
            "data": fingerprint(dataset),
        }
        for plan in plans:
            name, setup = f"{task}/{plan.name}", plan.to_json() | shared
            search = open_study(storage, f"{SEARCH}{name}", setup) if plan.trials else None
            finals = open_study(storage, f"{SEEDS}{name}", setup)
            source = cells[task, plan.like] if plan.like else None
            cells[task, plan.name] = Cell(task, plan, config.seeds, search, finals, source)
    return list(cells.values())
