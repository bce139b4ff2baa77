"""lspt sweep and lspt results from the front door, and as several real processes."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from test_cli import start
from toys import random_bundle, write_coloured
from toys_cli import Command, check_error

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.manifest import Metrics
from lspt_serve.models import Backbone
from lspt_serve.results import Run, load_runs, save_runs

CONFIG = """
trials = 2
seeds = [0, 1]
[train]
epochs = 1
batch_size = 8
device = "cpu"
[space]
lr = { low = 1e-3, high = 1e-1, log = true }
[[entry]]
method = "linear"
[[entry]]
method = "vpt-deep"
options = { num_prompts = 2 }
[[entry]]
name = "lspt D/4"
method = "lspt"
options = { coder_hidden = 6 }
like = "vpt-deep"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, task in enumerate(("birds", "cars")):
        write_coloured(folder / task, ("blue", "red"), count=8, seed=seed)
    return folder


@pytest.fixture
def words(tiny_backbone: Backbone, data: Path, tmp_path: Path) -> list[str]:
    """lspt sweep of two tasks, state in tmp_path/sweep.db."""
    (tmp_path / "sweep.toml").write_text(CONFIG)
    words = ["sweep", tmp_path / "sweep.toml", "--backbone", tiny_backbone.source]
    words += ["--data", data / "birds", "--data", data / "cars"]
    return [*map(str, words), "--storage", str(tmp_path / "sweep.db")]


def comparable(path: Path) -> list[dict[str, Any]]:
    return [run.model_dump(exclude={"train_s"}) for run in load_runs(path)]


def test_sweep_from_end_to_end(
    lspt: Command, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    ended = lspt(*words, "--cache", tmp_path / "cache")

    assert ended.code == 0
    assert ended.out.startswith(f"{tmp_path / 'sweep.json'}: 12 runs\nTest accuracy in %, mean ± ")
    entries = ("linear", "vpt-deep", "lspt D/4")
    runs = load_runs(tmp_path / "sweep.json")
    assert [(run.task, run.name, run.seed) for run in runs] == [
        (task, entry, seed) for task in ("birds", "cars") for entry in entries for seed in (0, 1)
    ]
    assert re.search(r"^ *lspt D/4 +\d+\.\d ± \d+\.\d .* \d+\.\d ± ", ended.out, re.M)
    assert "20/20" in ended.err

    again = lspt(*words, "--json")
    assert json.loads(again.out) == [run.model_dump(mode="json") for run in runs]

    partial = lspt("results", "--storage", tmp_path / "sweep.db", "--out", tmp_path / "part.json")
    assert partial.code == 0
    assert load_runs(tmp_path / "part.json") == runs


def save_measured(bundle: Bundle, folder: Path, test: float) -> None:
    known: Any = {"best_epoch": 1, "seed": 0, "train_s": 2.5, "split": {"test": 4}}
    metrics = Metrics(val_accuracy=0.5, test_accuracy=test, **known)
    bundle.manifest = bundle.manifest.model_copy(update={"metrics": metrics})
    save_bundle(bundle, folder)


def test_results_of_files_and_bundles_side_by_side(
    lspt: Command, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    for method, test in (("linear", 0.5), ("gated", 0.75)):
        bundle = random_bundle(tiny_backbone, name="birds", method=method)
        save_measured(bundle, tmp_path / method / "birds", test)

    table = lspt("results", tmp_path / "linear", tmp_path / "gated" / "birds", "--markdown")

    assert table.code == 0
    lines = table.out.splitlines()
    assert lines[0].startswith("Test accuracy in %, mean ± standard deviation of 1 seed(s); prot")
    assert lines[4] == "| linear | 50.0 | -25.0 | 300 | 2.5 |"  # 24 x 3 and 3 of fp32
    assert lines[5].startswith("| gated | **75.0** | ")

    plot = tmp_path / "plot.png"
    assert lspt("results", tmp_path / "linear", "--plot", plot).code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    check_error(lspt("results", tmp_path / "linear", "--plot", "plot.gif"), "a .gif file; wanted a")

    answer = json.loads(lspt("results", tmp_path / "linear", "--json", "--published", "mae").out)
    figure = {"mean": 0.5, "std": None, "n": 1}
    assert answer["comparisons"][0]["rows"][0]["tasks"] == {"birds": figure}
    assert answer["published"]["gated"] == [47.61, 76.86, 36.8, 73.39]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data", "nowhere"], "--data nowhere: no such file or folder"),
        (["--backbone", "nowhere.pth"], "no such file"),
        (["--storage", "sweep.json"], "--storage sweep.json would be replaced by the runs; give"),
        (["--out", "sweep.toml"], "sweep.toml is no list of runs as lspt sweep writes it"),
        (["--storage", "."], r"--storage \. is a folder; give a file in it, such as sweep\.db$"),
        (["--storage", "sweep.toml"], "sweep.toml is no storage of a sweep"),
    ],
)
def test_mistake_in_sweep_is_one_line_and_exit_code_2(
    lspt: Command,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    check_error(lspt(*words, *extra), message)

    assert (tmp_path / "sweep.toml").read_text() == CONFIG


def test_mistakes_in_config_and_data_are_said(
    lspt: Command, words: list[str], data: Path, tmp_path: Path
) -> None:
    check_error(lspt(*words, "--data", data / "birds"), "are both called 'birds'; rename one")
    (tmp_path / "sweep.toml").write_text(CONFIG.replace("trials", "trails"))
    check_error(lspt(*words), "unknown key trails; .*nearest: trials")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["nowhere.json"], r"nowhere\.json cannot be read: No such file"),
        (["--storage", "nowhere.db"], r"nowhere\.db: no such file"),
        (["."], "holds no bundle or baseline that says"),
    ],
)
def test_mistake_in_results_is_one_line_and_exit_code_2(
    lspt: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    check_error(lspt("results", *extra), message)


def test_results_alone_is_of_the_bundles_here(
    lspt: Command, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_error(lspt("results"), "no folder bundles here; give what lspt sweep wrote, bundles, ")
    for test in (0.5, 0.75):
        save_measured(random_bundle(tiny_backbone, name="birds"), Path(f"bundles/{test}"), test)

    ended = lspt("results", "--markdown")

    assert ended.code == 0
    assert [line.split(" | ")[:2] for line in ended.out.splitlines()[4:6]] == [
        ["| lspt (0.5)", "50.0"],
        ["| lspt (0.75)", "**75.0**"],
    ]


def test_results_says_how_it_is_used(lspt: Command) -> None:
    ended = lspt("results", "x", "--json", "--markdown")

    check_error(ended, "both --markdown and --json; give one of them$")


def test_two_tables_are_no_picture(lspt: Command, tmp_path: Path) -> None:
    run = Run(
        task="a", name="x", method="lspt", image_size=32, protocol="vtab", seed=0, test=0.5,
        backbone="0" * 12, lspt_serve="0.1.0",
    )  # fmt: skip
    save_runs(tmp_path / "runs.json", [run, run.model_copy(update={"image_size": 48})])

    ended = lspt("results", tmp_path / "runs.json", "--plot", tmp_path / "plot.png")

    check_error(ended, "--plot draws one table, and these runs make 2; give it runs of one")
    assert not (tmp_path / "plot.png").exists()


def test_a_picture_without_matplotlib_says_what_to_install(
    lspt: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(
        task="a", name="x", method="lspt", image_size=32, protocol="vtab", seed=0, test=0.5,
        backbone="0" * 12, lspt_serve="0.1.0",
    )  # fmt: skip
    save_runs(tmp_path / "runs.json", [run])
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    ended = lspt("results", tmp_path / "runs.json", "--plot", tmp_path / "plot.png")

    check_error(ended, r"needs matplotlib, .* pip install '\.\[train\]' in a clone$")


@pytest.fixture
def slow_words(words: list[str], data: Path, tmp_path: Path) -> list[str]:
    """One task and entry, four trials and two seeds that take some tenths of a second each."""
    text = CONFIG[: CONFIG.index('[[entry]]\nmethod = "vpt-deep"')].replace("linear", "vpt-deep")
    text = text.replace("epochs = 1", "epochs = 30").replace("trials = 2", "trials = 4")
    (tmp_path / "sweep.toml").write_text(text)
    at = words.index(str(data / "cars"))
    return words[: at - 1] + words[at + 1 :]


def query(storage: Path, what: str) -> list[Any]:
    """Read beside the processes that write."""
    try:
        with closing(sqlite3.connect(f"file:{storage}?mode=ro", uri=True)) as connection:
            return [value for (value,) in connection.execute(what)]
    except sqlite3.OperationalError:  # not made yet
        return []


def states(storage: Path, study: str = "search/birds/vpt-deep") -> list[str]:
    """Of a study's trials."""
    trials = f"trials NATURAL JOIN studies WHERE study_name = '{study}' ORDER BY number"
    return query(storage, f"SELECT state FROM {trials}")


def is_training(storage: Path) -> bool:
    """A trial has come to its first epochs."""
    running = "trial_intermediate_values NATURAL JOIN trials WHERE state = 'RUNNING'"
    return query(storage, f"SELECT count(*) > 0 FROM {running}") == [1]


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Until a process has come so far."""
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def suspend(process: "subprocess.Popen[str]", storage: Path) -> None:
    """Stop it in a training, but not while it writes: others would rightly wait for it."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        process.send_signal(signal.SIGSTOP)
        try:
            with closing(sqlite3.connect(storage, timeout=0)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
            if is_training(storage):
                return
        except sqlite3.OperationalError:
            pass
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    raise TimeoutError


def trained(storage: Path) -> list[list[float]]:
    study = optuna.load_study(study_name="search/birds/vpt-deep", storage=f"sqlite:///{storage}")
    return [trial.values for trial in study.trials if trial.state == TrialState.COMPLETE]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_records_of_one_that_was_not(
    lspt: Command, slow_words: list[str], tmp_path: Path
) -> None:
    storage, whole = tmp_path / "sweep.db", tmp_path / "whole.db"
    process = start(slow_words, OMP_NUM_THREADS="1")
    try:
        wait_for(lambda: states(storage) == ["COMPLETE", "RUNNING"], process)
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert not (tmp_path / "sweep.json").exists()

    assert lspt(*slow_words).code == 0
    assert lspt(*slow_words, "--storage", whole).code == 0

    assert comparable(tmp_path / "sweep.json") == comparable(tmp_path / "whole.json")
    assert states(storage) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trained(storage) == trained(whole)


@pytest.mark.slow
def test_two_processes_share_the_work_and_none_does_what_another_is_at(
    slow_words: list[str], tmp_path: Path
) -> None:
    storage = tmp_path / "sweep.db"
    first = start(slow_words, OMP_NUM_THREADS="1")
    try:
        wait_for(lambda: is_training(storage), first)
        suspend(first, storage)  # slow as can be, but alive
        second = start(slow_words, OMP_NUM_THREADS="1")
        try:
            wait_for(lambda: Counter(states(storage)) == {"RUNNING": 1, "COMPLETE": 3}, second)
            first.send_signal(signal.SIGCONT)
            ended = [process.communicate(timeout=120) for process in (first, second)]
        finally:
            second.kill()
            second.communicate(timeout=30)
    finally:
        first.kill()
        first.communicate(timeout=30)

    assert [process.returncode for process in (first, second)] == [0, 0], ended
    assert [out.splitlines()[0] for out, _ in ended] == [f"{tmp_path / 'sweep.json'}: 2 runs"] * 2
    assert states(storage) == ["COMPLETE"] * 4
    assert states(storage, "seeds/birds/vpt-deep") == ["COMPLETE"] * 2
    assert [run.seed for run in load_runs(tmp_path / "sweep.json")] == [0, 1]


@pytest.mark.slow
def test_ctrl_c_says_that_the_same_command_goes_on(slow_words: list[str], tmp_path: Path) -> None:
    config = tmp_path / "sweep.toml"
    config.write_text(config.read_text().replace("trials = 4", "trials = 400"))  # not done in time
    process = start(slow_words, OMP_NUM_THREADS="1")
    wait_for(lambda: "RUNNING" in states(tmp_path / "sweep.db"), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "stopped; the same command goes on from here"
    assert "Traceback" not in err


def test_results_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules.update(torch=None, timm=None)\n"
        "from lspt_serve.cli import main; main()"
    )
    save_runs(tmp_path / "runs.json", [])
    ended = subprocess.run(
        [sys.executable, "-c", program, "results", "runs.json", "--published", "mae"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("no run is finished yet\n")
