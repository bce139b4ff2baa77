"""lspt quantise, and what the other commands make of its result."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from toys import export_once, random_bundle, write_coloured
from toys_cli import Command, check_error

from lspt_serve.bundle import load_bundle, save_bundle
from lspt_serve.graph import GRAPH_FILE
from lspt_serve.models import Backbone
from lspt_serve.quantised import INT8, INT8_SPEC, Quantised, hash_graph
from lspt_serve.runtime import OpenVINOEngine
from lspt_serve.training import load_dataset

LABELS = ("blue", "red")


@pytest.fixture
def words(
    tiny_backbone: Backbone, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[object]:
    """A whole command, in whose folder is all that it needs."""
    shutil.copytree(export_once(tiny_backbone, tmp_path_factory), tmp_path / "graph")
    save_bundle(random_bundle(tiny_backbone, labels=LABELS), tmp_path / "colour")
    write_coloured(tmp_path / "data", LABELS, count=14)
    named = {"graph": "graph", "bundle": "colour", "data": "data"}
    given = [word for option, name in named.items() for word in (f"--{option}", tmp_path / name)]
    return ["quantise", *given, "--images", 8]


def test_figures_are_those_of_the_engines(
    lspt: Command, words: list[object], tmp_path: Path
) -> None:
    ended = lspt(*words, "--json")

    assert ended.code == 0, ended.err
    record = json.loads(ended.out)
    assert record["out"] == str(tmp_path / "graph" / INT8)
    bundle, images = load_bundle(tmp_path / "colour"), load_dataset(tmp_path / "data", 32).test
    pixels = (images.images.transpose(0, 3, 1, 2) / 255 - 0.5).astype(np.float32) / 0.5
    weight, bias = bundle.head
    answers = {}
    for precision in ("fp32", "int8"):
        engine = OpenVINOEngine(tmp_path / "graph", precision=precision)
        features = engine.features(pixels, [bundle.method_tensors] * len(pixels))
        answers[precision] = (features @ weight.T + bias).argmax(axis=1)
    assert record["refused"] is None
    assert record["test"] == {
        "images": 4,
        "fp32_accuracy": (answers["fp32"] == images.targets).mean(),
        "int8_accuracy": (answers["int8"] == images.targets).mean(),
        "top1_agreement": (answers["int8"] == answers["fp32"]).mean(),
    }
    said = Quantised.load(tmp_path / "graph" / INT8 / INT8_SPEC)
    assert said == Quantised(
        graph_sha256=hash_graph(tmp_path / "graph"), calibrated_on="colour", num_images=8
    )


def test_twin_is_shown_kept_and_refused_when_its_graph_changes(
    lspt: Command, words: list[object], tmp_path: Path
) -> None:
    first = lspt(*words)
    kept = lspt(*words)
    again = lspt(*words, "--overwrite")
    engines = ("engines", "--graph", tmp_path / "graph", "--json")
    fresh = json.loads(lspt(*engines).out)
    graph = tmp_path / "graph" / GRAPH_FILE
    graph.write_bytes(graph.read_bytes() + b"\x72\x00")  # an empty field more: the same graph
    stale = json.loads(lspt(*engines).out)

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert re.search(r"test +4 +[\d.]+% +[\d.]+% +[\d.]+%", first.out)
    check_error(kept, "exists already")
    for found, is_stale in ((fresh, False), (stale, True)):
        (twin,) = (e for e in found if (e["engine"], e["precision"]) == ("openvino", "int8"))
        assert ("images_per_s" in twin) == (not is_stale), twin
    assert "made from another graph.onnx" in twin["refused"]


def test_data_of_other_labels_is_refused(
    lspt: Command, words: list[object], tmp_path: Path
) -> None:
    write_coloured(tmp_path / "other", ("blue", "green"), count=3)

    ended = lspt(*words, "--data", tmp_path / "other")

    check_error(ended, "'blue' to 'green', and bundle 'colour' has .* 'blue' to 'red'; give the")
    assert not (tmp_path / "graph" / INT8).exists()


@pytest.mark.parametrize("option", ["graph", "bundle", "data"])
def test_what_is_not_there_is_refused(
    lspt: Command, words: list[object], tmp_path: Path, option: str
) -> None:
    check_error(lspt(*words, f"--{option}", tmp_path / "nowhere"), "nowhere")
    assert not (tmp_path / "graph" / INT8).exists()


def test_one_image_is_too_few(lspt: Command, words: list[object], tmp_path: Path) -> None:
    ended = lspt(*words, "--images", 1)

    assert ended.code == 2
    assert "greater than or equal to 2" in " ".join(ended.err.split())
    assert not (tmp_path / "graph" / INT8).exists()


@pytest.mark.parametrize(
    ("seed", "bound"), [(-1, "greater than or equal to 0"), (2**63, f"equal to {2**63 - 1}")]
)
def test_seed_is_one_that_train_takes(
    lspt: Command, words: list[object], tmp_path: Path, seed: int, bound: str
) -> None:
    ended = lspt(*words, "--seed", seed)

    assert ended.code == 2
    assert bound in re.sub(r"[\s│]+", " ", ended.err)
    assert not (tmp_path / "graph" / INT8).exists()


def test_unreadable_images_are_skipped_when_asked(
    lspt: Command, words: list[object], tmp_path: Path
) -> None:
    (tmp_path / "data" / "red" / "broken.png").write_bytes(b"no image")

    check_error(lspt(*words), "1 of 29 images cannot be read")
    ended = lspt(*words, "--on-bad-image", "skip")

    assert ended.code == 0, ended.err
    assert "note: skipped 1 unreadable image(s)" in ended.err


def test_without_its_package_is_told_how_to_get_it(
    lspt: Command, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)

    check_error(lspt(*words), r"needs nncf, .* pip install '\.\[int8\]' in a clone")
