"""The record of a run, results.json (a list of them), and what bundles or baselines say of it."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lspt_serve.baseline import BaselineRecord, load_baseline
from lspt_serve.bundle import BASELINE, MANIFEST, Manifest, MethodRef, Metrics, load_bundle
from lspt_serve.errors import SweepError, first_mistake
from lspt_serve.files import atomic_file

__all__ = ["RUNS", "Run", "check_runs_output", "load_runs", "runs_of", "save_runs"]

Triple = tuple[float, float, float]
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


def runs_of(path: Path) -> list[Run]:
    """The runs of a results.json, of a bundle or baseline, or of a folder of them, by name.

    Raises:
        SweepError: nothing there, or nothing that says how accurate it is.
        BundleError: a bundle or baseline that is broken.
    """
    if not path.is_dir():
        return load_runs(path)
    own = _run_of_folder(path)
    found = [own] if own else [_run_of_folder(p) for p in sorted(path.iterdir()) if p.is_dir()]
    runs = [run for run in found if run]
    if not runs:
        raise SweepError(
            f"{path} holds no bundle or baseline that says how accurate it is; see lspt train"
        )
    return runs


def _run_of_folder(folder: Path) -> Run | None:
    if (folder / BASELINE).is_file():
        record = load_baseline(folder)
        return _run_of(record, record.method, record.metrics, record.num_bytes)
    if not (folder / MANIFEST).is_file():
        return None
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    if manifest.metrics is None:
        return None
    task_bytes = sum(4 * tensor.size for tensor in bundle.tensors.values())
    method = manifest.trained_as or manifest.method
    return _run_of(manifest, method, manifest.metrics, task_bytes)


def _run_of(
    record: Manifest | BaselineRecord, method: MethodRef, metrics: Metrics, task_bytes: int
) -> Run:
    return Run(
        task=record.name,
        name=method.name,
        method=method.name,
        options=method.options,
        pool=record.pool,
        image_size=record.preprocess.img_size,
        crop_pct=record.preprocess.crop_pct,
        mean=record.preprocess.mean,
        std=record.preprocess.std,
        protocol="plain",
        seed=metrics.seed,
        val=metrics.val_accuracy,
        test=metrics.test_accuracy,
        task_bytes=task_bytes,
        train_s=metrics.train_s,
        backbone=record.backbone.sha256[:12],
        lspt_serve=record.created_with.removeprefix("lspt-serve "),
    )
