"""Which tasks there are: the versions in a folder of bundles, and what each name stands for.

flowers           the version that its alias `default` names, or else the highest
flowers@3         version 3
flowers:stable    the version that its alias `stable` names
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lspt_serve.errors import UnknownTaskError, name_some, nearest
from lspt_serve.manifest import Manifest
from lspt_serve.runtime.aliases import DEFAULT, Aliases

__all__ = ["Catalog", "Entry", "Found", "Stamp", "Tasks", "task_of", "unknown_task"]

Stamp = tuple[tuple[int, int, int], ...]  # of a bundle's files; what changes them changes it
MAX_REASON = 300  # letters, which an answer may repeat for many images
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

    def doubting(self, entry: Entry) -> "Catalog":
        """The same, but that the entry's folder is to be read again at the next look."""
        found = {
            name: replace(own, stamp=None) if own.entry is entry else own
            for name, own in self.found.items()
        }
        return replace(self, found=found)

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
