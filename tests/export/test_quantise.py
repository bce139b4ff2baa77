import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from toys import coloured_split, export_once, random_bundle

from lspt_serve.bundle import Bundle
from lspt_serve.errors import BundleError, GraphError
from lspt_serve.export import export_graph, quantise, quantise_graph
from lspt_serve.graph import GRAPH_FILE
from lspt_serve.models import Backbone, load_backbone
from lspt_serve.preprocess import Preprocess, normalise
from lspt_serve.quantised import INT8, INT8_GRAPH, Quantised, hash_graph
from lspt_serve.reference import Reference, row_errors
from lspt_serve.runtime import Candidate, OnnxEngine, OpenVINOEngine, Refusal, try_engines
from lspt_serve.training import Split, TrainSettings, load_dataset, train_task

PRODUCTS = 1 + 4 * 3  # the patches; qkv, proj, fc1 and fc2 of three blocks


@pytest.fixture(scope="module")
def bundle(tiny_backbone: Backbone) -> Bundle:
    return random_bundle(tiny_backbone, num_prompts=3)


@pytest.fixture(scope="module")
def graph(
    tiny_backbone: Backbone, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny backbone's graph with its int8 twin."""
    folder = tmp_path_factory.mktemp("int8") / "graph"
    shutil.copytree(export_once(tiny_backbone, tmp_path_factory), folder)
    quantise_graph(folder, bundle, coloured_split(8, 0).images)
    return folder


def squares(count: int) -> NDArray[np.float32]:
    """Normalised images like those that were calibrated on, 3 * count x 3 x 32 x 32."""
    return normalise(coloured_split(count, 1).images, Preprocess(32))


def integers(path: Path) -> list[str]:
    """The names of the products of int8; all that takes what was rounded to it is such a one."""
    products = []
    for operation in openvino.Core().read_model(path).get_ordered_ops():
        sources = [given.get_source_output().get_node() for given in operation.inputs()]
        rounded = "FakeQuantize" in [source.get_type_name() for source in sources]
        if rounded and operation.get_type_name() != "ShapeOf":
            assert operation.get_type_name() in ("MatMul", "Convolution")
            assert holds_int8(sources[1]), operation.get_friendly_name()
            products.append(operation.get_friendly_name())
    return products


def holds_int8(node: Any) -> bool:
    """Whether a chain that starts at a constant of int8 ends here."""
    while node.get_type_name() != "Constant":
        if not node.inputs():
            return False
        node = node.input(0).get_source_output().get_node()
    return bool(node.get_element_type() == openvino.Type.i8)


def test_int8_is_near_fp32_and_is_not_fp32(graph: Path, bundle: Bundle) -> None:
    images, tasks = squares(3), [bundle.method_tensors] * 9
    exact, near = (
        OpenVINOEngine(graph, precision=precision).features(images, tasks)
        for precision in ("fp32", "int8")
    )

    errors = row_errors(near, exact)
    assert errors.min() > 2e-3
    assert errors.max() < 0.1


def test_tasks_share_a_batch_in_int8(graph: Path, bundle: Bundle, tiny_backbone: Backbone) -> None:
    """Each is answered as it is alone, and near fp32, though one alone was calibrated on."""
    other = random_bundle(tiny_backbone, num_prompts=5, seed=1)
    exact, near = (OpenVINOEngine(graph, precision=each) for each in ("fp32", "int8"))
    tasks = [task.method_tensors for task in (other, bundle, bundle, other)]

    images = squares(2)[1:5]

    mixed = near.features(images, tasks)

    assert row_errors(mixed, exact.features(images, tasks)).max() < 0.3
    for row, task in enumerate(tasks):
        alone = near.features(images[row : row + 1], [task])
        assert row_errors(mixed[row : row + 1], alone).max() < 0.02
    assert row_errors(mixed[:1], near.features(images[:1], [tasks[1]])).max() > 0.1


def test_products_with_the_backbones_weights_are_int8_and_nothing_else(graph: Path) -> None:
    assert len(integers(graph / INT8 / INT8_GRAPH)) == PRODUCTS


def test_product_of_massive_activations_stays_float(
    graph: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(graph, tmp_path / "graph")
    images, find = coloured_split(1, 0).images, quantise._widest
    widest: dict[str, float] = {}

    def find_and_tell(model: Any, feeds: Any) -> dict[str, float]:
        widest.update(find(model, feeds))
        return widest

    monkeypatch.setattr(quantise, "_widest", find_and_tell)
    quantise_graph(tmp_path / "graph", bundle, images)
    massive = max(widest, key=lambda name: widest[name])
    monkeypatch.setattr(quantise, "MAX_RANGE", widest[massive] * 0.999)

    quantise_graph(tmp_path / "graph", bundle, images)

    assert len(widest) == PRODUCTS
    assert {*widest} - {*integers(tmp_path / "graph" / INT8 / INT8_GRAPH)} == {massive}


def test_gate_lets_the_twin_serve_and_not_a_twin_of_other_weights(
    graph: Path, bundle: Bundle, make_backbone: Callable[..., Backbone], tmp_path: Path
) -> None:
    (found,) = try_engines(graph, names=["openvino"], precisions=["int8"])
    other = tmp_path / "graph"
    export_graph(make_backbone(seed=1), other)
    shutil.copytree(graph / INT8, other / INT8)
    Quantised(graph_sha256=hash_graph(other), calibrated_on="?", num_images=1).save(other / INT8)
    wanted = Reference.load(graph / INT8)
    features = OnnxEngine(other).features(wanted.images(32), wanted.rows)
    Reference(wanted.tasks, wanted.whose, features, wanted.own).save(other / INT8)

    (refused,) = try_engines(other, names=["openvino"], precisions=["int8"])

    assert isinstance(found, Candidate)
    assert 2e-3 < found.parity.max_error < 0.3
    assert isinstance(refused, Refusal)
    assert "openvino in int8 does not serve here" in refused.reason


def test_bundle_of_another_graph_is_refused(graph: Path, tiny_backbone: Backbone) -> None:
    other = random_bundle(tiny_backbone, method="vpt-shallow")

    with pytest.raises(BundleError, match="does not fit the graph"):
        quantise_graph(graph, other, coloured_split(1, 0).images)


def test_broken_graph_leaves_the_twin_that_there_was(
    graph: Path, bundle: Bundle, tmp_path: Path
) -> None:
    shutil.copytree(graph, tmp_path / "graph")
    (tmp_path / "graph" / GRAPH_FILE).write_bytes(b"no graph")

    with pytest.raises(GraphError, match=r"graph\.onnx: cannot be quantised: "):
        quantise_graph(tmp_path / "graph", bundle, coloured_split(1, 0).images)

    assert len(integers(tmp_path / "graph" / INT8 / INT8_GRAPH)) == PRODUCTS


def test_what_nncf_raises_itself_is_one_line(
    graph: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **named: object) -> None:
        raise nncf.ValidationError("no such operation\nin the graph")

    shutil.copytree(graph, tmp_path / "graph")
    monkeypatch.setattr(nncf, "quantize", fail)

    with pytest.raises(GraphError, match=r"graph\.onnx: cannot be quantised: no such operation$"):
        quantise_graph(tmp_path / "graph", bundle, coloured_split(1, 0).images)


def test_nncf_reports_nothing_to_its_makers() -> None:
    program = (
        "from lspt_serve.export.quantise import load_nncf; load_nncf()\n"
        "from nncf.telemetry.wrapper import telemetry; print(type(telemetry).__name__)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )

    assert ended.stdout == "MagicMock\n", ended.stderr


def test_nncf_is_silenced_without_a_change_to_the_handlers_of_others() -> None:
    quantise.load_nncf()
    logger, handler = logging.getLogger("nncf"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        quantise.load_nncf()
    finally:
        logger.removeHandler(handler)

    assert handler.level == logging.NOTSET
    assert not logger.isEnabledFor(logging.WARNING)


@pytest.mark.slow
def test_a_real_task_loses_at_most_half_a_point(shared_data: Path, tmp_path: Path) -> None:
    backbone = load_backbone(
        str(shared_data / "vit_ti16_augreg.pth"), img_size=112, normalisation="half"
    )
    dataset = load_dataset(shared_data / "tasks" / "clothing10.tar", 112)
    settings = TrainSettings(epochs=3, warmup_epochs=0.5, device="cpu")
    bundle = train_task(backbone, dataset, name="clothing", settings=settings)
    export_graph(backbone, tmp_path / "graph", like=bundle)
    quantise_graph(tmp_path / "graph", bundle, dataset.train.images[::12])

    exact, near = (
        accuracy(OpenVINOEngine(tmp_path / "graph", precision=each), bundle, dataset.test)
        for each in ("fp32", "int8")
    )

    assert exact > 0.7
    assert near >= exact - 0.005


def accuracy(engine: OpenVINOEngine, bundle: Bundle, split: Split) -> float:
    weight, bias = bundle.head
    right = 0
    for rows in np.array_split(np.arange(len(split)), len(split) // 8):
        images = normalise(split.images[rows], bundle.manifest.preprocess)
        features = engine.features(images, [bundle.method_tensors] * len(rows))
        right += int(((features @ weight.T + bias).argmax(axis=1) == split.targets[rows]).sum())
    return right / len(split)
