"""Keeps a prompt store in step with its folder."""

import logging
import threading

from lspt_serve.runtime.store import PromptStore

__all__ = ["Watch"]

INTERVAL_S = 1.0
logger = logging.getLogger(__name__)


class Watch:
    """Refreshes a store every second, in a thread of its own, until it is closed."""

    def __init__(self, store: PromptStore, *, interval_s: float = INTERVAL_S) -> None:
        self._store = store
        self._interval_s = interval_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._interval_s):
            try:
                self._store.refresh()
            except Exception:  # whatever it is, the next look may go well
                logger.exception("the folder of bundles could not be looked at")
