"""What a caller may have as an image, as the bytes of a file.

H height, W width.
"""

import errno
import io
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from lspt_serve.errors import ImageError, TooLargeError
from lspt_serve.files import read_file
from lspt_serve.preprocess import to_rgb

__all__ = ["Image", "read_image"]

# bytes of a file, a path, a Pillow image, or an array (H x W x 3 uint8, RGB, values in [0, 255])
Image: TypeAlias = bytes | str | os.PathLike[str] | PIL.Image.Image | NDArray[np.uint8]

MAX_FILE_BYTES = 2**28  # more is not even read; servers take far less
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")  # others become RGB


def read_image(image: Image) -> bytes:
    """The bytes of a file are taken as they are, pixels become a PNG, turned as their EXIF says.

    Raises:
        ImageError: a file that cannot be read, an array of another shape or dtype, or a Pillow
            image of floats, whose white nobody knows.
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
        return read_file(path, max_bytes=MAX_FILE_BYTES)
    except OSError as error:
        kind = TooLargeError if error.errno == errno.EFBIG else ImageError
        raise kind(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a path that there cannot be
        raise ImageError(f"{str(path)!r}: cannot be read: {error}") from error


def _encode(image: PIL.Image.Image) -> bytes:
    if image.mode == "F":
        raise ImageError("a Pillow image of mode F; wanted 8 or 16 bits, such as RGB or I;16")
    file = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        fits = upright.mode in PNG_MODES
        (upright if fits else to_rgb(upright)).save(file, "PNG", compress_level=1)
    except (OSError, SyntaxError, ValueError) as error:  # of a file that is read only now
        raise ImageError(f"image cannot be encoded: {error}") from error
    return file.getvalue()
