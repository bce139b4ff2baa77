import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lspt_serve.errors import DataError
from lspt_serve.preprocess import decode_image
from lspt_serve.training.data import SPLITS, Dataset, Split, load_dataset
from lspt_serve.training.data.decode import AHEAD

LABELS = ("cat", "dog", "eel")


def save(path: Path, colour: tuple[int, int, int] = (0, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), colour).save(path)


def write_labels(folder: Path, counts: dict[str, int], *, blue: int = 0) -> None:
    """FOLDER/LABEL/*.png; red is the label's index and green the image's."""
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for index in range(count):
            save(folder / label / f"{index}.png", (LABELS.index(label), index, blue))


def write_splits(folder: Path, **counts: dict[str, int]) -> None:
    for blue, (split, labels) in enumerate(counts.items()):  # no file stands in two splits
        write_labels(folder / split, labels, blue=blue)


def ids(split: Split) -> set[tuple[int, int]]:
    """(label, image) of every image, read from its pixels."""
    return {(int(image[0, 0, 0]), int(image[0, 0, 1])) for image in split.images}


def splits(dataset: Dataset) -> list[Split]:
    return [dataset.train, dataset.val, dataset.test]


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    write_splits(
        tmp_path, train={"dog": 3, "cat": 2}, val={"cat": 1, "dog": 1}, test={"dog": 2, "cat": 1}
    )

    dataset = load_dataset(tmp_path, 8)

    assert dataset.labels == ["cat", "dog"]
    assert dataset.sizes == {"train": 5, "val": 2, "test": 3}
    assert ids(dataset.train) == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}
    assert dataset.notes == []


@pytest.mark.parametrize("cached", [False, True])
def test_images_have_the_names_of_their_files(tmp_path: Path, cached: bool) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache" if cached else None
    write_splits(data, train={"cat": 3, "dog": 2}, val={"cat": 1}, test={"dog": 1})
    (data / "train" / "cat" / "1.png").write_bytes(b"no image")

    dataset = load_dataset(data, 8, on_bad_image="skip", cache=cache)

    wanted = ["cat/0.png", "cat/2.png", "dog/0.png", "dog/1.png"]
    assert dataset.train.names == [str(data / "train" / name) for name in wanted]
    assert dataset.merged().train.names == [*dataset.train.names, str(data / "val/cat/0.png")]
    assert dataset.train.names_of([3, 0]) == [dataset.train.names[3], dataset.train.names[0]]


def test_images_without_names_go_by_their_numbers(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"cat": 1, "dog": 1}, val={"cat": 1}, test={"dog": 1})
    dataset = load_dataset(tmp_path, 8)

    unnamed = replace(dataset, val=replace(dataset.val, names=None)).merged()

    assert unnamed.train.names is None
    assert unnamed.train.names_of([2, 0]) == ["row 2", "row 0"]


def test_images_are_resized_and_keep_their_target(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 4, "dog": 4})

    for split in splits(load_dataset(tmp_path, 8)):
        assert split.images.dtype == np.uint8
        assert split.images.shape == (len(split), 8, 8, 3)
        assert split.images[:, 0, 0, 0].tolist() == split.targets.tolist()


def test_single_folder_is_split_70_15_15_for_every_label(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 20, "dog": 40, "eel": 3})

    dataset = load_dataset(tmp_path, 4)

    per_label = [np.bincount(split.targets).tolist() for split in splits(dataset)]
    assert per_label == [[14, 28, 1], [3, 6, 1], [3, 6, 1]]


def test_splits_of_a_single_folder_are_disjoint_and_leave_nothing_out(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 20, "dog": 11})

    parts = [ids(split) for split in splits(load_dataset(tmp_path, 4))]

    assert sum(map(len, parts)) == 31
    assert len(set.union(*parts)) == 31


def test_split_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 20, "dog": 20})

    first, again, other = (load_dataset(tmp_path, 4, seed=seed) for seed in (3, 3, 4))

    assert np.array_equal(first.train.images, again.train.images)
    assert np.array_equal(first.test.images, again.test.images)
    assert ids(first.test) != ids(other.test)


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ({"cat": 2}, {"cat": 1}, r"1 label\(s\) \(cat\); wanted at least 2"),
        ({}, {}, r"0 label\(s\)"),
        ({"cat": 2, "dog": 2}, {}, "the val split is empty"),
        ({"cat": 2, "dog": 2}, {"cat": 1, "eel": 1}, "labels that train lacks: eel"),
        ({"cat": 2, "dog": 0}, {"cat": 1, "dog": 1}, "train has no image of: dog"),
    ],
)
def test_splits_that_cannot_be_learned_from_are_refused(
    tmp_path: Path, train: dict[str, int], val: dict[str, int], message: str
) -> None:
    write_splits(tmp_path, train=train, val=val, test=dict.fromkeys(train, 1))
    (tmp_path / "train").mkdir(exist_ok=True)
    (tmp_path / "val").mkdir(exist_ok=True)
    (tmp_path / "test").mkdir(exist_ok=True)

    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path, 4)


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(tmp_path / "nowhere", 4)


def test_train_without_val_is_refused(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"cat": 2, "dog": 2}, test={"cat": 1})

    with pytest.raises(DataError, match="has train but no val"):
        load_dataset(tmp_path, 4)


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (("training", "validation", "test"), "test, training, validation"),
        (("Train", "Test"), "Test, Train"),
        (("val", "testing", "extra"), "testing, val"),
    ],
)
def test_splits_by_other_names_are_no_labels(
    tmp_path: Path, names: tuple[str, ...], listed: str
) -> None:
    write_splits(tmp_path, **{name: {"cat": 3, "dog": 3} for name in names})

    with pytest.raises(DataError, match=f"has {listed} but no train; wanted train, val and test"):
        load_dataset(tmp_path, 4)


def test_label_may_be_called_as_a_split(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "dog").rename(tmp_path / "test")

    assert load_dataset(tmp_path, 4).labels == ["cat", "test"]


@pytest.mark.parametrize("name", ["validation", "valid"])
def test_val_may_be_called_otherwise(tmp_path: Path, name: str) -> None:
    every = {"cat": 1, "dog": 2}
    write_splits(tmp_path, **{"train": every, name: every, "test": every})

    dataset = load_dataset(tmp_path, 4)

    assert [split.images[0, 0, 0, 2] for split in splits(dataset)] == [0, 1, 2]
    assert ids(dataset.val) == {(0, 0), (1, 0), (1, 1)}


def test_val_itself_is_taken_where_there_are_two(tmp_path: Path) -> None:
    every = {"cat": 1, "dog": 1}
    write_splits(tmp_path, train=every, validation=every, val=every, valid=every, test=every)

    assert load_dataset(tmp_path, 4).val.images[0, 0, 0, 2] == 2


def test_image_of_another_format_says_what_to_do(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 3, "dog": 3})
    save(tmp_path / "dog" / "more.webp")

    wanted = r"more\.webp \(.* accepted formats: JPEG, PNG, BMP, GIF\); mend or convert them, or"
    with pytest.raises(DataError, match=wanted):
        load_dataset(tmp_path, 4)


def test_single_folder_with_one_label_is_refused(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 9})

    with pytest.raises(DataError, match=r"1 label\(s\) \(cat\)"):
        load_dataset(tmp_path, 4)


def test_label_with_too_few_images_to_split_is_refused(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 9, "dog": 2})

    with pytest.raises(DataError, match=r"dog: 2 image\(s\); a split needs at least 3"):
        load_dataset(tmp_path, 4)


def test_label_that_val_lacks_is_noted(tmp_path: Path) -> None:
    every = {"cat": 1, "dog": 1}
    write_splits(tmp_path, train=every, val={"dog": 1}, test=every)

    assert load_dataset(tmp_path, 4).notes == ["val has no image of 1 label(s): cat"]


def test_unreadable_image_is_refused_with_its_name_and_the_count(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 5, "dog": 6})
    (tmp_path / "dog" / "broken.png").write_bytes(b"no image")

    with pytest.raises(DataError, match=r"1 of 12 images cannot be read: .*dog/broken\.png"):
        load_dataset(tmp_path, 4)


def test_unreadable_images_are_skipped_and_noted_when_asked(tmp_path: Path) -> None:
    write_splits(tmp_path, **{name: {"cat": 2, "dog": 2} for name in SPLITS})
    for index in range(7):
        (tmp_path / "train" / "cat" / f"broken{index}.png").write_bytes(b"no image")

    dataset = load_dataset(tmp_path, 4, on_bad_image="skip")

    assert dataset.sizes == {"train": 4, "val": 4, "test": 4}
    assert ids(dataset.train) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    (note,) = dataset.notes
    assert note.startswith("skipped 7 unreadable image(s): ")
    assert note.endswith(" and 2 more")


def test_label_of_unreadable_images_alone_is_refused_even_when_they_are_skipped(
    tmp_path: Path,
) -> None:
    write_splits(tmp_path, train={"cat": 2, "dog": 0}, val={"cat": 1}, test={"cat": 1})
    (tmp_path / "train" / "dog" / "broken.png").write_bytes(b"no image")

    with pytest.raises(DataError, match="train has no image of: dog"):
        load_dataset(tmp_path, 4, on_bad_image="skip")


@pytest.mark.parametrize(
    "path", [".DS_Store", "cat/.hidden.png", "cat/.ipynb_checkpoints/0.png", ".cache/0.png"]
)
def test_hidden_files_and_folders_are_ignored(tmp_path: Path, path: str) -> None:
    write_labels(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(b"no image")

    dataset = load_dataset(tmp_path, 4)

    assert dataset.labels == ["cat", "dog"]
    assert sum(dataset.sizes.values()) == 8


@pytest.mark.parametrize("name", ["A.JPG", "a.Png", "a.jpeg", "a.BMP", "a.gif"])
def test_suffixes_are_taken_in_any_case(tmp_path: Path, name: str) -> None:
    write_labels(tmp_path, {"cat": 3, "dog": 3})
    save(tmp_path / "cat" / name)

    assert sum(load_dataset(tmp_path, 4).sizes.values()) == 7


def test_images_in_folders_inside_a_label_belong_to_it(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 3, "dog": 3})
    save(tmp_path / "dog" / "more" / "a.png", (1, 77, 0))

    dataset = load_dataset(tmp_path, 4)

    assert (1, 77) in set.union(*map(ids, splits(dataset)))


def test_progress_counts_every_image_once(tmp_path: Path) -> None:
    write_labels(tmp_path, {"cat": 4, "dog": 3})
    seen: list[tuple[int, int]] = []

    load_dataset(tmp_path, 4, on_image=lambda done, total: seen.append((done, total)))

    assert seen == [(done, 7) for done in range(1, 8)]


def test_ctrl_c_does_not_wait_for_what_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labels(tmp_path, {"cat": 100, "dog": 100})
    begun = itertools.count()

    def slowly(data: bytes, img_size: int, **how: Any) -> Any:
        next(begun)
        time.sleep(0.01)
        return decode_image(data, img_size, **how)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lspt_serve.training.data.decode.decode_image", slowly)
    with pytest.raises(KeyboardInterrupt):
        load_dataset(tmp_path, 4, on_image=stop)

    assert next(begun) < 100  # of the 129 that were queued


def test_images_are_decoded_only_so_far_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labels(tmp_path, {"cat": 120, "dog": 120})
    begun: list[int] = []

    def counted(data: bytes, img_size: int, **how: Any) -> Any:
        begun.append(img_size)
        return decode_image(data, img_size, **how)

    def wait(done: int, total: int) -> None:
        if done == 1:
            time.sleep(0.2)  # in which all 168 of train could be decoded
        assert len(begun) <= done + AHEAD

    monkeypatch.setattr("lspt_serve.training.data.decode.decode_image", counted)
    load_dataset(tmp_path, 4, on_image=wait)

    assert len(begun) == 240


@pytest.mark.parametrize("cached", [False, True])
def test_names_that_are_no_utf8_are_spelt_out(tmp_path: Path, cached: bool) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache" if cached else None
    write_splits(data, train={"cat": 3, "dog": 2}, val={"cat": 1}, test={"dog": 1})
    odd = data / "train" / "cat"
    (odd / "1.png").rename(odd / "caf\udce9.png")
    (data / "val" / "cat" / "caf\udce9.png").write_bytes((odd / "caf\udce9.png").read_bytes())
    (odd / "\udcff.png").write_bytes(b"no image")

    for _ in range(2 if cached else 1):
        dataset = load_dataset(data, 8, on_bad_image="skip", cache=cache)

        assert dataset.train.names is not None
        assert f"{odd}/caf\\udce9.png" in dataset.train.names
        skipped, twins, *_ = dataset.notes
        assert f"skipped 1 unreadable image(s): {odd}/\\udcff.png (" in skipped
        assert f"{data}/val/cat/caf\\udce9.png (val) = {odd}/caf\\udce9.png (train)" in twins
