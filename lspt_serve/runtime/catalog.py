"""Which tasks there are: the versions in a folder of bundles, and what each name stands for.

flowers           the version that its alias `default` names, or else the highest
flowers@3         version 3
flowers:stable    the version that its alias `stable` names
"""

import math
import os
import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lspt_serve.bundle import BASELINE, MANIFEST, TENSORS
from lspt_serve.errors import (
    BundleError,
    UnknownTaskError,
    first_line,
    name_some,
    nearest,
    printable,
)
from lspt_serve.manifest import Manifest
from lspt_serve.runtime.aliases import ALIASES_FILE, DEFAULT, Aliases, load_aliases
from lspt_serve.runtime.unloaded import UNLOADED_FILE, load_unloaded
from lspt_serve.signatures import SIGNATURE

__all__ = ["Catalog", "Entry", "Found", "scan", "task_of", "unknown_task"]

Stamp = tuple[tuple[int, int, int], ...]  # of a bundle's files; what changes them changes it
MAX_REASON = 300  # letters, which an answer may repeat for many images
NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
GONE, UNREADABLE = (0, 0, 0), (0, 0, 1)  # no such file, or none that a disk gives now
REFERENCE = re.compile(r"(?P<name>[^@:]*)(@(?P<version>[0-9]{1,18})|:(?P<alias>.*))?")


@dataclass(frozen=True, eq=False)
class Entry:
    """A bundle that was read whole and fits the graph; whether it is still there, is not said."""

    folder: Path
    manifest: Manifest


Tasks = Mapping[str, Mapping[int, Entry]]


@dataclass(frozen=True)
class Found:
    """What a folder holds, as of its stamp; None: it is to be read again at the next look.

    Args:
        entry: what is served: the bundle there or, if it is broken, the last that was not and is
            still in memory.
        reason: why the bundle in the folder is not served.
    """

    stamp: Stamp | None
    entry: Entry | None
    reason: str | None = None


@dataclass(frozen=True)
class Catalog:
    """One state of a folder; it does not change.

    Args:
        tasks: name -> version -> bundle, both in order; all that is served.
        unloaded: the same of those that are not, for unloaded.json names them.
        unwanted: what unloaded.json says.
        refused: folder or file -> why it is not served, without the path to it.
        found: name of a folder -> what it holds; read again only when it has changed.
    """

    tasks: Tasks = field(default_factory=dict)
    unloaded: Tasks = field(default_factory=dict)
    unwanted: frozenset[str] = frozenset()
    aliases: Aliases = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, Found] = field(default_factory=dict)

    @property
    def entries(self) -> set[Entry]:
        """All that is served."""
        return {entry for versions in self.tasks.values() for entry in versions.values()}

    def __contains__(self, entry: Entry) -> bool:
        """Whether it is served."""
        return self.tasks.get(entry.manifest.name, {}).get(entry.manifest.version) is entry

    def __iter__(self) -> Iterator[Entry]:
        """The default version of every task that has one."""
        for name, versions in self.tasks.items():
            if (version := self._default(name)) in versions:
                yield versions[version]

    def _default(self, name: str) -> int:
        return self.aliases.get(name, {}).get(DEFAULT, max(self.tasks[name]))

    def get(self, reference: str) -> Entry | None:
        """What is served by that reference."""
        match = REFERENCE.fullmatch(reference)
        if match is None or (name := match["name"]) not in self.tasks:
            return None
        if match["version"]:
            version: int | None = int(match["version"])
        elif match["alias"] is not None:
            version = self.aliases.get(name, {}).get(match["alias"])
        else:
            version = self._default(name)
        return None if version is None else self.tasks[name].get(version)

    def find(self, reference: str) -> Entry:
        """Raises UnknownTaskError, which says what there is instead."""
        if entry := self.get(reference):
            return entry
        name = task_of(reference)
        if name in self.unloaded:
            raise UnknownTaskError(f"task {name!r} is unloaded; it is served again once loaded")
        if name not in self.tasks:
            raise self._unknown(name, self.tasks)
        known = [f"@{number}" for number in self.tasks[name]]
        known += [f":{alias}" for alias in self.aliases.get(name, {})]
        raise UnknownTaskError(f"unknown version {reference!r}; there are {name_some(known)}")

    def check_known(self, name: str) -> None:
        """Raises UnknownTaskError for a task that the folder does not hold, served or not."""
        known = {**self.tasks, **self.unloaded}
        if name not in known:
            raise self._unknown(name, known)

    def _unknown(self, name: str, known: Iterable[str]) -> UnknownTaskError:
        """As `unknown_task`, or why the folder of that name is not served."""
        if reason := self.refused.get(name):
            return UnknownTaskError(f"task {name!r} is not served: {reason[:MAX_REASON]}")
        return unknown_task(name, known)


def task_of(reference: str) -> str:
    """The name in a reference; all of it where it is none."""
    match = REFERENCE.fullmatch(reference)
    return match["name"] if match else reference


def unknown_task(name: str, known: Iterable[str]) -> UnknownTaskError:
    """Names the nearest of those that are known."""
    return UnknownTaskError(f"unknown task {name!r}{nearest(name, known)}")


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
        if last and last not in held and (is_gone or not passing):
            last = None
        return Found(None if passing else stamp, last, first_line(error))


def _to_text(name: str) -> str:
    """Names of files may be bytes that are no text, or several lines of a log."""
    return printable(os.fsencode(name).decode("utf-8", "replace"))
