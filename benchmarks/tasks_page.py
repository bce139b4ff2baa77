"""The section of docs/benchmarks.md on many tasks; see bench_tasks.py."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from page_parts import COLOURS, draw_panels, to_spread, to_table

__all__ = ["COMMAND", "TITLE", "UNITS", "draw", "to_parts"]

TITLE, COMMAND = "Many tasks", "python benchmarks/bench_tasks.py"
CODERS = ("default coder", "full-width coder")
UNITS = {
    f"first answer, files {kind}, {coder}": "ms"
    for kind in ("in the page cache", "on disk")
    for coder in CODERS
}
ARMS = ("ours", "engine", "grouped", "sessions", "torch")


def to_parts(report: Mapping[str, Any]) -> list[str]:
    return [
        f"Batches of {report['batch_size']} images, {report['vit']}, {report['engine']} "
        f"{report['precision']}. *Ours* is one run for a mixed batch by way of the Classifier, "
        "*engine* the same run without it; *grouped* runs the same graph once for each task in the "
        "batch, *sessions* has an ONNX Runtime session with baked tensors for each task, *torch* "
        "copies the tensors of each task into one model (fp32, eager). In `x` how many times the "
        "images/s of each ours has.",
        *(part for measured in report["coders"] for part in to_coder(measured, report)),
    ]


def to_coder(measured: Mapping[str, Any], report: Mapping[str, Any]) -> Iterable[str]:
    yield f"### {measured['coder'].capitalize()}"
    worst = max(cell["error"] for cell in measured["cells"])
    yield to_table(
        f"Images/s; probabilities of all arms within {worst:.0e} of torch's. Arms took turns "
        "within a row, and rows came one after another while the machine's speed drifted: only "
        "those of a row are to be compared. One task beside many, in turn, is below.",
        ["tasks, traffic", "n", *ARMS],
        [to_speeds(cell) for cell in measured["cells"]],
    )
    yield to_table(
        "ms of a batch, median (and p99; of fewer than 100 batches it is the slowest).",
        ["tasks, traffic", *ARMS],
        [
            [to_name(cell), *(to_latency(cell["ms"].get(arm)) for arm in ARMS)]
            for cell in measured["cells"]
        ],
    )
    yield to_long_runs(measured)
    yield to_memory(measured)
    yield to_miss(measured["miss"], report["miss_vit"])


def to_name(cell: Mapping[str, Any]) -> str:
    return f"{cell['tasks']:,}, {cell['traffic']}"


def to_speeds(cell: Mapping[str, Any]) -> list[str]:
    speeds, gains = cell["images_per_s"], cell["gain"]
    cells = []
    for arm in ARMS:
        gain = f", {gains[arm]:.2f} x" if arm in gains else ""
        cells.append(to_spread(speeds.get(arm)) + gain)
    return [to_name(cell), str(speeds["ours"]["n"]), *cells]


def to_latency(ms: Mapping[str, float] | None) -> str:
    return "-" if ms is None else f"{ms['median']:.1f} ({ms['p99']:.1f})"


def to_long_runs(measured: Mapping[str, Any]) -> str:
    """What a p99 is wanted of."""
    capacity = measured["capacity"]
    known = {f"{name} tasks, uniform": ms for name, ms in measured["scale"]["ms"].items()}
    for tasks, ms in capacity["ms"].items():
        misses = capacity["misses_of_a_batch"][tasks]
        known[f"{tasks} tasks in turn, {misses:.1f} misses a batch"] = ms
    rows = [
        [name, f"{ms['n']:.0f}", to_spread(ms), f"{ms['p99']:.1f}"] for name, ms in known.items()
    ]
    caption = (
        f"ms of a batch in longer runs: the fewest tasks beside the most, all in memory; and "
        f"{capacity['capacity']} tasks, which fill the memory given to the store, beside one more, "
        "each task after the other, so that the one that comes is never there."
    )
    return to_table(caption, ["ours, engine", "n", "ms", "p99"], rows)


def to_memory(measured: Mapping[str, Any]) -> str:
    memory, sessions = measured["memory"], measured["sessions"]
    kb, tensors = memory["resident_bytes"] / 1e3, memory["tensor_bytes"] / 1e3
    return (
        f"A task more in the store takes {kb:,.0f} KB of resident memory, its tensors "
        f"{tensors:,.0f} KB. A session more takes {sessions['resident_bytes'] / 1e6:,.0f} MB "
        f"(there were {sessions['sessions']})."
    )


def to_miss(miss: Mapping[str, Any], vit: str) -> str:
    rows = []
    for kind, added in {"in memory": None, **miss["added_ms"]}.items():
        find, whole = miss["ms"][f"find {kind}"], miss["ms"][kind]
        row = [kind, f"{whole['n']:.0f}", to_spread(find, 2), to_spread(whole), to_spread(added)]
        rows.append(row)
    note = "" if miss["droppable"] else " The page cache could not be dropped here."
    kb = miss["task_bytes"] / 1e3
    caption = (
        f"ms of one image of a task that is in memory or not, {vit}, {kb:,.0f} KB of tensors: "
        "*find* gives the bundle (look it up, read its files, check them, sha256 "
        "too), *answer* is all of it, from the lookup to the probabilities; *added* is what a miss "
        f"adds to an answer, round by round.{note}"
    )
    return to_table(caption, ["the task's files", "n", "find", "answer", "added"], rows)


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Images/s by number of tasks under uniform traffic, a panel for each coder."""
    coders = report["coders"]

    def panel(axes: Any, number: int) -> None:
        cells = [cell for cell in coders[number]["cells"] if cell["traffic"] == "uniform"]
        for colour, arm in zip(COLOURS, ARMS, strict=True):
            own = [cell for cell in cells if arm in cell["images_per_s"]]
            speeds = [cell["images_per_s"][arm]["median"] for cell in own]
            axes.plot([f"{cell['tasks']:,}" for cell in own], speeds, "o-", color=colour, label=arm)
        axes.set_xlabel("tasks, uniform traffic")
        axes.set_ylabel("images/s")

    draw_panels(path, [measured["coder"] for measured in coders], panel)
