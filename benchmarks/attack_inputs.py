"""What fuzzers feed: a bundle's two files, an image file; and what they begin with."""

import io
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from lspt_serve.bundle import MANIFEST, TENSORS, load_bundle
from lspt_serve.preprocess import ImageLimits, Preprocess, preprocess_image

__all__ = ["FEEDS", "Feed", "bundle_seeds", "image_seeds", "join_bundle"]

Feed = Callable[[bytes, Path], object]
LIMITS = ImageLimits(("JPEG", "PNG", "BMP", "GIF", "WEBP", "JPEG2000"), max_pixels=1_000_000)
SIZE = struct.Struct("<I")


def join_bundle(manifest: bytes, tensors: bytes) -> bytes:
    return SIZE.pack(len(manifest)) + manifest + tensors


def feed_bundle(data: bytes, scratch: Path) -> object:
    """Load what `join_bundle` joined, by way of files in `scratch`; raises LSPTError at most."""
    size = SIZE.unpack(data[:4])[0] if len(data) >= 4 else 0
    (scratch / MANIFEST).write_bytes(data[4 : 4 + size])
    (scratch / TENSORS).write_bytes(data[4 + size :])
    return load_bundle(scratch)


def feed_image(data: bytes, scratch: Path) -> object:
    """Decode an image file of any format there is; raises LSPTError at most."""
    return preprocess_image(data, Preprocess(32, crop_pct=0.9), LIMITS)


FEEDS: Mapping[str, Feed] = {"bundles": feed_bundle, "images": feed_image}


def bundle_seeds(folder: Path) -> list[bytes]:
    """Of all bundles in a folder."""
    return [
        join_bundle((own / MANIFEST).read_bytes(), (own / TENSORS).read_bytes())
        for own in sorted(folder.iterdir())
    ]


def image_seeds() -> list[bytes]:
    """A small file of each format and of several modes."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (24, 17, 3)).astype(np.uint8))
    wide = Image.fromarray(rng.integers(0, 2**16, (9, 9)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    kinds: list[tuple[Image.Image, str, dict[str, object]]] = [
        (colour, "JPEG", {"exif": exif}),
        (colour, "JPEG", {"progressive": True}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "PNG", {}),
        (colour.convert("P"), "PNG", {"transparency": 3}),
        (colour.convert("RGBA"), "PNG", {}),
        (wide, "PNG", {}),
        (colour, "BMP", {}),
        (colour.convert("1"), "BMP", {}),
        (colour, "GIF", {"save_all": True, "append_images": [colour.rotate(90)]}),
        (colour, "WEBP", {}),
        (colour, "JPEG2000", {}),
    ]
    seeds = []
    for image, file_format, options in kinds:
        file = io.BytesIO()
        image.save(file, file_format, **options)
        seeds.append(file.getvalue())
    return seeds
