"""The prompt store: the tasks that a server holds, in step with a folder of bundles."""

import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lspt_serve.bundle import Bundle, check_no_baseline, load_bundle
from lspt_serve.errors import BundleError, StorageError, UnknownTaskError, name_some
from lspt_serve.files import locked
from lspt_serve.graph import GraphSpec, check_fits
from lspt_serve.manifest import Manifest
from lspt_serve.runtime.aliases import ALIASES_FILE, load_aliases, save_aliases
from lspt_serve.runtime.catalog import Catalog, Entry
from lspt_serve.runtime.events import SILENT, Events
from lspt_serve.runtime.memory import BundleMemory
from lspt_serve.runtime.scan import NO_BUNDLE, NO_FILE, scan
from lspt_serve.runtime.unloaded import UNLOADED_FILE, load_unloaded, save_unloaded
from lspt_serve.signatures import TrustedKeys

__all__ = ["HOST_BYTES", "About", "Listed", "PromptStore"]

HOST_BYTES = 2**30
REPLACING_S = 0.05  # a folder that is being replaced is gone for less
ATTEMPTS = 5  # where folders are replaced again and again
LOCK_WAIT_S = 5.0  # for others who change the same file, each in milliseconds
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """A version of a task, or a folder that holds no good one (None), and why it is not served."""

    name: str
    version: int | None
    reason: str | None


@dataclass(frozen=True)
class About:
    """What a store knows of a task: its versions and aliases; whether the version is in memory."""

    versions: list[int]
    aliases: dict[str, int]
    resident: bool


class PromptStore:
    """Bundles by reference (see Catalog). Their tensors are read from disk when they are needed.

    What was used last stays in memory. A bundle is a value: whoever has one keeps it, whatever
    becomes of its folder. Safe to use from several threads.

    Args:
        folder: holds one folder per bundle, aliases.json and unloaded.json.
        host_bytes: of tensors that stay in memory.
        pinned: references to tasks that are in memory before they are asked for and stay there,
            whatever else is used.
        trusted: bundles that none of these keys signed are refused; None: nobody needs to sign.

    Raises:
        BundleError: no such folder, or one that is itself a baseline, or aliases.json or
            unloaded.json is broken; later the old ones go on then.
    """

    def __init__(
        self,
        folder: Path,
        graph: GraphSpec,
        *,
        host_bytes: int = HOST_BYTES,
        pinned: Collection[str] = (),
        trusted: TrustedKeys | None = None,
        events: Events = SILENT,
    ) -> None:
        if not folder.is_dir():
            raise BundleError(
                f"{folder}: no such folder of bundles; make one: lspt train --out {folder}/NAME"
            )
        check_no_baseline(folder)
        load_aliases(folder), load_unloaded(folder)  # without them it might serve what it may not
        self.folder, self._graph = folder, graph
        self.generation = 0  # how often a look at the folder found a change
        self._catalog = Catalog()
        self._memory = BundleMemory(host_bytes, events=events)
        self._events = events
        self._pinned = tuple(pinned)
        self._trusted = trusted
        self._refreshing = threading.Lock()
        self.refresh()

    def __getitem__(self, reference: str) -> Bundle:
        """Of a task.

        Raises:
            UnknownTaskError: there is none; it names the nearest tasks or the versions there are.
            StorageError: its disk does not give it now.
        """
        failed: Entry | None = None
        for _ in range(ATTEMPTS):
            entry = self._catalog.find(reference)
            try:
                return self._bundle(entry)
            except BundleError as error:  # deleted or replaced since the folder was read
                reason = error
                if entry == failed:  # twice: it is not being replaced by one that is the same
                    break
                failed = entry
                self.refresh(doubted=entry)
        logger.warning("task %s can no longer be read: %s", reference, reason)
        if self._is_away(reason):
            raise StorageError(
                f"task {reference!r} cannot be read now; try again later"
            ) from reason
        raise UnknownTaskError(f"task {reference!r} can no longer be read") from reason

    def _is_away(self, error: BundleError) -> bool:
        """Whether it is the disk that does not give a bundle, which may be there."""
        cause = error.__cause__
        if isinstance(cause, NO_FILE):
            return not self.folder.is_dir()
        return isinstance(cause, OSError) and cause.errno not in NO_BUNDLE

    def held(self, reference: str) -> Bundle | None:
        """The task if it is in memory; never reads from disk."""
        entry = self._catalog.get(reference)
        return self._memory.get(entry) if entry else None

    def __iter__(self) -> Iterator[Manifest]:
        """Of the default version of every task, by name."""
        return (entry.manifest for entry in self._catalog)

    def __len__(self) -> int:
        return len(self._catalog.tasks)

    @property
    def refused(self) -> Mapping[str, str]:
        """Folder or file -> why it is not served."""
        return self._catalog.refused

    def manifest(self, reference: str) -> Manifest:
        """Raises UnknownTaskError."""
        return self._catalog.find(reference).manifest

    def about(self, manifest: Manifest) -> About:
        """Of the task, and of the version of it that the manifest is of."""
        catalog, name = self._catalog, manifest.name
        versions = catalog.tasks.get(name, {})
        resident = versions.get(manifest.version) in self._memory
        return About([*versions], dict(catalog.aliases.get(name, {})), resident)

    def listed(self) -> list[Listed]:
        """All that is in the folder, served or not, by name and version."""
        catalog = self._catalog
        rows = [
            Listed(name, version, reason)
            for tasks, reason in ((catalog.tasks, None), (catalog.unloaded, "unloaded"))
            for name, versions in tasks.items()
            for version in versions
        ]
        for folder, reason in catalog.refused.items():
            if folder not in {ALIASES_FILE, UNLOADED_FILE}:
                rows.append(Listed(folder, None, reason))
        return sorted(rows, key=lambda row: (row.name, row.version or 0))

    def refresh(self, *, doubted: Entry | None = None) -> None:
        """Look at the folder; what changed is served from the next request on.

        A folder that cannot be read, because its disk is gone, say, changes nothing.

        Args:
            doubted: is read again, though it may look the same.
        """
        with self._refreshing:
            before = self._catalog
            try:
                after = self._scan(before.doubting(doubted) if doubted else before)
            except OSError as error:
                logger.error("%s cannot be read: %s", self.folder, error.strerror)
                return
            self._events.served(len(after.tasks), len(after.refused))
            if after == before:
                return
            pinned = self._find_pinned(after)
            lost = {found.entry for found in after.found.values() if found.entry and found.reason}
            self._memory.keep(lost | {*pinned})
            self._catalog = after
            self.generation += 1
            self._memory.keep_only(after.entries)
        _log_changes(before, after)
        self._bring(pinned)

    def _scan(self, before: Catalog) -> Catalog:
        """Looks again until what is gone was gone before: one that is being replaced comes back."""
        after, known, gone = self._scan_once(before), before.found, set[str]()
        for _ in range(ATTEMPTS):
            known = {**known, **after.found}
            missing = known.keys() - after.found.keys()
            if missing <= gone:
                break
            gone = missing
            time.sleep(REPLACING_S)
            after = self._scan_once(replace(before, found=known))
        return after

    def _scan_once(self, before: Catalog) -> Catalog:
        signed = self._trusted is not None
        return scan(self.folder, before, self._read, held=self._memory, signed=signed)

    def _find_pinned(self, catalog: Catalog) -> list[Entry]:
        found = []
        for reference in self._pinned:
            try:
                found.append(catalog.find(reference))
            except UnknownTaskError as error:  # it may come yet
                logger.warning("%r is pinned, but %s", reference, error)
        return found

    def _bring(self, entries: Collection[Entry]) -> None:
        """Into memory, where they are pinned; the first ones, where it does not hold all."""
        for entry in entries:
            try:
                self._bundle(entry)
            except BundleError as error:  # replaced meanwhile; the next look finds what is there
                logger.warning("%s@%d is pinned: %s", *_name(entry), error)
        missing = [entry for entry in entries if self._memory.get(entry) is None]
        if missing:
            names = name_some("{}@{}".format(*_name(entry)) for entry in missing)
            logger.warning(
                "pinned tasks do not fit together in the %d bytes of memory for bundles; read from "
                "disk each time: %s",
                self._memory.max_bytes,
                names,
            )

    def set_alias(self, task: str, alias: str, version: int | None) -> None:
        """Make TASK:ALIAS stand for a version, here and at every server of the folder.

        Args:
            alias: `default` is what the bare name stands for; setting it back is a rollback.
            version: None takes the alias away.

        Raises:
            UnknownTaskError: there is no such task or version.
            BundleError: a name that an alias may not have, or aliases.json is broken.
            OutputError: the folder cannot be written, or others write aliases.json for seconds.
        """
        self.refresh()  # another server may have changed what there is
        if version is None:  # what it stood for may be gone
            self._catalog.check_known(task)
        else:
            self.manifest(f"{task}@{version}")
        with locked(self.folder / ALIASES_FILE, wait_s=LOCK_WAIT_S):
            aliases = load_aliases(self.folder)
            own = {name: to for name, to in aliases.get(task, {}).items() if name != alias}
            if version is not None:
                own[alias] = version
            others = {name: to for name, to in aliases.items() if name != task}
            save_aliases(self.folder, others | ({task: own} if own else {}))
        self.refresh()

    def load(self, task: str) -> None:
        """Look at the folder now, and serve a task again that was unloaded.

        Raises:
            UnknownTaskError: the folder holds no such task.
            BundleError: unloaded.json is broken.
            OutputError: the folder cannot be written.
        """
        self._set_unloaded(task, unloaded=False)

    def unload(self, task: str) -> None:
        """Serve a task no more, none of its versions, here and at every server of the folder.

        Raises:
            UnknownTaskError: the folder holds no such task.
            BundleError: unloaded.json is broken.
            OutputError: the folder cannot be written.
        """
        self._set_unloaded(task, unloaded=True)

    def _set_unloaded(self, task: str, *, unloaded: bool) -> None:
        self.refresh()  # another server may have changed what there is
        self._catalog.check_known(task)
        with locked(self.folder / UNLOADED_FILE, wait_s=LOCK_WAIT_S):
            before = load_unloaded(self.folder)
            after = before | {task} if unloaded else before - {task}
            if after != before:
                save_unloaded(self.folder, after)
        self.refresh()

    def _bundle(self, entry: Entry) -> Bundle:
        bundle = self._memory.get(entry)
        if bundle is None:
            bundle = self._load(entry.folder)
            if bundle.manifest != entry.manifest:
                raise BundleError(f"{entry.folder}: replaced since it was read")
            bundle = self._memory.put(entry, bundle)
            if entry not in self._catalog:  # it went meanwhile, and nobody would drop it
                self._memory.drop(entry)
        return bundle

    def _read(self, folder: Path) -> Entry:
        bundle = self._load(folder)
        entry = Entry(folder, bundle.manifest)
        # later on what is there was asked for, and this was not yet
        self._memory.put(entry, bundle, evict=self.generation == 0)
        return entry

    def _load(self, folder: Path) -> Bundle:
        started = time.monotonic()
        bundle = load_bundle(folder, trusted=self._trusted, within=self.folder)
        self._events.loaded(bundle.manifest, time.monotonic() - started)
        check_fits(bundle, self._graph)
        return bundle


def _name(entry: Entry) -> tuple[str, int]:
    return entry.manifest.name, entry.manifest.version


def _log_changes(before: Catalog, after: Catalog) -> None:
    for entry in sorted(after.entries - before.entries, key=lambda entry: str(entry.folder)):
        logger.info("serving %s@%d", *_name(entry))
    for entry in sorted(before.entries - after.entries, key=lambda entry: str(entry.folder)):
        logger.info("no longer serving %s@%d", *_name(entry))
    for name, reason in after.refused.items():
        if before.refused.get(name) != reason:
            logger.warning("%s is not served: %s", name, reason)
