"""lspt engines: what can run a graph on this machine, how fast and how exactly."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lspt_serve.cli.console import DeviceOption, Json, console, print_json

if TYPE_CHECKING:
    from lspt_serve.runtime import Candidate, Refusal

__all__ = ["engines"]


def engines(
    graph: Annotated[Path, typer.Option(help="What lspt export wrote.")] = Path("graph"),
    device: DeviceOption = "auto",
    as_json: Json = False,
) -> None:
    """Show what can run a graph here, how fast and how exactly, and why the rest cannot.

    onnxruntime, openvino and torch are tried, in fp32, bf16 and int8. Each runs a batch of 8 images
    of two tasks and is held to what torch answered in fp32 when the graph was exported. lspt serve
    takes the fastest of the precision it is told.

    Example:  lspt engines --graph graph
    """
    from lspt_serve.runtime import ENGINES, PRECISIONS, try_engines

    with console.status(escape(f"trying the engines on {graph}")):
        found = try_engines(graph, names=ENGINES, precisions=PRECISIONS, device=device)
        records = list(map(_record, found))
    if as_json:
        print_json(records)
    else:
        Console().print(_table(records))


def _record(found: "Candidate | Refusal") -> dict[str, Any]:
    """What is said of it; the engine is closed: one at a time has the memory, and the cores."""
    from lspt_serve.runtime import Refusal

    if isinstance(found, Refusal):
        return {"engine": found.name, "precision": found.precision, "refused": found.reason}
    found.engine.close()
    return {
        "engine": found.engine.name,
        "precision": found.engine.precision,
        "provider": found.engine.provider,
        "images_per_s": round(found.images_per_s, 2),
        **asdict(found.parity),
    }


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table(box=None)
    table.add_column("engine")
    table.add_column("precision")
    for title in ("images/s", "error", "top-1 agreement"):
        table.add_column(title, justify="right")
    table.add_column("")
    for record in records:
        first = (record["engine"], record["precision"])
        if "refused" in record:
            table.add_row(*first, "-", "-", "-", escape(record["refused"]))
        else:
            speed, agreement = f"{record['images_per_s']:.1f}", f"{record['top1_agreement']:.1%}"
            table.add_row(
                *first, speed, f"{record['max_error']:.1e}", agreement, record["provider"]
            )
    return table
