import io
from typing import Any

import pytest
from rich.console import Console

from lspt_serve.errors import SweepError
from lspt_serve.results import Run, compare, comparison_grid


def run(
    task: str = "a", name: str = "lspt", seed: int = 0, test: float | None = 0.5, **more: Any
) -> Run:
    known: dict[str, Any] = {
        "method": "lspt",
        "init": "uniform",
        "train": {"lr": 0.01},
        "image_size": 32,
        "protocol": "vtab",
        "trials": 6,
        "val": 0.9,
        "task_bytes": 1000,
        "train_s": 2.0,
        "backbone": "0123456789ab",
        "lspt_serve": "0.1.0",
        "torch": "2.15.0",
        "machine": "a CPU, 1 thread(s)",
    }
    return Run(task=task, name=name, seed=seed, test=test, **known | more)


RUNS = [
    run("a", "linear", 0, 0.50, task_bytes=100),
    run("a", "linear", 1, 0.60, task_bytes=100),
    run("b", "linear", 0, 0.90, task_bytes=300),
    run("b", "linear", 1, 0.90, task_bytes=300),
    run("a", "lspt|4", 0, 0.70, train_s=1.0),
    run("a", "lspt|4", 1, 0.72, train_s=3.0),
    run("b", "lspt|4", 0, 0.8996),
    run("b", "lspt|4", 1, None, error="training diverged"),
]

MARKDOWN = """\
Test accuracy in %, mean ± standard deviation of 2 seed(s); protocol vtab, 32 px, backbone \
0123456789ab; 6 trial(s) of each entry on each task; lspt-serve 0.1.0; torch 2.15.0; a CPU, 1 \
thread(s).

| entry | a | b | mean | bytes a task | train s |
|---|--:|--:|--:|--:|--:|
| linear | 55.0 ± 7.1 | **90.0 ± 0.0** | 72.5 ± 3.5 | 200 | 2.0 |
| lspt\\|4 | **71.0 ± 1.4** | **90.0 (n = 1)** | **80.5 (n = 1)** | 1,000 | 2.0 |

- failed: lspt|4 on b, seed 1: training diverged"""


def test_markdown_of_hand_worked_figures() -> None:
    # stdev(50, 60) = 7.07; of the seeds' means 70 and 75: 3.54; 89.96 prints as 90.0: a tie
    (comparison,) = compare(RUNS)

    assert comparison_grid(comparison).to_markdown() == MARKDOWN


def test_difference_to_the_best_is_that_of_pairs_of_seeds() -> None:
    # means over tasks by seed: best 60, 80; near 61, 77; even 60, 80, but in other tasks
    tests: dict[str, list[tuple[float, ...]]] = {
        "best": [(0.60, 0.80), (0.60, 0.80)],
        "near": [(0.50, 0.80), (0.72, 0.74)],
        "even": [(0.61, 0.79), (0.59, 0.81)],
        "unpaired": [(0.10, 0.10, 0.10), (0.20, 0.20, 0.20)],
    }
    runs = [
        run(task, name, seed, test)
        for name, by_task in tests.items()
        for task, of_seeds in zip("ab", by_task, strict=True)
        for seed, test in enumerate(of_seeds)
    ]

    (comparison,) = compare(runs)

    # near: 1 and -3, whose mean is -1 and whose deviation is sqrt(8)
    rows = {row.name: row.to_best for row in comparison.rows}
    assert rows["best"] is None
    assert rows["unpaired"] is None
    near, even = rows["near"], rows["even"]
    assert near is not None
    assert (near.mean, near.std, near.n) == pytest.approx((-0.01, 8**0.5 / 100, 2), abs=1e-12)
    assert even is not None
    assert (even.mean, even.std) == pytest.approx((0.0, 0.0), abs=1e-12)
    lines = comparison_grid(comparison).to_markdown().splitlines()
    assert lines[2] == "| entry | a | b | mean | to the best | bytes a task | train s |"
    assert [line.split(" | ")[4] for line in lines[4:8]] == ["-", "-1.0 ± 2.8", "0.0 ± 0.0", "-"]
    assert lines[-1].startswith("- to the best: mean over tasks minus that of the best entry")


def test_a_single_seed_has_a_difference_without_deviation() -> None:
    (comparison,) = compare([run(name="x", test=0.5), run(name="y", test=0.75)])

    assert "| x | 50.0 | -25.0 | 1,000 |" in comparison_grid(comparison).to_markdown()


def test_terminal_shows_the_same_figures() -> None:
    printed = io.StringIO()
    Console(file=printed, width=200).print(comparison_grid(compare(RUNS)[0]).to_rich())

    words = printed.getvalue().split()
    for line in MARKDOWN.replace("*", "").replace("\\", "").splitlines()[4:6]:
        cells = line.replace("lspt|4", "lspt!4").split("|")
        assert all(word.replace("!", "|") in words for cell in cells for word in cell.split())
    assert "failed: lspt|4 on b, seed 1: training diverged" in printed.getvalue()


def test_names_of_runs_do_nothing_to_a_terminal() -> None:
    printed = io.StringIO()
    runs = [run("a\x1b[2J", "x\x1b]0;mine\x07"), run("b", "x", error="\x1b[2J", test=None)]
    Console(file=printed, width=200).print(comparison_grid(compare(runs)[0]).to_rich())

    assert "\x1b" not in printed.getvalue()
    assert r"x\x1b]0;mine\x07" in printed.getvalue()


def test_a_task_that_an_entry_lacks_is_a_gap_and_no_mean() -> None:
    (comparison,) = compare([run("a", "x"), run("b", "x"), run("a", "y")])

    assert [row.mean is None for row in comparison.rows] == [False, True]
    assert "| y | **50.0** | - | - |" in comparison_grid(comparison).to_markdown()


def test_a_single_task_needs_no_mean() -> None:
    assert comparison_grid(compare([run()])[0]).header == ["entry", "a", "bytes a task", "train s"]


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "plain"},
        {"image_size": 48},
        {"crop_pct": 0.9},
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        {"backbone": "ff" * 6},
    ],
)
def test_what_is_not_comparable_stands_in_another_table(other: dict[str, Any]) -> None:
    first, second = compare([run(test=0.1), run(test=0.2, **other)])

    assert [table.rows[0].tasks["a"].mean for table in (first, second)] == [0.1, 0.2]


def test_another_normalisation_than_half_is_said() -> None:
    (comparison,) = compare([run(crop_pct=0.9, mean=(0.4, 0.5, 0.6))])

    where = "32 px, crop_pct 0.9, mean 0.4 0.5 0.6, std 0.5 0.5 0.5, backbone"
    assert where in comparison.caption


def test_trials_are_those_of_entries_that_were_searched() -> None:
    own, copy = run(name="own", trials=4), run(name="copy", trials=6, val=None)

    captions = [compare(runs)[0].caption for runs in ([own], [own, copy], [copy])]

    assert "; 4 trial(s) of each entry on each task; " in captions[0]
    assert "; 4 trial(s) of each entry with a search of its own on each task; " in captions[1]
    assert "trial" not in captions[2]


def test_the_same_run_from_two_files_counts_once() -> None:
    (comparison,) = compare([run(), run()])

    assert comparison.rows[0].tasks["a"].n == 1


def test_two_different_runs_of_one_seed_are_refused() -> None:
    with pytest.raises(SweepError, match="two different runs of 'lspt' on task 'a' with seed 0"):
        compare([run(test=0.1), run(test=0.2)])


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("method", {"method": "gated"}),
        ("options", {"options": {"coder_hidden": 48}}),
        ("pool", {"pool": "patch_mean"}),
        ("init", {"init": "kmeans"}),
        ("train", {"train": {"lr": 0.1}}),
    ],
)
def test_seeds_of_different_settings_are_no_entry(field: str, other: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match=f"runs of 'lspt' on task 'a' differ in {field}; compare"):
        compare([run(seed=0), run(seed=1, **other)])
    compare([run("a", seed=0), run("b", seed=1, **other)])  # each task has its own choice
    compare([run(seed=0), run(seed=1, test=None, error="diverged", **other)])


def test_runs_of_which_nobody_knows_how_they_were_trained_are_no_seeds_of_one_entry() -> None:
    unknown: dict[str, Any] = {"init": None, "train": {}}

    with pytest.raises(SweepError, match="'lspt' on task 'a' may differ in train; compare them"):
        compare([run(seed=0, **unknown), run(seed=1, **unknown)])
    compare([run(seed=0, **unknown), run("b", seed=1, **unknown)])


def test_nothing_compares_to_nothing() -> None:
    assert compare([]) == []


@pytest.mark.parametrize(
    ("pretraining", "method", "figures"),
    [
        ("mae", "gated", "| 47.61 | 76.86 | 36.80 | 73.39 |"),
        ("mae", "vpt-deep", "| 36.02 | 60.61 | 26.57 | 72.02 |"),
        ("mocov3", "gated", "| 74.84 | 83.38 | 49.10 | 83.00 |"),
        ("mocov3", "vpt-shallow", "| 67.34 | 82.26 | 37.55 | 79.26 |"),
        ("mocov3", "lspt", "| - | - | - | - |"),
    ],
)
def test_published_figures_stand_in_columns_of_their_own(
    pretraining: Any, method: str, figures: str
) -> None:
    (comparison,) = compare([run(name="ours", method=method)])

    lines = comparison_grid(comparison, pretraining).to_markdown().splitlines()

    assert lines[2].endswith(
        "| train s | published: Natural | published: Specialised | published: Structured "
        "| published: FGVC |"
    )
    assert lines[4] == f"| ours | **50.0** | 1,000 | 2.0 {figures}"
    assert lines[-1].startswith("- published, not ours: ViT-B/16 pretrained by M")
    assert "arXiv 2306.05067" in lines[-1]
