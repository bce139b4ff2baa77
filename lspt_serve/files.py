"""Write whole or not at all: to a temporary name beside the target, then renamed."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lspt_serve.errors import OutputError

__all__ = ["atomic_file", "atomic_folder", "check_output"]


def check_output(path: Path, *, overwrite: bool, marker: str | None = None) -> None:
    """Refuse, before any work is done, an output that would cost data.

    Args:
        overwrite: an existing output may be replaced, ...
        marker: ... a folder if it holds this file, that is, if it is one of ours; None: a file.

    Raises:
        OutputError: the output exists and may not be replaced.
    """
    if not path.exists():
        return
    if not overwrite:
        raise OutputError(
            f"{path} exists already; give another --out, or --overwrite to replace it"
        )
    if marker is not None and not (path / marker).is_file():
        raise OutputError(f"{path} is no folder with {marker} in it; it is not replaced")
    if marker is None and path.is_dir():
        raise OutputError(f"{path} is a folder; it is not replaced by a file")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it becomes `path`."""
    with _temporary(path) as folder:
        temporary = folder / path.name
        yield temporary
        temporary.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes `path`, and what was there is deleted."""
    with _temporary(path) as folder:
        new = folder / "new"
        new.mkdir()
        yield new
        old = folder / "old"
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A hidden working folder beside `path`, gone afterwards whatever happened."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    try:
        yield folder
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
