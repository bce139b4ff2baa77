"""The prompt store: the tasks that a server holds, read from a folder of bundles."""

import logging
from collections.abc import Iterator
from pathlib import Path

from lspt_serve.bundle import BASELINE, MANIFEST, Bundle, check_no_baseline, load_bundle
from lspt_serve.errors import BundleError, UnknownTaskError, nearest
from lspt_serve.graph import GraphSpec, check_fits

__all__ = ["PromptStore"]

logger = logging.getLogger(__name__)


class PromptStore:
    """Bundles by task name. A bundle that is broken or does not fit the graph is left out.

    Args:
        folder: holds one folder per bundle.

    Raises:
        BundleError: no such folder, or one that is itself a baseline.
    """

    def __init__(self, folder: Path, graph: GraphSpec) -> None:
        if not folder.is_dir():
            raise BundleError(
                f"{folder}: no such folder of bundles; make one: lspt train --out {folder}/NAME"
            )
        check_no_baseline(folder)
        self._bundles: dict[str, Bundle] = {}
        self.refused: dict[str, str] = {}  # folder name -> why
        found = {p.parent for name in (MANIFEST, BASELINE) for p in folder.glob(f"*/{name}")}
        for path in sorted(found):
            if path.name.startswith("."):
                continue
            try:
                self._add(load_bundle(path), graph)
            except BundleError as error:
                self.refused[path.name] = str(error)
                logger.warning("bundle %s is not served: %s", path.name, error)

    def _add(self, bundle: Bundle, graph: GraphSpec) -> None:
        check_fits(bundle, graph)
        if bundle.name in self._bundles:
            raise BundleError(f"task {bundle.name!r} is held already, from another folder")
        self._bundles[bundle.name] = bundle

    def __getitem__(self, task: str) -> Bundle:
        """Raises UnknownTaskError, which names the nearest tasks."""
        try:
            return self._bundles[task]
        except KeyError:
            raise UnknownTaskError(f"unknown task {task!r}{nearest(task, self._bundles)}") from None

    def __iter__(self) -> Iterator[Bundle]:
        return iter(self._bundles.values())

    def __len__(self) -> int:
        return len(self._bundles)
