"""Runs from files and folders: a results.json, or what bundles and baselines say of themselves.

How these were trained their run says, NAME.run beside the folder NAME, once it is finished.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from lspt_serve.baseline import BaselineRecord, load_baseline
from lspt_serve.bundle import BASELINE, MANIFEST, load_bundle
from lspt_serve.errors import SweepError
from lspt_serve.manifest import Manifest, MethodRef, Metrics
from lspt_serve.results.runs import Run, load_runs

__all__ = ["CONFIG", "EPOCHS", "STATE", "runs_of"]

# of a run's folder: what is trained, the log of its epochs, and what is there until it is finished
CONFIG, EPOCHS, STATE = "config.json", "epochs.csv", "state.pt"
# of CONFIG, what is no setting of how to train, or differs from seed to seed
OTHERS = {
    *("method", "options", "pool", "init", "seed", "processes", "backbone", "preprocess"),
    *("labels", "train", "val", "test", "made_with"),
}


class _Found(NamedTuple):
    run: Run
    folder: Path | None  # of a bundle or baseline


def runs_of(paths: Iterable[Path], others: Iterable[Run] = ()) -> list[Run]:
    """The runs of results.json files, of bundles or baselines, of folders of them, and others.

    A bundle is an entry by the name of its method. Where it is no other seed of what goes by that
    name on its task, what its folder is called stands behind it.

    Raises:
        SweepError: nothing there, or nothing that says how accurate it is.
        BundleError: a bundle or baseline that is broken.
    """
    found = [one for path in paths for one in _find(path)]
    found += [_Found(run, None) for run in others]
    groups: dict[tuple[object, ...], list[_Found]] = {}
    for one in found:
        key = one.run.name, one.run.task, one.run.circumstances
        groups.setdefault(key, []).append(one)
    names: dict[Path, str] = {}
    for group in groups.values():
        if not _are_seeds([one.run for one in group]):
            names |= _short_names({one.folder for one in group if one.folder})
    return [
        run.model_copy(update={"name": f"{run.name} ({names[folder]})"}) if folder in names else run
        for run, folder in found
    ]


def _are_seeds(runs: Sequence[Run]) -> bool:
    """Whether all were trained alike, each with another seed; a run may be there twice."""
    first, *others = [run for place, run in enumerate(runs) if run not in runs[:place]]
    seeds = {run.seed for run in (first, *others)}
    return len(seeds) == 1 + len(others) and not any(map(first.differs_in, others))


def _short_names(folders: set[Path]) -> dict[Path, str]:
    """Of each path what is not common to all, at its start and at its end."""
    if not folders:
        return {}
    base = os.path.commonpath([folder.parent for folder in folders])
    parts = {folder: folder.relative_to(base).parts for folder in folders}
    while min(map(len, parts.values())) > 1 and len({own[-1] for own in parts.values()}) == 1:
        parts = {folder: own[:-1] for folder, own in parts.items()}
    return {folder: "/".join(own) for folder, own in parts.items()}


def _find(path: Path) -> list[_Found]:
    if not path.is_dir():
        return [_Found(run, None) for run in load_runs(path)]
    if own := _run_of_folder(path):
        return [_Found(own, path.resolve())]
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    runs = [(_run_of_folder(folder), folder.resolve()) for folder in folders]
    found = [_Found(run, folder) for run, folder in runs if run]
    if not found:
        raise SweepError(
            f"{path} holds no bundle or baseline that says how accurate it is; see lspt train"
        )
    return found


def _run_of_folder(folder: Path) -> Run | None:
    if (folder / BASELINE).is_file():
        record = load_baseline(folder)
        return _run_of(folder, record, record.method, record.metrics, record.num_bytes)
    if not (folder / MANIFEST).is_file():
        return None
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    if manifest.metrics is None:
        return None
    task_bytes = sum(4 * tensor.size for tensor in bundle.tensors.values())
    method = manifest.trained_as or manifest.method
    return _run_of(folder, manifest, method, manifest.metrics, task_bytes)


def _run_of(
    folder: Path,
    record: Manifest | BaselineRecord,
    method: MethodRef,
    metrics: Metrics,
    task_bytes: int,
) -> Run:
    config = _find_config(folder)
    wanted = {
        "method": method.name,
        "options": method.options,
        "pool": record.pool,
        "seed": metrics.seed,
        "backbone": record.backbone.sha256,
        "preprocess": json.loads(json.dumps(asdict(record.preprocess))),
        "labels": record.labels,
    }
    if any(config.get(name) != value for name, value in wanted.items()):  # of another result
        config = {}
    return Run(
        task=record.name,
        name=method.name,
        method=method.name,
        options=method.options,
        pool=record.pool,
        init=config.get("init"),
        train={name: value for name, value in config.items() if name not in OTHERS},
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


def _find_config(folder: Path) -> dict[str, Any]:
    """What the finished run beside a folder says; nothing where there is none."""
    folder = folder.resolve()
    run = folder.with_name(f"{folder.name}.run")
    try:
        if (run / STATE).exists() or not (run / EPOCHS).exists():  # begun anew since then
            return {}
        config = json.loads((run / CONFIG).read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
