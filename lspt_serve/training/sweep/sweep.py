"""All of a sweep's work, shared between the processes that are started on one storage.

Work lies in the storage as studies of numbered items (study.py, cells.py); locks say which item a
process is at (locks.py). A process takes the first open item, until all are done.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import optuna

from lspt_serve.models import Backbone
from lspt_serve.results import Run
from lspt_serve.results.storage import open_storage, read_runs, usable
from lspt_serve.training.data import Dataset
from lspt_serve.training.sweep.cells import Item, open_cells
from lspt_serve.training.sweep.config import SweepConfig
from lspt_serve.training.sweep.locks import Locks
from lspt_serve.training.sweep.plan import Params, Plan
from lspt_serve.training.sweep.protocol import Job, OnEpoch, run_final, run_trial
from lspt_serve.training.sweep.study import (
    begin,
    create_sampler,
    finish,
    version_notes,
    why_all_failed,
)
from lspt_serve.training.trainer import Epoch

__all__ = ["Status", "Sweep"]

POLL_S = 1.0  # how often to look whether others are done, where nothing is open


@dataclass(frozen=True)
class Status:
    """Where a process is; without a task, it waits for the others.

    `done` of `total` items are those of all processes, `best` is the best val accuracy of the
    entry's search so far, in [0, 1].
    """

    done: int
    total: int
    task: str = ""
    entry: str = ""
    step: str = ""
    best: float | None = None
    epoch: int = 0


OnStatus = Callable[[Status], None]


class Sweep:
    """The work of a config on tasks, kept in a storage; `run` does it.

    `notes` names other versions that it was begun with.

    Raises:
        SweepError: the storage is none, cannot be used just now, or holds the same work with
            another setup.
        OutputError: it cannot be written.
    """

    def __init__(
        self,
        config: SweepConfig,
        plans: list[Plan],
        backbone: Backbone,
        datasets: dict[str, Dataset],
        storage: Path,
    ) -> None:
        self.config = config
        self.backbone = backbone
        self.datasets = datasets
        storage = storage.resolve()  # one lock, by whatever name it is given
        self._locks = Locks(storage.with_name(f"{storage.name}.lock"))
        self._path = storage
        with self._locks.exclusively(), usable(storage):
            self._storage = open_storage(storage, create=True)
            self._cells = open_cells(config, plans, backbone, datasets, self._storage)
            self.notes = version_notes(cell.finals for cell in self._cells)
        self._open = self._cells  # those with work left

    def run(self, on_status: OnStatus = lambda status: None) -> list[Run]:
        """Take part in the work until all of it is done.

        Returns the runs of all processes, by task, entry and seed; tasks as given, entries as in
        the config.

        Raises:
            SweepError: the storage cannot be read or written any more.
        """
        with usable(self._path):
            self._work(on_status)
            return read_runs(self._storage, [cell.finals.study_name for cell in self._cells])

    def close(self) -> None:
        """Let go of the files."""
        self._storage.engine.dispose()
        self._locks.close()

    def _work(self, on_status: OnStatus) -> None:
        while (status := self._status()).done < status.total:
            begun = self._begin_next()
            if begun is None:
                on_status(status)
                time.sleep(POLL_S)
                continue
            item, trial = begun
            try:
                self._perform(item, trial, status, on_status)
            finally:
                # not while another looks: it may have read that the item is open
                with self._locks.exclusively():
                    self._locks.release(item.place)
        on_status(status)

    def _status(self) -> Status:
        left = {cell: cell.size - cell.count_done() for cell in self._open}
        self._open = [cell for cell in self._open if left[cell]]
        total = sum(cell.size for cell in self._cells)
        return Status(total - sum(left.values()), total)

    def _begin_next(self) -> tuple[Item, optuna.Trial] | None:
        """The first open item that no process is at, claimed; None if there is none."""
        with self._locks.exclusively():
            for cell in self._open:
                for item in cell.open_items():
                    if self._locks.claim(item.place):
                        return item, self._begin(item)
        return None

    def _begin(self, item: Item) -> optuna.Trial:
        if item.final:
            return begin(item.study, item.number, {})
        plan = item.cell.plan
        item.study.sampler = create_sampler(
            self.config.sampler, plan.space, item.number, trials=plan.trials
        )
        return begin(item.study, item.number, plan.space)

    def _perform(
        self, item: Item, trial: optuna.Trial, status: Status, on_status: OnStatus
    ) -> None:
        cell = item.cell
        best = cell.best()
        val = best.values[0] if best else None
        status = replace(status, task=cell.task, entry=cell.plan.name, step=item.step, best=val)
        on_status(status)

        def on_epoch(epoch: Epoch) -> None:
            on_status(replace(status, epoch=epoch.number))

        if item.final:
            self._run_final(item, trial, on_epoch)
        else:
            self._run_trial(item, trial, on_epoch)

    def _run_trial(self, item: Item, trial: optuna.Trial, on_epoch: OnEpoch) -> None:
        def report(epoch: Epoch) -> None:
            trial.report(epoch.val_accuracy, epoch.number)
            on_epoch(epoch)

        job = self._job(item, trial.params, seed=self.config.seeds[0])
        found = run_trial(job, self.backbone, self.datasets[job.task], report)
        trial.set_user_attr("val_loss", found.val_loss)
        trial.set_user_attr("error", found.error)
        finish(item.study, trial, found.val)

    def _run_final(self, item: Item, trial: optuna.Trial, on_epoch: OnEpoch) -> None:
        cell = item.cell
        best = cell.best()
        run = run_final(
            self._job(item, cell.chosen_params(), seed=item.number),
            self.backbone,
            self.datasets[cell.task],
            on_epoch,
            val=best.values[0] if best and not cell.source else None,
            trials=cell.chooser.plan.trials,
            error=None if best else why_all_failed(cell.choosing),
        )
        trial.set_user_attr("run", run.model_dump(mode="json"))
        finish(item.study, trial, run.test)

    def _job(self, item: Item, params: Params, *, seed: int) -> Job:
        return Job(
            task=item.cell.task,
            plan=item.cell.plan,
            params=params,
            protocol=self.config.protocol,
            seed=seed,
        )
