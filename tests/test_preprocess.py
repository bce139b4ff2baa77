import contextlib
import csv
import io
import struct
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from lspt_serve.errors import (
    ImageError,
    TooLargeError,
    UndecodableError,
    UnsupportedFormatError,
)
from lspt_serve.preprocess import (
    FORMATS,
    PILLOWS_PIXELS,
    Format,
    ImageLimits,
    Preprocess,
    decode_image,
    normalise,
    preprocess_image,
)
from lspt_serve.room import Room

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
QUADRANTS = {"A": RED, "B": GREEN, "C": BLUE, "D": (128, 128, 128)}
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
# of formats that are decoded where they are asked for
LOSSLESS: list[tuple[Format, dict[str, Any]]] = [("WEBP", {"lossless": True}), ("JPEG2000", {})]


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def image_of(rows: list[list[Any]], mode: str) -> Image.Image:
    image = Image.new(mode, (len(rows[0]), len(rows)))
    image.putdata([pixel for row in rows for pixel in row])
    return image


def decode_2x2(data: bytes) -> list[list[tuple[int, ...]]]:
    """Of an image of 2 x 2 pixels, which a resize to 2 x 2 leaves alone."""
    return [[tuple(pixel) for pixel in row] for row in decode_image(data, 2).tolist()]


def greys(rows: list[list[int]]) -> list[list[tuple[int, ...]]]:
    return [[(grey,) * 3 for grey in row] for row in rows]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunk = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    end = b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + zlib.crc32(chunk).to_bytes(4) + end


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG of 8 x 8 pixels whose header claims another size."""
    data = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = height.to_bytes(2) + width.to_bytes(2)
    return bytes(data)


def bmp_header(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("RGB", (1, 1)), "BMP"))
    data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, "AB/CD"),
        (2, "BA/DC"),
        (3, "DC/BA"),
        (4, "CD/AB"),
        (5, "AC/BD"),
        (6, "CA/DB"),
        (7, "DB/CA"),
        (8, "BD/AC"),
    ],
)
def test_exif_orientation_is_applied(format: str, orientation: int, shown: str) -> None:
    stored = image_of([[QUADRANTS["A"], QUADRANTS["B"]], [QUADRANTS["C"], QUADRANTS["D"]]], "RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    large = stored.resize((32, 32), Image.Resampling.NEAREST)
    pixels = decode_image(encode(large, format, exif=exif, **options), 32)
    wanted = [[QUADRANTS[letter] for letter in row] for row in shown.split("/")]
    centres = pixels[8::16, 8::16].astype(int)
    assert np.abs(centres - np.array(wanted)).max() <= 3  # JPEG is not exact


@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_rgb_is_left_alone(format: str) -> None:
    rows = [[(1, 2, 3), (4, 5, 6)], [(7, 8, 9), (250, 251, 252)]]
    assert decode_2x2(encode(image_of(rows, "RGB"), format)) == rows


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = decode_image(encode(cmyk, "JPEG", quality=100), 16)
    assert np.abs(pixels.astype(int) - RED).max() <= 3


def test_grey_becomes_three_equal_channels() -> None:
    rows = [[0, 50], [100, 255]]
    assert decode_2x2(encode(image_of(rows, "L"))) == greys(rows)


def test_black_and_white_becomes_0_and_255() -> None:
    assert decode_2x2(encode(image_of([[0, 255], [255, 0]], "1"))) == greys([[0, 255], [255, 0]])


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    wide = np.array([[0, 100 * 257], [200 * 257, 65535]], np.uint16)
    assert decode_2x2(encode(Image.fromarray(wide))) == greys([[0, 100], [200, 255]])


def test_every_16_bit_grey_becomes_the_nearest_of_8_bits() -> None:
    wide = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    wanted = np.round(wide / 257)
    assert (decode_image(encode(Image.fromarray(wide)), 256) == wanted[..., None]).all()


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP"])
def test_a_palette_is_looked_up(format: str) -> None:
    image = image_of([[0, 1], [2, 1]], "P")
    image.putpalette([*RED, *GREEN, *BLUE])
    assert decode_2x2(encode(image, format)) == [[RED, GREEN], [BLUE, GREEN]]


def test_alpha_is_laid_on_white() -> None:
    rows = [[(255, 0, 0, 255), (255, 0, 0, 0)], [(0, 0, 0, 128), (0, 0, 255, 51)]]
    wanted = [[RED, WHITE], [(127, 127, 127), (204, 204, 255)]]
    assert decode_2x2(encode(image_of(rows, "RGBA"))) == wanted


def test_alpha_of_grey_is_laid_on_white() -> None:
    rows = [[(100, 255), (100, 0)], [(0, 128), (255, 7)]]
    assert decode_2x2(encode(image_of(rows, "LA"))) == greys([[100, 255], [127, 255]])


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(format: str) -> None:
    image = image_of([[0, 1], [2, 1]], "P")
    image.putpalette([*RED, *GREEN, *BLUE])
    data = encode(image, format, transparency=1)
    assert decode_2x2(data) == [[RED, WHITE], [BLUE, WHITE]]


@pytest.mark.parametrize(
    ("mode", "rows", "transparency", "wanted"),
    [
        ("RGB", [[RED, GREEN], [BLUE, GREEN]], GREEN, [[RED, WHITE], [BLUE, WHITE]]),
        ("L", [[10, 20], [30, 20]], 20, greys([[10, 255], [30, 255]])),
        ("I;16", [[0, 25700], [51400, 25700]], 25700, greys([[0, 255], [200, 255]])),
    ],
)
def test_a_transparent_colour_is_white(
    mode: str, rows: list[list[Any]], transparency: Any, wanted: list[list[tuple[int, ...]]]
) -> None:
    data = encode(image_of(rows, mode), transparency=transparency)
    assert decode_2x2(data) == wanted


@pytest.mark.parametrize("format", ["GIF", "PNG"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    first, *others = (Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE))
    data = encode(first, format, save_all=True, append_images=others, duration=10)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert (decode_image(data, 4) == RED).all()


@pytest.mark.parametrize("size", [(50, 30), (30, 50), (7, 64)])
def test_any_aspect_ratio_is_resized_bicubic_to_a_square(size: tuple[int, int]) -> None:
    image = Image.fromarray(NOISE[: size[1], : size[0]])
    wanted = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(decode_image(encode(image), 16), wanted)


def test_one_pixel_fills_the_image() -> None:
    pixels = decode_image(encode(Image.new("RGB", (1, 1), (9, 8, 7))), 16)
    assert pixels.shape == (16, 16, 3)
    assert (pixels == (9, 8, 7)).all()


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same() -> None:
    image = Image.fromarray(NOISE).resize((1600, 1200), Image.Resampling.BICUBIC)
    data = encode(image, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as whole:
        wanted = np.asarray(whole.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(decode_image(data, 64).astype(int) - wanted)
    assert difference.mean() < 2


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((1024, 1024), (128, 128)),  # 1/8
        ((1600, 1200), (200, 150)),
        ((512, 600), (128, 150)),  # 1/4
        ((100, 100), (100, 100)),
    ],
)
def test_a_jpeg_is_never_decoded_below_twice_the_size(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    data, seen, resize = encode(Image.new("RGB", size), "JPEG"), [], Image.Image.resize

    def spy(self: Image.Image, *args: Any) -> Image.Image:
        seen.append(self.size)
        return resize(self, *args)

    monkeypatch.setattr(Image.Image, "resize", spy)
    decode_image(data, 64)
    assert seen == [decoded]


def cropped_by_hand(image: Image.Image, side: int, size: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `side`, crop the middle: torchvision's Resize and CenterCrop."""
    width, height = image.size
    shorter = min(width, height)
    resized = image.resize(
        (int(side * width / shorter), int(side * height / shorter)), Image.Resampling.BICUBIC
    )
    left, top = (round((length - size) / 2) for length in resized.size)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", [(64, 64), (50, 64), (64, 41), (33, 64), (9, 13), (64, 1)])
@pytest.mark.parametrize(("img_size", "crop_pct", "side"), [(28, 0.875, 32), (24, 0.9, 26)])
def test_crop_pct_resizes_the_shorter_side_and_crops_the_middle(
    size: tuple[int, int], img_size: int, crop_pct: float, side: int
) -> None:
    image = Image.fromarray(NOISE).resize(size)

    got = decode_image(encode(image), img_size, crop_pct=crop_pct)

    wanted = cropped_by_hand(image, side, img_size)
    np.testing.assert_allclose(got.astype(int), wanted.astype(int), atol=1, rtol=0)
    assert got.shape == (img_size, img_size, 3)


def test_crop_pct_1_resizes_whatever_the_aspect_ratio() -> None:
    image = Image.fromarray(NOISE[:20])
    got = decode_image(encode(image), 16, crop_pct=1.0)
    assert np.array_equal(got, np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("size", [(64, 64), (50, 64), (63, 41), (33, 62)])
@pytest.mark.parametrize(("img_size", "crop_pct"), [(28, 0.875), (27, 0.875), (16, 0.8), (9, 0.5)])
def test_middle_of_the_square_with_margin_is_the_image_without(
    size: tuple[int, int], img_size: int, crop_pct: float
) -> None:
    data = encode(Image.fromarray(NOISE).resize(size))
    side = Preprocess(img_size, crop_pct=crop_pct).resized_side

    square = decode_image(data, img_size, crop_pct=crop_pct, with_margin=True)

    assert square.shape == (side, side, 3)
    start = round((side - img_size) / 2)
    middle = square[start : start + img_size, start : start + img_size]
    assert np.array_equal(middle, decode_image(data, img_size, crop_pct=crop_pct))


def test_very_long_image_is_cropped_without_being_resized_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, seen, resize = encode(Image.new("RGB", (1_000_000, 1), "red")), [], Image.Image.resize

    def spy(self: Image.Image, size: tuple[int, int], *args: Any) -> Image.Image:
        seen.append(size)
        return resize(self, size, *args)

    monkeypatch.setattr(Image.Image, "resize", spy)
    assert (decode_image(data, 224, crop_pct=0.875) == (255, 0, 0)).all()
    assert seen == [(256, 256)]


def test_preprocess_image_crops_as_the_preprocessing_says() -> None:
    data, preprocess = encode(Image.fromarray(NOISE[:40])), Preprocess(8, crop_pct=0.5)
    wanted = normalise(decode_image(data, 8, crop_pct=0.5), preprocess)
    assert np.array_equal(preprocess_image(data, preprocess), wanted)
    assert not np.array_equal(preprocess_image(data, Preprocess(8)), wanted)


@pytest.mark.parametrize(
    ("img_size", "crop_pct", "side"), [(224, 0.875, 256), (224, 0.9, 248), (224, 1.0, 224)]
)
def test_resized_side_is_that_of_timm(img_size: int, crop_pct: float, side: int) -> None:
    assert Preprocess(img_size, crop_pct=crop_pct).resized_side == side


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_image_does_not_decode(format: str, share: float) -> None:
    data = encode(Image.fromarray(NOISE), format)
    with pytest.raises(UndecodableError, match="image does not decode: "):
        decode_image(data[: int(share * len(data))], 32)


def test_damaged_pixels_do_not_decode() -> None:
    data = bytearray(encode(Image.fromarray(NOISE)))
    data[data.index(b"IDAT") + 4 : data.index(b"IDAT") + 20] = bytes(16)
    with pytest.raises(UndecodableError):
        decode_image(bytes(data), 32)


@pytest.mark.parametrize("data", [b"", b"\0", b"<html>", b"GIF", bytes(10_000), b"%PDF-1.7\n"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    wanted = f"^{len(data)} bytes that are no image of the accepted formats: JPEG, PNG, BMP, GIF$"
    with pytest.raises(UnsupportedFormatError, match=wanted):
        decode_image(data, 32)


@pytest.mark.parametrize("format", ["TIFF", "WEBP", "JPEG2000", "ICO", "PPM", "TGA", "PDF"])
def test_other_formats_are_refused(format: str) -> None:
    data = encode(Image.fromarray(NOISE), format)
    with pytest.raises(UnsupportedFormatError):
        decode_image(data, 32)


@pytest.mark.parametrize(("format", "lossless"), LOSSLESS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("img_size", [64, 24])
def test_other_format_that_is_listed_is_decoded_as_a_png(
    format: Format, lossless: dict[str, Any], mode: str, img_size: int
) -> None:
    image = Image.fromarray(NOISE).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(NOISE[..., 0]))
    limits = ImageLimits(formats=(format,))

    pixels = decode_image(encode(image, format, **lossless), img_size, limits=limits)

    assert np.array_equal(pixels, decode_image(encode(image), img_size))
    with pytest.raises(UnsupportedFormatError, match=f"accepted formats: {format}$"):
        decode_image(encode(image), img_size, limits=limits)


@pytest.mark.parametrize(("format", "lossless"), LOSSLESS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_image_of_an_other_format_does_not_decode(
    format: Format, lossless: dict[str, Any], share: float
) -> None:
    data = encode(Image.fromarray(NOISE), format, **lossless)
    with pytest.raises(UndecodableError):
        decode_image(data[: int(share * len(data))], 32, limits=ImageLimits(formats=(format,)))


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ImageFile.ImageFile) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("data", [png_header(10, 10), bmp_header(10, 10), jpeg_of_size(10, 10)])
def test_more_pixels_than_allowed_are_refused_undecoded(data: bytes) -> None:
    with pytest.raises(TooLargeError, match="image of 10 x 10 pixels; at most 99"):
        decode_image(data, 4, limits=ImageLimits(max_pixels=99))


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize(
    "data",
    [
        png_header(8_000, 8_000),
        png_header(10_000, 10_000),  # Pillow warns
        png_header(20_000, 20_000),  # Pillow refuses
        png_header(2**31 - 1, 2**31 - 1),
        jpeg_of_size(65_500, 65_500),
        bmp_header(40_000, 40_000),
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0;",
    ],
    ids=["png-64M", "png-100M", "png-400M", "png-4E", "jpeg-4G", "bmp-1.6G", "gif-4G"],
)
def test_a_decompression_bomb_is_refused_undecoded(data: bytes, action: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(TooLargeError, match="at most 50000000"):
            decode_image(data, 32)


def test_jpeg_of_very_many_scans_is_refused_undecoded() -> None:
    """Of 50 million pixels, each takes milliseconds; a million of them are 20 MB."""
    data = encode(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    start, scans = data.rindex(b"\xff\xda"), data.count(b"\xff\xda")
    scan = data[start : start + 20]
    assert 1 < scans < 50

    assert decode_image(data[:-2] + scan * (500 - scans) + data[-2:], 8).shape == (8, 8, 3)
    with pytest.raises(TooLargeError, match="JPEG of more than 500 scans"):
        decode_image(data[:-2] + scan * (501 - scans) + data[-2:], 8)


def test_as_many_pixels_as_allowed_pass() -> None:
    data = encode(Image.new("RGB", (10, 10)))
    assert decode_image(data, 4, limits=ImageLimits(max_pixels=100)).shape == (4, 4, 3)


def test_image_is_decoded_once_there_is_room_for_its_pixels() -> None:
    room, data = Room(200), encode(Image.new("RGB", (10, 10)))
    limits = ImageLimits(room=room)
    with ThreadPoolExecutor(1) as pool:
        with room.taken(101):
            decoding = pool.submit(decode_image, data, 4, limits=limits)
            with pytest.raises(TimeoutError):
                decoding.result(timeout=0.2)
        assert decoding.result(timeout=10).shape == (4, 4, 3)


@pytest.mark.parametrize("data", [encode(Image.new("RGB", (10, 10)))[:45], b"garbage"])
def test_image_that_does_not_decode_leaves_its_room(data: bytes) -> None:
    room = Room(100)
    with pytest.raises(ImageError):
        decode_image(data, 4, limits=ImageLimits(room=room))
    with room.taken(100):
        pass


def test_normalise_on_numbers_worked_by_hand() -> None:
    images = np.array([[[[0, 51, 255]]]], np.uint8)  # 1 x H=1 x W=1 x C=3
    preprocess = Preprocess(1, mean=(0.5, 0.5, 0.25), std=(0.5, 0.25, 0.5))
    got = normalise(images, preprocess)
    assert got.shape == (1, 3, 1, 1)
    assert got.dtype == np.float32
    assert got.ravel().tolist() == pytest.approx([-1.0, -1.2, 1.5], abs=1e-6)


def test_normalise_is_the_formula_for_every_pixel_value() -> None:
    preprocess = Preprocess(16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    wanted = (image / 255.0 - preprocess.mean) / preprocess.std  # float64, H x W x C
    got = normalise(image, preprocess)
    np.testing.assert_allclose(got, wanted.transpose(2, 0, 1), atol=2e-6, rtol=0)
    assert got.flags.c_contiguous


def test_normalise_leaves_its_input_alone() -> None:
    images = NOISE.copy()
    first, second = (normalise(images, Preprocess(64)) for _ in range(2))
    assert np.array_equal(images, NOISE)
    assert np.array_equal(first, second)


def test_preprocess_image_decodes_then_normalises() -> None:
    data, preprocess = encode(Image.fromarray(NOISE)), Preprocess(8)
    wanted = normalise(decode_image(data, 8), preprocess)
    assert np.array_equal(preprocess_image(data, preprocess), wanted)
    with pytest.raises(TooLargeError):
        preprocess_image(data, preprocess, ImageLimits(max_pixels=64))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"img_size": 0}, "img_size must be at least 1, got 0"),
        ({"img_size": 8, "std": (0.5, 0.0, 0.5)}, "std > 0; got .*0.0"),
        ({"img_size": 8, "mean": (0.5, 0.5)}, "mean and std take 3 finite values"),
        ({"img_size": 8, "mean": (0.5, float("nan"), 0.5)}, "mean and std"),
        ({"img_size": 8, "std": (0.5, float("nan"), 0.5)}, "mean and std"),
        ({"img_size": 8, "std": (0.5, float("inf"), 0.5)}, "mean and std"),
        ({"img_size": 8, "crop_pct": 1.1}, r"crop_pct must be in \[0.1, 1\], got 1.1"),
        ({"img_size": 8, "crop_pct": 0.0}, "crop_pct must be .* got 0.0"),
        ({"img_size": 8, "crop_pct": float("nan")}, "crop_pct must be .* got nan"),
    ],
)
def test_a_preprocessing_that_makes_no_sense_is_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(**values)


def hard_files(shared_data: Path) -> Iterator[tuple[dict[str, str], bytes]]:
    """Rows of the manifest, with what Pillow made of the file, and the file."""
    with tarfile.open(shared_data / "hard_files.tar") as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        data = {name: file.read() for name, file in files.items() if file is not None}
    for row in csv.DictReader(io.StringIO(data["manifest.csv"].decode())):
        yield row, data[row["file"]]


def outcome(data: bytes) -> str:
    """decoded, or the name of the error; any but an ImageError fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as a server does
        try:
            assert decode_image(data, 32).shape == (32, 32, 3)
        except ImageError as error:
            return type(error).__name__
    return "decoded"


def test_difficult_files_decode_or_raise_an_image_error(shared_data: Path) -> None:
    outcomes = {row["file"]: outcome(data) for row, data in hard_files(shared_data)}
    assert len(outcomes) == 111
    assert outcomes["bomb/decompression_bomb.gif"] == "TooLargeError"
    assert outcomes["broken/truncated_jpeg.jpg"] == "UndecodableError"


def test_difficult_files_that_pillow_decodes_do_and_other_formats_do_not(shared_data: Path) -> None:
    for row, data in hard_files(shared_data):
        if row["format"] and row["format"] not in FORMATS:
            assert outcome(data) == "UnsupportedFormatError", row["file"]
        elif row["result"] == "ok" and "exif:" not in row["orientation"]:
            assert outcome(data) == "decoded", row["file"]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photograph_looks_the_same_in_every_orientation(
    shared_data: Path, orientation: int
) -> None:
    files = {row["file"]: data for row, data in hard_files(shared_data)}
    upright, turned = (
        decode_image(files[f"orientation/landscape_{n}.jpg"], 32).astype(int)
        for n in (1, orientation)
    )
    # The upright file is the brighter, by 13; upside down or mirrored it would differ by 40.
    assert np.abs(upright - turned).mean() < 20


VALID: list[bytes] = [
    encode(Image.fromarray(NOISE[:16, :16]), "JPEG", exif=Image.Exif()),
    encode(Image.fromarray(NOISE[:16, :16]), "PNG"),
    encode(Image.fromarray(NOISE[:16, :16]), "BMP"),
    encode(Image.fromarray(NOISE[:16, :16]), "GIF"),
    encode(Image.fromarray(NOISE[:16, :16]).convert("P"), "PNG", transparency=b"\0\x80"),
    encode(Image.fromarray(NOISE[:16, :16]).convert("P"), "BMP"),
]


def decodes_or_refuses(data: bytes) -> None:
    with warnings.catch_warnings(), contextlib.suppress(ImageError):
        warnings.simplefilter("ignore")
        pixels: NDArray[np.uint8] = decode_image(data, 8, limits=ImageLimits(max_pixels=10_000))
        assert pixels.shape == (8, 8, 3)


@given(
    start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM"]),
    data=st.binary(max_size=400),
)
def test_arbitrary_bytes_raise_nothing_but_image_errors(start: bytes, data: bytes) -> None:
    decodes_or_refuses(start + data)


@given(
    valid=st.sampled_from(VALID),
    changes=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 900),
)
def test_damaged_images_raise_nothing_but_image_errors(
    valid: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(valid)
    for position, value in changes:
        data[position % len(data)] = value
    decodes_or_refuses(bytes(data))
    decodes_or_refuses(bytes(data[:cut]))


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_image_whose_exif_is_broken_is_upright(exif: bytes) -> None:
    """Of a JPEG that has its density from JFIF, so that nobody looked at the block before."""
    image = Image.fromarray(NOISE[:32, :32])
    plain = encode(image, "JPEG", dpi=(72, 72))
    broken = plain[:20] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + plain[20:]

    assert (decode_image(broken, 16) == decode_image(plain, 16)).all()


def test_pillow_takes_as_many_pixels_as_may_be_asked_for() -> None:
    assert Image.MAX_IMAGE_PIXELS
    assert 2 * Image.MAX_IMAGE_PIXELS == PILLOWS_PIXELS
