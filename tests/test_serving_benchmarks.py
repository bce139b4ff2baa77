"""The benchmarks of serving on toys: what they write, and that an arm that is wrong ends them."""

import io
import json
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

import bench_beside
import bench_decode
import bench_engines
import bench_folders
import bench_gpu
import bench_tasks
import gpu_page
import numpy as np
import pytest
import serving_page
import torch
from tasks_arms import CODERS, set_up
from tasks_memory import drop_from_cache, is_cached
from tasks_throughput import Bench

from lspt_serve.models import Backbone

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "lspt_serve" / "models" / "weights" / "vit_digits_patch8_32.safetensors"


def run(script: Any, folder: Path, *words: object) -> tuple[dict[str, Any], dict[str, Any], str]:
    """A quick run; what it printed, its raw figures, and the page."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        script.main(["--quick", "--out", str(folder), "--docs", str(folder), *map(str, words)])
    (line,) = printed.getvalue().splitlines()
    (figures,) = folder.glob("*.json")
    page = (folder / "benchmarks.md").read_text()
    if serving_page.SECTIONS[figures.stem].draw:
        assert (folder / f"benchmark_{figures.stem}.png").stat().st_size > 1000
    return json.loads(line)["targets"], json.loads(figures.read_text()), page


def test_batches_beside_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    _, report, page = run(bench_beside, tmp_path, "--vit", DIGITS)

    rows = {(row["engine"], row["batch_size"]): row for row in report["rows"]}
    assert set(rows) == {
        (engine, size) for engine in ("onnxruntime", "openvino") for size in (1, 2)
    }
    for (engine, size), row in rows.items():
        assert row["threads"] in ((3,) if engine == "onnxruntime" else (1, 3))  # of two cores
        seconds = row["seconds"]
        both = zip(seconds["one after another"], seconds["beside"], strict=True)
        assert row["ratio"] == median(after / beside for after, beside in both)
        speed = row["images_per_s"]["beside"]["median"]
        assert speed == pytest.approx(4 * row["threads"] * size / median(seconds["beside"]))
        assert f"| vit_digits_patch8_32 | {engine} | {size} | 3 | " in page


def test_folders_of_many_bundles(tmp_path: Path) -> None:
    _, report, page = run(bench_folders, tmp_path, "--vit", DIGITS)

    assert [(row["coder"], row["tasks"]) for row in report["rows"]] == [
        (coder, tasks) for coder in ("default coder", "full-width coder") for tasks in (4, 8)
    ]
    for row in report["rows"]:
        assert row["start_s"]["median"] == median(row["seconds"]["start_s"])
        assert row["look_ms"]["median"] == pytest.approx(1000 * median(row["seconds"]["look_s"]))
        assert row["look_ms"]["median"] < 1000 * row["start_s"]["median"]  # it reads none
        assert f"| {row['coder']} | {row['tasks']} | " in page


def test_arms_that_differ_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_beside, "max_difference", lambda got, wanted: 1.0)

    with pytest.raises(SystemExit, match="onnxruntime, batches of 1: answers differ"):
        run(bench_beside, tmp_path, "--vit", DIGITS)


def test_decoding(tmp_path: Path) -> None:
    targets, report, page = run(bench_decode, tmp_path, "--size", 0.3)

    (row,) = report["rows"]
    assert (row["width"], row["height"]) == (640, 480)
    assert 20_000 < row["num_bytes"] < 300_000
    assert row["differences"]["mean"] < 1e-3  # too small to be decoded at a fraction
    assert {name: len(taken) for name, taken in row["seconds"].items()} == dict.fromkeys(
        ("ours", "Pillow", "torchvision"), row["ms"]["ours"]["n"]
    )
    assert targets == report["targets"]
    assert targets["decoded pixels"]["reached"]
    assert targets["decoding speed"]["measured"] == min(
        row["speedup"][name] for name in ("Pillow", "torchvision")
    )
    assert "| 640 x 480 (0.3 MP) |" in page
    assert "- **decoded pixels**: wanted at most 1 of 255, measured " in page


def test_pixels_that_differ_end_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_decode.plain_torchvision
    monkeypatch.setitem(bench_decode.ARMS, "torchvision", lambda data: right(data)[:, ::-1])

    with pytest.raises(
        SystemExit, match=r"torchvision: answers differ by .*, wanted at most 1e-03"
    ):
        run(bench_decode, tmp_path, "--size", 0.3)

    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_engines(tiny_backbone: Backbone, tmp_path: Path) -> None:
    sizes = ("--batch-size", 1, "--batch-size", 3)
    targets, report, page = run(bench_engines, tmp_path, "--vit", tiny_backbone.source, *sizes)

    (vit,) = report["vits"]
    assert vit["vit"] == "tiny"
    own = [
        row for row in vit["rows"] if (row["engine"], row["precision"]) == ("onnxruntime", "fp32")
    ]
    assert [row["batch_size"] for row in own] == [1, 3]
    for row in own:
        for graph in ("prompted", "plain"):
            assert 0 < row[graph]["error"] < 1e-5
            assert len(row[graph]["seconds"]) == row[graph]["images_per_s"]["n"] >= 3
    reasons = {
        (each["engine"], each["precision"], each["graph"]): each["reason"]
        for each in vit["refused"]
    }
    assert "in fp32 only" in reasons["onnxruntime", "bf16", "plain"]
    assert all(value > 0 for value in report["ceilings"].values())
    expected = vit["flops"]["prompted"] / vit["flops"]["plain"]
    assert targets["cost of prompts"]["measured"] == pytest.approx(
        max(row["ratio"] for row in vit["rows"]) / expected
    )
    assert "onnxruntime bf16 is refused: ONNX Runtime runs the graph in fp32 only" in page
    assert f"expected cost {expected:.3f}." in page


@pytest.mark.slow
def test_an_engine_that_answers_otherwise_ends_the_script(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench_engines.to_arm
    monkeypatch.setattr(
        bench_engines, "to_arm", lambda engine, images, bundle: right(engine, images[::-1], bundle)
    )

    with pytest.raises(SystemExit, match=r"onnxruntime fp32 prompted, batch of 2: answers differ"):
        run(bench_engines, tmp_path, "--vit", tiny_backbone.source, "--batch-size", 2)


@pytest.mark.slow
def test_tasks(tiny_backbone: Backbone, tmp_path: Path) -> None:
    words = ("--vit", tiny_backbone.source, "--tasks", 1, "--tasks", 5)
    targets, report, page = run(bench_tasks, tmp_path, *words, "--batch-size", 4, "--capacity", 5)

    (measured,) = report["coders"]
    assert [(cell["tasks"], cell["traffic"]) for cell in measured["cells"]] == [
        (1, "uniform"),
        *((5, pattern) for pattern in ("identical", "uniform", "zipf", "distinct")),
    ]
    one, *five = measured["cells"]
    assert set(one["gain"]) == {"grouped", "sessions", "torch"}
    assert measured["sessions"]["sessions"] == 2  # of 5 tasks: these have no such arm
    assert all(set(cell["gain"]) == {"grouped", "torch"} for cell in five)
    assert all(cell["error"] < 1e-5 for cell in measured["cells"])
    assert measured["capacity"]["misses_of_a_batch"] == {"5": 0, "6": 4}
    # prompts; the narrowing map, the cell's four and the widening map; the head
    floats = 3 * 10 * 24 + (3 * 24 + 3) + (2 * 12 * 3 + 2 * 12) + (24 * 3 + 24) + (10 * 24 + 10)
    assert measured["memory"]["tensor_bytes"] == measured["miss"]["task_bytes"] == 4 * floats
    find = {kind: measured["miss"]["ms"][f"find {kind}"]["least"] for kind in ("in memory", MISS)}
    assert find["in memory"] < find[MISS]
    assert targets["5 tasks, default coder"]["measured"] == measured["scale"]["throughput"]["ours"]
    assert targets["over capacity, default coder"]["note"] == "p99 at 6 tasks over that at 5"
    assert "| 5, distinct |" in page
    assert f"- **first answer, files {MISS}, default coder**: wanted at most 50 ms" in page


MISS = "in the page cache"


@pytest.mark.slow
def test_a_way_that_mixes_tasks_up_ends_the_script(tiny_backbone: Backbone, tmp_path: Path) -> None:
    setup = set_up(tiny_backbone.source, CODERS[0], 2, ("onnxruntime", "fp32"), tmp_path)
    bench = Bench(setup, Namespace(batch_size=2, precision="fp32", tasks=[2]))
    arms = bench.arms(2, {})
    assert bench.check(arms, 2, [0, 1]) < 1e-5
    for name in ("ours", "engine", "grouped"):
        right = arms[name]

        def wrong(tasks: Sequence[int], right: Any = right) -> Any:
            return right([1 - task for task in tasks])

        with pytest.raises(SystemExit, match=f"{name}, 2 tasks: answers differ"):
            bench.check({**arms, name: wrong}, 2, [0, 1])
    bench.close()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_gpu_on_toys(
    tiny_backbone: Backbone, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_gpu, "RUNS", 3)
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU")
    words = ("--vit", tiny_backbone.source, "--device", device, "--precision", "fp32")

    targets, report, page = run(bench_gpu, tmp_path, *words)

    measured = report["measured"]
    assert measured["error"] < 1e-3
    callers = "one caller" if device == "cpu" else "2 callers"
    flops = bench_gpu.RUNS * measured["batch_size"] * measured["flops"]
    uses = [
        flops / taken / ceiling
        for taken, ceiling in zip(
            measured["seconds"][f"distinct tasks, {callers}"], measured["ceilings"], strict=True
        )
    ]
    assert targets["use of the GPU"]["measured"] == pytest.approx(median(uses))
    assert targets["distinct tasks"]["measured"] > 0
    assert f"| distinct tasks, {callers} | 3 |" in page
    assert ("| matrix products |" in page) == (device == "cuda")


def test_kernels_are_told_apart_by_their_names() -> None:
    spent = {"nvjet_sm90_tst": 3.0, "cudnn_native_sdpa_sm90_flash": 2.0, "Memcpy HtoD": 1.0}
    spent |= {"_add_norm": 0.5, "Memcpy DtoD": 0.25, "sigmoid_kernel_cuda": 0.125}

    kinds = gpu_page.to_kinds({name: {"ms": ms, "launches": 1} for name, ms in spent.items()})

    assert [each["ms"] for each in kinds.values()] == [*spent.values()]
    assert [*kinds][:2] == ["matrix products", "attention"]


def test_without_a_gpu_its_targets_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    targets, report, page = run(bench_gpu, tmp_path)

    assert report["measured"] is None
    assert [each["measured"] for each in targets.values()] == [None, None]
    assert "not measured: torch sees no CUDA GPU; ViT-B/16, batches of 256, bf16." in page


def test_files_leave_the_page_cache(tmp_path: Path) -> None:
    for name in ("bundle.json", "tensors.safetensors"):
        (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(100_000))
    assert is_cached(tmp_path / "bundle.json")

    if not drop_from_cache(tmp_path):
        pytest.skip("this file system keeps its files in memory")

    assert not is_cached(tmp_path / "bundle.json")


def test_the_page_is_made_of_the_figures() -> None:
    page = ROOT / "docs" / serving_page.PAGE
    if not page.exists():
        pytest.skip("the benchmarks of serving have not been run whole")

    reports = serving_page.load_reports(ROOT / "benchmarks")
    assert page.read_text("utf-8") == serving_page.to_page(reports)
