"""Every image of a source read, decoded and hashed once."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lspt_serve.errors import DataError, name_some, printable
from lspt_serve.preprocess import Preprocess, decode_image
from lspt_serve.training.data.source import Sample, Source
from lspt_serve.training.prefetch import made_ahead

__all__ = ["Allocate", "Decoded", "OnBadImage", "OnImage", "decode_source", "in_memory"]

AHEAD = 128  # images, queued or decoded: more than enough for the at most 32 threads
OnBadImage = Literal["refuse", "skip"]
OnImage = Callable[[int, int], None]  # how many are decoded, of how many
Allocate = Callable[[str, tuple[int, ...]], NDArray[np.uint8]]  # a split's name and shape


@dataclass(frozen=True)
class Decoded:
    """The images of each split, and which of its samples they are."""

    images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # N x S x S x 3, N >= kept
    kept: dict[str, list[int]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)  # name (why)
    twins: list[str] = field(default_factory=list)  # name = name, in another split


def in_memory(split: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The plain way to allocate."""
    return np.empty(shape, np.uint8)


def decode_source(
    source: Source,
    preprocess: Preprocess,
    *,
    allocate: Allocate,
    on_bad_image: OnBadImage,
    on_image: OnImage,
) -> Decoded:
    """Decode to squares of `resized_side`; raises DataError for bad images that are refused."""
    decode = partial(_decode_one, preprocess)
    total, done = sum(map(len, source.splits.values())), 0
    side = preprocess.resized_side
    decoded = Decoded()
    first_seen: dict[bytes, tuple[str, str]] = {}  # sha1 -> split, name
    with _threads() as pool:
        for split, samples in source.splits.items():
            images = allocate(split, (len(samples), side, side, 3))
            kept: list[int] = []
            results = made_ahead(pool, decode, samples, ahead=AHEAD)
            for index, (sample, result) in enumerate(zip(samples, results, strict=True)):
                name = printable(sample.name)
                if isinstance(result, str):
                    decoded.bad.append(f"{name} ({result})")
                else:
                    images[len(kept)], sha1 = result
                    kept.append(index)
                    other, twin = first_seen.setdefault(sha1, (split, name))
                    if other != split:
                        decoded.twins.append(f"{name} ({split}) = {twin} ({other})")
                on_image(done := done + 1, total)
            decoded.images[split], decoded.kept[split] = images, kept
    if decoded.bad and on_bad_image == "refuse":
        raise DataError(
            f"{len(decoded.bad)} of {total} images cannot be read: {name_some(decoded.bad)}; "
            "mend or convert them, or leave them out with --on-bad-image skip"
        )
    return decoded


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """After an exception, Ctrl-C's too, what is queued is left undone."""
    pool = ThreadPoolExecutor()
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_one(preprocess: Preprocess, sample: Sample) -> tuple[NDArray[np.uint8], bytes] | str:
    """The image and the sha1 of its file, or why there is none."""
    size, crop_pct = preprocess.img_size, preprocess.crop_pct
    try:
        data = sample.read()
        return decode_image(data, size, crop_pct=crop_pct, with_margin=True), _sha1(data)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # an ImageError, or a name that no file can have
        return str(error)


def _sha1(data: bytes) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).digest()
