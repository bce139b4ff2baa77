import numpy as np
import onnxruntime
import pytest
from toys import export_once

from lspt_serve.graph import FEATURES, GRAPH_FILE, load_graph_spec
from lspt_serve.models import Backbone, create_prompted_vit
from lspt_serve.sizes import SMALLEST, USUAL, USUAL_PROMPTS, Sizes, input_shapes


def test_usual_prompts_are_what_a_task_has_unless_told(tiny_backbone: Backbone) -> None:
    tensors = create_prompted_vit(tiny_backbone, "vpt-shallow", num_classes=2).task_tensors()

    assert USUAL.prompts == USUAL_PROMPTS == len(tensors["method.prompts"])


@pytest.mark.parametrize("sizes", [SMALLEST, USUAL, Sizes(batch=5, tasks=2, rows=3, prompts=4)])
def test_a_real_graph_takes_inputs_of_these_shapes(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, sizes: Sizes
) -> None:
    folder = export_once(tiny_backbone, tmp_path_factory)
    path = folder / GRAPH_FILE
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    kinds = {each.name: each.type for each in session.get_inputs()}

    shapes = input_shapes(load_graph_spec(folder), sizes)

    assert shapes.keys() == kinds.keys()
    feed = {
        name: np.zeros(shape, np.int64 if kinds[name] == "tensor(int64)" else np.float32)
        for name, shape in shapes.items()
    }
    assert session.run([FEATURES], feed)[0].shape == (sizes.batch, 24)
