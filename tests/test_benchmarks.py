"""The scripts of benchmarks/ on toys: that they run, and that what they write says what was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from results_page import to_differences
from toys import write_coloured

from lspt_serve.models import Backbone
from lspt_serve.results import Run, load_runs

ROOT = Path(__file__).parents[1]
SHARED = """
protocol = "vtab"
img_size = 32
sampler = "grid"
seeds = [3]
train = { epochs = 1, batch_size = 4 }
space = { lr = [1e-3] }
"""
METHODS = """
[[entry]]
method = "linear"

[[entry]]
method = "vpt-deep"
options = { num_prompts = 2 }

[[entry]]
method = "lspt"
options = { num_prompts = 2 }
"""
ABLATION = """
[[entry]]
name = "lspt, all parts"
method = "lspt"
options = { num_prompts = 2 }

[[entry]]
name = "without LPC"
like = "lspt, all parts"
options = { lpc = false }
"""


@pytest.mark.slow
def test_results_are_made_by_one_command(tiny_backbone: Backbone, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_coloured(tmp_path / "colours" / split, ["blue", "red"], count=4)
    (tmp_path / "methods.toml").write_text(SHARED + METHODS)
    (tmp_path / "ablation.toml").write_text(SHARED + ABLATION)
    docs = tmp_path / "docs"
    docs.mkdir()
    command = [sys.executable, str(ROOT / "benchmarks" / "results.py")]
    command += ["--backbone", tiny_backbone.source, "--configs", str(tmp_path)]
    command += ["--data", str(tmp_path / "colours"), "--build", str(tmp_path / "build")]
    command += ["--docs", str(docs)]

    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    assert process.returncode == 0, process.stderr
    methods, ablation = ["linear", "vpt-deep", "lspt"], ["lspt, all parts", "without LPC"]
    runs = load_runs(docs / "results.json")
    assert [(run.name, run.task, run.seed) for run in runs] == [
        (name, "colours", 3) for name in methods + ablation
    ]
    latencies = json.loads((docs / "latencies.json").read_text())
    assert [*latencies] == methods + ablation
    assert all(value > 0 for value in latencies.values())
    assert {path.name for path in docs.glob("*.png")} == {"results.png", "ablation.png"}
    page = (docs / "results.md").read_text()
    first, second = page.split("## What LSPT is without its parts")
    assert "| colours | 2 | 8 | 8 | 8 |" in first
    assert "`lspt` is " in first
    assert "points from linear; the target was +3: **" in first
    for name in methods:
        assert f"| {name} |" in first
    for name in ablation:
        assert f"| {name} |" in second
        assert f"| {name} |" not in first

    # one part alone: the other stays as it was recorded, although it cannot be made any more
    (tmp_path / "build" / "methods.db").unlink()
    before = (docs / "results.json").read_text()
    command += ["--part", "ablation"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    assert process.returncode == 0, process.stderr
    assert (docs / "results.json").read_text() == before
    assert not (tmp_path / "build" / "methods.db").exists()


def differences(**tests: list[float]) -> list[str]:
    """What the page says of entries by their accuracies on one task, seeds 0, 1, ..."""
    own: dict[str, Any] = {"method": "lspt", "image_size": 32, "protocol": "vtab", "backbone": "0"}
    runs = [
        Run(name=name, task="t", seed=seed, test=test, lspt_serve="0", **own)
        for name, values in tests.items()
        for seed, test in enumerate(values)
    ]
    return to_differences(runs, "whole")


def test_differences_are_told_from_noise() -> None:
    # from `whole`: 0.02, 0.03, 0.04 (mean 0.03, deviation 0.01, 4.30 * 0.01 / sqrt(3) = 0.025);
    # of two seeds 0.01 and 0.02 (mean 0.015, deviation 0.007, 12.71 * 0.007 / sqrt(2) = 0.064)
    title = ["Differences seed by seed, with 95 % intervals of Student's t:", ""]
    assert differences(whole=[0.5, 0.5, 0.5], other=[0.52, 0.53, 0.54]) == [
        *title,
        "- `other` is +3.0 ± 2.5 points from `whole`.",
        "- The seeds of the others do not tell them from `whole`.",
    ]
    assert differences(whole=[0.5, 0.5], other=[0.51, 0.52]) == [
        *title,
        "- The seeds of all do not tell them from `whole`.",
    ]
