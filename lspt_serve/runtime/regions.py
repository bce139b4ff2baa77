"""Shared memory that a Triton server on this machine reads its inputs from.

What was put into a region stays there: a task that comes again is neither copied nor sent.
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
ALIGNMENT = 64
FOLDER = Path("/dev/shm")
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Region:
    memory: SharedMemory
    holds: object  # what its key stands for: an id is of another object once this one is gone
    places: dict[str, Place] = field(default_factory=dict)

    def write(self, arrays: Mapping[str, Array]) -> None:
        offset = 0
        for name, array in arrays.items():
            view = np.ndarray(array.shape, array.dtype, self.memory.buf, offset)
            view[...] = array
            self.places[name] = self.memory.name, offset
            offset += _aligned(array.nbytes)


class Regions:
    """The regions that a server has opened, for one client; those used last are kept.

    Args:
        max_bytes: of all; what was used longest ago makes room.

    Raises:
        LSPTError: the server cannot open them: it is on another machine, or in a container.
    """

    def __init__(self, client: TritonClient, *, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._client = client
        self._regions: OrderedDict[Hashable, _Region] = OrderedDict()  # used last is last
        self._create("try", ALIGNMENT, None)
        self._drop("try")

    @property
    def num_bytes(self) -> int:
        return sum(region.memory.size for region in self._regions.values())

    def keep(self, key: Hashable, arrays: Mapping[str, Array], holds: object) -> dict[str, Place]:
        """Where the arrays of this key lie; they are those that were there if it is known."""
        if key in self._regions:
            self._regions.move_to_end(key)
            return self._regions[key].places
        return self._put(key, arrays, holds)

    def replace(self, key: Hashable, arrays: Mapping[str, Array]) -> dict[str, Place]:
        """Where the arrays lie, in place of what was there of this key."""
        region = self._regions.get(key)
        if region is not None and region.memory.size >= _size(arrays):
            self._regions.move_to_end(key)
            region.write(arrays)
            return region.places
        return self._put(key, arrays, None)

    def close(self) -> None:
        """Free the memory, and have the server forget it if it still answers."""
        while self._regions:
            self._drop(next(iter(self._regions)))

    def _put(self, key: Hashable, arrays: Mapping[str, Array], holds: object) -> dict[str, Place]:
        """Empty where there is no room: then the tensors travel in the request."""
        if key in self._regions:
            self._drop(key)
        size = _size(arrays)
        while self._regions and self.num_bytes + size > self.max_bytes:
            self._drop(next(iter(self._regions)))
        try:
            region = self._create(key, size, holds)
        except (OSError, GraphError) as error:
            logger.warning("no %d bytes of shared memory: %s", size, first_line(error))
            return {}
        region.write(arrays)
        return region.places

    def _create(self, key: Hashable, size: int, holds: object) -> _Region:
        memory = SharedMemory(create=True, size=size)
        try:
            _allocate(memory)
            self._client.register(memory.name, f"/{memory.name}", size)
        except BaseException:
            _free(memory)
            raise
        self._regions[key] = _Region(memory, holds)
        return self._regions[key]

    def _drop(self, key: Hashable) -> None:
        region = self._regions.pop(key)
        try:
            self._client.unregister(region.memory.name)
        except LSPTError as error:  # a server that is gone has forgotten it already
            logger.debug("region %s stays registered: %s", region.memory.name, error)
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
