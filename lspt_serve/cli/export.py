"""lspt export: the shared graph of a backbone, or one bundle as a file of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lspt_serve.bundle import Bundle, load_bundle
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
from lspt_serve.graph import SPEC_FILE, TRITON_CONFIG, TRITON_MODEL, ParityRow, load_graph_spec

if TYPE_CHECKING:
    from lspt_serve.export.triton import TritonBackend
    from lspt_serve.models import Backbone
    from lspt_serve.reference import Precision

__all__ = ["export"]


def export(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the graph, or with --bundle an .onnx file.")
    ] = None,
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
    onnx_adapter: Annotated[
        bool,
        typer.Option(
            "--onnx-adapter",
            help="Write the bundle as NAME.onnx_adapter into the folder --out, and the model that "
            "takes such adapters unless it is there.",
        ),
    ] = False,
    triton_repository: Annotated[
        Path | None,
        typer.Option(help="Write a model repository of NVIDIA Triton in place of --out."),
    ] = None,
    triton_backend: Annotated[
        Literal["onnxruntime", "python"],
        typer.Option(help="Of the model lspt-graph; python for a Triton that has no other."),
    ] = "onnxruntime",
    tensorrt: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        typer.Option(help="Also build TensorRT's engine of the graph for this GPU, into --out."),
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

    Example:  lspt export --bundle bundles/flowers --onnx-adapter --out adapters

    Example:  lspt export --like bundles/flowers --triton-repository models
    """
    if backbone is None and like is None and bundle is None:
        raise OptionError("nothing to export; give --backbone, --like or --bundle")
    if like is not None and bundle is not None:
        raise OptionError("both --like and --bundle; give one of them")
    if (like or bundle) and (img_size or normalisation):
        raise OptionError("--img-size and --normalisation are those of the bundle; leave them out")
    if (out is None) == (triton_repository is None):
        raise OptionError("nowhere or two places to write to; give --out or --triton-repository")
    if onnx_adapter and (bundle is None or out is None):
        raise OptionError("--onnx-adapter is of one bundle; give --bundle and --out as well")
    if triton_backend == "python" and (triton_repository is None or bundle is not None):
        raise OptionError("--triton-backend is of --triton-repository without --bundle")
    if tensorrt is not None and (out is None or bundle is not None):
        raise OptionError("--tensorrt is of the shared graph; give --out, and no --bundle")
    task = load_bundle(chosen) if (chosen := bundle or like) else None
    source = backbone or (task.manifest.backbone.source if task else "")
    own = task if bundle else None
    target, marker = _target(out, triton_repository, own, onnx_adapter=onnx_adapter)
    check_output(target, overwrite=overwrite, marker=marker)
    with stoppable():
        from lspt_serve.models import load_backbone  # torch: seconds to import

        if tensorrt is not None:  # minutes of work would be in vain without it
            from lspt_serve.export.tensorrt import load_tensorrt

            load_tensorrt()
        img_size = task.manifest.preprocess.img_size if task else img_size
        with locked(target):
            remove_leftovers(target)
            check_output(target, overwrite=overwrite, marker=marker)  # another may have written it
            vit = load_backbone(source, img_size=img_size, normalisation=normalisation)
            for note in () if task else vit.notes:  # a bundle says how it was trained
                print_note(note)
            with console.status(escape(f"exporting {source} to {target}")):
                if triton_repository is not None:
                    parity = _to_triton(
                        vit, triton_repository, like=task, bundle=own, backend=triton_backend
                    )
                else:
                    assert out is not None
                    parity = _to_onnx(vit, out, like=task, bundle=own, onnx_adapter=onnx_adapter)
                if tensorrt is not None:
                    _to_tensorrt(target, tensorrt)
    if as_json:
        print_json({"out": str(target), "parity": [row.model_dump() for row in parity]})
    else:
        print(f"{target}: agrees with torch fp32")
        Console().print(_table(parity))


def _target(
    out: Path | None, triton_repository: Path | None, bundle: Bundle | None, *, onnx_adapter: bool
) -> tuple[Path, str | None]:
    """What is written, and if it is a folder, the file that marks it as one of ours."""
    if triton_repository is not None:
        return triton_repository / (bundle.name if bundle else TRITON_MODEL), TRITON_CONFIG
    assert out is not None
    if bundle is None:
        return out, SPEC_FILE
    return out / f"{bundle.name}.onnx_adapter" if onnx_adapter else out, None


def _to_onnx(
    vit: "Backbone", out: Path, *, like: Bundle | None, bundle: Bundle | None, onnx_adapter: bool
) -> list[ParityRow]:
    from lspt_serve.export import export_adapter, export_bundle, export_graph

    if bundle is None:
        return export_graph(vit, out, like=like).parity
    return (export_adapter if onnx_adapter else export_bundle)(vit, bundle, out)


def _to_tensorrt(folder: Path, precision: "Precision") -> None:
    from lspt_serve.export.tensorrt import build_engine

    path = build_engine(folder, load_graph_spec(folder), precision)
    console.print(f"{path}: agrees with torch fp32", markup=False, soft_wrap=True)


def _to_triton(
    vit: "Backbone",
    repository: Path,
    *,
    like: Bundle | None,
    bundle: Bundle | None,
    backend: "TritonBackend",
) -> list[ParityRow]:
    from lspt_serve.export.triton import export_task_to_triton, export_to_triton

    if bundle is None:
        return export_to_triton(vit, repository, like=like, backend=backend).parity
    return export_task_to_triton(vit, bundle, repository)


def _table(parity: list[ParityRow]) -> Table:
    table = Table("task", "batch", "relative error", "top-1 agreement", box=None)
    for row in parity:
        table.add_row(
            row.task, str(row.batch_size), f"{row.max_error:.1e}", f"{row.top1_agreement:.0%}"
        )
    return table
