"""From the bytes of an image file to the array a backbone sees: the same for training and serving.

C channels (3), H height, W width.
"""

import io
import math
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from lspt_serve.errors import TooLargeError, UndecodableError, UnsupportedFormatError
from lspt_serve.room import Room

__all__ = [
    "FORMATS",
    "LIMITS",
    "MAX_PIXELS",
    "MIN_CROP_PCT",
    "NORMALISATIONS",
    "PILLOWS_PIXELS",
    "Format",
    "ImageLimits",
    "Normalisation",
    "Preprocess",
    "crop_middle",
    "decode_image",
    "normalise",
    "preprocess_image",
    "to_rgb",
]

Format = Literal["JPEG", "PNG", "BMP", "GIF", "WEBP", "JPEG2000"]
# without WebP and JPEG 2000, whose decoders have had more holes: where they are asked for
FORMATS: tuple[Format, ...] = ("JPEG", "PNG", "BMP", "GIF")
MAX_PIXELS = 50_000_000
PILLOWS_PIXELS = 178_956_970  # more, it refuses by itself
# of a JPEG: real ones have some ten, and each may take as long as the whole image. What stands for
# one is in a file by chance, too, once in 64 kB of what is not of the image
SCAN, MAX_SCANS = (0xFF, 0xDA), 500
MIN_CROP_PCT = 0.1  # bounds what a bundle from elsewhere can make a server resize to

Normalisation = Literal["imagenet", "half"]
Triple = tuple[float, float, float]
NORMALISATIONS: dict[Normalisation, tuple[Triple, Triple]] = {  # mean, std
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class ImageLimits:
    """Which untrusted files are decoded at all.

    Args:
        max_pixels: width times height, as the header says.
        room: for the pixels of what is decoded at one time; None: without limit.
    """

    formats: tuple[Format, ...] = FORMATS
    max_pixels: int = MAX_PIXELS
    room: Room | None = None


LIMITS = ImageLimits()


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a backbone's input; travels in the bundle and in the exported graph.

    With `crop_pct` 1 the image is resized to `img_size` x `img_size` whatever its aspect ratio (the
    protocol of VTAB-1K). Below 1 its shorter side is resized to `resized_side`, keeping the aspect
    ratio, and the middle is cropped (the protocol of FGVC). Bicubic with antialiasing; then
    normalised to (pixel / 255 - mean) / std.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # in the files that it is part of

    img_size: int
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    crop_pct: float = 1.0  # in [MIN_CROP_PCT, 1]; timm's word

    def __post_init__(self) -> None:
        if self.img_size < 1:
            raise ValueError(f"img_size must be at least 1, got {self.img_size}")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ValueError(
                f"mean and std take 3 finite values, std > 0; got {self.mean}, {self.std}"
            )
        if not MIN_CROP_PCT <= self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be in [{MIN_CROP_PCT}, 1], got {self.crop_pct}")

    @property
    def resized_side(self) -> int:
        """Of the square that the middle is cropped from, in pixels; `img_size` with crop_pct 1."""
        return math.floor(self.img_size / self.crop_pct)


def decode_image(
    data: bytes,
    img_size: int,
    *,
    crop_pct: float = 1.0,
    with_margin: bool = False,
    limits: ImageLimits = LIMITS,
) -> NDArray[np.uint8]:
    """Decode an untrusted image file and resize it as Preprocess says.

    EXIF orientation is applied, an animation gives its first frame, transparency is laid on white,
    16-bit greys are scaled to 8 bits. A JPEG much larger than needed is decoded at a fraction of
    its size, never below twice what is asked for. The size is read from the header and checked
    before any pixel is decoded.

    Args:
        with_margin: give the square of `resized_side` whose middle the answer would be, for
            training to crop from.

    Returns:
        H x W x C uint8, RGB, values in [0, 255], H = W = `img_size` (or `resized_side`).

    Raises:
        UnsupportedFormatError: not one of the formats in `limits`.
        TooLargeError: more pixels than those, or a JPEG that is read over and over.
        UndecodableError: truncated or otherwise broken.
    """
    side = Preprocess(img_size, crop_pct=crop_pct).resized_side
    image = _open(data, limits)
    with limits.room.taken(image.width * image.height) if limits.room else nullcontext():
        try:
            pixels = _decode(image, img_size, side, crop=crop_pct < 1)
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
            raise UndecodableError(f"image does not decode: {error}") from error
    return pixels if with_margin else crop_middle(pixels, img_size)


def _decode(image: Image.Image, img_size: int, side: int, *, crop: bool) -> NDArray[np.uint8]:
    image.draft("RGB", (2 * side, 2 * side))
    image.load()
    with suppress(Exception):  # of a block that is broken; the pixels are not
        ImageOps.exif_transpose(image, in_place=True)  # else it copies what is upright
    image = to_rgb(image)
    box = _middle(image.size, side, img_size) if crop else None
    image = image.resize((side, side), Image.Resampling.BICUBIC, box)
    return np.asarray(image, dtype=np.uint8)


def crop_middle(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """... x H x W x C to ... x size x size x C, rounded as in torchvision."""
    top, left = (round((side - size) / 2) for side in pixels.shape[-3:-1])
    return pixels[..., top : top + size, left : left + size, :]


def _middle(size: tuple[int, int], side: int, img_size: int) -> tuple[float, float, float, float]:
    """What of the image becomes the square, in its own pixels: left, top, right, bottom.

    Resized whole, a picture of 50 million x 1 pixels would need terabytes; the box alone does not.
    The middle `img_size` of the square is the middle of the whole resized image, to the pixel.
    """
    shorter = min(size)
    resized = [side * length // shorter for length in size]
    starts = [round((n - img_size) / 2) - round((side - img_size) / 2) for n in resized]
    (left, top), (right, bottom) = (
        [(start + end) * length / n for start, length, n in zip(starts, size, resized, strict=True)]
        for end in (0, side)
    )
    return left, top, right, bottom


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read the header only."""
    try:
        image = Image.open(io.BytesIO(data), formats=limits.formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLargeError(f"image has too many pixels; at most {limits.max_pixels}") from None
    except UnidentifiedImageError:
        accepted = ", ".join(limits.formats)
        raise UnsupportedFormatError(
            f"{len(data)} bytes that are no image of the accepted formats: {accepted}"
        ) from None
    except Exception as error:
        raise UndecodableError(f"image header does not decode: {error}") from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise TooLargeError(f"image of {width} x {height} pixels; at most {limits.max_pixels}")
    if isinstance(image, JpegImageFile) and _count_scans(data) > MAX_SCANS:
        raise TooLargeError(f"JPEG of more than {MAX_SCANS} scans")
    return image


def _count_scans(data: bytes) -> int:
    """Eight times as fast as `bytes.count`, which is felt where files are large."""
    values = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero((values[:-1] == SCAN[0]) & (values[1:] == SCAN[1])))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; 16-bit greys are scaled to 8 bits, and transparency is laid on white."""
    if image.mode.startswith("I"):
        image = _grey_from_wide(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _grey_from_wide(image: Image.Image) -> Image.Image:
    """A 16-bit grey image as 8 bits: Pillow's own conversion clips instead of scaling."""
    wide = np.asarray(image)
    grey = wide.clip(0, 65535).astype(np.uint32)
    grey += 128
    grey //= 257  # rounds to the nearest, in a third of the memory that floats would take
    grey[wide == image.info.get("transparency")] = 255  # laid on white, as below
    return Image.fromarray(grey.astype(np.uint8))


def normalise(images: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """... x H x W x C uint8 to ... x C x H x W float32: (pixel / 255 - mean) / std."""
    mean, std = np.asarray([preprocess.mean, preprocess.std], np.float32)[..., None, None]
    planes = np.moveaxis(images, -1, -3)
    scaled = np.empty(planes.shape, np.float32)  # in planes from the start: no strides
    np.multiply(planes, np.float32(1 / 255) / std, out=scaled)
    scaled -= mean / std
    return scaled


def preprocess_image(
    data: bytes, preprocess: Preprocess, limits: ImageLimits = LIMITS
) -> NDArray[np.float32]:
    """Bytes of an image file to C x H x W float32; raises what `decode_image` raises."""
    size, crop_pct = preprocess.img_size, preprocess.crop_pct
    return normalise(decode_image(data, size, crop_pct=crop_pct, limits=limits), preprocess)
