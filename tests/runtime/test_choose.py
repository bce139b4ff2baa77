import logging
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from toys import corrupt, export_once

import lspt_serve.runtime.choose
from lspt_serve.cores import THREADS
from lspt_serve.errors import GraphError
from lspt_serve.graph import GRAPH_FILE
from lspt_serve.models import Backbone
from lspt_serve.neighbours import Neighbours, create_neighbours
from lspt_serve.reference import Reference
from lspt_serve.runtime import (
    Candidate,
    Device,
    Engine,
    OnnxEngine,
    Refusal,
    choose_engine,
    try_engines,
)
from lspt_serve.runtime.choose import EngineName
from lspt_serve.runtime.gate import Parity


@pytest.fixture(scope="module")
def graph(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tiny_backbone, tmp_path_factory)


@pytest.mark.parametrize("fastest", ["onnxruntime", "openvino"])
def test_fastest_serves_and_the_log_says_why(
    graph: Path, fastest: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def race(engine: Engine, reference: object) -> Candidate:
        return Candidate(engine, Parity(1e-6, 1.0), 20.0 if engine.name == fastest else 10.0)

    monkeypatch.setattr(lspt_serve.runtime.choose, "_try", race)

    with caplog.at_level(logging.INFO, "lspt_serve"):
        engine = choose_engine(graph, device="cpu")

    assert engine.name == fastest
    for wanted in (
        "onnxruntime in fp32 on CPUExecutionProvider: ",
        "openvino in fp32 on CPU: ",
        "0 images/s, differs from torch by 1.0e-06 of a row, top-1 agreement 100.0%",
        f"{fastest} is the fastest here and serves",
    ):
        assert wanted in caplog.text


def test_engines_are_really_tried(graph: Path) -> None:
    found = list(try_engines(graph, device="cpu"))

    assert [type(each) for each in found] == [Candidate, Candidate]
    for each in found:
        assert isinstance(each, Candidate)
        assert each.images_per_s > 0
        assert each.parity.max_error < 1e-5


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_workers_engine_may_use_all_cores_and_tells_the_others_what_it_runs(
    graph: Path, name: EngineName, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = list[int]()

    class Recorded(Neighbours):
        def tell(self, change: int) -> None:
            super().tell(change)
            told.append(change)

    create_neighbours(tmp_path / "running", 2)
    neighbours = Recorded(tmp_path / "running")
    monkeypatch.setenv(THREADS, "1")
    monkeypatch.setattr(lspt_serve.runtime.choose, "find_neighbours", lambda: neighbours)
    monkeypatch.setattr(lspt_serve.runtime.choose, "server_cores", lambda: 2)
    engine = choose_engine(graph, names=[name], device="cpu")
    assert engine.num_beside == 2
    told.clear()

    reference = Reference.load(graph)
    images = reference.images(engine.graph.preprocess.img_size)
    engine.features(images, reference.rows)

    assert told == [1, -1]


@pytest.mark.parametrize(
    ("device", "gpu", "tried"),
    [("auto", True, True), ("cuda", True, True), ("cpu", True, False), ("auto", False, False)],
)
def test_torch_is_tried_unasked_only_where_it_has_a_gpu(
    graph: Path, device: Device, gpu: bool, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, name: str, *others: object, **triton: str) -> Engine:
        raise GraphError(f"{name} was tried")

    monkeypatch.setattr(lspt_serve.runtime.choose, "has_cuda_gpu", lambda: gpu)
    monkeypatch.setattr(lspt_serve.runtime.choose, "create_engine", refuse)

    found = [each.name for each in try_engines(graph, device=device) if isinstance(each, Refusal)]

    assert found == ["onnxruntime", "openvino", "torch"][: 3 if tried else 2]


def test_torch_is_taken_where_it_is_asked_for(graph: Path) -> None:
    (found,) = try_engines(graph, names=["torch"], precisions=["bf16"], device="cpu")

    assert isinstance(found, Candidate)
    assert str(found).startswith("torch in bf16 on CPU: ")


def test_without_torch_is_told_how_to_get_it(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lspt_serve.runtime.torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)

    (found,) = try_engines(graph, names=["torch"], device="cpu")

    assert found == Refusal(
        "torch", "fp32", "engine 'torch' needs torch and timm: pip install '.[train]' in a clone"
    )


@pytest.mark.parametrize("where", ["__init__", "features"])
def test_engine_that_breaks_down_is_refused_and_the_next_is_tried(
    graph: Path, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: object, **named: object) -> NoReturn:
        raise RuntimeError("CUDA failure 2: out of memory\nat line 7")

    monkeypatch.setattr(OnnxEngine, where, fail)
    with caplog.at_level(logging.DEBUG, "lspt_serve"):
        broken, good = try_engines(graph, names=["onnxruntime", "openvino"], device="cpu")

    assert broken == Refusal("onnxruntime", "fp32", "CUDA failure 2: out of memory")
    assert isinstance(good, Candidate)
    assert ("onnxruntime in fp32 failed", logging.DEBUG) in [
        (record.message, record.levelno) for record in caplog.records if record.exc_info
    ]


def test_engine_that_is_asked_for_is_taken(graph: Path) -> None:
    assert choose_engine(graph, names=["onnxruntime"], device="cpu").name == "onnxruntime"


def test_what_an_engine_cannot_do_is_said(graph: Path) -> None:
    (found,) = try_engines(graph, names=["onnxruntime"], precisions=["bf16"])

    assert found == Refusal(
        "onnxruntime", "bf16", "ONNX Runtime runs the graph in fp32 only, not in bf16"
    )


def test_openvino_does_not_stand_in_for_a_gpu(graph: Path) -> None:
    with pytest.raises(GraphError, match="OpenVINO runs on the CPU, and device 'cuda' was asked"):
        choose_engine(graph, names=["openvino"], device="cuda")


def test_no_engine_serves_what_none_gets_right(graph: Path, tmp_path: Path) -> None:
    for file in graph.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    corrupt(tmp_path / GRAPH_FILE)

    with pytest.raises(GraphError, match=r"onnxruntime .* not serve here: .*openvino .* not serve"):
        choose_engine(tmp_path, device="cpu")
