import json
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from toys import write_coloured

from lspt_serve.errors import DataError, OutputError
from lspt_serve.training.data import SPLITS, Dataset, cache, load_dataset

LABELS = ("blue", "red")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, split in enumerate(SPLITS):
        write_coloured(tmp_path / "data" / split, LABELS, count=3, seed=seed, side=12)
    return tmp_path / "data"


class Loader:
    """Loads with a cache and counts the images that are decoded."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self.decoded = 0

    def __call__(self, img_size: int = 8, **settings: object) -> Dataset:
        self.decoded = 0

        def count(done: int, total: int) -> None:
            self.decoded += 1

        return load_dataset(
            self.data,
            img_size,
            cache=self.folder,
            on_image=count,
            **settings,  # type: ignore[arg-type]
        )

    def files(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*.*"))


@pytest.fixture
def load(data: Path, tmp_path: Path) -> Loader:
    return Loader(data, tmp_path / "cache")


def same(first: Dataset, second: Dataset) -> bool:
    pairs = [(getattr(first, name), getattr(second, name)) for name in SPLITS]
    return (first.labels, first.crop_pct) == (second.labels, second.crop_pct) and all(
        np.array_equal(a.images, b.images) and np.array_equal(a.targets, b.targets)
        for a, b in pairs
    )


def test_what_a_killed_decode_left_is_deleted_by_the_next(load: Loader) -> None:
    load()
    (made,) = load.folder.iterdir()
    left = load.folder / f".{made.name}.lspt-tmp-abcd1234"
    made.rename(left)  # as it was before it was put in place

    load()

    assert load.decoded == 3 * 2 * 3
    assert list(load.folder.iterdir()) == [made]


def test_second_run_decodes_nothing_and_gives_the_same(load: Loader) -> None:
    first = load()
    assert load.decoded == 18
    second = load()

    assert load.decoded == 0
    assert same(first, second)
    assert same(second, load_dataset(load.data, 8))
    assert second.notes == []


def test_images_stay_on_disk_and_cannot_be_changed(load: Loader) -> None:
    for dataset in (load(), load()):
        assert isinstance(dataset.train.images, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            dataset.train.images[0] = 0


def test_cache_is_four_files_in_one_folder(load: Loader) -> None:
    load()

    (folder,) = load.folder.iterdir()
    assert folder.name.startswith("data-")
    assert sorted(path.name for path in folder.iterdir()) == [
        "cache.json",
        "test.npy",
        "train.npy",
        "val.npy",
    ]


@pytest.mark.parametrize("settings", [{"img_size": 6}, {"crop_pct": 0.5}, {"on_bad_image": "skip"}])
def test_other_settings_have_another_cache_and_leave_the_first(
    load: Loader, settings: dict[str, object]
) -> None:
    load()
    load(**settings)  # type: ignore[arg-type]
    assert load.decoded == 18
    load()
    assert load.decoded == 0


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def add(path: Path) -> None:
    path.with_name("new.png").write_bytes(path.read_bytes())


@pytest.mark.parametrize("change", [touch, add, Path.unlink])
def test_files_that_changed_are_decoded_again(load: Loader, change: Callable[[Path], None]) -> None:
    load()
    change(load.data / "train" / "red" / "001.png")
    load()

    assert load.decoded == 18 + (change is add) - (change is Path.unlink)


def test_another_version_of_the_package_decodes_again(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    monkeypatch.setattr(cache, "__version__", "0.0.0")
    load()

    assert load.decoded == 18


def test_split_of_a_single_folder_is_part_of_the_key(tmp_path: Path) -> None:
    write_coloured(tmp_path / "photos", LABELS, count=9)
    load = Loader(tmp_path / "photos", tmp_path / "cache")

    first, other, again = (load(seed=seed) for seed in (0, 1, 0))

    assert same(first, again)
    assert not same(first, other)
    assert load.decoded == 0


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def edit(**fields: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


@pytest.mark.parametrize(
    ("file", "harm", "reason"),
    [
        ("train.npy", flip_a_byte, "train.npy has another sha256"),
        ("test.npy", cut, "test.npy has another sha256"),
        ("val.npy", Path.unlink, "No such file"),
        ("cache.json", empty, "Invalid JSON"),
        ("cache.json", cut, "Invalid JSON"),
        ("cache.json", Path.unlink, "No such file"),
        ("cache.json", edit(key="0" * 64), "its key is another one"),
        ("cache.json", edit(kept={}), "counts other images"),
        ("cache.json", edit(kept={s: [0, 1, 2, 3, 4, 99] for s in SPLITS}), "train.npy is"),
        ("cache.json", edit(more=1), "Extra inputs"),
    ],
)
def test_broken_cache_is_rebuilt_with_a_note(
    load: Loader, file: str, harm: Callable[[Path], None], reason: str
) -> None:
    whole = load()
    wanted = {name: np.array(getattr(whole, name).images) for name in SPLITS}
    (folder,) = load.folder.iterdir()
    harm(folder / file)

    mended = load()

    assert load.decoded == 18
    assert all(np.array_equal(getattr(mended, name).images, wanted[name]) for name in SPLITS)
    (note,) = mended.notes
    assert note.startswith(f"cache {folder} is broken (")
    assert reason in note
    assert note.endswith("); its images are decoded again")
    assert load().notes == []
    assert load.decoded == 0


def test_skipped_images_are_skipped_again_with_the_same_notes(load: Loader) -> None:
    (load.data / "train" / "blue" / "000.png").write_bytes(b"no image")
    (load.data / "val" / "red" / "x.png").write_bytes(
        (load.data / "test" / "red" / "000.png").read_bytes()
    )

    first, second = (load(on_bad_image="skip") for _ in range(2))

    assert load.decoded == 0
    assert same(first, second)
    assert len(second.train) == 5
    assert second.train.targets.tolist() == [0, 0, 1, 1, 1]
    assert [note.split(":")[0] for note in second.notes] == [
        "skipped 1 unreadable image(s)",
        "1 image file(s) stand in two splits",
    ]
    assert first.notes == second.notes


def test_refused_images_leave_no_cache(load: Loader) -> None:
    (load.data / "train" / "blue" / "000.png").write_bytes(b"no image")

    with pytest.raises(DataError, match="1 of 18 images cannot be read"):
        load()

    assert load.files() == []


def test_tar_is_cached_by_its_members(load: Loader, tmp_path: Path) -> None:
    rows = [
        f"{path.relative_to(load.data)},{path.parent.name},{path.parent.parent.name}\n"
        for path in sorted(load.data.rglob("*.png"))
    ]
    (load.data / "labels.csv").write_text("file,class,split\n" + "".join(rows))
    with tarfile.open(tmp_path / "task.tar", "w") as tar:
        tar.add(load.data, arcname=".")
    load.data = tmp_path / "task.tar"

    first, second = load(), load()

    assert load.decoded == 0
    assert same(first, second)
    touch(tmp_path / "task.tar")
    load()
    assert load.decoded == 18


def test_of_two_runs_at_once_one_decodes_and_one_waits(load: Loader) -> None:
    loaders = [Loader(load.data, load.folder) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        datasets = list(pool.map(lambda loader: loader(), loaders))

    assert sorted(loader.decoded for loader in loaders) == [0, 0, 0, 18]
    assert all(same(datasets[0], dataset) for dataset in datasets)
    assert [dataset.notes for dataset in datasets] == [[]] * 4


def test_cache_that_cannot_be_written_is_refused(load: Loader) -> None:
    load.folder.write_text("a file")

    with pytest.raises(OutputError, match="cannot be written"):
        load()
