"""What of a prompt store somebody may use."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol, TypeVar

from lspt_serve.bundle import Bundle
from lspt_serve.errors import UnknownTaskError
from lspt_serve.manifest import Manifest
from lspt_serve.runtime.catalog import task_of, unknown_task
from lspt_serve.runtime.store import Listed, PromptStore

__all__ = ["AllowedTasks", "Tasks"]

T = TypeVar("T")


class Tasks(Protocol):
    """What a prompt store is to those who use its tasks."""

    @property
    def refused(self) -> Mapping[str, str]: ...
    def __getitem__(self, reference: str) -> Bundle: ...
    def held(self, reference: str) -> Bundle | None: ...
    def __iter__(self) -> Iterator[Manifest]: ...
    def manifest(self, reference: str) -> Manifest: ...
    def listed(self) -> list[Listed]: ...


class AllowedTasks:
    """A prompt store without the tasks that may not be used: they are unknown and never named.

    Nor are folders that are refused, for their names may be those of tasks.

    Args:
        may_use: of a task's name.
    """

    refused: Mapping[str, str] = MappingProxyType({})

    def __init__(self, store: PromptStore, may_use: Callable[[str], bool]) -> None:
        self._store, self._may_use = store, may_use

    def __getitem__(self, reference: str) -> Bundle:
        """Raises UnknownTaskError, StorageError."""
        return self._look_up(self._store.__getitem__, reference)

    def held(self, reference: str) -> Bundle | None:
        return self._store.held(reference) if self._may_use(task_of(reference)) else None

    def __iter__(self) -> Iterator[Manifest]:
        return (manifest for manifest in self._store if self._may_use(manifest.name))

    def manifest(self, reference: str) -> Manifest:
        """Raises UnknownTaskError."""
        return self._look_up(self._store.manifest, reference)

    def listed(self) -> list[Listed]:
        """Without folders that hold no good bundle."""
        return [row for row in self._store.listed() if row.version and self._may_use(row.name)]

    def _look_up(self, look: Callable[[str], T], reference: str) -> T:
        name = task_of(reference)
        if self._may_use(name):
            try:
                return look(reference)
            except UnknownTaskError:
                if any(row.name == name for row in self.listed()):
                    raise  # another version, or it is unloaded
        raise unknown_task(name, [manifest.name for manifest in self])
