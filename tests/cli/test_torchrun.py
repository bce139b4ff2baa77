"""lspt train under torchrun, with two processes: on the CPU (gloo) and on two GPUs (NCCL)."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import COLOURS, write_coloured
from typer.testing import CliRunner

from lspt_serve.bundle import load_bundle
from lspt_serve.cli import app
from lspt_serve.models import Backbone

pytestmark = pytest.mark.slow

Trained = tuple[subprocess.CompletedProcess[str], Path, Path]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
# Several commands, a line each, in processes that import torch and meet once.
PROGRAM = """
import shlex, sys
from lspt_serve import training
from lspt_serve.cli import main
leave, training.leave_processes = training.leave_processes, lambda: None
for line in open(sys.argv[1]).read().splitlines():
    sys.argv[1:] = shlex.split(line)
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
leave()
"""
# 31 images of train: batches of 7, 6, 6, 6, 6 between two processes, each in two micro-batches
COMMON = "--epochs 3 --batch-size 7 --warmup-epochs 1 --lr 0.01 --precision fp32"
RUNS = {
    "lspt": "--method lspt --augment crop+flip --mixup 0.3 --accumulate 2 --sampling balanced",
    "linear": "--method linear --augment crop+flip --accumulate 2 --label-smoothing 0.1",
    "cached": "--method linear --pool patch_mean",  # features, computed by halves
    "single": "--method vpt-shallow --batch-size 1 --epochs 1",  # one process has no rows
}


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"),
        ],
    ),
]


@pytest.fixture(scope="module", params=DEVICES)
def trained(
    request: pytest.FixtureRequest,
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    """What two processes printed, the folder of their bundles and that of those of one."""
    folder = tmp_path_factory.mktemp("torchrun")
    write_coloured(folder / "data", list(COLOURS), count=15)
    common = ["train", "--backbone", tiny_backbone.source, "--data", str(folder / "data")]
    common += ["--device", request.param]
    commands: dict[str, list[list[str]]] = {
        out: [
            [*common, "--out", str(folder / out / name), *COMMON.split(), *words.split()]
            for name, words in RUNS.items()
        ]
        for out in ("one", "two")
    }
    for words in commands["one"]:
        assert CliRunner().invoke(app, words).exit_code == 0
    (folder / "program.py").write_text(PROGRAM)
    (folder / "commands").write_text("\n".join(map(shlex.join, commands["two"])))
    ended = subprocess.run(
        [*TORCHRUN, str(folder / "program.py"), str(folder / "commands")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended, folder / "two", folder / "one"


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_the_tensors_of_one(trained: Trained, name: str) -> None:
    two, one = (load_bundle(folder / name) for folder in trained[1:])

    assert two.tensors.keys() == one.tensors.keys()
    for key, tensor in one.tensors.items():
        np.testing.assert_allclose(two.tensors[key], tensor, rtol=0, atol=1e-5)
    assert two.manifest.metrics is not None
    assert one.manifest.metrics is not None
    for field in ("val_accuracy", "test_accuracy", "best_epoch", "split"):
        assert getattr(two.manifest.metrics, field) == getattr(one.manifest.metrics, field)
    assert two.manifest.metrics.test_ece == pytest.approx(one.manifest.metrics.test_ece, abs=1e-4)


def test_only_the_first_process_prints(trained: Trained) -> None:
    ended = trained[0]

    assert len(ended.stdout.splitlines()) == 2 * len(RUNS)
    assert ended.stdout.count("report: ") == len(RUNS)
    assert all(ended.stderr.count(f"{name} ") <= 1 for name in RUNS)
