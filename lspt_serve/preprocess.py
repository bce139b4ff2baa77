"""From the bytes of an image file to the array a backbone sees: the same for training and serving.

C channels (3), H height, W width.
"""

import io
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lspt_serve.errors import TooLargeError, UndecodableError, UnsupportedFormatError

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "NORMALISATIONS",
    "Normalisation",
    "Preprocess",
    "decode_image",
    "normalise",
    "preprocess_image",
]

FORMATS = ("JPEG", "PNG", "BMP", "GIF")
MAX_PIXELS = 50_000_000

Normalisation = Literal["imagenet", "half"]
Triple = tuple[float, float, float]
NORMALISATIONS: dict[Normalisation, tuple[Triple, Triple]] = {  # mean, std
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a backbone's input; travels in the bundle and in the exported graph.

    The image is resized to `img_size` x `img_size` whatever its aspect ratio (the protocol of
    VTAB-1K), bicubic with antialiasing, then normalised to (pixel / 255 - mean) / std.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # in the files that it is part of

    img_size: int
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.img_size < 1:
            raise ValueError(f"img_size must be at least 1, got {self.img_size}")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ValueError(
                f"mean and std take 3 finite values, std > 0; got {self.mean}, {self.std}"
            )


def decode_image(data: bytes, img_size: int, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an untrusted image file and resize it.

    EXIF orientation is applied, an animation gives its first frame, transparency is laid on white,
    16-bit greys are scaled to 8 bits. A JPEG much larger than needed is decoded at a fraction of
    its size, never below twice `img_size`. The size is read from the header and checked before any
    pixel is decoded.

    Returns:
        H x W x C uint8, RGB, values in [0, 255], H = W = `img_size`.

    Raises:
        UnsupportedFormatError: not one of FORMATS.
        TooLargeError: more than `max_pixels` pixels.
        UndecodableError: truncated or otherwise broken.
    """
    image = _open(data, max_pixels)
    try:
        image.draft("RGB", (2 * img_size, 2 * img_size))
        image = _to_rgb(ImageOps.exif_transpose(image))
        image = image.resize((img_size, img_size), Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.uint8)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError, ...
        raise UndecodableError(f"image does not decode: {error}") from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLargeError(f"image has too many pixels; at most {max_pixels}") from None
    except UnidentifiedImageError:
        raise UnsupportedFormatError(
            f"{len(data)} bytes that are no image of the accepted formats: {', '.join(FORMATS)}"
        ) from None
    except Exception as error:
        raise UndecodableError(f"image header does not decode: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise TooLargeError(f"image of {width} x {height} pixels; at most {max_pixels}")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey_from_wide(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _grey_from_wide(image: Image.Image) -> Image.Image:
    """A 16-bit grey image as 8 bits: Pillow's own conversion clips instead of scaling."""
    wide = np.asarray(image).astype(np.float64)
    grey = np.clip(wide / 257, 0, 255).round().astype(np.uint8)
    grey[wide == image.info.get("transparency")] = 255  # laid on white, as below
    return Image.fromarray(grey)


def normalise(images: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """... x H x W x C uint8 to ... x C x H x W float32: (pixel / 255 - mean) / std."""
    mean, std = np.asarray([preprocess.mean, preprocess.std], np.float32)
    scaled = images * (np.float32(1 / 255) / std) - mean / std
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3), dtype=np.float32)


def preprocess_image(data: bytes, preprocess: Preprocess, **limits: Any) -> NDArray[np.float32]:
    """Bytes of an image file to C x H x W float32; raises what `decode_image` raises."""
    return normalise(decode_image(data, preprocess.img_size, **limits), preprocess)
