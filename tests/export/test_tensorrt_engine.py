"""TensorRT's engine of the graph. Without TensorRT and a GPU, a fake stands in for its library."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from google.protobuf import text_format
from toys import export_once
from tritonclient.grpc import model_config_pb2

import lspt_serve.export.tensorrt
import lspt_serve.export.triton
from lspt_serve.bundle import Bundle
from lspt_serve.errors import GraphError
from lspt_serve.export.tensorrt import build_engine
from lspt_serve.export.triton import export_to_triton
from lspt_serve.graph import (
    GRAPH_FILE,
    TRITON_CONFIG,
    TRITON_GRAPH,
    TRITON_MODEL,
    GraphSpec,
    load_graph_spec,
)
from lspt_serve.models import Backbone

NAME = "graph-nvidia-h100-80gb-hbm3-trt10.9.0-{}.plan"


class FakeTensorRT:
    """As much of TensorRT 10's Python library as a build calls; it notes what it is told."""

    __version__ = "10.9.0"
    float32 = "float32"
    BuilderFlag = SimpleNamespace(
        FP16="FP16", BF16="BF16", TF32="TF32", OBEY_PRECISION_CONSTRAINTS="OBEY"
    )
    LayerType = SimpleNamespace(NORMALIZATION="normalization", MATRIX_MULTIPLY="matmul")

    def __init__(self, *, plan: bytes | None = b"plan", readable: bool = True) -> None:
        self.plan, self.readable = plan, readable
        self.flags = ["TF32"]  # https://docs.nvidia.com/deeplearning/tensorrt: on by default
        self.profile: dict[str, tuple[list[int], ...]] = {}
        self.timings: list[bytes] = []
        self.read: list[str] = []
        self.layers = [
            SimpleNamespace(type=kind, precision=None)
            for kind in ("normalization", "matmul", "normalization")
        ]

    class Logger:
        WARNING = 1

        def __init__(self, level: int) -> None:
            pass

    def Builder(self, logger: object) -> Any:  # noqa: N802
        network = SimpleNamespace(num_layers=len(self.layers), get_layer=self.layers.__getitem__)
        profile = SimpleNamespace(
            set_shape=lambda name, *shapes: self.profile.update({name: shapes})
        )
        config = SimpleNamespace(
            set_flag=self.flags.append,
            clear_flag=self.flags.remove,
            add_optimization_profile=lambda profile: None,
            create_timing_cache=lambda known: self.timings.append(known),
            set_timing_cache=lambda cache, ignore_mismatch: None,
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"timings"),
        )
        return SimpleNamespace(
            create_network=lambda flags: network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda network, config: self.plan,
        )

    def OnnxParser(self, network: object, logger: object) -> Any:  # noqa: N802
        def parse(path: str) -> bool:
            self.read.append(path)
            return self.readable

        error = SimpleNamespace(desc=lambda: "no such operator")
        return SimpleNamespace(parse_from_file=parse, get_error=lambda number: error)


@pytest.fixture(scope="module")
def spec(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> GraphSpec:
    return load_graph_spec(export_once(tiny_backbone, tmp_path_factory))


def pretend(monkeypatch: pytest.MonkeyPatch, fake: FakeTensorRT) -> FakeTensorRT:
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(lspt_serve.export.tensorrt, "_check", lambda *given: None)
    return fake


def test_build_is_told_what_it_needs(
    spec: GraphSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = pretend(monkeypatch, FakeTensorRT())

    path = build_engine(tmp_path, spec, "fp16")

    assert path == tmp_path / NAME.format("fp16")
    assert path.read_bytes() == b"plan"
    assert fake.read == [str(tmp_path / GRAPH_FILE)]
    assert fake.flags == ["TF32", "FP16", "OBEY"]
    assert [layer.precision for layer in fake.layers] == ["float32", None, "float32"]
    assert fake.profile["images"] == ([1, 3, 32, 32], [16, 3, 32, 32], [32, 3, 32, 32])
    assert fake.profile["place"] == ([1, 1], [4, 4], [32, 32])
    assert {*fake.profile} == {"images", *spec.inputs, "place", "back", "num_prompts"}


def test_repository_of_triton_takes_the_engine_in_the_place_of_the_graph(
    tiny_backbone: Backbone,
    spec: GraphSpec,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = pretend(monkeypatch, FakeTensorRT())
    exported = export_once(tiny_backbone, tmp_path_factory)

    def copy(backbone: Backbone, folder: Path, *, like: Bundle | None) -> GraphSpec:
        shutil.copytree(exported, folder)
        return spec

    monkeypatch.setattr(lspt_serve.export.triton, "export_graph", copy)

    export_to_triton(tiny_backbone, tmp_path, backend="tensorrt", precision="fp16")

    model = tmp_path / TRITON_GRAPH
    assert {str(path.relative_to(model)) for path in model.rglob("*")} == {
        "config.pbtxt",
        "1",
        "1/model.plan",
    }
    assert (model / "1" / "model.plan").read_bytes() == b"plan"
    assert "FP16" in fake.flags
    config = text_format.Parse((model / TRITON_CONFIG).read_text(), model_config_pb2.ModelConfig())
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert config.parameters["precision"].string_value == "fp16"
    assert {each.name: [*each.dims] for each in config.input} == {
        name: [-1 if min(sizes) < max(sizes) else sizes[0] for sizes in zip(*shapes, strict=True)]
        for name, shapes in fake.profile.items()
    }
    assert not [*(tmp_path / TRITON_MODEL / "graph").glob("*.plan")]


def test_timings_serve_the_next_build(
    spec: GraphSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = pretend(monkeypatch, FakeTensorRT())

    build_engine(tmp_path, spec, "fp32")
    assert fake.flags == []
    build_engine(tmp_path, spec, "bf16")

    assert fake.timings == [b"", b"timings"]
    assert fake.flags == ["BF16", "OBEY"]
    assert {path.name for path in tmp_path.iterdir()} == {
        NAME.format("fp32"),
        NAME.format("bf16"),
        "timing.cache",
    }


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (FakeTensorRT(readable=False), r"graph\.onnx: TensorRT cannot read it: no such operator"),
        (FakeTensorRT(plan=None), r"graph\.onnx: TensorRT 10\.9\.0 cannot build it"),
    ],
)
def test_what_cannot_be_built_leaves_nothing(
    spec: GraphSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake: FakeTensorRT,
    message: str,
) -> None:
    pretend(monkeypatch, fake)

    with pytest.raises(GraphError, match=message):
        build_engine(tmp_path, spec, "fp32")

    assert list(tmp_path.iterdir()) == []


def test_engine_that_disagrees_is_not_written(
    spec: GraphSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, FakeTensorRT())

    def differ(*given: object) -> None:
        raise GraphError("TensorRT's engine differs from torch")

    monkeypatch.setattr(lspt_serve.export.tensorrt, "_check", differ)

    with pytest.raises(GraphError, match="differs"):
        build_engine(tmp_path, spec, "fp16")
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_there_is_none_to_build_for(
    spec: GraphSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(GraphError, match="built on the GPU it is for, and there is none"):
        build_engine(tmp_path, spec, "fp32")


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("tensorrt") is None,
    reason="no CUDA GPU, or no TensorRT",
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_real_engine_is_built_and_agrees_with_torch(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, precision: Any
) -> None:
    graph = export_once(tiny_backbone, tmp_path_factory)

    path = build_engine(graph, load_graph_spec(graph), precision)

    assert path.stat().st_size > 0
