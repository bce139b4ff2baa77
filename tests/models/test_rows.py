"""A batch of several tasks answers for every row what that row's task alone answers."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.func import functional_call

from lspt_serve.models import METHODS, Backbone, PromptedViT, create_prompted_vit
from lspt_serve.models.coders import CODERS
from lspt_serve.models.rows import ManyTasks, OneTask, affine

D = 24
TASKS = 5
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS if name != "vfpt"),  # folded: its bundles are of vpt-deep
    *(("lspt", {"coder": coder, "deep": False}) for coder in CODERS),
    ("lspt", {"coder_hidden": D}),
    ("lspt", {"deep": False, "residual": True, "gspc": False}),
    ("lspt", {"lpc": False}),
]


def place_rows(tasks: list[int]) -> tuple[list[int], Tensor, Tensor]:
    """The tasks there are, the rows of each, filled up with row 0, and where each row stands."""
    there = sorted(set(tasks))
    rows = [[row for row, task in enumerate(tasks) if task == one] for one in there]
    most = max(map(len, rows))
    place = torch.tensor([own + [0] * (most - len(own)) for own in rows])
    stands = {row: n * most + i for n, own in enumerate(rows) for i, row in enumerate(own)}
    return there, place, torch.tensor([stands[row] for row in range(len(tasks))])


class Features(nn.Module):
    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, rows: ManyTasks) -> Tensor:
        return self.model.forward_features(images, rows)


def create_tasks(
    backbone: Backbone, method: str, counts: list[int], pool: str, **options: Any
) -> list[PromptedViT]:
    """Tasks of random tensors, that have so many prompts."""
    torch.manual_seed(0)
    models = []
    for count in counts:
        more = {} if method == "linear" else {"num_prompts": count}
        model = create_prompted_vit(
            backbone, method, num_classes=2, pool=pool, options=options | more
        ).eval()
        for name, tensor in model.method.named_parameters():
            if name == "tau":  # one of 0.01 would make rounding errors a hundred times as large
                nn.init.uniform_(tensor, 0.5, 2.0)
            else:
                nn.init.normal_(tensor, std=0.5)
        models.append(model)
    return models


def stack(models: list[PromptedViT]) -> dict[str, Tensor]:
    """Tensors of all tasks, prompts filled up with zeros."""
    stacked = {}
    for name, first in models[0].method.named_parameters():
        tensors = [model.method.get_parameter(name).detach() for model in models]
        if name == "prompts":
            most = max(tensor.shape[-2] for tensor in tensors)
            tensors = [nn.functional.pad(t, (0, 0, 0, most - t.shape[-2])) for t in tensors]
        assert tensors[0].ndim == first.ndim
        stacked[f"model.method.{name}"] = torch.stack(tensors)
    return stacked


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=str)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tasks=st.lists(st.integers(0, TASKS - 1), min_size=1, max_size=9),
    counts=st.one_of(
        st.integers(1, 6).map(lambda count: [count] * TASKS),
        st.lists(st.integers(1, 6), min_size=TASKS, max_size=TASKS),
    ),
    pool=st.sampled_from(["cls", "cls+prompt_mean", "patch_mean"]),
)
@torch.no_grad()
def test_every_row_is_answered_as_its_task_alone_would(
    tiny_backbone: Backbone,
    method: str,
    options: dict[str, Any],
    tasks: list[int],
    counts: list[int],
    pool: str,
) -> None:
    pool = "cls" if method == "linear" else pool
    models = create_tasks(tiny_backbone, method, counts, pool, **options)
    there, place, back = place_rows(tasks)
    different = len(set(counts)) > 1 and method != "linear"
    num_prompts = torch.tensor([counts[task] for task in there]) if different else None
    images = torch.randn(len(tasks), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tensors = {name: stacked[there] for name, stacked in stack(models).items()}

    rows = ManyTasks(place, back, num_prompts)
    got = functional_call(Features(models[0]), tensors, (images, rows))

    for row, task in enumerate(tasks):
        alone = models[task].forward_features(images[row : row + 1])[0]
        torch.testing.assert_close(got[row], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tasks_do_differ(tiny_backbone: Backbone) -> None:
    images = torch.randn(1, 3, 32, 32)
    for method, options in VARIANTS:
        models = create_tasks(tiny_backbone, method, [3, 3], "cls", **options)
        first, second = (model.forward_features(images) for model in models)
        same = torch.allclose(first, second, atol=0.01)
        assert same == (method == "linear"), (method, options)


def test_affine_is_linear_for_each_task() -> None:
    x, weight, bias = torch.randn(3, 5, 4), torch.randn(3, 7, 4), torch.randn(3, 7)

    got = affine(x, weight, bias)

    for task in range(3):
        wanted = nn.functional.linear(x[task], weight[task], bias[task])
        torch.testing.assert_close(got[task], wanted, atol=1e-6, rtol=1e-6)


def test_what_is_gathered_is_scattered_back() -> None:
    _, place, back = place_rows([4, 1, 4, 4, 2])
    rows, x = ManyTasks(place, back), torch.randn(5, 3, D)

    gathered = rows.gather(x)

    assert gathered.shape == (3, 3 * 3, D)  # three tasks, of at most three rows with three tokens
    assert torch.equal(rows.scatter(gathered, 3), x)
    assert torch.equal(rows.spread(torch.tensor([1, 2, 4])), torch.tensor([4, 1, 4, 4, 2]))


def test_one_task_needs_no_moving() -> None:
    rows, x = OneTask(5), torch.randn(5, 3, D)

    assert rows.gather(x) is x
    assert rows.scatter(x, 3) is x
    assert torch.equal(rows.spread(x[0]), x[:1].expand(5, -1, -1))
