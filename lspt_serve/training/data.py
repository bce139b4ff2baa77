"""Images in class folders, decoded once into memory.

Two layouts: `DIR/{train,val,test}/<label>/*` and `DIR/<label>/*`, which is split by the seed.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lspt_serve.errors import DataError, ImageError, name_some
from lspt_serve.preprocess import decode_image

__all__ = ["SPLITS", "Dataset", "OnBadImage", "Split", "load_dataset"]

SPLITS = ("train", "val", "test")
VAL_SHARE, TEST_SHARE = 0.15, 0.15  # of a single folder, per label
OnBadImage = Literal["refuse", "skip"]
Sample = tuple[Path, int]


@dataclass(frozen=True)
class Split:
    """Decoded images and their labels' indices."""

    images: NDArray[np.uint8]  # N x H x W x 3
    targets: NDArray[np.int64]  # N

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Dataset:
    """A task's images; `notes` are what a person should know of them."""

    labels: list[str]
    train: Split
    val: Split
    test: Split
    notes: list[str]

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "val": len(self.val), "test": len(self.test)}


def load_dataset(
    folder: Path,
    img_size: int,
    *,
    seed: int = 0,
    on_bad_image: OnBadImage = "refuse",
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Read and decode a task's images.

    Args:
        img_size: side that every image is resized to, in pixels.
        seed: splits a single folder, 70 / 15 / 15 % of each label.
        on_bad_image: refuse the data when an image cannot be read, or skip such images.
        on_image: called with how many images are decoded, and of how many.

    Raises:
        DataError: no such folder, fewer than two labels, an empty split, labels in val or test that
            train lacks, unreadable images when they are refused.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; wanted DIR/train/LABEL/* or DIR/LABEL/*")
    labels, samples = _find_splits(folder) if (folder / "train").is_dir() else _split(folder, seed)
    if len(labels) < 2:
        raise DataError(
            f"{folder}: {len(labels)} label(s) ({name_some(labels)}); wanted at least 2"
        )
    splits, notes = _decode(samples, img_size, on_bad_image, on_image)
    for name, split in splits.items():
        if not len(split):
            raise DataError(f"{folder}: the {name} split is empty; put images in it")
        if lacking := [x for i, x in enumerate(labels) if i not in split.targets]:
            notes.append(f"{name} has no image of {len(lacking)} label(s): {name_some(lacking)}")
    if lacking := [x for i, x in enumerate(labels) if i not in splits["train"].targets]:
        raise DataError(f"{folder}: train has no image of: {name_some(lacking)}")
    return Dataset(labels, **splits, notes=notes)


def _find_splits(folder: Path) -> tuple[list[str], dict[str, list[Sample]]]:
    for name in SPLITS:
        if not (folder / name).is_dir():
            raise DataError(
                f"{folder} has train but no {name}; wanted train, val and test, or labels alone"
            )
    labels = _labels(folder / "train")
    for name in SPLITS[1:]:
        if extra := sorted(set(_labels(folder / name)) - set(labels)):
            raise DataError(f"{folder / name} has labels that train lacks: {name_some(extra)}")
    return labels, {name: list(_samples(folder / name, labels)) for name in SPLITS}


def _split(folder: Path, seed: int) -> tuple[list[str], dict[str, list[Sample]]]:
    labels = _labels(folder)
    rng = np.random.default_rng(seed)
    samples: dict[str, list[Sample]] = {name: [] for name in SPLITS}
    for label in labels:
        paths = [(path, labels.index(label)) for path in _files(folder / label)]
        if len(paths) < len(SPLITS):
            raise DataError(f"{folder / label}: {len(paths)} image(s); a split needs at least 3")
        order = rng.permutation(len(paths))
        num_val, num_test = (max(1, round(s * len(paths))) for s in (VAL_SHARE, TEST_SHARE))
        bounds = {"val": (0, num_val), "test": (num_val, num_val + num_test)}
        bounds["train"] = (num_val + num_test, len(paths))
        for name, (start, stop) in bounds.items():
            samples[name] += [paths[i] for i in sorted(order[start:stop])]
    return labels, samples


def _labels(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def _samples(folder: Path, labels: list[str]) -> Iterator[Sample]:
    for index, label in enumerate(labels):
        for path in _files(folder / label):
            yield path, index


def _decode(
    samples: dict[str, list[Sample]],
    img_size: int,
    on_bad_image: OnBadImage,
    on_image: Callable[[int, int], None],
) -> tuple[dict[str, Split], list[str]]:
    total, done = sum(map(len, samples.values())), 0
    bad: list[str] = []
    splits = {}
    with ThreadPoolExecutor() as pool:
        for name, rows in samples.items():
            images = np.empty((len(rows), img_size, img_size, 3), np.uint8)
            kept: list[int] = []
            decoded = pool.map(lambda row: _decode_one(row[0], img_size), rows)
            for index, (row, image) in enumerate(zip(rows, decoded, strict=True)):
                if isinstance(image, str):
                    bad.append(f"{row[0]} ({image})")
                else:
                    images[index] = image
                    kept.append(index)
                on_image(done := done + 1, total)
            targets = np.array([target for _, target in rows], np.int64)
            splits[name] = Split(images[kept], targets[kept])
    if bad and on_bad_image == "refuse":
        raise DataError(
            f"{len(bad)} of {total} images cannot be read: {name_some(bad)}; "
            "mend them, or leave them out with --on-bad-image skip"
        )
    return splits, [f"skipped {len(bad)} unreadable image(s): {name_some(bad)}"] if bad else []


def _decode_one(path: Path, img_size: int) -> NDArray[np.uint8] | str:
    """The image, or why there is none."""
    try:
        return decode_image(path.read_bytes(), img_size)
    except (ImageError, OSError) as error:
        return str(error)
