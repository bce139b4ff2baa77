"""The difficult files of the test material, over HTTP to a server in processes of its own.

H height, W width, K classes.
"""

import csv
import io
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from toys_api import check_refused
from toys_server import LSPT, Server, create_served, running

from lspt_serve.bundle import load_bundle
from lspt_serve.export import create_model
from lspt_serve.models import Backbone

pytestmark = pytest.mark.slow

TASK = "colour"
ACCEPTED = {".bmp", ".gif", ".jpg", ".png"}
SIZES = {"img_size": 224, "patch_size": 56}  # no JPEG is so large that a fraction of it is decoded
TOLERANCE = 1e-4  # of a logit; one grey more in every pixel makes twice as much of a difference
AT_ONCE = 4
# What is freed goes back to the system, so that memory is what is held: else glibc's heap, after
# some starts, spreads into pages that it has not used before, by 0.2 MB in a round
MALLOC = {"MALLOC_MMAP_THRESHOLD_": 128 * 1024}
WARM, ROUNDS, MAX_GROWTH_MB = 10, 60, 4  # if the files stayed, it would be 95
Pixels = NDArray[np.float64]

# by the EXIF orientation: what is stored, H x W x C, to what is to be seen
TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@dataclass(frozen=True)
class HardFile:
    """Its name and bytes, and what the manifest has of it."""

    name: str
    data: bytes
    result: str  # ok, or the error that it was when Pillow opened it
    orientation: str

    @property
    def refusal(self) -> tuple[int, str] | None:
        """Status and code; None where there is a picture to classify."""
        if PurePath(self.name).suffix not in ACCEPTED or self.result == "UnidentifiedImageError":
            # the latter is noise behind the first bytes of a PNG
            return 415, "unsupported_format"
        if self.result == "DecompressionBombError":
            return 413, "too_large"
        if self.result != "ok" or self.orientation == "exif:OSError":  # as the pixels were read
            return 422, "undecodable"
        return None

    def pixels(self) -> Pixels:
        """What is to be seen, on white: H x W x 3 in [0, 255]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd about the file
            image = Image.open(io.BytesIO(self.data))
            rgba = _wide_to_rgba(image) if image.mode == "I;16" else image.convert("RGBA")
        colours, alpha = np.split(np.asarray(rgba, float), [3], axis=-1)
        return TURNS[int(self.orientation or 1)](255 + (colours - 255) * alpha / 255)


def _wide_to_rgba(image: Image.Image) -> Pixels:
    wide = np.asarray(image)
    alpha = np.where(wide == image.info.get("transparency"), 0, 255)
    return np.stack([*[wide / 257] * 3, alpha], axis=-1)


@pytest.fixture(scope="module")
def files(shared_data: Path) -> dict[str, HardFile]:
    with tarfile.open(shared_data / "hard_files.tar") as tar:
        members = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        data = {name: file.read() for name, file in members.items() if file}
    rows = csv.DictReader(io.StringIO(data["manifest.csv"].decode()))
    return {
        row["file"]: HardFile(row["file"], data[row["file"]], row["result"], row["orientation"])
        for row in rows
    }


@pytest.fixture(scope="module")
def backbone(make_backbone: Callable[..., Backbone]) -> Backbone:
    return make_backbone(**SIZES)


@pytest.fixture(scope="module")
def folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_served(backbone, tmp_path_factory)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    options = ["--device", "cpu"]
    with running([*LSPT, "serve"], options, folder=folder, environment=MALLOC) as server:
        yield server


@pytest.fixture(scope="module")
def answers(server: Server, files: Mapping[str, HardFile]) -> dict[str, httpx.Response]:
    return send_all(server, files)


def send_all(server: Server, files: Mapping[str, HardFile]) -> dict[str, httpx.Response]:
    """Some at a time, so that batches mix them."""
    fields = {"task": TASK, "activation": "none"}

    def send(file: HardFile) -> httpx.Response:
        return client.post("/classify", files={"image": file.data}, data=fields)

    with (
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        return dict(zip(files, pool.map(send, files.values()), strict=True))


def logits_of(answer: httpx.Response) -> NDArray[np.float64]:
    """K, in the order of the labels."""
    predictions: list[Any] = answer.json()["predictions"]
    return np.array([p["score"] for p in sorted(predictions, key=lambda p: p["index"])])


@pytest.fixture(scope="module")
def by_torch(backbone: Backbone, folder: Path) -> Callable[[Pixels], NDArray[np.float32]]:
    """Pictures, H x W x 3, to logits, K."""
    model = create_model(backbone, load_bundle(folder / "bundles" / TASK))
    side = backbone.preprocess.img_size

    def run(pixels: Pixels) -> NDArray[np.float32]:
        image = Image.fromarray(pixels.round().astype(np.uint8))
        resized = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        normalised = torch.from_numpy((resized / 255 - 0.5) / 0.5).permute(2, 0, 1)
        with torch.inference_mode():
            return np.asarray(model(normalised[None])[0])

    return run


def test_no_file_is_an_error_of_the_server(answers: Mapping[str, httpx.Response]) -> None:
    assert len(answers) == 111
    assert {name: a.text for name, a in answers.items() if a.status_code >= 500} == {}


def test_what_is_no_picture_is_refused_for_what_it_is(
    answers: Mapping[str, httpx.Response], files: Mapping[str, HardFile]
) -> None:
    refused = {name: file.refusal for name, file in files.items() if file.refusal}
    assert Counter(code for _, code in refused.values()) == {
        "unsupported_format": 36,
        "too_large": 1,
        "undecodable": 3,
    }
    assert {name for name, a in answers.items() if a.status_code != 200} == {*refused}
    for name, (status, code) in refused.items():
        check_refused(answers[name], status, code, item="image")


def test_every_picture_is_answered_as_torch_does(
    answers: Mapping[str, httpx.Response],
    files: Mapping[str, HardFile],
    by_torch: Callable[[Pixels], NDArray[np.float32]],
) -> None:
    pictures = [file for file in files.values() if not file.refusal]
    errors = {
        file.name: np.abs(logits_of(answers[file.name]) - by_torch(file.pixels())).max()
        for file in pictures
    }
    assert len(errors) == 71
    assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}


def test_picture_without_loss_is_that_of_its_bytes(
    answers: Mapping[str, httpx.Response],
    files: Mapping[str, HardFile],
    by_torch: Callable[[Pixels], NDArray[np.float32]],
) -> None:
    """Rows of a BMP are from the bottom, blue first: no decoder is needed."""
    data = files["mode/hopper.bmp"].data
    start = int.from_bytes(data[10:14], "little")
    stored = np.frombuffer(data, np.uint8, 128 * 128 * 3, start).reshape(128, 128, 3)
    wanted = by_torch(stored[::-1, :, ::-1].astype(float))
    for name in ("hopper.bmp", "hopper.png", "hopper_idat_after_image_end.png"):
        assert logits_of(answers[f"mode/{name}"]) == pytest.approx(wanted, abs=TOLERANCE)


def family_of(server: Server) -> list[psutil.Process]:
    whole = psutil.Process(server.process.pid)
    return [whole, *whole.children(recursive=True)]


def test_memory_stays_flat(server: Server, files: Mapping[str, HardFile]) -> None:
    for _ in range(WARM):
        send_all(server, files)
    processes, held = family_of(server), []
    for _ in range(ROUNDS):
        send_all(server, files)
        held.append(sum(each.memory_full_info().uss for each in processes) / 1e6)

    assert family_of(server) == processes  # none died of a file
    quarter = ROUNDS // 4
    growth = median(held[-quarter:]) - median(held[quarter : 2 * quarter])
    assert growth < MAX_GROWTH_MB, held
