"""A store whose folder changes while it is served from."""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from toys import prompts_graph, simple_bundle

import lspt_serve.runtime.scan
from lspt_serve.bundle import MANIFEST, TENSORS, Bundle, load_bundle, save_bundle
from lspt_serve.errors import BundleError, OutputError, StorageError, UnknownTaskError
from lspt_serve.graph import GraphSpec
from lspt_serve.runtime import PromptStore, Watch
from lspt_serve.runtime.aliases import ALIASES_FILE


@pytest.fixture
def graph() -> GraphSpec:
    return prompts_graph(simple_bundle("any"))


@pytest.fixture
def add(tmp_path: Path) -> Callable[..., None]:
    """add(name, version, number): write a bundle whose prompt is the number."""

    def write(name: str, version: int = 1, *, number: float = 0, folder: str = "") -> None:
        bundle = simple_bundle(name, number=number, version=version)
        save_bundle(bundle, tmp_path / (folder or f"{name}-{version}"))

    return write


def number_of(bundle: Bundle) -> float:
    return float(bundle.tensors["method.prompts"][0, 0])


def test_highest_version_is_what_the_name_stands_for(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    for version in (2, 10, 9):
        add("flowers", version, number=version)
    store = PromptStore(tmp_path, graph)

    assert len(store) == 1
    assert number_of(store["flowers"]) == 10
    assert [number_of(store[f"flowers@{version}"]) for version in (2, 9, 10)] == [2, 9, 10]


def test_folder_that_is_dropped_in_is_served_after_the_next_look(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    store = PromptStore(tmp_path, graph)
    before = store.generation
    add("flowers", number=5)
    with pytest.raises(UnknownTaskError):
        store["flowers"]

    store.refresh()

    assert number_of(store["flowers"]) == 5
    assert store.generation == before + 1


def test_folders_that_are_gone_for_a_moment_one_after_the_other_are_served_all_the_while(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("birds", "flowers"):
        add(name)
    store = PromptStore(tmp_path, graph)
    absent = iter(["birds-1", "flowers-1", ""])
    find = lspt_serve.runtime.scan._find_bundles

    def find_all_but_one(folder: Path, *, signed: bool) -> Iterator[Any]:
        gone = next(absent)
        return (found for found in find(folder, signed=signed) if found[0] != gone)

    monkeypatch.setattr(lspt_serve.runtime.scan, "_find_bundles", find_all_but_one)
    store.refresh()

    assert [task.name for task in store] == ["birds", "flowers"]
    assert next(absent, None) is None


def test_bundle_that_is_replaced_while_it_is_read_again_is_served_all_the_same(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("flowers", number=0)
    store = PromptStore(tmp_path, graph, host_bytes=0)
    look, numbers = store.refresh, iter([2, 3, 4])

    def look_and_replace(**given: Any) -> None:
        look(**given)
        if number := next(numbers, None):
            add("flowers", number=number)

    monkeypatch.setattr(store, "refresh", look_and_replace)
    add("flowers", number=1)

    assert number_of(store["flowers"]) == 4


def test_bundle_that_is_replaced_is_swapped_and_who_has_the_old_one_keeps_it(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph)
    old = store["flowers"]

    add("flowers", number=2, folder="flowers")
    store.refresh()

    assert number_of(store["flowers"]) == 2
    assert number_of(old) == 1


def test_bundle_that_is_removed_is_unknown_and_who_has_it_keeps_it(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", number=1)
    add("birds", number=2)
    store = PromptStore(tmp_path, graph)
    old = store["flowers"]

    shutil.rmtree(tmp_path / "flowers-1")
    store.refresh()

    with pytest.raises(UnknownTaskError):
        store["flowers"]
    assert number_of(store["birds"]) == 2
    assert number_of(old) == 1


def test_broken_bundle_in_a_good_ones_place_is_refused_and_the_old_goes_on(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph)

    add("flowers", number=2, folder="flowers")
    (tmp_path / "flowers" / TENSORS).write_bytes(b"broken")
    store.refresh()

    assert number_of(store["flowers"]) == 1
    assert "not a safetensors file" in store.refused["flowers"]

    add("flowers", number=3, folder="flowers")
    store.refresh()

    assert number_of(store["flowers"]) == 3
    assert store.refused == {}


def test_broken_bundle_in_the_place_of_one_that_is_not_in_memory_is_not_served(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph, host_bytes=0)
    (tmp_path / "flowers" / TENSORS).write_bytes(b"broken")
    store.refresh()

    assert len(store) == 0
    for ask in (store.__getitem__, store.manifest, store.load):
        with pytest.raises(UnknownTaskError, match=r"'flowers' is not served: .*safetensors file"):
            ask("flowers")

    add("flowers", number=3, folder="flowers")
    store.refresh()

    assert number_of(store["flowers"]) == 3


def test_broken_bundle_is_not_served_once_the_old_one_has_left_memory(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph)
    (tmp_path / "flowers" / TENSORS).write_bytes(b"broken")
    store.refresh()
    assert number_of(store["flowers"]) == 1

    store.unload("flowers")
    store.refresh()

    assert len(store) == 0
    with pytest.raises(UnknownTaskError, match=r"'flowers' is not served: .*safetensors file"):
        store.load("flowers")


def test_bundle_whose_tensors_are_gone_is_not_served_from_nowhere(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph, host_bytes=0)
    (tmp_path / "flowers" / TENSORS).unlink()
    for _ in range(2):  # at first it might be one that is being replaced
        store.refresh()

    assert len(store) == 0
    assert "No such file" in store.refused["flowers"]


def test_task_that_is_replaced_beside_its_older_copy_is_that_of_its_folder(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph)
    add("flowers", number=1, folder="a-copy")
    store.refresh()
    add("flowers", number=2, folder="flowers")
    store.refresh()

    for each in (store, PromptStore(tmp_path, graph)):
        assert number_of(each["flowers"]) == 2
        assert "there already" in each.refused["a-copy"]


def test_task_that_comes_back_after_a_gap_is_not_that_of_its_older_copy(
    add: Callable[..., None],
    tmp_path: Path,
    graph: GraphSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add("flowers", number=1, folder="z")
    store = PromptStore(tmp_path, graph)
    add("flowers", number=1, folder="flowers")  # one that starts would take this
    store.refresh()
    shutil.rmtree(tmp_path / "z")

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: add("flowers", number=2, folder="z"))
        store.refresh()

    assert number_of(store["flowers"]) == 2
    assert store.refused.keys() == {"flowers"}


def test_long_reason_is_cut_where_each_image_may_repeat_it(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", folder="flowers")
    manifest = tmp_path / "flowers" / MANIFEST
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(record | {"labels": ["a" * 10_000] * 2}))

    with pytest.raises(
        UnknownTaskError, match=r"'flowers' is not served: .*labels must differ"
    ) as no:
        PromptStore(tmp_path, graph)["flowers"]

    assert len(str(no.value)) < 400


def test_what_is_not_served_is_not_kept_in_memory(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("birds")
    add("flowers")
    store = PromptStore(tmp_path, graph)
    store.unload("flowers")
    for number in range(3):
        add("flowers", number=number)
        add("birds", number=number, folder="a-copy")
        store.refresh()

    assert store._memory.num_bytes == 20  # of birds
    store.load("flowers")
    assert number_of(store["flowers"]) == 2


def test_look_at_an_unchanged_folder_reads_nothing(
    add: Callable[..., None],
    tmp_path: Path,
    graph: GraphSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add("flowers")
    add("broken")
    (tmp_path / "broken-1" / TENSORS).write_bytes(b"broken")
    store = PromptStore(tmp_path, graph)
    read: list[Path] = []
    monkeypatch.setattr(store, "_load", read.append)

    store.refresh()

    assert read == []
    assert store.generation == 1


def test_folder_that_cannot_be_read_any_more_changes_nothing(
    add: Callable[..., None],
    tmp_path: Path,
    graph: GraphSpec,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "store").mkdir()
    save_bundle(simple_bundle("flowers", number=1), tmp_path / "store" / "flowers")
    store = PromptStore(tmp_path / "store", graph)

    shutil.rmtree(tmp_path / "store")
    store.refresh()

    assert number_of(store["flowers"]) == 1
    assert "cannot be read" in caplog.text


def test_default_can_be_rolled_back_and_forward(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    for version in (1, 2):
        add("flowers", version, number=version)
    store = PromptStore(tmp_path, graph)

    store.set_alias("flowers", "default", 1)
    assert number_of(store["flowers"]) == 1
    assert number_of(store["flowers@2"]) == 2

    add("flowers", 3, number=3)
    store.refresh()
    assert number_of(store["flowers"]) == 1

    store.set_alias("flowers", "default", None)
    assert number_of(store["flowers"]) == 3


def test_alias_reaches_every_server_of_the_folder(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    for version in (1, 2):
        add("flowers", version, number=version)
    one, other = PromptStore(tmp_path, graph), PromptStore(tmp_path, graph)

    one.set_alias("flowers", "stable", 1)
    other.refresh()

    assert number_of(one["flowers:stable"]) == number_of(other["flowers:stable"]) == 1
    assert json.loads((tmp_path / ALIASES_FILE).read_text()) == {"flowers": {"stable": 1}}


def test_alias_for_what_there_is_not_is_refused(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers")
    store = PromptStore(tmp_path, graph)

    with pytest.raises(UnknownTaskError, match="unknown version 'flowers@7'; there are @1"):
        store.set_alias("flowers", "stable", 7)
    with pytest.raises(UnknownTaskError, match="unknown task 'flower'"):
        store.set_alias("flower", "stable", 1)

    assert not (tmp_path / ALIASES_FILE).exists()


def test_alias_whose_version_is_gone_is_an_unknown_version(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    for version in (1, 2):
        add("flowers", version)
    store = PromptStore(tmp_path, graph)
    store.set_alias("flowers", "stable", 1)

    shutil.rmtree(tmp_path / "flowers-1")
    store.refresh()

    with pytest.raises(UnknownTaskError, match="there are @2, :stable"):
        store["flowers:stable"]


@pytest.mark.parametrize("text", ["{", "[]", '{"flowers": {"stable": 0}}', '{"../x": {}}', "\xff"])
def test_aliases_that_are_broken_are_refused_and_the_old_go_on(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, text: str
) -> None:
    for version in (1, 2):
        add("flowers", version, number=version)
    store = PromptStore(tmp_path, graph)
    store.set_alias("flowers", "default", 1)

    (tmp_path / ALIASES_FILE).write_text(text, "latin-1")
    store.refresh()

    assert number_of(store["flowers"]) == 1
    assert ALIASES_FILE in store.refused
    assert "\n" not in store.refused[ALIASES_FILE]


def test_alias_that_cannot_be_written_is_said(
    add: Callable[..., None],
    tmp_path: Path,
    graph: GraphSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add("flowers")
    store = PromptStore(tmp_path, graph)

    def full(*args: object, **settings: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(OutputError, match=r"aliases\.json cannot be written: No space left"):
        store.set_alias("flowers", "stable", 1)
    assert "aliases.json" not in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("alias", ["Stable", "", "../x", "a b", "x" * 65])
def test_alias_that_could_not_be_read_again_is_not_written(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, alias: str
) -> None:
    add("flowers")
    store = PromptStore(tmp_path, graph)

    with pytest.raises(BundleError, match="no alias can be made"):
        store.set_alias("flowers", alias, 1)

    assert not (tmp_path / ALIASES_FILE).exists()


def test_default_whose_version_is_gone_hides_no_other_task(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    for version in (1, 2):
        add("flowers", version, number=version)
    add("birds")
    store = PromptStore(tmp_path, graph)
    store.set_alias("flowers", "default", 1)

    shutil.rmtree(tmp_path / "flowers-1")
    store.refresh()

    assert [manifest.name for manifest in store] == ["birds"]
    assert store.refused == {ALIASES_FILE: "flowers:default is version 1, which there is not"}
    assert number_of(store["flowers@2"]) == 2
    with pytest.raises(UnknownTaskError, match="there are @2, :default"):
        store["flowers"]

    store.set_alias("flowers", "default", None)

    assert number_of(store["flowers"]) == 2


def test_bundle_that_arrives_file_by_file_is_served_when_it_is_whole(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", number=3)
    (tmp_path / "copy").mkdir()
    store = PromptStore(tmp_path / "copy", graph)
    source, target = tmp_path / "flowers-1", tmp_path / "copy" / "flowers"
    target.mkdir()
    data = (source / TENSORS).read_bytes()

    shutil.copy2(source / MANIFEST, target)
    store.refresh()
    assert "cannot be read" in store.refused["flowers"]
    (target / TENSORS).write_bytes(data[:100])
    store.refresh()
    assert "not a safetensors file" in store.refused["flowers"]
    (target / TENSORS).write_bytes(data)
    store.refresh()

    assert number_of(store["flowers"]) == 3
    assert store.refused == {}


@pytest.mark.parametrize("error", [MemoryError("too large"), OSError("too many open files")])
def test_bundle_that_cannot_be_read_now_is_read_at_the_next_look_and_stops_no_other(
    add: Callable[..., None],
    tmp_path: Path,
    graph: GraphSpec,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    store = PromptStore(tmp_path, graph)
    add("birds", number=1)
    add("flowers", number=2)
    read = store._load

    def load(folder: Path) -> Bundle:
        if folder.name == "birds-1":
            raise error
        return read(folder)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_load", load)
        store.refresh()
    assert number_of(store["flowers"]) == 2
    assert store.refused == {"birds-1": str(error)}

    store.refresh()

    assert number_of(store["birds"]) == 1
    assert store.refused == {}


def test_copy_of_a_bundle_does_not_take_its_place(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph)

    add("flowers", number=2, folder="a-copy")
    store.refresh()

    other = PromptStore(tmp_path, graph)  # of a process that starts only now
    for each in (store, other):
        assert number_of(each["flowers"]) == 1
        assert "there already" in each.refused["a-copy"]


def test_broken_bundle_that_comes_after_a_gap_lets_the_old_go_on(
    add: Callable[..., None],
    tmp_path: Path,
    graph: GraphSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph, host_bytes=20)
    shutil.rmtree(tmp_path / "flowers")

    def come_back(seconds: float) -> None:
        add("flowers", number=2, folder="flowers")
        (tmp_path / "flowers" / TENSORS).write_bytes(b"broken")

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", come_back)
        store.refresh()
    add("birds", number=5)
    store.refresh()

    assert number_of(store["birds"]) == 5
    assert number_of(store["flowers"]) == 1
    assert "not a safetensors file" in store.refused["flowers"]


def test_names_that_are_no_text_can_be_told(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", folder="caf\udce9")
    (tmp_path / "caf\udce9" / TENSORS).write_bytes(b"broken")

    refused = PromptStore(tmp_path, graph).refused

    assert json.dumps(dict(refused), ensure_ascii=False).encode()
    assert list(refused) == ["caf\N{REPLACEMENT CHARACTER}"]


def test_bundle_larger_than_the_memory_drives_out_no_other(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("small", number=1)
    store = PromptStore(tmp_path, graph, host_bytes=20)
    assert store._memory.num_bytes == 20
    wide = simple_bundle("wide", number=2)
    prompts = np.full((9, 1), 2, np.float32)
    fields = wide.manifest.model_dump(exclude={"dtype", "tensors", "tensors_sha256"})
    tensors = wide.tensors | {"method.prompts": prompts}
    save_bundle(Bundle.create(tensors, **fields), tmp_path / "wide")
    store.refresh()

    assert number_of(store["wide"]) == 2
    assert len(store._memory._bundles) == 1


def test_what_does_not_fit_in_memory_is_read_again_from_disk(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    for number in range(5):
        add(f"task-{number}", number=number)
    store = PromptStore(tmp_path, graph, host_bytes=2 * 20)  # 5 floats a task

    for _ in range(2):
        assert [number_of(store[f"task-{number}"]) for number in range(5)] == [0, 1, 2, 3, 4]
    assert store._memory.num_bytes <= 40


def test_bundles_that_come_take_no_memory_of_those_that_are_used(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("used", number=7, folder="used")
    store = PromptStore(tmp_path, graph, host_bytes=2 * 20)
    for number in range(5):
        add(f"task-{number}", number=number)
    store.refresh()
    (tmp_path / "used" / TENSORS).write_bytes(b"broken")
    for number in range(5):
        add(f"more-{number}", number=number)
    store.refresh()
    read = reads_of(store, monkeypatch)

    assert number_of(store["used"]) == 7
    assert read == []


def test_a_bundle_that_goes_while_it_is_read_does_not_stay_in_memory(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph)
    store._memory.drop(store._catalog.find("flowers"))
    load = store._load

    def load_and_lose(folder: Path) -> Bundle:
        bundle = load(folder)
        shutil.rmtree(folder)
        store.refresh()
        return bundle

    monkeypatch.setattr(store, "_load", load_and_lose)

    assert number_of(store["flowers"]) == 1  # as of when it was asked for
    assert store._memory.num_bytes == 0


def reads_of(store: PromptStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that the store reads from now on."""
    read: list[str] = []
    load = store._load

    def loaded(folder: Path) -> Bundle:
        read.append(folder.name)
        return load(folder)

    monkeypatch.setattr(store, "_load", loaded)
    return read


def test_pinned_task_stays_in_memory_whatever_else_is_used(
    add: Callable[..., None],
    tmp_path: Path,
    graph: GraphSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(5):
        add(f"task-{number}", number=number)
    store = PromptStore(tmp_path, graph, host_bytes=2 * 20, pinned=["task-0"])  # 5 floats a task
    read = reads_of(store, monkeypatch)

    for number in (1, 2, 3, 4, 0, 1, 0):
        assert number_of(store[f"task-{number}"]) == number

    assert read == ["task-1-1", "task-2-1", "task-3-1", "task-4-1", "task-1-1"]
    assert store._memory.num_bytes == 40


def test_what_a_pinned_name_stands_for_may_change(
    add: Callable[..., None],
    tmp_path: Path,
    graph: GraphSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add("birds")
    store = PromptStore(tmp_path, graph, host_bytes=20, pinned=["flowers"])
    assert "'flowers' is pinned, but unknown task" in caplog.text
    for version in (1, 2):
        add("flowers", version, number=version)
    store.refresh()
    read = reads_of(store, monkeypatch)
    assert number_of(store["flowers"]) == 2
    assert read == []

    store.set_alias("flowers", "default", 1)

    assert read == ["flowers-1"]  # before anybody asks
    assert number_of(store["flowers"]) == 1
    assert read == ["flowers-1"]
    assert number_of(store["flowers@2"]) == 2
    assert read == ["flowers-1", "flowers-2"]  # no room beside the pinned one
    assert number_of(store["flowers"]) == 1
    assert read == ["flowers-1", "flowers-2"]


def test_pinned_task_larger_than_the_memory_is_served_and_told(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, caplog: pytest.LogCaptureFixture
) -> None:
    add("flowers", number=3)

    store = PromptStore(tmp_path, graph, host_bytes=19, pinned=["flowers"])

    assert "do not fit together in the 19 bytes of memory for bundles; " in caplog.text
    assert caplog.text.rstrip().endswith(": flowers@1")
    assert number_of(store["flowers"]) == 3


def test_pinned_tasks_that_do_not_fit_together_keep_to_the_memory_and_are_told(
    add: Callable[..., None],
    tmp_path: Path,
    graph: GraphSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in range(4):
        add(f"task-{number}", number=number)

    pinned = ["task-2", "task-0", "task-1"]
    store = PromptStore(tmp_path, graph, host_bytes=3 * 20 - 1, pinned=pinned)  # 5 floats a task

    assert caplog.text.rstrip().endswith(": task-1@1")
    read = reads_of(store, monkeypatch)
    for number in (0, 1, 2, 3, 0, 2):
        assert number_of(store[f"task-{number}"]) == number
    assert read == ["task-1-1", "task-3-1"]
    assert store._memory.num_bytes == 2 * 20


@pytest.mark.parametrize("file", [MANIFEST, TENSORS])
def test_bundle_on_a_disk_that_fails_may_be_read_later(
    add: Callable[..., None],
    tmp_path: Path,
    graph: GraphSpec,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    add("flowers", number=1, folder="flowers")
    store, stat = PromptStore(tmp_path, graph, host_bytes=0), Path.stat

    def fail(path: Path, **options: Any) -> os.stat_result:
        if path == tmp_path / "flowers" / file:
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail)

    with pytest.raises(StorageError, match="task 'flowers' cannot be read now; try again later"):
        store["flowers"]

    monkeypatch.undo()
    assert number_of(store["flowers"]) == 1


def test_bundle_that_is_moved_out_and_linked_to_is_refused_once_it_is_read(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    """Its files are the very same, and a look does not tell."""
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    add("flowers", number=1, folder="bundles/flowers")
    store = PromptStore(bundles, graph, host_bytes=0)
    (bundles / "flowers").rename(tmp_path / "elsewhere")
    (bundles / "flowers").symlink_to(tmp_path / "elsewhere")
    store.refresh()

    with pytest.raises(UnknownTaskError, match=r"'flowers' is not served: .*leads out"):
        store["flowers"]

    assert len(store) == 0
    assert "leads out" in store.refused["flowers"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_bytes(bytes(17_000_000))])
def test_task_whose_file_became_what_no_bundle_has_is_unknown(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, make: Callable[[Path], None]
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph, host_bytes=0)
    (tmp_path / "flowers" / TENSORS).unlink()
    make(tmp_path / "flowers" / TENSORS)

    with pytest.raises(UnknownTaskError, match=r"'flowers' is not served: .*cannot be read"):
        store["flowers"]


def test_folder_that_is_away_may_come_back(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    bundles = tmp_path / "mount"
    bundles.mkdir()
    add("flowers", number=1, folder="mount/flowers")
    store = PromptStore(bundles, graph, host_bytes=0)

    bundles.rename(tmp_path / "away")
    with pytest.raises(StorageError, match="task 'flowers' cannot be read now; try again later"):
        store["flowers"]

    (tmp_path / "away").rename(bundles)
    assert number_of(store["flowers"]) == 1


def test_a_disk_that_gives_no_status_loses_no_task(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("flowers", number=3, folder="flowers")
    store, stat = PromptStore(tmp_path, graph), os.stat
    (tmp_path / "lost+found").mkdir()

    def fail(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith(("flowers/bundle.json", "lost+found/bundle.json")):
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        store.refresh()
    assert number_of(store["flowers"]) == 3
    assert "Stale file handle" in store.refused["flowers"]
    assert "lost+found" not in store.refused

    store.refresh()
    assert not store.refused
    assert [task.name for task in store] == ["flowers"]


def test_a_new_bundle_whose_tensors_a_disk_does_not_give_is_refused(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", folder="flowers")
    (tmp_path / "flowers" / TENSORS).unlink()
    (tmp_path / "flowers" / TENSORS).symlink_to(TENSORS)  # to itself

    store = PromptStore(tmp_path, graph)

    assert len(store) == 0
    assert "symbolic links" in store.refused["flowers"]


def test_unchanged_folder_costs_a_look_at_two_files(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("flowers", folder="flowers")
    store, stamp, looked = PromptStore(tmp_path, graph), lspt_serve.runtime.scan._stamp, []

    def look(path: str) -> tuple[int, int, int]:
        looked.append(path)
        return stamp(path)

    monkeypatch.setattr(lspt_serve.runtime.scan, "_stamp", look)
    store.refresh()

    assert looked == [f"{tmp_path}/flowers/{file}" for file in (MANIFEST, TENSORS)]


def test_bundle_that_is_gone_from_disk_and_memory_is_unknown_at_once(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers")
    store = PromptStore(tmp_path, graph, host_bytes=0)
    shutil.rmtree(tmp_path / "flowers-1")

    with pytest.raises(UnknownTaskError, match="unknown task 'flowers'"):
        store["flowers"]


def test_bundle_that_is_replaced_on_disk_and_not_in_memory_is_the_new_one_at_once(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec
) -> None:
    add("flowers", number=1, folder="flowers")
    store = PromptStore(tmp_path, graph, host_bytes=0)
    add("flowers", number=2, folder="flowers")

    assert number_of(store["flowers"]) == 2


def test_bundle_that_is_read_while_the_same_one_takes_its_place_is_served(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment the folder is not there, and then all is as it was before."""
    add("flowers", number=1, folder="flowers")
    store, folder = PromptStore(tmp_path, graph, host_bytes=0), tmp_path / "flowers"
    away: list[Path] = []

    def load(path: Path, **options: Any) -> Bundle:
        if not away:
            away.append(path)
            folder.rename(tmp_path / ".flowers")
            try:
                return load_bundle(path, **options)
            finally:
                (tmp_path / ".flowers").rename(folder)
        return load_bundle(path, **options)

    monkeypatch.setattr("lspt_serve.runtime.store.load_bundle", load)

    assert number_of(store["flowers"]) == 1
    assert away == [folder]


def test_manifest_that_loses_its_tensors_is_unknown_and_the_rest_is_served(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("flowers")
    add("birds", number=2)
    store = PromptStore(tmp_path, graph, host_bytes=0)
    (tmp_path / "flowers-1" / TENSORS).unlink()
    looks: list[None] = []
    refresh = store.refresh
    monkeypatch.setattr(store, "refresh", lambda **given: looks.append(refresh(**given)))

    for requests, said in enumerate(
        ("'flowers' can no longer be read", "unknown task 'flowers'"), 1
    ):
        with pytest.raises(UnknownTaskError, match=said):
            store["flowers"]
        assert len(looks) <= 2 * requests  # at a folder that stays as it is
    assert number_of(store["birds"]) == 2


@pytest.fixture
def watched(tmp_path: Path, graph: GraphSpec) -> Iterator[PromptStore]:
    store = PromptStore(tmp_path, graph)
    watch = Watch(store, interval_s=0.01)
    yield store
    watch.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_watch_sees_what_is_dropped_in(add: Callable[..., None], watched: PromptStore) -> None:
    add("flowers", number=5)
    until(lambda: len(watched) == 1)

    assert number_of(watched["flowers"]) == 5


def test_watch_survives_whatever_goes_wrong(
    add: Callable[..., None],
    watched: PromptStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(watched, "refresh", lambda: 1 / 0)
        until(lambda: "could not be looked at" in caplog.text)
    add("flowers")
    until(lambda: len(watched) == 1)


def test_task_that_is_replaced_again_and_again_is_never_missing_and_never_mixed_up(
    add: Callable[..., None], watched: PromptStore
) -> None:
    """The prompt and the head of a bundle carry one number; both must be of one version."""
    add("other", number=-1, folder="other")
    add("flowers", number=0, folder="flowers")
    until(lambda: len(watched) == 2)
    stop, failures, seen = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            try:
                bundle = watched["flowers"]
                seen.add(number_of(bundle))
                if number_of(bundle) != bundle.head[1][0]:
                    failures.append("prompt and head of two versions")
                if number_of(watched["other"]) != -1:
                    failures.append("mixed up")
            except Exception as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 40):
        add("flowers", number=number, folder="flowers")
        time.sleep(0.01)
    until(lambda: number_of(watched["flowers"]) == 39)
    stop.set()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(seen) > 5
    assert np.isin(list(seen), np.arange(40)).all()
    assert MANIFEST in {path.name for path in (watched.folder / "flowers").iterdir()}


@pytest.mark.parametrize("file", [ALIASES_FILE, "unloaded.json"])
def test_broken_file_ends_a_start_which_would_serve_what_it_may_not(
    add: Callable[..., None], tmp_path: Path, graph: GraphSpec, file: str
) -> None:
    add("flowers")
    (tmp_path / file).write_text("{,")

    with pytest.raises(BundleError, match=f"{file}: .*JSON"):
        PromptStore(tmp_path, graph)
