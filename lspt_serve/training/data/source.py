"""What every layout gives: samples with a label each, in three splits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lspt_serve.errors import DataError, name_some

__all__ = [
    "SPLITS",
    "SPLIT_OF",
    "Sample",
    "Source",
    "check_source",
    "file_sample",
    "in_order",
    "is_number",
    "read_text",
    "split_by_seed",
]

SPLITS = ("train", "val", "test")
SPLIT_OF = {name: name for name in SPLITS} | {"validation": "val", "valid": "val"}  # by its names
MAX_DIGITS = 100  # of a label that is a number
SHARE = 0.15  # of what comes unsplit that is held out for val, and for test, per label


@dataclass(frozen=True)
class Sample:
    """An image that is read only when it is needed.

    `read` raises OSError where there is none; `stamp` is another text when its bytes have changed.
    """

    name: str  # for people
    label: str
    read: Callable[[], bytes]
    stamp: Callable[[], str]


@dataclass(frozen=True)
class Source:
    """A task's samples by split; `labels` are in the order of the head's rows.

    They are those of train, unless `train_may_lack` some that val or test have.
    """

    labels: list[str]
    splits: dict[str, list[Sample]]
    train_may_lack: bool = False


def file_sample(path: Path, label: str) -> Sample:
    """A file on disk."""

    def stamp() -> str:
        try:
            stat = path.stat()
        except (OSError, ValueError):  # none there, or a name that no file can have
            return "missing"
        return f"{stat.st_size} {stat.st_mtime_ns}"

    return Sample(str(path), label, path.read_bytes, stamp)


def is_number(label: str) -> bool:
    """Of decimal digits, and not of thousands, which int() does not take."""
    return label.isdecimal() and len(label) <= MAX_DIGITS


def in_order(labels: Iterable[str]) -> list[str]:
    """Different labels: as numbers if all are, else by the alphabet."""
    different = set(labels)
    if all(map(is_number, different)):
        return sorted(different, key=lambda label: (int(label), label))
    return sorted(different)


def split_by_seed(
    where: str,
    samples: list[Sample],
    labels: list[str],
    seed: int,
    *,
    held_out: Sequence[str] = ("val", "test"),
) -> dict[str, list[Sample]]:
    """15 % of each label to each split that is held out, the rest to train.

    Raises DataError for a label with fewer images than there are splits.
    """
    rng = np.random.default_rng(seed)
    splits: dict[str, list[Sample]] = {name: [] for name in ("train", *held_out)}
    by_label: dict[str, list[Sample]] = {label: [] for label in labels}
    for sample in samples:
        by_label[sample.label].append(sample)
    for label, own in by_label.items():
        if len(own) < len(splits):
            raise DataError(
                f"{where}: label {label}: {len(own)} image(s); a split needs at least {len(splits)}"
            )
        order = rng.permutation(len(own))
        count = max(1, round(SHARE * len(own)))
        bounds = [count * number for number in range(1, len(splits))]
        for name, part in zip((*held_out, "train"), np.split(order, bounds), strict=True):
            splits[name] += [own[i] for i in sorted(part)]
    return splits


def check_source(where: Path, source: Source) -> None:
    """Raises DataError for labels that are too few, no text or not in train, and an empty split."""
    labels = source.labels
    for label in labels:
        try:
            label.encode()
        except UnicodeEncodeError as error:  # a folder's name, say
            raise DataError(f"{where}: label {label!a} is no UTF-8; rename it") from error
    if len(labels) < 2:
        raise DataError(
            f"{where}: train has {len(labels)} label(s) ({name_some(labels)}); wanted at least 2"
        )
    for name in SPLITS:
        if not source.splits[name]:
            raise DataError(f"{where}: the {name} split is empty; put images in it")
        extra = {sample.label for sample in source.splits[name]} - set(labels)
        if extra:
            raise DataError(
                f"{where}: {name} has labels that train lacks: {name_some(in_order(extra))}"
            )


def read_text(path: Path) -> str:
    """UTF-8; raises DataError if it cannot be read as such."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
