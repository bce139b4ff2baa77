"""lspt results: runs side by side."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lspt_serve.cli.console import Json, print_json
from lspt_serve.errors import OptionError, SweepError
from lspt_serve.results import (
    PUBLISHED,
    Comparison,
    Pretraining,
    check_runs_output,
    compare,
    comparison_grid,
    draw_comparison,
    runs_of,
    runs_of_storage,
    save_runs,
)

__all__ = ["results"]

BUNDLES = Path("bundles")  # where lspt serve looks for them too


def results(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files that lspt sweep wrote, bundles, baselines and folders of them; ./bundles "
            "unless given."
        ),
    ] = None,
    storage: Annotated[
        Path | None, typer.Option(help="Also what a sweep has finished by now, from its storage.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write all these runs to one file.")] = None,
    published: Annotated[
        Pretraining | None,
        typer.Option(help="Also columns of published accuracies, of a ViT-B/16 pretrained so."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the table, as a PNG; needs the extra `train`.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Tables in Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Print the test accuracies of runs, a row for each entry and a column for each task.

    Runs of another backbone, preprocessing or protocol get a table of their own.

    Example:  lspt results build/sweep.json

    Example:  lspt results --storage build/sweep.db --out build/partial.json

    Example:  lspt results build/sweep.json bundles --markdown --published mae

    Example:  lspt results build/sweep.json --plot build/sweep.png
    """
    if markdown and as_json:
        raise OptionError("both --markdown and --json; give one of them")
    if out is not None:
        check_runs_output(out)
    begun = runs_of_storage(storage) if storage else []
    runs = runs_of(paths or ([] if storage else [_own_bundles()]), begun)
    comparisons = compare(runs)
    if plot is not None:
        _draw(plot, comparisons)
    if out is not None:
        save_runs(out, runs)
    if as_json:
        record = {"comparisons": [asdict(comparison) for comparison in comparisons]}
        print_json(record | ({"published": PUBLISHED[published]} if published else {}))
        return
    grids = [comparison_grid(comparison, published) for comparison in comparisons]
    if not runs:
        print("no run is finished yet")
    for grid in grids:
        if markdown:
            print(grid.to_markdown(), end="\n\n")
        else:
            Console().print(grid.to_rich(), "")


def _own_bundles() -> Path:
    if not BUNDLES.is_dir():
        raise SweepError(
            "no folder bundles here; give what lspt sweep wrote, bundles, baselines, folders of "
            "them, or --storage"
        )
    return BUNDLES


def _draw(plot: Path, comparisons: list[Comparison]) -> None:
    if plot.suffix.lower() != ".png":
        raise SweepError(f"--plot {plot}: a {plot.suffix or 'nameless'} file; wanted a .png")
    if len(comparisons) != 1:
        raise SweepError(
            f"--plot draws one table, and these runs make {len(comparisons)}; give it runs of one "
            "backbone, preprocessing and protocol"
        )
    draw_comparison(plot, comparisons[0])
