"""A small server with tasks whose answers are known, for what is done to servers."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from common import HERE
from proof_changes import Lives, find_failures, judge
from proof_server import Server
from proof_tasks import Answers, answer_all, create_images, create_versions, prepare
from proof_traffic import Load, Run, Start, poisson

__all__ = ["VIT", "Scene", "create_scene", "with_hook"]

VIT = str(HERE.parent / "lspt_serve" / "models" / "weights" / "vit_digits_patch8_32.safetensors")
NUM_IMAGES, SIDE = 4, 64
TIMEOUT_S = 15.0
RATE = 20.0  # requests a second: a server that is well is idle most of the time


@dataclass(frozen=True)
class Scene:
    """FOLDER/graph and FOLDER/bundles, and what every image is answered by every task."""

    folder: Path
    names: Sequence[str]
    images: Sequence[bytes]
    answers: Answers

    @property
    def lives(self) -> Lives:
        return {(name, 1): (-math.inf, math.inf) for name in self.names}

    def ask(
        self, server: Server, start: Start, *, begin: float, seconds: float, rate: float = RATE
    ) -> "Future[Run]":
        """Traffic of all tasks; `begin` is of time.monotonic."""
        shots = poisson(
            rate,
            seconds,
            lambda rng, at_s: (rng.randrange(len(self.images)), rng.choice([*self.names])),
            seed=0,
        )
        load = Load(
            server.host,
            server.port,
            self.images,
            shots,
            seconds=seconds,
            start=begin,
            timeout_s=TIMEOUT_S,
        )
        return start(load)

    def judge(self, run: Run) -> tuple[Counter[int], Counter[str]]:
        """Failures by status, and wrong answers by what is wrong."""
        return find_failures(run.seen, self.lives), judge(run.seen, self.answers, self.lives)


def create_scene(folder: Path, *, vit: str = VIT, tasks: int = 4) -> Scene:
    names = [f"task{number:02}" for number in range(tasks)]
    backbone, engine, plain = prepare(vit, folder, names)
    images = create_images(NUM_IMAGES, max(SIDE, backbone.preprocess.img_size))
    answers = answer_all(engine, images, create_versions(plain, ((name, 1) for name in names)))
    engine.close()
    return Scene(folder, names, images, answers)


def with_hook(folder: Path, code: str) -> dict[str, str]:
    """Variables that have every Python which starts with them run this code first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *([before] if before else [])])}
