"""Random flips and crops of a batch, on the device that it is on.

B batch, C channels, H = W side of the images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lspt_serve.training.prefetch import send
from lspt_serve.training.settings import Augment

__all__ = ["Changes", "augment_batch", "crop", "draw_changes", "flip"]

PAD_SHARE = 1 / 8  # of img_size, on each side, where images have no margin to crop from


@dataclass(frozen=True)
class Changes:
    """What is drawn for B images, on the CPU; None: the middle, and nothing is mirrored."""

    starts: Tensor | None = None  # 2 x B: tops and lefts of the crops
    mirrored: Tensor | None = None  # B bool

    def take(self, which: Tensor) -> "Changes":
        """Those of some of the images, given by their indices."""
        return Changes(
            None if self.starts is None else self.starts[:, which],
            None if self.mirrored is None else self.mirrored[which],
        )


def draw_changes(
    count: int, margin: int, img_size: int, how: Augment, generator: torch.Generator
) -> Changes:
    """Draw for `count` images that are `margin` pixels wider than img_size.

    A crop starts anywhere in the margin (FGVC's protocol), or, of images without one, up to
    img_size / 8 outside, where edge values go on (ours).

    Args:
        generator: on the CPU, so that every device draws the same.
    """
    starts, mirrored = None, None
    if "crop" in how:
        pad = 0 if margin else int(img_size * PAD_SHARE)
        starts = torch.randint(-pad, margin + pad + 1, (2, count), generator=generator)
    if "flip" in how:
        mirrored = torch.rand(count, generator=generator) < 0.5
    return Changes(starts, mirrored)


def augment_batch(images: Tensor, img_size: int, changes: Changes) -> Tensor:
    """B x C x H x W to B x C x img_size x img_size."""
    if changes.starts is not None:
        tops, lefts = send(changes.starts, images.device)
        images = crop(images, tops, lefts, img_size)
    elif margin := images.shape[-1] - img_size:
        start = round(margin / 2)  # as preprocess.crop_middle
        images = images[..., start : start + img_size, start : start + img_size]
    if changes.mirrored is not None:
        images = flip(images, send(changes.mirrored, images.device))
    return images


def crop(images: Tensor, tops: Tensor, lefts: Tensor, size: int) -> Tensor:
    """B x C x H x W to B x C x size x size, from a start (B each) of its own for every image.

    Outside of an image (a start below 0, an end beyond H) its nearest pixel is repeated.
    """
    b, c, h, w = images.shape
    along = torch.arange(size, device=images.device)
    rows = (tops[:, None] + along).clamp(0, h - 1)  # B x size
    columns = (lefts[:, None] + along).clamp(0, w - 1)
    images = images.gather(2, rows[:, None, :, None].expand(b, c, size, w))
    return images.gather(3, columns[:, None, None, :].expand(b, c, size, size))


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Mirror those of `which` (B bool) left to right."""
    return torch.where(which[:, None, None, None], images.flip(-1), images)
