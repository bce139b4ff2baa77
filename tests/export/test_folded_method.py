"""What was folded is served by the graph of the method that it was folded into."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from toys import noise, random_bundle, run_graph

from lspt_serve.export import export_graph
from lspt_serve.graph import GRAPH_FILE, check_fits
from lspt_serve.models import Backbone, create_prompted_vit


def test_a_graph_for_vpt_deep_answers_like_vfpt_before_folding(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    deep = random_bundle(tiny_backbone, method="vpt-deep")
    spec = export_graph(tiny_backbone, tmp_path / "graph", like=deep)
    session = onnxruntime.InferenceSession(
        tmp_path / "graph" / GRAPH_FILE, providers=["CPUExecutionProvider"]
    )
    for share in (0.3, 1.0):
        options: dict[str, Any] = {"num_prompts": 6, "fourier_share": share}
        check_fits(random_bundle(tiny_backbone, method="vfpt", **options), spec)
        learned = create_prompted_vit(tiny_backbone, "vfpt", num_classes=3, options=options).eval()
        tensors = {
            name: tensor.numpy()
            for name, tensor in learned.fold().task_tensors().items()
            if name.startswith("method.")
        }
        got = run_graph(session, spec, [tensors], [0] * 4)
        with torch.inference_mode():
            wanted = learned.forward_features(torch.from_numpy(noise(4)))
        torch.testing.assert_close(torch.from_numpy(got), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_prompts", [1, 5])
def test_the_graph_made_for_a_folded_bundle_is_vpt_deeps(
    tiny_backbone: Backbone, tmp_path: Path, num_prompts: int
) -> None:
    bundle = random_bundle(tiny_backbone, method="vfpt", num_prompts=num_prompts)
    spec = export_graph(tiny_backbone, tmp_path / "graph", like=bundle)
    assert spec.method.name == "vpt-deep"
    check_fits(random_bundle(tiny_backbone, method="vpt-deep", num_prompts=3), spec)
