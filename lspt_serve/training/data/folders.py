"""Class folders: `DIR/{train,val,test}/LABEL/*`, or `DIR/LABEL/*`, which is split by the seed.

val may be called validation or valid.
"""

from pathlib import Path

from lspt_serve.errors import DataError
from lspt_serve.training.data.source import (
    SPLIT_OF,
    SPLITS,
    Sample,
    Source,
    file_sample,
    split_by_seed,
)

__all__ = ["read_folders"]

SPLIT_LIKE = {*SPLIT_OF, "training", "testing"}  # as labels, two of them are no chance


def read_folders(folder: Path, seed: int) -> Source:
    """Raises DataError where train stands without val or test, or splits without train."""
    if not (folder / "train").is_dir():
        labels = _labels(folder)
        splits = [label for label in labels if label.lower() in SPLIT_LIKE]
        if len(splits) > 1:
            raise DataError(
                f"{folder} has {', '.join(splits)} but no train; wanted train, val and test, or "
                "labels alone"
            )
        return Source(labels, split_by_seed(str(folder), _samples(folder), labels, seed))
    there = [name for name in reversed(SPLIT_OF) if (folder / name).is_dir()]
    places = {SPLIT_OF[name]: folder / name for name in there}  # of two for val the one called so
    for name in SPLITS:
        if name not in places:
            raise DataError(
                f"{folder} has train but no {name}; wanted train, val and test, or labels alone"
            )
    return Source(_labels(places["train"]), {name: _samples(places[name]) for name in SPLITS})


def _labels(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _samples(folder: Path) -> list[Sample]:
    labels = _labels(folder)
    return [file_sample(path, label) for label in labels for path in _files(folder / label)]


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
