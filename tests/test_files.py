import errno
import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lspt_serve.errors import OutputError
from lspt_serve.files import (
    _exchange,
    atomic_file,
    atomic_folder,
    check_output,
    locked,
    read_file,
    remove_leftovers,
)

Atomic = Callable[[Path], AbstractContextManager[Path]]


def write(path: Path, text: str) -> None:
    """A file, or a folder of one file, as `path` is one or the other."""
    (path / "file" if path.is_dir() else path).write_text(text)


def read(path: Path) -> str:
    return (path / "file" if path.is_dir() else path).read_text()


def write_half(atomic: Atomic, path: Path, error: type[BaseException]) -> None:
    with atomic(path) as temporary:
        write(temporary, "half of the ne")
        raise error


@pytest.fixture(params=[atomic_file, atomic_folder])
def atomic(request: pytest.FixtureRequest) -> Atomic:
    result: Atomic = request.param
    return result


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "target"


@pytest.mark.parametrize("times", [1, 2])
def test_the_last_content_written_is_there_and_nothing_else(
    atomic: Atomic, target: Path, times: int
) -> None:
    for text in ["old", "new"][-times:]:
        with atomic(target) as temporary:
            write(temporary, text)
    assert read(target) == "new"
    assert list(target.parent.iterdir()) == [target]


def test_nothing_is_to_be_seen_before_the_end(atomic: Atomic, target: Path) -> None:
    with atomic(target) as temporary:
        write(temporary, "new")
        assert not target.exists()
        assert all(path.name.startswith(".") for path in target.parent.iterdir())


def test_power_that_goes_leaves_the_old_content_or_the_new(
    atomic: Atomic, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []

    def fsync(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().name, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic(target) as temporary:
        write(temporary, "new")
        of_folder = temporary.is_dir()
        if of_folder:
            (temporary / "inside").mkdir()
            (temporary / "inside" / "deep").touch()
            (temporary / "link").symlink_to("nowhere")

    written = {"file", "inside", "deep", "new"} if of_folder else {"target"}
    assert synced[-1] == ("out", True)
    assert sorted(synced[:-1]) == [(name, False) for name in sorted(written)]


def test_file_system_that_cannot_sync_is_written_to(
    atomic: Atomic, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    with atomic(target) as temporary:
        write(temporary, "new")
    assert read(target) == "new"


def test_disk_that_fails_in_the_end_leaves_the_old_content(
    atomic: Atomic, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with atomic(target) as temporary:
        write(temporary, "old")
    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(OutputError, match=f"{target} cannot be written: Input/output error"),
        atomic(target) as temporary,
    ):
        write(temporary, "new")
    assert read(target) == "old"
    assert list(target.parent.iterdir()) == [target]


def test_folder_that_fails_once_all_is_in_place_ends_nothing(
    atomic: Atomic, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        if target.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with atomic(target) as temporary:
        write(temporary, "new")
    assert read(target) == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_leaves_the_old_content_and_no_temporary(
    atomic: Atomic, target: Path, error: type[BaseException]
) -> None:
    with atomic(target) as temporary:
        write(temporary, "old")
    with pytest.raises(error):
        write_half(atomic, target, error)
    assert read(target) == "old"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_inside_leaves_nothing_where_nothing_was(
    atomic: Atomic, target: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        write_half(atomic, target, error)
    assert list(target.parent.iterdir()) == []


def test_a_failing_disk_is_an_output_error_that_names_the_path(
    atomic: Atomic, target: Path
) -> None:
    wanted = f"{target} cannot be written: No space left on device"
    with pytest.raises(OutputError, match=wanted), atomic(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(target.parent.iterdir()) == []


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(
    atomic: Atomic, target: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), atomic(target):
        (tmp_path / "nowhere").read_bytes()
    assert list(target.parent.iterdir()) == []


def test_what_fails_inside_the_output_is_blamed_on_it(
    atomic: Atomic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = "^target cannot be written: No such file"
    with pytest.raises(OutputError, match=wanted), atomic(Path("target")) as temporary:
        (temporary.parent / "none" / "file").write_text("new")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
def test_an_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    target: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    with atomic_folder(target) as temporary:
        write(temporary, "old")
    rename = Path.rename
    monkeypatch.setattr("lspt_serve.files._exchange", lambda *_: False)  # a system that has none

    def fail_for_new(self: Path, to: Path) -> Path:
        if self.name == "new":
            raise error
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises((OutputError, KeyboardInterrupt)), atomic_folder(target) as temporary:
        write(temporary, "new")
    assert read(target) == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_takes_anothers_place_where_they_cannot_be_exchanged(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lspt_serve.files._exchange", lambda *_: False)
    for text in ("old", "new"):
        with atomic_folder(target) as temporary:
            write(temporary, text)
        assert read(target) == text
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_is_replaced_is_never_missing(target: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    if not _exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system cannot exchange two folders")
    with atomic_folder(target) as temporary:
        write(temporary, "0")
    done, missing = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            if not target.exists():
                missing.append(target)

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(100):
        with atomic_folder(target) as temporary:
            write(temporary, str(number))
    done.set()
    looking.join()

    assert missing == []
    assert read(target) == "99"


def test_a_parent_that_is_a_file_is_an_output_error(atomic: Atomic, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), atomic(tmp_path / "file" / "out"):
        pytest.fail("no work may be done for an output that cannot be written")


def test_a_file_does_not_replace_a_folder(target: Path) -> None:
    with atomic_folder(target) as temporary:
        write(temporary, "old")
    with pytest.raises(OutputError, match="cannot be written"), atomic_file(target) as temporary:
        write(temporary, "new")
    assert read(target) == "old"


def test_an_output_that_does_not_exist_passes(target: Path) -> None:
    check_output(target, overwrite=False)


@pytest.mark.parametrize("folder", [False, True])
def test_an_output_that_exists_needs_overwrite(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "target"
    target.mkdir() if folder else target.touch()
    with pytest.raises(OutputError, match=r"target exists already; .* --overwrite"):
        check_output(target, overwrite=False, marker="ours.json")


@pytest.mark.parametrize("marker", [None, "ours.json"])
def test_a_foreign_folder_is_not_replaced(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="is not replaced"):
        check_output(tmp_path, overwrite=True, marker=marker)


def test_a_folder_named_as_the_marker_does_not_make_a_folder_ours(tmp_path: Path) -> None:
    (tmp_path / "ours.json").mkdir()
    with pytest.raises(OutputError, match=r"no folder with ours\.json"):
        check_output(tmp_path, overwrite=True, marker="ours.json")


def test_a_folder_of_ours_and_a_file_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "ours.json").touch()
    check_output(tmp_path, overwrite=True, marker="ours.json")
    check_output(tmp_path / "ours.json", overwrite=True)


def test_leftovers_are_those_of_the_path_alone(tmp_path: Path) -> None:
    mark = ".lspt-tmp-12345678"
    others = [f".a.b{mark}{mark}", f".a.c{mark}", f".axb{mark}", f"a.b{mark}", ".a.b"]
    others += [".a.b-snapshot", ".a.b-12345678"]  # somebody's own
    for name in [f".a.b{mark}", ".a.b.lspt-tmp-abcd_efg", *others]:
        (tmp_path / name / "new").mkdir(parents=True)

    remove_leftovers(tmp_path / "a.b")

    assert {path.name for path in tmp_path.iterdir()} == {*others}


def test_temporaries_of_a_writer_are_its_leftovers(atomic: Atomic, target: Path) -> None:
    killed = atomic(target)
    killed.__enter__()

    remove_leftovers(target)

    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_what_was_put_aside_for_what_never_came_is_put_back(target: Path, there: bool) -> None:
    aside = target.parent / ".target.lspt-tmp-12345678" / "old"
    aside.mkdir(parents=True)
    (aside / "file").write_text("old")
    if there:
        target.mkdir()
        (target / "file").write_text("new")

    remove_leftovers(target)

    assert read(target) == ("new" if there else "old")
    assert list(target.parent.iterdir()) == [target]


def test_lock_is_refused_while_it_is_held_and_leaves_nothing(target: Path) -> None:
    with locked(target):
        with pytest.raises(OutputError, match=f"is being written by process {os.getpid()};"):
            locked(target).__enter__()
        with locked(target.with_name("another")):
            pass
    with locked(target):
        pass

    assert list(target.parent.iterdir()) == []


def test_lock_is_waited_for_as_long_as_is_said(target: Path) -> None:
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(target):
            held.set()
            let_go.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with pytest.raises(OutputError, match=f"is being written by process {os.getpid()};"):
        locked(target, wait_s=0.1).__enter__()
    threading.Timer(0.1, let_go.set).start()
    with locked(target, wait_s=10):
        assert let_go.is_set()
    thread.join()


def test_lock_of_nobody_is_taken(target: Path) -> None:
    target.parent.mkdir()
    (target.parent / ".target.lock").write_text("999999999")

    with locked(target), pytest.raises(OutputError, match=f"process {os.getpid()};"):
        locked(target).__enter__()


def test_lock_that_its_holder_deletes_meanwhile_is_taken_anew(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our opening the file and locking it, its holder deletes it, another one comes."""
    lock, flock = target.parent / ".target.lock", fcntl.flock
    calls: list[int] = []

    def late(handle: int, how: int) -> None:
        if not calls:
            lock.unlink()
            lock.touch()
        calls.append(handle)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(target):
        assert len(calls) == 2
        assert lock.read_text() == str(os.getpid())


def test_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")

    assert read_file(tmp_path / "file", max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, wanted at most 4"):
        read_file(tmp_path / "file", max_bytes=4)


def test_device_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(os.devnull)

    with pytest.raises(OSError, match="not a regular file"):
        read_file(tmp_path / "link", max_bytes=5)


def test_a_lock_that_there_is_no_room_to_write_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "target"
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OutputError, match="No space left"):
            locked(target).__enter__()

    with locked(target):
        assert (tmp_path / ".target.lock").read_text() == str(os.getpid())
