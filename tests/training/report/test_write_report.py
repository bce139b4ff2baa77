"""The whole report: what stands in it, that it is escaped, that its pictures are pictures."""

import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import COLOURS, coloured

from lspt_serve.bundle import Bundle
from lspt_serve.errors import OutputError
from lspt_serve.manifest import Metrics
from lspt_serve.models import METHODS, Backbone, create_prompted_vit
from lspt_serve.training import Dataset, Epoch, Split, TrainSettings, create_bundle, train_task
from lspt_serve.training.report import write_report

LABELS = list(COLOURS)
PICTURES = {"attention.png", "calibration.png", "confusion.png", "curves.png", "errors.png"}
SHORT = TrainSettings(epochs=1, batch_size=8, precision="fp32", device="cpu")


def make_split(targets: Sequence[int], seed: int) -> Split:
    rng = np.random.default_rng(seed)
    images = [coloured(LABELS[target % 3], rng) for target in targets]
    return Split(np.stack(images), np.array(targets, np.int64))


@pytest.fixture(scope="module")
def colours() -> Dataset:
    train, val, test = (make_split([0, 1, 2] * count, count) for count in (8, 1, 3))
    return Dataset(LABELS, train, val, test, notes=["<i>skipped</i> 1 image"])


def write(
    folder: Path,
    backbone: Backbone,
    *,
    labels: Sequence[str],
    targets: Sequence[int],
    logits: torch.Tensor,
    history: Sequence[Epoch] = (Epoch(1, 1.5, 1.25, 0.5, lr=1e-3), Epoch(2, 0.5, 0.75, 0.625)),
    best_epoch: int = 2,
    method: str = "lspt",
) -> Any:
    """Write the report of these answers; returns report.json."""
    test = make_split(targets, 0)
    dataset = Dataset(list(labels), test, test, test, notes=["<i>skipped</i> 1 image"])
    model = create_prompted_vit(backbone, method, num_classes=len(labels), pool="patch_mean")
    metrics = Metrics(
        val_accuracy=0.625,
        test_accuracy=0.4375,
        temperature=2.0,
        test_ece=0.0625,
        test_ece_uncalibrated=0.125,
        best_epoch=best_epoch,
        seed=0,
        split=dataset.sizes,
        train_s=1.0,
    )
    bundle = create_bundle(model, backbone, name="task", labels=list(labels), metrics=metrics)
    write_report(folder, model, bundle.manifest, dataset, history, logits=logits)
    check_pictures(folder)
    return json.loads((folder / "report.json").read_text("utf-8"), parse_constant=pytest.fail)


def check_pictures(folder: Path) -> None:
    """PNGs of more than one colour, as large as the page says, and small all together."""
    page = (folder / "index.html").read_text("utf-8")
    shown = re.findall(r'<img[^>]* src="([^"]+)"[^>]* width="(\d+)" height="(\d+)">', page)
    assert {name for name, *_ in shown} == {path.name for path in folder.glob("*.png")}
    for name, width, height in shown:
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
            assert image.size == (int(width), int(height))
            assert 200 < min(image.size) < max(image.size) < 1200
            assert len(image.convert("RGB").resize((64, 64)).getcolors(4096) or []) > 20
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6


class Page(HTMLParser):
    """The elements and the text of a page, spaces folded."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed((folder / "index.html").read_text("utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_report(
    tiny_backbone: Backbone, colours: Dataset, tmp_path: Path, method: str
) -> None:
    bundle = train_task(
        tiny_backbone, colours, name="colour", method=method, settings=SHORT, run=tmp_path / "run"
    )

    folder, metrics = tmp_path / "run" / "report", bundle.manifest.metrics
    assert metrics is not None
    check_pictures(folder)
    names = {path.name for path in folder.iterdir()}
    assert names - {"errors.png"} == PICTURES - {"errors.png"} | {"index.html", "report.json"}
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["metrics"] == metrics.model_dump()
    right = sum(row["right"] for row in report["classes"])
    assert right / len(colours.test) == pytest.approx(metrics.test_accuracy)
    assert [epoch["number"] for epoch in report["epochs"]] == [1]
    assert report["epochs"][0]["lr"] > 0
    page = Page(folder).text
    assert f"{method} on " in page  # as it was trained, not as it is folded
    assert f"Accuracy on test {metrics.test_accuracy:.1%}" in page
    assert ("The model has no prompts." in page) is (method == "linear")


def write_eight(folder: Path, backbone: Backbone) -> Any:
    """Eight images of three labels, of which green is never said: 2 x blue right, 1 x red right.

    Logits are as served, so that before the temperature of 2 they are twice as large.
    """
    torch.manual_seed(0)
    says = [0, 0, 2, 2, 0, 2, 0, 2]
    logits = 2.0 * torch.eye(3)[says]
    logits[4, 0] = 4.0  # the surest error
    targets = [0, 0, 0, 1, 1, 2, 2, 1]
    return write(folder, backbone, labels=LABELS, targets=targets, logits=logits)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("run") / "report"
    return folder, write_eight(folder, tiny_backbone)


def test_the_numbers_are_those_worked_by_hand(eight: tuple[Path, Any]) -> None:
    _, report = eight
    assert report["labels"] == LABELS
    assert report["confusion"] == [[0, 0, 2], [0, 2, 1], [1, 0, 1], [1, 2, 2], [2, 0, 1], [2, 2, 1]]
    classes = [(row["label"], row["images"], row["right"]) for row in report["classes"]]
    assert classes == [("green", 3, 0), ("red", 2, 1), ("blue", 3, 2)]
    assert report["pairs"][0] == {
        "true": "green",
        "predicted": "red",
        "count": 2,
        "share": pytest.approx(2 / 3),
    }
    worst = report["errors"][0]
    assert (worst["index"], worst["true"], worst["predicted"]) == (4, "green", "blue")
    assert worst["score"] == pytest.approx(math.exp(4) / (math.exp(4) + 2))
    assert worst["true_score"] == pytest.approx(1 / (math.exp(4) + 2))
    assert len(report["errors"]) == 5
    assert [epoch["val_loss"] for epoch in report["epochs"]] == [1.25, 0.75]


def test_the_bins_are_before_and_after_the_temperature(eight: tuple[Path, Any]) -> None:
    """As served seven images have logit 2 and one 4, of the others 0; the temperature is 2."""
    _, report = eight
    two, four, eight_ = (math.exp(logit) / (math.exp(logit) + 2) for logit in (2, 4, 8))
    filled = {
        name: [(b["images"], b["confidence"], b["accuracy"]) for b in bins if b["images"]]
        for name, bins in report["calibration"].items()
    }
    assert filled["before"] == [(8, pytest.approx((7 * four + eight_) / 8), 3 / 8)]
    assert filled["after"] == [(7, pytest.approx(two), 3 / 7), (1, pytest.approx(four), 0.0)]


def test_attention_is_reported_for_wrong_and_right_images(eight: tuple[Path, Any]) -> None:
    _, report = eight
    images = report["attention"]["images"]
    assert [image["true"] == image["predicted"] for image in images] == [False] * 3 + [True] * 3
    gazes = report["attention"]["gazes"]
    assert [(gaze["who"], gaze["block"]) for gaze in gazes] == [
        *(("CLS", block) for block in (1, 2, 3)),
        *(("prompts", block) for block in (1, 2, 3)),
    ]
    whole = [
        sum(gaze["patches"][5]) + gaze["to_prefix"][5] + gaze["to_prompts"][5] for gaze in gazes
    ]
    assert whole == pytest.approx([1] * 6, abs=1e-3)


def test_the_page_says_what_there_is_to_say(eight: tuple[Path, Any]) -> None:
    text = Page(eight[0]).text
    for words in (
        "Accuracy on test 43.8% 8 images",
        "Accuracy on val 62.5% epoch 2 of 2, 8 images",
        "Calibration error 6.2% 12.5% as trained",
        "green 0.0% 0 of 3 red 50.0% 1 of 2 blue 66.7% 2 of 3",
        "green red 2 66.7%",
        "96.5% blue 1.8% green row 4",
        "divided by 2.00, a temperature",
    ):
        assert words in text


def test_the_same_answers_give_the_same_report(
    eight: tuple[Path, Any], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    write_eight(tmp_path / "again", tiny_backbone)

    for path in eight[0].iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_the_page_needs_no_script_and_nothing_from_elsewhere(eight: tuple[Path, Any]) -> None:
    folder, _ = eight
    elements = Page(folder).elements
    addresses = [
        value for _, attrs in elements for key, value in attrs.items() if key in ("src", "href")
    ]
    assert {tag for tag, _ in elements} & {"script", "link", "iframe"} == set()
    assert all((folder / str(address)).is_file() for address in addresses)
    assert set(addresses) == PICTURES | {"report.json"}
    page = (folder / "index.html").read_text("utf-8")
    assert "url(" not in page
    assert "@import" not in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "prefers-color-scheme: dark" in page


def test_what_is_hostile_is_text_in_pictures_and_page_and_null_in_the_numbers(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    labels = [
        "<script>alert(1)</script>",
        r"$\frac$ a_b",
        "日本語 🐈",
        "\n\x00",
        'w"' * 400,
        "{{ 7*7 }}",
    ]
    targets = [0, 1, 2, 3, 4, 5, 0]
    logits = torch.eye(6)[[1, 2, 3, 4, 5, 0, 0]]
    history = [Epoch(1, 1.0, 2.0, 0.5), Epoch(2, math.inf, math.nan, 0.0)]  # diverged

    report = write(
        tmp_path / "r",
        tiny_backbone,
        labels=labels,
        targets=targets,
        logits=logits,
        history=history,
        best_epoch=1,
    )

    assert report["labels"] == labels
    assert [(e["loss"], e["val_loss"]) for e in report["epochs"]] == [(1.0, 2.0), (None, None)]
    page = Page(tmp_path / "r")
    assert {tag for tag, _ in page.elements} & {"script", "i"} == set()
    assert "<script>alert(1)</script>" in page.text
    assert "<i>skipped</i> 1 image" in page.text
    assert "{{ 7*7 }}" in page.text


@pytest.mark.parametrize(("num_classes", "images"), [(2, 1), (1000, 1501)])
def test_any_number_of_classes_gives_a_report(
    tiny_backbone: Backbone, tmp_path: Path, num_classes: int, images: int
) -> None:
    targets = [i % num_classes for i in range(images)]
    says = [target if i % 3 else 0 for i, target in enumerate(targets)]
    labels = [f"n{i:04}" for i in range(num_classes)]
    logits = 9.0 * torch.eye(num_classes)[says]

    report = write(tmp_path / "r", tiny_backbone, labels=labels, targets=targets, logits=logits)

    assert len(report["classes"]) == num_classes
    text = Page(tmp_path / "r").text
    assert ("Labels are in the order of report.json." in text) is (num_classes == 1000)
    assert ("A cell is 9 labels of each side" in text) is (num_classes == 1000)
    assert ("These are 200 of 1000 labels" in text) is (num_classes == 1000)
    assert ("no images" in text) is (num_classes == 2)
    assert ("None: every image of test is right." in text) is (num_classes == 2)


def test_a_model_with_nobody_to_look_says_so(
    make_backbone: Callable[..., Backbone], tmp_path: Path
) -> None:
    backbone = make_backbone(class_token=False, global_pool="avg")
    answers: dict[str, Any] = {"labels": ["a", "b"], "targets": [0, 1], "logits": torch.eye(2)}

    report = write(tmp_path / "r", backbone, method="linear", **answers)

    assert report["attention"]["gazes"] == []
    assert not (tmp_path / "r" / "attention.png").exists()
    assert "neither a class token nor prompts" in Page(tmp_path / "r").text


@pytest.mark.parametrize(
    "trouble", [OutputError("disk full"), RuntimeError("a bug"), KeyboardInterrupt()]
)
def test_a_report_that_fails_costs_no_bundle(
    tiny_backbone: Backbone,
    colours: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: BaseException,
) -> None:
    saved: list[Bundle] = []

    def fail(folder: Path, *_: Any, **__: Any) -> None:
        assert len(saved) == 1  # before the report is begun
        raise trouble

    def save(bundle: Bundle) -> None:
        saved.append(bundle)
        stale.parent.mkdir()
        stale.write_text("of an earlier run")

    monkeypatch.setattr("lspt_serve.training.task.write_report", fail)
    stale = tmp_path / "run" / "report" / "index.html"

    with caplog.at_level(logging.WARNING):
        bundle = train_task(
            tiny_backbone,
            colours,
            name="colour",
            method="linear",
            settings=SHORT,
            run=tmp_path / "run",
            on_bundle=save,
        )

    assert saved == [bundle]
    assert "no report was written" in caplog.text
    assert not stale.exists()


def test_without_a_run_folder_nothing_is_drawn(
    tiny_backbone: Backbone, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lspt_serve.training.task.write_report", None)
    history: list[Epoch] = []
    settings = replace(SHORT, epochs=2)
    train_task(
        tiny_backbone,
        colours,
        name="colour",
        method="linear",
        settings=settings,
        on_epoch=history.append,
    )
    assert [epoch.number for epoch in history] == [1, 2]
