"""A folder of bundles to a catalog: what is new or has changed is read, the rest is as it was."""

import errno
import math
import os
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from pathlib import Path

from lspt_serve.bundle import BASELINE, MANIFEST, TENSORS
from lspt_serve.errors import BundleError, first_line, name_some, printable
from lspt_serve.runtime.aliases import ALIASES_FILE, Aliases, load_aliases
from lspt_serve.runtime.catalog import Catalog, Entry, Found, Stamp, Tasks
from lspt_serve.runtime.unloaded import UNLOADED_FILE, load_unloaded
from lspt_serve.signatures import SIGNATURE

__all__ = ["NO_BUNDLE", "NO_FILE", "scan"]

NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# what is there and no file of a bundle: a link out or to itself, a pipe, one far too large
NO_BUNDLE = {errno.EXDEV, errno.ELOOP, errno.EINVAL, errno.EFBIG}
GONE, UNREADABLE = (0, 0, 0), (0, 0, 1)  # no such file, or none that a disk gives now


def scan(
    folder: Path,
    before: Catalog,
    read: Callable[[Path], Entry],
    *,
    held: Container[Entry],
    signed: bool = False,
) -> Catalog:
    """What there is now; only what is new or has changed since `before` is read.

    Of two bundles of one name and version that in the folder of the one before is served; at first
    that in a folder which is called as the task, or else the older.

    Args:
        read: of a folder with a bundle; raises BundleError for one that is to be refused.
        held: those in memory, which can be served whatever became of their files.
        signed: signatures count, and change a bundle, too.

    Raises:
        OSError: the folder cannot be read.
    """
    found = {
        name: _look(folder / name, stamp, before.found.get(name), read, held)
        for name, stamp in _find_bundles(folder, signed=signed)
        if name in before.found or stamp[0] != UNREADABLE  # else it may be no bundle at all
    }
    tasks, twice = _arrange(found, served={entry.folder for entry in before.entries})
    aliases, unwanted, broken = _load_files(folder, tasks, before)
    refused = {name: own.reason for name, own in found.items() if own.reason} | twice | broken
    return Catalog(
        tasks={name: tasks[name] for name in tasks if name not in unwanted},
        unloaded={name: tasks[name] for name in tasks if name in unwanted},
        unwanted=unwanted,
        aliases=aliases,
        refused={
            _to_text(name): _to_text(why.replace(f"{folder}/", ""))
            for name, why in sorted(refused.items())
        },
        found=found,
    )


def _arrange(
    found: Mapping[str, Found], *, served: Collection[Path]
) -> tuple[Tasks, dict[str, str]]:
    """By name and version, in order; and why others of the same name and version are refused."""
    tasks: dict[str, dict[int, Entry]] = {}
    twice = {}

    def rank(item: tuple[str, Entry]) -> tuple[bool, bool, float, str]:
        """What does not hang on `served`, a server that is started again finds too."""
        name, entry = item
        stamp = found[name].stamp
        age = stamp[0][1] if stamp else math.inf
        return entry.folder not in served, name != entry.manifest.name, age, name

    entries = {name: own.entry for name, own in found.items() if own.entry}
    for folder, entry in sorted(entries.items(), key=rank):
        task, version = entry.manifest.name, entry.manifest.version
        if tasks.setdefault(task, {}).setdefault(version, entry) is not entry:
            twice[folder] = f"task {task!r} version {version} is there already, from another folder"
    return {name: dict(sorted(tasks[name].items())) for name in sorted(tasks)}, twice


def _load_files(
    folder: Path, tasks: Tasks, before: Catalog
) -> tuple[Aliases, frozenset[str], dict[str, str]]:
    """Aliases and what is unloaded, or what they were; and what is wrong with their files."""
    wrong = {}
    try:
        aliases = load_aliases(folder)
        if dangling := _find_dangling(aliases, tasks):
            wrong[ALIASES_FILE] = dangling
    except BundleError as error:
        aliases, wrong[ALIASES_FILE] = before.aliases, str(error)
    try:
        unwanted = load_unloaded(folder)
    except BundleError as error:
        unwanted, wrong[UNLOADED_FILE] = before.unwanted, str(error)
    return aliases, unwanted, wrong


def _find_dangling(aliases: Aliases, tasks: Tasks) -> str:
    """What is wrong with them, where tasks have no version that an alias names."""
    wrong = [
        f"{task}:{alias} is version {version}, which there is not"
        for task, own in aliases.items()
        for alias, version in own.items()
        if version not in tasks.get(task, {})
    ]
    return name_some(wrong)


def _find_bundles(folder: Path, *, signed: bool) -> Iterator[tuple[str, Stamp]]:
    """Names of folders with a manifest, in order; hidden ones are being written."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for name in names:
        own = f"{folder}/{name}"  # a Path for each would take most of the time of a look
        if (manifest := _stamp(f"{own}/{MANIFEST}")) != GONE:
            others = (TENSORS, SIGNATURE) if signed else (TENSORS,)
            yield name, (manifest, *(_stamp(f"{own}/{file}") for file in others))
        elif (baseline := _stamp(f"{own}/{BASELINE}")) != GONE:
            yield name, (manifest, baseline)


def _stamp(path: str) -> tuple[int, int, int]:
    """Changes with the file: ctime tells of a copy that keeps its mtime."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return GONE
    except OSError:
        return UNREADABLE
    return status.st_ino, status.st_ctime_ns, status.st_size


def _look(
    folder: Path,
    stamp: Stamp,
    known: Found | None,
    read: Callable[[Path], Entry],
    held: Container[Entry],
) -> Found:
    last = known.entry if known else None
    is_lost = known and known.reason and last and last not in held
    if known and known.stamp == stamp and not is_lost:
        return known
    try:
        return Found(stamp, read(folder))
    except Exception as error:  # whatever it is, the other bundles are served
        passing = not isinstance(error, BundleError) or isinstance(error.__cause__, OSError)
        again = known is not None and known.reason is not None
        is_gone = isinstance(error.__cause__, NO_FILE) and again  # once: it is being replaced
        is_none = isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_BUNDLE
        if last and last not in held and (is_gone or is_none or not passing):
            last = None
        return Found(None if passing else stamp, last, first_line(error))


def _to_text(name: str) -> str:
    """Names of files may be bytes that are no text, or several lines of a log."""
    return printable(os.fsencode(name).decode("utf-8", "replace"))
