"""Where the learned prompts start: uniform noise, or the patch tokens of the task's own images.

Tokens as prompts follow Self-Prompt Tuning (Wang et al. 2024, "Revisiting the Power of Prompt for
Visual Tuning"). Which tokens are looked at is ours: those that enter the block which the prompts
enter, in the backbone without prompts, for at most 256 images of train.

B images, M tokens, N patches, P prompts, D embed_dim, L blocks.
"""

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from lspt_serve.errors import DataError, MethodError
from lspt_serve.models import PromptedViT
from lspt_serve.models.methods import PromptMethod
from lspt_serve.preprocess import Preprocess, crop_middle, normalise
from lspt_serve.training.data import Split

__all__ = [
    "LR_SCALES",
    "Init",
    "collect_tokens",
    "initialise_prompts",
    "kmeans",
    "pick_init",
    "random_tokens",
]

Init = Literal["auto", "uniform", "tokens", "kmeans"]
# Of the prompts' learning rate, in multiples of lr: tokens are 10 to 30 times as large as noise.
LR_SCALES: dict[Init, float] = {"uniform": 1.0, "tokens": 10.0, "kmeans": 10.0}
MAX_IMAGES, MAX_TOKENS = 256, 4096  # tokens of each block; 12 blocks of a ViT-B are 150 MB
BATCH_SIZE = 64


def pick_init(method: PromptMethod, init: Init) -> Init:
    """`auto` is what does best for the method.

    Raises:
        MethodError: an unknown init, or one that a method without prompts cannot have.
    """
    if init not in get_args(Init):
        raise MethodError(f"unknown init {init!r}; wanted one of: {', '.join(get_args(Init))}")
    if init == "auto":
        init = method.default_init  # type: ignore[assignment]
    if init != "uniform" and not hasattr(method, "prompts"):
        raise MethodError(f"init {init!r} needs prompts, and method {method.name!r} has none")
    return init


@torch.no_grad()
def initialise_prompts(
    model: PromptedViT, train: Split, preprocess: Preprocess, init: Init, *, seed: int
) -> None:
    """Put the start of the learned prompts into `method.prompts`, P x D or L x P x D.

    uniform leaves VPT's initialisation, tokens takes random tokens, kmeans the centres of clusters.
    The same images, seed and thread count give the same prompts, bit for bit.

    Raises:
        MethodError: see pick_init.
        DataError: fewer tokens in train than prompts.
    """
    if pick_init(model.method, init) == "uniform":
        return
    prompts = model.method.get_parameter("prompts")
    blocks = prompts.view(-1, *prompts.shape[-2:])  # (1 or L) x P x D
    generator = torch.Generator().manual_seed(seed)
    start = kmeans if init == "kmeans" else random_tokens
    tokens = collect_tokens(model, train, preprocess, depth=len(blocks), generator=generator)
    for own, entering in zip(blocks, tokens, strict=True):
        own.copy_(start(entering, len(own), generator))


def collect_tokens(
    model: PromptedViT,
    train: Split,
    preprocess: Preprocess,
    *,
    depth: int,
    generator: torch.Generator,
) -> Tensor:
    """Random patch tokens as they enter the first `depth` blocks, on the CPU; depth x M x D."""
    device = next(model.parameters()).device
    num_patches = model.backbone.patch_embed.num_patches
    images = torch.randperm(len(train), generator=generator)[:MAX_IMAGES]
    taken = math.ceil(MAX_TOKENS / len(images))  # of each image
    found = []
    for rows in images.split(BATCH_SIZE):
        pixels = crop_middle(train.images[rows.numpy()], preprocess.img_size)
        batch = torch.from_numpy(normalise(pixels, preprocess))
        noise = torch.rand(len(rows), num_patches, generator=generator)
        keep = noise.argsort(dim=1)[:, :taken, None].to(device)  # B x taken x 1
        kept = [
            patches.take_along_dim(keep, dim=1).flatten(0, 1).cpu()  # (B taken) x D
            for patches in _entering_patches(model, batch.to(device), depth)
        ]
        found.append(torch.stack(kept))
    return torch.cat(found, dim=1)


def _entering_patches(model: PromptedViT, images: Tensor, depth: int) -> Iterator[Tensor]:
    """Patches (B x N x D) that enter blocks 1 to depth of the backbone without prompts."""
    prefix, patches = model.embed(images)
    yield patches
    x = torch.cat([prefix, patches], dim=1)
    for block in model.backbone.blocks[: depth - 1]:
        x = block(x)
        yield x[:, prefix.shape[1] :]


def random_tokens(tokens: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different rows of the tokens; M x D to count x D."""
    if len(tokens) < count:
        raise DataError(
            f"{count} prompts cannot start from the {len(tokens)} patch tokens of train; "
            "use fewer prompts or init uniform"
        )
    return tokens[torch.randperm(len(tokens), generator=generator)[:count]]


def kmeans(
    tokens: Tensor, count: int, generator: torch.Generator, *, max_steps: int = 50
) -> Tensor:
    """Centres of `count` clusters by Lloyd's algorithm, from random tokens; M x D to count x D.

    A cluster that has lost its last token keeps its centre.
    """
    centres = random_tokens(tokens, count, generator)
    for _ in range(max_steps):
        nearest = torch.cdist(tokens, centres).argmin(dim=1)  # M
        sizes = nearest.bincount(minlength=count).unsqueeze(1)  # count x 1
        sums = torch.zeros_like(centres).index_add_(0, nearest, tokens)
        moved = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
