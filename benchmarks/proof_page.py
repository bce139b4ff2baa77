"""docs/reliability.md: made of docs/reliability.json, what was missed first.

    python benchmarks/proof_page.py

Each proof puts its own results into the JSON, in the place of those that it had there, and ends
with it; alone it makes the page again, after a change of a SCRIPT_limits.md, which says by hand
what limits a target: `## TARGET` and a text.
"""

import argparse
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import HERE, Target, create_parser, describe_machine
from page_parts import load_limits, to_measured

__all__ = ["Proof", "finish", "parse_proof", "to_page", "write_page"]

RAW, PAGE = "reliability.json", "reliability.md"
INTRO = (
    "What the service withstands, measured on real server processes by one command each. Misses "
    "come first. The raw figures are in [reliability.json](reliability.json)."
)


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
        details: raw figures, for --out/SCRIPT.json.
    """
    command = f"python benchmarks/{script}.py"
    records = [Proof(target, unit, command).record for target, unit in targets]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{script}.json").write_text(json.dumps(details, indent=1) + "\n")
    if args.docs:
        args.docs.mkdir(parents=True, exist_ok=True)
        machine = describe_machine()
        marked = [{**record, "quick": args.quick, "machine": machine} for record in records]
        others = [each for each in load_records(args.docs) if each["command"] != command]
        everything = sorted([*others, *marked], key=lambda each: str(each["command"]))
        (args.docs / RAW).write_text(json.dumps(everything, indent=1) + "\n")
        write_page(args.docs)
    print(json.dumps({"targets": {record["name"]: record for record in records}}))


def load_records(docs: Path) -> list[dict[str, Any]]:
    path = docs / RAW
    records: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return records


def write_page(docs: Path) -> None:
    """DOCS/reliability.md of DOCS/reliability.json."""
    (docs / PAGE).write_text(to_page(load_records(docs)), "utf-8")


def to_page(records: Sequence[Mapping[str, Any]]) -> str:
    parts = ["# Reliability, measured", INTRO]
    for title, reached in (("Missed, or not measured", False), ("Reached", True)):
        own = [each for each in records if each["reached"] == reached]
        parts += [f"## {title}", "\n".join(map(_to_line, own)) or "None."]
        parts += [] if reached else _to_limits(records)
    parts += ["## How", *_to_commands(records)]
    return "\n\n".join(parts) + "\n"


def _to_limits(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is known of why a full run missed a target."""
    parts = []
    for command in dict.fromkeys(each["command"] for each in records if not each["quick"]):
        own = {each["name"]: each for each in records if each["command"] == command}
        limits = load_limits(HERE / f"{Path(command).stem}_limits.md", own)
        missed = {name: text for name, text in limits.items() if not own[name]["reached"]}
        parts += [f"*What limits {name}:* {text}" for name, text in missed.items()]
    return parts


def _to_line(record: Mapping[str, Any]) -> str:
    """What was wanted, what was measured, and the verdict."""
    unit = f" {record['unit']}" if record["unit"] else ""
    wanted = f"wanted {record['limit']} {record['target']:g}{unit}"
    if record["measured"] is None:
        return f"- **{record['name']}**: {wanted}; not measured: {record['note']}."
    verdict = "reached" if record["reached"] else "missed"
    note = f" ({record['note']})" if record["note"] else ""
    measured = f"measured {to_measured(record, 4)}{unit}"
    return f"- **{record['name']}**: {wanted}, {measured}: {verdict}{note}."


def _to_commands(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each command once, with the machine that it ran on."""
    parts = []
    for command, record in {each["command"]: each for each in records}.items():
        machine = record["machine"]
        rough = "**A rough, small run (`--quick`).** " if record["quick"] else ""
        cores = f"{machine['cores']} cores of {machine['cpu']}, load {machine['load']} at its end."
        parts += [f"    {command}", f"{rough}{cores}"]
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    write_page(parser.parse_args().docs)


if __name__ == "__main__":
    main()
