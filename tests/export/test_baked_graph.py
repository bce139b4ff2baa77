import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.onnx._internal.exporter import _onnx_program
from toys import corrupt, noise, random_bundle

import lspt_serve.export.baked
from lspt_serve.bundle import Bundle, load_bundle, save_bundle
from lspt_serve.errors import BundleError, GraphError
from lspt_serve.export import create_model, export_bundle
from lspt_serve.graph import IMAGES, PROBABILITIES, ParityRow
from lspt_serve.models import Backbone

LABELS = ["blau", "grün", "rot"]


@pytest.fixture(scope="module")
def bundle(tiny_backbone: Backbone) -> Bundle:
    return random_bundle(tiny_backbone, labels=LABELS)


@pytest.fixture(scope="module")
def baked(
    tiny_backbone: Backbone, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[ParityRow]]:
    path = tmp_path_factory.mktemp("baked") / "colour.onnx"
    return path, export_bundle(tiny_backbone, bundle, path)


@pytest.fixture(scope="module")
def session(baked: tuple[Path, list[ParityRow]]) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(baked[0], providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_file_gives_the_probabilities_of_torch(
    tiny_backbone: Backbone,
    bundle: Bundle,
    session: onnxruntime.InferenceSession,
    batch_size: int,
) -> None:
    images = noise(batch_size)
    with torch.inference_mode():
        model = create_model(tiny_backbone, bundle)
        wanted = model(torch.from_numpy(images)).softmax(dim=-1).numpy()

    got = session.run([PROBABILITIES], {IMAGES: images})[0]

    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=-1), 1, rtol=1e-6)


def test_file_of_a_float16_bundle_gives_the_probabilities_of_the_rounded_tensors(
    tiny_backbone: Backbone, bundle: Bundle, tmp_path: Path
) -> None:
    fields = bundle.manifest.model_dump(exclude={"dtype", "tensors", "tensors_sha256"})
    save_bundle(Bundle.create(bundle.tensors, dtype="float16", **fields), tmp_path / "colour")
    images = noise(3)
    model = create_model(tiny_backbone, bundle)
    model.load_task_tensors(
        {k: torch.from_numpy(t).half().float() for k, t in bundle.tensors.items()}
    )
    with torch.inference_mode():
        wanted = model(torch.from_numpy(images)).softmax(dim=-1).numpy()

    export_bundle(tiny_backbone, load_bundle(tmp_path / "colour"), tmp_path / "colour.onnx")

    session = onnxruntime.InferenceSession(tmp_path / "colour.onnx")
    got = session.run([PROBABILITIES], {IMAGES: images})[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_only_images_go_in(session: onnxruntime.InferenceSession) -> None:
    assert [(i.name, i.shape) for i in session.get_inputs()] == [(IMAGES, ["batch", 3, 32, 32])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [(PROBABILITIES, ["batch", 3])]


def test_metadata_says_what_the_file_answers(
    tiny_backbone: Backbone, bundle: Bundle, session: onnxruntime.InferenceSession
) -> None:
    metadata = session.get_modelmeta().custom_metadata_map

    assert metadata["task"] == "colour"
    assert metadata["version"] == "1"
    assert json.loads(metadata["labels"]) == LABELS
    assert metadata["backbone_sha256"] == tiny_backbone.sha256
    preprocess = json.loads(json.dumps(asdict(bundle.manifest.preprocess)))
    assert json.loads(metadata["preprocess"]) == preprocess


def test_parity_was_checked_at_three_batch_sizes(baked: tuple[Path, list[ParityRow]]) -> None:
    rows = baked[1]

    assert [(row.task, row.batch_size) for row in rows] == [
        ("colour", 1),
        ("colour", 3),
        ("colour", 8),
    ]
    assert max(row.max_error for row in rows) <= 1e-5


def test_one_file_is_all_that_is_written(baked: tuple[Path, list[ParityRow]]) -> None:
    assert [path.name for path in baked[0].parent.iterdir()] == ["colour.onnx"]


def test_weights_that_are_large_lie_beside_the_file_and_never_beside_another(
    tiny_backbone: Backbone,
    bundle: Bundle,
    baked: tuple[Path, list[ParityRow]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, replace, seen = tmp_path / "colour.onnx", Path.replace, []
    shutil.copy(baked[0], out)

    def look(self: Path, target: Path) -> Path:
        moved = replace(self, target)
        seen.append([path.name for path in sorted(tmp_path.iterdir()) if path.name[0] != "."])
        return moved

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 0)
    monkeypatch.setattr(Path, "replace", look)
    export_bundle(tiny_backbone, bundle, out)

    assert seen == [["colour.onnx.data"], ["colour.onnx", "colour.onnx.data"]]
    whole, apart = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for path in (baked[0], out)
    )
    feed = {IMAGES: noise(3)}
    wanted, got = (session.run([PROBABILITIES], feed)[0] for session in (whole, apart))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def test_weights_of_the_file_that_was_replaced_are_gone(
    tiny_backbone: Backbone,
    bundle: Bundle,
    baked: tuple[Path, list[ParityRow]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(module: object, path: Path, **settings: object) -> None:
        shutil.copy(baked[0], path)

    monkeypatch.setattr(lspt_serve.export.baked, "write_onnx", write)
    out, weights = tmp_path / "colour.onnx", tmp_path / "colour.onnx.data"
    weights.write_bytes(b"of nobody")
    export_bundle(tiny_backbone, bundle, out)
    assert weights.exists()  # nothing was replaced

    export_bundle(tiny_backbone, bundle, out)

    assert [path.name for path in tmp_path.iterdir()] == ["colour.onnx"]


def test_bundle_of_another_backbone_cannot_be_baked(
    make_backbone: Callable[..., Backbone], bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="belongs to backbone"):
        export_bundle(make_backbone(seed=1), bundle, tmp_path / "colour.onnx")

    assert list(tmp_path.iterdir()) == []


def test_file_that_disagrees_with_torch_leaves_the_old_one_in_place(
    tiny_backbone: Backbone,
    bundle: Bundle,
    baked: tuple[Path, list[ParityRow]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def write(module: object, path: Path, **settings: object) -> None:
        shutil.copy(baked[0], path)
        corrupt(path)

    monkeypatch.setattr(lspt_serve.export.baked, "write_onnx", write)
    out = tmp_path / "colour.onnx"
    out.write_bytes(b"the old one")

    with pytest.raises(GraphError, match="disagrees with torch for colour"):
        export_bundle(tiny_backbone, bundle, out)

    assert [path.name for path in tmp_path.iterdir()] == ["colour.onnx"]
    assert out.read_bytes() == b"the old one"
