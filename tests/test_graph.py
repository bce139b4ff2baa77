import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lspt_serve.bundle import Bundle
from lspt_serve.errors import BundleError, GraphError
from lspt_serve.graph import (
    GRAPH_FILE,
    REFERENCE_FILE,
    SPEC_FILE,
    Dim,
    GraphSpec,
    check_fits,
    load_graph_spec,
)
from lspt_serve.manifest import BackboneRef, MethodRef
from lspt_serve.models import Backbone
from lspt_serve.preprocess import Preprocess

CELL: dict[str, list[Dim]] = {
    "method.coder.bias_hh": [12],
    "method.coder.bias_ih": [12],
    "method.coder.down.bias": [3],
    "method.coder.down.weight": [3, 24],
    "method.coder.up.bias": [24],
    "method.coder.up.weight": [24, 3],
    "method.coder.weight_hh": [12, 3],
    "method.coder.weight_ih": [12, 3],
}


@pytest.fixture
def graph(tiny_backbone: Backbone) -> GraphSpec:
    """What an export of LSPT with its default options says of itself."""
    return GraphSpec(
        backbone=BackboneRef(source=tiny_backbone.source, sha256=tiny_backbone.sha256),
        method=MethodRef(
            name="lspt",
            options={
                "gspc": True,
                "lpc": True,
                "coder": "lstm",
                "coder_hidden": 3,
                "residual": False,
                "input_norm": True,
                "deep": True,
            },
        ),
        pool="cls",
        preprocess=tiny_backbone.preprocess,
        num_features=24,
        inputs={"method.prompts": [3, "num_prompts", 24], **CELL},
        parity=[],
    )


@pytest.mark.parametrize(
    "options", [{}, {"num_prompts": 1}, {"num_prompts": 50}, {"prompt_dropout": 0.1}]
)
def test_prompts_dropout_and_labels_are_free(
    graph: GraphSpec, make_bundle: Callable[..., Bundle], options: dict[str, Any]
) -> None:
    check_fits(make_bundle(**options), graph)
    check_fits(make_bundle(labels=[f"label {n}" for n in range(100)], **options), graph)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"method": "vpt-deep"}, "method vpt-deep, wanted lspt"),
        ({"coder": "gru"}, "coder gru, wanted lstm"),
        ({"coder_hidden": 7}, "coder_hidden 7, wanted 3"),
        ({"gspc": False}, "gspc False, wanted True"),
        ({"lpc": False}, "lpc False, wanted True"),
        ({"residual": True, "deep": False}, "residual True, wanted False"),
        ({"pool": "patch_mean"}, "pool patch_mean, wanted cls"),
    ],
)
def test_another_method_option_or_pool_is_named(
    graph: GraphSpec,
    make_bundle: Callable[..., Bundle],
    options: dict[str, Any],
    difference: str,
) -> None:
    with pytest.raises(BundleError) as caught:
        check_fits(make_bundle(**options), graph)
    assert f"bundle 'tiny' does not fit the graph: {difference}" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            {"preprocess": Preprocess(32, std=(0.25, 0.5, 0.5))},
            r"std \(0\.5, 0\.5, 0\.5\), wanted \(0\.25, 0\.5, 0\.5\)",
        ),
        ({"preprocess": Preprocess(16)}, "img_size 32, wanted 16"),
        (
            {"preprocess": Preprocess(32, mean=(0.0, 0.5, 0.5))},
            r"mean \(0\.5, 0\.5, 0\.5\), wanted \(0\.0, 0\.5, 0\.5\)",
        ),
        ({"num_features": 48}, "head takes 24 features, wanted 48"),
        ({"inputs": CELL}, "tensor method.prompts is unexpected"),
        (
            {"inputs": {"method.prompts": [3, "num_prompts", 24], "method.gate": [3], **CELL}},
            "tensor method.gate is missing",
        ),
        (
            {"inputs": {"method.prompts": [3, "num_prompts", 32], **CELL}},
            r"tensor method.prompts is \[3, 16, 24\], wanted \[3, 'num_prompts', 32\]",
        ),
        (
            {"inputs": {"method.prompts": ["num_prompts", 24], **CELL}},
            r"tensor method.prompts is \[3, 16, 24\], wanted \['num_prompts', 24\]",
        ),
    ],
)
def test_another_preprocessing_or_shape_is_named(
    graph: GraphSpec, make_bundle: Callable[..., Bundle], change: dict[str, Any], difference: str
) -> None:
    with pytest.raises(BundleError, match=f"does not fit the graph: {difference}"):
        check_fits(make_bundle(), graph.model_copy(update=change))


@pytest.mark.parametrize("num_prompts", [1, 256])
def test_number_of_prompts_is_free_within_bounds(
    graph: GraphSpec, make_bundle: Callable[..., Bundle], num_prompts: int
) -> None:
    check_fits(make_bundle(num_prompts=num_prompts), graph)


def test_a_graph_is_another_by_what_it_computes(graph: GraphSpec) -> None:
    moved = graph.backbone.model_copy(update={"source": "elsewhere.safetensors"})
    trained = graph.backbone.model_copy(update={"sha256": "0" * 64})

    cropped = replace(graph.preprocess, crop_pct=0.5)

    same = {"backbone": moved, "preprocess": cropped, "parity": []}
    assert graph.model_copy(update=same).sha256 == graph.sha256
    for changed in ({"pool": "patch_mean"}, {"backbone": trained}, {"grid": (4, 4)}):
        assert graph.model_copy(update=changed).sha256 != graph.sha256
    assert GraphSpec.model_validate_json(graph.model_dump_json()).sha256 == graph.sha256


def test_task_that_would_slow_down_all_others_is_refused(
    graph: GraphSpec, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle(num_prompts=256)
    more = np.zeros((3, 257, 24), np.float32)

    with pytest.raises(BundleError, match=r"is \[3, 257, 24\], wanted 1 to 256 prompts"):
        check_fits(Bundle(bundle.manifest, bundle.tensors | {"method.prompts": more}), graph)


def test_how_a_task_crops_its_images_is_its_own(
    graph: GraphSpec, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle()
    cropping = Preprocess(32, crop_pct=0.875)
    manifest = bundle.manifest.model_copy(update={"preprocess": cropping})

    check_fits(Bundle(manifest, bundle.tensors), graph)


def test_another_backbone_is_named(
    graph: GraphSpec, make_bundle: Callable[..., Bundle], make_backbone: Callable[..., Backbone]
) -> None:
    other = make_backbone(seed=1)
    name = Path(other.source).name
    wanted = f"'tiny' belongs to backbone {name} .*{other.sha256[:12]}.* not to"
    with pytest.raises(BundleError, match=wanted):
        check_fits(make_bundle(backbone=other), graph)


def test_several_differences_are_told_at_once(
    graph: GraphSpec, make_bundle: Callable[..., Bundle]
) -> None:
    with pytest.raises(BundleError, match=r"pool patch_mean, wanted cls, .*gspc False"):
        check_fits(make_bundle(pool="patch_mean", gspc=False), graph)


def test_what_was_written_is_read(graph: GraphSpec, tmp_path: Path) -> None:
    (tmp_path / SPEC_FILE).write_text(graph.model_dump_json())
    (tmp_path / GRAPH_FILE).touch()
    (tmp_path / REFERENCE_FILE).touch()
    assert load_graph_spec(tmp_path) == graph


@pytest.mark.parametrize("missing", [GRAPH_FILE, REFERENCE_FILE])
def test_a_graph_without_one_of_its_files_is_refused(
    graph: GraphSpec, tmp_path: Path, missing: str
) -> None:
    (tmp_path / SPEC_FILE).write_text(graph.model_dump_json())
    for name in {GRAPH_FILE, REFERENCE_FILE} - {missing}:
        (tmp_path / name).touch()
    with pytest.raises(GraphError, match=rf"{missing}: no such file; export the graph again"):
        load_graph_spec(tmp_path)


def test_a_missing_graph_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"graph\.json: cannot be read: .*lspt export --out"):
        load_graph_spec(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "format_version: .*; export the graph again"),
        ({"pool": None}, "pool: "),
        ({"extra": 1}, "extra: "),
        ({"backbone": {"source": "x", "sha256": "short"}}, r"backbone\.sha256: "),
        ({"preprocess": {"img_size": 0}}, "preprocess.*img_size must be at least 1, got 0"),
    ],
)
def test_a_bad_field_is_named(
    graph: GraphSpec, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    fields = json.loads(graph.model_dump_json()) | change
    (tmp_path / SPEC_FILE).write_text(json.dumps(fields))
    with pytest.raises(GraphError, match=rf"graph\.json: {message}"):
        load_graph_spec(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"1" * 5_000])
def test_a_file_that_is_no_graph_spec_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / SPEC_FILE).write_bytes(text)
    with pytest.raises(GraphError, match=r"graph\.json: "):
        load_graph_spec(tmp_path)
