"""The figures of docs/reliability.md on other servers; see prove_peers.py."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common import spread
from page_parts import COLOURS, draw_panels, to_spread, to_table

__all__ = ["draw", "to_parts"]

HEADER = ("clients", "server", "n", "requests/s", "p50 ms", "p99 ms")


def to_parts(vits: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table for each ViT."""
    return [to_table(vit["vit"], HEADER, to_rows(vit["clients"])) for vit in vits]


def to_rows(clients: Mapping[str, Any]) -> Iterator[list[str]]:
    for number, servers in clients.items():
        for name, own in servers.items():
            speeds = spread(own["per_s"])
            times = (f"{own[key]:,.0f}" for key in ("p50_ms", "p99_ms"))
            yield [number, name, str(speeds["n"]), to_spread(speeds), *times]


def draw(path: Path, vits: Sequence[Mapping[str, Any]]) -> None:
    """Requests per second by number of clients, a panel for each ViT."""

    def panel(axes: Any, number: int) -> None:
        clients = vits[number]["clients"]
        names = list(next(iter(clients.values())))
        width = 0.8 / len(names)
        for place, name in enumerate(names):
            left = [group - 0.4 + place * width for group in range(len(clients))]
            speeds = [median(own[name]["per_s"]) for own in clients.values()]
            axes.bar(left, speeds, width, align="edge", color=COLOURS[place], label=name)
        axes.set_xticks(range(len(clients)), clients)
        axes.margins(y=0.35)  # room for the legend
        axes.set_xlabel("clients")
        axes.set_ylabel("requests/s")

    draw_panels(path, [vit["vit"] for vit in vits], panel)
