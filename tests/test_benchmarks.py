"""The scripts of benchmarks/ on toys: that they run, and that what they write says what was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toys import write_coloured

from lspt_serve.models import Backbone
from lspt_serve.results import load_runs

ROOT = Path(__file__).parents[1]
CONFIG = """
protocol = "vtab"
img_size = 32
sampler = "grid"
seeds = [3]
train = { epochs = 1, batch_size = 4 }
space = { lr = [1e-3] }

[[entry]]
method = "linear"

[[entry]]
method = "vpt-deep"
options = { num_prompts = 2 }

[[entry]]
method = "lspt"
options = { num_prompts = 2 }

[[entry]]
name = "without LPC"
like = "lspt"
options = { lpc = false }
"""


@pytest.mark.slow
def test_results_are_made_by_one_command(tiny_backbone: Backbone, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_coloured(tmp_path / "colours" / split, ["blue", "red"], count=4)
    (tmp_path / "results.toml").write_text(CONFIG)
    docs = tmp_path / "docs"
    docs.mkdir()
    command = [sys.executable, str(ROOT / "benchmarks" / "results.py")]
    command += ["--backbone", tiny_backbone.source, "--config", str(tmp_path / "results.toml")]
    command += ["--data", str(tmp_path / "colours"), "--storage", str(tmp_path / "results.db")]
    command += ["--docs", str(docs)]

    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    assert process.returncode == 0, process.stderr
    names = ["linear", "vpt-deep", "lspt", "without LPC"]
    runs = load_runs(docs / "results.json")
    assert [(run.name, run.task, run.seed) for run in runs] == [
        (name, "colours", 3) for name in names
    ]
    latencies = json.loads((docs / "latencies.json").read_text())
    assert [*latencies] == names
    assert all(value > 0 for value in latencies.values())
    assert {path.name for path in docs.glob("*.png")} == {"results.png", "ablation.png"}
    page = (docs / "results.md").read_text()
    methods, ablation = page.split("## What LSPT is without its parts")
    assert "| colours | 2 | 8 | 8 | 8 |" in methods
    assert "`lspt` is " in methods
    assert "points from linear; the target was +3: **" in methods
    for name in names[:3]:
        assert f"| {name} |" in methods
    assert "| without LPC |" not in methods
    for name in names[1:]:
        assert f"| {name} |" in ablation
