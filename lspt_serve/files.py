"""Write whole or not at all: to a temporary name beside the target, on to the disk, then renamed.

Read what is a file, and no more of it than there ought to be.
"""

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lspt_serve.errors import OutputError

__all__ = [
    "atomic_file",
    "atomic_folder",
    "check_inside",
    "check_output",
    "locked",
    "read_file",
    "remove_leftovers",
    "sync",
]

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux's
RETRY_S = 0.01  # of a lock
TEMPORARY = ".lspt-tmp-"  # after .NAME, and before 8 letters: nobody calls a folder so


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
        sync(temporary)
        temporary.replace(path)
        _sync_rename(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes `path`, and what was there is deleted."""
    with _temporary(path) as folder:
        new = folder / "new"
        new.mkdir()
        yield new
        sync(new)
        if not _exchange(new, path):
            old = folder / "old"
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise
        _sync_rename(path)


def _exchange(new: Path, old: Path) -> bool:
    """Whether each has the other's place now: nobody finds none, as between two renames.

    False where there is nothing to exchange it for, or no way to.
    """
    if not (rename := getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)):
        return False
    failed: int = rename(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE)
    return not failed


def sync(path: Path) -> None:
    """Wait until the disk has it, a folder with all that is in it: power may go at any time."""
    for part in [*path.rglob("*"), path]:
        if not part.is_symlink():  # which is part of its folder
            _sync_one(part)


def _sync_rename(path: Path) -> None:
    """Where that can be had: it is in place, and whole, all the same."""
    with suppress(OSError):
        _sync_one(path.parent)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a file system that cannot, for folders say
            raise
    finally:
        os.close(handle)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A hidden working folder beside `path`, gone afterwards whatever happened.

    An OSError that names a file elsewhere, one that is read meanwhile, stays what it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}{TEMPORARY}", dir=path.parent))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    try:
        yield folder
    except OSError as error:
        if error.filename is not None and not _lies_in(error.filename, folder, path):
            raise
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lies_in(filename: Any, *folders: Path) -> bool:
    """Whether what an OSError names is one of these or in one; a file by its number may be."""
    if isinstance(filename, int):
        return True
    path = Path(os.fsdecode(filename)).absolute()
    return any(path.is_relative_to(folder.absolute()) for folder in folders)


def remove_leftovers(path: Path) -> None:
    """Delete the temporaries that killed writers of `path` left; nobody may be writing it now.

    A folder that had been put aside for its successor, which then never came, is put back.
    """
    for folder in path.parent.glob(f".{glob.escape(path.name)}{TEMPORARY}{'?' * 8}"):
        old = folder / "old"
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(folder, ignore_errors=True)


def check_inside(path: Path, bundles: Path) -> None:
    """Raises OSError for a path that symbolic links take out of the folder of bundles."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(bundles)):
        raise OSError(
            errno.EXDEV, "a link that leads out of the folder of bundles; put a copy there"
        )


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """Of a regular file: a pipe might never give anything, and a device never end.

    Raises:
        OSError: it is none, larger, or cannot be read.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"{status.st_size} bytes, wanted at most {max_bytes}")
    with path.open("rb") as file:
        return file.read(status.st_size)


@contextmanager
def locked(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Be the only one that writes `path`; the end of the process, however it comes, frees it.

    Args:
        wait_s: for another who writes it.

    Raises:
        OutputError: another process is writing it; its id is named.
    """
    until = time.monotonic() + wait_s
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        while (handle := _take(lock, path, until)) is None:
            time.sleep(RETRY_S)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _take(lock: Path, path: Path, until: float) -> int | None:
    """The lock, open and ours, with our process id in it; None where another try may be luckier."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), lock.stat()):
            os.truncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return handle
    except BlockingIOError:
        holder = os.pread(handle, 20, 0).decode() or "unknown"
        os.close(handle)
        if time.monotonic() < until:
            return None
        raise OutputError(
            f"{path} is being written by process {holder}; wait for its end or give another place"
        ) from None
    except FileNotFoundError:
        pass
    except OSError:  # a full disk, say: the lock is not to be ours for ever
        os.close(handle)
        raise
    os.close(handle)
    return None
