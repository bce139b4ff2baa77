"""What lspt train does once torch is there; processes that torchrun started do it together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from lspt_serve.baseline import BaselineRecord
from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.cli.console import console, print_note, stoppable
from lspt_serve.files import check_output, locked, remove_leftovers
from lspt_serve.manifest import Manifest
from lspt_serve.models import Backbone, create_prompted_vit, load_backbone
from lspt_serve.preprocess import Normalisation
from lspt_serve.training import (
    Baseline,
    Dataset,
    Epoch,
    Init,
    TrainSettings,
    announce_result,
    check_baseline,
    check_run,
    finish_run,
    has_saved,
    is_unfinished,
    join_processes,
    leave_processes,
    load_dataset,
    pick_device,
    pick_init,
    rank,
    save_baseline,
    train_baseline,
    train_task,
)

__all__ = [
    "TrainSettings",
    "check_method",
    "decode",
    "hold",
    "join_processes",
    "open_backbone",
    "pick_device",
    "tune_and_save",
]


@contextmanager
def hold(out: Path, run: Path, *, marker: str, overwrite: bool, restart: bool) -> Iterator[None]:
    """Be the only run that writes `out`, which may be written; of several processes the first is.

    A result that this very run saved before it was killed may be written again.

    Raises:
        OutputError: it may not, see `check_output` and `check_run`, or another process writes it.
    """
    if rank():
        yield
        return
    with locked(out):
        remove_leftovers(out)
        ours = not restart and has_saved(run, out / marker)  # and killed before its report
        check_output(out, overwrite=overwrite or ours, marker=marker)
        check_run(run, overwrite=overwrite or restart)
        yield


def open_backbone(
    source: str, *, img_size: int | None, normalisation: Normalisation | None
) -> Backbone:
    """`load_backbone`, with its notes."""
    backbone = load_backbone(source, img_size=img_size, normalisation=normalisation)
    for note in backbone.notes if rank() == 0 else ():
        print_note(note)
    return backbone


def check_method(
    backbone: Backbone, method: str, *, pool: str | None, init: Init, options: dict[str, Any]
) -> None:
    """Raises MethodError for what no model can be made of, or of which nothing could be kept."""
    model = create_prompted_vit(backbone, method, num_classes=2, pool=pool, options=options)
    pick_init(model.method, init)
    if model.method.trains_backbone:
        check_baseline(model)


def decode(data: Path, img_size: int, **settings: Any) -> Dataset:
    """`load_dataset` under a bar, with its notes."""
    with _bar("decoding") as (bar, row):
        dataset = load_dataset(
            data,
            img_size,
            on_image=lambda done, total: bar.update(row, completed=done, total=total),
            **settings,
        )
    for note in dataset.notes if rank() == 0 else []:
        print_note(note)
    return dataset


def tune_and_save(
    backbone: Backbone,
    dataset: Dataset,
    out: Path,
    run: Path,
    *,
    restart: bool,
    of_bundle: dict[str, Any] | None,
    **tuning: Any,
) -> Manifest | BaselineRecord | None:
    """Train under a bar, write the result to `out`; returns its record, in the first process only.

    Args:
        of_bundle: what `train_task` takes beside `tuning`; None for full fine-tuning, a baseline.
    """
    again = "the same command without --restart" if restart else "the same command"
    with stoppable(lambda: f"{again} goes on" if is_unfinished(run) else "no epoch was done"):
        with _bar(out.name) as (bar, row):
            tuning |= {"run": run, "restart": restart, "on_note": print_note, "name": out.name}
            tuning |= {"on_epoch": _report(bar, row, tuning["settings"].epochs)}
            record: Manifest | BaselineRecord
            # both are saved before the report is made
            if of_bundle is None:
                tuning["on_baseline"] = partial(_save, out=out, run=run)
                record = train_baseline(backbone, dataset, **tuning).record
            else:
                tuning["on_bundle"] = partial(_save, out=out, run=run)
                record = train_task(backbone, dataset, **of_bundle, **tuning).manifest
        is_first = rank() == 0
        leave_processes()
        if not is_first:
            return None
        finish_run(run)
    return record


def _save(result: Bundle | Baseline, *, out: Path, run: Path) -> None:
    """By the first process."""
    if rank():
        return
    record = result.manifest if isinstance(result, Bundle) else result.record
    announce_result(run, record.model_dump(mode="json"))
    if isinstance(result, Bundle):
        save_bundle(result, out)
    else:
        save_baseline(result, out)


@contextmanager
def _bar(description: str) -> Iterator[tuple[Progress, TaskID]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=rank() > 0) as bar:
        yield bar, bar.add_task(description, total=None, status="")


def _report(bar: Progress, row: TaskID, epochs: int) -> Callable[[Epoch], None]:
    def report(epoch: Epoch) -> None:
        waited = epoch.data_s / max(epoch.data_s + epoch.step_s, 1e-9)
        status = f"loss {epoch.loss:.3f} val accuracy {epoch.val_accuracy:.1%} inputs {waited:.0%}"
        bar.update(row, completed=epoch.number, total=epochs, status=status)

    return report
