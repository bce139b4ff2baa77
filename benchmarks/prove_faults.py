"""What goes wrong around a server: killed workers, full disks, lost folders, clocks, callers.

    python benchmarks/prove_faults.py

Each fault happens to a real `lspt serve` of a small model under light traffic. Every answer is held
to what the model answers in this process.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from common import Target, clean_up_when_stopped, progress
from faults_clock import jump_clock
from faults_disk import delete_store, fill_home, fill_store
from faults_sockets import drop_connections, hold_connections
from faults_worker import kill_workers
from proof_page import finish, parse_proof
from proof_scene import VIT, create_scene
from proof_traffic import generator

FAULTS = ("worker", "store", "disk", "metrics", "clock", "half-sent", "dropped")
Targets = list[tuple[Target, str]]


def main(words: Sequence[str] | None = None) -> None:
    args = parse_proof(
        __doc__,
        words,
        vit={"default": VIT, "help": "a timm model, or a file of weights"},
        fault={"action": "append", "choices": FAULTS, "help": "all, unless given"},
    )
    clean_up_when_stopped()
    targets: Targets = []
    with tempfile.TemporaryDirectory() as scratch, generator() as start:
        scene = create_scene(Path(scratch), vit=args.vit)
        workers, held, dropped = ([1], 200, 1000) if args.quick else ([1, 2], 1000, 10_000)
        faults: dict[str, Callable[[], Targets]] = {
            "worker": lambda: kill_workers(scene, start, workers),
            "store": lambda: delete_store(scene, start),
            "disk": lambda: fill_store(scene, start),
            "metrics": lambda: fill_home(scene, start),
            "clock": lambda: jump_clock(scene, start),
            "half-sent": lambda: hold_connections(scene, held, 4.0 if args.quick else 30.0),
            "dropped": lambda: drop_connections(scene, dropped),
        }
        for name in args.fault or (FAULTS[1:2] if args.quick else FAULTS):
            progress(f"fault: {name}")
            targets += faults[name]()
    finish("prove_faults", targets, args, details=[target.record for target, _ in targets])


if __name__ == "__main__":
    main()
