from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from toys import FP32, PAPER, export_once, noise, random_bundle, run_graph

from lspt_serve.bundle import Bundle
from lspt_serve.errors import BundleError
from lspt_serve.export import create_model, export_graph
from lspt_serve.export.fresh import free_shapes, method_tensors, with_other_prompts
from lspt_serve.feed import create_feed
from lspt_serve.graph import (
    ATTENTION,
    FEATURES,
    GRAPH_FILE,
    IMAGES,
    REFERENCE_FILE,
    SPEC_FILE,
    GraphSpec,
    check_fits,
    load_graph_spec,
)
from lspt_serve.models import METHODS, Backbone, create_prompted_vit, load_backbone
from lspt_serve.models.coders import CODERS

NO_CLS = {"class_token": False, "global_pool": "avg"}
REGISTERS = {"reg_tokens": 2}
# (method, options, architecture): every method, every option of LSPT that shapes the graph once
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("linear", {}, {}),
    ("vpt-shallow", {}, {}),
    ("vpt-deep", {}, REGISTERS),
    ("vfpt", {}, {}),
    ("v2apt", {"pool": "prompt_mean"}, {}),
    ("v2apt", {"num_vae_prompts": 1, "latent_dim": 5}, REGISTERS),
    ("gated", {}, NO_CLS),
    ("lspt", {}, {}),
    ("lspt", PAPER, {}),
    ("lspt", {"coder": "gru", "residual": True, "deep": False}, NO_CLS),
    ("lspt", {"coder": "ema", "gspc": False, "pool": "cls+prompt_mean"}, {}),
    ("lspt", {"coder_hidden": 7, "pool": "patch_mean"}, REGISTERS),
    ("lspt", {"input_norm": False, "forget_bias": 1.0}, {}),
    ("lspt", {"lpc": False}, {}),
]


@dataclass(frozen=True)
class Exported:
    """A graph and two bundles for it, of different tensors and numbers of prompts."""

    folder: Path
    spec: GraphSpec
    session: onnxruntime.InferenceSession
    backbone: Backbone
    bundles: list[Bundle]

    def features(self, whose: list[int]) -> Any:
        """Of noise, each row by one of the bundles."""
        return self.run(whose, FEATURES)

    def run(self, whose: list[int], output: str) -> Any:
        tasks = [bundle.method_tensors for bundle in self.bundles]
        return run_graph(self.session, self.spec, tasks, whose, output)


def name_case(case: tuple[str, dict[str, Any], dict[str, Any]]) -> str:
    method, *settings = case
    return "-".join([method, *(str(value) for chosen in settings for value in chosen.values())])


@pytest.fixture(scope="module", params=CASES, ids=name_case)
def exported(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_backbone: Backbone,
    make_backbone: Callable[..., Backbone],
) -> Exported:
    method, options, architecture = request.param
    backbone = make_backbone(**architecture) if architecture else tiny_backbone
    nums: list[dict[str, Any]] = (
        [{}, {}] if method == "linear" else [{"num_prompts": 1}, {"num_prompts": 5}]
    )
    bundles = [
        random_bundle(backbone, method=method, seed=seed, **options, **num)
        for seed, num in enumerate(nums)
    ]
    if (method, options) == ("lspt", {}):
        folder = export_once(backbone, tmp_path_factory)
        spec = load_graph_spec(folder)
    else:
        folder = tmp_path_factory.mktemp("exported") / "graph"
        spec = export_graph(backbone, folder, like=bundles[0])
    session = onnxruntime.InferenceSession(folder / GRAPH_FILE, providers=["CPUExecutionProvider"])
    return Exported(folder, spec, session, backbone, bundles)


def test_every_method_and_coder_is_among_the_cases() -> None:
    assert {method for method, _, _ in CASES} == set(METHODS)
    assert {options.get("coder", "lstm") for _, options, _ in CASES} == set(CODERS)


@pytest.mark.parametrize(
    "whose",
    [[0], [1], [0] * 3, [1] * 3, [0] * 8, [0, 1], [1, 0, 1], [1, 1, 0, 0, 1, 0, 1, 1]],
    ids=str,
)
def test_one_session_answers_like_torch_for_any_mix_of_two_tasks(
    exported: Exported, whose: list[int]
) -> None:
    models = [create_model(exported.backbone, bundle) for bundle in exported.bundles]
    images = torch.from_numpy(noise(len(whose)))
    with torch.inference_mode():
        wanted = torch.cat(
            [models[task].forward_features(images[[row]]) for row, task in enumerate(whose)]
        ).numpy()

    got = exported.features(whose)

    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= FP32 * np.abs(wanted).max()


@pytest.mark.parametrize("whose", [[0], [1] * 3, [1, 1, 0, 0, 1, 0, 1, 1]], ids=str)
def test_attention_of_every_row_is_that_of_its_task_alone(
    exported: Exported, whose: list[int]
) -> None:
    models = [create_model(exported.backbone, bundle) for bundle in exported.bundles]
    images = torch.from_numpy(noise(len(whose)))
    with torch.inference_mode():
        alone = [models[task].forward_watched(images[[row]]) for row, task in enumerate(whose)]

    got = exported.run(whose, ATTENTION)

    assert exported.spec.grid == (4, 4)
    np.testing.assert_allclose(got, torch.cat([seen for _, seen in alone]), atol=1e-6, rtol=1e-4)
    assert (got >= 0).all()
    assert (got.sum(axis=1) < 1).all()
    features = torch.cat([features for features, _ in alone]).numpy()
    np.testing.assert_allclose(
        exported.features(whose), features, atol=1e-4 * np.abs(features).max()
    )


def test_task_tensors_make_the_answer(exported: Exported) -> None:
    first, second = (exported.features([task] * 2) for task in range(2))

    if exported.spec.method.name == "linear":
        assert np.array_equal(first, second)
    else:
        assert not np.allclose(first, second, rtol=1e-2)


def test_graph_json_says_what_is_in_the_graph(exported: Exported) -> None:
    spec, bundle = exported.spec, exported.bundles[0]

    assert load_graph_spec(exported.folder) == spec
    assert spec.backbone == bundle.manifest.backbone
    assert spec.method.name == bundle.manifest.method.name
    assert spec.method.options.items() <= bundle.manifest.method.options.items()
    assert not {"num_prompts", "prompt_dropout"} & spec.method.options.keys()
    assert (spec.pool, spec.preprocess) == (bundle.manifest.pool, exported.backbone.preprocess)
    assert spec.num_features == bundle.head[0].shape[1]


def test_graph_inputs_are_those_that_are_fed(exported: Exported) -> None:
    first, second = (bundle.method_tensors for bundle in exported.bundles)
    fed = {IMAGES: noise(3), **create_feed(exported.spec.inputs, [first, second, second])}

    inputs = {node.name: node.shape for node in exported.session.get_inputs()}

    assert inputs.keys() == fed.keys()
    for name, shape in inputs.items():
        assert len(shape) == fed[name].ndim
        for size, given in zip(shape, fed[name].shape, strict=True):
            assert size == given or isinstance(size, str)
    assert exported.spec.inputs.keys() == exported.bundles[0].method_tensors.keys()


def test_outputs_are_named_and_their_batch_is_free(exported: Exported) -> None:
    outputs = {output.name: output.shape for output in exported.session.get_outputs()}

    assert outputs == {
        FEATURES: ["batch", exported.spec.num_features],
        ATTENTION: ["batch", 16],
    }


def test_parity_was_checked_for_two_tasks_and_both_mixed_at_three_batch_sizes(
    exported: Exported,
) -> None:
    rows = exported.spec.parity

    assert [row.batch_size for row in rows] == [1, 3, 8] * 3
    assert len({row.task for row in rows}) == 3
    assert rows[-1].task == "all, mixed"
    assert max(row.max_error for row in rows) <= FP32
    assert {row.top1_agreement for row in rows} == {1.0}


def test_bundles_fit_their_graph(exported: Exported) -> None:
    for bundle in exported.bundles:
        check_fits(bundle, exported.spec)


def test_nothing_but_the_graph_and_its_description_is_written(exported: Exported) -> None:
    assert {path.name for path in exported.folder.iterdir()} == {
        GRAPH_FILE,
        REFERENCE_FILE,
        SPEC_FILE,
        REFERENCE_FILE,
    }
    assert [path.name for path in exported.folder.parent.iterdir()] == ["graph"]


def test_graph_without_an_example_is_for_lspt_with_its_defaults(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spec = load_graph_spec(export_once(tiny_backbone, tmp_path_factory))

    check_fits(random_bundle(tiny_backbone), spec)


def test_bundle_for_another_size_of_images_is_refused_and_nothing_is_written(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    larger = load_backbone(tiny_backbone.source, img_size=48)

    with pytest.raises(BundleError, match=r"takes images of 48 px, .* for 32: .*img_size=48"):
        export_graph(tiny_backbone, tmp_path / "graph", like=random_bundle(larger))

    assert list(tmp_path.iterdir()) == []


def test_bundle_of_another_backbone_is_refused_and_nothing_is_written(
    tiny_backbone: Backbone, make_backbone: Callable[..., Backbone], tmp_path: Path
) -> None:
    stranger = random_bundle(make_backbone(seed=1))

    with pytest.raises(BundleError, match="belongs to backbone"):
        export_graph(tiny_backbone, tmp_path / "graph", like=stranger)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("num_prompts", "other"), [(1, 2), (255, 256), (256, 255)])
def test_graph_is_checked_with_another_number_of_prompts(
    tiny_backbone: Backbone, num_prompts: int, other: int
) -> None:
    options = {"num_prompts": num_prompts}
    model = create_prompted_vit(tiny_backbone, "lspt", num_classes=2, options=options)

    second = with_other_prompts(tiny_backbone, model)

    assert second.method.get_parameter("prompts").shape == (3, other, 24)
    inputs = free_shapes(method_tensors(model), method_tensors(second))
    assert inputs["method.prompts"] == [3, "num_prompts", 24]
