"""Shared memory that a Triton server on this machine reads its inputs from.

What is kept in a region stays there: a task that comes again is neither copied nor sent. Other
regions are written anew for every batch.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np

from lspt_serve.errors import GraphError, LSPTError, first_line
from lspt_serve.runtime.triton_client import Array, Place, TritonClient

__all__ = ["Regions"]

MAX_BYTES = 256 << 20  # of tensors that stay for the next batch of their tasks
MAX_REGIONS = 256  # each is an open file, here and at the server
ALIGNMENT = 64
FOLDER = Path("/dev/shm")
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Region:
    memory: SharedMemory
    holds: object  # what its key stands for: an id is of another object once this one is gone
    is_kept: bool  # until others need the room; else for good
    places: dict[str, Place] = field(default_factory=dict)

    def write(self, arrays: Mapping[str, Array]) -> None:
        offset = 0
        for name, array in arrays.items():
            view = np.ndarray(array.shape, array.dtype, self.memory.buf, offset)
            view[...] = array
            self.places[name] = self.memory.name, offset
            offset += _aligned(array.nbytes)


class Regions:
    """The regions that a server has opened, for one client.

    Args:
        max_bytes: of all; what is kept and was used longest ago makes room.

    Raises:
        LSPTError: the server cannot open them: it is on another machine, or in a container.
    """

    def __init__(self, client: TritonClient, *, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._client = client
        self._regions: OrderedDict[Hashable, _Region] = OrderedDict()  # used last is last
        self._create("try", ALIGNMENT, None, is_kept=True)
        self._drop("try")

    @property
    def num_bytes(self) -> int:
        return sum(region.memory.size for region in self._regions.values())

    def keep(self, key: Hashable, arrays: Mapping[str, Array], holds: object) -> dict[str, Place]:
        """Where the arrays of this key lie; they are those that were there if it is known.

        Empty where there is no room: then they travel in the request.
        """
        if key in self._regions:
            self._regions.move_to_end(key)
            return self._regions[key].places
        return self._put(key, arrays, holds, is_kept=True)

    def replace(self, key: Hashable, arrays: Mapping[str, Array]) -> dict[str, Place]:
        """Where the arrays lie, in place of what was there of this key; empty as with `keep`."""
        region = self._regions.get(key)
        if region is not None and region.memory.size >= _size(arrays):
            region.write(arrays)
            return region.places
        return self._put(key, arrays, None, is_kept=False)

    def close(self) -> None:
        """Free the memory, and have the server forget it while it answers."""
        try:
            while self._regions:
                self._drop(next(iter(self._regions)))
        except LSPTError as error:
            logger.debug("regions stay registered: %s", error)
        for region in self._regions.values():
            _free(region.memory)
        self._regions.clear()

    def _put(
        self, key: Hashable, arrays: Mapping[str, Array], holds: object, *, is_kept: bool
    ) -> dict[str, Place]:
        size = _size(arrays)
        if not self._make_room(key, size):
            return {}
        try:
            region = self._create(key, size, holds, is_kept=is_kept)
        except (OSError, GraphError) as error:
            logger.warning("no %d bytes of shared memory: %s", size, first_line(error))
            return {}
        region.write(arrays)
        return region.places

    def _make_room(self, key: Hashable, size: int) -> bool:
        """Whether there is some for a region in place of what this key has.

        Only what is kept makes room: the request that wants it may refer to all the others.
        """
        kept = [other for other, region in self._regions.items() if region.is_kept]
        own = self._regions.get(key)
        needed = self.num_bytes + size - self.max_bytes - (own.memory.size if own else 0)
        if needed > sum(self._regions[other].memory.size for other in kept):
            return False
        if own:
            self._drop(key)
        for other in kept:
            if self.num_bytes + size <= self.max_bytes and len(self._regions) < MAX_REGIONS:
                break
            self._drop(other)
        return True

    def _create(self, key: Hashable, size: int, holds: object, *, is_kept: bool) -> _Region:
        memory = SharedMemory(create=True, size=size)
        try:
            _allocate(memory)
            self._client.register(memory.name, f"/{memory.name}", size)
        except BaseException:
            _free(memory)
            raise
        self._regions[key] = _Region(memory, holds, is_kept)
        return self._regions[key]

    def _drop(self, key: Hashable) -> None:
        """Raises UnavailableError or DeadlineError; the memory is free then too."""
        region = self._regions.pop(key)
        try:
            self._client.unregister(region.memory.name)
        except GraphError as error:  # it has forgotten it already
            logger.debug("region %s: %s", region.memory.name, error)
        finally:
            _free(region.memory)


def _allocate(memory: SharedMemory) -> None:
    """Raises OSError where there is no room; without this the first write would be a SIGBUS."""
    handle = os.open(FOLDER / memory.name, os.O_RDWR)
    try:
        os.posix_fallocate(handle, 0, memory.size)
    finally:
        os.close(handle)


def _free(memory: SharedMemory) -> None:
    memory.close()
    memory.unlink()


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _size(arrays: Mapping[str, Array]) -> int:
    return sum(_aligned(array.nbytes) for array in arrays.values())
