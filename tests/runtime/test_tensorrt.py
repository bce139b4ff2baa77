"""ONNX Runtime's TensorRT provider: what it is told, and that it is refused where it is not."""

import importlib.util
from pathlib import Path

import onnxruntime
import pytest
import torch
from toys import export_once, prompts_graph, simple_bundle

import lspt_serve.runtime.onnx
from lspt_serve.errors import GraphError
from lspt_serve.graph import GraphSpec
from lspt_serve.models import Backbone
from lspt_serve.reference import Precision, Reference
from lspt_serve.runtime import OnnxEngine, choose_engine
from lspt_serve.runtime.gate import check_engine
from lspt_serve.runtime.onnx import CPU
from lspt_serve.runtime.tensorrt import TENSORRT, format_shapes, tensorrt_options

PROVIDER = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"


@pytest.fixture
def spec() -> GraphSpec:
    """Images of one pixel, prompts of width 1."""
    return prompts_graph(simple_bundle("task"))


@pytest.fixture(scope="module")
def graph(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tiny_backbone, tmp_path_factory)


def test_shapes_are_written_as_the_provider_reads_them() -> None:
    shapes = {"images": [1, 3, 224, 224], "method.prompts": [4, 10, 768], "back": [16]}

    wanted = "images:1x3x224x224,method.prompts:4x10x768,back:16"
    assert format_shapes(shapes) == wanted


def test_options_are_those_worked_out_by_hand(spec: GraphSpec, tmp_path: Path) -> None:
    options = tensorrt_options(tmp_path, spec, "fp16")

    assert options == {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": f"{tmp_path}/tensorrt",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": f"{tmp_path}/tensorrt",
        "trt_profile_min_shapes": "images:1x3x1x1,method.prompts:1x1x1,place:1x1,back:1,"
        "num_prompts:1",
        "trt_profile_opt_shapes": "images:16x3x1x1,method.prompts:4x16x1,place:4x4,back:16,"
        "num_prompts:4",
        "trt_profile_max_shapes": "images:32x3x1x1,method.prompts:32x256x1,place:32x32,back:32,"
        "num_prompts:32",
        "trt_fp16_enable": "True",
        "trt_bf16_enable": "False",
        "trt_layer_norm_fp32_fallback": "True",
    }
    assert (tmp_path / "tensorrt").is_dir()


@pytest.mark.parametrize(
    ("precision", "flags"),
    [("fp32", ("False", "False")), ("fp16", ("True", "False")), ("bf16", ("False", "True"))],
)
def test_precision_is_one_flag(
    spec: GraphSpec, tmp_path: Path, precision: Precision, flags: tuple[str, str]
) -> None:
    options = tensorrt_options(tmp_path, spec, precision)

    assert (options["trt_fp16_enable"], options["trt_bf16_enable"]) == flags


@pytest.mark.skipif(not PROVIDER.is_file(), reason="this ONNX Runtime is built without TensorRT")
def test_the_installed_provider_knows_every_option(spec: GraphSpec, tmp_path: Path) -> None:
    library = PROVIDER.read_bytes()

    for name in tensorrt_options(tmp_path, spec, "bf16"):
        assert name.encode() in library or name.encode() in _bindings(), name


def _bindings() -> bytes:
    (path,) = PROVIDER.parent.glob("onnxruntime_pybind11_state*.so")
    return path.read_bytes()


def test_cache_that_cannot_be_made_is_refused(spec: GraphSpec, tmp_path: Path) -> None:
    (tmp_path / "tensorrt").touch()

    with pytest.raises(GraphError, match=r"/tensorrt: cannot be made for TensorRT's engines: File"):
        tensorrt_options(tmp_path, spec, "fp32")


def test_without_a_gpu_it_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CPU])
    monkeypatch.setattr(lspt_serve.runtime.onnx, "has_cuda_gpu", lambda: False)

    with pytest.raises(GraphError, match="there is no CUDA GPU for ONNX Runtime"):
        choose_engine(graph, names=["tensorrt"])


def test_without_the_provider_it_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])

    with pytest.raises(GraphError, match="this ONNX Runtime is built without"):
        choose_engine(graph, names=["tensorrt"])


def test_on_the_cpu_it_is_refused(graph: Path) -> None:
    with pytest.raises(GraphError, match="TensorRT runs on a CUDA GPU, and device 'cpu' was asked"):
        choose_engine(graph, names=["tensorrt"], device="cpu")


def test_silent_fall_back_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lspt_serve.runtime.onnx, "_tensorrt_providers", lambda *given: [CPU])

    with pytest.raises(GraphError, match=f"runs {CPU}; TensorRT's libraries are missing"):
        OnnxEngine(graph, tensorrt=True)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("tensorrt") is None,
    reason="no CUDA GPU, or no TensorRT",
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_answers_are_those_of_torch_and_the_engine_is_kept(
    graph: Path, precision: Precision
) -> None:
    engine = OnnxEngine(graph, tensorrt=True, precision=precision)

    check_engine(engine, Reference.load(graph))

    assert (engine.name, engine.provider) == ("tensorrt", TENSORRT)
    assert [*(graph / "tensorrt").glob("*.engine")]
