import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
from toys import export_once, noise, random_bundle

from lspt_serve.errors import GraphError
from lspt_serve.models import Backbone
from lspt_serve.reference import Reference, row_errors
from lspt_serve.runtime import OnnxEngine, OpenVINOEngine
from lspt_serve.runtime.openvino import load_core


@pytest.fixture(scope="module")
def graph(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tiny_backbone, tmp_path_factory)


def has_bf16() -> bool:
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    program = (
        "import lspt_serve, openvino\n"
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.stdout == "openvino.tools.ovc.telemetry_stub\n", ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_threads_may_use_it_first_at_the_same_time() -> None:
    """Python changes threads so often there that each would wait for what the other makes."""
    program = (
        "import sys, threading; from concurrent.futures import ThreadPoolExecutor\n"
        "from lspt_serve.runtime.openvino import load_core\n"
        "load_core(); import openvino; together = threading.Barrier(8)\n"
        "def use(_):\n"
        "    together.wait(); return openvino.Type.f32.to_dtype().name\n"
        "sys.setswitchinterval(1e-6); print(*ThreadPoolExecutor(8).map(use, range(8)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )

    assert ended.stdout.split() == ["float32"] * 8, ended.stderr


def test_a_signal_ends_the_process_as_before_once_engines_are_gone(graph: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from lspt_serve.runtime import OpenVINOEngine\n"
        "engines = [OpenVINOEngine(Path(sys.argv[1])) for number in range(2)]\n"
        "del engines[0]; del engines[0]; os.kill(os.getpid(), signal.SIGINT)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(graph)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.stderr.endswith("KeyboardInterrupt\n")
    assert ended.returncode == -signal.SIGINT


def test_numbers_of_prompts_that_the_graph_was_made_with_and_others_answer_alike(
    tiny_backbone: Backbone, graph: Path
) -> None:
    usual = Reference.load(graph).tasks[0]["method.prompts"].shape[-2]
    engine, wanted = OpenVINOEngine(graph), OnnxEngine(graph, device="cpu")
    for counts in ([usual] * 4, [usual - 1] * 4, [usual - 1, usual] * 2, [usual, usual + 2] * 2):
        tasks = [
            random_bundle(tiny_backbone, num_prompts=count, seed=seed).method_tensors
            for seed, count in enumerate(counts)
        ]
        got = engine.features(noise(4), tasks)
        assert row_errors(got, wanted.features(noise(4), tasks)).max() < 1e-5


@pytest.mark.parametrize(
    ("unused", "more"),
    [("_any", [0, 0]), ("_any", [-1, 0]), ("_usual", [-1, -1]), ("_usual", [0, 2])],
)
def test_a_batch_of_the_usual_number_of_prompts_has_a_compilation_of_its_own(
    tiny_backbone: Backbone,
    graph: Path,
    monkeypatch: pytest.MonkeyPatch,
    unused: str,
    more: list[int],
) -> None:
    engine = OpenVINOEngine(graph)
    monkeypatch.setattr(engine, unused, None)
    tasks = [
        random_bundle(tiny_backbone, num_prompts=engine.num_prompts + count).method_tensors
        for count in more
    ]

    assert np.isfinite(engine.features(noise(2), tasks)).all()


@pytest.mark.skipif(not has_bf16(), reason="the CPU has no bf16 instructions")
def test_bf16_is_near_fp32_and_is_not_fp32(tiny_backbone: Backbone, graph: Path) -> None:
    bundle = random_bundle(tiny_backbone, num_prompts=3)
    answers = []
    for precision in ("fp32", "bf16"):
        engine = OpenVINOEngine(graph, precision=precision)
        answers.append(engine.features(noise(4), [bundle.method_tensors] * 4))
    exact, near = answers

    difference = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 1e-4 < difference < 0.05


def test_precision_that_the_cpu_has_not_is_refused(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino.Core, "get_property", lambda *args: ["FP32", "INT8"])

    with pytest.raises(GraphError, match="OpenVINO has no bf16 on this CPU; wanted fp32 or int8"):
        OpenVINOEngine(graph, precision="bf16")


def test_without_openvino_is_told_how_to_get_it(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("lspt_serve.runtime.openvino.load_core", load_core.__wrapped__)

    with pytest.raises(GraphError, match=r"pip install '\.\[openvino\]'"):
        OpenVINOEngine(graph)
