import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lspt_serve.baseline import BaselineRecord
from lspt_serve.bundle import BASELINE, Bundle, save_bundle
from lspt_serve.errors import BundleError, SweepError
from lspt_serve.manifest import MethodRef, Metrics
from lspt_serve.results import compare, runs_of, save_runs


def measured(bundle: Bundle, **metrics: float) -> Bundle:
    known = {"val_accuracy": 0.5, "test_accuracy": 0.25, "best_epoch": 1, "seed": 7, "train_s": 2.5}
    record = Metrics.model_validate({**known, "split": {"test": 4}, **metrics})
    return Bundle(bundle.manifest.model_copy(update={"metrics": record}), bundle.tensors)


TRAIN = {"lr": 0.003, "epochs": 30}


def save_with_run(bundle: Bundle, folder: Path, **other: Any) -> None:
    """A bundle and the run beside it; `other` is what that says and a run of the bundle would not.

    A run that says more than is looked at is tests/training/test_run.py's.
    """
    save_bundle(bundle, folder)
    manifest = bundle.manifest
    assert manifest.metrics is not None
    config = {
        "method": manifest.method.name,
        "options": manifest.method.options,
        "pool": manifest.pool,
        "init": "tokens",
        "seed": manifest.metrics.seed,
        "backbone": manifest.backbone.sha256,
        "preprocess": asdict(manifest.preprocess),
        "labels": manifest.labels,
        "train": {"images": 70, "sha256": "0" * 64},
        **TRAIN,
        **other,
    }
    run = folder.with_name(f"{folder.name}.run")
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config))
    (run / "epochs.csv").touch()


def test_a_missing_file_is_said() -> None:
    with pytest.raises(SweepError, match=r"nowhere\.json cannot be read: No such file"):
        runs_of([Path("nowhere.json")])


def test_a_bundle_is_a_run(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    bundle = measured(make_bundle("vfpt", num_prompts=3, name="birds"))
    save_bundle(bundle, tmp_path / "birds")

    (run,) = runs_of([tmp_path / "birds"])

    manifest = bundle.manifest
    assert (run.task, run.name, run.method) == ("birds", "vpt-deep", "vpt-deep")
    assert (run.val, run.test, run.seed, run.train_s) == (0.5, 0.25, 7, 2.5)
    assert (run.image_size, run.protocol, run.lspt_serve) == (32, "plain", "0.1.0")
    assert run.backbone == manifest.backbone.sha256[:12]
    # prompts of 3 blocks, 3 x 24 each, and a head of 3 labels on 24 features
    assert run.task_bytes == 4 * (3 * 3 * 24 + 3 * 24 + 3)


def test_a_folded_bundle_goes_by_what_it_was_trained_as(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = measured(make_bundle("vfpt", num_prompts=3))
    origin = MethodRef(name="vfpt", options={"num_prompts": 3, "fourier_share": 0.5})
    manifest = bundle.manifest.model_copy(update={"trained_as": origin})
    save_bundle(Bundle(manifest, bundle.tensors), tmp_path / "birds")

    (run,) = runs_of([tmp_path / "birds"])

    assert (run.name, run.method, run.options) == ("vfpt", "vfpt", origin.options)


def test_a_folder_of_bundles_is_a_run_each(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    for name in ("b", "a"):
        save_bundle(measured(make_bundle(name=name)), tmp_path / name)
    save_bundle(make_bundle(name="untrained"), tmp_path / "untrained")
    (tmp_path / "more").mkdir()

    assert [run.task for run in runs_of([tmp_path])] == ["a", "b"]


def test_bundles_that_are_no_seeds_of_one_entry_are_named_by_their_folders(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    few, many = (make_bundle("vpt-deep", num_prompts=count, name="birds") for count in (2, 3))
    for place, bundle in {
        "one/few": measured(few),
        "one/rate": measured(few, test_accuracy=0.5),  # the same seed at another learning rate
        "two/cars": measured(make_bundle("vpt-deep", num_prompts=2, name="cars")),
        "two/many": measured(many, test_accuracy=0.75, seed=8),
    }.items():
        save_bundle(bundle, tmp_path / place)

    runs = runs_of([tmp_path / "one", tmp_path / "two"])

    assert [(run.task, run.name, run.test) for run in runs] == [
        ("birds", "vpt-deep (one/few)", 0.25),
        ("birds", "vpt-deep (one/rate)", 0.5),
        ("cars", "vpt-deep", 0.25),
        ("birds", "vpt-deep (two/many)", 0.75),
    ]
    assert [row.name for row in compare(runs)[0].rows] == [
        "vpt-deep (one/few)", "vpt-deep (one/rate)", "vpt-deep", "vpt-deep (two/many)",
    ]  # fmt: skip


def test_folders_called_alike_are_told_apart_by_those_they_lie_in(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    for place, test in (("a/birds", 0.25), ("b/birds", 0.5), ("b/old/birds", 0.75)):
        save_bundle(measured(make_bundle(name="birds"), test_accuracy=test), tmp_path / place)

    def names(*places: str) -> list[str]:
        return [run.name for run in runs_of([tmp_path / place for place in places])]

    assert names("a", "b") == ["lspt (a)", "lspt (b)"]
    assert names("b/old", "b") == ["lspt (old/birds)", "lspt (birds)"]
    assert names("a", "a/birds") == ["lspt", "lspt"]


def test_seeds_of_one_entry_share_a_row(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    for seed in (0, 1):
        save_with_run(measured(make_bundle(name="birds"), seed=seed), tmp_path / f"birds-{seed}")

    runs = runs_of([tmp_path])

    assert [(run.name, run.seed) for run in runs] == [("lspt", 0), ("lspt", 1)]
    assert [(run.init, run.train) for run in runs] == [("tokens", TRAIN)] * 2
    assert [row.tasks["birds"].n for row in compare(runs)[0].rows] == [2]


@pytest.mark.parametrize("other", [{"lr": 0.1}, {"init": "uniform"}], ids=["lr", "init"])
def test_bundles_that_were_trained_otherwise_are_no_seeds_of_one_entry(
    tmp_path: Path, make_bundle: Callable[..., Bundle], other: dict[str, Any]
) -> None:
    first, second = (measured(make_bundle(name="birds"), seed=seed) for seed in (0, 1))
    save_with_run(first, tmp_path / "one")
    save_with_run(second, tmp_path / "two", **other)

    assert [run.name for run in runs_of([tmp_path])] == ["lspt (one)", "lspt (two)"]


def forget(run: Path) -> None:
    (run / "config.json").unlink()


def begin_anew(run: Path) -> None:
    (run / "epochs.csv").unlink()


def leave_unfinished(run: Path) -> None:
    (run / "state.pt").touch()


def be_anothers(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"seed": 3}))


def be_no_record(run: Path) -> None:
    (run / "config.json").write_text("[]")


@pytest.mark.parametrize("spoil", [forget, begin_anew, leave_unfinished, be_anothers, be_no_record])
def test_bundles_of_which_nobody_knows_how_they_were_trained_are_no_seeds(
    tmp_path: Path, make_bundle: Callable[..., Bundle], spoil: Callable[[Path], None]
) -> None:
    for seed in (0, 1):
        save_with_run(measured(make_bundle(name="birds"), seed=seed), tmp_path / f"birds-{seed}")
        spoil(tmp_path / f"birds-{seed}.run")

    runs = runs_of([tmp_path])

    assert [run.name for run in runs] == ["lspt (birds-0)", "lspt (birds-1)"]
    assert [(run.init, run.train) for run in runs] == [(None, {})] * 2


def test_a_bundle_is_told_apart_from_a_run_of_a_sweep(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    save_bundle(measured(make_bundle(name="birds")), tmp_path / "bundles" / "mine")
    (own,) = runs_of([tmp_path / "bundles"])
    swept = own.model_copy(update={"train": {"lr": 0.1}, "test": 0.5})
    save_runs(tmp_path / "sweep.json", [swept])

    from_file = runs_of([tmp_path / "sweep.json", tmp_path / "bundles"])

    assert [run.name for run in from_file] == ["lspt", "lspt (mine)"]
    assert runs_of([tmp_path / "bundles"], [swept]) == from_file[::-1]


def test_a_baseline_is_a_run_beside_bundles(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    manifest = measured(make_bundle(name="birds")).manifest
    assert manifest.metrics is not None
    record = BaselineRecord(
        name="birds",
        labels=manifest.labels,
        method=MethodRef(name="full"),
        backbone=manifest.backbone,
        preprocess=manifest.preprocess,
        pool=manifest.pool,
        num_bytes=1000,
        weights="model.safetensors",
        metrics=manifest.metrics,
    )
    save_bundle(measured(make_bundle(name="birds"), test_accuracy=0.5), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / BASELINE).write_text(record.model_dump_json())

    bundle, baseline = runs_of([tmp_path])

    assert runs_of([tmp_path / "b"]) == [baseline]
    assert (baseline.name, baseline.task, baseline.test) == ("full", "birds", 0.25)
    assert (baseline.task_bytes, baseline.seed, baseline.train_s) == (1000, 7, 2.5)
    assert (bundle.name, bundle.test) == ("lspt", 0.5)
    assert bundle.backbone == baseline.backbone


@pytest.mark.parametrize("text", ["{}", "[", '{"name": 3}'])
def test_a_broken_baseline_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / BASELINE).write_text(text)

    with pytest.raises(BundleError, match=r"baseline\.json: "):
        runs_of([tmp_path])


def test_a_folder_without_a_measured_bundle_is_refused(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    save_bundle(make_bundle(), tmp_path / "untrained")

    with pytest.raises(
        SweepError, match="holds no bundle or baseline that says how accurate it is"
    ):
        runs_of([tmp_path])
