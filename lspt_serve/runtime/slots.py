"""Which task is in which slot of an engine."""

from collections import OrderedDict
from collections.abc import Sequence

from lspt_serve.bundle import Bundle
from lspt_serve.runtime.engine import Engine

__all__ = ["Slots"]


class Slots:
    """Puts bundles into the slots of an engine, where the one unused longest makes room.

    Bundles are told apart by their tensors: a task's new version has a slot of its own. For one
    thread, that which runs the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._slots: OrderedDict[str, int] = OrderedDict()  # by sha256; what was used last is last
        self._free = list(range(engine.num_slots))

    def assign(self, bundles: Sequence[Bundle]) -> list[int]:
        """The slot of each bundle, until the next call.

        Raises:
            ValueError: more different bundles than there are slots.
        """
        keys = [bundle.manifest.tensors_sha256 for bundle in bundles]
        wanted = dict(zip(keys, bundles, strict=True))
        if len(wanted) > self._engine.num_slots:
            raise ValueError(f"{len(wanted)} tasks at once, and {self._engine.num_slots} slots")
        missing = [key for key in wanted if key not in self._slots]
        for key in wanted.keys() - missing:
            self._slots.move_to_end(key)
        for key in missing:
            self._put(key, wanted[key])
        return [self._slots[key] for key in keys]

    def _put(self, key: str, bundle: Bundle) -> None:
        slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
        try:
            self._engine.put(slot, bundle.method_tensors)
        except BaseException:
            self._free.append(slot)
            raise
        self._slots[key] = slot
