"""The section of docs/benchmarks.md on engines; see bench_engines.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from page_parts import COLOURS, draw_panels, to_ratio, to_spread, to_table

__all__ = ["COMMAND", "TITLE", "UNITS", "draw", "to_parts"]

TITLE, COMMAND = "Engines", "python benchmarks/bench_engines.py"
UNITS: Mapping[str, str] = {}
HEADER = (
    "engine",
    "batch",
    "n",
    "images/s with prompts",
    "without",
    "cost",
    "cost / expected",
    "of the ceiling",
    "error",
)


def to_parts(report: Mapping[str, Any]) -> list[str]:
    ceilings = report["ceilings"]
    known = ", ".join(f"{value / 1e9:,.0f} GFLOP/s in {name}" for name, value in ceilings.items())
    return [
        "Images per second with LSPT's defaults but for 10 prompts, all rows of one task, and of "
        "the same ViT without prompts in the same engine, as an ONNX graph or torch's own model. "
        "*Cost* is the time with prompts over that without; expected is the same ratio of FLOPs, "
        "which counts the longer rows, in attention squared, and the coder. *Of the ceiling* is "
        "what the matrix products of the images with prompts make of the best large ones here, by "
        f"torch or OpenVINO: {known}. *Error* is that of the worst row from torch in fp32, over "
        "the row's length.",
        *(to_vit(vit, ceilings) for vit in report["vits"]),
    ]


def to_vit(vit: Mapping[str, Any], ceilings: Mapping[str, float]) -> str:
    flops = vit["flops"]
    expected = flops["prompted"] / flops["plain"]
    caption = (
        f"{vit['vit']}: {flops['prompted'] / 1e9:.2f} GFLOP with prompts, "
        f"{flops['plain'] / 1e9:.2f} without; expected cost {expected:.3f}."
    )
    rows = [to_row(row, flops["prompted"], expected, ceilings) for row in vit["rows"]]
    reasons = {
        f"- {each['engine']} {each['precision']} is refused: {each['reason']}": None
        for each in vit["refused"]
    }
    return "\n".join([to_table(caption, HEADER, rows), "", *reasons]).rstrip()


def to_row(
    row: Mapping[str, Any], flops: float, expected: float, ceilings: Mapping[str, float]
) -> Sequence[str]:
    prompted, plain, ceiling = row["prompted"], row["plain"], ceilings.get(row["precision"])
    speed = prompted and prompted["images_per_s"]
    return (
        f"{row['engine']} {row['precision']}",
        str(row["batch_size"]),
        str((prompted or plain)["images_per_s"]["n"]),
        to_spread(speed),
        to_spread(plain and plain["images_per_s"]),
        to_ratio(row["ratio"]),
        to_ratio(row["ratio"] and row["ratio"] / expected),
        f"{speed['median'] * flops / ceiling:.0%}" if speed and ceiling else "-",
        f"{prompted['error']:.0e}" if prompted else "-",
    )


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Images per second by batch size, a panel for each ViT; dashed without prompts."""
    vits = report["vits"]

    def panel(axes: Any, number: int) -> None:
        rows = vits[number]["rows"]
        sizes = list(dict.fromkeys(str(row["batch_size"]) for row in rows))
        names = dict.fromkeys((row["engine"], row["precision"]) for row in rows)
        for place, name in enumerate(names):
            colour = COLOURS[place % len(COLOURS)]
            own = [row for row in rows if (row["engine"], row["precision"]) == name]
            for graph, style, label in (("prompted", "o-", " ".join(name)), ("plain", "--", None)):
                speeds = [row[graph] and row[graph]["images_per_s"]["median"] for row in own]
                axes.plot(
                    sizes, [s or float("nan") for s in speeds], style, color=colour, label=label
                )
        axes.set_xlabel("batch size")
        axes.set_ylabel("images/s")

    draw_panels(path, [vit["vit"] for vit in vits], panel)
