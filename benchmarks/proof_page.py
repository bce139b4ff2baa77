"""docs/reliability.md: made of docs/reliability.json, what was missed first.

    python benchmarks/proof_page.py

Each proof puts its own results into the JSON, in the place of those that it had there of the same
CPU, and ends with it; alone it makes the page again, after a change of a SCRIPT_limits.md, which
says by hand what limits a target: `## TARGET` and a text.
"""

import argparse
import ast
import json
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers_page
from common import HERE, Target, create_parser, describe_machine
from page_parts import load_limits, to_measured

__all__ = ["HERE", "Proof", "finish", "load_peers", "parse_proof", "to_page", "write_page"]

RAW, PAGE = "reliability.json", "reliability.md"
INTRO = (
    "What the service withstands, measured on real server processes by one command each. Misses "
    "come first. The targets are in [reliability.json](reliability.json), all else that was "
    "measured is beside the scripts in [benchmarks](../benchmarks)."
)
TITLES = {
    "prove_load": "Load",
    "prove_excess": "Load of a ViT-B",
    "prove_peers": "Beside other servers",
    "prove_faults": "Faults",
    "prove_attack": "Attack",
}
PEERS = "prove_peers"
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Proof:
    """A target and its unit; `command` measured it."""

    target: Target
    unit: str
    command: str

    @property
    def record(self) -> dict[str, Any]:
        known = self.target.record
        return {"name": self.target.name, "unit": self.unit, "command": self.command, **known}


def parse_proof(doc: str | None, words: Sequence[str] | None, **options: Any) -> Namespace:
    """The options that all proofs have, and those of one: name -> what `add_argument` takes."""
    parser = create_parser(doc)
    for name, settings in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    args = parser.parse_args(words)
    if not args.quick:
        args.docs = args.docs or HERE.parent / "docs"
        args.out = args.out or HERE
    return args


def finish(
    script: str, targets: Sequence[tuple[Target, str]], args: Namespace, *, details: Any = None
) -> None:
    """Write what is to be written, and the line of targets on stdout.

    Args:
        targets: each with its unit.
        details: raw figures, for --out/SCRIPT.json, by CPU.
    """
    command = f"python benchmarks/{script}.py"
    records = [Proof(target, unit, command).record for target, unit in targets]
    machine = describe_machine()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"{script}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, machine["cpu"]: details}, indent=1) + "\n")
    if args.docs:
        args.docs.mkdir(parents=True, exist_ok=True)
        marked = [{**record, "quick": args.quick, "machine": machine} for record in records]
        own = (command, machine["cpu"])
        everything = [each for each in load_records(args.docs) if _run_of(each) != own] + marked
        everything.sort(key=_run_of)
        (args.docs / RAW).write_text(json.dumps(everything, indent=1) + "\n")
        write_page(args.docs, args.out or HERE)
    print(json.dumps({"targets": {record["name"]: record for record in records}}))


def load_records(docs: Path) -> list[dict[str, Any]]:
    path = docs / RAW
    records: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return records


def _run_of(record: Mapping[str, Any]) -> tuple[str, str]:
    return str(record["command"]), str(record["machine"]["cpu"])


def write_page(docs: Path, out: Path) -> None:
    """DOCS/reliability.md and its pictures, of DOCS/reliability.json and the raw figures in OUT."""
    peers = load_peers(out)
    page = to_page(load_records(docs), peers)
    (docs / PAGE).write_text(page, "utf-8")
    for cpu, details in peers.items():
        if (picture := to_picture(cpu)) in page:
            peers_page.draw(docs / picture, details)


def load_peers(out: Path) -> dict[str, Any]:
    """Raw figures by CPU."""
    path = out / f"{PEERS}.json"
    peers: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return peers


def to_picture(cpu: str) -> str:
    """Name of the file."""
    return f"{PEERS}_{re.sub('[^a-z0-9]+', '_', cpu.lower()).strip('_')}.png"


def full_runs(records: Records) -> dict[str, str]:
    """Name -> command of the scripts that wrote their raw figures beside themselves."""
    return {Path(each["command"]).stem: each["command"] for each in records if not each["quick"]}


def to_page(records: Records, peers: Mapping[str, Any]) -> str:
    """`peers` are those of `load_peers`."""
    missed = [each for each in records if not each["reached"]]
    parts = ["# Reliability, measured", INTRO, "## Missed, or not measured"]
    parts += ["\n".join(map(_to_line, missed)) or "None.", *_to_limits(records)]
    own: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        own.setdefault(Path(record["command"]).stem, []).append(record)
    for script in sorted(own, key=[*TITLES, *own].index):
        parts += to_section(script, own[script], peers if script == PEERS else {})
    return "\n\n".join(parts) + "\n"


def to_section(script: str, records: Records, details: Mapping[str, Any]) -> list[str]:
    """A proof: how, and what came of it on each machine."""
    cpus = dict.fromkeys(record["machine"]["cpu"] for record in records)
    runs = [[each for each in records if each["machine"]["cpu"] == cpu] for cpu in cpus]
    return [
        f"## {TITLES.get(script, script)}",
        *_describe(HERE / f"{script}.py"),
        f"    {records[0]['command']}",
        *(part for run in runs for part in to_run(run, details)),
    ]


def to_run(records: Records, details: Mapping[str, Any]) -> list[str]:
    """On one machine; a full run unless it says otherwise."""
    machine, quick = records[0]["machine"], records[0]["quick"]
    day = f"{machine['date']}: " if "date" in machine else ""  # older figures have none
    parts = [
        *(["**A rough, small run (`--quick`).**"] if quick else []),
        f"{day}{machine['cores']} cores of {machine['cpu']}, load {machine['load']} at its end.",
        _to_table(records),
    ]
    cpu = machine["cpu"]
    if cpu in details and not quick:
        parts += peers_page.to_parts(details[cpu])
        parts += [f"![Requests per second of the servers on {cpu}]({to_picture(cpu)})"]
    return parts


def _describe(path: Path) -> list[str]:
    """What a script says of itself, without its command."""
    if not path.exists():
        return []
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    parts = text.split("\n\n")
    return [" ".join(part.split()) for part in parts if not part.startswith("    ")]


def _to_table(records: Records) -> str:
    lines = ["| | wanted | measured | |", "|---|--:|--:|---|"]
    for record in records:
        verdict = "" if record["reached"] else "**missed**"
        note = record["note"].replace("|", "\\|")
        notes = "; ".join(part for part in (verdict, note) if part)
        lines.append(f"| {record['name']} | {_wanted(record)} | {_measured(record)} | {notes} |")
    return "\n".join(lines)


def _to_limits(records: Records) -> list[str]:
    """What is known of why a full run missed a target."""
    parts = []
    for script, command in full_runs(records).items():
        own = [each for each in records if each["command"] == command]
        lacking = {each["name"] for each in own if not each["reached"]}
        limits = load_limits(HERE / f"{script}_limits.md", {each["name"]: each for each in own})
        missed = {name: text for name, text in limits.items() if name in lacking}
        parts += [f"*What limits {name}:* {text}" for name, text in missed.items()]
    return parts


def _to_line(record: Mapping[str, Any]) -> str:
    """Of a target that was not reached."""
    wanted = f"- **{record['name']}**, {record['machine']['cpu']}: wanted {_wanted(record)}"
    if record["measured"] is None:
        return f"{wanted}; not measured: {record['note']}."
    note = f" ({record['note']})" if record["note"] else ""
    return f"{wanted}, measured {_measured(record)}{note}."


def _wanted(record: Mapping[str, Any]) -> str:
    return f"{record['limit']} {record['target']:g} {record['unit']}".rstrip()


def _measured(record: Mapping[str, Any]) -> str:
    if record["measured"] is None:
        return "-"
    return f"{to_measured(record, 4)} {record['unit']}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the raw figures")
    args = parser.parse_args()
    write_page(args.docs, args.out)


if __name__ == "__main__":
    main()
