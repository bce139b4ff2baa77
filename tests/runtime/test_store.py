import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import prompts_graph

from lspt_serve.bundle import BASELINE, MANIFEST, TENSORS, Bundle, save_bundle
from lspt_serve.errors import BundleError, UnknownTaskError
from lspt_serve.graph import GraphSpec
from lspt_serve.models import Backbone
from lspt_serve.runtime import PromptStore
from lspt_serve.runtime.aliases import ALIASES_FILE
from lspt_serve.runtime.catalog import Entry
from lspt_serve.runtime.memory import BundleMemory
from lspt_serve.runtime.store import About
from lspt_serve.runtime.unloaded import UNLOADED_FILE
from lspt_serve.signatures import SIGNATURE

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def graph(make_bundle: MakeBundle) -> GraphSpec:
    """What an export for VPT-shallow says of itself."""
    return prompts_graph(make_bundle("vpt-shallow"))


@pytest.fixture
def folder(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    """Two good bundles."""
    for name, num_prompts in {"flowers": 4, "birds": 9}.items():
        bundle = make_bundle("vpt-shallow", name=name, num_prompts=num_prompts)
        save_bundle(bundle, tmp_path / name)
    return tmp_path


def test_store_holds_every_good_bundle(folder: Path, graph: GraphSpec) -> None:
    store = PromptStore(folder, graph)

    assert [bundle.name for bundle in store] == ["birds", "flowers"]
    assert len(store) == 2
    assert store["birds"].tensors["method.prompts"].shape == (9, 24)
    assert store.refused == {}


def test_store_tells_versions_aliases_and_what_is_in_memory(
    folder: Path, graph: GraphSpec, make_bundle: MakeBundle
) -> None:
    for version in (3, 2):
        bundle = make_bundle("vpt-shallow", name="flowers", version=version, num_prompts=4)
        save_bundle(bundle, folder / f"flowers-{version}")
    (folder / "aliases.json").write_text('{"flowers": {"stable": 2}}')
    size = sum(tensor.nbytes for tensor in bundle.tensors.values())
    store = PromptStore(folder, graph, host_bytes=size)

    old, _ = store["flowers:stable"].manifest, store["flowers@3"]

    assert store.about(old) == About([1, 2, 3], {"stable": 2}, resident=False)
    assert store.about(store.manifest("flowers")) == About([1, 2, 3], {"stable": 2}, resident=True)
    assert store.about(store.manifest("birds")) == About([1], {}, resident=False)


def test_task_is_held_while_it_is_in_memory(folder: Path, graph: GraphSpec) -> None:
    (folder / "aliases.json").write_text('{"flowers": {"stable": 1}}')
    store = PromptStore(folder, graph)

    for reference in ("flowers", "flowers@1", "flowers:stable"):
        assert store.held(reference) is store[reference]
    for unknown in ("flower", "flowers@2", "flowers:latest", "flowers@", "flowers\n"):
        assert store.held(unknown) is None

    none = PromptStore(folder, graph, host_bytes=0)
    assert none["flowers"].name == "flowers"
    assert none.held("flowers") is None


def test_task_is_found_by_its_name_not_by_its_folder(folder: Path, graph: GraphSpec) -> None:
    (folder / "birds").rename(folder / "0001")

    assert PromptStore(folder, graph)["birds"].name == "birds"


def not_json(path: Path) -> None:
    (path / MANIFEST).write_text("{")


def no_object(path: Path) -> None:
    (path / MANIFEST).write_text("[1, 2]")


def nested_too_deep(path: Path) -> None:
    (path / MANIFEST).write_text("[" * 100_000)


def number_without_end(path: Path) -> None:
    (path / MANIFEST).write_text('{"version": ' + "9" * 5000 + "}")


def no_text(path: Path) -> None:
    (path / MANIFEST).write_bytes(b"\xff\xfe\x00")


def no_tensors(path: Path) -> None:
    (path / TENSORS).unlink()


def truncated_tensors(path: Path) -> None:
    data = (path / TENSORS).read_bytes()
    (path / TENSORS).write_bytes(data[:-4])


def other_version(path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "format_version": 2}))


def folder_for_a_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()
    (path / MANIFEST).mkdir()


def pipe_for_a_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)


def pipe_for_tensors(path: Path) -> None:
    (path / TENSORS).unlink()
    os.mkfifo(path / TENSORS)


@pytest.mark.parametrize(
    "spoil",
    [
        pipe_for_a_manifest,
        pipe_for_tensors,
        folder_for_a_manifest,
        nested_too_deep,
        no_object,
        no_tensors,
        no_text,
        not_json,
        number_without_end,
        other_version,
        truncated_tensors,
    ],
)
def test_broken_bundle_is_left_out_with_the_reason_and_harms_no_other(
    folder: Path, graph: GraphSpec, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    spoil(folder / "birds")

    with caplog.at_level(logging.WARNING):
        store = PromptStore(folder, graph)

    assert [bundle.name for bundle in store] == ["flowers"]
    assert store.refused.keys() == {"birds"}
    assert store.refused["birds"] in caplog.text
    assert "\n" not in store.refused["birds"]


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("vpt-deep", {}, "method vpt-deep, wanted vpt-shallow"),
        ("linear", {}, "method linear, wanted vpt-shallow"),
        ("vpt-shallow", {"pool": "patch_mean"}, "pool patch_mean, wanted cls"),
    ],
)
def test_bundle_for_another_graph_is_left_out_with_the_difference(
    folder: Path,
    graph: GraphSpec,
    make_bundle: MakeBundle,
    method: str,
    options: dict[str, str],
    reason: str,
) -> None:
    save_bundle(make_bundle(method, name="other", **options), folder / "other")

    store = PromptStore(folder, graph)

    assert len(store) == 2
    assert reason in store.refused["other"]


def test_bundle_of_another_backbone_is_left_out(
    folder: Path,
    graph: GraphSpec,
    make_bundle: MakeBundle,
    make_backbone: Callable[..., Backbone],
) -> None:
    stranger = make_bundle("vpt-shallow", name="stranger", backbone=make_backbone(seed=1))
    save_bundle(stranger, folder / "stranger")

    store = PromptStore(folder, graph)

    assert len(store) == 2
    assert "belongs to backbone" in store.refused["stranger"]


def test_second_bundle_of_a_version_is_left_out(
    folder: Path, graph: GraphSpec, make_bundle: MakeBundle
) -> None:
    save_bundle(make_bundle("vpt-shallow", name="birds", num_prompts=2), folder / "later")

    store = PromptStore(folder, graph)

    assert store["birds"].tensors["method.prompts"].shape == (9, 24)
    assert store.refused == {
        "later": "task 'birds' version 1 is there already, from another folder"
    }


def test_baseline_is_left_out_with_the_reason(folder: Path, graph: GraphSpec) -> None:
    (folder / "whole").mkdir()
    (folder / "whole" / BASELINE).write_text("{}")

    store = PromptStore(folder, graph)

    assert len(store) == 2
    assert store.refused.keys() == {"whole"}
    assert "whole: a baseline that lspt train --method full wrote" in store.refused["whole"]


def test_baseline_is_no_folder_of_bundles(folder: Path, graph: GraphSpec) -> None:
    (folder / BASELINE).write_text("{}")

    with pytest.raises(BundleError, match="a baseline that lspt train --method full wrote"):
        PromptStore(folder, graph)


def test_hidden_folders_and_folders_without_a_manifest_are_no_bundles(
    folder: Path, graph: GraphSpec, make_bundle: MakeBundle
) -> None:
    save_bundle(make_bundle("vpt-shallow", name="half-written"), folder / ".half-written")
    (folder / "notes").mkdir()
    (folder / "README.md").write_text("my bundles")

    store = PromptStore(folder, graph)

    assert len(store) == 2
    assert store.refused == {}


@pytest.mark.parametrize("file", [None, MANIFEST, TENSORS, SIGNATURE])
def test_link_that_leads_out_is_refused_until_a_copy_is_there(
    file: str | None,
    folder: Path,
    graph: GraphSpec,
    make_bundle: MakeBundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "linked"
    save_bundle(make_bundle("vpt-shallow", name="linked"), elsewhere)
    (elsewhere / SIGNATURE).write_bytes(bytes(64))
    link = folder / "linked" / (file or "")
    if file is not None:
        shutil.copytree(elsewhere, folder / "linked")
        link.unlink()
    link.symlink_to(elsewhere / (file or ""))

    store = PromptStore(folder, graph)
    name = f"linked/{file or MANIFEST}"
    out = "a link that leads out of the folder of bundles; put a copy there"
    assert store.refused == {"linked": f"{name}: {out}"}
    assert [task.name for task in store] == ["birds", "flowers"]

    link.unlink()
    (elsewhere / (file or "")).rename(link)  # the very files, of the same times
    store.refresh()
    assert not store.refused
    assert store["linked"].name == "linked"


def test_links_within_the_folder_are_followed_as_kubernetes_makes_them(
    folder: Path, graph: GraphSpec, make_bundle: MakeBundle
) -> None:
    own = folder / "linked"
    save_bundle(make_bundle("vpt-shallow", name="linked"), own / "..2026_11_27")
    (own / "..data").symlink_to("..2026_11_27")
    for file in (MANIFEST, TENSORS):
        (own / file).symlink_to(f"..data/{file}")

    assert PromptStore(folder, graph)["linked"].name == "linked"


def test_folder_of_bundles_may_itself_be_a_link(
    folder: Path, graph: GraphSpec, tmp_path_factory: pytest.TempPathFactory
) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "current"
    link.symlink_to(folder)

    store = PromptStore(link, graph)

    assert [task.name for task in store] == ["birds", "flowers"]
    assert store["birds"].name == "birds"


@pytest.mark.parametrize("file", [ALIASES_FILE, UNLOADED_FILE])
def test_file_of_the_folder_that_is_a_link_out_is_not_read(
    file: str, folder: Path, graph: GraphSpec, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / file
    elsewhere.write_text("{}" if file == ALIASES_FILE else "[]")
    (folder / file).symlink_to(elsewhere)

    with pytest.raises(BundleError, match=f"{file}.*leads out of the folder of bundles"):
        PromptStore(folder, graph)


def test_name_of_a_folder_is_no_line_of_the_log(
    folder: Path, graph: GraphSpec, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "birds").rename(folder / "birds\n2026 all is well\x1b[2K")
    not_json(folder / "birds\n2026 all is well\x1b[2K")

    with caplog.at_level(logging.WARNING):
        store = PromptStore(folder, graph)

    assert [*store.refused] == [r"birds\n2026 all is well\x1b[2K"]
    assert not {"\n", "\x1b"} & {*"".join(caplog.messages), *"".join(store.refused.values())}


def test_empty_folder_is_an_empty_store(tmp_path: Path, graph: GraphSpec) -> None:
    assert list(PromptStore(tmp_path, graph)) == []


def test_folder_that_does_not_exist_is_refused(tmp_path: Path, graph: GraphSpec) -> None:
    with pytest.raises(BundleError, match="no such folder of bundles"):
        PromptStore(tmp_path / "nowhere", graph)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("flower", "unknown task 'flower'; nearest: flowers"),
        ("flower@1", "unknown task 'flower'; nearest: flowers"),
        ("zzzzzz", "unknown task 'zzzzzz'"),
        ("", "unknown task ''"),
        ("flowers@1@1", "unknown task 'flowers@1@1'; nearest: flowers"),
        ("flowers@", "unknown task 'flowers@'; nearest: flowers"),
        ("flowers@-1", "unknown task 'flowers@-1'; nearest: flowers"),
        ("flowers@2", "unknown version 'flowers@2'; there are @1"),
        ("flowers@" + "9" * 5000, "unknown task 'flowers@" + "9" * 5000 + "'"),
        ("flowers:", "unknown version 'flowers:'; there are @1"),
        ("flowers:stable", "unknown version 'flowers:stable'; there are @1"),
    ],
)
def test_unknown_task_or_version_is_refused_and_what_there_is_named(
    folder: Path, graph: GraphSpec, task: str, message: str
) -> None:
    with pytest.raises(UnknownTaskError) as caught:
        PromptStore(folder, graph)[task]

    assert str(caught.value) == message


def test_bundle_that_two_read_at_once_is_one(make_bundle: MakeBundle, tmp_path: Path) -> None:
    first, second = (make_bundle("vpt-shallow", name="flowers") for _ in range(2))
    entry, memory = Entry(tmp_path, first.manifest), BundleMemory(2**20)

    assert memory.put(entry, first) is first
    assert memory.put(entry, second) is first
    assert memory.get(entry) is first
