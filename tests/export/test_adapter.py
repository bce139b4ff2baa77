import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch.onnx._internal.exporter import _onnx_program
from toys import corrupt, noise, random_bundle, writes_corrupted

import lspt_serve.export.adapter
from lspt_serve.bundle import Bundle
from lspt_serve.errors import GraphError, OutputError
from lspt_serve.export import create_model, export_adapter
from lspt_serve.export.adapter import ADAPTER_MODEL
from lspt_serve.graph import IMAGES, PROBABILITIES
from lspt_serve.models import Backbone

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def bundles(tiny_backbone: Backbone) -> list[Bundle]:
    return [
        random_bundle(tiny_backbone, name="colour", num_prompts=3),
        random_bundle(tiny_backbone, name="parity", labels=["even", "odd"], num_prompts=5, seed=1),
    ]


@pytest.fixture(scope="module")
def out(
    tiny_backbone: Backbone, bundles: list[Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "new"
    for bundle in bundles:
        export_adapter(tiny_backbone, bundle, folder)
    return folder


@pytest.fixture(scope="module")
def session(out: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(out / ADAPTER_MODEL, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, adapter: Path, images: Array) -> Array:
    loaded = onnxruntime.LoraAdapter()
    loaded.Load(str(adapter))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(loaded)
    return session.run([PROBABILITIES], {IMAGES: images}, options)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_one_model_answers_for_every_task_whose_adapter_is_active(
    tiny_backbone: Backbone,
    bundles: list[Bundle],
    out: Path,
    session: onnxruntime.InferenceSession,
    batch_size: int,
) -> None:
    images = noise(batch_size)
    for bundle in [*bundles, bundles[0]]:
        with torch.inference_mode():
            model = create_model(tiny_backbone, bundle)
            wanted = model(torch.from_numpy(images)).softmax(dim=-1).numpy()

        got = run(session, out / f"{bundle.name}.onnx_adapter", images)

        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_images_alone_have_to_be_fed(session: onnxruntime.InferenceSession) -> None:
    assert [(i.name, i.shape) for i in session.get_inputs()] == [(IMAGES, ["batch", 3, 32, 32])]


def test_without_an_adapter_there_is_no_answer(session: onnxruntime.InferenceSession) -> None:
    (got,) = session.run([PROBABILITIES], {IMAGES: noise(2)})

    assert np.isnan(got).all()


def test_adapter_that_lacks_a_tensor_gives_no_answer(
    bundles: list[Bundle], session: onnxruntime.InferenceSession, tmp_path: Path
) -> None:
    for missing in bundles[0].tensors:
        adapter = onnxruntime.AdapterFormat()
        adapter.set_parameters(
            {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor))
                for name, tensor in bundles[0].tensors.items()
                if name != missing
            }
        )
        adapter.export_adapter(str(tmp_path / "partial.onnx_adapter"))

        got = run(session, tmp_path / "partial.onnx_adapter", noise(1))

        assert np.isnan(got).all(), missing


def test_labels_and_preprocessing_are_beside_it(bundles: list[Bundle], out: Path) -> None:
    record = json.loads((out / "parity.json").read_text())

    assert record["labels"] == ["even", "odd"]
    assert (record["task"], record["version"]) == ("parity", 1)
    assert record["preprocess"]["img_size"] == 32
    assert record["preprocess"]["mean"] == [0.5, 0.5, 0.5]


def test_model_is_written_once(tiny_backbone: Backbone, bundles: list[Bundle], out: Path) -> None:
    before = (out / ADAPTER_MODEL).stat().st_mtime_ns

    export_adapter(tiny_backbone, bundles[0], out)

    assert (out / ADAPTER_MODEL).stat().st_mtime_ns == before
    assert {path.name for path in out.iterdir()} == {
        ADAPTER_MODEL,
        *(f"{name}.{end}" for name in ("colour", "parity") for end in ("onnx_adapter", "json")),
    }


def test_weights_that_are_large_lie_beside_the_model(
    tiny_backbone: Backbone,
    bundles: list[Bundle],
    session: onnxruntime.InferenceSession,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 0)
    synced: set[str] = set()
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.add(Path(f"/proc/self/fd/{handle}").readlink().name)
    )

    export_adapter(tiny_backbone, bundles[0], tmp_path)

    assert (tmp_path / f"{ADAPTER_MODEL}.data").is_file()
    assert f"{ADAPTER_MODEL}.data" in synced
    apart = onnxruntime.InferenceSession(tmp_path / ADAPTER_MODEL)
    adapter = "colour.onnx_adapter"
    wanted, got = run(session, out / adapter, noise(2)), run(apart, tmp_path / adapter, noise(2))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("vpt-shallow", {"num_prompts": 3}, "is of method lspt, the bundle wants vpt-shallow"),
        ("lspt", {"num_prompts": 3, "gspc": False}, "is of options .*, the bundle wants "),
    ],
)
def test_model_of_other_tasks_is_not_used(
    tiny_backbone: Backbone, out: Path, method: str, options: dict[str, Any], message: str
) -> None:
    other = random_bundle(tiny_backbone, name="other", method=method, **options)

    for overwrite in (False, True):
        with pytest.raises(GraphError, match=rf"model\.onnx {message}.*give another --out"):
            export_adapter(tiny_backbone, other, out, overwrite=overwrite)

    assert not (out / "other.onnx_adapter").exists()


def test_model_that_disagrees_with_torch_gets_no_adapter(
    tiny_backbone: Backbone, bundles: list[Bundle], out: Path, tmp_path: Path
) -> None:
    (tmp_path / ADAPTER_MODEL).write_bytes((out / ADAPTER_MODEL).read_bytes())
    corrupt(tmp_path / ADAPTER_MODEL)

    with pytest.raises(GraphError, match=r"disagrees with torch.*; --overwrite replaces it"):
        export_adapter(tiny_backbone, bundles[0], tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {ADAPTER_MODEL}


def test_new_model_that_disagrees_with_torch_is_not_written(
    tiny_backbone: Backbone,
    bundles: list[Bundle],
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = writes_corrupted(out / ADAPTER_MODEL)
    monkeypatch.setattr(lspt_serve.export.adapter, "write_onnx", write)

    with pytest.raises(GraphError, match="disagrees with torch for colour at batch 1"):
        export_adapter(tiny_backbone, bundles[0], tmp_path / "new")

    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("loads", [True, False])
def test_damaged_model_is_replaced_by_overwrite(
    tiny_backbone: Backbone, bundles: list[Bundle], out: Path, tmp_path: Path, loads: bool
) -> None:
    model = tmp_path / ADAPTER_MODEL
    model.write_bytes((out / ADAPTER_MODEL).read_bytes() if loads else b"no model")
    if loads:
        corrupt(model)

    export_adapter(tiny_backbone, bundles[0], tmp_path, overwrite=True)

    mended, adapter = onnxruntime.InferenceSession(model), out / "colour.onnx_adapter"
    wanted = run(onnxruntime.InferenceSession(out / ADAPTER_MODEL), adapter, noise(2))
    np.testing.assert_allclose(run(mended, adapter, noise(2)), wanted, rtol=0, atol=1e-6)


def test_temporaries_of_the_model_are_deleted(
    tiny_backbone: Backbone, bundles: list[Bundle], out: Path
) -> None:
    (out / f".{ADAPTER_MODEL}.lspt-tmp-abcd1234").mkdir()

    export_adapter(tiny_backbone, bundles[0], out)

    assert list(out.glob(".*")) == []


def test_place_that_cannot_be_written_to_is_one_line(
    tiny_backbone: Backbone, bundles: list[Bundle], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        export_adapter(tiny_backbone, bundles[0], tmp_path / "file" / "adapters")


def test_file_that_is_no_model_is_refused(
    tiny_backbone: Backbone, bundles: list[Bundle], tmp_path: Path
) -> None:
    (tmp_path / ADAPTER_MODEL).write_bytes(b"no model")

    with pytest.raises(GraphError, match=r"model\.onnx is damaged: .*; --overwrite replaces it"):
        export_adapter(tiny_backbone, bundles[0], tmp_path)
