"""Three times as many requests as a ViT-B can answer: what is refused, and what is answered still.

    python benchmarks/prove_excess.py

The last part of prove_load.py, of one worker and a larger model, beside which a refusal costs
little: its capacity by callers that each wait for their answer, and then far too many requests at
random times, five turns of half a minute each, of which the medians are shown.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import clean_up_when_stopped
from load_targets import to_excess, to_mixed_up
from load_world import FULL, QUICK, Trial, create_world, fill
from proof_changes import judge, tasks_at
from proof_page import finish, parse_proof
from proof_server import serve
from proof_traffic import generator

VIT, SMALLER = "vit_base_patch16_224", "vit_tiny_patch16_224"
TASKS = 16
LENGTHS = FULL._replace(turn_s=30.0)


def main(words: Sequence[str] | None = None) -> None:
    about = f"a timm model, or a file of weights; {VIT}, quick {SMALLER}"
    args = parse_proof(__doc__, words, vit={"help": about})
    vit = args.vit or (SMALLER if args.quick else VIT)
    clean_up_when_stopped()
    with tempfile.TemporaryDirectory() as scratch, generator() as start:
        world = create_world(vit, Path(scratch) / "world", tasks=TASKS, changes=0, seconds=0.0)
        folder = fill(world, "bundles-1")
        with serve(world.folder, workers=1, bundles=folder.path) as server:
            trial = Trial(server, world, start, 1, QUICK if args.quick else LENGTHS)
            excess, again = trial.exceed(tasks_at(world.names, []))
    faults = judge([*excess.seen, *again.seen], world.answers, folder.lives)
    name = Path(vit).stem
    targets = [to_mixed_up(name, faults), *to_excess(name, excess)]
    details = {"vit": vit, "faults": dict(faults), "3x": excess.raw}
    finish("prove_excess", targets, args, details=details)


if __name__ == "__main__":
    main()
