"""Hugging Face `datasets`, as `save_to_disk` writes them; needs the extra `datasets`."""

from pathlib import Path
from typing import Any

from lspt_serve.errors import DataError, first_line, name_some
from lspt_serve.training.data.source import SPLIT_OF, SPLITS, Sample, Source, split_by_seed

__all__ = ["HUB_FILES", "read_hub"]

HUB_FILES = ("dataset_dict.json", "state.json")  # a dict of splits, or a single one


def read_hub(folder: Path, seed: int) -> Source:
    """A dict of splits as it is; a single split is split by the seed.

    The first column of images and the first of class labels are taken.

    Raises:
        DataError: the extra is not installed, it cannot be loaded, a column or split is missing.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{folder}: saved by Hugging Face datasets; install it: pip install "
            "'lspt-serve[datasets]'"
        ) from None
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # what it raises for a damaged folder is not documented
        raise DataError(f"{folder}: datasets cannot load it: {first_line(error)}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        labels, samples = _read_split(folder, loaded)
        return Source(labels, split_by_seed(str(folder), samples, labels, seed))
    splits = {SPLIT_OF.get(str(name), str(name)): part for name, part in loaded.items()}
    if lacking := [name for name in SPLITS if name not in splits]:
        raise DataError(
            f"{folder}: splits {name_some(loaded)}; {name_some(lacking)} is missing: wanted "
            "train, val (or validation) and test"
        )
    read = {name: _read_split(folder / name, splits[name]) for name in SPLITS}
    return Source(read["train"][0], {name: samples for name, (_, samples) in read.items()})


def _read_split(where: Path, split: Any) -> tuple[list[str], list[Sample]]:
    """Labels that occur, in the order of their numbers, and the samples."""
    import datasets

    image, label = (
        next((name for name, f in split.features.items() if isinstance(f, kind)), None)
        for kind in (datasets.Image, datasets.ClassLabel)
    )
    if image is None or label is None:
        raise DataError(
            f"{where}: columns {name_some(split.features)}; wanted an Image and a ClassLabel"
        )
    names: list[str] = split.features[label].names
    numbers: list[int] = list(split[label])
    if unlabelled := [
        index for index, number in enumerate(numbers) if number not in range(len(names))
    ]:
        raise DataError(f"{where}: rows without a label: {name_some(unlabelled)}")
    stored = split.cast_column(image, datasets.Image(decode=False))
    samples = [
        _to_sample(f"{where} row {index}", stored, image, index, names[number])
        for index, number in enumerate(numbers)
    ]
    return [names[number] for number in sorted(set(numbers))], samples


def _to_sample(name: str, split: Any, column: str, index: int, label: str) -> Sample:
    def read() -> bytes:
        image = split[index][column]
        if image is None:
            raise FileNotFoundError("no image in the row")
        data: bytes | None = image["bytes"]
        return data if data is not None else Path(image["path"]).read_bytes()

    return Sample(name, label, read, lambda: f"{split._fingerprint} {index}")
