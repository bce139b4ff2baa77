"""Which task is in which slot of an engine."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from lspt_serve.bundle import Bundle
from lspt_serve.runtime.engine import Engine

__all__ = ["Slots"]


class Slots:
    """Puts bundles into the slots of an engine, where the one unused longest makes room.

    A bundle in use keeps its slot. Bundles are told apart by their tensors, so that a task's new
    version has a slot of its own, and rows in flight finish on the version they started with.
    Safe to use from several threads.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._slots: OrderedDict[str, int] = OrderedDict()  # by sha256; what was used last is last
        self._free = list(range(engine.num_slots))
        self._users: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, bundles: Sequence[Bundle]) -> Iterator[list[int]]:
        """The slot of each bundle, until the block is left; waits for others to leave theirs.

        Raises:
            ValueError: more different bundles than there are slots.
        """
        keys = [bundle.manifest.tensors_sha256 for bundle in bundles]
        wanted = dict(zip(keys, bundles, strict=True))
        if len(wanted) > self._engine.num_slots:
            raise ValueError(f"{len(wanted)} tasks at once, and {self._engine.num_slots} slots")
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(wanted))
            self._users.update(wanted.keys())
        try:
            with self._changed:
                for key, bundle in wanted.items():
                    self._put(key, bundle)
                slots = [self._slots[key] for key in keys]
            yield slots
        finally:
            with self._changed:
                self._users -= Counter(wanted.keys())
                self._changed.notify_all()

    def _has_room(self, wanted: Mapping[str, Bundle]) -> bool:
        """Whether all that are in use, and these, have a slot each."""
        return len(self._users.keys() | wanted.keys()) <= self._engine.num_slots

    def _put(self, key: str, bundle: Bundle) -> None:
        if key not in self._slots:
            slot = self._free.pop() if self._free else self._evict()
            try:
                self._engine.put(slot, bundle.method_tensors)
            except BaseException:
                self._free.append(slot)
                raise
            self._slots[key] = slot
        self._slots.move_to_end(key)

    def _evict(self) -> int:
        """`_has_room` has seen to it that one is not in use."""
        idle = next(key for key in self._slots if key not in self._users)
        return self._slots.pop(idle)
