"""The field's own layouts: VTAB-1K's lists of "path label" lines and FGVC's JSON objects."""

import json
from pathlib import Path

from lspt_serve.errors import DataError
from lspt_serve.training.data.source import (
    SPLITS,
    Sample,
    Source,
    file_sample,
    in_order,
    read_text,
)

__all__ = ["FGVC_FILES", "VTAB_FILES", "read_fgvc", "read_vtab"]

VTAB_FILES = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
FGVC_FILES = {name: f"{name}.json" for name in SPLITS}
IMAGE_FOLDERS = (".", "images", "Images")  # Cars, Flowers; CUB-200, NABirds; Dogs


def read_vtab(folder: Path) -> Source:
    """TASK/{train800,val200,test}.txt; paths are relative to TASK.

    train800val200.txt is not read: `Dataset.merged` is the same images. Its 1,000 images do not
    have all labels of every task (Sun397 has 397), so that those of all splits count.
    """
    splits = {name: _read_lines(folder, file) for name, file in VTAB_FILES.items()}
    labels = in_order(sample.label for samples in splits.values() for sample in samples)
    return Source(labels, splits, train_may_lack=True)


def read_fgvc(folder: Path) -> Source:
    """DIR/{train,val,test}.json: {"path": label}; paths are relative to one of IMAGE_FOLDERS."""
    splits = {name: _read_object(folder, file) for name, file in FGVC_FILES.items()}
    return Source(in_order(sample.label for sample in splits["train"]), splits)


def _read_lines(folder: Path, file: str) -> list[Sample]:
    samples = []
    for number, line in enumerate(read_text(folder / file).split("\n"), start=1):
        if not line.strip():
            continue
        words = line.rsplit(maxsplit=1)
        if len(words) != 2:
            raise DataError(f'{folder / file}: line {number}: {line!r}; wanted "path label"')
        samples.append(file_sample(folder / words[0].strip(), words[1]))
    return samples


def _read_object(folder: Path, file: str) -> list[Sample]:
    text = read_text(folder / file)
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder / file}: not JSON: {error}") from error
    if not isinstance(labels, dict):
        raise DataError(f'{folder / file}: {type(labels).__name__}; wanted {{"path": label}}')
    for name, label in labels.items():
        if not isinstance(label, int | str) or isinstance(label, bool) or label == "":
            raise DataError(f"{folder / file}: {name}: label {label!r}; wanted a name or a number")
    return [file_sample(_locate(folder, name), str(label)) for name, label in labels.items()]


def _locate(folder: Path, name: str) -> Path:
    places = [folder / images / name for images in IMAGE_FOLDERS]
    try:
        return next((path for path in places if path.is_file()), places[0])
    except OSError:  # a name that is too long, a folder that may not be read
        return places[0]
