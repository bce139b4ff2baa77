"""Every layout holds the same nine images and must give the same dataset."""

import csv
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from toys import encoded

from lspt_serve.errors import DataError
from lspt_serve.training.data import SPLITS, Dataset, Split, load_dataset

# split, file, label's number and name; the names are not in the order of the alphabet
ROWS = [
    ("train", "a/0.png", 0, "eel"),
    ("train", "a/1.png", 1, "cat"),
    ("train", "b/2 x.png", 2, "dog"),
    ("train", "b/3.png", 0, "eel"),
    ("val", "b/4.png", 1, "cat"),
    ("val", "5.png", 0, "eel"),
    ("test", "6.png", 2, "dog"),
    ("test", "7.png", 1, "cat"),
    ("test", "8.png", 0, "eel"),
]
NAMES = ["eel", "cat", "dog"]
Write = Callable[[Path], Path]


def image(index: int) -> bytes:
    """Red tells which of the nine images it is."""
    pixels = np.zeros((5, 6, 3), np.uint8)
    pixels[..., 0] = 10 * index
    return encoded(pixels)


def write_images(folder: Path) -> None:
    for index, (_, file, _, _) in enumerate(ROWS):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(image(index))


def table(header: str, rows: list[tuple[object, ...]]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([header.split(","), *rows])
    return file.getvalue()


def write_csv(folder: Path) -> Path:
    write_images(folder / "photos")
    rows: list[tuple[object, ...]] = [
        (s, f"photos/{file}", number, name, "x") for s, file, number, name in ROWS
    ]
    (folder / "task.csv").write_text(table("split,file,label,class,note", rows), "utf-8-sig")
    return folder / "task.csv"


def write_vtab(folder: Path) -> Path:
    write_images(folder / "images")
    files = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
    for split, name in files.items():
        lines = [f"images/{file} {number}\n" for s, file, number, _ in ROWS if s == split]
        (folder / name).write_text("".join(lines) + "\n")
    return folder


def write_fgvc(folder: Path, images: str = "images") -> Path:
    write_images(folder / images)
    for split in SPLITS:
        labels = {file: number for s, file, number, _ in ROWS if s == split}
        (folder / f"{split}.json").write_text(json.dumps(labels))
    return folder


def write_fgvc_without_images_folder(folder: Path) -> Path:
    return write_fgvc(folder, images=".")


def write_fgvc_dogs(folder: Path) -> Path:
    return write_fgvc(folder, images="Images")


def write_tar(
    path: Path,
    *,
    header: str = "split,file,label,class",
    text: str | None = None,
    prefix: str = "",
    about: object = None,
) -> Path:
    columns = header.split(",")
    rows = [dict(zip(("split", "file", "label", "class"), row, strict=True)) for row in ROWS]
    text = text or table(header, [tuple(row[column] for column in columns) for row in rows])
    files = {"labels.csv": text.encode()}
    files |= {} if about is None else {"task.json": json.dumps(about).encode()}
    files |= {file: image(index) for index, (_, file, _, _) in enumerate(ROWS)}
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_named_tar(folder: Path) -> Path:
    return write_tar(folder / "task.tar")


def write_tar_with_dots(folder: Path) -> Path:
    return write_tar(folder / "task.tar", prefix="./")


def write_tar_of_numbers(folder: Path) -> Path:
    about = {"name": "animals", "classes": NAMES}
    return write_tar(folder / "task.tar", header="split,file,label", about=about)


def saved(folder: Path, kind: Any, **labels: Sequence[int | None]) -> Path:
    """A dict of splits with these labels, images counted through."""
    kinds = datasets.Features({"image": datasets.Image(), "label": kind})
    numbers = count()
    parts = {}
    for split, own in labels.items():
        images = [{"bytes": image(next(numbers)), "path": None} for _ in own]
        parts[split] = datasets.Dataset.from_dict({"image": images, "label": own}, features=kinds)
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


def write_saved_datasets(folder: Path, kind: Any = None) -> Path:
    labels = {split: [row[2] for row in ROWS if row[0] == split] for split in SPLITS}
    kind = kind or datasets.ClassLabel(names=[*NAMES, "unseen"])
    return saved(folder, kind, train=labels["train"], validation=labels["val"], test=labels["test"])


def write_saved_integers(folder: Path) -> Path:
    return write_saved_datasets(folder, datasets.Value("int32"))


NAMED: list[Write] = [
    write_csv,
    write_named_tar,
    write_tar_with_dots,
    write_tar_of_numbers,
    write_saved_datasets,
]
NUMBERED: list[Write] = [
    write_vtab,
    write_fgvc,
    write_fgvc_without_images_folder,
    write_fgvc_dogs,
    write_saved_integers,
]


def check_split(split: Split, name: str) -> None:
    """Every image is there once, in order, resized, with its target."""
    own = [(index, row) for index, row in enumerate(ROWS) if row[0] == name]
    wanted = np.zeros((len(own), 4, 4, 3), np.uint8)
    wanted[..., 0] = [[[10 * index]] for index, _ in own]
    assert np.array_equal(split.images, wanted)
    assert split.targets.tolist() == [row[2] for _, row in own]
    assert split.images.dtype == np.uint8
    assert split.targets.dtype == np.int64


def splits(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "val": dataset.val, "test": dataset.test}


@pytest.mark.parametrize("write", [*NAMED, *NUMBERED], ids=lambda write: write.__name__[6:])
def test_every_layout_gives_the_same_dataset(tmp_path: Path, write: Write) -> None:
    dataset = load_dataset(write(tmp_path), 4)

    assert dataset.labels == (NAMES if write in NAMED else ["0", "1", "2"])
    assert dataset.sizes == {"train": 4, "val": 2, "test": 3}
    assert dataset.notes == ["val has no image of 1 label(s): " + dataset.labels[2]]
    for name, split in splits(dataset).items():
        check_split(split, name)


def test_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    write_images(tmp_path)
    for split in SPLITS:
        labels = {file: 5 * number for _, file, number, _ in ROWS}
        (tmp_path / f"{split}.json").write_text(json.dumps(labels))

    assert load_dataset(tmp_path, 4).labels == ["0", "5", "10"]


@pytest.mark.parametrize("beside", ["class", "note"])
def test_label_of_too_many_digits_for_a_number_is_text(tmp_path: Path, beside: str) -> None:
    write_images(tmp_path)
    long = "9" * 5000
    rows = [(split, file, long if n == 2 else n, name) for split, file, n, name in ROWS]
    (tmp_path / "all.csv").write_text(table(f"split,file,label,{beside}", [*rows]))

    assert load_dataset(tmp_path / "all.csv", 4).labels == ["0", "1", long]


@pytest.mark.parametrize(
    ("header", "labels"),
    [
        ("path,class", ["cat", "dog", "eel"]),
        ("path,label", ["0", "1", "2"]),
        ("file,label,class", NAMES),
    ],
)
def test_table_without_splits_is_split_by_the_seed(
    tmp_path: Path, header: str, labels: list[str]
) -> None:
    write_images(tmp_path)
    (tmp_path / "9.png").write_bytes(image(9))
    every = [*ROWS, ("", "9.png", 2, "dog")]
    values = [{"path": f, "file": f, "label": n, "class": name} for _, f, n, name in every]
    rows = [tuple(value[column] for column in header.split(",")) for value in values]
    (tmp_path / "all.csv").write_text(table(header, rows))

    first, again = (load_dataset(tmp_path / "all.csv", 4, seed=3) for _ in range(2))

    assert first.labels == labels
    assert first.sizes == {"train": 4, "val": 3, "test": 3}
    for name, split in splits(first).items():
        assert np.array_equal(split.images, splits(again)[name].images)
        for red, target in zip(split.images[:, 0, 0, 0] // 10, split.targets, strict=True):
            assert labels[target] in {str(every[red][2]), every[red][3]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.png,1\n", "columns name, label; wanted file or path, label or class"),
        ("", "columns none; wanted"),
        ("file,label,split\na.png,1,train\nb.png,,val\n", "line 3: nothing in column label"),
        ("file,label,split\na.png\n", "line 2: nothing in column label, split"),
        ("file,label,split\na.png,1,dev\n", "line 2: split 'dev'; wanted train, val or test"),
        ("file,label\n\n\na.png,1\n\nb.png,\n", "line 6: nothing in column label"),
        ('file,label,note\na.png,1,"two\nlines"\nb.png,,\n', "line 4: nothing in column label"),
        ("file,label,class\na,1,cat\nb,1,dog\n", "label 1 stands beside more than one class"),
        ("file,label,class\na,1,cat\nb,2,cat\n", "class cat stands beside more than one label"),
        ("file,label\na.png,1\nb.png,2\n", r"label 1: 1 image\(s\); a split needs at least 3"),
        (f'file,label\n"{"x" * 200_000}",1\n', "line .*: not CSV"),
    ],
)
def test_table_that_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "all.csv").write_text(text)

    with pytest.raises(DataError, match=rf"all\.csv: {message}"):
        load_dataset(tmp_path / "all.csv", 4)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_bytes("file,label\nä.png,1\n".encode("latin-1"))

    with pytest.raises(DataError, match=r"all\.csv: cannot be read as UTF-8"):
        load_dataset(tmp_path / "all.csv", 4)


def spoil_vtab(folder: Path, text: str) -> Path:
    (write_vtab(folder) / "val200.txt").write_text(text)
    return folder


def spoil_fgvc(folder: Path, text: str) -> Path:
    (write_fgvc(folder) / "val.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("spoil", "text", "message"),
    [
        (spoil_vtab, "images/5.png 1\nalone\n", r"val200\.txt: line 2: 'alone'; wanted \"path"),
        (spoil_vtab, "", "the val split is empty"),
        (spoil_fgvc, "{", r"val\.json: not JSON"),
        (spoil_fgvc, "[1]", r'val\.json: list; wanted \{"path": label\}'),
        (spoil_fgvc, '{"5.png": null}', r"val\.json: 5\.png: label None; wanted a name"),
        (spoil_fgvc, '{"5.png": true}', "label True"),
        (spoil_fgvc, "{}", "the val split is empty"),
        (spoil_fgvc, '{"5.png": 11, "6.png": 7}', "val has labels that train lacks: 7, 11"),
    ],
)
def test_list_that_makes_no_sense_is_refused(
    tmp_path: Path, spoil: Callable[[Path, str], Path], text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(spoil(tmp_path, text), 4)


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\f"])
def test_line_of_a_list_ends_where_an_editor_ends_it(tmp_path: Path, odd: str) -> None:
    spoil_vtab(tmp_path, f"images/a{odd}5.png 0\r\nimages/b/4.png 1\r\n")
    (tmp_path / "images" / "5.png").rename(tmp_path / "images" / f"a{odd}5.png")

    assert load_dataset(tmp_path, 4).val.targets.tolist() == [0, 1]


def test_vtab_has_labels_that_its_draw_for_train_lacks(tmp_path: Path) -> None:
    dataset = load_dataset(spoil_vtab(tmp_path, "images/5.png 7\nimages/b/4.png 1\n"), 4)

    assert dataset.labels == ["0", "1", "2", "7"]
    assert dataset.val.targets.tolist() == [3, 1]
    assert dataset.merged().train.targets.tolist() == [0, 1, 2, 0, 3, 1]
    assert dataset.notes == [
        "train has no image of 1 label(s): 7",
        "val has no image of 2 label(s): 0, 2",
        "test has no image of 1 label(s): 7",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_label_that_is_no_utf8_is_refused_before_decoding(tmp_path: Path) -> None:
    for label in (b"caf\xe9", b"tea"):
        folder = tmp_path / os.fsdecode(label)
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.png").write_bytes(b"not looked at")

    with pytest.raises(DataError, match=r"label 'caf\\udce9' is no UTF-8; rename it"):
        load_dataset(tmp_path, 4)


@pytest.mark.parametrize("write", [write_vtab, write_fgvc])
def test_list_that_is_missing_is_named(tmp_path: Path, write: Write) -> None:
    write(tmp_path)
    next(tmp_path.glob("val*")).unlink()

    with pytest.raises(DataError, match=r"val.*: cannot be read as UTF-8 text: .*No such file"):
        load_dataset(tmp_path, 4)


@pytest.mark.parametrize("write", [write_csv, write_vtab, write_fgvc])
def test_missing_images_are_named_counted_and_skipped_when_asked(
    tmp_path: Path, write: Write
) -> None:
    path = write(tmp_path)
    next(tmp_path.rglob("3.png")).unlink()
    next(tmp_path.rglob("8.png")).write_bytes(b"no image")

    wanted = r"2 of 9 images cannot be read: .*b/3\.png \(No such file .*8\.png \(8 bytes"
    with pytest.raises(DataError, match=wanted):
        load_dataset(path, 4)
    dataset = load_dataset(path, 4, on_bad_image="skip")

    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert dataset.train.targets.tolist() == [0, 1, 2]
    assert dataset.sizes == {"train": 3, "val": 2, "test": 2}
    assert dataset.notes[0].startswith("skipped 2 unreadable image(s): ")


@pytest.mark.parametrize("name", ["\0.png", "x" * 300 + ".png"])
@pytest.mark.parametrize("layout", ["csv", "json"])
def test_name_that_no_file_can_have_is_a_missing_image(
    tmp_path: Path, layout: str, name: str
) -> None:
    path = write_csv(tmp_path) if layout == "csv" else write_fgvc(tmp_path)
    if layout == "csv":
        path.write_text(path.read_text("utf-8-sig") + f"val,{name},0,eel,x\n")
    else:
        (path / "val.json").write_text(json.dumps({name: 0, "5.png": 1}))

    with pytest.raises(DataError, match=r"1 of .* images cannot be read"):
        load_dataset(path, 4, cache=tmp_path / "cache")


@pytest.mark.parametrize("about", [[], {"classes": 5}, {"classes": ["eel"]}, {}])
def test_task_json_that_does_not_name_the_numbers_leaves_them(
    tmp_path: Path, about: object
) -> None:
    path = write_tar(tmp_path / "task.tar", header="split,file,label", about=about)

    named = about == {"classes": ["eel"]}
    assert load_dataset(path, 4).labels == ["eel" if named else "0", "1", "2"]


def test_task_json_that_calls_two_classes_the_same_is_refused(tmp_path: Path) -> None:
    about = {"classes": ["eel", "cat", "dog", "cat", "eel"]}
    path = write_tar(tmp_path / "task.tar", header="split,file,label", about=about)

    with pytest.raises(DataError, match=r"task\.json: two classes are called eel, cat; rename one"):
        load_dataset(path, 4)


def test_member_that_the_tar_lacks_is_named(tmp_path: Path) -> None:
    text = table("split,file,label", [*(row[:3] for row in ROWS), ("val", "9.png", 1)])

    with pytest.raises(DataError, match=r"1 of 10 .*task\.tar/9\.png \(no such file in the tar\)"):
        load_dataset(write_tar(tmp_path / "task.tar", text=text), 4)


def test_tar_without_a_table_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "task.tar", "w"):
        pass
    with pytest.raises(DataError, match=r"task\.tar: no labels\.csv inside"):
        load_dataset(tmp_path / "task.tar", 4)


def test_compressed_or_cut_tar_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "task.tar").read_bytes()
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "task.tar")
    (tmp_path / "cut.tar").write_bytes(whole[:3000])

    for name in ("packed.tar", "cut.tar"):
        with pytest.raises(DataError, match=f"{name}: cannot be read as an uncompressed tar"):
            load_dataset(tmp_path / name, 4)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"")

    with pytest.raises(DataError, match=r"photos\.zip: a \.zip file; wanted a \.csv or a \.tar"):
        load_dataset(tmp_path / "photos.zip", 4)


def test_file_that_stands_in_two_splits_is_noted(tmp_path: Path) -> None:
    path = write_vtab(tmp_path)
    (tmp_path / "images" / "7.png").write_bytes(image(1))  # test is train
    (tmp_path / "images" / "a" / "0.png").write_bytes(image(3))  # train twice: no harm

    twins, _ = load_dataset(path, 4).notes

    assert twins == (
        f"1 image file(s) stand in two splits: {tmp_path}/images/7.png (test) = "
        f"{tmp_path}/images/a/1.png (train)"
    )


def test_merged_has_val_in_train_and_keeps_the_rest(tmp_path: Path) -> None:
    dataset = load_dataset(write_csv(tmp_path), 4)

    merged = dataset.merged()

    assert merged.sizes == {"train": 6, "val": 2, "test": 3}
    assert merged.train.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert merged.train.targets.tolist() == [0, 1, 2, 0, 1, 0]
    assert merged.val is dataset.val
    assert dataset.sizes["train"] == 4


@pytest.mark.parametrize("crop_pct", [0.0, 1.5])
def test_crop_pct_that_makes_no_sense_is_refused(tmp_path: Path, crop_pct: float) -> None:
    with pytest.raises(DataError, match=f"crop_pct must be .* got {crop_pct}"):
        load_dataset(write_csv(tmp_path), 4, crop_pct=crop_pct)


def test_images_to_crop_keep_their_margin(tmp_path: Path) -> None:
    dataset = load_dataset(write_csv(tmp_path), 4, crop_pct=0.5)

    assert dataset.train.images.shape == (4, 8, 8, 3)
    assert dataset.test.images.shape == (3, 8, 8, 3)
    assert dataset.crop_pct == 0.5


def test_saved_dataset_without_the_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": []}')
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(DataError, match=r"pip install '\.\[datasets\]'"):
        load_dataset(tmp_path, 4)


def test_saved_single_split_is_split_by_the_seed(tmp_path: Path) -> None:
    kinds = {"label": datasets.ClassLabel(names=["no", "yes"]), "picture": datasets.Image()}
    rows = {
        "label": [n % 2 for n in range(8)],
        "picture": [{"bytes": image(n), "path": None} for n in range(8)],
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(str(tmp_path))

    dataset = load_dataset(tmp_path, 4)

    assert dataset.labels == ["no", "yes"]
    assert dataset.sizes == {"train": 4, "val": 2, "test": 2}
    for split in splits(dataset).values():
        assert (split.images[:, 0, 0, 0] // 10 % 2).tolist() == split.targets.tolist()


LABELS = datasets.ClassLabel(names=["no", "yes"])
TWENTY = [n % 2 for n in range(20)]


@pytest.mark.parametrize(
    ("there", "sizes"),
    [
        (["test"], {"train": 16, "val": 4, "test": 2}),
        (["valid"], {"train": 16, "val": 2, "test": 4}),
        ([], {"train": 12, "val": 4, "test": 4}),
    ],
)
def test_saved_splits_that_are_missing_are_split_off_train(
    tmp_path: Path, there: list[str], sizes: dict[str, int]
) -> None:
    saved(tmp_path, LABELS, train=TWENTY, **{name: [0, 1] for name in there})

    dataset, again, other = (load_dataset(tmp_path, 4, seed=seed) for seed in (0, 0, 1))

    assert dataset.sizes == sizes
    off_train = [
        {int(red) // 10 for red in split.images[:, 0, 0, 0]} & set(range(20))
        for split in splits(dataset).values()
    ]
    assert sum(map(len, off_train)) == 20
    assert set.union(*off_train) == set(range(20))
    for name, split in splits(dataset).items():
        assert (split.images[:, 0, 0, 0] // 10 % 2).tolist() == split.targets.tolist()
        assert np.array_equal(split.images, splits(again)[name].images)
    assert not np.array_equal(dataset.train.images, other.train.images)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["validation", "test"], "splits validation, test; train is missing"),
        (["train", "dev", "test"], "splits train, dev, test; val is missing.*; rename them"),
    ],
)
def test_saved_splits_that_are_not_understood_are_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    saved(tmp_path, LABELS, **{name: [0, 1] for name in names})

    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path, 4)


@pytest.mark.parametrize("missing", [None, -1])
@pytest.mark.parametrize("kind", [LABELS, datasets.Value("int64")], ids=["named", "integers"])
def test_saved_rows_without_a_label_are_refused(
    tmp_path: Path, kind: Any, missing: int | None
) -> None:
    saved(tmp_path, kind, train=[0, missing, 1], validation=[0, 1], test=[0, 1])

    with pytest.raises(DataError, match=r"train: rows without a label: 1$"):
        load_dataset(tmp_path, 4)


def test_saved_columns_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, datasets.Value("float32"), train=[0, 1])

    wanted = "train: columns image, label; wanted an Image and a ClassLabel, or integers"
    with pytest.raises(DataError, match=wanted):
        load_dataset(tmp_path, 4)


@pytest.mark.parametrize("task", ["cifar100", "clothing10", "grocery81", "signdigits10"])
def test_real_task_has_the_counts_and_classes_that_it_says(shared_data: Path, task: str) -> None:
    path = shared_data / "tasks" / f"{task}.tar"
    with tarfile.open(path) as tar:
        about, rows = (tar.extractfile(name) for name in ("task.json", "labels.csv"))
        assert about is not None
        assert rows is not None
        said = json.load(about)
        listed = list(csv.DictReader(io.TextIOWrapper(rows, "utf-8")))

    dataset = load_dataset(path, 16)

    assert dataset.sizes == said["counts"]
    assert dataset.labels == said["classes"]
    for name, split in splits(dataset).items():
        numbers = [int(row["label"]) for row in listed if row["split"] == name]
        assert split.targets.tolist() == numbers
        assert len(np.unique(split.targets)) == said["classes_in_split"][name]
        assert split.images.shape == (len(numbers), 16, 16, 3)
    lacking = said["num_classes"] - said["classes_in_split"]["val"]
    assert [note.split(":")[0] for note in dataset.notes] == (
        [f"val has no image of {lacking} label(s)"] if lacking else []
    )
