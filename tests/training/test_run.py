import csv
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import COLOURS, coloured_dataset

from lspt_serve import __version__
from lspt_serve.bundle import save_bundle
from lspt_serve.errors import OutputError, RunError
from lspt_serve.files import locked
from lspt_serve.models import Backbone
from lspt_serve.results import runs_of
from lspt_serve.training import (
    Dataset,
    Epoch,
    TrainSettings,
    announce_result,
    check_run,
    finish_run,
    has_saved,
    is_unfinished,
    train_task,
    tune,
)

LABELS = [*COLOURS]
SHORT = TrainSettings(epochs=2, batch_size=8, warmup_epochs=0.5, precision="fp32", device="cpu")

Train = Callable[..., Any]


class StoppedError(Exception):
    """In place of a kill, of which tests/cli/test_resume.py has the real ones."""


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return coloured_dataset(4, 4, 4)


@pytest.fixture
def train(tiny_backbone: Backbone, dataset: Dataset, tmp_path: Path) -> Train:
    """train(**other than usual): tune in tmp_path / "run"; the notes that it gave."""

    def train(**other: Any) -> list[str]:
        notes: list[str] = []
        usual: dict[str, Any] = {"backbone": tiny_backbone, "dataset": dataset, "settings": SHORT}
        tune(**usual | {"run": tmp_path / "run", "on_note": notes.append} | other)
        return notes

    return train


@pytest.fixture
def unfinished(train: Train, tmp_path: Path) -> Path:
    """The folder of a run that stopped after the first of two epochs."""

    def stop(epoch: Epoch) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        train(on_epoch=stop)
    assert is_unfinished(tmp_path / "run")
    return tmp_path / "run"


def darker(dataset: Dataset) -> Dataset:
    images = dataset.val.images.copy()
    images[3, 7, 7, 1] -= 1
    return replace(dataset, val=replace(dataset.val, images=images))


def swapped(dataset: Dataset) -> Dataset:
    targets = dataset.train.targets.copy()
    targets[0] = 1
    return replace(dataset, train=replace(dataset.train, targets=targets))


def test_run_is_described_whole(train: Train, tmp_path: Path, tiny_backbone: Backbone) -> None:
    train(options={"prompt_dropout": 0.25})

    config = json.loads((tmp_path / "run" / "config.json").read_bytes())
    assert (config["method"], config["options"]["prompt_dropout"]) == ("lspt", 0.25)
    assert (config["pool"], config["init"], config["lr"]) == ("cls", "tokens", SHORT.lr)
    assert config["precision"] == "float32"
    assert config["backbone"] == tiny_backbone.sha256
    assert (config["labels"], config["train"]["images"]) == (LABELS, 12)
    assert config["made_with"] == {
        "lspt-serve": __version__,
        "torch": torch.__version__,
        "device": "cpu",
        "threads": torch.get_num_threads(),
    }
    assert "device" not in config


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"settings": replace(SHORT, lr=0.001)}, r"lr 0\.003 there, 0\.001 here;"),
        ({"settings": replace(SHORT, epochs=3)}, r"epochs 2 there, 3 here;"),
        ({"settings": replace(SHORT, seed=1)}, r"seed 0 there, 1 here;"),
        ({"settings": replace(SHORT, precision="bf16")}, "precision float32 there, bfloat16 here;"),
        ({"options": {"num_prompts": 3}}, r"options\.num_prompts \d+ there, 3 here;"),
        ({"pool": "patch_mean"}, "pool cls there, patch_mean here;"),
        ({"init": "kmeans"}, "init tokens there, kmeans here;"),
        ({"dataset": darker}, r"val\.sha256 [0-9a-f]{12} there, [0-9a-f]{12} here;"),
        ({"dataset": swapped}, r"train\.sha256 [0-9a-f]{12} there, [0-9a-f]{12} here;"),
        (
            {"dataset": lambda dataset: replace(dataset, labels=["b", "g", "r"])},
            "labels blue, green, red there, b, g, r here;",
        ),
    ],
)
def test_another_run_is_refused_by_what_differs(
    train: Train, unfinished: Path, dataset: Dataset, other: dict[str, Any], difference: str
) -> None:
    before = {path: path.read_bytes() for path in unfinished.iterdir()}
    if "dataset" in other:
        other = {"dataset": other["dataset"](dataset)}

    with pytest.raises(RunError, match=f"an unfinished run with {difference} give --restart"):
        train(**other)

    assert {path: path.read_bytes() for path in unfinished.iterdir()} == before
    assert train(**other, restart=True) == []


def test_another_backbone_is_refused(
    train: Train, unfinished: Path, make_backbone: Callable[..., Backbone]
) -> None:
    with pytest.raises(RunError, match=r"backbone [0-9a-f]{12} there, [0-9a-f]{12} here;"):
        train(backbone=make_backbone(seed=1))


def test_another_version_or_number_of_threads_is_noted_only(train: Train, unfinished: Path) -> None:
    config = json.loads((unfinished / "config.json").read_bytes())
    config["made_with"] |= {"torch": "2.9.1", "threads": 64}
    (unfinished / "config.json").write_text(json.dumps(config))

    notes = train()

    assert notes == [
        f"torch 2.9.1 there, {torch.__version__} here, threads 64 there, 1 here: the run goes on, "
        "but not bit for bit",
        "going on after epoch 1 of 2",
    ]


def flip_a_byte(data: bytes) -> bytes:
    """Of the largest tensor; between tensors there is padding that nobody reads."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        largest = max((file.read(name) for name in file.namelist()), key=len)
    middle = data.index(largest) + len(largest) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"no state" * 100,
        flip_a_byte,
    ],
)
def test_damaged_state_is_one_line_that_says_restart(
    train: Train, unfinished: Path, damage: Callable[[bytes], bytes]
) -> None:
    state = unfinished / "state.pt"
    state.write_bytes(damage(state.read_bytes()))

    with pytest.raises(
        RunError, match=r"state\.pt cannot be used \(.+\); give --restart"
    ) as raised:
        train()

    assert "\n" not in str(raised.value)
    assert train(restart=True) == []


def test_state_of_other_tensors_cannot_be_used(train: Train, unfinished: Path) -> None:
    state = torch.load(unfinished / "state.pt", weights_only=True)
    del state["progress"]["tensors"]["head.bias"]
    torch.save(state, unfinished / "state.pt")

    with pytest.raises(RunError, match=r"missing: head\.bias"):
        train()


def test_logs_are_the_epochs_that_were_reported(train: Train, tmp_path: Path) -> None:
    history: list[Epoch] = []

    train(settings=replace(SHORT, epochs=3), on_epoch=history.append)

    with (tmp_path / "run" / "epochs.csv").open(newline="") as file:
        table = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert [*table[0]] == [
        *("number", "loss", "val_loss", "val_accuracy"),
        *("data_s", "step_s", "lr", "images_per_s"),
    ]
    for row, epoch in zip(table, history, strict=True):
        assert row.pop("images_per_s") == pytest.approx(12 / (epoch.data_s + epoch.step_s))
        assert row == vars(epoch)
    # 2 steps in each of 3 epochs, of which 1 warms up: the last is 4 / 5 through the cosine
    assert table[-1]["lr"] == pytest.approx(SHORT.lr * 0.5 * (1 + np.cos(np.pi * 4 / 5)))


def test_state_is_there_until_the_run_is_finished(train: Train, tmp_path: Path) -> None:
    assert train() == []
    assert is_unfinished(tmp_path / "run")
    assert train() == ["going on after epoch 2 of 2"]

    finish_run(tmp_path / "run")

    assert not is_unfinished(tmp_path / "run")
    assert train() == []


@pytest.mark.parametrize("broken", [b"", b"[{", b"\0" * 20])
def test_broken_record_of_an_earlier_result_does_not_end_training(
    unfinished: Path, tmp_path: Path, broken: bytes
) -> None:
    (unfinished / "result.json").write_bytes(broken)
    (tmp_path / "bundle.json").write_text('{"name": "colour"}')
    assert not has_saved(unfinished, tmp_path / "bundle.json")

    announce_result(unfinished, {"name": "colour"})

    assert has_saved(unfinished, tmp_path / "bundle.json")


def test_training_time_counts_all_sessions(
    tiny_backbone: Backbone, dataset: Dataset, unfinished: Path
) -> None:
    state = torch.load(unfinished / "state.pt", weights_only=True)
    state["train_s"] += 1000
    torch.save(state, unfinished / "state.pt")

    tuned = tune(tiny_backbone, dataset, settings=SHORT, run=unfinished)

    assert 1000 < tuned.train_s < 1100


def test_an_interrupted_run_tells_of_all_its_epochs(
    tiny_backbone: Backbone, dataset: Dataset, unfinished: Path
) -> None:
    whole = tune(tiny_backbone, dataset, settings=SHORT)
    tuned = tune(tiny_backbone, dataset, settings=SHORT, run=unfinished)

    for epochs in (whole.epochs, tuned.epochs):
        assert [epoch.number for epoch in epochs] == [1, 2]
    assert [epoch.loss for epoch in tuned.epochs] == [epoch.loss for epoch in whole.epochs]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "means", [{}, {"augment": "crop+flip", "mixup": 0.4, "sampling": "balanced", "accumulate": 3}]
)
def test_an_interrupted_run_ends_with_the_same_tensors(
    tiny_backbone: Backbone,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Any,
    means: dict[str, Any],
) -> None:
    # in fp16 about 4 of 8 steps overflow and are left out, until the scale is low enough; going on
    # from the first scale would leave out more
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**20)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    settings = replace(SHORT, epochs=4, precision=precision, **means)
    start: dict[str, Any] = {"backbone": tiny_backbone, "dataset": dataset, "settings": settings}
    options = {"prompt_dropout": 0.2}

    def stop(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise StoppedError

    whole = tune(**start, options=options)
    with pytest.raises(StoppedError):
        tune(**start, options=options, run=tmp_path, on_epoch=stop)
    went_on = tune(**start, options=options, run=tmp_path)

    tensors = went_on.model.task_tensors()
    for name, tensor in whole.model.task_tensors().items():
        assert torch.equal(tensors[name], tensor), name
    assert [e.loss for e in went_on.epochs] == [e.loss for e in whole.epochs]


def test_without_a_run_nothing_is_written(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    train(run=None)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["photo.jpg", "config.json", "state.pt"])
def test_folder_of_something_else_is_refused_and_kept(
    train: Train, tmp_path: Path, name: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text('{"architectures": ["ViT"], "made_with": "love"}')

    for restart in (False, True):
        with pytest.raises(OutputError, match="holds something else than a run"):
            train(restart=restart)

    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_locks_do_not_make_a_folder_something_else(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run" / "bundle"):  # as --out RUN/bundle is held
        train()

    assert (tmp_path / "run" / "epochs.csv").is_file()


def test_file_in_the_place_of_the_folder_is_refused(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")

    with pytest.raises(OutputError, match="holds something else than a run"):
        train()


def test_finished_run_is_kept_unless_it_may_be_overwritten(train: Train, tmp_path: Path) -> None:
    train()
    check_run(tmp_path / "run", overwrite=False)
    finish_run(tmp_path / "run")

    with pytest.raises(OutputError, match=r"the logs of a finished run; .+ --overwrite"):
        check_run(tmp_path / "run", overwrite=False)
    check_run(tmp_path / "run", overwrite=True)


def test_new_run_replaces_logs_and_report(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings=replace(SHORT, epochs=3))
    (run / "report").mkdir()
    before = set(run.glob("events*"))
    finish_run(run)

    train(settings=replace(SHORT, epochs=1))

    assert len((run / "epochs.csv").read_text().splitlines()) == 2
    assert len(before) == 1
    assert before.isdisjoint(run.glob("events*"))
    assert not (run / "report").exists()
    assert json.loads((run / "config.json").read_bytes())["epochs"] == 1


@pytest.mark.parametrize(("warmup_epochs", "noted"), [(1.5, False), (2, True), (3, True)])
def test_warm_up_that_never_ends_is_noted(
    train: Train, warmup_epochs: float, *, noted: bool
) -> None:
    note = (
        f"all 2 epoch(s) are within the warm-up of {warmup_epochs}: the learning rate never falls "
        "from its peak; lower warmup_epochs"
    )

    assert train(settings=replace(SHORT, warmup_epochs=warmup_epochs)) == [note] * noted


def test_finished_run_says_how_its_bundle_was_trained(
    tiny_backbone: Backbone, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lspt_serve.training.task.write_report", lambda *given, **named: None)
    out, run = tmp_path / "colour", tmp_path / "colour.run"
    bundle = train_task(
        tiny_backbone, dataset, name="colour", method="vfpt", settings=SHORT, run=run
    )
    save_bundle(bundle, out)

    (before,) = runs_of([out])
    finish_run(run)
    (after,) = runs_of([out])

    assert (before.init, before.train) == (None, {})
    settings = asdict(SHORT) | {"precision": "float32", "prompt_lr_scale": 1.0}
    wanted = {name: value for name, value in settings.items() if name not in ("seed", "device")}
    assert (after.init, after.train) == ("uniform", wanted)


def test_temporaries_of_a_killed_writer_are_deleted(train: Train, unfinished: Path) -> None:
    for name in ("state.pt", "epochs.csv", "config.json"):
        left = unfinished / f".{name}.lspt-tmp-abcd_123"
        left.mkdir()
        (left / "half").write_bytes(b"half")

    train()

    assert list(unfinished.glob(".*")) == []
