"""lspt export: the shared graph of a backbone, or one bundle as a file of its own."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lspt_serve.bundle import load_bundle
from lspt_serve.cli.console import (
    ImgSize,
    Json,
    NormaliseBy,
    Overwrite,
    console,
    print_json,
    print_note,
    stoppable,
)
from lspt_serve.errors import OptionError
from lspt_serve.files import check_output, locked, remove_leftovers
from lspt_serve.graph import SPEC_FILE, ParityRow

__all__ = ["export"]


def export(
    out: Annotated[Path, typer.Option(help="Folder of the graph, or with --bundle an .onnx file.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="As in lspt train; with a bundle, the one it names unless given."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Serve bundles of this one's method and options; else LSPT's defaults."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Bake this one bundle into a self-contained file.")
    ] = None,
    img_size: ImgSize = None,
    normalisation: NormaliseBy = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export to ONNX: once per backbone, never per task.

    The shared graph has the backbone baked in and takes a task's tensors as inputs: a new task
    needs no export. It is written only if its answers agree with torch in fp32.

    Example:  lspt export --backbone vit_base_patch16_224 --img-size 112 --out graph

    Example:  lspt export --like bundles/flowers --out graph

    Example:  lspt export --bundle bundles/flowers --out flowers.onnx
    """
    if backbone is None and like is None and bundle is None:
        raise OptionError("nothing to export; give --backbone, --like or --bundle")
    if like is not None and bundle is not None:
        raise OptionError("both --like and --bundle; give one of them")
    if (like or bundle) and (img_size or normalisation):
        raise OptionError("--img-size and --normalisation are those of the bundle; leave them out")
    marker = None if bundle else SPEC_FILE
    check_output(out, overwrite=overwrite, marker=marker)
    task = load_bundle(chosen) if (chosen := bundle or like) else None
    source = backbone or (task.manifest.backbone.source if task else "")
    with stoppable():
        from lspt_serve.export import export_bundle, export_graph  # torch: seconds to import
        from lspt_serve.models import load_backbone

        img_size = task.manifest.preprocess.img_size if task else img_size
        with locked(out):
            remove_leftovers(out)
            check_output(out, overwrite=overwrite, marker=marker)  # another may have written it
            vit = load_backbone(source, img_size=img_size, normalisation=normalisation)
            for note in () if task else vit.notes:  # a bundle says how it was trained
                print_note(note)
            with console.status(escape(f"exporting {source} to {out}")):
                if bundle is not None and task is not None:
                    parity = export_bundle(vit, task, out)
                else:
                    parity = export_graph(vit, out, like=task).parity
    if as_json:
        print_json({"out": str(out), "parity": [row.model_dump() for row in parity]})
    else:
        print(f"{out}: agrees with torch fp32")
        Console().print(_table(parity))


def _table(parity: list[ParityRow]) -> Table:
    table = Table("task", "batch", "relative error", "top-1 agreement", box=None)
    for row in parity:
        table.add_row(
            row.task, str(row.batch_size), f"{row.max_error:.1e}", f"{row.top1_agreement:.0%}"
        )
    return table
