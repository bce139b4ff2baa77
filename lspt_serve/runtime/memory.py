"""Bundles that stay in the host's memory after they were read."""

import threading
from collections import OrderedDict
from collections.abc import Set

from lspt_serve.bundle import Bundle
from lspt_serve.runtime.catalog import Entry
from lspt_serve.runtime.events import SILENT, Events

__all__ = ["BundleMemory"]


class BundleMemory:
    """What was used last, up to so many bytes of tensors. Safe to use from several threads."""

    def __init__(self, max_bytes: int, *, events: Events = SILENT) -> None:
        self.max_bytes = max_bytes
        self._events = events
        self.num_bytes = 0
        self._bundles: OrderedDict[Entry, Bundle] = OrderedDict()  # what was used last is last
        self._kept: Set[Entry] = frozenset()
        self._lock = threading.Lock()

    def __contains__(self, entry: object) -> bool:
        """Without a use of it."""
        with self._lock:
            return entry in self._bundles

    def get(self, entry: Entry) -> Bundle | None:
        with self._lock:
            bundle = self._bundles.get(entry)
            if bundle is not None:
                self._bundles.move_to_end(entry)
            return bundle

    def put(self, entry: Entry, bundle: Bundle, *, evict: bool = True) -> Bundle:
        """The bundle, or the same one of another thread that was faster.

        It stays out if it is larger than what others that are kept leave of the memory, or, where
        it may evict none, than what is free.
        """
        with self._lock:
            if known := self._bundles.get(entry):
                return known
            kept = sum(_size(self._bundles[own]) for own in self._kept if own in self._bundles)
            if _size(bundle) > self.max_bytes - (kept if evict else self.num_bytes):
                return bundle
            self._bundles[entry] = bundle
            self.num_bytes += _size(bundle)
            self._events.came(entry.manifest)
            if self.num_bytes > self.max_bytes:
                self._make_room()
            self._events.held(len(self._bundles), self.num_bytes)
            return bundle

    def keep_only(self, entries: Set[Entry]) -> None:
        """All others go: what is served no more, or was read and never is."""
        with self._lock:
            for entry in self._bundles.keys() - entries:
                self._drop(entry)
            self._events.held(len(self._bundles), self.num_bytes)

    def keep(self, entries: Set[Entry]) -> None:
        """These alone stay whatever comes: pinned ones, and those whose folders lost them."""
        with self._lock:
            self._kept = entries

    def drop(self, entry: Entry) -> None:
        with self._lock:
            self._drop(entry)
            self._events.held(len(self._bundles), self.num_bytes)

    def _make_room(self) -> None:
        while self.num_bytes > self.max_bytes:
            unused = next((other for other in self._bundles if other not in self._kept), None)
            if unused is None:
                break
            self._drop(unused, evicted=True)

    def _drop(self, entry: Entry, *, evicted: bool = False) -> None:
        if bundle := self._bundles.pop(entry, None):
            self.num_bytes -= _size(bundle)
            self._events.went(entry.manifest, evicted=evicted)


def _size(bundle: Bundle) -> int:
    return sum(tensor.nbytes for tensor in bundle.tensors.values())
