"""The prompted ViT: a frozen backbone, one prompt method, one head.

B batch, N patches, P prompts, D embed_dim, L blocks, K classes, F pooled features.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from lspt_serve.errors import BundleError, MethodError, name_some, nearest
from lspt_serve.models.attention import can_be_watched, run_block, run_watched
from lspt_serve.models.backbone import Backbone
from lspt_serve.models.methods import PromptMethod, Shape, create_method
from lspt_serve.models.rows import OneTask, Rows

__all__ = ["POOLS", "PromptedViT", "create_prompted_vit", "pool_tokens"]

PARTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cls": lambda prefix, prompts, patches: prefix[:, 0],
    "patch_mean": lambda prefix, prompts, patches: patches.mean(dim=1),
    "prompt_mean": lambda prefix, prompts, patches: prompts.mean(dim=1),
}
POOLS = (
    *PARTS,
    "cls+patch_mean",
    "cls+prompt_mean",
    "patch_mean+prompt_mean",
)


def pool_tokens(pool: str, prefix: Tensor, prompts: Tensor, patches: Tensor) -> Tensor:
    """The named parts of a pool, B x parts x D."""
    parts = [PARTS[part](prefix, prompts, patches) for part in pool.split("+")]
    return torch.stack(parts, dim=1)


class PromptedViT(nn.Module):
    """Tokens are [CLS, registers | prompts | patches]; prompts get no position embedding.

    The backbone is frozen and stays in eval mode whatever `train` says: no dropout, no drop path.
    Every tensor outside `backbone` belongs to the task. A method that trains the backbone has all
    tensors for its own, and the backbone follows `train`; timm's ViTs drop nothing unless asked to.
    """

    def __init__(
        self, backbone: nn.Module, method: PromptMethod, head: nn.Module, *, pool: str
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone.eval().requires_grad_(method.trains_backbone)
        self.method = method
        self.head: Any = head
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B x 3 x H x W) to logits (B x K)."""
        return self.head(self.forward_features(images))  # type: ignore[no-any-return]

    def forward_features(self, images: Tensor, rows: Rows | None = None) -> Tensor:
        """Normalised images (B x 3 x H x W) to pooled features (B x F).

        Args:
            rows: whose row is whose, where the tensors are those of several tasks.
        """
        return self._forward(images, rows, watched=False)[0]

    def forward_watched(self, images: Tensor, rows: Rows | None = None) -> tuple[Tensor, Tensor]:
        """Also what of the patches the pooled tokens attend to in the last block (B x N).

        The mean over heads; what is missing to 1 goes to prefix tokens and prompts. For a model
        that `can_be_watched`.
        """
        return self._forward(images, rows, watched=True)

    @property
    def can_be_watched(self) -> bool:
        return can_be_watched(self.backbone.blocks[-1])

    def _forward(
        self, images: Tensor, rows: Rows | None, *, watched: bool
    ) -> tuple[Tensor, Tensor]:
        """Features, and the attention if it is watched; else it is empty."""
        rows = rows or OneTask(images.shape[0])
        prefix, patches = self.embed(images)
        prompts, state = self.method.start(patches, rows)
        mask = self.mask(rows, prefix, prompts, patches)
        sizes = [prefix.shape[1], prompts.shape[1], patches.shape[1]]
        *blocks, last = self.backbone.blocks
        for number, block in enumerate(blocks, start=1):
            x = torch.cat([prefix, prompts, patches], dim=1)  # B x (1 + P + N) x D
            x = run_block(block, x, self.method.temperature(number, rows), mask)
            prefix, left, patches = x.split(sizes, dim=1)
            prompts, state = self.method.advance(number, prompts, left, patches, state, rows)
        x = torch.cat([prefix, prompts, patches], dim=1)
        temperature = self.method.temperature(len(blocks) + 1, rows)
        if not watched:
            x = run_block(last, x, temperature, mask, self.queries)
            return self.read(x, sizes, mask), x[:, 0, :0]  # B x F, B x 0
        queries = self.queries or slice(None)
        x, weights = run_watched(last, x, temperature, mask, queries)
        attention = self._pool(weights, sizes, mask).mean(dim=1)  # B x all tokens
        return self.read(x, sizes, mask), attention[:, -sizes[2] :]  # B x F, B x N

    @property
    def queries(self) -> slice | None:
        """The tokens that the last block is run for: if no other is pooled, the class token."""
        return slice(1) if self.pool == "cls" and self.can_be_watched else None

    def read(self, x: Tensor, sizes: list[int], mask: Tensor | None) -> Tensor:
        """Of the last block's tokens, all or its `queries`, the features (B x F)."""
        pooled = self._pool(self.backbone.norm(x), sizes, mask)
        return self.backbone.fc_norm(pooled).flatten(start_dim=1)  # type: ignore[no-any-return]

    def _pool(self, x: Tensor, sizes: list[int], mask: Tensor | None) -> Tensor:
        """Of [prefix | prompts | patches], B x tokens x any, the parts of the pool."""
        if self.queries:  # which are what is pooled
            return x
        prefix, prompts, patches = x.split(sizes, dim=1)
        if mask is not None:  # to the mean, padding is nothing
            there = mask[:, sizes[0] : sizes[0] + sizes[1], None] == 0
            prompts = prompts * there * (sizes[1] / there.sum(dim=1, keepdim=True))
        return pool_tokens(self.pool, prefix, prompts, patches)

    def mask(self, rows: Rows, prefix: Tensor, prompts: Tensor, patches: Tensor) -> Tensor | None:
        """B x (1 + P + N): 0, or -inf for prompts that a row's task does not have."""
        of_image = self.method.num_image_prompts
        there = rows.pad_mask(prompts.shape[1] - of_image)
        if there is None:
            return None
        before = there.new_ones(there.shape[0], prefix.shape[1] + of_image)
        after = there.new_ones(there.shape[0], patches.shape[1])
        missing = ~torch.cat([before, there, after], dim=1)
        return torch.zeros_like(missing, dtype=patches.dtype).masked_fill(missing, -torch.inf)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix tokens and patches (B x N x D) as they enter block 1, without the prompts."""
        vit = self.backbone
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        return x[:, : vit.num_prefix_tokens], x[:, vit.num_prefix_tokens :]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the method and the head; a frozen backbone stays in eval mode."""
        super().train(mode)
        if not self.method.trains_backbone:
            self.backbone.eval()
        return self

    def fold(self) -> "PromptedViT":
        """The model that serves: its method folded, backbone and head shared, answers the same."""
        method = self.method.fold()
        if method is self.method:
            return self
        return PromptedViT(self.backbone, method, self.head, pool=self.pool).train(self.training)

    def task_tensors(self) -> dict[str, Tensor]:
        """The tensors of the task, by name: what a bundle holds."""
        state = self.state_dict()
        if self.method.trains_backbone:
            return state
        return {k: v for k, v in state.items() if not k.startswith("backbone.")}

    def load_task_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a task's tensors in.

        Raises:
            BundleError: missing, unexpected or misshapen tensors; all are named.
        """
        own = self.task_tensors()
        missing, unexpected = own.keys() - tensors.keys(), tensors.keys() - own.keys()
        misshapen = [
            f"{name} is {list(tensors[name].shape)}, wanted {list(own[name].shape)}"
            for name in sorted(own.keys() & tensors.keys())
            if tensors[name].shape != own[name].shape
        ]
        if missing or unexpected or misshapen:
            raise BundleError(
                f"tensors do not fit {self.method.name}: missing: {name_some(sorted(missing))}; "
                f"unexpected: {name_some(sorted(unexpected))}; misshapen: {name_some(misshapen)}"
            )
        self.load_state_dict(dict(tensors), strict=False)


def create_prompted_vit(
    backbone: Backbone,
    method: str,
    *,
    num_classes: int,
    pool: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> PromptedViT:
    """Build a prompted ViT with fresh prompts and head; `pool=None` is the backbone's.

    The backbone is shared; only a method that trains it gets a copy.

    Raises:
        MethodError: unknown method, option or pool, or a pool that the model has no tokens for.
    """
    vit: Any = backbone.vit
    pool = pool or backbone.pool
    if pool not in POOLS:
        raise MethodError(
            f"unknown pool {pool!r}; wanted one of: {', '.join(POOLS)}{nearest(pool, POOLS)}"
        )
    if "cls" in pool.split("+") and vit.cls_token is None:
        raise MethodError(f"pool {pool!r} needs a class token, and {backbone.source} has none")
    shape = Shape(vit.embed_dim, len(vit.blocks), vit.patch_embed.patch_size[0])
    created = create_method(method, shape, **(options or {}))
    if "prompt_mean" in pool and not hasattr(created, "prompts"):
        raise MethodError(f"pool {pool!r} needs prompts, and method {method!r} has none")
    head = nn.Linear(len(pool.split("+")) * vit.embed_dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    vit = copy.deepcopy(vit) if created.trains_backbone else vit
    return PromptedViT(vit, created, head, pool=pool)
