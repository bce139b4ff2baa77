"""lspt export: the shared graph of a backbone, or one bundle as a file of its own."""

from dataclasses import dataclass
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
from lspt_serve.graph import (
    SPEC_FILE,
    TRITON_CONFIG,
    TRITON_GRAPH,
    TRITON_MODEL,
    ParityRow,
    load_graph_spec,
)

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
        Literal["onnxruntime", "python", "tensorrt"],
        typer.Option(
            help="Of the model lspt-graph: python for a Triton that has no other, tensorrt with "
            "--tensorrt."
        ),
    ] = "onnxruntime",
    tensorrt: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        typer.Option(
            help="Also build TensorRT's engine of the graph for this GPU, into --out or, with "
            "--triton-backend tensorrt, the repository."
        ),
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

    Example:  lspt export --like bundles/flowers --triton-repository triton-models
    """
    options = _Options(
        out=out,
        backbone=backbone,
        like=like,
        bundle=bundle,
        onnx_adapter=onnx_adapter,
        triton_repository=triton_repository,
        triton_backend=triton_backend,
        tensorrt=tensorrt,
        img_size=img_size,
        normalisation=normalisation,
        overwrite=overwrite,
    )
    _check(options)
    task = load_bundle(chosen) if (chosen := bundle or like) else None
    targets = _targets(options, task)
    _check_outputs(options, targets)
    with stoppable():
        parity = _write(options, task, targets)
    if as_json:
        print_json({"out": str(targets[0]), "parity": [row.model_dump() for row in parity]})
    else:
        print(f"{targets[0]}: agrees with torch fp32")
        Console().print(_table(parity))


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What the command line said, by its names."""

    out: Path | None
    backbone: str | None
    like: Path | None
    bundle: Path | None
    onnx_adapter: bool
    triton_repository: Path | None
    triton_backend: "TritonBackend"
    tensorrt: "Precision | None"
    img_size: ImgSize
    normalisation: NormaliseBy
    overwrite: bool


def _check(options: _Options) -> None:
    """Raises OptionError for options that do not go together, or lack another."""
    bundle, out, repository = options.bundle, options.out, options.triton_repository
    known = bundle or options.like
    if options.backbone is None and known is None:
        raise OptionError("nothing to export; give --backbone, --like or --bundle")
    if options.like is not None and bundle is not None:
        raise OptionError("both --like and --bundle; give one of them")
    if known and (options.img_size or options.normalisation):
        raise OptionError("--img-size and --normalisation are those of the bundle; leave them out")
    if (out is None) == (repository is None):
        raise OptionError("nowhere or two places to write to; give --out or --triton-repository")
    if options.onnx_adapter and (bundle is None or out is None):
        raise OptionError("--onnx-adapter is of one bundle; give --bundle and --out as well")
    if options.triton_backend != "onnxruntime" and (repository is None or bundle is not None):
        raise OptionError("--triton-backend is of --triton-repository without --bundle")
    if options.tensorrt is not None and bundle is not None:
        raise OptionError("--tensorrt is of the shared graph; give no --bundle")
    in_repository = options.tensorrt is not None and repository is not None
    if in_repository != (options.triton_backend == "tensorrt"):
        raise OptionError(
            "--tensorrt in a --triton-repository and --triton-backend tensorrt go together; give "
            "both or neither"
        )


def _targets(options: _Options, task: Bundle | None) -> list[Path]:
    """What is written; who writes the first holds all.

    Raises OptionError for a task that would take the place of the model of all tasks.
    """
    own = task if options.bundle else None
    if (repository := options.triton_repository) is not None:
        shared = [TRITON_MODEL, TRITON_GRAPH]
        if own and own.name in shared:
            raise OptionError(
                f"the bundle's name, {own.name}, is that of a model of all tasks in a repository; "
                "rename the task, or give --like in place of --bundle"
            )
        return [repository / name for name in ([own.name] if own else shared)]
    assert options.out is not None
    if own and options.onnx_adapter:
        return [options.out / f"{own.name}{suffix}" for suffix in (".onnx_adapter", ".json")]
    return [options.out]


def _check_outputs(options: _Options, targets: list[Path]) -> None:
    marker = SPEC_FILE if options.bundle is None else None  # of a folder that is ours
    if options.triton_repository is not None:
        marker = TRITON_CONFIG
    for target in targets:
        check_output(target, overwrite=options.overwrite, marker=marker)


def _write(options: _Options, task: Bundle | None, targets: list[Path]) -> list[ParityRow]:
    from lspt_serve.models import load_backbone  # torch: seconds to import

    if options.tensorrt is not None:  # minutes of work would be in vain without it
        from lspt_serve.export.tensorrt import load_tensorrt

        load_tensorrt()
    source = options.backbone or (task.manifest.backbone.source if task else "")
    img_size = task.manifest.preprocess.img_size if task else options.img_size
    with locked(targets[0]):
        for target in targets:
            remove_leftovers(target)
        _check_outputs(options, targets)  # another may have written them meanwhile
        vit = load_backbone(source, img_size=img_size, normalisation=options.normalisation)
        for note in () if task else vit.notes:  # a bundle says how it was trained
            print_note(note)
        with console.status(escape(f"exporting {source} to {targets[0]}")):
            write = _to_onnx if options.triton_repository is None else _to_triton
            parity = write(vit, options, task)
            if options.tensorrt is not None and options.out is not None:
                _to_tensorrt(options.out, options.tensorrt)
    return parity


def _to_onnx(vit: "Backbone", options: _Options, task: Bundle | None) -> list[ParityRow]:
    from lspt_serve.export import export_adapter, export_bundle, export_graph

    assert options.out is not None
    if options.bundle is None or task is None:
        return export_graph(vit, options.out, like=task).parity
    if options.onnx_adapter:
        return export_adapter(vit, task, options.out, overwrite=options.overwrite)
    return export_bundle(vit, task, options.out)


def _to_triton(vit: "Backbone", options: _Options, task: Bundle | None) -> list[ParityRow]:
    from lspt_serve.export.triton import export_task_to_triton, export_to_triton

    repository = options.triton_repository
    assert repository is not None
    if options.bundle is None or task is None:
        return export_to_triton(
            vit,
            repository,
            like=task,
            backend=options.triton_backend,
            precision=options.tensorrt or "fp32",
        ).parity
    return export_task_to_triton(vit, task, repository)


def _to_tensorrt(folder: Path, precision: "Precision") -> None:
    from lspt_serve.export.tensorrt import build_engine

    path = build_engine(folder, load_graph_spec(folder), precision)
    console.print(f"{path}: agrees with torch fp32", markup=False, soft_wrap=True)


def _table(parity: list[ParityRow]) -> Table:
    table = Table("task", "batch", "relative error", "top-1 agreement", box=None)
    for row in parity:
        table.add_row(
            row.task, str(row.batch_size), f"{row.max_error:.1e}", f"{row.top1_agreement:.0%}"
        )
    return table
