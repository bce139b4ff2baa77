"""Real processes of lspt train, killed or stopped, and what the same command makes of it."""

import csv
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import COLOURS, write_coloured
from toys_run import MOMENTS, STEPS, Process, start_lspt

from lspt_serve.bundle import Bundle, load_bundle
from lspt_serve.models import Backbone

EPOCHS, BATCH_SIZE = 4, 6
LSPT = ["--option", "prompt_dropout=0.3", "--augment", "crop+flip"]
LINEAR = ["--method", "linear"]
ALL = [
    *LSPT,
    "--precision",
    "bf16",
    "--mixup",
    "0.4",
    "--sampling",
    "balanced",
    "--accumulate",
    "2",
]
SECONDS = {"data_s", "step_s", "images_per_s"}  # columns that no two runs share

Train = Callable[..., tuple[int | None, str]]


@pytest.fixture(scope="module")
def words(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """lspt train, all but --out and the method."""
    data = tmp_path_factory.mktemp("data")
    for split, count in {"train": STEPS * BATCH_SIZE // len(COLOURS), "val": 2, "test": 2}.items():
        write_coloured(data / split, [*COLOURS], count=count, seed=count)
    sizes = ["--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE), "--warmup-epochs", "1"]
    words = ["train", "--backbone", tiny_backbone.source, "--data", str(data), *sizes]
    return [*words, "--lr", "0.02", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def train(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """train(out, *options, die=None): run the command to its end; its exit code and stderr."""
    printed = tmp_path_factory.mktemp("printed") / "stderr"

    def train(out: Path, *options: object, die: str | None = None) -> tuple[int | None, str]:
        process = start_lspt([*words, "--out", out, *options], printed, die=die)
        process.join(timeout=60)
        return process.exitcode, printed.read_text()

    return train


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """whole(*options): the bundle of a run that nothing interrupts."""
    done: dict[tuple[str, ...], Path] = {}

    def whole(*options: str) -> Path:
        if options not in done:
            out = tmp_path_factory.mktemp("whole") / "colour"
            assert train(out, *options)[0] == 0
            done[options] = out
        return done[options]

    return whole


def rows(out: Path) -> list[dict[str, str]]:
    with (out.with_name("colour.run") / "epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(table: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: row[name] for name in row.keys() - SECONDS} for row in table]


def check_same(first: Bundle, second: Bundle) -> None:
    """Bit for bit, and of the same epoch."""
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert np.array_equal(tensor, second.tensors[name]), name
    metrics, others = first.manifest.metrics, second.manifest.metrics
    assert metrics is not None
    assert others is not None
    assert metrics == others.model_copy(update={"train_s": metrics.train_s})


def check_events(out: Path) -> None:
    """TensorBoard shows every number of epochs.csv, once."""
    events = EventAccumulator(str(out.with_name("colour.run"))).Reload()
    table = rows(out)
    assert set(events.Tags()["scalars"]) == table[0].keys() - {"number"}
    for name in events.Tags()["scalars"]:
        shown = events.Scalars(name)
        assert [event.step for event in shown] == [int(row["number"]) for row in table]
        wanted = [float(row[name]) for row in table]
        assert [event.value for event in shown] == pytest.approx(wanted, rel=1e-6)  # float32


# The method, the moment of death and the last epoch whose state was in place by then.
DEATHS = [
    (LSPT, "in epoch 1", 0),
    (LSPT, "after state 1", 1),
    (LSPT, "writing state 2", 1),
    (LSPT, "after state 2", 2),
    (LSPT, "in epoch 3", 2),
    (LSPT, "after state 4", 4),
    (LSPT, "writing the bundle", 4),
    (ALL, "in epoch 3", 2),
    (LINEAR, "in epoch 3", 2),
    (LINEAR, "after state 4", 4),
]


@pytest.mark.parametrize(("options", "die", "done"), DEATHS, ids=lambda value: str(value)[:24])
def test_killed_run_goes_on_to_the_same_bundle(
    train: Train,
    whole: Callable[..., Path],
    tmp_path: Path,
    options: list[str],
    die: str,
    done: int,
) -> None:
    out = tmp_path / "colour"

    assert train(out, *options, die=die)[0] == -signal.SIGKILL
    assert not out.exists()
    assert (out.with_name("colour.run") / "state.pt").exists() == (done > 0)

    code, printed = train(out, *options)

    assert code == 0, printed
    went_on = re.findall(r"going on after epoch (\d+) of (\d+)", printed)
    assert went_on == ([(str(done), str(EPOCHS))] if done else [])
    check_same(load_bundle(out), load_bundle(whole(*options)))
    assert without_seconds(rows(out)) == without_seconds(rows(whole(*options)))
    check_events(out)
    left = [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert left == []
    assert {path.name.split(".")[0] for path in (tmp_path / "colour.run").iterdir()} == {
        *("config", "epochs", "events", "report")
    }


def test_all_moments_of_death_are_tried() -> None:
    assert {die for _, die, _ in DEATHS} | {*AT_THE_END} == MOMENTS.keys()


AT_THE_END = ["in the report", "after the report"]  # the bundle is in place


@pytest.mark.parametrize("die", AT_THE_END)
def test_run_killed_after_its_bundle_was_saved_makes_its_report(
    train: Train, whole: Callable[..., Path], tmp_path: Path, die: str
) -> None:
    out, run = tmp_path / "colour", tmp_path / "colour.run"

    for _ in range(2):
        assert train(out, *LSPT, die=die)[0] == -signal.SIGKILL
        check_same(load_bundle(out), load_bundle(whole(*LSPT)))
    assert (run / "report").exists() == (die == "after the report")
    code, printed = train(out, *LSPT)

    assert code == 0, printed
    assert "going on after epoch 4 of 4" in printed
    check_same(load_bundle(out), load_bundle(whole(*LSPT)))
    assert (run / "report").is_dir()
    assert {path.name.split(".")[0] for path in run.iterdir()} == {
        *("config", "epochs", "events", "report")
    }
    assert train(out, *LSPT)[0] == 2


def test_bundle_of_another_run_is_no_result_of_the_unfinished_one(
    train: Train, tmp_path: Path
) -> None:
    out = tmp_path / "colour"
    assert train(out, *LINEAR)[0] == 0
    before = load_bundle(out)
    assert train(out, *LSPT, "--overwrite", die="writing the bundle")[0] == -signal.SIGKILL

    code, printed = train(out, *LSPT)

    assert code == 2
    assert "exists already" in printed
    check_same(load_bundle(out), before)


def test_a_run_may_be_killed_again_and_again(
    train: Train, whole: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "colour"

    for die in ("after state 1", "after state 1", "after state 4"):
        assert train(out, *LSPT, die=die)[0] == -signal.SIGKILL
    assert train(out, *LSPT)[0] == 0

    check_same(load_bundle(out), load_bundle(whole(*LSPT)))
    check_events(out)


def test_restart_begins_anew(train: Train, whole: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "colour"
    assert train(out, *LINEAR, die="in epoch 3")[0] == -signal.SIGKILL

    code, printed = train(out, *LSPT)
    assert code == 2
    assert "method linear there, lspt here" in " ".join(printed.split())
    code, printed = train(out, *LSPT, "--restart")

    assert code == 0, printed
    assert "going on" not in printed
    check_same(load_bundle(out), load_bundle(whole(*LSPT)))
    check_events(out)


def test_finished_run_is_replaced_with_overwrite_only(
    train: Train, whole: Callable[..., Path], tmp_path: Path
) -> None:
    out, run = tmp_path / "colour", tmp_path / "colour.run"
    assert train(out, *LINEAR)[0] == 0
    out.rename(tmp_path / "elsewhere")
    before = (run / "epochs.csv").read_bytes()

    code, printed = train(out, *LSPT)
    assert code == 2
    assert "--overwrite" in printed
    assert (run / "epochs.csv").read_bytes() == before
    code, printed = train(out, *LSPT, "--overwrite")

    assert code == 0, printed
    assert without_seconds(rows(out)) == without_seconds(rows(whole(*LSPT)))
    check_events(out)


@pytest.fixture
def endless(words: list[str], tmp_path: Path) -> Iterator[Process]:
    """A process that trains tmp_path / "colour" and has come past its first epoch."""
    out = tmp_path / "colour"
    process = start_lspt([*words, "--out", out, "--epochs", 10**5], tmp_path / "stderr")
    end = time.monotonic() + 60
    while not (tmp_path / "colour.run" / "epochs.csv").exists():
        assert process.is_alive(), (tmp_path / "stderr").read_text()
        assert time.monotonic() < end
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("run", ["colour.run", "other.run"])
def test_second_process_at_one_output_is_refused(
    endless: Process, train: Train, tmp_path: Path, run: str
) -> None:
    code, printed = train(tmp_path / "colour", "--run", tmp_path / run)

    assert code == 2
    assert f"is being written by process {endless.pid};" in " ".join(printed.split())


def test_second_process_at_one_run_folder_is_refused(
    endless: Process, train: Train, tmp_path: Path
) -> None:
    code, printed = train(tmp_path / "other", "--run", tmp_path / "colour.run")

    assert code == 2
    assert f"colour.run is being written by process {endless.pid};" in " ".join(printed.split())


def test_lock_of_a_killed_process_is_gone(endless: Process, train: Train, tmp_path: Path) -> None:
    assert endless.pid is not None
    os.kill(endless.pid, signal.SIGKILL)
    endless.join()

    code, printed = train(tmp_path / "colour", "--restart")

    assert code == 0, printed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_says_that_the_same_command_goes_on(
    endless: Process, tmp_path: Path, number: int, code: int
) -> None:
    assert endless.pid is not None
    os.kill(endless.pid, number)
    endless.join(timeout=30)

    assert endless.exitcode == code
    printed = (tmp_path / "stderr").read_text()
    assert printed.splitlines()[-1] == "stopped; the same command goes on"
    assert "Traceback" not in printed
    assert [path.name for path in tmp_path.rglob(".*")] == []
    assert (tmp_path / "colour.run" / "state.pt").exists()


@pytest.mark.parametrize("run", ["colour", "colour/run"])
def test_run_folder_inside_the_bundle_is_refused(train: Train, tmp_path: Path, run: str) -> None:
    code, printed = train(tmp_path / "colour", "--run", tmp_path / run)

    assert code == 2
    assert "replaced as a whole" in " ".join(printed.split())


@pytest.mark.parametrize("out", ["run/report", "run/report/colour"])
def test_bundle_inside_the_report_is_refused(train: Train, tmp_path: Path, out: str) -> None:
    code, printed = train(tmp_path / out, "--run", tmp_path / "run")

    assert code == 2
    assert "lies where the run writes its report" in " ".join(printed.split())
    assert list(tmp_path.rglob("report")) == []


def train_by_two(words: list[object], printed: Path, *, die: str | None = None) -> None:
    """As torchrun would; with `die` the first process kills itself, and torchrun the other."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "none"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (
        start_lspt(
            words,
            printed.with_suffix(f".{rank}"),
            die=None if rank else die,
            environment={**common, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in range(2)
    )
    first.join(timeout=60)
    if die is not None:
        second.kill()
    second.join(timeout=60)
    assert first.exitcode == (0 if die is None else -signal.SIGKILL)


@pytest.mark.slow
def test_two_processes_go_on_together(words: list[str], tmp_path: Path) -> None:
    whole, out, printed = tmp_path / "whole" / "colour", tmp_path / "colour", tmp_path / "stderr"

    train_by_two([*words, *LSPT, "--out", whole], printed)
    train_by_two([*words, *LSPT, "--out", out], printed, die="after state 2")
    train_by_two([*words, *LSPT, "--out", out], printed)

    assert "going on after epoch 2 of 4" in printed.with_suffix(".0").read_text()
    check_same(load_bundle(out), load_bundle(whole))
    check_events(out)
