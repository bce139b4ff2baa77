"""lspt sweep: compare methods, each with hyperparameters searched for it."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lspt_serve.cli.console import Json, NormaliseBy, console, print_json, print_note, stoppable
from lspt_serve.errors import SweepError
from lspt_serve.results import (
    check_runs_output,
    compare,
    comparison_grid,
    save_runs,
)

if TYPE_CHECKING:
    from lspt_serve.models import Backbone
    from lspt_serve.training import Dataset
    from lspt_serve.training.sweep import Status, SweepConfig

__all__ = ["sweep"]


def sweep(
    config: Annotated[Path, typer.Argument(help="What to search and compare: docs/sweep.md.")],
    backbone: Annotated[str, typer.Option(help="As in lspt train.")],
    data: Annotated[
        list[Path],
        typer.Option(help="A task's images, as in lspt train; once for each task, named by it."),
    ],
    storage: Annotated[
        Path, typer.Option(help="File that the work is kept in; go on, or share it, by naming it.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Runs to write; the storage's name with .json unless given.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keep decoded images in this folder, for all processes.")
    ] = None,
    normalisation: NormaliseBy = None,
    on_bad_image: Annotated[
        Literal["refuse", "skip"], typer.Option(help="What to do when an image cannot be read.")
    ] = "refuse",
    as_json: Json = False,
) -> None:
    """Search hyperparameters of each entry on each task, then test what was chosen.

    The search goes by val; test is looked at once by each final run. The same command in another
    terminal shares the work; after a stop or a crash it goes on.

    Example:  lspt sweep sweep.toml --backbone vit.pth --data clothing10.tar
    --data signdigits10.tar --storage build/sweep.db --cache build/cache
    """
    if storage.is_dir():
        raise SweepError(f"--storage {storage} is a folder; give a file in it, such as sweep.db")
    out = out or storage.with_suffix(".json")
    if out.resolve() == storage.resolve():
        raise SweepError(f"--storage {storage} would be replaced by the runs; give another --out")
    check_runs_output(out)
    tasks = _name_tasks(data)
    with stoppable(lambda: "the same command goes on from here"):
        from lspt_serve.models import load_backbone  # torch: takes seconds
        from lspt_serve.training.sweep import Sweep, check_plans, load_config, make_plans

        settings = load_config(config)
        plans = make_plans(settings)
        vit = load_backbone(backbone, img_size=settings.img_size, normalisation=normalisation)
        for note in vit.notes:
            print_note(note)
        check_plans(plans, vit)
        datasets = {
            task: _load(path, settings, vit, cache=cache, on_bad_image=on_bad_image)
            for task, path in tasks.items()
        }
        with closing(Sweep(settings, plans, vit, datasets, storage)) as work:
            for note in work.notes:
                print_note(f"{storage}: {note}")
            with _bar() as report:
                runs = work.run(report)
        save_runs(out, runs)
    if as_json:
        print_json([run.model_dump(mode="json") for run in runs])
        return
    print(f"{out}: {len(runs)} runs")
    for comparison in compare(runs):
        Console().print(comparison_grid(comparison).to_rich())


def _name_tasks(data: list[Path]) -> dict[str, Path]:
    """Tasks by name: of a folder its name, of a file its stem."""
    tasks: dict[str, Path] = {}
    for path in data:
        if not path.exists():
            raise SweepError(f"--data {path}: no such file or folder")
        whole = path.resolve()
        name = whole.name if path.is_dir() else whole.stem
        if name in tasks:
            raise SweepError(
                f"--data {tasks[name]} and {path} are both called {name!r}; rename one"
            )
        tasks[name] = path
    return tasks


def _load(
    path: Path,
    config: "SweepConfig",
    backbone: "Backbone",
    *,
    cache: Path | None,
    on_bad_image: Literal["refuse", "skip"],
) -> "Dataset":
    from lspt_serve.training import load_dataset

    with console.status(escape(f"decoding {path}")):
        dataset = load_dataset(
            path,
            backbone.preprocess.img_size,
            crop_pct=config.crop_pct,
            cache=cache,
            on_bad_image=on_bad_image,
        )
    for note in dataset.notes:
        print_note(f"{path}: {note}")
    return dataset


@contextmanager
def _bar() -> "Iterator[Callable[[Status], None]]":
    """A line of progress: how many trainings are done by all processes, and what this one does."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        row = bar.add_task("sweep", total=None, status="")

        def report(status: "Status") -> None:
            parts = [status.step, f"epoch {status.epoch}" if status.epoch else ""]
            parts += ["" if status.best is None else f"best val {status.best:.1%}"]
            bar.update(
                row,
                description=f"{status.task}, {status.entry}" if status.task else "sweep",
                completed=status.done,
                total=status.total,
                status=", ".join(filter(None, parts)) or _waiting(status),
            )

        yield report


def _waiting(status: "Status") -> str:
    return "" if status.done == status.total else "waiting for other processes"
