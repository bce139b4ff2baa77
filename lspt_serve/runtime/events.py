"""What the runtime tells whoever counts it."""

from collections.abc import Sequence

from lspt_serve.manifest import Manifest

__all__ = ["SILENT", "Events"]


class Events:
    """Tells nobody; a subclass counts what it wants to.

    The methods are called often and from any thread: they neither raise nor wait.
    """

    def answered(self, task: Manifest | None, error: BaseException | None) -> None:
        """An image got its answer, or the error in its place; None: by an unknown task."""

    def waiting(self, images: int) -> None:
        """So many are in the queue now."""

    def waited(self, task: Manifest, seconds: float) -> None:
        """An image left the queue for a batch."""

    def ran(self, tasks: Sequence[Manifest], seconds: float) -> None:
        """A batch, by the task of each image, came out of the engine, whatever became of it."""

    def loaded(self, task: Manifest, seconds: float) -> None:
        """A bundle was read from disk."""

    def came(self, task: Manifest) -> None:
        """A bundle is in the memory from now on."""

    def went(self, task: Manifest, *, evicted: bool) -> None:
        """A bundle left the memory; evicted: there was no room for another beside it."""

    def held(self, bundles: int, num_bytes: int) -> None:
        """What is in the memory now."""

    def served(self, tasks: int, refused: int) -> None:
        """What the folder holds now."""


SILENT = Events()
