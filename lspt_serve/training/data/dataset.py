"""A task's decoded images, checked."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lspt_serve.errors import DataError, name_some, printable
from lspt_serve.preprocess import Preprocess
from lspt_serve.training.data.cache import decode_cached
from lspt_serve.training.data.decode import (
    Decoded,
    OnBadImage,
    OnImage,
    decode_source,
    in_memory,
)
from lspt_serve.training.data.layout import find_source
from lspt_serve.training.data.source import SPLITS, Source, check_source

__all__ = ["Dataset", "Split", "load_dataset"]


@dataclass(frozen=True)
class Split:
    """Decoded images and their labels' indices; S is the `resized_side` of the preprocessing."""

    images: NDArray[np.uint8]  # N x S x S x 3; a np.memmap stays on disk
    targets: NDArray[np.int64]  # N
    names: list[str] | None = None  # N, for people

    def __len__(self) -> int:
        return len(self.targets)

    def names_of(self, rows: Iterable[int]) -> list[str]:
        """What to call images in a message; their numbers where they have no names."""
        return [self.names[row] if self.names else f"row {row}" for row in rows]


@dataclass(frozen=True)
class Dataset:
    """A task's images; `notes` are what a person should know of them."""

    labels: list[str]
    train: Split
    val: Split
    test: Split
    notes: list[str]
    crop_pct: float = 1.0  # that the images were decoded for

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "val": len(self.val), "test": len(self.test)}

    def merged(self) -> "Dataset":
        """With val's images in train too, in memory: for training anew once all is chosen on val.

        Val stays as it is but is held out no longer: its accuracy says nothing from here on.
        """
        both = (self.train, self.val)
        images = np.concatenate([split.images for split in both])
        targets = np.concatenate([split.targets for split in both])
        known = self.train.names is not None and self.val.names is not None
        names = [name for split in both for name in split.names or []] if known else None
        return replace(self, train=Split(images, targets, names))


def load_dataset(
    path: Path,
    img_size: int,
    *,
    crop_pct: float = 1.0,
    seed: int = 0,
    on_bad_image: OnBadImage = "refuse",
    cache: Path | None = None,
    on_image: OnImage = lambda done, total: None,
) -> Dataset:
    """Read and decode a task's images, whatever their layout (see layout.py).

    Args:
        img_size, crop_pct: as in Preprocess. Below 1, images keep the margin that the middle is
            cropped from (ours, not FGVC's: a square of `resized_side`), for training to crop from.
        seed: splits what comes unsplit, 70 / 15 / 15 % of each label.
        on_bad_image: refuse the data when an image cannot be read, or skip such images.
        cache: keep the decoded images in this folder, memory-mapped, and use them next time.
        on_image: called with how many images are decoded, and of how many.

    Raises:
        DataError: nothing there, fewer than two labels, an empty split, labels in val or test that
            train lacks, images that are missing or unreadable when they are refused.
        OutputError: the cache cannot be written.
    """
    try:
        preprocess = Preprocess(img_size, crop_pct=crop_pct)
    except ValueError as error:
        raise DataError(str(error)) from error
    source = find_source(path, seed=seed)
    check_source(path, source)
    if cache is None:
        decoded = decode_source(
            source, preprocess, allocate=in_memory, on_bad_image=on_bad_image, on_image=on_image
        )
        notes: list[str] = []
    else:
        decoded, notes = decode_cached(
            source,
            preprocess,
            cache=cache,
            name=path.resolve().stem,
            on_bad_image=on_bad_image,
            on_image=on_image,
        )
    splits = _to_splits(source, decoded)
    notes += [*_notes_of(decoded), *_check_splits(path, source, splits)]
    return Dataset(source.labels, **splits, notes=notes, crop_pct=crop_pct)


def _to_splits(source: Source, decoded: Decoded) -> dict[str, Split]:
    index = {label: number for number, label in enumerate(source.labels)}
    splits = {}
    for name, samples in source.splits.items():
        kept = decoded.kept[name]
        targets = np.array([index[samples[i].label] for i in kept], np.int64)
        names = [printable(samples[i].name) for i in kept]
        splits[name] = Split(decoded.images[name][: len(kept)], targets, names)
    return splits


def _notes_of(decoded: Decoded) -> list[str]:
    notes = []
    if decoded.bad:
        notes.append(f"skipped {len(decoded.bad)} unreadable image(s): {name_some(decoded.bad)}")
    if decoded.twins:
        twins = name_some(decoded.twins)
        notes.append(f"{len(decoded.twins)} image file(s) stand in two splits: {twins}")
    return notes


def _check_splits(path: Path, source: Source, splits: dict[str, Split]) -> list[str]:
    """Notes on the labels that a split lacks; raises DataError for those that train may not."""
    notes = []
    for name in SPLITS:
        if not len(splits[name]):
            raise DataError(f"{path}: the {name} split is empty; put images in it")
        there = set(splits[name].targets.tolist())
        lacking = [label for index, label in enumerate(source.labels) if index not in there]
        if lacking and name == "train" and not source.train_may_lack:
            raise DataError(f"{path}: train has no image of: {name_some(lacking)}")
        if lacking:
            notes.append(f"{name} has no image of {len(lacking)} label(s): {name_some(lacking)}")
    return notes
