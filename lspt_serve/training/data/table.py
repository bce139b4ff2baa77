"""A table with a row for each image, in a .csv file or inside a .tar.

Columns `file` or `path`; `label` or `class`; optionally `split`. Others are ignored. Where names in
`class` stand beside numbers in `label`, the names are the labels and the numbers their order.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lspt_serve.errors import DataError, name_some
from lspt_serve.training.data.source import (
    SPLIT_OF,
    SPLITS,
    Sample,
    Source,
    file_sample,
    in_order,
    is_number,
    read_text,
    split_by_seed,
)

__all__ = ["read_csv", "read_table"]


@dataclass(frozen=True)
class _Columns:
    file: str
    label: str
    number: str | None  # beside names
    split: str | None


def read_csv(path: Path, seed: int) -> Source:
    """A .csv file; the images' paths are relative to its folder."""
    return read_table(
        str(path),
        read_text(path),
        lambda name, label: file_sample(path.parent / name, label),
        seed=seed,
    )


def read_table(
    where: str,
    text: str,
    to_sample: Callable[[str, str], Sample],
    *,
    seed: int,
    names: Mapping[str, str] | None = None,
) -> Source:
    """Rows to samples.

    Args:
        where: the table's name for messages.
        to_sample: makes a sample of a file's name and its label.
        seed: splits a table without a column `split`.
        names: number -> name, for a table that has the numbers alone.

    Raises:
        DataError: no such columns, an empty cell, a split of another name, a name that stands
            beside two numbers or a number beside two names.
    """
    rows, columns = _read_rows(where, text)
    order = _numbered(where, rows, columns)
    names = names or {}
    splits: dict[str, list[Sample]] = {name: [] for name in SPLITS}
    for row in rows:
        label = row[columns.label]
        split = row[columns.split] if columns.split else SPLITS[0]
        sample = to_sample(row[columns.file], label if order else names.get(label, label))
        splits[SPLIT_OF[split]].append(sample)
    if order is None:
        numbers = in_order(row[columns.label] for row in rows)
        order = list(dict.fromkeys(names.get(number, number) for number in numbers))
    if columns.split is None:
        return Source(order, split_by_seed(where, splits["train"], order, seed))
    in_train = {sample.label for sample in splits["train"]}
    return Source([label for label in order if label in in_train], splits)


def _read_rows(where: str, text: str) -> tuple[list[dict[str, str]], _Columns]:
    """The rows, with a value in every column that is used."""
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    try:
        numbered = [(reader.line_num, row) for row in reader]  # the line that a row ends in
    except csv.Error as error:
        raise DataError(f"{where}: line {reader.line_num}: not CSV: {error}") from error
    rows = [row for _, row in numbered]
    columns = _find_columns(where, list(reader.fieldnames or []), rows)
    used = [column for column in (columns.file, columns.label, columns.split) if column]
    for line, row in numbered:
        if empty := [column for column in used if not row[column]]:
            raise DataError(f"{where}: line {line}: nothing in column {name_some(empty)}")
        if columns.split and row[columns.split] not in SPLIT_OF:
            raise DataError(
                f"{where}: line {line}: split {row[columns.split]!r}; wanted train, val or test"
            )
    return rows, columns


def _find_columns(where: str, header: list[str], rows: list[dict[str, str]]) -> _Columns:
    file = next((name for name in ("file", "path") if name in header), None)
    label = next((name for name in ("label", "class") if name in header), None)
    if file is None or label is None:
        raise DataError(
            f"{where}: columns {name_some(header) or 'none'}; wanted file or path, label or class, "
            "and optionally split"
        )
    split = "split" if "split" in header else None
    if "class" in header and label == "label" and all(is_number(row["label"]) for row in rows):
        return _Columns(file, "class", "label", split)
    return _Columns(file, label, None, split)


def _numbered(where: str, rows: list[dict[str, str]], columns: _Columns) -> list[str] | None:
    """The names in the order of the numbers beside them; None if there are no numbers."""
    if columns.number is None:
        return None
    pairs = sorted({(int(row[columns.number]), row[columns.label]) for row in rows})
    for side in (0, 1):
        counts = Counter(pair[side] for pair in pairs)
        if twice := [value for value, count in counts.items() if count > 1]:
            what = ("label", "class")[side]
            raise DataError(
                f"{where}: {what} {name_some(twice)} stands beside more than one "
                f"{('class', 'label')[side]}"
            )
    return [name for _, name in pairs]
