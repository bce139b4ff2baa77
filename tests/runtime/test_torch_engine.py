"""What is special about torch: its backbone, its bank, bf16, torch.compile and CUDA GPUs."""

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toys import DEVICES, FP32, export_once, noise, random_bundle

import lspt_serve.models.coders
from lspt_serve.bundle import Bundle
from lspt_serve.errors import GraphError
from lspt_serve.export import create_model
from lspt_serve.graph import GRAPH_FILE, NUM_PROMPTS, REFERENCE_FILE, SPEC_FILE, GraphSpec
from lspt_serve.manifest import BackboneRef
from lspt_serve.models import Backbone
from lspt_serve.reference import Reference, row_errors
from lspt_serve.runtime.engine import Precision
from lspt_serve.runtime.gate import check_engine
from lspt_serve.runtime.onnx import Device
from lspt_serve.runtime.torch import TorchEngine

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]
METHODS = ("lspt", "vpt-shallow", "vpt-deep", "gated", "v2apt")


@pytest.fixture(scope="module")
def graph(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tiny_backbone, tmp_path_factory)


@pytest.fixture(scope="module")
def tasks(tiny_backbone: Backbone) -> list[Bundle]:
    """Five tasks, with 3, 1, 4, 3 and 9 prompts."""
    return [
        random_bundle(tiny_backbone, num_prompts=count, seed=seed)
        for seed, count in enumerate((3, 1, 4, 3, 9))
    ]


def by_torch(backbone: Backbone, bundle: Bundle, batch_size: int = 8) -> NDArray[np.float32]:
    """Of the task alone."""
    with torch.inference_mode():
        features = create_model(backbone, bundle).forward_features(
            torch.from_numpy(noise(batch_size))
        )
    return features.numpy()


@pytest.fixture(scope="module")
def alone(tiny_backbone: Backbone, tasks: Sequence[Bundle]) -> Sequence[NDArray[np.float32]]:
    return [by_torch(tiny_backbone, bundle) for bundle in tasks]


def describe(folder: Path, bundle: Bundle, **changes: Any) -> Path:
    """What an export says of itself that takes the bundle; the engine reads no more than that."""
    manifest = bundle.manifest
    shapes = {name: list(tensor.shape) for name, tensor in bundle.method_tensors.items()}
    count = manifest.method.options.get(NUM_PROMPTS)
    options = {k: v for k, v in manifest.method.options.items() if k != NUM_PROMPTS}
    spec = GraphSpec(
        backbone=manifest.backbone,
        method=manifest.method.model_copy(update={"options": options}),
        pool=manifest.pool,
        preprocess=manifest.preprocess,
        num_features=bundle.head[0].shape[1],
        inputs={
            name: [NUM_PROMPTS if size == count else size for size in shape]
            for name, shape in shapes.items()
        },
        parity=[],
    ).model_copy(update=changes)
    folder.mkdir()
    (folder / SPEC_FILE).write_text(spec.model_dump_json(), "utf-8")
    for name in (GRAPH_FILE, REFERENCE_FILE):
        (folder / name).touch()
    return folder


@cache
def engine_of(folder: Path, num_slots: int) -> TorchEngine:
    return TorchEngine(folder, device="cpu", num_slots=num_slots)


@given(
    numbers=st.lists(st.integers(0, 4), min_size=1, max_size=8), num_slots=st.sampled_from([2, 5])
)
@settings(max_examples=40)
def test_row_of_any_mix_is_answered_as_its_task_alone(
    graph: Path,
    tasks: Sequence[Bundle],
    alone: Sequence[NDArray[np.float32]],
    numbers: Sequence[int],
    num_slots: int,
) -> None:
    engine = engine_of(graph, num_slots)
    before = engine.bank.num_uploads

    features = engine.features(noise(8)[: len(numbers)], [tasks[n].method_tensors for n in numbers])

    assert engine.bank.num_uploads - before <= len(set(numbers))
    for row, number in enumerate(numbers):
        wanted = alone[number][row]
        assert np.abs(features[row] - wanted).max() <= FP32 * np.abs(wanted).max()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_run_as_the_model_runs_it(
    tiny_backbone: Backbone, tmp_path: Path, method: str
) -> None:
    # 5 and 7 are no other size of these tensors
    few, many = (
        random_bundle(tiny_backbone, method=method, num_prompts=count, seed=count)
        for count in (5, 7)
    )
    engine = TorchEngine(describe(tmp_path / "graph", few), device="cpu")
    mix = [few, many, few, few]

    features = engine.features(noise(4), [bundle.method_tensors for bundle in mix])

    for row, bundle in enumerate(mix):
        wanted = by_torch(tiny_backbone, bundle, 4)[row]
        assert np.abs(features[row] - wanted).max() <= FP32 * np.abs(wanted).max()


def test_linear_probes_share_a_batch(tiny_backbone: Backbone, tmp_path: Path) -> None:
    bundles = [random_bundle(tiny_backbone, method="linear", seed=seed) for seed in range(2)]
    engine = TorchEngine(describe(tmp_path / "graph", bundles[0]), device="cpu")

    features = engine.features(noise(2), [bundle.method_tensors for bundle in bundles])

    wanted = by_torch(tiny_backbone, bundles[0], 2)
    assert np.abs(features - wanted).max() <= FP32 * np.abs(wanted).max()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precision_that_torch_has_not_is_refused(graph: Path, precision: Precision) -> None:
    with pytest.raises(GraphError, match=f"torch has no {precision} here; wanted fp32 or bf16"):
        TorchEngine(graph, device="cpu", precision=precision)


def test_bf16_passes_the_gate_and_is_not_fp32(
    graph: Path, tasks: Sequence[Bundle], alone: Sequence[NDArray[np.float32]]
) -> None:
    engine = TorchEngine(graph, device="cpu", precision="bf16")

    features = engine.features(noise(8), [tasks[0].method_tensors] * 8)

    assert 1e-4 < np.linalg.norm(features - alone[0]) / np.linalg.norm(alone[0]) < 0.05
    assert features.dtype == np.float32
    check_engine(engine, Reference.load(graph))


def test_what_a_coder_remembers_and_the_residual_stream_stay_in_fp32(
    graph: Path, tasks: Sequence[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(graph, device="cpu", precision="bf16")
    seen: dict[str, set[torch.dtype]] = {"state": set(), "stream": set(), "weights": set()}
    step, norm = lspt_serve.models.coders.lstm_step, torch.nn.functional.layer_norm

    def watched_step(x: Any, state: Any, w_ih: Any, *others: Any) -> Any:
        new = step(x, state, w_ih, *others)
        seen["weights"].add(w_ih.dtype)
        seen["state"].add(new[1].dtype)  # c
        return new

    def watched_norm(x: Any, *others: Any, **own: Any) -> Any:
        seen["stream"].add(x.dtype)
        return norm(x, *others, **own)

    monkeypatch.setattr(lspt_serve.models.coders, "lstm_step", watched_step)
    monkeypatch.setattr(torch.nn.functional, "layer_norm", watched_norm)

    engine.features(noise(3), [bundle.method_tensors for bundle in tasks[:3]])

    assert seen == {
        "weights": {torch.bfloat16},
        "state": {torch.float32},
        "stream": {torch.float32},
    }


def test_tasks_that_are_prefetched_are_there(graph: Path, tasks: Sequence[Bundle]) -> None:
    engine = TorchEngine(graph, device="cpu")
    own = [bundle.method_tensors for bundle in tasks]
    engine.bank.prefetch(own)

    engine.features(noise(5), own)

    assert engine.bank.num_uploads == 5


def test_images_cut_out_of_others_are_taken(
    graph: Path, tasks: Sequence[Bundle], alone: Sequence[NDArray[np.float32]]
) -> None:
    features = engine_of(graph, 5).features(noise(8)[::2], [tasks[0].method_tensors] * 4)

    assert np.abs(features - alone[0][::2]).max() <= FP32 * np.abs(alone[0]).max()


def test_another_backbone_at_the_same_place_is_refused(
    tmp_path: Path, tasks: Sequence[Bundle]
) -> None:
    was = tasks[0].manifest.backbone
    other = BackboneRef(source=was.source, sha256="0123456789ab" + "0" * 52)
    folder = describe(tmp_path / "graph", tasks[0], backbone=other)

    with pytest.raises(
        GraphError,
        match=rf"exported from .* sha256 0123456789ab, which is now {was.sha256[:12]}; export it ",
    ):
        TorchEngine(folder, device="cpu")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"source": "gone/vit.safetensors"}, r"gone/vit\.safetensors: no such file"),
        ({"source": "vit_tiny_patch17"}, "unknown backbone 'vit_tiny_patch17'"),
        ({"method": "fortune"}, "unknown method 'fortune'"),
        ({"option": "colour"}, "unknown option 'colour'"),
    ],
    ids=str,
)
def test_model_that_cannot_be_made_is_refused_in_one_line(
    tmp_path: Path, tasks: Sequence[Bundle], changed: dict[str, str], said: str
) -> None:
    manifest = tasks[0].manifest
    changes: dict[str, Any] = {}
    if source := changed.get("source"):
        changes["backbone"] = manifest.backbone.model_copy(update={"source": source})
    if name := changed.get("method"):
        changes["method"] = manifest.method.model_copy(update={"name": name})
    if option := changed.get("option"):
        changes["method"] = manifest.method.model_copy(update={"options": {option: 1}})
    folder = describe(tmp_path / "graph", tasks[0], **changes)

    with pytest.raises(GraphError, match=f"cannot make the graph's model: {said}") as caught:
        TorchEngine(folder, device="cpu")

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", DEVICES)
def test_threads_do_not_find_the_tasks_of_one_another_in_the_model(
    graph: Path, tasks: Sequence[Bundle], device: Device
) -> None:
    engine = TorchEngine(graph, device=device)
    own = [bundle.method_tensors for bundle in tasks]
    wrong: list[str] = []

    def run(name: str, task: int) -> None:
        answer = getattr(engine, name)
        wanted = answer(noise(2), [own[task]] * 2)
        started.wait(timeout=30)
        for _ in range(100):
            got = answer(noise(2), [own[task]] * 2)
            if np.abs(got - wanted).max() > FP32 * np.abs(wanted).max():
                wrong.append(f"{name} of task {task}")

    started = threading.Barrier(2)
    for names in (("features", "attention"), ("attention", "attention")):
        threads = [
            threading.Thread(target=run, args=(name, task)) for task, name in enumerate(names)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert wrong == []


def test_gpu_that_is_asked_for_and_absent_is_refused(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert TorchEngine(graph).provider == "CPU"
    with pytest.raises(GraphError, match="'cuda' was asked for, but torch sees no CUDA GPU"):
        TorchEngine(graph, device="cuda")


class TestOnGPU:
    pytestmark = ON_GPU

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_gate_is_passed(self, graph: Path, precision: Precision) -> None:
        engine = TorchEngine(graph, device="cuda", precision=precision)

        parity = check_engine(engine, Reference.load(graph))

        assert engine.provider == torch.cuda.get_device_name()
        assert precision == "bf16" or parity.max_error < FP32  # no TF32

    def test_batches_of_two_threads_at_a_time_are_answered_right(
        self, graph: Path, tasks: Sequence[Bundle], alone: Sequence[NDArray[np.float32]]
    ) -> None:
        """Of 1 to 8 rows, so that graphs are captured while the other thread runs some."""
        engine = TorchEngine(graph, device="cuda")
        own = [bundle.method_tensors for bundle in tasks]
        wrong: list[tuple[int, int]] = []

        def run(first: int) -> None:
            for turn in range(first, first + 60):
                mix = [(turn * row) % 5 for row in range(turn % 8 + 1)]
                features = engine.features(noise(8)[: len(mix)], [own[task] for task in mix])
                for row, task in enumerate(mix):
                    wanted = alone[task][row]
                    if not np.abs(features[row] - wanted).max() <= FP32 * np.abs(wanted).max():
                        wrong.append((turn, row))

        threads = [threading.Thread(target=run, args=(first,)) for first in (0, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert engine.num_batches == len(threads)
        assert wrong == []

    @pytest.mark.parametrize("method", [*METHODS, "linear"])
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_every_method_is_answered_as_on_the_cpu(
        self, tiny_backbone: Backbone, tmp_path: Path, method: str, precision: Precision
    ) -> None:
        counts: list[dict[str, Any]] = (
            [{}, {}] if method == "linear" else [{"num_prompts": 5}, {"num_prompts": 7}]
        )
        bundles = [
            random_bundle(tiny_backbone, method=method, seed=seed, **count)
            for seed, count in enumerate(counts)
        ]
        engine = TorchEngine(
            describe(tmp_path / "graph", bundles[0]), device="cuda", precision=precision
        )
        mix = [0, 1, 1, 0, 1, 0, 0, 1]

        features = engine.features(noise(8), [bundles[task].method_tensors for task in mix])

        wanted = np.stack(
            [by_torch(tiny_backbone, bundles[task])[row] for row, task in enumerate(mix)]
        )
        assert row_errors(features, wanted).max() < (1e-4 if precision == "fp32" else 0.05)

    def test_wide_tasks_keep_their_rows_together(
        self,
        graph: Path,
        tasks: Sequence[Bundle],
        alone: Sequence[NDArray[np.float32]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        import lspt_serve.runtime.gpu.forward

        monkeypatch.setattr(lspt_serve.runtime.gpu.forward, "MAX_SPREAD", 0)
        engine = TorchEngine(graph, device="cuda")
        mix = [0, 1, 2, 0, 3, 4, 1, 0]

        features = engine.features(noise(8), [tasks[task].method_tensors for task in mix])

        wanted = np.stack([alone[task][row] for row, task in enumerate(mix)])
        assert row_errors(features, wanted).max() < FP32

    def test_answers_are_right_while_others_are_prefetched(
        self, graph: Path, tasks: Sequence[Bundle], alone: Sequence[NDArray[np.float32]]
    ) -> None:
        engine = TorchEngine(graph, device="cuda", num_slots=2)
        own = [bundle.method_tensors for bundle in tasks]
        done = threading.Event()

        def prefetch() -> None:
            while not done.wait(0.001):
                engine.bank.prefetch(own[2:4])
                engine.bank.prefetch(own[3:5])

        thread = threading.Thread(target=prefetch)
        thread.start()
        try:
            for turn in range(50):
                mix = [turn % 5, (turn + 1) % 5] * 4
                features = engine.features(noise(8), [own[number] for number in mix])
                for row, number in enumerate(mix):
                    wanted = alone[number][row]
                    assert np.abs(features[row] - wanted).max() <= FP32 * np.abs(wanted).max()
        finally:
            done.set()
            thread.join()
