"""A sweep of two toy tasks: what its records say is what an independent training gives."""

import itertools
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine
from torch.nn.functional import cross_entropy

from lspt_serve import __version__
from lspt_serve.errors import CompileError, DataError, OutOfMemoryError, SweepError
from lspt_serve.models import Backbone
from lspt_serve.preprocess import NORMALISATIONS, normalise
from lspt_serve.results import Run, runs_of_storage
from lspt_serve.training import Dataset, Split, TrainSettings, Tuned, tune
from lspt_serve.training.sweep import Status, Sweep, SweepConfig, make_plans
from lspt_serve.training.sweep.study import finish, to_distributions
from lspt_serve.training.trainer import predict

TUNE, PREDICT = (f"lspt_serve.training.sweep.protocol.{name}" for name in ("tune", "predict"))

LR = {"low": 1e-3, "high": 0.3, "log": True}
CONFIG: dict[str, Any] = {
    "trials": 3,
    "seeds": [5, 6],
    "train": {"epochs": 2, "batch_size": 8, "precision": "fp32", "device": "cpu"},
    "space": {"lr": LR},
    "entry": [{"method": "linear"}],
}
ENTRIES: list[dict[str, Any]] = [
    {"method": "linear"},
    {"method": "vpt-deep", "pool": "patch_mean", "space": {"options": {"num_prompts": [2, 5]}}},
    {"name": "longer", "like": "vpt-deep", "train": {"epochs": 3}},
]


@pytest.fixture(autouse=True, scope="module")
def no_fsync() -> Iterator[None]:
    """These storages need not survive a power cut."""

    def relax(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    yield
    event.remove(Engine, "connect", relax)


def noise(count: int, seed: int) -> Split:
    """Random images with random labels: no accuracy is like another."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return Split(images, rng.integers(0, 3, count))


@pytest.fixture(scope="module")
def tasks() -> dict[str, Dataset]:
    labels = ["a", "b", "c"]
    return {
        name: Dataset(labels, noise(20, seed), noise(31, seed + 1), noise(53, seed + 2), notes=[])
        for name, seed in (("one", 0), ("two", 10))
    }


def run_sweep(
    backbone: Backbone,
    tasks: dict[str, Dataset],
    storage: Path,
    *,
    on_status: Callable[[Status], None] = lambda status: None,
    **changes: Any,
) -> list[Run]:
    config = SweepConfig.model_validate(CONFIG | changes)
    with closing(Sweep(config, make_plans(config), backbone, tasks, storage)) as work:
        return work.run(on_status)


Do = Callable[..., list[Run]]


@pytest.fixture
def sweep(tiny_backbone: Backbone, tasks: dict[str, Dataset], tmp_path: Path) -> Do:
    """sweep(storage, tasks=, **changes of CONFIG), on the first task unless others are given."""

    first = {"one": tasks["one"]}

    def sweep(
        storage: str = "sweep.db", *, tasks: dict[str, Dataset] = first, **more: Any
    ) -> list[Run]:
        return run_sweep(tiny_backbone, tasks, tmp_path / storage, **more)

    return sweep


@pytest.fixture(scope="module")
def finished(
    tiny_backbone: Backbone, tasks: dict[str, Dataset], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Run]]:
    """A storage in which ENTRIES are done on the first task, and its runs; use a copy."""
    storage = tmp_path_factory.mktemp("finished") / "sweep.db"
    return storage, run_sweep(tiny_backbone, {"one": tasks["one"]}, storage, entry=ENTRIES)


@pytest.fixture
def go_on(sweep: Do, finished: tuple[Path, list[Run]], tmp_path: Path) -> Do:
    """go_on(tasks=, **changes of the finished sweep)"""
    shutil.copy(finished[0], tmp_path / "sweep.db")
    return lambda **changes: sweep(**{"entry": ENTRIES} | changes)


def studies(path: Path) -> dict[str, optuna.Study]:
    storage = f"sqlite:///{path}"
    return {
        name: optuna.load_study(study_name=name, storage=storage)
        for name in optuna.get_all_study_names(storage)
    }


def same(first: list[Run], second: list[Run]) -> bool:
    """All but the time that it took."""
    runs = [[run.model_copy(update={"train_s": None}) for run in runs] for runs in (first, second)]
    return runs[0] == runs[1]


def measure_by_hand(tuned: Tuned, split: Split) -> tuple[float, float]:
    """Accuracy and loss of the folded model."""
    with torch.inference_mode():
        model = tuned.model.fold().eval()
        logits = model(torch.from_numpy(normalise(split.images, tuned.preprocess)))
    targets = torch.from_numpy(split.targets)
    right = (logits.argmax(dim=1) == targets).double().mean().item()
    return right, cross_entropy(logits, targets).item()


@pytest.mark.parametrize("name", ["vtab", "plain"])
def test_records_are_what_an_independent_training_gives(
    sweep: Do,
    tiny_backbone: Backbone,
    tasks: dict[str, Dataset],
    finished: tuple[Path, list[Run]],
    tmp_path: Path,
    name: str,
) -> None:
    if name == "vtab":
        storage, runs = finished
        tasks = {"one": tasks["one"]}
    else:
        storage, tasks = tmp_path / "sweep.db", {"two": tasks["two"]}
        runs = sweep(protocol=name, tasks=tasks, entry=ENTRIES)

    entries = ["linear", "vpt-deep", "longer"]
    assert [(run.task, run.name, run.seed) for run in runs] == list(
        itertools.product(tasks, entries, [5, 6])
    )
    found = studies(storage)
    for run in runs:
        dataset = tasks[run.task]
        whole = dataset.merged() if name == "vtab" else dataset
        how: Any = {"method": run.method, "pool": run.pool, "init": run.init}
        settings = TrainSettings(**run.train, seed=run.seed)
        tuned = tune(tiny_backbone, whole, options=run.options, settings=settings, **how)
        assert run.test == pytest.approx(measure_by_hand(tuned, dataset.test)[0], abs=1e-6)
        tensors = tuned.model.fold().task_tensors().values()
        assert run.task_bytes == sum(tensor.numpy().nbytes for tensor in tensors)
        assert settings.keep == ("last" if name == "vtab" else "best")
        if run.name == "longer":
            continue
        tried = []
        for trial in found[f"search/{run.task}/{run.name}"].trials:
            train = run.train | {"lr": trial.params["lr"]}
            options = run.options | (
                {"num_prompts": trial.params["options.num_prompts"]} if run.options else {}
            )
            settings = TrainSettings(**train, seed=5)  # the first of the seeds
            tuned = tune(tiny_backbone, dataset, options=options, settings=settings, **how)
            right, loss = measure_by_hand(tuned, dataset.val)
            assert trial.value == pytest.approx(right, abs=1e-6)
            tried.append((right, -loss, train["lr"], options))
        best = max(tried, key=lambda one: one[:2])
        assert (run.train["lr"], run.options) == best[2:]
        assert run.val == pytest.approx(best[0], abs=1e-6)


def test_like_goes_by_the_search_of_its_entry(finished: tuple[Path, list[Run]]) -> None:
    runs = {(run.task, run.name, run.seed): run for run in finished[1]}

    tuned, like = runs["one", "vpt-deep", 5], runs["one", "longer", 5]
    assert like.train == tuned.train | {"epochs": 3}
    assert (like.options, like.pool, like.trials) == (tuned.options, "patch_mean", 3)
    assert (like.val, tuned.val is None) == (None, False)


def test_like_takes_no_options_for_another_method(sweep: Do) -> None:
    entries = [ENTRIES[1], {"method": "linear", "like": "vpt-deep"}]

    tuned, like = sweep(entry=entries, trials=1, seeds=[5])

    assert (like.error, like.options) == (None, {})
    assert like.train["lr"] == tuned.train["lr"]


def test_full_fine_tuning_is_an_entry_too(
    sweep: Do, tiny_backbone: Backbone, tasks: dict[str, Dataset]
) -> None:
    before = tiny_backbone.vit.state_dict()["blocks.0.mlp.fc1.weight"].clone()

    runs = sweep(entry=[{"method": "full", "space": {"lr": [1e-4, 1e-3]}}], trials=1, seeds=[5])

    head = 3 * 24 + 3
    whole = sum(tensor.numel() for tensor in tiny_backbone.vit.state_dict().values())
    assert [(run.method, run.task_bytes) for run in runs] == [("full", 4 * (whole + head))]
    assert torch.equal(tiny_backbone.vit.state_dict()["blocks.0.mlp.fc1.weight"], before)


def test_a_record_says_under_which_circumstances(
    finished: tuple[Path, list[Run]], tiny_backbone: Backbone
) -> None:
    run = finished[1][0]

    assert (run.image_size, run.crop_pct, run.protocol, run.trials) == (32, 1.0, "vtab", 3)
    assert run.backbone == tiny_backbone.sha256[:12]
    assert run.torch == torch.__version__
    assert run.machine is not None
    assert run.machine.endswith(", 1 thread(s)")
    assert run.train_s is not None
    assert run.train_s > 0


def test_the_search_sees_no_test_and_a_final_run_sees_it_once(
    sweep: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def watched_tune(backbone: Backbone, dataset: Dataset, **how: Any) -> Tuned:
        seen.append(f"train on {len(dataset.train)}")
        return tune(backbone, dataset, **how)

    def watched_predict(model: Any, split: Split, preprocess: Any) -> Any:
        seen.append(f"look at {len(split)} as {model.method.name}")
        return predict(model, split, preprocess)

    monkeypatch.setattr(TUNE, watched_tune)
    monkeypatch.setattr(PREDICT, watched_predict)
    sweep(entry=[{"method": "vfpt"}])

    # 20 in train, 31 in val, 53 in test; what is looked at is folded
    search = ["train on 20", "look at 31 as vpt-deep"]
    final = ["train on 51", "look at 53 as vpt-deep"]
    assert seen == [*search * 3, *final * 2]


@pytest.mark.parametrize(
    ("sampler", "stop"), [("tpe", 1), ("tpe", 3), ("tpe", 5), ("random", 2), ("grid", 4)]
)
def test_a_stopped_sweep_goes_on_to_the_same_records(
    sweep: Do,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    stop: int,
) -> None:
    how: dict[str, Any] = {
        "sampler": sampler,
        "trials": None if sampler == "grid" else 4,
        "space": {"lr": [1e-3, 1e-2, 0.1, 0.3] if sampler == "grid" else LR},
    }
    whole = sweep("whole.db", **how)
    calls = itertools.count(1)

    def stops(*args: Any, **kwargs: Any) -> Tuned:
        if next(calls) == stop:
            raise KeyboardInterrupt
        return tune(*args, **kwargs)

    monkeypatch.setattr(TUNE, stops)
    with pytest.raises(KeyboardInterrupt):
        sweep("stopped.db", **how)
    gone_on = sweep("stopped.db", **how)

    assert same(whole, gone_on)
    assert next(calls) == 1 + 4 + 2 + 1  # the stopped call is the only one that was made again
    values = [
        [trial.values for trial in study.trials if trial.state == TrialState.COMPLETE]
        for study in (
            studies(tmp_path / name)["search/one/linear"] for name in ("whole.db", "stopped.db")
        )
    ]
    assert values[0] == values[1]


def test_a_finished_sweep_trains_nothing(
    go_on: Do, finished: tuple[Path, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TUNE, None)

    assert go_on() == finished[1]


def test_tpe_goes_by_what_was_found(sweep: Do, tmp_path: Path) -> None:
    for sampler in ("tpe", "random"):
        sweep(f"{sampler}.db", sampler=sampler, trials=6, seeds=[5])

    tpe, random = (
        [
            trial.params["lr"]
            for trial in studies(tmp_path / f"{name}.db")["search/one/linear"].trials
        ]
        for name in ("tpe", "random")
    )
    assert tpe[:3] == random[:3]  # the first half
    assert not set(tpe[3:]) & set(random[3:])


def test_a_grid_tries_each_point_once(sweep: Do, tmp_path: Path) -> None:
    space = {"lr": [1e-3, 1e-2], "weight_decay": [0.0, 0.1, 0.2]}

    sweep(sampler="grid", trials=None, space=space)

    trials = studies(tmp_path / "sweep.db")["search/one/linear"].trials
    points = [(trial.params["lr"], trial.params["weight_decay"]) for trial in trials]
    assert points == list(itertools.product(space["lr"], space["weight_decay"]))


def test_a_space_becomes_what_optuna_draws_from() -> None:
    table = {
        "lr": LR,
        "epochs": {"low": 4, "high": 20},
        "weight_decay": {"low": 0, "high": 0.5},
        "options": {"coder": ["lstm", "gru"]},
    }
    space = SweepConfig.model_validate(CONFIG | {"space": table}).space

    assert to_distributions(space) == {
        "lr": FloatDistribution(1e-3, 0.3, log=True),
        "epochs": IntDistribution(4, 20),
        "weight_decay": FloatDistribution(0.0, 0.5),
        "options.coder": CategoricalDistribution(["lstm", "gru"]),
    }


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Training diverges from a learning rate of 0.1 on; gives those that did."""
    diverged: list[float] = []

    def diverges(*args: Any, settings: TrainSettings, **kwargs: Any) -> Tuned:
        if settings.lr >= 0.1:
            diverged.append(settings.lr)
            raise DataError(f"training diverged: lower lr {settings.lr}")
        return tune(*args, settings=settings, **kwargs)

    monkeypatch.setattr(TUNE, diverges)
    return diverged


def test_a_trial_that_diverges_counts_and_is_not_chosen(
    sweep: Do, diverging: list[float], tmp_path: Path
) -> None:
    runs = sweep(space={"lr": [0.1, 0.01, 0.2]}, sampler="grid", trials=None)

    assert {run.train["lr"] for run in runs} == {0.01}
    assert all(run.test is not None and run.trials == 3 for run in runs)
    assert diverging == [0.1, 0.2]
    trials = studies(tmp_path / "sweep.db")["search/one/linear"].trials
    assert [trial.state.name for trial in trials] == ["PRUNED", "COMPLETE", "PRUNED"]
    assert trials[2].user_attrs["error"] == "training diverged: lower lr 0.2"


@pytest.mark.parametrize(
    ("where", "error", "raised"),
    [
        (TUNE, CompileError, CompileError),
        ("lspt_serve.training.task.fit", torch.OutOfMemoryError, OutOfMemoryError),
        ("lspt_serve.training.trainer._predict", torch.OutOfMemoryError, OutOfMemoryError),
    ],
    ids=["compile", "memory to train", "memory to measure"],
)
def test_what_the_machine_cannot_do_ends_the_sweep_and_is_no_result(
    sweep: Do,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: type[Exception],
    raised: type[Exception],
) -> None:
    def fails(*args: Any, **kwargs: Any) -> NoReturn:
        raise error("no compiler, or no memory just now")

    with monkeypatch.context() as patch:
        patch.setattr("lspt_serve.training.trainer._measure", lambda *given: (1.0, 0.5))
        patch.setattr(where, fails)
        with pytest.raises(raised):
            sweep(space={"lr": [0.01]}, sampler="grid", trials=None)

    runs = sweep(space={"lr": [0.01]}, sampler="grid", trials=None)
    assert all(run.error is None for run in runs)


def test_an_entry_whose_trials_all_diverge_has_failed(sweep: Do, diverging: list[float]) -> None:
    how: dict[str, Any] = {"space": {"lr": [0.1, 0.2]}, "trials": 2, "entry": ENTRIES}

    runs = sweep(**how)

    for run in runs:
        assert (run.test, run.val, run.task_bytes) == (None, None, None)
        assert run.error is not None
        assert run.error.startswith("all 2 trial(s) failed: training diverged: lower lr 0.")
    assert len(runs) == 3 * 2
    assert len(diverging) == 2 * 2  # trials of entries with a search
    assert sweep(**how) == runs


def test_a_final_run_that_diverges_has_failed(sweep: Do, diverging: list[float]) -> None:
    entries = [{"method": "linear"}, {"name": "hot", "like": "linear", "train": {"lr": 0.5}}]

    runs = sweep(space={"lr": [0.01, 0.02]}, entry=entries, seeds=[5])

    assert [run.error for run in runs] == [None, "training diverged: lower lr 0.5"]


def test_seeds_may_be_added(
    go_on: Do, finished: tuple[Path, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()
    monkeypatch.setattr(TUNE, lambda *args, **how: (next(calls), tune(*args, **how))[1])

    more = go_on(seeds=[5, 7, 6])

    assert next(calls) == 3  # one for each entry
    assert [run for run in more if run.seed != 7] == finished[1]


def test_runs_stand_in_the_order_of_tasks_and_config_whatever_was_done_first(
    sweep: Do, tasks: dict[str, Dataset]
) -> None:
    linear, other = {"method": "linear"}, {"name": "other", "like": "linear", "pool": "patch_mean"}
    first = {"name": "first", "method": "linear"}
    sweep(trials=1, seeds=[6], entry=[linear, other])

    runs = sweep(
        trials=1, seeds=[6, 5], entry=[first, linear, other], tasks=dict(reversed(tasks.items()))
    )

    assert [(run.task, run.name, run.seed) for run in runs] == list(
        itertools.product(["two", "one"], ["first", "linear", "other"], [5, 6])
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 4}, "search/one/linear with another setup: trials was 3, is 4; give another"),
        ({"protocol": "plain"}, "protocol was vtab, is plain"),
        ({"sampler": "random"}, "sampler was tpe, is random"),
        ({"seeds": [6, 5]}, "seed of the search was 5, is 6"),
        ({"train": CONFIG["train"] | {"epochs": 3}}, r"train\.epochs was 2, is 3;"),
        ({"space": {"lr": LR | {"high": 0.2}}}, r"space\.lr was {.*'high': 0.3.*is .*'high': 0.2"),
        (
            {"entry": [{"method": "linear", "pool": "patch_mean"}]},
            "pool was None, is patch_mean",
        ),
        (
            {"entry": [ENTRIES[1] | {"options": {"prompt_dropout": 0.5}}]},
            r"search/one/vpt-deep with .*: options\.prompt_dropout was None, is 0.5;",
        ),
        (
            {"entry": [*ENTRIES[:2], ENTRIES[2] | {"train": {"epochs": 4}}]},
            r"seeds/one/longer with another setup: train\.epochs was 3, is 4",
        ),
    ],
)
def test_another_setup_on_the_same_storage_is_refused(
    go_on: Do, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SweepError, match=message):
        go_on(**changes)


def test_another_version_goes_on_with_a_note(
    tiny_backbone: Backbone,
    tasks: dict[str, Dataset],
    finished: tuple[Path, list[Run]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config = SweepConfig.model_validate(CONFIG | {"entry": ENTRIES})
    storage = tmp_path / "sweep.db"
    shutil.copy(finished[0], storage)

    def notes() -> list[str]:
        one = {"one": tasks["one"]}
        with closing(Sweep(config, make_plans(config), tiny_backbone, one, storage)) as work:
            assert work.run() == finished[1]
            return work.notes

    assert notes() == []
    monkeypatch.setattr("lspt_serve.training.sweep.study.VERSIONS", "lspt-serve 9")
    own = f"lspt-serve {__version__}, torch {torch.__version__}"
    assert notes() == [
        f"begun with {own}, and goes on with lspt-serve 9; what the config leaves to defaults may "
        "have changed"
    ]


def test_a_storage_from_before_versions_were_kept_goes_on(
    go_on: Do, finished: tuple[Path, list[Run]], tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "sweep.db")) as storage, storage:
        deleted = storage.execute("DELETE FROM study_user_attributes WHERE key = 'versions'")
        assert deleted.rowcount == 2 + 3  # searches and final runs

    assert go_on() == finished[1]


def test_other_images_on_the_same_storage_are_refused(go_on: Do, tasks: dict[str, Dataset]) -> None:
    one = tasks["one"]
    images = one.test.images.copy()
    images[-1, -1, -1, -1] ^= 1

    with pytest.raises(SweepError, match=r"data was [0-9a-f]{12}, is [0-9a-f]{12}"):
        go_on(tasks={"one": replace(one, test=Split(images, one.test.targets))})


def test_another_normalisation_on_the_same_storage_is_refused(
    tiny_backbone: Backbone, tasks: dict[str, Dataset], tmp_path: Path
) -> None:
    storage, one = tmp_path / "sweep.db", {"one": tasks["one"]}
    run_sweep(tiny_backbone, one, storage)
    mean, std = NORMALISATIONS["imagenet"]
    other = replace(tiny_backbone.preprocess, mean=mean, std=std)

    with pytest.raises(SweepError, match=r"mean was \[0.5, 0.5, 0.5\], is \[0.485, .*, std was"):
        run_sweep(replace(tiny_backbone, preprocess=other), one, storage)


def test_a_file_of_something_else_is_refused(sweep: Do, tmp_path: Path) -> None:
    (tmp_path / "sweep.db").write_text("a thesis")

    with pytest.raises(SweepError, match=r"sweep\.db is no storage of a sweep: .*not a database"):
        sweep()

    assert (tmp_path / "sweep.db").read_text() == "a thesis"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits a tenth of a second for others."""
    monkeypatch.setattr("lspt_serve.results.storage.BUSY_S", 0.1)


FULL = r"{}\.db cannot be used: database or disk is full; make room on the disk and give the same"
LOCKED = (
    r"sweep\.db cannot be used: database is locked; another program holds it; wait for its end "
    "and give the same command again$"
)


@pytest.mark.usefixtures("impatient")
def test_a_storage_that_another_program_holds_is_said(go_on: Do, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "sweep.db")) as other:
        other.execute("BEGIN EXCLUSIVE")

        with pytest.raises(SweepError, match=LOCKED):
            go_on()
        with pytest.raises(SweepError, match=LOCKED):
            runs_of_storage(tmp_path / "sweep.db")


@pytest.mark.usefixtures("impatient")
def test_a_storage_that_is_held_in_a_training_ends_the_sweep_which_then_goes_on(
    sweep: Do, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"trials": 1, "seeds": [5]}
    with closing(sqlite3.connect(tmp_path / "sweep.db")) as other:

        def hold(status: Status) -> None:
            if status.step == "trial 1 of 1" and not other.in_transaction:
                other.execute("BEGIN EXCLUSIVE")

        with pytest.raises(SweepError, match=LOCKED):
            sweep(on_status=hold, **how)

    assert [run.error for run in sweep(**how)] == [None]


def test_a_full_disk_is_said(sweep: Do, go_on: Do) -> None:
    def fill(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # no more than what is there

    event.listen(Engine, "connect", fill)
    try:
        with pytest.raises(SweepError, match=FULL.format("new")):
            sweep("new.db")
        with pytest.raises(SweepError, match=FULL.format("sweep")):
            go_on(seeds=[5, *range(6, 30)])
    finally:
        event.remove(Engine, "connect", fill)


def test_runs_are_read_from_the_storage_at_any_time(sweep: Do, tmp_path: Path) -> None:
    partial: list[int] = []

    def look(status: Status) -> None:
        if not status.epoch:
            partial.append(len(runs_of_storage(tmp_path / "sweep.db")))

    runs = sweep(on_status=look)

    assert partial == [0, 0, 0, 0, 1, 2]  # three trials, two seeds, the end
    assert runs_of_storage(tmp_path / "sweep.db") == runs


def test_a_run_counts_once_though_the_process_ended_before_it_was_told(
    sweep: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(study: optuna.Study, trial: optuna.Trial, value: float | None) -> None:
        if study.study_name.startswith("seeds/"):
            raise KeyboardInterrupt
        finish(study, trial, value)

    with monkeypatch.context() as patched:
        patched.setattr("lspt_serve.training.sweep.sweep.finish", stops)
        with pytest.raises(KeyboardInterrupt):
            sweep()
    assert runs_of_storage(tmp_path / "sweep.db") == []

    runs = sweep()

    assert [run.seed for run in runs] == [5, 6]
    assert runs_of_storage(tmp_path / "sweep.db") == runs


def test_a_storage_has_one_lock_by_whatever_name_it_is_given(sweep: Do, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "disk" / "sweep.db")  # which is not there yet

    sweep("link.db", trials=1, seeds=[5])

    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link.db"]
    names = sorted(path.name for path in (tmp_path / "disk").iterdir())
    assert names == ["sweep.db", "sweep.db.lock"]


def test_no_storage_is_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"none\.db: no such file; wanted the --storage of"):
        runs_of_storage(tmp_path / "none.db")

    assert list(tmp_path.iterdir()) == []


def test_status_says_where_it_is(sweep: Do) -> None:
    seen: list[Status] = []

    runs = sweep(on_status=seen.append)

    starts = [status for status in seen if status.task and not status.epoch]
    steps = ["trial 1 of 3", "trial 2 of 3", "trial 3 of 3", "seed 5", "seed 6"]
    assert [status.step for status in starts] == steps
    assert [(status.done, status.total) for status in starts] == [(n, 5) for n in range(5)]
    assert (starts[0].best, starts[3].best) == (None, runs[0].val)
    assert [status.epoch for status in seen[:3]] == [0, 1, 2]
    assert seen[-1] == Status(5, 5)
