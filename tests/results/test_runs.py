import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lspt_serve.baseline import BaselineRecord
from lspt_serve.bundle import BASELINE, Bundle, MethodRef, Metrics, save_bundle
from lspt_serve.errors import BundleError, SweepError
from lspt_serve.results import Run, check_runs_output, load_runs, runs_of, save_runs

RUN = Run(
    task="a", name="lspt D/4", method="lspt", options={"coder_hidden": 48}, train={"lr": 0.01},
    image_size=32, protocol="vtab", trials=6, seed=3, val=0.75, test=0.5, task_bytes=12,
    train_s=1.5, backbone="0123456789ab", lspt_serve="0.1.0",
)  # fmt: skip


def measured(bundle: Bundle, **metrics: float) -> Bundle:
    known = {"val_accuracy": 0.5, "test_accuracy": 0.25, "best_epoch": 1, "seed": 7, "train_s": 2.5}
    record = Metrics.model_validate({**known, "split": {"test": 4}, **metrics})
    return Bundle(bundle.manifest.model_copy(update={"metrics": record}), bundle.tensors)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_runs(tmp_path / "runs.json", [RUN])

    assert load_runs(tmp_path / "runs.json") == [RUN]
    assert json.loads((tmp_path / "runs.json").read_text())[0]["name"] == "lspt D/4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no list of runs as lspt sweep writes it: file"),
        ('[{"task": "a"}]', "no list of runs as lspt sweep writes it: 0.name: Field required"),
        ("[", "no list of runs"),
    ],
)
def test_another_file_is_no_list_of_runs_and_is_not_replaced(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "thesis.json"
    path.write_text(text)

    for check in (load_runs, check_runs_output):
        with pytest.raises(SweepError, match=message):
            check(path)


def test_runs_may_be_replaced_by_runs(tmp_path: Path) -> None:
    check_runs_output(tmp_path / "runs.json")
    save_runs(tmp_path / "runs.json", [RUN])
    check_runs_output(tmp_path / "runs.json")


def test_a_missing_file_is_said() -> None:
    with pytest.raises(SweepError, match=r"nowhere\.json cannot be read: No such file"):
        runs_of(Path("nowhere.json"))


def test_a_bundle_is_a_run(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    bundle = measured(make_bundle("vfpt", num_prompts=3, name="birds"))
    save_bundle(bundle, tmp_path / "birds")

    (run,) = runs_of(tmp_path / "birds")

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

    (run,) = runs_of(tmp_path / "birds")

    assert (run.name, run.method, run.options) == ("vfpt", "vfpt", origin.options)


def test_a_folder_of_bundles_is_a_run_each(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    for name in ("b", "a"):
        save_bundle(measured(make_bundle(name=name)), tmp_path / name)
    save_bundle(make_bundle(name="untrained"), tmp_path / "untrained")
    (tmp_path / "more").mkdir()

    assert [run.task for run in runs_of(tmp_path)] == ["a", "b"]


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
        weights=None,
        metrics=manifest.metrics,
    )
    save_bundle(measured(make_bundle(name="birds"), test_accuracy=0.5), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / BASELINE).write_text(record.model_dump_json())

    bundle, baseline = runs_of(tmp_path)

    assert runs_of(tmp_path / "b") == [baseline]
    assert (baseline.name, baseline.task, baseline.test) == ("full", "birds", 0.25)
    assert (baseline.task_bytes, baseline.seed, baseline.train_s) == (1000, 7, 2.5)
    assert (bundle.name, bundle.test) == ("lspt", 0.5)
    assert bundle.backbone == baseline.backbone


@pytest.mark.parametrize("text", ["{}", "[", '{"name": 3}'])
def test_a_broken_baseline_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / BASELINE).write_text(text)

    with pytest.raises(BundleError, match=r"baseline\.json: "):
        runs_of(tmp_path)


def test_a_folder_without_a_measured_bundle_is_refused(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    save_bundle(make_bundle(), tmp_path / "untrained")

    with pytest.raises(
        SweepError, match="holds no bundle or baseline that says how accurate it is"
    ):
        runs_of(tmp_path)
