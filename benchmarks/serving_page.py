"""docs/benchmarks.md: made of the raw figures of the benchmarks of serving, all that there are.

    python benchmarks/serving_page.py

Each benchmark ends with it; alone it makes the page again, after a change of a NAME_limits.md,
which says by hand what limits a target: `## TARGET` and a text.
"""

import argparse
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import beside_page
import decode_page
import engines_cuda_page
import engines_page
import folders_page
import gpu_page
import tasks_page
from common import HERE, Target
from page_parts import load_limits, to_measured

__all__ = ["finish", "to_page", "to_verdict", "write_page"]

SECTIONS: Mapping[str, Any] = {  # by name of the raw figures
    "engines": engines_page,
    "beside": beside_page,
    "tasks": tasks_page,
    "folders": folders_page,
    "decode": decode_page,
    "gpu": gpu_page,
    "engines_cuda": engines_cuda_page,
}
PAGE = "benchmarks.md"
INTRO = (
    "Arms that are compared take turns in one run, after their answers were found equal. Figures "
    "are medians with the least and the most in brackets, ratios are the medians of the ratios of "
    "each round. The raw figures, with every single time, are beside the scripts in "
    "[benchmarks](../benchmarks)."
)


def finish(
    name: str, report: Mapping[str, Any], targets: Sequence[Target], args: Namespace
) -> None:
    """Write what is to be written, and the line of targets on stdout."""
    records = {target.name: target.record for target in targets}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        whole = {**report, "quick": args.quick, "targets": records}
        (args.out / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    if args.docs:
        write_page(args.out, args.docs)
    print(json.dumps({"targets": records}))


def write_page(out: Path, docs: Path) -> None:
    """DOCS/benchmarks.md and its pictures, of the raw figures in OUT."""
    docs.mkdir(parents=True, exist_ok=True)
    reports = load_reports(out)
    (docs / PAGE).write_text(to_page(reports), "utf-8")
    for name, report in reports.items():
        if draw := SECTIONS[name].draw:
            draw(docs / f"benchmark_{name}.png", report)


def load_reports(out: Path) -> dict[str, Any]:
    paths = {name: out / f"{name}.json" for name in SECTIONS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def to_page(reports: Mapping[str, Any]) -> str:
    """What was missed, and a section for each benchmark."""
    missed: list[str] = []
    sections: list[str] = []
    for name, report in reports.items():
        verdicts = {
            target: to_verdict(target, record, SECTIONS[name].UNITS)
            for target, record in report["targets"].items()
        }
        reached = {target: record["reached"] for target, record in report["targets"].items()}
        missed += [line for target, line in verdicts.items() if not reached[target]]
        sections += to_section(name, report, [*verdicts.values()])
    head = ["# Serving, measured", INTRO, "## Missed, or not measured"]
    return "\n\n".join([*head, "\n".join(missed) or "None.", *sections]) + "\n"


def to_section(name: str, report: Mapping[str, Any], lines: Sequence[str]) -> list[str]:
    page = SECTIONS[name]
    limits, rough = {}, ["**A rough, small run (`--quick`).**"]
    if not report["quick"]:
        limits, rough = load_limits(HERE / f"{name}_limits.md", report["targets"]), []
    return [
        f"## {page.TITLE}",
        f"    {page.COMMAND}",
        *rough,
        to_machine(report["machine"]),
        *page.to_parts(report),
        *([f"![{page.TITLE}](benchmark_{name}.png)"] if page.draw else []),
        "\n".join(lines),
        *(f"*What limits {target}:* {text}" for target, text in limits.items()),
    ]


def to_machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    gpu = machine["gpu"] or "no GPU"
    day = f"{machine['date']}: " if "date" in machine else ""  # older figures have none
    return (
        f"{day}{machine['cores']} cores of {machine['cpu']}, {machine['threads']} threads, {gpu}; "
        f"load {machine['load']} before the run. {versions}."
    )


def to_verdict(name: str, record: Mapping[str, Any], units: Mapping[str, str]) -> str:
    """A line: what was wanted, what was measured, and by how much it is missed."""
    unit = units.get(name, "x")
    wanted = f"{record['limit']} {record['target']:g} {unit}"
    if record["measured"] is None:
        return f"- **{name}**: wanted {wanted}; not measured: {record['note']}."
    difference = abs(record["measured"] - record["target"])
    percent = 100 * difference / record["target"]
    share = f"{percent:.1f}%" if percent >= 0.05 else f"{percent:.1g}%"
    verdict = "reached" if record["reached"] else f"missed by {difference:.3g} {unit} ({share})"
    note = f" ({record['note']})" if record["note"] else ""
    measured = f"measured {to_measured(record, 3)} {unit}"
    return f"- **{name}**: wanted {wanted}, {measured}: {verdict}{note}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the raw figures")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    args = parser.parse_args()
    write_page(args.out, args.docs)


if __name__ == "__main__":
    main()
