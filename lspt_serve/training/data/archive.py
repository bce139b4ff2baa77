"""A .tar with labels.csv and its images inside, read in place: nothing is extracted.

labels.csv is as in table.py, its files are members of the tar. Where it has numbers alone, they are
places in the list `classes` of task.json, if there is one.
"""

import json
import posixpath
import tarfile
from collections import Counter
from pathlib import Path

from lspt_serve.errors import DataError, name_some
from lspt_serve.training.data.source import Sample, Source
from lspt_serve.training.data.table import read_table

__all__ = ["read_tar"]

TABLE, ABOUT = "labels.csv", "task.json"


def read_tar(path: Path, seed: int) -> Source:
    """Raises DataError for what is no plain tar, no labels.csv inside, classes of one name."""
    members = _members(path)
    if TABLE not in members:
        raise DataError(f"{path}: no {TABLE} inside; wanted it beside the images")
    stat = path.stat()
    unchanged = f"{stat.st_size} {stat.st_mtime_ns}"

    def to_sample(name: str, label: str) -> Sample:
        member = members.get(posixpath.normpath(name))
        if member is None:
            return Sample(f"{path}/{name}", label, _missing, lambda: "missing")
        offset, size = member.offset_data, member.size
        return Sample(
            f"{path}/{name}",
            label,
            lambda: _read_at(path, offset, size),
            lambda: f"{unchanged} {offset} {size}",
        )

    try:
        text = _read_member(path, members[TABLE]).decode("utf-8-sig")
        about = json.loads(_read_member(path, members[ABOUT])) if ABOUT in members else {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: {TABLE} or {ABOUT} cannot be read: {error}") from error
    classes = about.get("classes") if isinstance(about, dict) else None
    known = [str(name) for name in classes] if isinstance(classes, list) else []
    if twice := [name for name, count in Counter(known).items() if count > 1]:
        raise DataError(f"{path}: {ABOUT}: two classes are called {name_some(twice)}; rename one")
    names = {str(number): name for number, name in enumerate(known)}
    return read_table(f"{path}/{TABLE}", text, to_sample, seed=seed, names=names)


def _members(path: Path) -> dict[str, tarfile.TarInfo]:
    """The regular files inside, by name."""
    try:
        with tarfile.open(path, "r:") as tar:
            return {posixpath.normpath(m.name): m for m in tar.getmembers() if m.isreg()}
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read as an uncompressed tar: {error}") from error


def _read_member(path: Path, member: tarfile.TarInfo) -> bytes:
    return _read_at(path, member.offset_data, member.size)


def _read_at(path: Path, offset: int, size: int) -> bytes:
    """Opened anew each time, for many threads read at once."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _missing() -> bytes:
    raise FileNotFoundError("no such file in the tar")
