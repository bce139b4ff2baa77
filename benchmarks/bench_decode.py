"""Milliseconds from the bytes of a JPEG to the array that a backbone sees.

    python benchmarks/bench_decode.py

Ours beside Pillow used plainly (open, convert, resize, normalise) and torchvision's usual
transforms on a PIL image, in turn, on pictures of noise with a spectrum of 1/f, as photographs have
it, quality 90. Pixels of the arms are compared first: ours decodes large JPEGs at a fraction of
their size, so that they differ a little.
"""

import io
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from common import (
    Target,
    check_equal,
    clean_up_when_stopped,
    create_parser,
    describe_machine,
    paired_ratio,
    parse,
    progress,
    spread,
    take_turns,
)
from numpy.typing import NDArray
from PIL import Image
from serving_page import finish
from torchvision import transforms  # type: ignore[import-untyped]

from lspt_serve.preprocess import NORMALISATIONS, Preprocess, preprocess_image

SIZES = {0.3: (640, 480), 1.0: (1152, 864), 4.0: (2304, 1728), 12.0: (4000, 3000)}  # megapixels
IMG_SIZE, QUALITY = 224, 90
MEAN, STD = NORMALISATIONS["imagenet"]
MEAN_ARRAY, STD_ARRAY = np.asarray(NORMALISATIONS["imagenet"], np.float32)
MAX_ROUNDS, BUDGET_S, MIN_TURN_S = 51, 30.0, 0.02
MAX_MEAN_DIFFERENCE = 1.0  # of 255, over all pixels
MAX_ROUNDING = 1e-3  # of 255, at any pixel: Pillow and torchvision do the same in another order
SHADES = ((42, 30, 28), (128, 120, 112))  # of the colours: standard deviations and means
OURS, PILLOW, TORCHVISION = "ours", "Pillow", "torchvision"
SPEED, PIXELS = "decoding speed", "decoded pixels"
Array = NDArray[np.float32]
Decode = Callable[[bytes], Array]


def draw_photo(width: int, height: int, seed: int = 0) -> bytes:
    """A JPEG of coloured 1/f noise, whose colours mostly go together, as in a photograph."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1 / max(width, height)
    layers = []
    for _ in range(4):  # one for all colours, then one for each
        noise = np.fft.rfft2(rng.standard_normal((height, width), np.float32)) / frequency
        layer = np.fft.irfft2(noise, s=(height, width))
        layers.append(layer / layer.std())
    colours = np.stack([layers[0] + 0.3 * layer for layer in layers[1:]], axis=-1)
    deviations, means = SHADES
    pixels = np.clip(colours * deviations + means, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def ours(data: bytes) -> Array:
    return preprocess_image(data, Preprocess(IMG_SIZE, MEAN, STD))


def plain_pillow(data: bytes) -> Array:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.resize((IMG_SIZE, IMG_SIZE), Image.Resampling.BICUBIC)
    scaled = np.asarray(image, np.float32) / 255
    normalised = (scaled - MEAN_ARRAY) / STD_ARRAY
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


TRANSFORM = transforms.Compose(
    [
        transforms.Resize((IMG_SIZE, IMG_SIZE), transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


def plain_torchvision(data: bytes) -> Array:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return TRANSFORM(image).numpy()  # type: ignore[no-any-return]


ARMS: dict[str, Decode] = {
    OURS: ours,
    PILLOW: plain_pillow,
    TORCHVISION: plain_torchvision,
}


def measure(megapixels: float, args: Namespace) -> dict[str, Any]:
    width, height = SIZES[megapixels]
    progress(f"{width} x {height}")
    data = draw_photo(width, height)
    differences = compare({name: decode(data) for name, decode in ARMS.items()})
    seconds = take_turns(
        {name: to_arm(decode, data) for name, decode in ARMS.items()},
        max_rounds=args.rounds,
        budget_s=args.budget_s,
        min_turn_s=MIN_TURN_S,
    )
    return {
        "megapixels": megapixels,
        "width": width,
        "height": height,
        "num_bytes": len(data),
        "differences": differences,
        "ms": {name: spread([1000 * each for each in taken]) for name, taken in seconds.items()},
        "speedup": {name: paired_ratio(taken, seconds[OURS]) for name, taken in seconds.items()},
        "seconds": seconds,
    }


def to_arm(decode: Decode, data: bytes) -> Callable[[int], Array]:
    return lambda number: decode(data)


def compare(tensors: Mapping[str, Array]) -> dict[str, float]:
    """Differences in steps of 255, as pixels have them; too large ones end the script."""
    pixels = {name: tensor * STD_ARRAY[:, None, None] * 255 for name, tensor in tensors.items()}
    to_ours = np.abs(pixels[OURS] - pixels[PILLOW])
    to_torchvision = np.abs(pixels[TORCHVISION] - pixels[PILLOW])
    return {
        "mean": check_equal(OURS, float(to_ours.mean()), MAX_MEAN_DIFFERENCE),
        "most": float(to_ours.max()),
        "torchvision": check_equal(TORCHVISION, float(to_torchvision.max()), MAX_ROUNDING),
    }


def to_targets(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    gains = {
        row["megapixels"]: min(row["speedup"][PILLOW], row["speedup"][TORCHVISION]) for row in rows
    }
    least = min(gains, key=gains.__getitem__)
    farthest = max(row["differences"]["mean"] for row in rows)
    note = f"ours over the faster of the others; the least is that of {least:g} megapixels"
    return [
        Target(SPEED, "at least", 1.0, gains[least], note),
        Target(PIXELS, "at most", MAX_MEAN_DIFFERENCE, farthest, "mean difference from Pillow's"),
    ]


def main(words: Sequence[str] | None = None) -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--size", type=float, action="append", choices=[*SIZES], help="megapixels")
    args = parse(parser, words)
    sizes = args.size or ([*SIZES][:2] if args.quick else [*SIZES])
    args.rounds, args.budget_s = (5, 1.0) if args.quick else (MAX_ROUNDS, BUDGET_S)
    machine = describe_machine()
    rows = [measure(megapixels, args) for megapixels in sizes]
    about = {"img_size": IMG_SIZE, "quality": QUALITY}
    finish("decode", {"machine": machine, **about, "rows": rows}, to_targets(rows), args)


if __name__ == "__main__":
    clean_up_when_stopped()
    main()
