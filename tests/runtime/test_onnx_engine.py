import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toys import export_once, noise, random_bundle

import lspt_serve.runtime.onnx
from lspt_serve.bundle import Bundle
from lspt_serve.errors import GraphError
from lspt_serve.export import create_model
from lspt_serve.models import Backbone
from lspt_serve.runtime import OnnxEngine
from lspt_serve.runtime.onnx import CPU, CUDA, has_cuda_gpu


@pytest.fixture(scope="module")
def graph(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tiny_backbone, tmp_path_factory)


@pytest.fixture(scope="module")
def bundle(tiny_backbone: Backbone) -> Bundle:
    return random_bundle(tiny_backbone, num_prompts=3)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lspt_serve.runtime.onnx, "has_cuda_gpu", lambda: False)


def by_torch(backbone: Backbone, bundle: Bundle, batch_size: int) -> NDArray[np.float32]:
    with torch.inference_mode():
        features = create_model(backbone, bundle).forward_features(
            torch.from_numpy(noise(batch_size))
        )
    return features.numpy()


def test_cpu_is_taken_when_it_is_asked_for(graph: Path) -> None:
    assert OnnxEngine(graph, device="cpu").provider == CPU


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_where_there_is_no_gpu(graph: Path) -> None:
    assert OnnxEngine(graph).provider == CPU


@pytest.mark.usefixtures("no_gpu")
def test_gpu_that_is_asked_for_and_absent_is_refused(graph: Path) -> None:
    with pytest.raises(GraphError, match="there is no CUDA GPU"):
        OnnxEngine(graph, device="cuda")


def test_silent_fall_back_from_gpu_to_cpu_is_refused(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lspt_serve.runtime.onnx, "_providers", lambda device: [CPU])

    with pytest.raises(GraphError, match=f"runs {CPU}"):
        OnnxEngine(graph, device="cuda")


def test_machine_without_nvidia_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)

    assert not has_cuda_gpu()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_features_on_a_gpu_are_those_of_torch(
    tiny_backbone: Backbone, graph: Path, bundle: Bundle
) -> None:
    engine = OnnxEngine(graph, device="cuda")
    wanted = by_torch(tiny_backbone, bundle, 5)

    features = engine.features(noise(5), [bundle.method_tensors] * 5)

    assert engine.provider == OnnxEngine(graph).provider == CUDA
    assert np.abs(features - wanted).max() <= 2e-5 * np.abs(wanted).max()  # TF32: 1e-3


def files_of(code: str, home: Path) -> list[Path]:
    """What a new process that runs the code leaves in its home."""
    home.mkdir()
    own = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = {**own, "HOME": str(home)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    return [path for path in home.rglob("*") if path.is_file()]


def test_onnx_runtime_keeps_no_record_for_its_makers(tmp_path: Path) -> None:
    if not files_of("import onnxruntime", tmp_path / "alone"):
        pytest.skip("this ONNX Runtime keeps none of itself")

    assert files_of("import lspt_serve.runtime", tmp_path / "ours") == []
