"""The section of docs/benchmarks.md on decoding; see bench_decode.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from page_parts import COLOURS, draw_panels, to_ratio, to_spread, to_table

__all__ = ["COMMAND", "TITLE", "UNITS", "draw", "to_parts"]

TITLE, COMMAND = "Decoding", "python benchmarks/bench_decode.py"
UNITS: Mapping[str, str] = {"decoded pixels": "of 255"}
HEADER = (
    "image",
    "KB",
    "n",
    "ms, ours",
    "Pillow",
    "torchvision",
    "Pillow / ours",
    "torchvision / ours",
)


def to_parts(report: Mapping[str, Any]) -> list[str]:
    rows = [to_row(row) for row in report["rows"]]
    found = {f"{row['megapixels']:g} MP": row["differences"] for row in report["rows"]}
    differences = [
        f"{size} {each['mean']:.2f} (most {each['most']:.0f})" for size, each in found.items()
    ]
    caption = (
        f"From the bytes of a JPEG of quality {report['quality']} to a normalised array of "
        f"{report['img_size']} px, in one thread. The pictures are noise with the spectrum of "
        "photographs."
    )
    return [
        to_table(caption, HEADER, rows),
        "Pixels of ours differ from Pillow's, in steps of 255, on average by: "
        f"{', '.join(differences)}. Those of torchvision are Pillow's.",
    ]


def to_row(row: Mapping[str, Any]) -> list[str]:
    ms, speedup = row["ms"], row["speedup"]
    return [
        f"{row['width']} x {row['height']} ({row['megapixels']:g} MP)",
        f"{row['num_bytes'] / 1000:,.0f}",
        str(ms["ours"]["n"]),
        *(to_spread(ms[name]) for name in ("ours", "Pillow", "torchvision")),
        *(to_ratio(speedup[name]) for name in ("Pillow", "torchvision")),
    ]


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Milliseconds by megapixels."""

    def panel(axes: Any, number: int) -> None:
        sizes = [f"{row['megapixels']:g}" for row in report["rows"]]
        for colour, name in zip(COLOURS, ("ours", "Pillow", "torchvision"), strict=False):
            values = [row["ms"][name]["median"] for row in report["rows"]]
            style = "--" if name == "torchvision" else "o-"
            axes.plot(sizes, values, style, color=colour, label=name)
        axes.set_xlabel("megapixels")
        axes.set_ylabel("ms")

    draw_panels(path, ["JPEG to 224 px"], panel)
