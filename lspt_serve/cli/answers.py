"""How answers are written, image by image: files of four kinds, JSON and a table on stdout."""

import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lspt_serve.errors import OptionError, printable
from lspt_serve.schemas import Item

__all__ = ["Write", "check_suffix", "print_list", "print_tables", "writing"]

Write = Callable[[Sequence[Item]], None]
COLUMNS = {  # of flat files, a row for each label of each answer, or one for an answer of none
    "file": "string",
    "task": "string",
    "version": "int64",
    "rank": "int64",  # 1 is the best
    "label": "string",
    "score": "float64",
    "index": "int64",
    "error": "string",
    "message": "string",
}
PARQUET_ROWS = 10_000  # that are in memory
TABLE_ROWS = 100  # of a table; then the next begins


def check_suffix(out: Path) -> None:
    """Raises OptionError for a file of no kind that is written; loads what writes it."""
    if out.suffix not in FILES:
        kind = f"a {out.suffix} file" if out.suffix else "without a suffix"
        raise OptionError(f"--out {out}: {kind}; wanted {', '.join(FILES)}")
    if out.suffix == ".parquet":
        import pyarrow.parquet  # noqa: F401  # before any work is done


def writing(path: Path, suffix: str) -> AbstractContextManager[Write]:
    """Write a file of the kind that the suffix names; it is whole at the end, even at an error."""
    return FILES[suffix](path)


@contextmanager
def print_list() -> Iterator[Write]:
    """A JSON list on stdout, once all is there."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        with _json_list(spool) as write:
            yield write
        spool.seek(0)
        shutil.copyfileobj(spool, sys.stdout)


@contextmanager
def print_tables(pause: Callable[[], AbstractContextManager[None]]) -> Iterator[Write]:
    """Tables on stdout, each printed when it is full; `pause` is entered for that long."""
    rows: list[Item] = []

    def flush() -> None:
        with pause():
            Console().print(_table(rows))
        rows.clear()

    def write(items: Sequence[Item]) -> None:
        rows.extend(items)
        if len(rows) >= TABLE_ROWS:
            flush()

    try:
        yield write
    finally:
        if rows:
            flush()


def _table(items: Sequence[Item]) -> Table:
    table = Table(box=None)
    for title in ("file", "task", "label"):
        table.add_column(title, overflow="fold")
    table.add_column("score", justify="right")
    for item in items:
        best = item.predictions[0] if item.predictions else None
        if item.error:
            label, score = f"[red]{_plain(item.error.message)}[/]", ""
        elif best:
            label, score = _plain(best.label), f"{best.score:.3f}"
        else:
            label, score = "[dim]none over the threshold[/]", ""
        table.add_row(_plain(item.file or ""), _plain(item.task), label, score)
    return table


def _plain(text: str) -> str:
    """Labels and files may be a stranger's."""
    return escape(printable(text))


def _record(item: Item) -> dict[str, Any]:
    return item.model_dump(exclude={"image"}, exclude_none=True)


def _rows(items: Sequence[Item]) -> Iterator[list[Any]]:
    """In the order of COLUMNS."""
    for item in items:
        start = [item.file, item.task, item.version]
        if item.error:
            yield [*start, None, None, None, None, item.error.code, item.error.message]
        elif not item.predictions:
            yield [*start, None, None, None, None, None, None]
        for rank, best in enumerate(item.predictions or [], start=1):
            yield [*start, rank, best.label, best.score, best.index, None, None]


@contextmanager
def _json_list(file: IO[str]) -> Iterator[Write]:
    separator = "[\n"

    def write(items: Sequence[Item]) -> None:
        nonlocal separator
        for item in items:
            file.write(separator + json.dumps(_record(item)))
            separator = ",\n"

    try:
        yield write
    finally:
        file.write("\n]\n" if separator == ",\n" else "[]\n")


@contextmanager
def _json(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file, _json_list(file) as write:
        yield write


@contextmanager
def _json_lines(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda items: file.writelines(json.dumps(_record(item)) + "\n" for item in items)


@contextmanager
def _csv(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        yield lambda items: writer.writerows(_rows(items))


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema(COLUMNS.items())
    rows: list[list[Any]] = []
    with ParquetWriter(path, schema) as writer:

        def flush() -> None:
            records = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
            writer.write_table(pyarrow.Table.from_pylist(records, schema))
            rows.clear()

        def write(items: Sequence[Item]) -> None:
            rows.extend(_rows(items))
            if len(rows) >= PARQUET_ROWS:
                flush()

        try:
            yield write
        finally:
            flush()


FILES: dict[str, Callable[[Path], AbstractContextManager[Write]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
