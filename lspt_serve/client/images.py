"""What a caller may have as an image, as the bytes of a file.

H height, W width.
"""

import io
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from lspt_serve.errors import ImageError, TooLargeError

__all__ = ["Image", "read_image"]

# bytes of a file, a path, a Pillow image, or an array (H x W x 3 uint8, RGB, values in [0, 255])
Image: TypeAlias = bytes | str | os.PathLike[str] | PIL.Image.Image | NDArray[np.uint8]

MAX_FILE_BYTES = 2**28  # more is not even read; servers take far less
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def read_image(image: Image) -> bytes:
    """The bytes of a file are taken as they are, pixels become a PNG, turned as their EXIF says.

    Raises:
        ImageError: a file that cannot be read, or an array of another shape or dtype.
        TooLargeError: a file of more than 256 MiB.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, PIL.Image.Image):
        return _encode(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            shape = " x ".join(map(str, image.shape))
            raise ImageError(f"an array of {shape} {image.dtype}; wanted H x W x 3 uint8")
        return _encode(PIL.Image.fromarray(image))
    return _read(Path(image))


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe might never end
            raise ImageError(f"{path}: no file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TooLargeError(f"{path}: {path.stat().st_size} bytes; at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error


def _encode(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        fits = upright.mode in PNG_MODES
        (upright if fits else upright.convert("RGB")).save(file, "PNG", compress_level=1)
    except (OSError, SyntaxError, ValueError) as error:  # of a file that is read only now
        raise ImageError(f"image cannot be encoded: {error}") from error
    return file.getvalue()
