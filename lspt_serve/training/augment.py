"""Random flips and crops of a batch, on the device that it is on.

B batch, C channels, H = W side of the images.
"""

import torch
from torch import Tensor

from lspt_serve.training.settings import Augment

__all__ = ["augment_batch", "crop", "flip"]

PAD_SHARE = 1 / 8  # of img_size, on each side, where images have no margin to crop from


def augment_batch(
    images: Tensor, img_size: int, how: Augment, generator: torch.Generator | None
) -> Tensor:
    """B x C x H x W to B x C x img_size x img_size; `none` takes the middle.

    A crop starts anywhere in the margin (H > img_size; FGVC's protocol), or, of images without one,
    up to img_size / 8 outside, where edge values go on (ours).

    Args:
        generator: on the CPU, so that every device draws the same.
    """
    margin = images.shape[-1] - img_size
    if "crop" in how:
        pad = 0 if margin else int(img_size * PAD_SHARE)
        low, high = -pad, margin + pad
        starts = torch.randint(low, high + 1, (2, len(images)), generator=generator)
        tops, lefts = starts.to(images.device)
        images = crop(images, tops, lefts, img_size)
    elif margin:
        start = round(margin / 2)  # as preprocess.crop_middle
        images = images[..., start : start + img_size, start : start + img_size]
    if "flip" in how:
        which = torch.rand(len(images), generator=generator) < 0.5
        images = flip(images, which.to(images.device))
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
