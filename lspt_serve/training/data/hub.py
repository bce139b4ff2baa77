"""Hugging Face `datasets`, as `save_to_disk` writes them; needs the extra `datasets`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lspt_serve.errors import DataError, first_line, name_some
from lspt_serve.training.data.source import SPLIT_OF, SPLITS, Sample, Source, split_by_seed

__all__ = ["HUB_FILES", "read_hub"]

HUB_FILES = ("dataset_dict.json", "state.json")  # a dict of splits, or a single one


def read_hub(folder: Path, seed: int) -> Source:
    """A dict of splits, or a single one; val and test that are not there are split off by the seed.

    The first column of images is taken, and the first of class labels or else the integers `label`.

    Raises:
        DataError: the extra is not installed, it cannot be loaded, there is no train or no column
            of images or labels, or a split of another name where val or test is missing.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{folder}: saved by Hugging Face datasets; install it: pip install '.[datasets]' in a "
            "clone"
        ) from None
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # what it raises for a damaged folder is not documented
        raise DataError(f"{folder}: datasets cannot load it: {first_line(error)}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        labels, samples = _read_split(folder, loaded)
        return Source(labels, split_by_seed(str(folder), samples, labels, seed))
    parts = {SPLIT_OF.get(str(name), str(name)): part for name, part in loaded.items()}
    lacking = [name for name in SPLITS if name not in parts]
    if "train" in lacking or (lacking and not parts.keys() <= set(SPLITS)):
        raise DataError(
            f"{folder}: splits {name_some(loaded)}; {name_some(lacking)} is missing: wanted "
            "train, val (or validation) and test; rename them"
        )
    read = {name: _read_split(folder / name, parts[name]) for name in SPLITS if name in parts}
    labels = read["train"][0]
    splits = {name: samples for name, (_, samples) in read.items()}
    if lacking:
        splits |= split_by_seed(str(folder), splits["train"], labels, seed, held_out=lacking)
    return Source(labels, splits)


def _read_split(where: Path, split: Any) -> tuple[list[str], list[Sample]]:
    """Labels that occur, in the order of their numbers, and the samples."""
    import datasets

    image, label = (
        next((name for name, f in split.features.items() if isinstance(f, kind)), None)
        for kind in (datasets.Image, datasets.ClassLabel)
    )
    other = split.features.get("label")
    if label is None and isinstance(other, datasets.Value) and "int" in other.dtype:
        label = "label"
    if image is None or label is None:
        raise DataError(
            f"{where}: columns {name_some(split.features)}; wanted an Image and a ClassLabel, or "
            "integers in a column called label"
        )
    numbers: list[Any] = list(split[label])
    names = _name_numbers(split.features[label], numbers)
    if unlabelled := [index for index, number in enumerate(numbers) if number not in names]:
        raise DataError(f"{where}: rows without a label: {name_some(unlabelled)}")
    stored = split.cast_column(image, datasets.Image(decode=False))
    samples = [
        _to_sample(f"{where} row {index}", stored, image, index, names[number])
        for index, number in enumerate(numbers)
    ]
    return [names[number] for number in sorted(set(numbers))], samples


def _name_numbers(kind: Any, numbers: Iterable[int | None]) -> dict[int, str]:
    """Labels by their numbers; numbers that have no names are called by themselves."""
    if hasattr(kind, "names"):
        return dict(enumerate(kind.names))
    return {number: str(number) for number in numbers if number is not None and number >= 0}


def _to_sample(name: str, split: Any, column: str, index: int, label: str) -> Sample:
    def read() -> bytes:
        image = split[index][column]
        if image is None:
            raise FileNotFoundError("no image in the row")
        data: bytes | None = image["bytes"]
        return data if data is not None else Path(image["path"]).read_bytes()

    return Sample(name, label, read, lambda: f"{split._fingerprint} {index}")
