"""The record of a run, results.json (a list of them), and what bundles say of theirs."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lspt_serve.bundle import MANIFEST, Bundle, load_bundle
from lspt_serve.errors import SweepError
from lspt_serve.files import atomic_file

__all__ = ["RUNS", "Run", "check_runs_output", "load_runs", "runs_of", "save_runs"]

Share = Annotated[float, Field(ge=0, le=1)]


class Run(BaseModel):
    """One task learned with one seed; accuracies are top-1, in [0, 1].

    `train` holds the TrainSettings without the seed. `val` is the accuracy that the settings were
    chosen by; None for settings that were chosen for another entry. A run that failed has an
    `error` and no `test`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    name: str  # of the entry
    method: str
    options: dict[str, Any] = {}
    pool: str | None = None  # None: the backbone's
    init: str = "uniform"
    train: dict[str, Any] = {}
    image_size: int
    crop_pct: float = 1.0
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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SweepError(
            f"{path} is no list of runs as lspt sweep writes it: {where or 'file'}: {first['msg']}"
        ) from error


def check_runs_output(path: Path) -> None:
    """Raises SweepError if something else than runs would be replaced."""
    if path.exists():
        load_runs(path)


def runs_of(path: Path) -> list[Run]:
    """The runs of a results.json, of a bundle or of a folder of bundles; in order of their names.

    Raises:
        SweepError: nothing there, or nothing that says how accurate it is.
        BundleError: a bundle that is broken.
    """
    if not path.is_dir():
        return load_runs(path)
    folders = [path] if (path / MANIFEST).is_file() else sorted(path.iterdir())
    bundles = [load_bundle(folder) for folder in folders if (folder / MANIFEST).is_file()]
    runs = [_run_of_bundle(bundle) for bundle in bundles if bundle.manifest.metrics]
    if not runs:
        raise SweepError(f"{path} holds no bundle that says how accurate it is; see lspt train")
    return runs


def _run_of_bundle(bundle: Bundle) -> Run:
    manifest, metrics = bundle.manifest, bundle.manifest.metrics
    assert metrics is not None
    method = manifest.trained_as or manifest.method
    return Run(
        task=manifest.name,
        name=method.name,
        method=method.name,
        options=method.options,
        pool=manifest.pool,
        image_size=manifest.preprocess.img_size,
        crop_pct=manifest.preprocess.crop_pct,
        protocol="plain",
        seed=metrics.seed,
        val=metrics.val_accuracy,
        test=metrics.test_accuracy,
        task_bytes=sum(4 * tensor.size for tensor in bundle.tensors.values()),
        train_s=metrics.train_s,
        backbone=manifest.backbone.sha256[:12],
        lspt_serve=manifest.created_with.removeprefix("lspt-serve "),
    )
