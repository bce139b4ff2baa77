"""The record of a run, and results.json, a list of them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lspt_serve.errors import SweepError, first_mistake
from lspt_serve.files import atomic_file

__all__ = ["RUNS", "SETTINGS", "Run", "Triple", "check_runs_output", "load_runs", "save_runs"]

Triple = tuple[float, float, float]
Share = Annotated[float, Field(ge=0, le=1)]
SETTINGS = ("method", "options", "pool", "init", "train")  # of a Run, what its seeds share


class Run(BaseModel):
    """One task learned with one seed; accuracies are top-1, in [0, 1].

    `train` holds the TrainSettings without the seed; it is empty, and `init` None, where nobody
    knows them: a bundle alone does not say them. `val` is the accuracy that the settings were
    chosen by; None for settings that were chosen for another entry. A run that failed has an
    `error` and no `test`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    name: str  # of the entry
    method: str
    options: dict[str, Any] = {}
    pool: str | None = None  # None: the backbone's
    init: str | None = None
    train: dict[str, Any] = {}
    image_size: int
    crop_pct: float = 1.0
    mean: Triple = (0.5, 0.5, 0.5)  # what images were normalised with
    std: Triple = (0.5, 0.5, 0.5)
    protocol: str
    trials: int | None = None  # of the search; None: there was none
    seed: int
    val: Share | None = None
    test: Share | None = None
    error: str | None = None
    task_bytes: int | None = None  # of the task's tensors in fp32
    train_s: float | None = None
    backbone: str  # the first 12 digits of its sha256
    lspt_serve: str
    torch: str | None = None
    machine: str | None = None

    @property
    def circumstances(self) -> tuple[str, int, float, Triple, Triple, str]:
        """What runs must share to stand in one table."""
        pixels = self.image_size, self.crop_pct, self.mean, self.std
        return (self.protocol, *pixels, self.backbone)

    def differs_in(self, other: "Run") -> str | None:
        """Of SETTINGS, one that is not known to be the same; None: both may be seeds of one entry.

        Which they are not, as far as is known, where nobody knows how they were trained.
        """
        for name in SETTINGS:
            if getattr(self, name) != getattr(other, name):
                return name
        return None if self.train else "train"


RUNS = TypeAdapter(list[Run])


def save_runs(path: Path, runs: list[Run]) -> None:
    """Write results.json, whole or not at all; raises OutputError."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(RUNS.dump_json(runs, indent=1) + b"\n")


def load_runs(path: Path) -> list[Run]:
    """Raises SweepError for a file that is no results.json."""
    try:
        return RUNS.validate_json(path.read_bytes())
    except OSError as error:
        raise SweepError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        mistake = first_mistake(error, whole="file")
        raise SweepError(f"{path} is no list of runs as lspt sweep writes it: {mistake}") from error


def check_runs_output(path: Path) -> None:
    """Raises SweepError if something else than runs would be replaced."""
    if path.exists():
        load_runs(path)
